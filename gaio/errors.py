"""The exceptions of gaio: one meaning each, and each also the builtin a caller would expect.

Errors of the kernel are not wrapped: they arrive as the `OSError` subclass that belongs to their errno.
"""


class GaioError(Exception):
    """Base of every exception that gaio itself defines."""


class UnsupportedConnError(GaioError, TypeError):
    """The object cannot be served: not a connected, pollable, weak-referenceable object with a descriptor.

    Raised by the submitting call; nothing was submitted and the object is untouched.
    """


class EmptyBufferError(GaioError, ValueError):
    """A buffer of no bytes was passed: there would be nothing to read into or to write."""


class InvalidCPUError(GaioError, ValueError):
    """`set_affinity` was given a CPU that this process cannot run on."""


class WatcherClosedError(GaioError, RuntimeError):
    """The watcher is closed: raised by calls on it, and the error of requests that `close()` overtook."""


class ConnClosedError(GaioError, ConnectionError):
    """`free()` overtook the request, or the request was submitted after it."""


class DeadlineError(GaioError, TimeoutError):
    """The request's `timeout` passed first. `OpResult.size` tells how many bytes had moved by then."""


class BackendUnavailableError(GaioError, OSError):
    """A backend asked for by name cannot run here; the message says why."""
