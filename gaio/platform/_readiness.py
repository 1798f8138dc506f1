"""Requests over a kernel that only tells readiness: try, park on EAGAIN, try again on the edge.

Shared by epoll and kqueue, both used edge-triggered: the kernel tells once when a descriptor turns readable or
writable, so that must be remembered (`Queue.ready`) until a call says EAGAIN.

Facts about edges
    * A read that comes back short has emptied a TCP socket, and bytes that arrive later make a new edge; no call
      is needed just to hear EAGAIN. That is not so when the edge also told of the end or of an error
      (EPOLLRDHUP, EPOLLHUP, EPOLLERR; EV_EOF): no edge will follow, and only reading on finds it. Nor with
      urgent data, where recv(2) stops at the mark with more behind it. Nor for anything else than TCP: a datagram,
      a terminal's line, a Unix socket's message with rights attached all end a read early.
    * An edge without cause is harmless: the attempt says EAGAIN and the request stays parked.
    * ENOBUFS on a write tells that memory, or the queue of a network interface, is short for the moment: send(2) of
      macOS and the BSDs, seldom of Linux. The descriptor may be writable all the while, so that no edge tells when it
      has passed: such writes are tried again by time.

Facts about interruption
    An attempt can be cut short between any two bytecodes. What recv(2) returned is by then in `_returned`, put
    there by C code; `_conclude` turns it into a result, and doing it twice changes nothing: the view and the
    arena's fill are computed from the start of the attempt, and `completed` takes a request only once.
    A call that returned -1 moved nothing and could be made again, but the kernel tells an error of the connection
    only once; so recover(), which is called first in the thread that was interrupted, still finds it in errno.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Mapping
from time import monotonic

from gaio.memory import SocketAddress, Vector, is_connecting
from gaio.platform import CANCELLED, DATAGRAM, FILE, LISTENER, SOCKET, STREAM, _libc
from gaio.platform._libc import IOV_MAX, address_of, msghdr

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from typing import Any

    from gaio.platform import Descriptor, Queue, Request
    from gaio.swap import Segment, SwapArena

# Queue.ready
NOT_READY = 0
READY = 1
READY_FOR_GOOD = 2  # the end, an error or urgent data was told: only EAGAIN takes the readiness back
# -errno: the same, and this error was told with it, in case that no read finds it behind the bytes

_EAGAIN = -errno.EAGAIN
_IN_PROGRESS = (errno.EINPROGRESS, errno.EALREADY, errno.EINTR)  # connect(2): wait until it is writable
_MADE_AGAIN = (0, errno.EAGAIN, errno.EINTR)  # errors that say nothing about the connection
_ENOBUFS = -errno.ENOBUFS
ENOBUFS_PAUSE = 0.010  # seconds until a write that met ENOBUFS is tried again

# In seconds. macOS refuses a time far ahead, and epoll_wait(2) takes milliseconds in an int. Nobody minds a wait that
# ends with nothing once in eleven days.
LONGEST_WAIT = 1e6

# A peer that has gone must not kill the process: SIGPIPE is suppressed per call, whatever the application has done with
# the signal. write(2) to a pipe has no such flag; there it matters that Python ignores SIGPIPE from the start.
# MSG_DONTWAIT leaves the mode of the socket as the caller set it, which matters because a duplicate of the descriptor
# shares it. Not every system with a kqueue heeds it, see there.
_RECV_FLAGS = socket.MSG_DONTWAIT
_SEND_FLAGS = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)


class ReadinessBackend(ABC):
    """What epoll and kqueue have in common; they add how edges are asked for and reported."""

    __slots__ = (
        "completed",
        "_descriptors",
        "_counts",
        "_arena",
        "_short_of_memory",
        "_next_try",
        "_returned",
        "_attempted",
        "_segment",
        "_start",
        "_asked",
        "_pointer",
        "_message",
        "_message_pointer",
        "_recv",
        "_send",
        "_sendmsg",
        "_read",
        "_write",
        "_writev",
        "_accept",
        "_connect",
        "_shutdown",
        "_getsockopt",
        "_so_error",
        "_so_error_size",
        "_so_error_pointer",
        "_so_error_size_pointer",
    )

    def __init__(self, arena: SwapArena, descriptors: Mapping[int, Descriptor]) -> None:
        self.completed: list[Any] = []
        self._descriptors = descriptors
        self._counts: list[int] = []  # how many events the kernel has told of that are not dealt with yet
        self._arena = arena
        self._short_of_memory: dict[Any, None] = {}  # the queues whose write met ENOBUFS and is to be tried again
        self._next_try = 0.0  # and when, by the monotonic clock
        self._returned: list[int] = []  # what the call of the attempt under way returned, put there by C code
        self._attempted: Request | None = None
        self._segment: Segment | None = None  # of the swap read under way, and
        self._start = 0  # where in it the bytes begin
        self._asked = 0  # bytes the attempt asked for
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
        self._so_error = ctypes.c_int()
        self._so_error_size = ctypes.c_uint(ctypes.sizeof(ctypes.c_int))
        self._so_error_pointer = ctypes.c_void_p(ctypes.addressof(self._so_error))
        self._so_error_size_pointer = ctypes.c_void_p(ctypes.addressof(self._so_error_size))

    # --- requests -------------------------------------------------------------------------------------------

    def start(self, requests: list[Any]) -> None:
        returned, completed = self._returned, self.completed
        for request in requests:
            queue = request._queue
            if not queue.ready:
                if request._memory is not None or not queue.outbound:
                    queue.waiting = request
                    continue
                queue.ready = READY  # shutdown(2) needs no room, nor does a write after it, to fail
            if queue.outbound:
                if type(request._memory) is not bytes or request._offset or queue.descriptor.kind == FILE:
                    self._try_write(request, queue)
                    continue
                # _try_write(), _conclude() and _bring_back() of the common case in one piece: they are a third of the
                # time that epoll takes for a small message.
                length = request._length
                self._attempted = request
                self._send(queue.fd, request._memory, length, _SEND_FLAGS)
                moved = returned[0]
                if moved < 0:
                    self._not_moved(request, queue, -ctypes.get_errno())
                    continue
                if moved < length and queue.ready == READY and queue.descriptor.kind == STREAM:
                    queue.ready = NOT_READY
                request._result = moved
                queue.waiting = None
                completed.append(request)
                returned.clear()
                self._attempted = None
            elif queue.ready == READY or not is_connecting(queue.descriptor):
                self._try_read(request, queue)
            else:
                queue.waiting = request  # why the connection cannot be made is not for a read to hear: see readable()

    def cancel(self, request: Any) -> None:
        queue = request._queue
        if queue.waiting is not request:
            return  # it has come back already
        # What is there already counts as arrived in time: look once more before giving up.
        if queue.outbound:
            queue.ready = queue.ready or READY
            self._try_write(request, queue)
        elif not is_connecting(queue.descriptor):
            queue.ready = queue.ready or READY
            self._try_read(request, queue)
        if queue.waiting is request:
            self._bring_back(request, queue, CANCELLED)
        if queue.outbound:
            queue.ready = READY  # what follows may need no room, as another connect(2): it must not wait for an edge

    def recover(self) -> list[Any]:
        request: Any = self._attempted
        if request is not None:
            error = ctypes.get_errno()
            if type(request._memory) is SocketAddress:
                if self._so_error.value:
                    self._bring_back(request, request._queue, -self._so_error.value)
                    self._so_error.value = 0
            elif self._returned and self._returned[0] >= 0:
                if request._queue.outbound:  # start() does not say what it asked for
                    self._asked = min(request._length - request._offset, _libc.MAX_RW_COUNT)
                self._conclude(request, request._queue)
            elif self._returned and not (error in _MADE_AGAIN or (error == errno.ENOBUFS and request._queue.outbound)):
                self._bring_back(request, request._queue, -error)
            self._returned.clear()
            self._attempted = None
        if self._counts and self._counts[0] > 0:
            self._take_events()  # some for the second time, which only costs an attempt
        self._counts.clear()
        for descriptor in list(self._descriptors.values()):
            for queue in (descriptor.reads, descriptor.writes):
                if queue is not None:
                    queue.waiting = None  # it is started again, or ended: an edge must not find it
        return []  # nothing is ever left with the kernel

    def lend(self) -> None:
        self._arena.lend()
        if self._short_of_memory:
            self.wake()  # it is to be tried again by time: a loop that this is nested in must come back for that

    def recycle(self) -> None:
        self._arena.recycle()

    recycle_unused = recycle  # which then changes nothing: room is taken only by bytes that come

    @abstractmethod
    def wake(self) -> None: ...

    @abstractmethod
    def _take_events(self) -> None:
        """Go through the events that `_counts` tells of, and empty it."""

    # --- edges ----------------------------------------------------------------------------------------------

    def readable(self, descriptor: Descriptor, for_good: int) -> None:
        """The edge came: bytes, a connection, the end or an error can be read."""
        queue: Queue = descriptor.reads
        if for_good:
            queue.ready = READY_FOR_GOOD
            if is_connecting(descriptor):
                self.writable(descriptor)  # why a connection cannot be made is told once, and not for a read to hear
        elif not queue.ready:
            queue.ready = READY
        if queue.waiting is not None and not (for_good and is_connecting(descriptor)):
            self._try_read(queue.waiting, queue)

    def failed(self, descriptor: Descriptor, error: int) -> None:
        """The edge came with an error of the socket, which a call may not find any more: this was the telling."""
        if is_connecting(descriptor):
            writes = descriptor.writes
            writes.ready = error  # the connection that is being made has failed
            self._try_write(writes.waiting, writes)
        else:
            descriptor.reads.ready = error
        self.readable(descriptor, 0)

    def writable(self, descriptor: Descriptor) -> None:
        """The edge came: there is room again, or an error that a write will find."""
        queue: Queue | None = descriptor.writes
        if queue is not None:
            queue.ready = READY
            if queue.waiting is not None:
                self._try_write(queue.waiting, queue)

    def try_again(self, timeout: float | None) -> float | None:
        """Before a wait while something is short of memory: try that if it is time; returns how long to wait."""
        remaining = self._next_try - monotonic()
        if remaining <= 0:
            queues, self._short_of_memory = self._short_of_memory, {}
            for queue in queues:
                if queue.waiting is not None:
                    self._try_write(queue.waiting, queue)
            if self.completed:
                return 0
            if not self._short_of_memory:
                return timeout
            remaining = ENOBUFS_PAUSE
        return remaining if timeout is None else min(timeout, remaining)

    # --- attempts -------------------------------------------------------------------------------------------

    def _try_read(self, request: Any, queue: Any) -> None:
        kind = queue.descriptor.kind
        if kind == LISTENER:
            self._try_accept(request, queue)
            return
        memory = request._memory
        if memory is None:
            segment = self._segment = self._arena.room(kind >= DATAGRAM)
            start = self._start = segment.used
            self._pointer.value = segment.address + start
            asked = segment.size - start
            if kind <= SOCKET:
                # The common case, in one piece as in start().
                self._asked = asked
                self._attempted = request
                self._recv(queue.fd, self._pointer, asked, _RECV_FLAGS)
                moved = self._returned[0]
                if moved > 0 and segment.batch >= 0:
                    request.buffer = segment.memory[start : start + moved]
                    segment.used = start + moved
                    if moved < asked and kind == STREAM and queue.ready == READY:
                        queue.ready = NOT_READY
                    request._result = moved
                    queue.waiting = None
                    self.completed.append(request)
                    self._returned.clear()
                    self._attempted = None
                elif moved < 0:
                    self._not_moved(request, queue, -ctypes.get_errno())
                else:
                    self._conclude(request, queue)
                return
        else:
            offset = request._offset
            self._pointer.value = memory.address + offset
            asked = min(request._length - offset, _libc.MAX_RW_COUNT)
        if kind == FILE:
            _keep_from_blocking(queue)
        self._asked = asked
        self._attempted = request
        if kind == FILE:
            self._read(queue.fd, self._pointer, asked)
        else:
            self._recv(queue.fd, self._pointer, asked, _RECV_FLAGS)
        if self._returned[0] < 0:
            self._not_moved(request, queue, -ctypes.get_errno())
        else:
            self._conclude(request, queue)

    def _try_accept(self, request: Any, queue: Any) -> None:
        _keep_from_blocking(queue)
        self._attempted = request
        self._accept(queue.fd)
        if self._returned[0] < 0:
            self._not_moved(request, queue, -ctypes.get_errno())
        else:
            self._bring_back(request, queue, self._returned[0])

    def _try_write(self, request: Any, queue: Any) -> None:
        memory = request._memory
        if memory is None:
            self._attempted = request
            self._shutdown(queue.fd, socket.SHUT_WR)
            self._bring_back(request, queue, -ctypes.get_errno() if self._returned[0] < 0 else 0)
            return
        if type(memory) is SocketAddress:
            self._try_connect(request, queue, memory)
            return
        offset = request._offset
        asked = self._asked = min(request._length - offset, _libc.MAX_RW_COUNT)
        is_file = queue.descriptor.kind == FILE
        if is_file:
            _keep_from_blocking(queue)
        self._attempted = request
        if type(memory) is Vector:
            address, count = memory.after(offset)
            if count > IOV_MAX:
                # A count that is short of this says that the buffer is full; short of the whole it would say nothing.
                asked = self._asked = min(asked, memory.within(offset, IOV_MAX))
            if is_file:
                self._pointer.value = address
                self._writev(queue.fd, self._pointer, min(count, IOV_MAX))
            else:
                self._message.msg_iov = address
                self._message.msg_iovlen = min(count, IOV_MAX)
                self._sendmsg(queue.fd, self._message_pointer, _SEND_FLAGS)
        else:
            data: Any = memory  # ctypes passes a bytes object as the address of its first byte
            if type(memory) is not bytes:
                data = self._pointer
                data.value = memory.address + offset
            elif offset or asked != len(memory):
                data = self._pointer
                data.value = address_of(memory) + offset
            if is_file:
                self._write(queue.fd, data, asked)
            else:
                self._send(queue.fd, data, asked, _SEND_FLAGS)
        if self._returned[0] < 0:
            self._not_moved(request, queue, -ctypes.get_errno())
        else:
            self._conclude(request, queue)

    def _try_connect(self, request: Any, queue: Any, address: SocketAddress) -> None:
        """connect(2) without blocking: it is in progress until the descriptor turns writable, or fails."""
        self._attempted = request
        begun = address.begun
        if begun and queue.ready < 0:
            self._bring_back(request, queue, queue.ready)
            queue.ready = READY
            return
        if begun:
            # Why it failed is told, and forgotten, by SO_ERROR; connect(2) again tells that it has succeeded.
            self._getsockopt(
                queue.fd, socket.SOL_SOCKET, socket.SO_ERROR, self._so_error_pointer, self._so_error_size_pointer
            )
            if self._so_error.value:
                self._bring_back(request, queue, -self._so_error.value)
                self._so_error.value = 0
                return
            self._returned.clear()
        else:
            os.set_blocking(queue.fd, False)  # there is no flag for this call alone
            address.begun = True
        self._connect(queue.fd, address.data, len(address.data))
        error = ctypes.get_errno() if self._returned[0] < 0 else 0
        if error == errno.ECONNABORTED and not begun:
            # Linux: the failure of the attempt before, which SO_ERROR has told already. This was the last of it.
            self._returned.clear()
            self._connect(queue.fd, address.data, len(address.data))
            error = ctypes.get_errno() if self._returned[0] < 0 else 0
        # EALREADY or EISCONN of the first call: another one, which was cut off, goes on or has succeeded meanwhile, and
        # to wherever that was.
        if error in _IN_PROGRESS and (begun or error != errno.EALREADY):
            self._not_moved(request, queue, _EAGAIN)
        else:
            self._bring_back(request, queue, 0 if error == errno.EISCONN and begun else -error)

    def _conclude(self, request: Any, queue: Any) -> None:
        moved = self._returned[0]
        if not moved:
            if queue.ready < 0 and queue.descriptor.kind != DATAGRAM:
                self._tell(request, queue)
                return
        elif request._memory is None and queue.descriptor.kind != LISTENER:
            segment = self._segment
            assert segment is not None
            start = self._start
            if segment.batch >= 0:
                request.buffer = segment.memory[start : start + moved]
                segment.used = start + moved
            else:
                request.buffer = memoryview(bytearray(segment.memory[:moved]))
                request._length = moved  # not the arena's: the view is the caller's for good
        if 0 < moved < self._asked and queue.ready == READY and queue.descriptor.kind == STREAM:
            queue.ready = NOT_READY
        self._bring_back(request, queue, moved)

    def _tell(self, request: Any, queue: Any) -> None:
        """There is nothing more to read, but an error was told: that is why."""
        told = queue.ready
        self._bring_back(request, queue, told)
        queue.ready = READY_FOR_GOOD

    def _not_moved(self, request: Any, queue: Any, error: int) -> None:
        if queue.ready < 0:
            if error == _EAGAIN:
                self._tell(request, queue)
                return
            queue.ready = READY_FOR_GOOD  # the error has come by itself
        if error == _EAGAIN:
            queue.ready = NOT_READY
        elif error == _ENOBUFS and queue.outbound:
            if not self._short_of_memory:
                self._next_try = monotonic() + ENOBUFS_PAUSE
            self._short_of_memory[queue] = None
        else:
            self._bring_back(request, queue, error)
            return
        queue.waiting = request
        self._returned.clear()
        self._attempted = None

    def _bring_back(self, request: Any, queue: Any, result: int) -> None:
        request._result = result
        queue.waiting = None  # before it is in `completed`: an edge must not start an attempt for what is finished
        completed = self.completed
        if not (completed and completed[-1] is request):
            completed.append(request)
        self._returned.clear()
        self._attempted = None


def _keep_from_blocking(queue: Queue) -> None:
    """Of what has no MSG_DONTWAIT, before each attempt: O_NONBLOCK belongs to all who share it, and a shell that gets
    its terminal back, or another server that is done with the same listener, clears it. The attempt would then wait
    with the interpreter lock held.
    """
    os.set_blocking(queue.fd, False)
