"""The public API of gaio on one page. stubtest holds the code to it."""

from collections.abc import Iterator, Sequence
from enum import IntEnum
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeAlias

from typing_extensions import (  # known to every type checker; the package itself has no dependency
    Buffer,
    Self,
)

__version__: Final[str]

__all__ = [
    "ACCEPT",
    "CONNECT",
    "FINISH",
    "POST",
    "READ",
    "SHUTDOWN",
    "TIMER",
    "WRITE",
    "Backend",
    "BackendName",
    "BackendUnavailableError",
    "Conn",
    "ConnClosedError",
    "ConnectionInfo",
    "DeadlineError",
    "EmptyBufferError",
    "GaioError",
    "HasFileno",
    "InvalidCPUError",
    "OpResult",
    "Operation",
    "Stats",
    "Timer",
    "UnsupportedConnError",
    "Watcher",
    "WatcherClosedError",
    "Writable",
    "__version__",
    "backends",
]

class HasFileno(Protocol):
    """A pollable, weak-referenceable object: socket.socket first of all; pipes, ttys, eventfds.

    Its close() may be called more than once, and must then do nothing.
    """

    def fileno(self) -> int: ...
    def close(self) -> object: ...

Conn: TypeAlias = HasFileno

BackendName: TypeAlias = Literal["auto", "epoll", "kqueue", "io_uring"]

Writable: TypeAlias = Buffer | Sequence[Buffer]  # a sequence is one vectored write

class Operation(IntEnum):
    READ = ...
    WRITE = ...
    ACCEPT = ...
    CONNECT = ...
    SHUTDOWN = ...
    FINISH = ...
    TIMER = ...
    POST = ...

READ: Final = Operation.READ
WRITE: Final = Operation.WRITE
ACCEPT: Final = Operation.ACCEPT
CONNECT: Final = Operation.CONNECT
SHUTDOWN: Final = Operation.SHUTDOWN
FINISH: Final = Operation.FINISH
TIMER: Final = Operation.TIMER
POST: Final = Operation.POST

class OpResult:
    """One finished request. Every submitted request yields exactly one; one that repeats (read_start, accept_start)
    yields one for each arrival, and a last one."""

    operation: Operation
    conn: Any  # the very object that was submitted; None of TIMER and POST
    context: Any  # handed back unchanged
    # READ: the caller's buffer, or a read-only memoryview of exactly `size` bytes of the swap arena; None where there
    # are none
    # WRITE: what the caller passed. None of the others.
    buffer: Any
    size: int  # bytes moved, also when error is set (partial progress)
    error: Exception | None  # None, EOFError, a GaioError, or the OSError of the kernel
    more: bool  # the request goes on: another result of it will follow
    @property
    def is_swap_buffer(self) -> bool: ...  # buffer lives in the swap arena: valid until the next wait_io()
    @property
    def accepted(self) -> Any: ...  # ACCEPT: the new non-delegated socket.socket, None when there is an error
    @property
    def address(self) -> Any: ...  # as the socket module writes it; ACCEPT: who was accepted; of a datagram: its sender

# ---- errors: each is also the builtin a caller would expect

class GaioError(Exception): ...
class UnsupportedConnError(GaioError, TypeError): ...  # raised by the submitting call
class EmptyBufferError(GaioError, ValueError): ...
class InvalidCPUError(GaioError, ValueError): ...
class WatcherClosedError(GaioError, RuntimeError): ...
class ConnClosedError(GaioError, ConnectionError): ...  # free() ended the request, or came before it
class DeadlineError(GaioError, TimeoutError): ...
class BackendUnavailableError(GaioError, OSError): ...  # the backend that was asked for cannot run here, or none can

class Stats(NamedTuple):
    conns: int  # connections delegated now
    pending: int  # requests submitted and not yet completed
    completions: int  # results delivered so far
    batches: int  # batches they came in
    wakeups: int  # times a submitting call had to wake the thread that was waiting
    gc_found: int  # connections the garbage collector found unreferenced
    gc_closed: int  # of those, descriptors closed

class ConnectionInfo(NamedTuple):
    """One delegated connection, for debugging: who waits for what."""

    conn: Any
    number: int  # unique in the watcher's life; also in repr() of results
    peer: Any  # its address when it was delegated, as the socket module writes addresses
    reads: int  # requests pending; a connection with none of either kind is one that somebody forgot
    writes: int
    unsent: int  # bytes of its writes that the kernel has not taken yet

class Backend(NamedTuple):
    name: str
    available: bool
    reason: str  # why not, or which kernel features it uses

class Timer:
    """What Watcher.after() returns. Dropping it does not cancel anything."""

    def cancel(self) -> bool: ...  # True: its result will not come. Any thread

class Watcher:
    """A proactor: takes read and write requests from any thread, performs them in the thread that waits in
    wait_io() (or in its own when nobody waits), and hands the finished ones back in batches."""

    # backend None: the environment variable GAIO_BACKEND, else "auto"
    def __init__(self, *, swap_size: int = 65536, backend: BackendName | None = None) -> None: ...

    # --- submit: any thread; never block
    # A wrong argument raises here, a failed I/O arrives as OpResult.error.
    def read(
        self, conn: HasFileno, buf: Buffer | None = None, *, context: Any = None, timeout: float | None = None
    ) -> None: ...
    def read_full(
        self, conn: HasFileno, buf: Buffer, *, context: Any = None, timeout: float | None = None
    ) -> None: ...
    # Repeats: a READ result with a swap view for each arrival, `more` True, until the end, an error or read_stop()
    def read_start(self, conn: HasFileno, *, context: Any = None, timeout: float | None = None) -> None: ...
    def read_stop(self, conn: HasFileno) -> None: ...  # then the last result comes: no error, size 0
    def write(
        self,
        conn: HasFileno,
        buf: Writable,
        *,
        context: Any = None,
        timeout: float | None = None,
        address: Any = None,  # of a datagram socket: where this one goes, as the socket module writes addresses
    ) -> None: ...
    def unsent(self, conn: HasFileno) -> int: ...  # bytes of its writes that the kernel has not taken yet
    def accept(self, listener: HasFileno, *, context: Any = None, timeout: float | None = None) -> None: ...
    def accept_start(self, listener: HasFileno, *, context: Any = None) -> None: ...  # repeats, as read_start() does
    def accept_stop(self, listener: HasFileno) -> None: ...
    def connect(
        self, conn: HasFileno, address: Any, *, context: Any = None, timeout: float | None = None
    ) -> None: ...
    def shutdown(self, conn: HasFileno, *, context: Any = None) -> None: ...  # FIN after every queued write
    # the orderly end: writes go out, FIN, what the peer sends is dropped until its end, close; one FINISH result
    def finish(self, conn: HasFileno, *, context: Any = None, timeout: float | None = None) -> None: ...
    # results without I/O, also from the handler of a signal: at once, or when so many seconds have passed
    def post(self, context: Any = None) -> None: ...
    def after(self, seconds: float, *, context: Any = None) -> Timer: ...
    def free(self, conn: HasFileno) -> None: ...  # idempotent
    def detach(self, conn: HasFileno) -> Any: ...  # a fresh socket.socket for the same connection

    # --- harvest: one consumer thread
    def wait_io(self, timeout: float | None = None) -> list[OpResult]: ...  # [] when timeout passes
    def __iter__(self) -> Iterator[OpResult]: ...  # until closed
    def fileno(self) -> int: ...  # readable when wait_io(0) has something to do or give: nests in asyncio, trio, select

    # --- life
    def close(self) -> None: ...  # idempotent; every pending request still completes, with WatcherClosedError
    @property
    def closed(self) -> bool: ...
    @property
    def backend(self) -> str: ...
    def stats(self) -> Stats: ...
    def connections(self) -> list[ConnectionInfo]: ...
    def set_affinity(self, cpu: int) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, et: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None, /
    ) -> None: ...

def backends() -> list[Backend]: ...  # what this machine offers, best first
