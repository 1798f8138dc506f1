"""close(): everything still pending comes back with WatcherClosedError; then wait_io() raises it."""

from __future__ import annotations

import random
import threading
import time
from functools import partial

import pytest

import gaio
from tests.accounting import AccountedWatcher, MakeWatcher
from tests.backends import Name
from tests.peers import Closable, Pairs, receive_until_eof
from tests.waiting import Background, TimeLimit, wait_until


@pytest.mark.scenario(11)
def test_pending_requests_are_still_delivered(watcher: AccountedWatcher, pairs: Pairs) -> None:
    ends = [pairs.tcp(buffers=8192) for _ in range(50)]
    begun = [watcher.read(conn) for conn, _ in ends] + [watcher.write(conn, bytes(1 << 20)) for conn, _ in ends]
    assert watcher.wait(0) == []
    queued = [watcher.read(conn, bytearray(10)) for conn, _ in ends]
    finished = watcher.close_and_check()
    assert len(finished) == 150
    assert all(finished.index(first) < finished.index(later) for first, later in zip(begun, queued, strict=False))
    assert all(isinstance(request.error, gaio.WatcherClosedError) for request in [*begun, *queued])
    assert all(isinstance(request.error, RuntimeError) for request in finished)


def test_what_finished_before_keeps_its_outcome(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """Results the consumer had not fetched yet are not turned into errors."""
    conn, peer = pairs.tcp()
    write, read = watcher.write(conn, b"done"), watcher.read(conn)
    assert peer.recv(10) == b"done"
    # The peer may see the bytes a moment before the write is booked as finished.
    wait_until(lambda: watcher.watcher.stats().pending == 1, "the write to be finished")
    watcher.close_and_check()
    assert (write.error, write.size) == (None, 4)
    assert isinstance(read.error, gaio.WatcherClosedError)


def test_peers_see_the_end(watcher: AccountedWatcher, pairs: Pairs) -> None:
    used, used_peer = pairs.tcp()
    waiting, waiting_peer = pairs.unix()
    watcher.finish(watcher.write(used, b"bye"))
    watcher.read(waiting)
    watcher.watcher.close()
    assert receive_until_eof(used_peer) == b"bye"
    assert receive_until_eof(waiting_peer) == b""


@pytest.mark.scenario(11)
def test_closing_twice(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, _ = pairs.tcp()
    watcher.read(conn)
    assert not watcher.watcher.closed
    watcher.watcher.close()
    watcher.watcher.close()
    assert watcher.watcher.closed
    (read,) = watcher.close_and_check()
    assert isinstance(read.error, gaio.WatcherClosedError)


def test_wait_io_after_close_raises_once_everything_was_delivered(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, _ = pairs.tcp()
    read = watcher.read(conn)
    watcher.watcher.close()
    assert watcher.wait(0) == [read]
    for timeout in (0, 0.01, 60, None):
        with pytest.raises(gaio.WatcherClosedError, match="closed"):
            watcher.wait(timeout)


@pytest.mark.scenario(11)
def test_submitting_after_close_is_refused(watcher: AccountedWatcher, pairs: Pairs) -> None:
    known, _ = pairs.tcp()
    unknown, unknown_peer = pairs.tcp()
    watcher.finish(watcher.write(known, b"x"))
    watcher.watcher.close()
    for conn in (known, unknown):
        for submit in (
            partial(watcher.read, conn),
            partial(watcher.read, conn, bytearray(1)),
            partial(watcher.read_full, conn, bytearray(1)),
            partial(watcher.write, conn, b"x"),
        ):
            with pytest.raises(gaio.WatcherClosedError, match="closed"):
                submit()
    # What was refused was not taken from the caller.
    unknown.sendall(b"still mine")
    assert unknown_peer.recv(20) == b"still mine"
    unknown.close()


def test_freeing_after_close_is_no_error(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """Cleaning up in any order must be possible."""
    known, _ = pairs.tcp()
    unknown, unknown_peer = pairs.tcp()
    watcher.finish(watcher.write(known, b"x"))
    watcher.watcher.close()
    watcher.free(known)
    watcher.free(unknown)
    assert unknown_peer.recv(1) == b""


@pytest.mark.scenario(11)
def test_close_wakes_a_consumer_that_waits(make_watcher: MakeWatcher, pairs: Pairs) -> None:
    for round_number in range(30):
        watcher = make_watcher()
        read = watcher.read(pairs.unix()[0]) if round_number % 2 else None
        started = threading.Event()

        def close(watcher: gaio.Watcher = watcher.watcher, started: threading.Event = started) -> None:
            started.wait()
            watcher.close()

        closing = Background(close)
        if random.random() < 0.5:
            assert watcher.wait(random.choice([0, 0.001])) == []
        started.set()
        if read is not None:
            assert watcher.wait(60) == [read]
            assert isinstance(read.error, gaio.WatcherClosedError)
        with pytest.raises(gaio.WatcherClosedError):
            watcher.wait(60)
        closing.result()


@pytest.mark.scenario(11, 15)
def test_closing_from_eight_threads_at_once(watcher: AccountedWatcher, pairs: Pairs) -> None:
    for _ in range(20):
        watcher.read(pairs.unix()[0])
    barrier = threading.Barrier(8)

    def close() -> None:
        barrier.wait()
        watcher.watcher.close()

    for thread in [Background(close) for _ in range(8)]:
        thread.result()
    assert len(watcher.close_and_check()) == 20


@pytest.mark.scenario(11, 15)
def test_closing_while_other_threads_submit(make_watcher: MakeWatcher, pairs: Pairs) -> None:
    """Each request is either refused where it was submitted, or comes back."""

    def submit(watcher: AccountedWatcher, conn: Closable, closing: threading.Event) -> int:
        accepted = 0
        limit = TimeLimit()
        while limit.left("close()"):
            try:
                watcher.read(conn)
            except gaio.WatcherClosedError:
                break
            accepted += 1
            if accepted > 100:
                closing.wait()
                time.sleep(0)  # lets another thread run, which close() needs to get anywhere
        return accepted

    for _ in range(30):
        watcher = make_watcher()
        conns = [pairs.unix()[0] for _ in range(4)]
        closing = threading.Event()
        threads = [Background(partial(submit, watcher, conn, closing)) for conn in conns]
        watcher.wait(random.choice([0, 0, 0.001, 0.005]))
        closing.set()
        watcher.watcher.close()
        accepted = sum(thread.result() for thread in threads)
        assert len(watcher.close_and_check()) == accepted
        for conn in conns:
            conn.close()  # it is still the test's if close() was faster than its first request


def test_with_closes(backend: Name, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    with gaio.Watcher(backend=backend) as watcher:
        watcher.write(conn, b"x")
        assert [result.size for result in watcher.wait_io(60)] == [1]
        assert not watcher.closed
    assert watcher.closed
    assert receive_until_eof(peer) == b"x"
    with pytest.raises(gaio.WatcherClosedError):
        watcher.wait_io()


def test_with_closes_when_its_body_raises(backend: Name) -> None:
    with pytest.raises(LookupError), gaio.Watcher(backend=backend) as watcher:
        raise LookupError
    assert watcher.closed


def test_iteration_gives_each_result_and_ends_at_close(backend: Name, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    contexts = []
    with gaio.Watcher(backend=backend) as watcher:
        for number in range(10):
            watcher.write(conn, b"x", context=number)
        for result in watcher:
            contexts.append(result.context)
            if result.context == 9:
                watcher.read(conn, context="pending at close")
                watcher.close()
    assert contexts == [*range(10), "pending at close"]
    assert receive_until_eof(peer) == b"x" * 10
    assert list(watcher) == []


def test_iteration_waits_for_what_is_not_there_yet(backend: Name, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    with gaio.Watcher(backend=backend) as watcher:
        watcher.read(conn)
        sending = Background(lambda: peer.sendall(b"x"))
        result = next(iter(watcher))
        assert bytes(result.buffer) == b"x"
        sending.result()
