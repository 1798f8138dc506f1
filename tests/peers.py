"""The other end of a connection: plain sockets and pipes of the standard library, independent of gaio."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import random
import select
import socket
import struct
import tempfile
import unittest
import weakref
from collections.abc import Iterable
from typing import IO, Any, Protocol

from tests.waiting import LIMIT


class Closable(Protocol):
    def fileno(self) -> int: ...
    def close(self) -> object: ...


@functools.lru_cache(maxsize=4)
def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes that do not repeat, so that a lost, doubled or moved one shows."""
    return random.Random(seed).randbytes(size)


def receive_exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = sock.recv_into(view)
        assert count, f"the stream ended {len(view)} bytes early"
        view = view[count:]
    return bytes(data)


def wait_for_bytes(conns: Iterable[socket.socket]) -> None:
    """Until each has some. The kernel may be late with what was sent over loopback, on a machine that is busy."""
    for conn in conns:
        ready, _, _ = select.select([conn], [], [], LIMIT)
        assert ready, "sent over loopback, and never come"


def receive_until_eof(sock: socket.socket) -> bytes:
    parts = []
    while part := sock.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


def reset(sock: socket.socket) -> None:
    """Close so that the other end sees a reset: socket(7), SO_LINGER with a time of zero."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def loopback(family: socket.AddressFamily) -> str:
    """The address of this machine itself. Skips the test where IPv6 is asked for and there is none."""
    if family != socket.AF_INET6:
        return "127.0.0.1"
    try:
        with socket.socket(family) as sock:
            sock.bind(("::1", 0))
    except OSError as error:  # EAFNOSUPPORT: the kernel has no IPv6; EADDRNOTAVAIL: it is turned off
        raise unittest.SkipTest(f"no IPv6 here: ::1 cannot be bound: {error}") from None
    return "::1"


def fill(sock: socket.socket, address: Any) -> int:
    """Send datagrams until there is no more room; how many."""
    sock.setblocking(False)
    filled = 0
    while True:
        try:
            sock.sendto(b"x", address)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ENOBUFS):
                return filled
            raise
        filled += 1


class Pairs:
    """Makes connected pairs `(conn, peer)`: conn to be handed to a watcher, peer to be used by the test.

    Every peer has a time limit, so that no test waits for ever. All are closed with the pairs; conns are held
    weakly, so that a test may forget them.
    """

    def __init__(self) -> None:
        self._peers: list[Closable] = []
        self._conns: list[weakref.ref[Closable]] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None  # for names of Unix sockets

    def _keep(self, conn: Closable, peer: Closable) -> None:
        if isinstance(peer, socket.socket):
            peer.settimeout(LIMIT)
        self._conns.append(weakref.ref(conn))
        self._peers.append(peer)

    def tcp(
        self, family: socket.AddressFamily = socket.AF_INET, *, buffers: int = 0, protocol: int = 0
    ) -> tuple[socket.socket, socket.socket]:
        """A connection over loopback, by TCP unless another protocol of streams is given.

        With `buffers`, the kernel's buffers are about that small.
        """
        host = loopback(family)
        with socket.socket(family, proto=protocol) as listener, contextlib.ExitStack() as undo:
            # Lets a port be used again that connections of an earlier pair hold in TIME_WAIT: a test that makes
            # tens of thousands of pairs would run out of ports.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if buffers:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
            listener.bind((host, 0))
            listener.listen()
            peer = undo.enter_context(socket.socket(family, proto=protocol))
            if buffers:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
            peer.connect(listener.getsockname())
            conn, _ = listener.accept()
            undo.pop_all()
        for end in (conn, peer):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._keep(conn, peer)
        return conn, peer

    def multipath_tcp(self) -> tuple[socket.socket, socket.socket]:
        """A stream with the families of TCP and its type, which is not TCP. Skips the test where there is none."""
        protocol = getattr(socket, "IPPROTO_MPTCP", None)
        if protocol is None:
            raise unittest.SkipTest("no multipath TCP on this system")
        try:
            return self.tcp(protocol=protocol)
        except OSError as error:
            raise unittest.SkipTest(f"no multipath TCP in this kernel: {error}") from error

    def unix(self, kind: socket.SocketKind = socket.SOCK_STREAM) -> tuple[socket.socket, socket.socket]:
        conn, peer = socket.socketpair(socket.AF_UNIX, kind)
        self._keep(conn, peer)
        return conn, peer

    def udp(self) -> tuple[socket.socket, socket.socket]:
        """Two UDP sockets, each connected to the other."""
        conn = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._keep(conn, peer)
        for end in (conn, peer):
            end.bind(("127.0.0.1", 0))
        conn.connect(peer.getsockname())
        peer.connect(conn.getsockname())
        return conn, peer

    def unbound(self, family: int = socket.AF_INET) -> socket.socket:
        """A datagram socket without an address."""
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.settimeout(LIMIT)
        self.also_close(sock)
        return sock

    def bound(self, family: int = socket.AF_INET) -> tuple[socket.socket, Any]:
        """A datagram socket that can be sent to, and its address."""
        sock = self.unbound(family)
        if family == socket.AF_UNIX:
            folder = self._folder = self._folder or tempfile.TemporaryDirectory()
            sock.bind(f"{folder.name}/{len(self._peers)}")
        else:
            sock.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        return sock, sock.getsockname()

    def pipe_to_read(self) -> tuple[IO[bytes], IO[bytes]]:
        """A pipe whose reading end is the conn."""
        reading, writing = os.pipe()
        conn, peer = os.fdopen(reading, "rb", buffering=0), os.fdopen(writing, "wb", buffering=0)
        self._keep(conn, peer)
        return conn, peer

    def pipe_to_write(self) -> tuple[IO[bytes], IO[bytes]]:
        """A pipe whose writing end is the conn."""
        reading, writing = os.pipe()
        conn, peer = os.fdopen(writing, "wb", buffering=0), os.fdopen(reading, "rb", buffering=0)
        self._keep(conn, peer)
        return conn, peer

    def sockets(self) -> list[socket.socket]:
        """The peers made so far that are sockets, in order."""
        return [peer for peer in self._peers if isinstance(peer, socket.socket)]

    def also_close(self, *others: Closable) -> None:
        self._peers.extend(others)

    def close(self) -> None:
        for reference in self._conns:
            conn = reference()
            if conn is not None:
                conn.close()
        for peer in self._peers:
            if isinstance(peer, socket.socket) and peer.fileno() != -1:
                # Leaves nothing in TIME_WAIT. With ten thousand there, bind(2) looks for a free port for milliseconds.
                reset(peer)
            else:
                peer.close()
        if self._folder is not None:
            self._folder.cleanup()


class HeldPairs(Pairs):
    """The same where the conns stay the test's: they are held, too."""

    def __init__(self) -> None:
        super().__init__()
        self._held: list[Closable] = []

    def _keep(self, conn: Closable, peer: Closable) -> None:
        super()._keep(conn, peer)
        self._held.append(conn)

    def close(self) -> None:
        super().close()
        self._held.clear()
