"""The operations of epoll and kqueue, a block for each: the call that it tries, and what the outcome means.

An attempt is one system call that does not wait. Its outcome completes the request, or parks it until the kernel
reports an edge; of a request that repeats it may be an arrival, after which there is another attempt. `_readiness.py`
does the parking, and decides when to try.

Those of messages stand in `_message_attempts.py`.

To add an operation, write one method here and choose it in `_try_read` or `_try_write`. It does three things. If
`_returned` is empty it stores the request in `_attempted` and makes a call that puts its result into `_returned`. It
reads that result. It ends in `_complete` or `_park_or_complete`; of one that repeats, for what has arrived, as
`_try_next_accept` does. (A connect is the exception: it may be called again.) Requests are told apart by the type of
their memory, by the kind of their descriptor and by whether they repeat: a new one that has the same as another needs a
type of memory of its own.

Facts about interruption
    An exception such as KeyboardInterrupt can interrupt an attempt between any two bytecodes. What recv(2) returned is
    by then in `_returned`, put there by C code. recover() calls the method of the operation again: with a result in
    `_returned` it makes no call, and reads the outcome. Doing that twice changes nothing, because the view and the
    arena's fill are computed from the start of the attempt. The request goes into `completed` after all other stores
    that are of its outcome, and recover() leaves alone what is there already. An arrival goes into `arrivals` first:
    whether it is there is told by how many there were before the attempt, `_arrived`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket

from gaio.memory import Addressed, SocketAddress, Vector
from gaio.platform import DATAGRAM, FILE, LISTENER, SEQPACKET, STREAM, _libc
from gaio.platform._libc import IOV_MAX, MAX_RW_COUNT, SEND_FLAGS, address_of, msghdr
from gaio.platform._message_attempts import EAGAIN, NOT_READY, READY, MessageAttempts

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from gaio.platform import Request
    from gaio.swap import SwapArena

ARRIVALS_A_TURN = 16  # of one request that repeats; then others come first
_IN_PROGRESS = (errno.EINPROGRESS, errno.EALREADY, errno.EINTR)  # connect(2): wait until it is writable

# MSG_DONTWAIT leaves the mode of the socket as the caller set it, which matters because a duplicate of the descriptor
# shares it. Not every system with a kqueue heeds it, see there.
RECV_FLAGS = socket.MSG_DONTWAIT


class Attempts(MessageAttempts):
    """One attempt at a time. What drives them is ReadinessBackend."""

    # More attributes than an object without slots keeps as fast (30, in CPython 3.11).
    __slots__ = (
        *("completed", "swap", "_arena", "_segment", "_start", "_pointer", "_message", "_message_pointer", "_recv"),
        *("_send", "_sendmsg", "_read", "_write", "_writev", "_accept", "_connect", "_shutdown", "_getsockopt"),
        "_so_error",
    )

    sends_together = False  # each would be a system call all the same
    fell_short = False

    def __init__(self, arena: SwapArena) -> None:
        super().__init__(arena.size)
        self.completed: list[Any] = []
        self.swap = arena.storage
        self._arena = arena
        self._segment: Any = None  # the room in the arena that the attempt reads into, and
        self._start = 0  # where in it the bytes begin
        self._pointer = ctypes.c_void_p()
        self._message = msghdr()
        self._message_pointer = ctypes.c_void_p(ctypes.addressof(self._message))
        self._recv = _libc.collecting("recv", self._returned)
        self._send = _libc.collecting("send", self._returned)
        self._sendmsg = _libc.collecting("sendmsg", self._returned)
        self._read = _libc.collecting("read", self._returned)
        self._write = _libc.collecting("write", self._returned)
        self._writev = _libc.collecting("writev", self._returned)
        self._accept = _libc.accepting(self._returned)
        self._connect = _libc.collecting("connect", self._returned)
        self._shutdown = _libc.collecting("shutdown", self._returned)
        self._getsockopt = _libc.collecting("getsockopt", self._returned)
        self._so_error = ctypes.c_int()  # of the connect() under way; 0 when that has been completed

    # --- inbound --------------------------------------------------------------------------------------------

    def _try_read(self, request: Any, queue: Any) -> None:
        kind = queue.descriptor.kind
        if request.more:
            self._try_repeatedly(request, queue)
        elif kind >= DATAGRAM:
            if kind <= SEQPACKET:
                self._try_receive_message(request, queue)
            else:
                self._try_other_read(request, queue, kind)
        elif request._memory is not None:
            self._try_receive(request, queue)
        else:
            # Receive into the arena. The common case stands here in one piece, with what _show() and _complete() do,
            # because each Python call would be felt.
            if not self._returned:
                segment = self._segment = self._arena.room()
                start = self._start = segment.used
                asked = segment.size - start
                self._pointer.value = segment.address + start
                self._attempted = request
                self._recv(queue.descriptor.fd, self._pointer, asked, RECV_FLAGS)
            else:
                segment, start = self._segment, self._start
                asked = segment.size - start
            moved = self._returned[0]
            if moved <= 0:
                self._park_or_complete(request, queue, -ctypes.get_errno() if moved else 0)
                return
            if segment.batch >= 0:
                request.buffer = segment.memory[start : start + moved]
                segment.used = start + moved
            else:
                self._show(request, moved)
            if moved < asked and kind == STREAM and queue.ready == READY:
                queue.ready = NOT_READY
            request._result = moved
            queue.waiting = None
            self.completed.append(request)
            self._returned.clear()
            self._attempted = None

    def _try_other_read(self, request: Any, queue: Any, kind: int) -> None:
        """Of what is neither a stream nor has messages."""
        if kind == LISTENER:
            self._try_accept(request, queue)
        elif kind == FILE:
            self._try_read_file(request, queue)
        else:
            queue.ready = NOT_READY  # a selector: whoever reads it again has fetched all that it had to tell
            self._complete(request, queue, 1)

    def _try_receive(self, request: Any, queue: Any) -> None:
        """Receive into the caller's buffer."""
        asked = _left(request)
        if not self._returned:
            self._pointer.value = _address(request)
            self._attempted = request
            self._recv(queue.descriptor.fd, self._pointer, asked, RECV_FLAGS)
        moved = self._returned[0]
        if moved > 0:
            self._complete(request, queue, moved, asked)
        else:
            self._park_or_complete(request, queue, -ctypes.get_errno() if moved else 0)

    def _try_read_file(self, request: Any, queue: Any) -> None:
        """Read what is no socket, into the arena or into the caller's buffer."""
        in_arena = request._memory is None
        if not self._returned:
            _libc.keep_from_blocking(queue.fd)
            if in_arena:
                segment = self._segment = self._arena.room(whole=True)
                start = self._start = segment.used
                address, asked = segment.address + start, segment.size - start
            else:
                address, asked = _address(request), _left(request)
            self._pointer.value = address
            self._attempted = request
            self._read(queue.fd, self._pointer, asked)
        moved = self._returned[0]
        if moved > 0:
            if in_arena:
                self._show(request, moved)
            self._complete(request, queue, moved)
        else:
            self._park_or_complete(request, queue, -ctypes.get_errno() if moved else 0)

    def _try_accept(self, request: Any, queue: Any) -> None:
        """Any errno is the result. What EMFILE does to an accept is decided in gaio/outcome.py."""
        if not self._returned:
            _libc.keep_from_blocking(queue.fd)
            self._attempted = request
            self._accept(queue.fd)
        accepted = self._returned[0]
        if accepted >= 0:
            self._complete(request, queue, accepted)
        else:
            self._park_or_complete(request, queue, -ctypes.get_errno())

    # --- inbound, again and again -----------------------------------------------------------------------------

    def _try_repeatedly(self, request: Any, queue: Any) -> None:
        """Attempts until there is nothing more, it is the turn of others, or there is no room: see retry()."""
        kind = queue.descriptor.kind
        returned = self._returned
        queue.waiting = request
        if kind == STREAM and not (returned or self.full):
            # The common case in one piece: see _try_next_read(), which goes on where this finds another.
            segment = self._segment = self._arena.room()
            start = self._start = segment.used
            asked = segment.size - start
            if segment.batch >= 0:
                arrivals = self.arrivals
                self._arrived = len(arrivals)
                self._pointer.value = segment.address + start
                self._attempted = request
                self._recv(queue.descriptor.fd, self._pointer, asked, RECV_FLAGS)
                moved = returned[0]
                if 0 < moved < asked and queue.ready == READY:
                    arrivals.append((request, segment.memory[start : start + moved]))
                    segment.used = start + moved
                    queue.ready = NOT_READY
                    returned.clear()
                    self._attempted = None
                    return
        attempt: Callable[[Any, Any, int], bool] = self._try_next_read
        if kind == LISTENER:
            attempt = self._try_next_accept
        elif kind in (DATAGRAM, SEQPACKET):
            attempt = self._try_next_messages
        for _ in range(ARRIVALS_A_TURN):
            if not attempt(request, queue, kind):
                return
        self._unfinished[queue] = None

    def _try_next_read(self, request: Any, queue: Any, kind: int) -> bool:
        """Receive what is there into the arena; whether another attempt may bring more in this turn."""
        if not self._returned:
            segment = self._segment = self._arena.room(kind == FILE)
            if (segment.batch < 0 or self.full) and not self._last_try:
                return self._stall(queue)
            if kind == FILE:
                _libc.keep_from_blocking(queue.fd)
            start = self._start = segment.used
            asked = segment.size - start
            self._pointer.value = segment.address + start
            self._arrived = len(self.arrivals)
            self._attempted = request
            if kind == FILE:
                self._read(queue.fd, self._pointer, asked)
            else:
                self._recv(queue.descriptor.fd, self._pointer, asked, RECV_FLAGS)
        else:
            segment, start = self._segment, self._start
            asked = segment.size - start
        moved = self._returned[0]
        if moved <= 0:
            self._park_or_complete(request, queue, -ctypes.get_errno() if moved else 0)
            return False
        if len(self.arrivals) == self._arrived:
            self.arrivals.append((request, self._view(moved)))
        if segment.batch >= 0:
            segment.used = start + moved
        if moved < asked and kind == STREAM and queue.ready == READY:
            queue.ready = NOT_READY
        self._returned.clear()
        self._attempted = None
        if moved == asked and kind < DATAGRAM:
            self._unfinished[queue] = None  # a flood: let others come first
            return False
        return bool(queue.ready)

    def _try_next_accept(self, request: Any, queue: Any, _kind: int) -> bool:
        """Accept the next connection; whether there may be another."""
        if not self._returned:
            if self.full:
                return self._stall(queue)
            _libc.keep_from_blocking(queue.fd)
            self._arrived = len(self.arrivals)
            self._attempted = request
            self._accept(queue.fd)
        accepted = self._returned[0]
        if accepted < 0:
            self._park_or_complete(request, queue, -ctypes.get_errno())
            return False
        if len(self.arrivals) == self._arrived:
            self.arrivals.append((request, accepted))
        self._returned.clear()
        self._attempted = None
        return True

    # --- outbound -------------------------------------------------------------------------------------------

    def _try_write(self, request: Any, queue: Any) -> None:
        memory = request._memory
        if memory is None:
            self._try_shutdown(request, queue)
        elif type(memory) is SocketAddress:
            self._try_connect(request, queue, memory)
        elif type(memory) is Addressed:
            self._try_send_to(request, queue, memory)
        elif queue.descriptor.kind == FILE:
            self._try_write_file(request, queue)
        elif type(memory) is Vector:
            self._try_send_vector(request, queue, memory)
        else:
            self._try_send(request, queue)

    def _try_send(self, request: Any, queue: Any) -> None:
        """Send from one buffer. The common case, a whole `bytes` object, is in start() in one piece."""
        asked = _left(request)
        if not self._returned:
            self._pointer.value = _address(request)
            self._attempted = request
            self._send(queue.fd, self._pointer, asked, SEND_FLAGS)
        moved = self._returned[0]
        if moved >= 0:
            self._complete(request, queue, moved, asked)
        else:
            self._park_or_complete(request, queue, -ctypes.get_errno())

    def _try_send_vector(self, request: Any, queue: Any, vector: Vector) -> None:
        offset = request._offset
        # A count below this says that the kernel's buffer is full. A count below the whole says nothing.
        asked = min(_left(request), vector.within(offset, IOV_MAX))
        if not self._returned:
            self._message.msg_iov, count = vector.after(offset)
            self._message.msg_iovlen = min(count, IOV_MAX)
            self._attempted = request
            self._sendmsg(queue.fd, self._message_pointer, SEND_FLAGS)
        moved = self._returned[0]
        if moved >= 0:
            self._complete(request, queue, moved, asked)
        else:
            self._park_or_complete(request, queue, -ctypes.get_errno())

    def _try_write_file(self, request: Any, queue: Any) -> None:
        """Write to what is no socket, from one buffer or from several."""
        memory = request._memory
        if not self._returned:
            _libc.keep_from_blocking(queue.fd)
            if type(memory) is Vector:
                self._pointer.value, count = memory.after(request._offset)
                self._attempted = request
                self._writev(queue.fd, self._pointer, min(count, IOV_MAX))
            else:
                self._pointer.value = _address(request)
                self._attempted = request
                self._write(queue.fd, self._pointer, _left(request))
        moved = self._returned[0]
        if moved >= 0:
            self._complete(request, queue, moved)
        else:
            self._park_or_complete(request, queue, -ctypes.get_errno())

    def _try_shutdown(self, request: Any, queue: Any) -> None:
        if not self._returned:
            self._attempted = request
            self._shutdown(queue.fd, socket.SHUT_WR)
        self._complete(request, queue, -ctypes.get_errno() if self._returned[0] < 0 else 0)

    def _try_connect(self, request: Any, queue: Any, address: SocketAddress) -> None:
        """connect(2) without blocking: it is in progress until the descriptor turns writable, or fails."""
        self._attempted = request
        begun = address.begun
        if begun and queue.ready < 0:
            self._complete(request, queue, queue.ready)
            queue.ready = READY
            return
        if begun:
            # SO_ERROR tells once why it failed. A second connect(2) tells that it has succeeded.
            size = ctypes.byref(ctypes.c_uint(ctypes.sizeof(self._so_error)))
            self._getsockopt(queue.fd, socket.SOL_SOCKET, socket.SO_ERROR, ctypes.byref(self._so_error), size)
            if self._so_error.value:
                self._complete_by_so_error(request, queue)
                return
            self._returned.clear()
        else:
            os.set_blocking(queue.fd, False)  # there is no flag for this call alone
            address.begun = True
        self._connect(queue.fd, address.data, len(address.data))
        error = ctypes.get_errno() if self._returned[0] < 0 else 0
        if error == errno.ECONNABORTED and not begun:
            # Linux: the failure of the connect() before, which SO_ERROR has told already. This was the last of it.
            self._returned.clear()
            self._connect(queue.fd, address.data, len(address.data))
            error = ctypes.get_errno() if self._returned[0] < 0 else 0
        # The first call says EALREADY or EISCONN when an earlier connect(), which was cancelled, goes on or has
        # succeeded meanwhile: to wherever that one went.
        if error in _IN_PROGRESS and (begun or error != errno.EALREADY):
            self._park_or_complete(request, queue, EAGAIN)
        else:
            self._complete(request, queue, 0 if error == errno.EISCONN and begun else -error)

    def _complete_by_so_error(self, request: Any, queue: Any) -> None:
        """Keep what SO_ERROR told, also after an interruption. What connect(2) said it says again."""
        if self._so_error.value:
            self._complete(request, queue, -self._so_error.value)
            self._so_error.value = 0

    # --- outcomes -------------------------------------------------------------------------------------------

    def _complete(self, request: Any, queue: Any, result: int, asked: int = 0) -> None:
        """The request has come back. A count below `asked` means that a TCP socket is empty, or full."""
        if 0 < result < asked and queue.ready == READY and queue.descriptor.kind == STREAM:
            queue.ready = NOT_READY
        request._result = result
        queue.waiting = None  # before it is in `completed`: an edge must not start an attempt for what is finished
        self.completed.append(request)
        self._returned.clear()
        self._attempted = None

    def _show(self, request: Any, moved: int) -> None:
        """Give the request a view of what was read into the arena."""
        request.buffer = self._view(moved)
        if self._segment.batch >= 0:
            self._segment.used = self._start + moved
        else:
            request._length = moved  # not the arena's: the view is the caller's to keep

    def _view(self, moved: int) -> memoryview:
        """Of what was read into the arena, or a copy if that was a spare segment."""
        segment, start = self._segment, self._start
        view: memoryview = segment.memory[start : start + moved]
        return view if segment.batch >= 0 else memoryview(view.tobytes())


def _left(request: Request) -> int:
    """How many bytes of its memory one call is asked to move."""
    return min(request._length - request._offset, MAX_RW_COUNT)


def _address(request: Request) -> int:
    """Where the first of them is."""
    memory = request._memory
    address: int = address_of(memory) if type(memory) is bytes else memory.address
    return address + request._offset
