"""One delegated descriptor, its two queues of requests, and who owns what.

Delegation takes the descriptor from the caller's socket, or duplicates that of another object and closes the original:
from then on no one but the watcher can read, write or close this one, so its number cannot be reused under a pending
request.

Ownership
    request -> conn, memory      strongly, until its result is delivered
    Connection -> requests       strongly, through its queues
    Connection -> conn           weakly: an object that nobody holds and that has no request pending is collected,
                                 and its finalizer has the descriptor closed. While a request repeats it holds conn, and
                                 so does Connection: there is no finalizer until it ends
"""

from __future__ import annotations

import fcntl
import io
import itertools
import os
import socket
import stat
import sys
import weakref

from gaio.errors import ConnClosedError, GaioError, UnsupportedConnError
from gaio.platform import DATAGRAM, FILE, LISTENER, SELECTOR, SEQPACKET, SOCKET, STREAM, _sockaddr, _sockets
from gaio.result import ACCEPT, CONNECT, READ, SHUTDOWN, Operation, OpResult

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_INT_MAX = 0x7FFFFFFF
FINISHED = -1  # see Engine.closing
NO_MORE: Any = OpResult()  # as the tail of a queue: it takes no more requests


class RequestQueue:
    """The requests of one direction in the order of submission; only the first is with the backend."""

    __slots__ = ("descriptor", "outbound", "head", "tail", "behind", "ready", "waiting", "entry")

    def __init__(self, connection: Connection, outbound: bool) -> None:
        self.descriptor: Any = connection  # in the end a ClosedConnection
        self.outbound = outbound
        self.head: OpResult | None = None
        self.tail: OpResult | None = None if connection.close_reason is None else NO_MORE
        self.behind = 0  # of writes: bytes of those behind the head
        # For the backend: a fresh descriptor is taken for writable. One that is not open for reading never becomes
        # readable, so it is tried at once and says so.
        self.ready = 1 if outbound or (connection.kind == FILE and is_write_only(connection.fd)) else 0
        self.waiting: Any = None  # for the backend
        self.entry = b""  # for the backend

    # Not kept, for there are two queues for each idle connection: where it would be felt, the descriptor is asked.
    @property
    def fd(self) -> int:
        fd: int = self.descriptor.fd
        return fd

    @property
    def token(self) -> int:
        token: int = self.descriptor.token
        return token + 1 if self.outbound else token


class Connection:
    """A delegated descriptor. All of it but `conn` and `key` belongs to the leader."""

    __slots__ = ("fd", "token", "kind", "peer", "key", "conn", "finalizer", "reads", "writes", "close_reason")

    shared = False

    def __init__(self, conn: Any, fd: int, kind: int, token: int) -> None:
        self.fd = fd  # ours: closed exactly once, when the last request has come back
        self.token = token
        self.kind = kind
        self.peer: bytes | None = None  # its struct sockaddr, where it was known when this was delegated
        self.key = id(conn)
        self.conn: Any = weakref.ref(conn)  # conn itself, while a request that repeats holds it anyway
        self.finalizer: weakref.finalize[Any, Any] | None = None
        self.close_reason: type[GaioError] | None = None  # why it takes no more requests, None while it does
        self.reads = RequestQueue(self, outbound=False)
        self.writes: RequestQueue | None = None  # most idle connections never write

    def open_writes(self) -> RequestQueue:
        """The queue of writes. Any thread that holds the watcher's delegation lock: there must be only one."""
        if self.writes is None:
            self.writes = RequestQueue(self, outbound=True)
            if self.fd < 0:
                self.let_go()  # another thread was slow: it is closed, and this one would be a cycle again
        return self.writes

    def own_descriptor(self) -> tuple[int, ...]:
        """What is to be closed with it, while it is open."""
        return (self.fd,) if self.fd >= 0 else ()

    def queues(self) -> list[RequestQueue]:
        return [self.reads] if self.writes is None else [self.reads, self.writes]

    def __str__(self) -> str:
        """What tells it from others: a number that no other connection of the watcher ever has, and its peer."""
        number = f"#{self.token // 2}"
        peer = _sockaddr.text(self.peer) if self.peer is not None else ""
        return f"{number} to {peer}" if peer else number

    def let_go(self) -> None:
        """It is closed. With its queues it is a cycle, which only the collector would free, if that is on. It may be
        one with conn as well, which may hold its results.
        """
        self.conn = nobody
        closed = ClosedConnection(self)
        for queue in self.queues():
            queue.descriptor = closed


def nobody() -> None:
    """Stands for the weak reference of a connection that is closed."""


class DatagramConnection(Connection):
    """That of a datagram socket, which may send to any address of its family."""

    __slots__ = ("family",)

    def __init__(self, conn: Any, fd: int, token: int, family: int) -> None:
        super().__init__(conn, fd, DATAGRAM, token)
        self.family = family


class SharedConnection(Connection):
    """That of an object which stays open, and is held until then: see Delegation.share()."""

    __slots__ = ()

    shared = True

    def __init__(self, conn: Any, fd: int, kind: int, token: int) -> None:
        super().__init__(conn, fd, kind, token)
        self.conn = conn

    def own_descriptor(self) -> tuple[int, ...]:
        return ()

    def let_go(self) -> None:
        if self.close_reason is ConnClosedError and self.conn is not nobody:
            self.conn.close()
        super().let_go()


class ClosedConnection:
    """What the queues of a closed connection know of it, for requests that come too late."""

    __slots__ = ("close_reason", "token")

    fd = -1

    def __init__(self, connection: Connection) -> None:
        self.close_reason = connection.close_reason
        self.token = connection.token


def reclaim_when_collected(conn: Any, connection: Connection, forget: Callable[[Connection], None]) -> None:
    connection.finalizer = weakref.finalize(conn, forget, connection)
    connection.finalizer.atexit = False
    connection.conn = reference_of(connection.finalizer, conn)


def reference_of(finalizer: weakref.finalize[Any, Any], conn: Any) -> weakref.ref[Any]:
    """The weak reference that the finalizer keeps to its object anyway, or else another one.

    Another would cost 96 of the some 900 bytes that an idle connection takes.
    """
    info = getattr(weakref.finalize, "_registry", {}).get(finalizer)
    reference: weakref.ref[Any] | None = getattr(info, "weakref", None)
    return weakref.ref(conn) if reference is None else reference


def refuse_tls(conn: Any) -> None:
    ssl = sys.modules.get("ssl")  # not imported for this: without it there is no such socket
    if ssl is not None and isinstance(conn, ssl.SSLSocket):
        raise UnsupportedConnError(
            "conn is an SSLSocket, whose descriptor carries the bytes as they are on the wire: submit the plain socket "
            "to a gaio.tls.TLSWatcher instead, which does the handshake as well"
        )


def descriptor_of(conn: Any) -> int:
    """The number of the descriptor behind a caller's object; `UnsupportedConnError` when there is none, and
    `ConnClosedError` when it is closed.
    """
    fileno = getattr(conn, "fileno", None)
    if not callable(fileno) or not callable(getattr(conn, "close", None)):
        raise UnsupportedConnError(
            f"conn must be an object with fileno() and close(), such as a connected socket, not {conn!r}"
        )
    refuse_tls(conn)
    if getattr(conn, "_io_refs", 0):  # of socket.socket: its close() would leave the descriptor open
        raise UnsupportedConnError(f"conn has a file open that makefile() returned: close that first: {conn!r}")
    try:
        fd = fileno()
    except io.UnsupportedOperation as error:
        raise UnsupportedConnError(
            f"conn has no descriptor of its own: submit the socket or the file beneath it: {conn!r}"
        ) from error
    except (OSError, ValueError) as error:
        if _is_closed(conn):
            raise _closed(conn) from error
        raise UnsupportedConnError(f"conn has no descriptor to hand over: {error}") from error
    if not isinstance(fd, int) or isinstance(fd, bool) or fd > _INT_MAX:
        raise UnsupportedConnError(f"fileno() of conn must return the number of its descriptor, not {fd!r}: {conn!r}")
    if fd < 0:
        raise _closed(conn)
    return fd


def _is_closed(conn: Any) -> bool:
    """Of a file, which raises ValueError then; and here, too, when it has been parted from what it stands on."""
    try:
        return getattr(conn, "closed", False) is True
    except ValueError:
        return False


def _closed(conn: Any) -> ConnClosedError:
    return ConnClosedError(f"conn is closed: {conn!r} was freed or closed before, or belongs to another watcher by now")


# Those of io whose bytes are those of their descriptor. (BufferedRWPair has no fileno().)
_PLAIN_BUFFERS = (io.BufferedReader, io.BufferedWriter, io.BufferedRandom)


def check_file(conn: Any, fd: int) -> None:
    """`UnsupportedConnError` for a file whose close() leaves the descriptor open, or whose flush() cannot be tried.

    Facts about the flush() of files where there is no room, in CPython
        * BufferedWriter keeps what it could not write.
        * TextIOWrapper hands what it holds to its buffer, and drops what that does not take (CPython issue 85393). It
          does not tell whether it holds anything; with write_through it never does.
    """
    if getattr(conn, "flush", None) is None:
        return  # a socket, as a rule
    layers = [conn]
    while (layer := _beneath(layers[-1], fd)) is not None:
        layers.append(layer)
    for layer in layers:
        if isinstance(layer, socket.SocketIO):
            raise UnsupportedConnError(
                "conn is a file that makefile() returned, whose close() may leave the descriptor open: close it "
                f"and submit the socket instead: {conn!r}"
            )
        if isinstance(layer, io.FileIO) and not layer.closefd:
            raise UnsupportedConnError(
                "conn would leave its descriptor open when it is closed (closefd=False): submit a file that has one of "
                f"its own, such as os.fdopen(os.dup({fd}), {layer.mode!r}, buffering=0): {conn!r}"
            )
        if isinstance(layer, io.BufferedIOBase) and not isinstance(layer, _PLAIN_BUFFERS):
            raise UnsupportedConnError(
                f"a {type(layer).__name__} is not known to pass on the very bytes of its descriptor, and to close it: "
                f"submit the file or the socket beneath it: {conn!r}"
            )
    for layer, beneath in itertools.pairwise(layers):
        is_text = getattr(layer, "buffer", None) is beneath
        if is_text and beneath.writable() and not getattr(layer, "write_through", False):
            raise UnsupportedConnError(
                "conn is a text file, which loses what it holds where there is no room: flush() it and submit its "
                f"`buffer`, or open it in binary mode: {conn!r}"
            )


def _beneath(file: Any, fd: int) -> Any:
    """What a file stands on, if that has the same descriptor: attributes of these names may be anything."""
    for name in ("buffer", "raw"):
        layer = getattr(file, name, None)
        if isinstance(layer, io.IOBase) and layer is not file:
            try:
                if layer.fileno() == fd:
                    return layer
            except (OSError, ValueError):
                pass
    return None


def flush_now(conn: Any, fd: int) -> None:
    """Have a buffered file write what it holds, without waiting; `UnsupportedConnError` if that takes longer.

    Its close() would do so as well, but what it could not write then would be lost.
    """
    flush = getattr(conn, "flush", None)
    if flush is None:
        return
    blocking = os.get_blocking(fd)
    try:
        os.set_blocking(fd, False)
        flush()
    except BlockingIOError as error:
        raise UnsupportedConnError(
            "conn holds bytes that cannot be written at once: flush() it before, or open it in binary mode with "
            f"buffering=0: {conn!r}"
        ) from error
    finally:
        os.set_blocking(fd, blocking)


def is_write_only(fd: int) -> bool:
    return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY


def is_plain_socket(conn: Any) -> bool:
    """Whether socket.socket.detach() parts it from its descriptor, and no class of the caller's has a say in that."""
    kind = type(conn)
    return kind is socket.socket or (
        isinstance(conn, socket.socket)
        and all(getattr(kind, name) is getattr(socket.socket, name) for name in ("fileno", "detach", "close"))
    )


def is_socket(fd: int) -> bool:
    return stat.S_ISSOCK(os.fstat(fd).st_mode)


def kind_of(fd: int, operation: Operation) -> int:
    """How bytes move on this descriptor, see gaio/platform; `OSError` when the number is not an open descriptor.

    Where the system does not tell whether a socket listens, the operation that is wanted decides, unless it is plainly
    wrong: otherwise accept(2), connect(2) or recv(2) will say so.
    """
    if not is_socket(fd):
        return FILE
    type_of_socket = _sockets.option(fd, socket.SO_TYPE)
    if type_of_socket not in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        return DATAGRAM  # SOCK_DGRAM, SOCK_RAW, SOCK_RDM: socket(2)
    listens = _sockets.listens(fd)
    if listens or (listens is None and operation is ACCEPT and _sockets.may_listen(fd)):
        return LISTENER
    if type_of_socket == socket.SOCK_SEQPACKET:
        return SEQPACKET
    return STREAM if _sockets.is_tcp(fd) else SOCKET


def peer_of(fd: int, kind: int) -> bytes | None:
    """The peer's address, where there is one: a struct sockaddr without its padding."""
    peer = None if kind in (FILE, LISTENER, SELECTOR) else _sockets.peer(fd)
    return None if peer is None else _sockaddr.without_padding(peer)


def check_kind(kind: int, operation: Operation) -> None:
    """`UnsupportedConnError` when a descriptor of this kind can never do that."""
    if (operation is ACCEPT) != (kind == LISTENER):
        raise UnsupportedConnError(
            "the listener does not listen: call its listen() before, or pass what socket.create_server() returned"
            if operation is ACCEPT
            else "conn is a listening socket: accept() from it, and submit what the result has as `accepted`"
        )
    if kind == FILE and operation in (CONNECT, SHUTDOWN):
        raise UnsupportedConnError(f"conn is no socket: {operation.name.lower()}() is for sockets")


def check_connected(fd: int, kind: int, operation: Operation = READ) -> None:
    """`UnsupportedConnError` when it is a TCP socket that never was, or a datagram socket that cannot receive and is to
    read.
    """
    if kind == DATAGRAM and operation is READ and not _sockets.can_receive(fd):
        raise UnsupportedConnError(
            "conn is not bound, so nobody can send to it, and it would wait for ever: bind() or connect() it first, or "
            "write() to an address first, by which an IP socket is bound"
        )
    if kind != STREAM:
        return
    # A TCP socket that was connected has kept its local port, also where its peer has reset it already, which is for
    # the first read to report. Or its address has gone: then it had one.
    address = _sockets.local_address(fd)
    if address is not None and not address[1]:
        raise UnsupportedConnError("conn is not connected: connect() it before submitting requests")


def family_to_connect(fd: int, kind: int) -> int:
    """Its address family; `UnsupportedConnError` when it is connected, or was.

    Only a datagram socket may choose another peer, connect(2).
    """
    if kind != DATAGRAM and _sockets.peer(fd) is not None:
        raise UnsupportedConnError("conn is connected already: connect a new socket instead")
    return family_of(fd)


def family_of(fd: int) -> int:
    """Its address family; `UnsupportedConnError` when that has gone with its connection."""
    address = _sockets.local_address(fd)
    if address is None:
        raise UnsupportedConnError("conn was connected, and that connection has ended: connect a new socket instead")
    return address[0]
