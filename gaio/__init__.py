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
from gaio.result import ACCEPT, CONNECT, READ, SHUTDOWN, WRITE, Operation, OpResult
from gaio.watcher import Backend, BackendName, HasFileno, Stats, Watcher, backends

__version__ = "0.1.0"

__all__ = [
    "ACCEPT",
    "CONNECT",
    "READ",
    "SHUTDOWN",
    "WRITE",
    "Backend",
    "BackendName",
    "BackendUnavailableError",
    "ConnClosedError",
    "DeadlineError",
    "EmptyBufferError",
    "GaioError",
    "HasFileno",
    "InvalidCPUError",
    "OpResult",
    "Operation",
    "Stats",
    "UnsupportedConnError",
    "Watcher",
    "WatcherClosedError",
    "__version__",
    "backends",
]
