"""Another thread acts between any two opcodes of a submission, or of a turn: no request is left lying unseen."""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import gaio
from gaio import loop
from tests import backends
from tests.accounting import Request
from tests.interruption.opcodes import Strike, threads_can_be_struck
from tests.interruption.world import SECONDS, World
from tests.waiting import Background, TimeLimit, wait_until


@pytest.fixture(autouse=True)
def _thread_acts_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "GRACE", 3600)


def test_consumer_works_and_sleeps_again_during_a_submission(backend: backends.Name) -> None:
    """The submitter has woken the consumer, and is held up before it has noted that. The next one must wake it, too."""
    number = 1
    while _submit_while_the_consumer_works(backend, number) is not None:
        number += 1
    assert number > 50


def _submit_while_the_consumer_works(backend: backends.Name, number: int) -> str | None:
    with World(backend, 4096) as world:
        conn, _ = world.pairs.unix()
        world.watcher.finish(world.watcher.write(conn, b"known"))

        def consume() -> None:
            with contextlib.suppress(gaio.WatcherClosedError):
                while True:
                    world.watcher.wait(SECONDS)

        consumer = Background(consume)
        wait_until(lambda: world.loop.sleeping, "the consumer to wait in the kernel")

        def let_the_consumer_work() -> None:
            # If it has been woken already. That it has not been yet cannot be seen, so this ends by itself.
            until = time.monotonic() + 0.002
            while time.monotonic() < until and (world.loop.inbox or not world.loop.sleeping):
                time.sleep(0)

        strike = Strike(number, let_the_consumer_work)
        with strike:
            first = world.watcher.write(conn, b"first")
        let_the_consumer_work()
        second = world.watcher.write(conn, b"second")
        wait_until(
            lambda: first.result and second.result,
            f"two results, the submitter having been held up at opcode {number}, {strike.place}",
            seconds=SECONDS,
        )
        world.watcher.watcher.close()
        consumer.result()
    return strike.place


def test_submission_during_a_turn(backend: backends.Name) -> None:
    """In particular when the consumer is about to wait in the kernel."""
    with ThreadPoolExecutor(1) as submitter:
        submitter.submit(int).result()  # its thread runs from here on, and is no leak of the watcher's
        number = 1
        while _turn_with_a_submission(backend, number, submitter) is not None:
            number += 1
    assert number > 50


def _turn_with_a_submission(backend: backends.Name, number: int, submitter: ThreadPoolExecutor) -> str | None:
    requests: list[Request] = []
    with World(backend, 4096) as world:
        conn, peer = world.pairs.unix()
        requests.append(world.watcher.read(conn))
        assert world.watcher.wait(0) == []

        def submit() -> None:
            requests.append(submitter.submit(world.watcher.write, conn, b"from a thread").result(SECONDS))

        strike = Strike(number, submit)
        limit = TimeLimit(SECONDS)
        with strike:
            while len(requests) == 1:
                world.watcher.wait(0.001)
                if strike.place is None:
                    break
        if strike.place is not None:
            while requests[1].result is None:
                seconds = limit.left("") / 2
                assert world.watcher.wait(seconds), f"submitted at opcode {number}, {strike.place}, and never seen"
            assert peer.recv(100) == b"from a thread"
    return strike.place


def test_consumer_comes_back_during_a_turn_of_the_watcher_thread(backend: backends.Name) -> None:
    """It asks for the watch: the watcher thread must not wait in the kernel without having seen that."""
    with threads_can_be_struck():
        number = 1
        while _consumer_comes_back(backend, number) is not None:
            number += 1
    assert number > 50


def _consumer_comes_back(backend: backends.Name, number: int) -> str | None:
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

        consumer = Background(come_back)
        strike = Strike(number, let_the_consumer_ask, world.loop.thread.ident)
        with strike:
            peer.sendall(b"x")  # ends one wait in the kernel, and another begins
            wait_until(
                lambda: strike.place or (world.loop.outbox and world.loop.sleeping), "the watcher thread to wait again"
            )
            if strike.place is None:  # the end of that wait proves that it had begun
                world.watcher.write(conn, b"x")
                wait_until(lambda: strike.place or len(world.loop.outbox) == 2, "the watcher thread to write")
        go.set()
        assert returned.wait(SECONDS), f"the consumer came back at opcode {number}, {strike.place}, and was not let in"
        consumer.result()
    return strike.place
