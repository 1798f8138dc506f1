"""Another thread acts between any two opcodes of a submission, or of a turn: no request is left lying unseen."""

from __future__ import annotations

import contextlib
import gc
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

import gaio
from tests import backends, leaks
from tests.accounting import Request
from tests.interruption.opcodes import Opcode, Strike, at_opcodes, interrupted_at, threads_can_be_struck
from tests.interruption.world import SECONDS, World
from tests.peers import receive_until_eof
from tests.waiting import Background, TimeLimit, wait_until

pytestmark = pytest.mark.usefixtures("thread_acts_when_told")


def test_consumer_works_and_sleeps_again_during_a_submission(backend: backends.Name) -> None:
    """The submitter has woken the consumer, and is held up before it has noted that. The next one must wake it, too."""
    at_opcodes(partial(_submit_while_the_consumer_works, backend))


def _submit_while_the_consumer_works(backend: backends.Name, at: Opcode) -> Strike:
    with World(backend, 4096) as world:
        conn, _ = world.pairs.unix()
        world.watcher.finish(world.watcher.write(conn, b"known"))

        def consume() -> None:
            with contextlib.suppress(gaio.WatcherClosedError):
                while True:
                    world.watcher.wait(SECONDS)

        consumer = Background(consume)
        wait_until(lambda: world.leader.needs_wakeup, "the consumer to wait in the kernel")

        def let_the_consumer_work() -> None:
            # If it has been woken already. That it has not been yet cannot be seen, so this ends by itself.
            until = time.monotonic() + 0.002
            while time.monotonic() < until and (world.leader.inbox or not world.leader.needs_wakeup):
                time.sleep(0)

        strike = Strike(at, let_the_consumer_work)
        with strike:
            first = world.watcher.write(conn, b"first")
        let_the_consumer_work()
        second = world.watcher.write(conn, b"second")
        wait_until(
            lambda: first.result and second.result,
            f"two results, the submitter having been held up at {at}, {strike.place}",
            seconds=SECONDS,
        )
        world.watcher.watcher.close()
        consumer.result()
    return strike


def test_submission_during_a_turn(backend: backends.Name) -> None:
    """That turn, or the next one, takes it."""
    with ThreadPoolExecutor(1) as submitter:
        submitter.submit(int).result()  # its thread runs from here on, and is no leak of the watcher's
        at_opcodes(lambda at: _turn_with_a_submission(backend, at, submitter))


def _turn_with_a_submission(backend: backends.Name, at: Opcode, submitter: ThreadPoolExecutor) -> Strike:
    requests: list[Request] = []
    with World(backend, 4096) as world:
        conn, peer = world.pairs.unix()
        requests.append(world.watcher.read(conn))
        assert world.watcher.wait(0) == []

        def submit() -> None:
            requests.append(submitter.submit(world.watcher.write, conn, b"from a thread").result(SECONDS))

        strike = Strike(at, submit)
        limit = TimeLimit(SECONDS)
        with strike:
            while len(requests) == 1:
                world.watcher.wait(0.001)
                if strike.place is None:
                    break
        if strike.place is not None:
            while requests[1].result is None:
                seconds = limit.left("") / 2
                assert world.watcher.wait(seconds), f"submitted at {at}, {strike.place}, and never seen"
            assert peer.recv(100) == b"from a thread"
    return strike


def test_submission_before_the_consumer_sleeps(backend: backends.Name) -> None:
    """Nothing else happens that would wake it, and no other turn follows before it has been woken."""
    places: list[str] = []
    with ThreadPoolExecutor(1) as submitter:
        submitter.submit(int).result()  # as above

        at = Opcode(1, 1)
        while True:
            strike = _in_time_before_the_wait(at, backend, submitter)
            if strike is not None:
                assert strike.place is not None
                places.append(strike.place)
            if strike is not None and not strike.is_last:
                at = Opcode(at.call, at.number + 1)
            elif strike is not None or at.number > 1:
                at = Opcode(at.call + 1, 1)
            else:
                break  # a call that begins after the wait
    assert len(places) > 50
    waits = [place for place in places if re.search(r"\bwait(\(\), called by| <) pause\b", place)]
    assert waits, f"too late from {places[-1]} on"


def _in_time_before_the_wait(at: Opcode, backend: backends.Name, submitter: ThreadPoolExecutor) -> Strike | None:
    """None if there is no such opcode before the wait."""
    for _ in range(3):  # too late for once: a busy machine may have been the reason
        strike, in_time = _wait_with_a_submission(at, backend, submitter)
        if in_time:
            return strike
        if strike.place is None:
            break
    return None


def _wait_with_a_submission(
    at: Opcode, backend: backends.Name, submitter: ThreadPoolExecutor
) -> tuple[Strike, bool]:
    """The strike, and whether it came before the wait."""
    requests: list[Request] = []
    with World(backend, 4096) as world:
        conn, _ = world.pairs.unix()
        world.watcher.finish(world.watcher.write(conn, b"known"))  # who delegates a connection wakes the consumer, too
        waiting, peer = world.pairs.unix()
        world.watcher.read(waiting)
        assert world.watcher.wait(0) == []
        # Whichever comes first, ends the wait: the other does not.
        first = threading.Lock()

        def submit() -> None:
            if first.acquire(blocking=False):
                requests.append(submitter.submit(world.watcher.write, conn, b"x").result(SECONDS))

        def end_the_wait() -> None:
            if first.acquire(blocking=False):
                peer.send(b"x")

        # That the consumer waits in the kernel cannot be seen. Too early, this only says "too late" of the opcode.
        timer = threading.Timer(0.3, end_the_wait)
        timer.start()
        strike = Strike(at, submit)
        with strike:
            batch = world.watcher.wait(SECONDS)
        timer.cancel()
        timer.join()
        assert batch, f"submitted at {at}, {strike.place}, and slept on"
        assert batch == requests or not requests
    return strike, bool(requests)


def test_consumer_comes_back_during_a_turn_of_the_watcher_thread(backend: backends.Name) -> None:
    """It asks for the lead: the watcher thread must not wait in the kernel without having seen that."""
    with ThreadPoolExecutor(1) as third, threads_can_be_struck():
        third.submit(int).result()  # its thread runs from here on
        at_opcodes(lambda at: _consumer_comes_back(backend, at, third))


def _consumer_comes_back(backend: backends.Name, at: Opcode, third: ThreadPoolExecutor) -> Strike:
    with World(backend, 4096) as world:
        conn, peer = world.pairs.unix()
        world.watcher.read(conn)
        world.hand_to_thread()
        go = threading.Event()
        returned = threading.Event()

        def come_back() -> None:
            assert go.wait(SECONDS)
            world.watcher.wait(0)
            returned.set()

        def let_the_consumer_ask() -> None:
            go.set()
            # Whether it has asked and waits for the answer cannot be seen, so this ends by itself.
            until = time.monotonic() + 0.001
            while time.monotonic() < until and not returned.is_set():
                time.sleep(0)
            # A call of a third thread ends by an exception meanwhile, as a Ctrl-C in detach() would have it.
            third.submit(world.leader.relinquish).result(SECONDS)

        consumer = Background(come_back)
        strike = Strike(at, let_the_consumer_ask, world.leader.thread.ident)
        with strike:
            peer.sendall(b"x")  # ends one wait in the kernel, and another begins
            wait_until(
                lambda: strike.place or (world.leader.engine.outbox and world.leader.needs_wakeup),
                "the watcher thread to wait again",
            )
            if strike.place is None:  # the end of that wait proves that it had begun
                world.watcher.write(conn, b"x")
                wait_until(lambda: strike.place or len(world.leader.engine.outbox) == 2, "the watcher thread to write")
        go.set()
        assert returned.wait(SECONDS), f"the consumer came back at {at}, {strike.place}, and was not let in"
        consumer.result()
    return strike


@pytest.mark.parametrize("thread", ["begins", "does not"])
def test_close_during_a_detach(backend: backends.Name, thread: str) -> None:
    """By a signal handler. The turn that detach() does itself may take the wake-up; wait_io() sees it all the same.

    Once the watcher thread has begun to close, it holds the lead, which both detach() and close() want.
    """
    at_opcodes(partial(_close_during_a_detach, backend, thread == "begins"))


def _close_during_a_detach(backend: backends.Name, thread_begins: bool, at: Opcode) -> Strike:
    with World(backend, 4096) as world:
        (conn, _), (other, _) = world.pairs.unix(), world.pairs.unix()
        world.watcher.finish(world.watcher.write(conn, b"known"))
        read = world.watcher.read(other)

        def close() -> None:
            if thread_begins:
                world.leader.ask_to_close()
                for _ in range(50):
                    time.sleep(0)  # let the other thread run, if it can
            world.watcher.watcher.close()

        strike = Strike(at, close)
        with contextlib.suppress(gaio.WatcherClosedError), strike:
            world.pairs.also_close(world.watcher.watcher.detach(conn))
        if strike.place is not None:
            world.watcher.finish(read)
            assert isinstance(read.error, gaio.WatcherClosedError), strike.place
    return strike


def test_close_by_another_thread_during_fileno(backend: backends.Name) -> None:
    at_opcodes(partial(_close_during_fileno, backend))


def _close_during_fileno(backend: backends.Name, at: Opcode) -> Strike:
    with World(backend, 4096) as world:
        go = threading.Event()
        closed = threading.Event()

        def close() -> None:
            assert go.wait(SECONDS)
            world.watcher.watcher.close()
            closed.set()

        def let_it_close() -> None:
            go.set()
            closed.wait(0.002)  # it may have to wait for what fileno() holds

        closing = Background(close)
        strike = Strike(at, let_it_close)
        with contextlib.suppress(gaio.WatcherClosedError), strike:
            assert isinstance(world.watcher.watcher.fileno(), int)
        go.set()
        closing.result()
        with pytest.raises(gaio.WatcherClosedError):
            world.watcher.wait(0)
    return strike


def test_close_by_another_thread_during_a_submission(backend: backends.Name) -> None:
    """Who is held up while waking a consumer must not take from later ones the sign that the watcher is closed."""
    at_opcodes(partial(_close_during_a_submission, backend))


def _close_during_a_submission(backend: backends.Name, at: Opcode) -> Strike:
    with World(backend, 4096) as world:
        conn, _ = world.pairs.unix()
        world.watcher.finish(world.watcher.write(conn, b"known"))
        world.hand_to_thread()
        strike = Strike(at, lambda: Background(world.watcher.watcher.close).result())
        with contextlib.suppress(gaio.WatcherClosedError), strike:
            world.watcher.write(conn, b"perhaps")
        assert strike.place is None or world.leader.needs_wakeup, strike.place
    return strike


def test_free_cut_short_and_called_again(backend: backends.Name) -> None:
    """The consumer, which sleeps in another thread, is woken once at least."""
    at_opcodes(partial(_free_cut_short, backend), more_than=20)


def _free_cut_short(backend: backends.Name, at: Opcode) -> Strike:
    with World(backend, 4096) as world:
        conn, peer = world.pairs.unix()
        peer.settimeout(SECONDS)
        world.watcher.finish(world.watcher.write(conn, b"known"))
        world.hand_to_thread()
        strike = interrupted_at(at, lambda: world.watcher.watcher.free(conn))
        world.watcher.watcher.free(conn)
        assert receive_until_eof(peer) == b"known", f"interrupted at {strike.place}"
    return strike


def test_close_cut_short_and_the_watcher_dropped(backend: backends.Name) -> None:
    """Nobody calls close() again: what it had not closed yet is closed all the same."""
    at_opcodes(partial(_close_cut_short, backend))


def _close_cut_short(backend: backends.Name, at: Opcode) -> Strike:
    before = leaks.in_use()
    watcher = gaio.Watcher(backend=backend, swap_size=4096)
    strike = interrupted_at(at, watcher.close)
    del watcher
    gc.collect()
    wait_until(
        lambda: not leaks.in_use().since(before), f"all to be closed, interrupted at {strike.place}", seconds=SECONDS
    )
    return strike
