"""A request and, once it is finished, its result: one object for both."""

from __future__ import annotations

from enum import IntEnum

from gaio.platform import _libc, _sockaddr

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from typing import Any, Final

    from gaio.deadlines import Deadline


class Operation(IntEnum):
    """What a request asks for."""

    READ = 0
    WRITE = 1
    ACCEPT = 2
    CONNECT = 3
    SHUTDOWN = 4
    FINISH = 5
    TIMER = 6
    POST = 7


READ: Final = Operation.READ
WRITE: Final = Operation.WRITE
ACCEPT: Final = Operation.ACCEPT
CONNECT: Final = Operation.CONNECT
SHUTDOWN: Final = Operation.SHUTDOWN
FINISH: Final = Operation.FINISH
TIMER: Final = Operation.TIMER
POST: Final = Operation.POST


STOPPED: Final = -1  # see OpResult._goal

UNDER_WAY = Exception("the request is under way")  # the `error` of a request that moves no bytes, until it ends


class OpResult:
    """One finished request. Every submitted request yields exactly one; one that repeats (`read_start()`,
    `accept_start()`) yields one for each arrival, and a last one.

    operation   READ, WRITE, ACCEPT, CONNECT, SHUTDOWN, FINISH, TIMER or POST
    conn        the object that was submitted, the very same; None of TIMER and POST
    context     what was passed as such
    buffer      READ: the caller's buffer, or a view of what arrived (see `is_swap_buffer`), None where nothing did.
                WRITE: what was passed. Else None
    size        bytes that moved, also when there is an error
    error       None: done. `EOFError`: the peer has ended the stream. `DeadlineError`, `ConnClosedError`,
                `WatcherClosedError`: it was cut off. Else the `OSError` of the kernel
    more        the request goes on: another result of it will follow

    It belongs to the caller, with the buffer, from the moment `wait_io()` returns it. The same object is the request
    while it is under way: the attributes with a leading underscore belong to the core and the backend until then, and
    mean nothing to a caller.
    """

    __slots__ = (
        *("operation", "conn", "context", "buffer", "size", "error", "more"),
        *("_connection", "_queue", "_next", "_memory", "_length", "_goal", "_offset", "_result", "_deadline"),
        "_sender",
    )

    operation: Operation
    conn: Any
    context: Any
    buffer: Any
    size: int
    error: Exception | None
    more: bool
    _connection: Any  # of its conn, for repr()
    _queue: Any  # the RequestQueue it stands in, None once it is finished
    _next: OpResult | None  # the request behind it in that queue
    # What the kernel reads or fills: see gaio/memory.py; None = the swap arena. Of an arrival, the pair it was made of.
    _memory: Any
    _length: int  # bytes of that memory, 0 = the swap arena
    # Bytes that must move before the request is finished. 0: a plain read, which takes what comes. STOPPED: a request
    # that repeats, and is to end.
    _goal: int
    _offset: int  # bytes moved before the attempt under way
    _result: int  # what the backend last reported: n >= 0 or -errno
    _deadline: Deadline | None  # its entry in the heap, None without a timeout
    _sender: bytes  # of a message that has come, and of nothing else: its struct sockaddr

    @property
    def is_swap_buffer(self) -> bool:
        """Whether `buffer` lives in the swap arena, and so is valid until the next `wait_io()` only."""
        return self.operation is READ and self._length == 0 and self.buffer is not None

    @property
    def address(self) -> Any:
        """Of a READ of a datagram socket: who has sent the datagram. Of an ACCEPT that succeeded: who was accepted. As
        the socket module writes addresses. Else None.
        """
        return _sockaddr.unpack(getattr(self, "_sender", b""))

    @property
    def accepted(self) -> Any:
        """Of an ACCEPT that succeeded: the new connection, a plain socket that is not delegated. Else None.

        The same object each time. It is closed with the result if nobody has looked at it.
        """
        return None

    def __repr__(self) -> str:
        state = "pending" if self._queue is not None else repr(self.error) if self.error else "ok"
        if self._connection is None:  # TIMER and POST
            return f"<OpResult {self.operation.name} {state} context={self.context!r}>"
        conn = f"{type(self.conn).__name__} {self._connection}"
        return f"<OpResult {self.operation.name} size={self.size} {state} conn={conn}>"


class AcceptResult(OpResult):
    """The result of an ACCEPT: it owns the new connection until the caller takes it, and closes it otherwise."""

    __slots__ = ("_accepted", "_address")

    def __init__(self) -> None:
        self._address: Any = None  # once it is known
        self._accepted: list[Any] = []  # empty, or the owner of the descriptor, and then the socket made of it

    def own(self, fd: int) -> None:
        """Keep the descriptor that accept(2) returned. Done twice it is kept once: by C code, in one step."""
        if not self._accepted:
            self._accepted.extend(map(_libc.socket_owner_of, (fd,)))

    def take(self, arrival: tuple[OpResult, Any]) -> None:
        """Keep what an accept that repeats has brought: a descriptor, or an error. Twice is once."""
        what = arrival[1]
        if isinstance(what, int):
            self.own(what)
        else:
            self.error = what

    @property
    def accepted(self) -> Any:
        owned = self._accepted
        if not owned:
            return None
        if len(owned) == 1:
            owned.append(_libc.blank_socket())  # kept before it owns anything: an interruption cannot lose it
        if owned[0] is not None:
            self._address = self.address  # now, for who delegates the socket cannot ask it any more
            _libc.take_over(owned[1], owned[0])
            owned[0] = None
        return owned[1]

    @property
    def address(self) -> Any:
        """Who was accepted, as the socket module writes addresses.

        `(host, port)` for IPv4, `(host, port, flow information, scope)` for IPv6, a path for Unix sockets, which is
        empty where the peer's has no name, and bytes where it is an abstract one, unix(7). None where the system does
        not tell: that of a peer that has reset the connection, but for Linux.

        It is asked for when you ask, or with `accepted`, and kept: you may ask after the first request, too.
        """
        owned = self._accepted
        if self._address is None and owned and owned[0] is not None:
            self._address = _sockaddr.of_peer(owned[0])
        return self._address
