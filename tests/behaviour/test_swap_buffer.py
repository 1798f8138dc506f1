"""Reads without a buffer: their bytes stay as they are until the next wait_io(), whatever happens."""

from __future__ import annotations

import ctypes
import os
import random
import socket
from functools import partial
from typing import Any

import pytest

import gaio
from gaio.memory import LENT_FROM, Lent
from tests import child
from tests.accounting import AccountedWatcher, MakeWatcher
from tests.backends import Name
from tests.peers import Pairs, pattern, receive_exactly
from tests.waiting import LIMIT, Background, TimeLimit, wait_until

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
    for seed in range(150):
        message = pattern(LENT_FROM + 100 * seed, seed)
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
        source_peer.sendall(pattern(LENT_FROM, seed))
        left = LENT_FROM
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


# --- views are read-only, and large ones are written where they are -------------------------------------------


def fetch(watcher: AccountedWatcher, source: socket.socket, peer: socket.socket, message: bytes) -> memoryview:
    """The view of its last piece, which is the whole as a rule."""
    sending = Background(lambda: peer.sendall(message))
    buffer = bytearray()
    view = memoryview(b"")
    while len(buffer) < len(message):
        read = watcher.read(source)
        watcher.finish(read)
        assert read.result is not None
        view = read.result.buffer
        buffer += read.data
    sending.result()
    assert buffer == message
    return view


@pytest.mark.parametrize("kind", ["tcp", "unix", "udp", "seqpacket", "pipe"])
@pytest.mark.parametrize("repeats", [False, True])
def test_nobody_can_write_to_a_view(watcher: AccountedWatcher, pairs: Pairs, kind: str, repeats: bool) -> None:
    """It may be on its way out."""
    conn: Any
    peer: Any
    if kind == "pipe":
        conn, peer = pairs.pipe_to_read()
    else:
        conn, peer = pairs.unix(socket.SOCK_SEQPACKET) if kind == "seqpacket" else getattr(pairs, kind)()
    (watcher.watcher.read_start if repeats else watcher.watcher.read)(conn)
    os.write(peer.fileno(), b"12345")
    (result,) = watcher.watcher.wait_io(LIMIT)
    view = result.buffer
    assert view.readonly
    for attempt in (view, view[1:], view.cast("B"), memoryview(view)):
        with pytest.raises(TypeError):
            attempt[0] = 0
    with pytest.raises((TypeError, BufferError)):
        (ctypes.c_char * 5).from_buffer(view)
    with pytest.raises(BufferError):
        watcher.watcher.read(conn, view)
    assert bytes(view) == b"12345"
    watcher.watcher.free(conn)
    if repeats:
        (last,) = watcher.watcher.wait_io(LIMIT)
        assert not last.more


def slices_of(view: memoryview) -> list[memoryview]:
    """Large ones, from the very beginning to the very end and in between, and one of the size at which it begins."""
    end = len(view)
    return [view, view[1:], view[:-1], view[7 : end - 7], view[-LENT_FROM:], view[: LENT_FROM - 1], view[3:].cast("B")]


@pytest.mark.parametrize("kind", ["tcp", "unix", "pipe_to_write"])
def test_sliced_views_for_a_slow_reader(watcher: AccountedWatcher, pairs: Pairs, kind: str) -> None:
    """The memory that they show is written again and again before their bytes have gone."""
    source, source_peer = pairs.unix()
    sink: Any
    sink_peer: Any
    sink, sink_peer = pairs.tcp(buffers=8192) if kind == "tcp" else getattr(pairs, kind)()
    expected = bytearray()
    writes = []
    for seed in range(30):
        view = fetch(watcher, source, source_peer, pattern(30_000 + 1000 * (seed % 5), seed))
        for part in slices_of(view) if len(view) > LENT_FROM else [view]:
            expected += part
            writes.append(watcher.write(sink, part))

    def receive() -> bytes:
        received = bytearray()
        while len(received) < len(expected):
            received += os.read(sink_peer.fileno(), 7000)
        return bytes(received)

    if isinstance(sink_peer, socket.socket):
        sink_peer.setblocking(True)
    receiving = Background(receive)
    watcher.finish(*writes)
    assert all(write.error is None for write in writes)
    assert receiving.result() == expected


@pytest.mark.parametrize("kind", ["datagrams", "seqpacket"])
def test_large_views_as_messages(watcher: AccountedWatcher, pairs: Pairs, kind: str) -> None:
    source, source_peer = pairs.unix()
    sink, sink_peer = pairs.unix(socket.SOCK_DGRAM if kind == "datagrams" else socket.SOCK_SEQPACKET)
    expected: list[bytes] = []
    writes = []
    for seed in range(40):
        view = fetch(watcher, source, source_peer, pattern(30_000, seed))
        expected.append(bytes(view))
        writes.append(watcher.write(sink, view))
    receiving = Background(lambda: [sink_peer.recv(100_000) for _ in expected])
    watcher.finish(*writes)
    assert receiving.result() == expected


@pytest.mark.usefixtures("thread_acts_when_told")
def test_a_large_view_is_not_copied(
    watcher: AccountedWatcher, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as the kernel takes it in the next call. Nor is what it has not taken kept in swap memory."""
    copied: list[int] = []
    original = Lent.copy

    def counting(self: Lent, length: int) -> bytes:
        copied.append(length)
        return original(self, length)

    monkeypatch.setattr(Lent, "copy", counting)
    source, source_peer = pairs.unix()
    conn, peer = pairs.unix()
    for seed in range(5):
        view = fetch(watcher, source, source_peer, pattern(LENT_FROM, seed))
        expected = bytes(view)
        write = watcher.write(conn, view)
        watcher.finish(write)
        assert receive_exactly(peer, len(expected)) == expected
    assert copied == []
    blocker = watcher.write(conn, bytes(MIB))
    view = fetch(watcher, source, source_peer, pattern(LENT_FROM, 9))
    expected = bytes(view)
    write = watcher.write(conn, view)
    watcher.wait(0)
    assert copied == [len(expected)]
    assert not watcher.watcher._leader.lent_writes
    receiving = Background(lambda: receive_exactly(peer, MIB + len(expected)))
    watcher.finish(blocker, write)
    assert receiving.result()[MIB:] == expected


def test_views_written_by_worker_threads(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """Before the consumer goes on, as the README says; it does so as soon as they have submitted."""
    sources = [pairs.unix() for _ in range(4)]
    sinks = [pairs.tcp(buffers=8192) for _ in range(4)]
    expected = [bytearray() for _ in sinks]
    total = 40 * LENT_FROM
    receiving = [Background(partial(receive_exactly, peer, total)) for _, peer in sinks]
    for number, (conn, _) in enumerate(sources):
        watcher.watcher.read_start(conn, context=-1 - number)
    sending = [
        Background(partial(peer.sendall, b"".join(pattern(LENT_FROM, seed % 4) for seed in range(40))))
        for _, peer in sources
    ]
    written = done = 0

    def work(results: list[gaio.OpResult], number: int) -> None:
        for result in results:
            if result.context == -1 - number:
                expected[number] += result.buffer
                watcher.watcher.write(sinks[number][0], result.buffer[:], context=0)

    limit = TimeLimit()
    while done < 4 * total:
        batch = watcher.watcher.wait_io(limit.left("the writes"))
        arrivals = [result for result in batch if result.operation is gaio.READ]
        assert all(result.error is None for result in batch)
        done += sum(result.size for result in batch if result.operation is gaio.WRITE)
        written += sum(result.size for result in arrivals)
        workers = [Background(partial(work, arrivals, number)) for number in range(4)]
        for worker in workers:
            worker.result()
    assert written == 4 * total
    for thread in sending:
        thread.result()
    assert [thread.result() for thread in receiving] == expected
    for conn, _ in sources:
        watcher.watcher.free(conn)
    ended = 0
    while ended < 4:
        ended += sum(not result.more for result in watcher.watcher.wait_io(LIMIT))


def test_views_that_are_written_while_the_watcher_is_closed(watcher: AccountedWatcher, pairs: Pairs) -> None:
    source, source_peer = pairs.unix()
    conn, peer = pairs.unix()
    view = fetch(watcher, source, source_peer, pattern(40_000, 3))
    expected = bytes(view)
    writes = [watcher.write(conn, view) for _ in range(20)]
    watcher.close_and_check()
    received = bytearray()
    while part := peer.recv(1 << 20):
        received += part
    assert received == (expected * 20)[: sum(write.size for write in writes)]
    assert bytes(view) == expected


def test_a_lent_view_that_is_cut_off(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """By its deadline, or with its connection: the size tells what the peer gets."""
    source, source_peer = pairs.unix()
    for way in ("deadline", "free"):
        conn, peer = pairs.unix()
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        view = fetch(watcher, source, source_peer, pattern(50_000, 2))
        expected = bytes(view)
        writes = [watcher.write(conn, view, timeout=0.02 if way == "deadline" else None) for _ in range(3)]
        fetch(watcher, source, source_peer, pattern(50_000, 1))  # which is written to where the view was
        if way == "free":
            watcher.free(conn)
        watcher.finish(*writes)
        watcher.free(conn)
        watcher.wait(0)
        received = bytearray()
        while part := peer.recv(1 << 20):
            received += part
        assert received == b"".join(expected[: write.size] for write in writes)


def test_echo_of_large_messages_in_development_mode(backend: Name) -> None:
    """Where the views are released when their memory is lent anew; those on their way out are no exception."""
    code = """
        import random, socket, threading
        import gaio

        watcher = gaio.Watcher(backend={backend!r})
        conn, peer = socket.socketpair()
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        payload = random.Random(1).randbytes(3 << 20)
        received = bytearray()

        def receive():
            while len(received) < len(payload):
                received.extend(peer.recv(5000))

        threads = [threading.Thread(target=peer.sendall, args=(payload,)), threading.Thread(target=receive)]
        watcher.read_start(conn)
        for thread in threads:
            thread.start()
        written = 0
        stale = []
        while written < len(payload):
            for result in watcher.wait_io(60):
                assert result.error is None, result
                if result.operation is gaio.READ:
                    watcher.write(conn, result.buffer)
                    stale.append(result.buffer)
                else:
                    written += result.size
        watcher.wait_io(0)
        for thread in threads:
            thread.join()
        assert received == payload
        for view in stale[:-1]:
            try:
                bytes(view)
            except ValueError:
                continue
            raise AssertionError("a stale view can be used")
        watcher.close()
        peer.close()
        print("good")
    """
    assert child.output_of(code.format(backend=backend)) == "good"
