"""Reads without a buffer: their bytes stay as they are until the next wait_io(), whatever happens."""

from __future__ import annotations

import random

import pytest

import gaio
from gaio.memory import KEPT_COPIES
from tests.accounting import AccountedWatcher, MakeWatcher
from tests.backends import Name
from tests.peers import Pairs, pattern, receive_exactly
from tests.waiting import Background, wait_until

MIB = 1 << 20


def test_the_result_says_that_the_buffer_is_on_loan(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    peer.sendall(b"12345")
    read = watcher.read(conn)
    watcher.finish(read)
    assert read.result is not None
    assert read.result.is_swap_buffer
    assert isinstance(read.result.buffer, memoryview)
    assert (read.result.buffer.nbytes, read.result.buffer.format) == (5, "B")


@pytest.mark.parametrize("swap_size", [16, 4096, 65536, MIB])
def test_views_of_a_batch_stay_intact_while_the_next_ones_arrive(
    backend: Name, pairs: Pairs, swap_size: int
) -> None:
    """Each batch is looked at only after the watcher thread has received all of the next.

    Two batches are no more messages than the 64 buffers that io_uring has at first: before Linux 6.12 each takes one.
    """
    ends = [pairs.unix() for _ in range(32)]
    chooser = random.Random(swap_size)
    expected = dict.fromkeys(range(len(ends)), b"")
    received = dict.fromkeys(range(len(ends)), b"")

    with gaio.Watcher(swap_size=swap_size, backend=backend) as watcher:

        def take(batch: list[gaio.OpResult]) -> None:
            for result in batch:
                assert result.error is None
                received[result.context] += bytes(result.buffer)

        def next_round() -> None:
            for number, (conn, peer) in enumerate(ends):
                message = chooser.randbytes(chooser.randrange(1, min(3000, swap_size)))
                expected[number] += message
                watcher.read(conn, context=number)
                peer.sendall(message)
            wait_until(lambda: watcher.stats().pending == 0, "the watcher thread to receive everything")

        next_round()
        for _ in range(10):
            batch = watcher.wait_io(60)
            next_round()
            take(batch)
        take(watcher.wait_io(60))
        # A small arena may have taken a message in pieces: ask for the rest.
        while missing := [number for number in expected if len(received[number]) < len(expected[number])]:
            for number in missing:
                watcher.read(ends[number][0], context=number)
            wait_until(lambda: watcher.stats().pending == 0, "the watcher thread to receive the rest")
            take(watcher.wait_io(60))
    assert received == expected


@pytest.mark.scenario(18)
def test_more_arrives_in_one_batch_than_the_arena_holds(make_watcher: MakeWatcher, pairs: Pairs) -> None:
    """No read waits for room until the next wait_io(): all of them finish before it."""
    watcher = make_watcher(swap_size=4096)
    ends = [pairs.unix() for _ in range(64)]
    reads = []
    for seed, (conn, peer) in enumerate(ends):
        peer.sendall(pattern(3000, seed))
        reads.append(watcher.read(conn))
    wait_until(lambda: watcher.watcher.stats().pending == 0, "the watcher thread to receive everything")
    assert set(watcher.wait(60)) == set(reads)
    for seed, ((conn, _), read) in enumerate(zip(ends, reads, strict=True)):
        received = read.data
        while len(received) < 3000:  # the arena may give less room than there are bytes
            rest = watcher.read(conn)
            watcher.finish(rest)
            received += rest.data
        assert received == pattern(3000, seed)


def test_a_write_of_a_view_outlives_the_batch_it_came_from(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """The write is held up until the arena has been filled again many times over, and the memory for copies, too."""
    source, source_peer = pairs.tcp()
    sink, sink_peer = pairs.tcp(buffers=8192)
    blocker = watcher.write(sink, bytes(MIB))
    expected = b""
    writes = []
    for seed in range(2 * KEPT_COPIES + 20):
        message = pattern(10_000, seed)
        source_peer.sendall(message)
        gathered = b""
        while len(gathered) < len(message):
            read = watcher.read(source)
            watcher.finish(read)
            assert read.result is not None
            gathered += read.data
            view = read.result.buffer
            if seed % 2:
                expected += read.data
                writes.append(watcher.write(sink, view))
            else:
                half = len(view) // 2
                expected += b"<" + bytes(view[half:]) + bytes(view[:half]) + b">"
                writes.append(watcher.write(sink, [b"<", view[half:], view[:half], b">"]))
    receiving = Background(lambda: receive_exactly(sink_peer, MIB + len(expected)))
    watcher.finish(blocker, *writes)
    assert receiving.result()[MIB:] == expected


def test_a_write_of_a_view_that_another_watcher_lent(
    watcher: AccountedWatcher, make_watcher: MakeWatcher, pairs: Pairs
) -> None:
    """It is copied as one of the watcher's own would be: the other fills its arena anew before the write is done."""
    other = make_watcher()
    source, source_peer = pairs.tcp()
    sink, sink_peer = pairs.tcp(buffers=8192)
    blocker = watcher.write(sink, bytes(MIB))
    expected, writes = b"", []
    for seed in range(20):
        source_peer.sendall(pattern(20_000, seed))
        left = 20_000
        while left:
            read = other.read(source)
            other.finish(read)
            assert read.result is not None
            left -= read.size
            expected += read.data
            writes.append(watcher.write(sink, read.result.buffer))
    receiving = Background(lambda: receive_exactly(sink_peer, MIB + len(expected)))
    watcher.finish(blocker, *writes)
    assert receiving.result()[MIB:] == expected


def test_waiting_reads_take_no_memory_of_the_arena(make_watcher: MakeWatcher, pairs: Pairs) -> None:
    """More bytes come in one batch than the arena has room for; each read still gets its own."""
    watcher = make_watcher(swap_size=4)
    ends = [pairs.unix() for _ in range(300)]
    reads = [watcher.read(conn) for conn, _ in ends]
    assert watcher.wait(0) == []
    for number, (_, peer) in enumerate(ends):
        peer.sendall(b"%04d" % number)
    watcher.finish(*reads)
    for number, ((conn, _), read) in enumerate(zip(ends, reads, strict=True)):
        received = read.data
        while len(received) < 4:  # the arena may give less room than there are bytes
            rest = watcher.read(conn)
            watcher.finish(rest)
            received += rest.data
        assert received == b"%04d" % number


def test_a_failed_read_lends_nothing(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    peer.close()
    ended, expired = watcher.read(conn), watcher.read(pairs.tcp()[0], timeout=0)
    watcher.finish(ended, expired)
    for read in (ended, expired):
        assert read.result is not None
        assert not read.result.buffer
