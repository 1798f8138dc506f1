"""The exceptions of gaio: one meaning each, and each also the builtin a caller would expect.

Errors of the kernel are not wrapped: they arrive as the `OSError` subclass that belongs to their errno.
"""


class GaioError(Exception):
    """Base of every exception that gaio itself defines."""


class UnsupportedConnError(GaioError, TypeError):
    """The object cannot be served: not a connected, pollable, weak-referenceable object with a descriptor, not of the
    kind that the call is for, or never submitted to this watcher where the call needs that.

    Raised by the call; nothing was submitted and the object is as usable as before.
    """


class EmptyBufferError(GaioError, ValueError):
    """A buffer of no bytes was passed: there would be nothing to read into or to write."""


class InvalidCPUError(GaioError, ValueError):
    """`set_affinity` was given a CPU that this process cannot run on."""


class WatcherClosedError(GaioError, RuntimeError):
    """The watcher is closed: raised by calls on it, and the error of requests that `close()` ended."""


class ConnClosedError(GaioError, ConnectionError):
    """`free()` ended the request, while it was pending or just being submitted; or the call came for a connection that
    is freed or closed.
    """


class DeadlineError(GaioError, TimeoutError):
    """The request's `timeout` passed first. `OpResult.size` tells how many bytes had moved by then."""


class BackendUnavailableError(GaioError, OSError):
    """The backend that was asked for cannot run here, or none can; the message says why."""
