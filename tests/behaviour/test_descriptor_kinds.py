"""Not only TCP: every connected, pollable descriptor works."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
import sys
import tty
from functools import partial
from pathlib import Path
from typing import IO

import pytest

import gaio
from tests.accounting import AccountedWatcher, MakeWatcher
from tests.peers import Pairs, pattern, receive_exactly, receive_until_eof
from tests.waiting import Background, wait_until

MIB = 1 << 20


def exchange(watcher: AccountedWatcher, conn: socket.socket, peer: socket.socket) -> None:
    """A megabyte each way at once, then the end."""
    there, back = pattern(MIB, seed=1), pattern(MIB, seed=2)
    buffer = bytearray(MIB)
    sending = Background(lambda: peer.sendall(back))
    receiving = Background(lambda: receive_exactly(peer, MIB))
    watcher.finish(watcher.read_full(conn, buffer), watcher.write(conn, there))
    sending.result()
    assert receiving.result() == there
    assert buffer == back
    peer.shutdown(socket.SHUT_WR)
    read = watcher.read(conn)
    watcher.finish(read)
    assert isinstance(read.error, EOFError)
    watcher.free(conn)
    assert receive_until_eof(peer) == b""


def test_tcp_over_ipv4(watcher: AccountedWatcher, pairs: Pairs) -> None:
    exchange(watcher, *pairs.tcp())


def test_tcp_over_ipv6(watcher: AccountedWatcher, pairs: Pairs) -> None:
    exchange(watcher, *pairs.tcp(socket.AF_INET6))


def test_multipath_tcp(watcher: AccountedWatcher, pairs: Pairs) -> None:
    exchange(watcher, *pairs.multipath_tcp())


def test_unix_stream(watcher: AccountedWatcher, pairs: Pairs) -> None:
    exchange(watcher, *pairs.unix())


class TestDatagrams:
    """One read takes one datagram, one write sends one."""

    @pytest.mark.parametrize("kind", ["udp", "unix"])
    def test_sizes_are_kept(self, watcher: AccountedWatcher, pairs: Pairs, kind: str) -> None:
        conn, peer = pairs.udp() if kind == "udp" else pairs.unix(socket.SOCK_DGRAM)
        for size in (1, 2, 512, 1472, 9000, 60_000):
            payload = pattern(size)
            swap = watcher.read(conn)
            peer.send(payload)
            watcher.finish(swap)
            assert swap.data == payload
            buffer = bytearray(65536)
            read = watcher.read(conn, buffer)
            peer.send(payload)
            watcher.finish(read)
            assert buffer[: read.size] == payload
            watcher.finish(watcher.write(conn, payload))
            assert peer.recv(65536) == payload

    @pytest.mark.parametrize("size", [100, 1400, 9000, 60_000])
    def test_many_of_them_share_the_arena_uncut(
        self, watcher: AccountedWatcher, pairs: Pairs, size: int
    ) -> None:
        """What a datagram finds no room for is lost: the scrap at the end of an arena is not for it."""
        conn, peer = pairs.unix(socket.SOCK_DGRAM)
        reads = []
        for seed in range(100):
            reads.append(watcher.read(conn))
            peer.send(pattern(size, seed))
            if seed % 30 == 29:
                wait_until(
                    lambda: watcher.watcher.stats().pending == 0, "the watcher thread to receive everything"
                )
        watcher.finish(*reads)
        assert [read.data for read in reads] == [pattern(size, seed) for seed in range(100)]

    @pytest.mark.parametrize("kind", ["udp", "unix"])
    def test_an_empty_datagram_is_a_datagram_and_not_the_end(
        self, watcher: AccountedWatcher, pairs: Pairs, kind: str
    ) -> None:
        """Anyone may send one: told as EOFError, it would end the conversation of a server that obeys."""
        conn, peer = pairs.udp() if kind == "udp" else pairs.unix(socket.SOCK_DGRAM)
        reads = [watcher.read(conn), watcher.read(conn, bytearray(10)), watcher.read(conn)]
        for payload in (b"", b"", b"full"):
            peer.send(payload)
        watcher.finish(*reads)
        assert [(read.size, read.error) for read in reads] == [(0, None), (0, None), (4, None)]
        assert reads[2].data == b"full"

    @pytest.mark.parametrize("size", [1, 4])
    def test_an_empty_datagram_adds_nothing_to_what_is_to_be_full(
        self, watcher: AccountedWatcher, pairs: Pairs, size: int
    ) -> None:
        conn, peer = pairs.udp()
        read = watcher.read_full(conn, buffer := bytearray(size))
        for payload in (b"", b"full"[:size], b""):
            peer.send(payload)
        watcher.finish(read)
        assert (bytes(buffer), read.size, read.error) == (b"full"[:size], size, None)

    def test_a_refusal_reported_by_icmp_is_an_error_of_the_read(
        self, watcher: AccountedWatcher, pairs: Pairs
    ) -> None:
        conn, peer = pairs.udp()
        read = watcher.read(conn)
        peer.close()
        watcher.finish(watcher.write(conn, b"anybody?"), read)
        assert isinstance(read.error, ConnectionRefusedError)


def test_a_message_without_a_buffer_keeps_no_more_memory_than_it_has_bytes(
    watcher: AccountedWatcher, pairs: Pairs
) -> None:
    """The view of one that came beyond the swap arena, or on io_uring beside it, is the caller's for good."""
    ends = [pairs.unix(socket.SOCK_DGRAM) for _ in range(300)]  # more than the arena has segments
    reads = [watcher.read(conn) for conn, _ in ends]
    for _, peer in ends:
        peer.send(b"x")
    wait_until(lambda: not watcher.watcher.stats().pending, "the watcher thread to read them all")
    watcher.finish(*reads)
    own = [read.result.buffer for read in reads if read.result and not read.result.is_swap_buffer]
    assert own
    assert {memoryview(view.obj).nbytes for view in own} == {1}


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux has Unix sockets that keep records and have an end"
)
def test_records_of_a_sequenced_socket(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.unix(socket.SOCK_SEQPACKET)
    reads = [watcher.read(conn), watcher.read(conn, bytearray(100))]
    peer.send(b"first")
    peer.send(b"second")
    watcher.finish(*reads)
    assert [read.size for read in reads] == [5, 6]
    watcher.finish(watcher.write(conn, b"answer"))
    assert peer.recv(100) == b"answer"


class TestPipes:
    def test_reading(self, watcher: AccountedWatcher, pairs: Pairs) -> None:
        conn, peer = pairs.pipe_to_read()
        payload = pattern(MIB)
        buffer = bytearray(MIB)
        read = watcher.read_full(conn, buffer)
        sending = Background(lambda: write_all(peer, payload))
        watcher.finish(read)
        sending.result()
        assert buffer == payload
        swap, end = watcher.read(conn), watcher.read(conn)
        peer.write(b"last")
        peer.close()
        watcher.finish(swap, end)
        assert swap.data == b"last"
        assert isinstance(end.error, EOFError)

    def test_writing(self, watcher: AccountedWatcher, pairs: Pairs) -> None:
        conn, peer = pairs.pipe_to_write()
        payload = pattern(MIB)
        receiving = Background(lambda: read_all(peer))
        watcher.finish(watcher.write(conn, payload), watcher.write(conn, [b"and ", b"more"]))
        watcher.free(conn)
        assert receiving.result() == payload + b"and more"

    @pytest.mark.skipif(sys.platform != "linux", reason="elsewhere that may be the end already")
    def test_a_named_pipe_that_nobody_writes_to_yet(
        self, watcher: AccountedWatcher, pairs: Pairs, tmp_path: Path
    ) -> None:
        path = tmp_path / "pipe"
        os.mkfifo(path)
        conn = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0)
        pairs.also_close(conn)
        read, end = watcher.read(conn), watcher.read(conn)
        assert watcher.wait(0) == []
        with open(path, "wb", buffering=0) as writer:
            writer.write(b"at last")
            watcher.finish(read)
        watcher.finish(end)
        assert read.data == b"at last"
        assert isinstance(end.error, EOFError)

    def test_somebody_else_makes_it_block(self, watcher: AccountedWatcher, pairs: Pairs) -> None:
        """The mode belongs to all who share it; a read right after another one is tried without being told to."""
        conn, peer = pairs.pipe_to_read()
        other = os.dup(conn.fileno())
        pairs.also_close(os.fdopen(other, "rb", buffering=0))
        read = watcher.read(conn)
        assert watcher.wait(0) == []
        os.set_blocking(other, True)
        peer.write(b"line")
        watcher.finish(read)
        late = watcher.read(conn, bytearray(9), timeout=0.05)
        watcher.finish(late)
        assert isinstance(late.error, gaio.DeadlineError)

    def test_the_wrong_direction_is_an_error(self, watcher: AccountedWatcher, pairs: Pairs) -> None:
        """Whoever reads from the writing end waits for what cannot come."""
        reading, _ = pairs.pipe_to_read()
        writing, _ = pairs.pipe_to_write()
        for submit in (partial(watcher.read, writing), partial(watcher.write, reading, b"x")):
            try:
                request = submit()
            except gaio.UnsupportedConnError:
                continue
            watcher.finish(request)
            assert isinstance(request.error, OSError)
            assert request.error.errno == errno.EBADF

    def test_the_output_of_a_child(self, watcher: AccountedWatcher) -> None:
        command = [sys.executable, "-c", "print(input() * 3)"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            read = watcher.read_full(child.stdout, bytearray(7))
            watcher.finish(watcher.write(child.stdin, b"ab\n"), read)
            assert read.buffer == b"ababab\n"
            watcher.free(child.stdin)
            watcher.free(child.stdout)


def write_all(file: IO[bytes], payload: bytes) -> None:
    view = memoryview(payload)
    while view:
        view = view[file.write(view) :]


def read_all(file: IO[bytes]) -> bytes:
    parts = []
    while part := file.read(1 << 20):
        parts.append(part)
    return b"".join(parts)


@pytest.mark.skipif(sys.platform != "linux", reason="netlink(7)")
def test_raw_messages_are_not_cut(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """The second finds room for a part of it behind the first; it must have room for all of it."""
    if sys.platform != "linux":
        return  # the type checker looks for that here
    conn, peer = (socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_USERSOCK) for _ in range(2))
    pairs.also_close(conn, peer)
    conn.bind((0, 0))
    address = conn.getsockname()
    for size in (60_000, 30_000):
        peer.sendto(pattern(size), address)
    reads = [watcher.read(conn) for _ in range(2)]
    watcher.finish(*reads)
    assert [read.data for read in reads] == [pattern(60_000), pattern(30_000)]


def test_a_terminal(watcher: AccountedWatcher, pairs: Pairs) -> None:
    master, slave = os.openpty()
    tty.setraw(slave)
    conn, peer = os.fdopen(master, "r+b", buffering=0), os.fdopen(slave, "r+b", buffering=0)
    pairs.also_close(conn, peer)
    read = watcher.read(conn)
    peer.write(b"typed")
    watcher.finish(read)
    assert read.data == b"typed"
    watcher.finish(watcher.write(conn, b"shown"))
    assert peer.read(5) == b"shown"
    end = watcher.read(conn)
    peer.close()
    watcher.finish(end)
    # On Linux the master reads EIO once the last slave is closed, though pty(7) is silent on it.
    assert isinstance(end.error, EOFError) or (
        isinstance(end.error, OSError) and end.error.errno == errno.EIO
    )


class TestEventfd:
    def test_reading_waits_for_the_counter(self, watcher: AccountedWatcher, pairs: Pairs) -> None:
        if sys.platform != "linux":
            pytest.skip("eventfd(2) is Linux's")
        conn, counter = self.counter(pairs, os.eventfd(0))
        read = watcher.read(conn, bytearray(8))
        assert watcher.wait(0) == []
        os.eventfd_write(counter.fileno(), 7)
        watcher.finish(read)
        assert struct.unpack("Q", read.buffer) == (7,)
        swap = watcher.read(conn)
        os.eventfd_write(counter.fileno(), 9)
        watcher.finish(swap)
        assert struct.unpack("Q", swap.data) == (9,)

    def test_writing_adds_to_the_counter(self, watcher: AccountedWatcher, pairs: Pairs) -> None:
        if sys.platform != "linux":
            pytest.skip("eventfd(2) is Linux's")
        conn, counter = self.counter(pairs, os.eventfd(0))
        watcher.finish(watcher.write(conn, struct.pack("Q", 3)), watcher.write(conn, struct.pack("Q", 4)))
        assert os.eventfd_read(counter.fileno()) == 7

    def test_a_buffer_too_small_is_an_error_of_the_kernel(
        self, watcher: AccountedWatcher, pairs: Pairs
    ) -> None:
        if sys.platform != "linux":
            pytest.skip("eventfd(2) is Linux's")
        conn, _ = self.counter(pairs, os.eventfd(1))
        read = watcher.read(conn, bytearray(4))
        watcher.finish(read)
        assert isinstance(read.error, OSError)
        assert read.error.errno == errno.EINVAL

    def counter(self, pairs: Pairs, number: int) -> tuple[IO[bytes], IO[bytes]]:
        """The same counter twice: as conn, and for the test."""
        conn = os.fdopen(os.dup(number), "r+b", buffering=0)
        counter = os.fdopen(number, "r+b", buffering=0)
        pairs.also_close(conn, counter)
        return conn, counter


def test_any_object_with_fileno_and_close(make_watcher: MakeWatcher, pairs: Pairs) -> None:
    """No base class is asked for."""

    class Wrapped:
        def __init__(self, sock: socket.socket) -> None:
            self.sock = sock
            self.user_data = "kept"

        def fileno(self) -> int:
            return self.sock.fileno()

        def close(self) -> None:
            self.sock.close()

    watcher = make_watcher()
    sock, peer = pairs.tcp()
    conn = Wrapped(sock)
    read = watcher.read(conn)
    peer.sendall(b"x")
    watcher.finish(read, watcher.write(conn, b"y"))
    assert read.data == b"x"
    assert peer.recv(1) == b"y"
    assert sock.fileno() == -1, "the wrapped socket was closed through its wrapper"
    assert read.result is not None
    assert read.result.conn.user_data == "kept"


@pytest.mark.parametrize("part", [False, True], ids=["from the start", "after a part"])
@pytest.mark.parametrize("ends_by", ["deadline", "free", "close"])
def test_a_write_to_a_pipe_that_nobody_reads(
    make_watcher: MakeWatcher, pairs: Pairs, ends_by: str, part: bool
) -> None:
    watcher = make_watcher()
    conn, peer = pairs.pipe_to_write()
    already = 0
    if not part:
        os.set_blocking(conn.fileno(), False)
        while (written := conn.write(bytes(4096))) is not None:
            already += written
    write = watcher.write(conn, bytes(1 << 20), timeout=0.05 if ends_by == "deadline" else None)
    assert ends_by == "deadline" or watcher.wait(0) == []
    if ends_by == "free":
        watcher.free(conn)
    elif ends_by == "close":
        watcher.watcher.close()
    watcher.finish(write)
    expected = {"deadline": gaio.DeadlineError, "free": gaio.ConnClosedError, "close": gaio.WatcherClosedError}
    assert isinstance(write.error, expected[ends_by])
    assert (write.size > 0) is part
    watcher.free(conn)
    left = already + write.size
    while left:
        left -= len(peer.read(left) or b"")
