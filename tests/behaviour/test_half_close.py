"""One direction of a connection ends while the other goes on."""

from __future__ import annotations

import socket

import pytest

from tests.accounting import AccountedWatcher
from tests.peers import Pairs, pattern, receive_exactly, receive_until_eof
from tests.waiting import Background


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.scenario(5)
def test_we_still_write_after_the_peer_has_ended_its_side(
    watcher: AccountedWatcher, pairs: Pairs, kind: str
) -> None:
    conn, peer = pairs.tcp() if kind == "tcp" else pairs.unix()
    peer.shutdown(socket.SHUT_WR)
    read = watcher.read(conn)
    watcher.finish(read)
    assert isinstance(read.error, EOFError)
    payload = pattern(300_000)
    receiving = Background(lambda: receive_exactly(peer, len(payload)))
    write = watcher.write(conn, payload)
    watcher.finish(write)
    assert write.error is None
    assert receiving.result() == payload


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.scenario(5)
def test_we_still_read_after_ending_our_side(watcher: AccountedWatcher, pairs: Pairs, kind: str) -> None:
    conn, peer = pairs.tcp() if kind == "tcp" else pairs.unix()
    conn.shutdown(socket.SHUT_WR)
    read, write = watcher.read(conn), watcher.write(conn, b"too late")
    watcher.finish(write)
    assert isinstance(write.error, BrokenPipeError)
    assert write.size == 0
    assert receive_until_eof(peer) == b""
    peer.sendall(b"still heard")
    watcher.finish(read)
    assert read.data == b"still heard"


@pytest.mark.scenario(5)
def test_data_comes_before_the_end(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    peer.sendall(b"last words")
    peer.close()
    reads = [watcher.read(conn), watcher.read(conn)]
    watcher.finish(*reads)
    assert (reads[0].data, reads[0].error) == (b"last words", None)
    assert isinstance(reads[1].error, EOFError)


def test_the_end_is_told_to_every_read(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """Those already queued, and those submitted afterwards."""
    conn, peer = pairs.tcp()
    queued = [watcher.read(conn) for _ in range(100)]
    assert watcher.wait(0) == []
    peer.shutdown(socket.SHUT_WR)
    assert watcher.finish(*queued) == queued
    later = [watcher.read(conn, bytearray(1)), watcher.read(conn)]
    watcher.finish(*later)
    assert all(isinstance(read.error, EOFError) and read.size == 0 for read in [*queued, *later])


@pytest.mark.scenario(5)
def test_a_waiting_write_goes_on_when_the_peer_ends_its_side(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp(buffers=8192)
    payload = pattern(1 << 20)
    write, read = watcher.write(conn, payload), watcher.read(conn)
    assert watcher.wait(0) == []
    peer.shutdown(socket.SHUT_WR)
    watcher.finish(read)
    assert isinstance(read.error, EOFError)
    receiving = Background(lambda: receive_exactly(peer, len(payload)))
    watcher.finish(write)
    assert write.error is None
    assert receiving.result() == payload
