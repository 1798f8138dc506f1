"""The peer goes away without a farewell."""

from __future__ import annotations

import errno

import pytest

from tests.accounting import AccountedWatcher
from tests.peers import Pairs, pattern, reset

MIB = 1 << 20


@pytest.mark.scenario(4)
def test_reset_during_a_read(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    read = watcher.read(conn)
    assert watcher.wait(0) == []
    reset(peer)
    watcher.finish(read)
    assert isinstance(read.error, ConnectionResetError)
    assert read.error.errno == errno.ECONNRESET
    assert read.size == 0


def test_reset_before_a_read(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    reset(peer)
    read = watcher.read(conn)
    watcher.finish(read)
    assert isinstance(read.error, ConnectionResetError)


@pytest.mark.scenario(4)
def test_reset_in_the_middle_of_read_full_tells_how_many_bytes_came(
    watcher: AccountedWatcher, pairs: Pairs
) -> None:
    conn, peer = pairs.tcp()
    buffer = bytearray(100)
    early, read = watcher.read_full(conn, bytearray(1)), watcher.read_full(conn, buffer)
    peer.sendall(b"!partial")
    watcher.finish(early)
    reset(peer)
    watcher.finish(read)
    assert isinstance(read.error, ConnectionResetError)
    assert read.size == 7
    assert buffer[:7] == b"partial"


@pytest.mark.scenario(4)
def test_reset_during_a_write_tells_how_many_bytes_went_out(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp(buffers=8192)
    payload = pattern(16 * MIB)
    write = watcher.write(conn, payload)
    assert watcher.wait(0.05) == []  # part of it is in the kernel's buffers, the rest waits
    reset(peer)
    watcher.finish(write)
    assert isinstance(write.error, OSError)
    assert write.error.errno in {errno.ECONNRESET, errno.EPIPE}
    assert 0 < write.size < len(payload)


@pytest.mark.scenario(4)
def test_reset_ends_every_queued_request(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp(buffers=8192)
    reads = [watcher.read(conn) for _ in range(50)]
    writes = [watcher.write(conn, bytes(MIB)) for _ in range(50)]
    assert watcher.wait(0.05) == []
    reset(peer)
    watcher.finish(*reads, *writes)
    # The kernel tells ECONNRESET once, to whom it likes; then a read finds the end, a write a broken pipe.
    assert all(isinstance(read.error, (ConnectionResetError, EOFError)) for read in reads)
    assert all(isinstance(write.error, (ConnectionResetError, BrokenPipeError)) for write in writes)


@pytest.mark.scenario(4)
def test_reset_of_one_connection_leaves_the_others_alone(watcher: AccountedWatcher, pairs: Pairs) -> None:
    ended, going_on = [pairs.tcp() for _ in range(20)], [pairs.tcp() for _ in range(20)]
    ended_reads = [watcher.read(conn) for conn, _ in ended]
    reads = [watcher.read(conn) for conn, _ in going_on]
    for _, peer in ended:
        reset(peer)
    for _, peer in going_on:
        peer.sendall(b"here")
    watcher.finish(*ended_reads, *reads)
    assert all(isinstance(read.error, ConnectionResetError) for read in ended_reads)
    assert [read.data for read in reads] == [b"here"] * 20


@pytest.mark.parametrize("kind", ["unix", "pipe"])
@pytest.mark.scenario(4)
def test_writing_to_an_end_that_was_closed(watcher: AccountedWatcher, pairs: Pairs, kind: str) -> None:
    conn, peer = pairs.unix() if kind == "unix" else pairs.pipe_to_write()
    peer.close()
    write = watcher.write(conn, b"nobody listens")
    watcher.finish(write)
    assert isinstance(write.error, BrokenPipeError)
    assert write.size == 0


@pytest.mark.scenario(4)
def test_a_waiting_write_to_an_end_that_is_closed(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.pipe_to_write()
    payload = pattern(MIB)
    write = watcher.write(conn, payload)
    assert watcher.wait(0.05) == []
    peer.close()
    watcher.finish(write)
    assert isinstance(write.error, BrokenPipeError)
    assert 0 < write.size < len(payload)
