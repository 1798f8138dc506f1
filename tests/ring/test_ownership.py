"""What the kernel may still write into, or read from, is let go when its own completion has come and not before."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import socket
import threading
from collections import Counter

import pytest

import gaio
from tests import leaks
from tests.accounting import AccountedWatcher, Request
from tests.faulty_libc import FaultyLibc
from tests.peers import Closable, Pairs, pattern, receive_until_eof
from tests.ring.conftest import MakeRing
from tests.waiting import Background, wait_until

MIB = 1 << 20


class Flood:
    """A peer that sends a stream of known bytes as fast as it can, until it is told to stop or the end is gone."""

    def __init__(self, peer: socket.socket) -> None:
        self.sent = 0
        self._peer = peer
        self._stop = threading.Event()
        self._sending = Background(self._send)

    def _send(self) -> None:
        data = stream(0, 65536 + 251)
        try:
            while not self._stop.is_set():
                start = self.sent % 251
                self.sent += self._peer.send(data[start : start + 65536])
        except (BrokenPipeError, ConnectionResetError):
            pass

    def stop(self) -> None:
        self._stop.set()
        self._sending.result()


def stream(start: int, size: int) -> bytes:
    """So many bytes of an endless stream, from that place on: it repeats every 251 bytes."""
    turn = bytes(range(251))
    return (turn * (size // 251 + 2))[start % 251 :][:size]


@pytest.mark.scenario(16, on="io_uring")
def test_10_000_cancellations_race_completions(make_ring: MakeRing, pairs: Pairs) -> None:
    """Every deadline asks the kernel to cancel while bytes arrive: each byte lands in one result, in order."""
    watcher = make_ring()
    ends = [pairs.unix() for _ in range(16)]
    floods = {id(conn): bytearray() for conn, _ in ends}
    sent: Counter[int] = Counter()
    chooser = random.Random(7)
    stop = threading.Event()

    def trickle() -> None:
        """A few bytes at a time, so that a read mostly waits and sometimes has its data just then."""
        while not stop.is_set():
            conn, peer = random.choice(ends)
            try:
                sent[id(conn)] += peer.send(stream(sent[id(conn)], random.randrange(1, 40)), socket.MSG_DONTWAIT)
            except BlockingIOError:
                pass

    trickling = Background(trickle)
    outcomes: Counter[type] = Counter()
    pending: dict[int, list[Request]] = {id(conn): [] for conn, _ in ends}

    def submit(conn: Closable) -> None:
        buffer = bytearray(chooser.randrange(1, 60)) if chooser.random() < 0.5 else None
        timeout = chooser.choice([0, 0, 1e-6, 1e-4, 5e-4])
        if buffer is None or chooser.random() < 0.5:
            pending[id(conn)].append(watcher.read(conn, buffer, timeout=timeout))
        else:
            pending[id(conn)].append(watcher.read_full(conn, buffer, timeout=timeout))

    def book(read: Request) -> Closable:
        assert read.result is not None
        conn: Closable = read.result.conn
        floods[id(conn)] += read.data if read.buffer is None else read.buffer[: read.size]
        outcomes[type(read.error)] += 1
        return conn

    for conn, _ in ends:
        submit(conn)
    while outcomes[gaio.DeadlineError] < 10_000 or outcomes[type(None)] < 100:  # or nothing raced
        for read in watcher.wait(30):
            submit(book(read))
    stop.set()
    trickling.result()
    for read in watcher.finish_all():
        book(read)
    for conn, _ in ends:
        while len(floods[id(conn)]) < sent[id(conn)]:
            read = watcher.read(conn)
            watcher.finish(read)
            book(read)
        assert floods[id(conn)] == stream(0, sent[id(conn)])


@pytest.mark.scenario(10, 14, on="io_uring")
def test_free_while_the_peer_floods(make_ring: MakeRing, pairs: Pairs) -> None:
    """A freed connection's memory is the caller's again: the kernel writes nothing more into it."""
    watcher = make_ring()
    for round_ in range(40):
        conn, peer = pairs.tcp()
        flood = Flood(peer)
        buffers = [bytearray(random.choice([100, 5000, MIB])) for _ in range(4)]
        reads = [watcher.read_full(conn, buffer) for buffer in buffers]
        swap = [watcher.read(conn) for _ in range(4)]
        if round_ % 2:
            watcher.wait(random.choice([0, 0.0005]))
        watcher.free(conn)
        watcher.finish(*reads, *swap)
        snapshot = [bytes(buffer) for buffer in buffers]
        flood.stop()
        assert [bytes(buffer) for buffer in buffers] == snapshot, "written into after its result"
        taken = b"".join(
            [*(bytes(read.buffer[: read.size]) for read in reads), *(read.data for read in swap)]
        )
        assert taken == stream(0, len(taken))
        for buffer in buffers:
            buffer.clear()  # no longer pinned
        peer.close()


@pytest.mark.scenario(11, 14, on="io_uring")
def test_close_while_peers_flood(make_ring: MakeRing, pairs: Pairs) -> None:
    for _ in range(10):
        watcher = make_ring()
        ends = [pairs.tcp() for _ in range(8)]
        floods = [Flood(peer) for _, peer in ends]
        buffers = [bytearray(MIB) for _ in ends]
        reads = [watcher.read_full(conn, buffer) for (conn, _), buffer in zip(ends, buffers, strict=True)]
        writes = [watcher.write(conn, bytearray(MIB)) for conn, _ in ends]
        watcher.wait(random.choice([0, 0.001]))
        watcher.close_and_check()
        snapshot = [bytes(buffer) for buffer in buffers]
        for flood in floods:
            flood.stop()
        assert [bytes(buffer) for buffer in buffers] == snapshot
        for read, write in zip(reads, writes, strict=True):
            assert read.buffer[: read.size] == stream(0, read.size)
            assert write.size == MIB if write.error is None else write.size < MIB
            read.buffer.clear()
            write.buffer.clear()
        for _, peer in ends:
            peer.close()


@pytest.mark.scenario(14, on="io_uring")
def test_a_buffer_that_the_kernel_holds_refuses_to_be_resized(make_ring: MakeRing, pairs: Pairs) -> None:
    """From the submission to the completion of the receive itself, a cancellation under way included."""
    watcher = make_ring()
    conn, peer = pairs.tcp(buffers=8192)
    into, out = bytearray(100), bytearray(pattern(MIB))
    read, write = watcher.read_full(conn, into), watcher.write(conn, out)
    assert watcher.wait(0) == []
    watcher.free(conn)
    for buffer in (into, out):
        with pytest.raises(BufferError):
            buffer.append(0)
    watcher.finish(read, write)
    into.append(0)
    out.append(0)
    assert receive_until_eof(peer) == pattern(MIB)[: write.size]


@pytest.mark.scenario(8, on="io_uring")
@pytest.mark.parametrize("begun", [True, False], ids=["begun", "begun and freed in one turn"])
def test_the_number_of_a_freed_descriptor_is_not_used_again_before_its_receive_ended(
    libc: FaultyLibc, make_ring: MakeRing, pairs: Pairs, begun: bool
) -> None:
    """Closing would not cancel the receive; its late completion must not reach the number's next owner.

    Nor must an entry that names it: here a stranger takes the number as soon as it is free when the kernel looks.
    """
    watcher = make_ring()
    freed: list[tuple[int, socket.socket]] = []
    taken: list[int] = []

    def take_number(*_: int) -> bool:
        for number, stranger in freed:
            lowest_free = fcntl.fcntl(stranger, fcntl.F_DUPFD_CLOEXEC, number)
            if lowest_free == number:
                taken.append(number)
                freed.clear()
            else:
                os.close(lowest_free)
        return False  # the call itself is made as always

    libc.fail("syscall", errno.EIO, times=None, when=take_number)
    for _ in range(200):
        conn, peer = pairs.unix()
        stranger, stranger_peer = pairs.unix()
        stranger_peer.setblocking(False)
        stranger_peer.send(b"for the stranger")
        read, write = watcher.read(conn), watcher.write(conn, b"of the freed")
        if begun:
            watcher.finish(write)
        (connection,) = watcher.watcher._leader.engine.descriptors.values()
        freed.append((connection.fd, stranger))
        watcher.free(conn)
        try:
            peer.send(b"for the freed")
        except BrokenPipeError:
            pass
        watcher.finish(read, write)
        assert isinstance(read.error, gaio.ConnClosedError) or read.data == b"for the freed"
        assert watcher.wait(0) == []
        (number,) = taken
        os.close(number)  # EBADF if it was closed a second time
        taken.clear()
        assert stranger.recv(100, socket.MSG_DONTWAIT) == b"for the stranger"
        with pytest.raises(BlockingIOError):
            stranger_peer.recv(100)
        for end in (peer, stranger, stranger_peer):
            end.close()


@pytest.mark.scenario(17, on="io_uring")
def test_a_thread_that_ends_takes_no_request_with_it(make_ring: MakeRing, pairs: Pairs) -> None:
    """The kernel cancels what a thread had submitted when it exits; nobody asked for that, so it is begun again."""
    watcher = make_ring()
    ends = [pairs.tcp(buffers=8192) for _ in range(20)]
    payload = pattern(300_000)
    reads = [
        watcher.read(conn) if number % 2 else watcher.read_full(conn, bytearray(1000))
        for number, (conn, _) in enumerate(ends)
    ]
    writes = [watcher.write(conn, payload) for conn, _ in ends]
    for _ in range(30):  # consumers that come and go, each the thread that the kernel knows
        batch = Background(lambda: watcher.wait(0)).result()
        assert batch == []
    for _, peer in ends:
        peer.sendall(pattern(1000, seed=3))
    receiving = [Background(lambda peer=peer: receive_until_eof(peer)) for _, peer in ends]  # type: ignore[misc]
    while any(request.result is None for request in (*reads, *writes)):
        Background(lambda: watcher.wait(0.001)).result()
    for read in reads:
        assert read.error is None
        assert (read.data or bytes(read.buffer)) == pattern(1000, seed=3)[: read.size]
    assert all(write.error is None for write in writes)
    for conn, _ in ends:
        watcher.free(conn)
    watcher.wait(0)
    assert all(peer.result() == payload for peer in receiving)


@pytest.mark.scenario(17, on="io_uring")
def test_the_wake_up_survives_the_thread_that_armed_it(make_ring: MakeRing, pairs: Pairs) -> None:
    watcher = make_ring()
    conn, peer = pairs.unix()
    for _ in range(50):
        assert Background(lambda: watcher.wait(0)).result() == []
        harvesting = Background(lambda: watcher.wait(30))
        wait_until(lambda: watcher.watcher._leader.needs_wakeup, "the consumer to sleep in the kernel")
        write = watcher.write(conn, b"x")
        assert harvesting.result() == [write]
        assert peer.recv(1) == b"x"


@pytest.mark.parametrize("again", [False, True], ids=["the first read", "a read after another"])
def test_a_read_of_a_pipe_takes_no_memory_while_it_waits(watcher: AccountedWatcher, pairs: Pairs, again: bool) -> None:
    conn, peer = pairs.pipe_to_read()
    if again:
        read = watcher.read(conn)
        peer.write(b"first")
        watcher.finish(read)
        assert read.data == b"first"
    read = watcher.read(conn)
    for _ in range(3):
        assert watcher.wait(0) == []
    (connection,) = watcher.watcher._leader.engine.descriptors.values()
    request = connection.reads.head
    assert request is not None
    assert request._memory is None
    peer.write(b"second")
    watcher.finish(read)
    assert read.data == b"second"


def test_shutdown_needs_no_kernel_thread(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """Of which there may be none to be had (RLIMIT_NPROC): it would be asked for again and again."""
    conn, peer = pairs.tcp()
    before = leaks.kernel_threads()
    watcher.finish(watcher.shutdown(conn))
    assert peer.recv(1) == b""
    assert leaks.kernel_threads() <= before
