"""First come, first served on each connection; reads and writes do not hold each other up."""

from __future__ import annotations

import random
import socket

import pytest

from tests.accounting import AccountedWatcher
from tests.peers import Pairs, pattern, receive_exactly
from tests.waiting import Background

MIB = 1 << 20


def random_cuts(payload: bytes, parts: int, seed: int) -> list[bytes]:
    """The payload in so many consecutive parts, none of them empty."""
    cuts = sorted(random.Random(seed).sample(range(1, len(payload)), parts - 1))
    return [payload[start:end] for start, end in zip([0, *cuts], [*cuts, len(payload)], strict=True)]


@pytest.mark.scenario(7)
def test_queued_writes_arrive_in_order(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp(buffers=8192)
    payload = pattern(2 * MIB)
    receiving = Background(lambda: receive_exactly(peer, len(payload)))
    writes = [watcher.write(conn, part) for part in random_cuts(payload, 500, seed=1)]
    assert watcher.finish(*writes) == writes
    assert receiving.result() == payload


@pytest.mark.scenario(6, 7)
def test_a_long_write_to_a_peer_that_takes_little_at_a_time(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """Through a window as small as may be: of one of 16 KiB, Linux 6.1 makes a probe every 200 ms."""
    conn, peer = pairs.tcp()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    payload = pattern(32 * MIB)
    receiving = Background(lambda: receive_exactly(peer, len(payload)))
    write = watcher.write(conn, payload)
    assert watcher.finish(write) == [write]
    assert write.size == len(payload)
    assert receiving.result() == payload


def test_queued_reads_share_the_stream_in_order(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    payload = pattern(MIB)
    parts = random_cuts(payload, 500, seed=2)
    buffers = [bytearray(len(part)) for part in parts]
    reads = [watcher.read_full(conn, buffer) for buffer in buffers]
    sending = Background(lambda: peer.sendall(payload))
    assert watcher.finish(*reads) == reads
    sending.result()
    assert [bytes(buffer) for buffer in buffers] == parts


@pytest.mark.scenario(20)
def test_queued_reads_of_both_memories_share_the_stream_in_order(
    watcher: AccountedWatcher, pairs: Pairs
) -> None:
    """Some into the caller's buffers, some into the swap arena: put together, they are the stream."""
    conn, peer = pairs.tcp()
    payload = pattern(MIB)
    chooser = random.Random(3)

    def send() -> None:
        peer.sendall(payload)
        peer.shutdown(socket.SHUT_WR)  # what is still queued then comes back with EOFError

    sending = Background(send)
    received = bytearray()
    while len(received) < len(payload):
        sizes = [chooser.choice([None, chooser.randrange(1, 500)]) for _ in range(20)]
        reads = [watcher.read(conn, None if size is None else bytearray(size)) for size in sizes]
        for read in watcher.finish(reads[0]):
            received += read.data if read.buffer is None else read.buffer[: read.size]
    sending.result()
    assert received == payload


@pytest.mark.scenario(7, 21)
def test_many_connections_each_keep_their_order(watcher: AccountedWatcher, pairs: Pairs) -> None:
    streams = []
    for seed in range(20):
        conn, peer = pairs.tcp()
        streams.append((conn, peer, pattern(100_000, seed), random_cuts(pattern(100_000, seed), 50, seed)))
    for number in range(50):
        for conn, _, _, parts in streams:
            watcher.write(conn, parts[number])
    finished = watcher.finish_all()
    for conn, peer, payload, parts in streams:
        assert [
            request.buffer for request in finished if request.result and request.result.conn is conn
        ] == parts
        assert receive_exactly(peer, len(payload)) == payload


def test_a_waiting_read_does_not_hold_up_a_write(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    read = watcher.read(conn)
    write = watcher.write(conn, b"goes out")
    assert watcher.finish(write) == [write]
    assert receive_exactly(peer, 8) == b"goes out"
    peer.sendall(b"comes in")
    watcher.finish(read)
    assert read.data == b"comes in"


def test_a_waiting_write_does_not_hold_up_a_read(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp(buffers=8192)
    payload = pattern(MIB)
    write = watcher.write(conn, payload)
    peer.sendall(b"comes in")
    read = watcher.read(conn)
    assert watcher.finish(read) == [read]
    assert read.data == b"comes in"
    receiving = Background(lambda: receive_exactly(peer, len(payload)))
    watcher.finish(write)
    assert receiving.result() == payload


@pytest.mark.scenario(6)
def test_a_slow_connection_does_not_hold_up_another(watcher: AccountedWatcher, pairs: Pairs) -> None:
    slow, slow_peer = pairs.tcp(buffers=8192)
    quick, quick_peer = pairs.tcp()
    payload = pattern(MIB)
    waiting = watcher.write(slow, payload)
    for _ in range(100):
        write = watcher.write(quick, b"quick")
        assert watcher.finish(write) == [write]
        assert receive_exactly(quick_peer, 5) == b"quick"
    receiving = Background(lambda: receive_exactly(slow_peer, len(payload)))
    watcher.finish(waiting)
    assert receiving.result() == payload


def test_requests_submitted_from_a_batch_follow_those_already_queued(
    watcher: AccountedWatcher, pairs: Pairs
) -> None:
    conn, peer = pairs.tcp()
    first = watcher.write(conn, b"first,")
    second = watcher.write(conn, b"second,")
    watcher.finish(first)
    third = watcher.write(conn, b"third")
    watcher.finish(second, third)
    assert receive_exactly(peer, 18) == b"first,second,third"
