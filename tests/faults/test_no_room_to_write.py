"""A write that finds no room, to a peer that has ended its own side and does not read: it waits, and costs nothing.

Some ways of asking for room are answered at once then, because the descriptor has something else to tell.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket

import pytest

from tests.accounting import MakeWatcher
from tests.faulty_libc import FaultyLibc
from tests.leaks import kernel_threads
from tests.peers import Closable, Pairs, pattern, receive_exactly
from tests.waiting import Background

MESSAGE = pattern(4 << 20)
FEW = 50  # calls; whoever asks again and again makes tens of thousands

ENDED = pytest.mark.parametrize("ended", ["first", "meanwhile"])
BLOCKING = pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "nonblocking"])
PARTS = pytest.mark.parametrize("parts", [1, 2], ids=["whole", "vectored"])


@pytest.mark.scenario(5)
@ENDED
@BLOCKING
@PARTS
@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_waiting_for_it_costs_nothing(
    libc: FaultyLibc, make_watcher: MakeWatcher, pairs: Pairs, kind: str, ended: str, blocking: bool, parts: int
) -> None:
    watcher = make_watcher()
    conn, peer = pairs.tcp() if kind == "tcp" else pairs.unix()
    conn.setblocking(blocking)
    if ended == "first":
        peer.shutdown(socket.SHUT_WR)
    write = watcher.write(conn, MESSAGE if parts == 1 else [MESSAGE[:30], MESSAGE[30:]])
    assert watcher.wait(0) == []
    at_work = kernel_threads()
    if ended == "meanwhile":
        peer.shutdown(socket.SHUT_WR)
    before = sum(libc.calls.values())
    assert watcher.wait(0.1) == []
    assert sum(libc.calls.values()) - before < FEW
    assert kernel_threads() <= at_work
    receiving = Background(lambda: receive_exactly(peer, len(MESSAGE)))
    watcher.finish(write)
    assert write.error is None
    assert receiving.result() == MESSAGE


@pytest.mark.scenario(5)
@pytest.mark.parametrize("kind", ["tcp", "unix", "pipe"])
def test_waiting_for_it_costs_nothing_where_not_a_byte_had_room(
    libc: FaultyLibc, make_watcher: MakeWatcher, pairs: Pairs, kind: str
) -> None:
    watcher = make_watcher()
    conn: Closable
    peer: Closable
    conn, peer = pairs.pipe_to_write() if kind == "pipe" else pairs.tcp() if kind == "tcp" else pairs.unix()
    os.set_blocking(conn.fileno(), False)
    filled = 0
    while select.select([], [conn], [], 0.05)[1]:  # TCP has room again when the peer's side has taken what it can
        with contextlib.suppress(BlockingIOError):
            while True:
                filled += os.write(conn.fileno(), MESSAGE[:4096])
    write = watcher.write(conn, b"the last")
    assert watcher.wait(0) == []
    before = sum(libc.calls.values())
    assert watcher.wait(0.1) == []
    assert sum(libc.calls.values()) - before < FEW
    while filled:
        filled -= len(os.read(peer.fileno(), filled))
    watcher.finish(write)
    assert os.read(peer.fileno(), 100) == b"the last"


@pytest.mark.scenario(5)
@BLOCKING
def test_what_cuts_it_off(make_watcher: MakeWatcher, pairs: Pairs, blocking: bool) -> None:
    """A deadline, free() and close(), at once when the peer has ended its side: no result is missed."""
    for _ in range(20):
        watcher = make_watcher()
        links = [pairs.unix() for _ in range(3)]
        for conn, _peer in links:
            conn.setblocking(blocking)
        writes = [
            watcher.write(conn, MESSAGE, timeout=timeout)
            for (conn, _), timeout in zip(links, (0.001, None, None), strict=True)
        ]
        assert set(watcher.wait(0)) <= {writes[0]}
        for _, peer in links:
            peer.shutdown(socket.SHUT_WR)
        watcher.finish(writes[0])
        watcher.free(links[1][0])
        watcher.finish(writes[1])
        watcher.watcher.close()
        watcher.finish(writes[2])
        assert all(write.error is not None for write in writes)
        pairs.close()
