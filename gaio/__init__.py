"""gaio: a proactor in pure Python.

Hand it connected sockets, submit reads and writes from any thread, collect finished ones in batches.
"""

from gaio.errors import (
    BackendUnavailableError,
    ConnClosedError,
    DeadlineError,
    EmptyBufferError,
    GaioError,
    InvalidCPUError,
    UnsupportedConnError,
    WatcherClosedError,
)
from gaio.result import ACCEPT, CONNECT, FINISH, POST, READ, SHUTDOWN, TIMER, WRITE, Operation, OpResult
from gaio.timers import Timer
from gaio.watcher import Watcher, backends

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from gaio.types import Backend, BackendName, Conn, ConnectionInfo, HasFileno, Stats, Writable

__version__ = "0.1.0"

__all__ = [
    "ACCEPT", "CONNECT", "FINISH", "POST", "READ", "SHUTDOWN", "TIMER", "WRITE", "Backend", "BackendName",
    "BackendUnavailableError", "Conn", "ConnClosedError", "ConnectionInfo", "DeadlineError", "EmptyBufferError",
    "GaioError", "HasFileno", "InvalidCPUError", "OpResult", "Operation", "Stats", "Timer", "UnsupportedConnError",
    "Watcher", "WatcherClosedError", "Writable", "__version__", "backends",
]


def __getattr__(name: str) -> object:
    """The names that gaio.types holds, when they are asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from gaio import types

    return globals().setdefault(name, getattr(types, name))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
