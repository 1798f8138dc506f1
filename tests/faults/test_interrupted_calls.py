"""EINTR: ctypes makes no interrupted call again (PEP 475 is for the standard library), so gaio does."""

from __future__ import annotations

import errno
import itertools
import random
import signal
import socket
import threading

import pytest

import gaio
from gaio.platform import _kqueue_abi
from tests import backends
from tests.accounting import MakeWatcher
from tests.faulty_libc import Condition, FaultyLibc, enters_ring, every_call
from tests.peers import Pairs, pattern, receive_exactly
from tests.waiting import LIMIT, Background

pytestmark = pytest.mark.scenario(1)

# The simulated kqueue has no wait in libc that could be interrupted.
WITH_LIBC = backends.on_a_real_kernel()
WAITS = {"epoll": "epoll_wait", "kqueue": "kevent", "io_uring": "syscall"}
BLOCKS: dict[str, Condition] = {
    "epoll": lambda *arguments: arguments[3] != 0,  # its timeout
    "kqueue": lambda *arguments: arguments[5] is not _kqueue_abi.NO_TIME,
    "io_uring": lambda *arguments: enters_ring(*arguments) and arguments[3] > 0,  # min_complete
}


def every_other() -> Condition:
    turns = itertools.cycle([True, False])
    return lambda *_: next(turns)


def interrupt_waits(libc: FaultyLibc, backend: str, times: int | None) -> None:
    libc.fail(WAITS[backend], errno.EINTR, times=times, when=enters_ring if backend == "io_uring" else every_call)


@pytest.mark.scenario(1, on="epoll, io_uring")
@pytest.mark.parametrize("backend", WITH_LIBC, indirect=True)
@pytest.mark.parametrize("times", [1, 50])
def test_the_wait_is_interrupted(
    libc: FaultyLibc, make_watcher: MakeWatcher, pairs: Pairs, backend: str, times: int
) -> None:
    watcher = make_watcher()
    conn, peer = pairs.tcp()
    read = watcher.read(conn)
    assert watcher.wait(0) == []
    interrupt_waits(libc, backend, times)
    peer.sendall(b"x")
    watcher.finish(read)
    assert read.data == b"x"
    while libc.struck < times:  # the rest of them
        assert watcher.wait(0) == []


@pytest.mark.scenario(1, on="epoll, io_uring")
@pytest.mark.parametrize("backend", WITH_LIBC, indirect=True)
def test_a_wait_that_is_interrupted_lasts_no_longer(
    libc: FaultyLibc, make_watcher: MakeWatcher, backend: str
) -> None:
    """It goes on with what is left of its time: were it the whole time again, this would not end."""
    watcher = make_watcher()
    interrupt_waits(libc, backend, None)
    assert watcher.wait(0.05) == []
    assert libc.struck
    libc.recover()


@pytest.mark.usefixtures("hears_signals")
@pytest.mark.scenario(1, on="epoll, io_uring")
@pytest.mark.parametrize("backend", WITH_LIBC, indirect=True)
def test_a_signal_just_before_the_wait_is_heard_without_any_result(
    libc: FaultyLibc, make_watcher: MakeWatcher, pairs: Pairs, backend: str
) -> None:
    """It comes when the interpreter has looked for signals for the last time: the call is not interrupted by it."""
    watcher = make_watcher()
    conn, peer = pairs.tcp()
    read = watcher.read(conn)
    heard = threading.Event()

    def end_the_wait() -> bool:
        by_itself = heard.wait(LIMIT)
        peer.sendall(b"x")
        return by_itself

    before = signal.signal(signal.SIGUSR1, lambda *_: heard.set())
    try:
        libc.signal_before(WAITS[backend], signal.SIGUSR1, BLOCKS[backend])
        ending = Background(end_the_wait)
        assert watcher.wait(0) == []  # takes the wake-up that brought the lead here
        watcher.finish(read)
        assert libc.struck
        assert ending.result()
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.scenario(1, on="epoll, kqueue")
@pytest.mark.parametrize("backend", backends.telling_readiness(), indirect=True)
def test_every_other_call_is_interrupted(libc: FaultyLibc, make_watcher: MakeWatcher, pairs: Pairs) -> None:
    """Every byte of a megabyte in each direction, through calls half of which move nothing."""
    watcher = make_watcher()
    for name in ("recv", "send", "sendmsg", "epoll_wait", "kevent"):
        libc.fail(name, errno.EINTR, times=None, when=every_other())
    conn, peer = pairs.tcp(buffers=16384)
    there, back = pattern(1 << 20, seed=1), pattern(1 << 20, seed=2)
    buffer = bytearray(1 << 20)
    read = watcher.read_full(conn, buffer)
    cuts = [0, *sorted(random.Random(1).sample(range(1, len(back)), 20)), len(back)]
    parts = [back[start:end] for start, end in itertools.pairwise(cuts)]
    writes = [
        watcher.write(conn, part) if number % 3 else watcher.write(conn, [part[:1], part[1:]])
        for number, part in enumerate(parts)
    ]
    sending = Background(lambda: peer.sendall(there))
    receiving = Background(lambda: receive_exactly(peer, len(back)))
    watcher.finish(read, *writes)
    sending.result()
    assert buffer == there
    assert receiving.result() == back
    assert libc.struck > 10


@pytest.mark.scenario(1, on="epoll, kqueue")
@pytest.mark.parametrize("backend", backends.telling_readiness(), indirect=True)
def test_connect_and_accept_are_interrupted(libc: FaultyLibc, make_watcher: MakeWatcher, pairs: Pairs) -> None:
    """connect(2): an interrupted attempt goes on by itself, and ends as any other that is in progress."""
    watcher = make_watcher().watcher
    libc.fail("accept4", errno.EINTR, times=3)
    libc.fail("accept", errno.EINTR, times=3)
    libc.fail_after("connect", errno.EINTR)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        client = socket.socket()
        watcher.accept(listener, context="accept")
        watcher.connect(client, address, context="connect")
        found: dict[str, gaio.OpResult] = {}
        while len(found) < 2:
            found.update({result.context: result for result in watcher.wait_io(30)})
        assert found["accept"].error is None
        assert found["connect"].error is None
        assert libc.struck == 4
        accepted = found["accept"].accepted
        assert accepted is not None
        accepted.sendall(b"x")
        watcher.read(client)
        (result,) = watcher.wait_io(30)
        assert bytes(result.buffer) == b"x"
        accepted.close()
        watcher.free(client)
