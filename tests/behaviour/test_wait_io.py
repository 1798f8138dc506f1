"""wait_io(): how long it waits, and what it gives."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType

import pytest

import gaio
from tests.accounting import AccountedWatcher
from tests.peers import Pairs, receive_exactly
from tests.waiting import TimeLimit, wait_until


@pytest.mark.parametrize("timeout", [0, 0.0, 1e-9, 0.001, 0.05, 1])
def test_an_empty_list_when_the_time_passes(watcher: AccountedWatcher, pairs: Pairs, timeout: float) -> None:
    for pending in (0, 1):
        if pending:
            watcher.read(pairs.tcp()[0])
        start = time.monotonic()
        assert watcher.wait(timeout) == []
        assert time.monotonic() - start >= timeout


def test_a_batch_holds_everything_that_has_finished(watcher: AccountedWatcher, pairs: Pairs) -> None:
    ends = [pairs.tcp() for _ in range(100)]
    writes = [watcher.write(conn, b"x") for conn, _ in ends]
    wait_until(lambda: watcher.watcher.stats().pending == 0, "the watcher thread to write everything")
    assert set(watcher.wait(0)) == set(writes)


@pytest.mark.usefixtures("thread_acts_when_told")
def test_a_batch_holds_what_stood_behind_the_first_as_well(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """Ten writes on one connection are not ten batches."""
    conn, peer = pairs.unix()
    writes = [watcher.write(conn, b"%d" % number) for number in range(10)]
    assert watcher.wait(None) == writes
    assert receive_exactly(peer, 10) == b"0123456789"


def test_a_consumer_that_only_ever_polls_gets_everything(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """wait_io(0) moves things on by itself: a caller may have a loop of its own."""
    conn, peer = pairs.tcp()
    limit = TimeLimit()
    for _ in range(100):
        read = watcher.read(conn)
        peer.sendall(b"x")
        while read.result is None:
            watcher.wait(0)
            limit.left("a result of wait_io(0)")
        assert read.data == b"x"


def test_a_request_submitted_by_another_thread_wakes_the_consumer(
    watcher: AccountedWatcher, pairs: Pairs
) -> None:
    for _ in range(50):
        conn, peer = pairs.unix()
        peer.sendall(b"x")
        timer = threading.Timer(0.002, watcher.read, [conn])
        timer.start()
        (read,) = watcher.wait(60)
        assert read.data == b"x"
        timer.join()
        watcher.free(conn)


class Interruption(Exception):
    pass


@pytest.mark.usefixtures("hears_signals")
@pytest.mark.scenario(2)
def test_an_exception_of_a_signal_handler_comes_out_and_nothing_is_lost(
    watcher: AccountedWatcher, pairs: Pairs
) -> None:
    """As Ctrl-C does, but only within wait_io(): elsewhere it would strike the test."""
    conn, peer = pairs.tcp()
    read = watcher.read(conn)

    def interrupt(number: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_code is gaio.Watcher.wait_io.__code__:
                raise Interruption
            frame = frame.f_back

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)  # again: the first may come too early
        with pytest.raises(Interruption):
            watcher.wait(60)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    peer.sendall(b"x")
    watcher.finish(read)
    assert read.data == b"x"


@pytest.mark.scenario(1)
def test_a_signal_whose_handler_returns_is_no_reason_to_return(
    watcher: AccountedWatcher, pairs: Pairs
) -> None:
    """The wait goes on for the rest of its time (PEP 475), though ctypes restarts no call by itself."""
    calls = []

    def count(number: int, frame: FrameType | None) -> None:
        calls.append(number)

    before = signal.signal(signal.SIGALRM, count)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        start = time.monotonic()
        assert watcher.wait(0.3) == []
        assert time.monotonic() - start >= 0.3
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert calls, "no signal came, so nothing was tested"
