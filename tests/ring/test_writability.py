"""Writes that wait for room: the ring polls an epoll for them."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import gaio
from tests.accounting import AccountedWatcher, MakeWatcher
from tests.faulty_libc import FaultyLibc
from tests.peers import Pairs, pattern, receive_exactly, receive_until_eof
from tests.waiting import Background

MESSAGE = pattern(4 << 20)


def test_the_epoll_takes_no_more(libc: FaultyLibc, make_watcher: MakeWatcher, pairs: Pairs) -> None:
    """Beyond fs.epoll.max_user_watches. The write says so, and what it had moved; the next one can do better."""
    watcher = make_watcher()
    conn, peer = pairs.unix()
    libc.fail("epoll_ctl", errno.ENOSPC)
    refused = watcher.write(conn, MESSAGE)
    watcher.finish(refused)
    assert isinstance(refused.error, OSError)
    assert refused.error.errno == errno.ENOSPC
    assert 0 < refused.size < len(MESSAGE)
    rest = watcher.write(conn, MESSAGE[refused.size :])
    receiving = Background(lambda: receive_exactly(peer, len(MESSAGE)))
    watcher.finish(rest)
    assert receiving.result() == MESSAGE


def test_one_that_is_called_off_leaves_the_next_nothing_to_wait_for(make_watcher: MakeWatcher, pairs: Pairs) -> None:
    """Nor does the end: shutdown(2) needs no room."""
    watcher = make_watcher()
    conn, peer = pairs.unix()
    called_off = watcher.write(conn, MESSAGE, timeout=0.001)
    watcher.finish(called_off)
    end = watcher.shutdown(conn)
    watcher.finish(end)
    assert end.error is None
    assert receive_until_eof(peer) == MESSAGE[: called_off.size]


def test_a_connection_that_lives_on_elsewhere(libc: FaultyLibc, make_watcher: MakeWatcher, pairs: Pairs) -> None:
    """As in a child after fork(2). Freed here, its room is nobody's business here, though it has some in the end."""
    watcher = make_watcher()
    (conn, peer), (other, silent) = pairs.unix(), pairs.unix()
    with socket.socket(fileno=os.dup(conn.fileno())):
        write, blocked = watcher.write(conn, MESSAGE), watcher.write(other, MESSAGE)
        assert watcher.wait(0) == []
        watcher.free(conn)
        watcher.finish(write)
        assert len(receive_exactly(peer, write.size)) == write.size
        before = sum(libc.calls.values())
        assert watcher.wait(0.1) == []
        assert sum(libc.calls.values()) - before < 50
    receiving = Background(lambda: receive_exactly(silent, len(MESSAGE)))
    watcher.finish(blocked)
    assert receiving.result() == MESSAGE


def test_many_have_room_at_once(make_watcher: MakeWatcher, pairs: Pairs) -> None:
    """More than the epoll tells of in one call."""
    watcher = make_watcher()
    links = [pairs.unix() for _ in range(600)]
    message = MESSAGE[:400_000]
    writes = [watcher.write(conn, message) for conn, _ in links]
    assert watcher.wait(0) == []
    receiving = Background(lambda: [receive_exactly(peer, len(message)) for _, peer in links])
    watcher.finish(*writes)
    assert not any(write.error for write in writes)
    assert all(received == message for received in receiving.result())


def test_connect_does_not_wait_for_room_at_the_peer_before(
    watcher: AccountedWatcher, pairs: Pairs, tmp_path: Path
) -> None:
    """A datagram socket may choose another peer, connect(2), while the queue of its first one is full."""
    conn, first, second = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(3))
    for number, peer in enumerate((first, second)):
        pairs.also_close(peer)
        peer.bind(str(tmp_path / str(number)))
    conn.connect(first.getsockname())
    while True:
        write = watcher.write(conn, b"x", timeout=0.05)
        watcher.finish(write)
        if write.error is not None:
            break
    assert isinstance(write.error, gaio.DeadlineError)
    connect = watcher.connect(conn, second.getsockname())
    watcher.finish(connect, watcher.write(conn, b"to the second"))
    assert connect.error is None
    assert second.recv(100) == b"to the second"
