"""What the result of an attempt means: whether the request ends with it, and with which error."""

from __future__ import annotations

import errno
import os

from gaio.errors import ConnClosedError, GaioError, WatcherClosedError
from gaio.platform import CANCELLED, DATAGRAM, TRUNCATED
from gaio.result import ACCEPT, READ, STOPPED, UNDER_WAY, WRITE, AcceptResult, OpResult

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from typing import Any, Final

    from gaio.connection import ClosedConnection, Connection, RequestQueue

# conclude(): it failed for want of descriptors (EMFILE), and is to wait before it ends, or goes on: Engine.back_off()
BACK_OFF: Final = "back off"

# Results that mean "not yet", so that the request is started again.
_START_AGAIN = (-errno.EINTR, -errno.EAGAIN, CANCELLED)
# accept(2): errors of a connection that has gone before it was accepted; the next one may be well.
_LOST_IN_THE_BACKLOG = (
    -errno.EAGAIN,  # or another process was faster
    -errno.ECONNABORTED,
    -errno.EPROTO,
    -errno.ENETDOWN,
    -errno.ENETUNREACH,
    -errno.EHOSTDOWN,
    -errno.EHOSTUNREACH,
    -errno.ENOPROTOOPT,
    -errno.EOPNOTSUPP,
)
# accept(2): the process or the system has no descriptor or memory left. The connection stays in the backlog.
_OUT_OF_DESCRIPTORS = (-errno.EMFILE, -errno.ENFILE, -errno.ENOBUFS, -errno.ENOMEM)

_WHY_CLOSED: dict[type[GaioError], str] = {
    ConnClosedError: "free() was called for this connection",
    WatcherClosedError: "the watcher was closed",
}


def conclude(request: OpResult, queue: RequestQueue, result: int) -> bool | str:
    """Whether a request that did not simply succeed ends with this result, or is to BACK_OFF; sets `size` and `error`.

    An `error` that is set already is why it was cancelled. It holds only if the request did not finish first.
    """
    if request.operation > WRITE:
        return _conclude_without_bytes(request, result)
    size = request._offset
    if result > 0:
        request.size = size + result
        if request.size >= request._goal:
            request.error = None
            return True
        return request.error is not None
    request.size = size
    if result < 0:
        if result in _START_AGAIN:
            return request.error is not None or request._goal == STOPPED
        if result < TRUNCATED:
            request.size = size + TRUNCATED - result
            request.error = cut_off()
            return True
        request.error = OSError(-result, os.strerror(-result))
        return True
    if queue.outbound:
        return request.error is not None  # write(2) may move nothing without saying why: try again
    if queue.descriptor.kind == DATAGRAM:
        if request._goal:
            return request.error is not None  # an empty datagram adds nothing to read_full()
        request.error = None
        if request._memory is None:
            request.buffer = memoryview(b"")
        return True
    request.error = EOFError("the peer has closed its side: there is nothing more to read")
    return True


def _conclude_without_bytes(request: OpResult, result: int) -> bool | str:
    """The same for requests that move no bytes; their `error` is UNDER_WAY until something cancels them."""
    accepts = request.operation is ACCEPT
    if result >= 0:
        if isinstance(request, AcceptResult):
            request.own(result)
        request.error = None
    elif result in (CANCELLED, -errno.EINTR) or (accepts and result in _LOST_IN_THE_BACKLOG):
        if request._goal == STOPPED and request.error is UNDER_WAY:
            request.error = None
        elif request.error is UNDER_WAY:
            return False
    else:
        was_cancelled = request.error is not UNDER_WAY or request._goal == STOPPED
        request.error = OSError(-result, os.strerror(-result))
        if accepts and result in _OUT_OF_DESCRIPTORS and not was_cancelled:
            return BACK_OFF
    return True


def cut_off() -> OSError:
    """The error of a read for which a message was too large."""
    return OSError(errno.EMSGSIZE, "the message had no room: `buffer` has the beginning of it, and the rest is lost")


def result_of_message(request: OpResult, arrival: tuple[OpResult, Any]) -> OpResult:
    """Of a read that repeats, and for which a message has arrived."""
    view, sender, is_cut_off = arrival[1]
    result = OpResult()
    result.operation = READ
    result.conn = request.conn
    result.context = request.context
    result.buffer = view
    result.size = result._length = len(view)  # the view is the caller's for good
    result.error = cut_off() if is_cut_off else None
    result.more = True
    result._connection = request._connection
    result._queue = result._deadline = None
    result._sender = sender
    result._memory = arrival  # tells recover() that it is here
    return result


def close_error(connection: Connection | ClosedConnection) -> GaioError:
    """Why a connection that is closed, or is to be closed, takes no more requests."""
    reason = connection.close_reason
    assert reason is not None
    return reason(_WHY_CLOSED[reason])


def cancelled(request: OpResult) -> OpResult:
    """That request, which has not been started, as if it had been cancelled because its connection is to be closed."""
    request.error = close_error(request._queue.descriptor)
    request._result = CANCELLED
    return request
