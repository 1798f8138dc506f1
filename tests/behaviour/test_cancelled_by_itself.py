"""ECANCELED that a descriptor reports by itself: it is a result like any other error, and no affair of gaio's.

A timerfd(2) does so when the clock is set, if it was armed with TFD_TIMER_CANCEL_ON_SET.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import errno
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO

import pytest

import gaio
from tests import backends
from tests.accounting import AccountedWatcher, MakeWatcher
from tests.backends import Name
from tests.descriptor_limit import need_descriptors
from tests.faulty_libc import FaultyLibc
from tests.peers import Pairs, pattern
from tests.waiting import LIMIT, Background, TimeLimit

# timerfd_create(2), <sys/timerfd.h>
TFD_TIMER_ABSTIME = 1 << 0
TFD_TIMER_CANCEL_ON_SET = 1 << 1


class itimerspec(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("interval_sec", "interval_nsec", "value_sec", "value_nsec")]


@pytest.fixture
def timer() -> Iterator[IO[bytes]]:
    with a_timer() as timer:
        yield timer


@contextlib.contextmanager
def a_timer() -> Iterator[IO[bytes]]:
    """A timer that expires in an hour, or is cancelled when the clock is set."""
    if sys.platform != "linux":
        pytest.skip("timerfd_create(2) is Linux's")
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.timerfd_create(time.CLOCK_REALTIME, os.O_CLOEXEC)
    assert fd >= 0
    with open(fd, "rb", buffering=0) as timer:
        an_hour = itimerspec(value_sec=int(time.time()) + 3600)
        flags = TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET
        assert libc.timerfd_settime(fd, flags, ctypes.byref(an_hour), None) == 0
        yield timer


def set_clock() -> None:
    """To what it says already."""
    try:
        time.clock_settime_ns(time.CLOCK_REALTIME, time.clock_gettime_ns(time.CLOCK_REALTIME))
    except PermissionError:
        pytest.skip("the clock may not be set here")


@pytest.fixture(params=backends.on_a_real_kernel())
def backend(request: pytest.FixtureRequest) -> Name:
    name: Name = request.param
    return name


@pytest.mark.parametrize("buffer", [None, 8], ids=["into the arena", "into a buffer"])
def test_a_timer_whose_clock_was_set(make_watcher: MakeWatcher, timer: IO[bytes], buffer: int | None) -> None:
    watcher = make_watcher()
    read = watcher.read(timer, None if buffer is None else bytearray(buffer))
    watcher.wait(0)  # it waits, unless another process of the suite has set the clock just now
    set_clock()
    watcher.finish(read)
    assert isinstance(read.error, OSError)
    assert read.error.errno == errno.ECANCELED


def test_a_timer_read_by_a_thread_that_has_ended(make_watcher: MakeWatcher, timer: IO[bytes]) -> None:
    """io_uring cancels what that thread has submitted: this is not for the caller to see."""
    watcher = make_watcher()
    read = watcher.read(timer)
    Background(lambda: watcher.wait(0)).result()
    watcher.wait(0.1)
    set_clock()
    watcher.finish(read)
    assert isinstance(read.error, OSError)
    assert read.error.errno == errno.ECANCELED


@pytest.mark.parametrize("name", backends.telling_readiness())
@pytest.mark.parametrize("error", ["ECANCELED", "ETIME", "EBADF", "ENOBUFS"])
def test_what_a_read_says_is_told(
    libc: FaultyLibc, pairs: Pairs, monkeypatch: pytest.MonkeyPatch, name: Name, error: str
) -> None:
    """Each of these errors has a meaning of its own somewhere in gaio, or had."""
    if backends.is_simulated(name):
        backends.simulate(monkeypatch)
    with gaio.Watcher(backend=name) as real:
        watcher = AccountedWatcher(real)
        conn, peer = pairs.tcp()
        libc.fail("recv", getattr(errno, error))
        peer.sendall(b"x")
        read = watcher.read(conn)
        watcher.finish(read)
        assert isinstance(read.error, OSError)
        assert read.error.errno == getattr(errno, error)


class Consumer:
    """A thread that `threading` knows nothing of, as another language may have made it, and that has ended."""

    def __init__(self, step: Callable[[], object]) -> None:
        ended = threading.Lock()
        ended.acquire()

        def run() -> None:
            try:
                step()
            finally:
                ended.release()

        _thread.start_new_thread(run, ())
        assert ended.acquire(timeout=LIMIT)


def test_a_write_that_a_foreign_thread_has_begun(make_watcher: MakeWatcher, pairs: Pairs) -> None:
    """io_uring cancels what waits when that thread exits: no error comes of it, and no byte is lost."""
    watcher = make_watcher()
    conn, peer = pairs.pipe_to_write()
    os.set_blocking(peer.fileno(), False)
    message = pattern(300_000)
    write = watcher.write(conn, message)
    received = bytearray()
    while write.result is None:
        Consumer(lambda: watcher.wait(0.01))
        received += peer.read(65536) or b""
    assert (write.error, write.size) == (None, len(message))
    while len(received) < len(message):
        received += peer.read(65536) or b""
    assert received == message


def test_many_timers_read_by_threads_that_come_and_go(make_watcher: MakeWatcher) -> None:
    """More completions than are taken at a time: the thread that started a read has ended when its result is seen."""
    watcher = make_watcher()
    need_descriptors(1300)
    with contextlib.ExitStack() as stack:
        timers = [stack.enter_context(a_timer()) for _ in range(600)]
        reads = [watcher.read(timer) for timer in timers]
        Background(lambda: watcher.wait(0)).result()
        set_clock()
        limit = TimeLimit()
        while any(read.result is None for read in reads):
            Background(lambda: watcher.wait(limit.left("every timer"))).result()
        errors = {getattr(read.error, "errno", None) for read in reads}
        assert errors == {errno.ECANCELED}
