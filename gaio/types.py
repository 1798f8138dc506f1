"""Names for annotations, and the named tuples that report something.

They are imported when they are asked for: `typing`, which they need, would take a third of the time of `import gaio`.
For the same reason no other module imports it but for the type checker, and gaio/inspection.py, which is late as well.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from typing_extensions import Buffer
elif sys.version_info >= (3, 12):
    from collections.abc import Buffer
else:
    Buffer = Any  # PEP 688 gave it a name in Python 3.12

BackendName = Literal["auto", "epoll", "kqueue", "io_uring"]
Writable = Buffer | Sequence[Buffer]  # a sequence is one vectored write


class HasFileno(Protocol):
    """A pollable, weak-referenceable object: `socket.socket` first of all; also pipes, terminals, eventfds.

    Connected, but for what `accept()` and `connect()` take. Its `close()` may be called more than once, and must then
    do nothing.
    """

    def fileno(self) -> int: ...
    def close(self) -> object: ...


Conn = HasFileno


class Stats(NamedTuple):
    """What `Watcher.stats()` tells: a snapshot, each number right for itself."""

    conns: int
    """Connections delegated now."""
    pending: int
    """Requests submitted and not yet completed."""
    completions: int
    """Results delivered so far."""
    batches: int
    """Batches they came in."""
    wakeups: int
    """Times a submitting call had to wake the thread that was waiting."""
    gc_found: int
    """Connections the garbage collector found unreferenced."""
    gc_closed: int
    """Of those, descriptors closed."""


class ConnectionInfo(NamedTuple):
    """One delegated connection, of `Watcher.connections()`: who waits for what."""

    conn: Any
    """The object that was submitted; None when it has just been collected."""
    number: int
    """Unique in the watcher's life; also in the `repr()` of results."""
    peer: Any
    """Its address when it was delegated, as the socket module writes addresses; None where there is none."""
    reads: int
    """Requests pending that read or accept."""
    writes: int
    """Requests pending of the other kind."""
    unsent: int
    """Bytes of those that the kernel has not taken yet."""


class Backend(NamedTuple):
    """One entry of `backends()`."""

    name: str
    available: bool
    reason: str
    """Why not, or which kernel features it uses."""
