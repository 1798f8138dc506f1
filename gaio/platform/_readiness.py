"""A backend over a kernel that only reports readiness: try, park on EAGAIN, try again on the edge.

Shared by epoll and kqueue, both used edge-triggered: the kernel reports once when a descriptor turns readable or
writable, so that must be remembered (`Queue.ready`) until a call says EAGAIN. What is tried for each operation stands
in `_attempts.py`.

Facts about edges
    * A read that comes back short has emptied a TCP socket, and bytes that arrive later make a new edge; no call
      is needed just to hear EAGAIN. That is not so when the edge also reported the end or an error
      (EPOLLRDHUP, EPOLLHUP, EPOLLERR; EV_EOF): no edge will follow, and only reading on finds it. It is not so with
      urgent data either, where recv(2) stops at the mark with more behind it, nor with anything else than TCP: a
      datagram, a terminal's line, a Unix socket's message with rights attached all end a read early.
    * An edge without cause is harmless: the attempt says EAGAIN and the request stays parked.
    * ENOBUFS on a write means that memory, or the queue of a network interface, is short for the moment: send(2) of
      macOS and the BSDs, seldom of Linux. The descriptor may be writable all the while, so that no edge reports when it
      has passed: such writes are tried again by time.
    * So are datagrams for a Unix socket whose queue is full: no edge tells of room there, and each attempt makes one
      itself, with the memory that it took and gave back (seen on Linux 6.18).

Facts about interruption, beside those in `_attempts.py`
    A call that returned -1 moved nothing and could be made again, but the kernel tells an error of the connection
    only once; so recover(), which is called first in the thread that was interrupted, still finds it in errno.
"""

from __future__ import annotations

import ctypes
import errno
from abc import abstractmethod
from collections.abc import Mapping
from time import monotonic

from gaio.memory import SocketAddress, is_connecting
from gaio.platform import CANCELLED, DATAGRAM, FILE, SELECTOR, STREAM, _libc
from gaio.platform._attempts import Attempts
from gaio.platform._libc import SEND_FLAGS
from gaio.platform._message_attempts import EAGAIN, NOT_READY, READY, READY_UNTIL_EAGAIN

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from typing import Any

    from gaio.platform import Descriptor, Queue
    from gaio.swap import SwapArena

_ENOBUFS = -errno.ENOBUFS
ENOBUFS_BACK_OFF = 0.010  # seconds until a write that met ENOBUFS is tried again
_MADE_AGAIN = (0, errno.EAGAIN, errno.EINTR)  # errors that say nothing about the connection

# In seconds. macOS refuses a time far ahead, and epoll_wait(2) takes milliseconds in an int. A wait that ends with
# nothing once in eleven days does no harm.
LONGEST_WAIT = 1e6


class ReadinessBackend(Attempts):
    """What epoll and kqueue have in common; they add how edges are asked for and reported."""

    def __init__(self, arena: SwapArena, descriptors: Mapping[int, Descriptor], room: int) -> None:
        """`room` is the bytes of the array that the kernel writes events to."""
        super().__init__(arena)
        self._descriptors = descriptors
        events = bytearray(room)
        self._events_pointer = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(events)))
        self._events = memoryview(events)  # keeps the array exported, so its address holds
        self._counts: list[int] = []  # how many events the kernel has reported that are not dealt with yet
        self._backing_off: dict[Any, None] = {}  # the queues whose write is tried again by time, and on no edge
        self._retry_at = 0.0  # and when, by the monotonic clock

    # --- requests -------------------------------------------------------------------------------------------

    def start(self, requests: list[Any]) -> None:
        returned, completed = self._returned, self.completed
        for request in requests:
            queue = request._queue
            if not queue.ready:
                if request._memory is not None or not queue.outbound:
                    queue.waiting = request
                    continue
                queue.ready = READY  # shutdown(2) needs no room, and a write after it needs none to fail
            if queue.outbound:
                if type(request._memory) is not bytes or request._offset or queue.descriptor.kind == FILE:
                    self._try_write(request, queue)
                    continue
                # _try_send() and _complete() of the common case in one piece: they are a third of the time that epoll
                # takes for a small message.
                length = request._length
                self._attempted = request
                # ctypes passes bytes as their address.
                self._send(queue.descriptor.fd, request._memory, length, SEND_FLAGS)
                moved = returned[0]
                if moved < 0:
                    self._park_or_complete(request, queue, -ctypes.get_errno())
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
                queue.waiting = request  # a read would take the error that connect() is to get: see readable()

    def cancel(self, request: Any) -> None:
        queue = request._queue
        if queue.waiting is not request:
            return  # it has come back already
        # What is there already counts as arrived in time: look once more before giving up.
        if queue.outbound:
            queue.ready = queue.ready or READY
            self._try_write(request, queue)
        elif queue.descriptor.kind == SELECTOR:
            pass  # it waits, so it is not readable: there is no call that would tell more
        elif not is_connecting(queue.descriptor):
            queue.ready = queue.ready or READY
            self._last_try = True
            self._try_read(request, queue)
            self._last_try = False
        if queue.outbound:
            queue.ready = READY  # what follows may need no room, as another connect(2): it must not wait for an edge
        if queue.waiting is request:
            self._complete(request, queue, CANCELLED)

    def recover(self) -> list[Any]:
        error = ctypes.get_errno()
        request: Any = self._attempted
        if request is not None and not (self.completed and self.completed[-1] is request):
            queue = request._queue
            if type(request._memory) is SocketAddress:
                self._complete_by_so_error(request, queue)
            elif self._returned and self._returned[0] >= 0:
                (self._try_write if queue.outbound else self._try_read)(request, queue)
            elif self._returned and not (error in _MADE_AGAIN or (error == errno.ENOBUFS and queue.outbound)):
                self._complete(request, queue, -error)
        self._last_try = False
        self._unfinished.clear()  # started again, they find that they are ready still
        self._so_error.value = 0  # an interruption may come between its use and this
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

    def recycle(self) -> None:
        self._arena.recycle()
        self._stalled = False

    recycle_unused = recycle  # which then changes nothing: room is taken only by bytes that come

    def all_taken(self) -> bool:
        return True  # send(2) copies

    def unfinished(self) -> bool:
        return bool(self._backing_off or self._unfinished)

    # --- parking --------------------------------------------------------------------------------------------

    def _park_or_complete(self, request: Any, queue: Any, result: int) -> None:
        if queue.ready < 0:
            if result == EAGAIN or (not result and queue.descriptor.kind != DATAGRAM):
                # There is nothing more to read, and the error that was reported says why.
                reported = queue.ready
                self._complete(request, queue, reported)
                queue.ready = READY_UNTIL_EAGAIN
                return
            if result:
                queue.ready = READY_UNTIL_EAGAIN  # the error has come by itself
        if result == EAGAIN:
            queue.ready = NOT_READY
        elif result == _ENOBUFS and queue.outbound:
            if not self._backing_off:
                self._retry_at = monotonic() + ENOBUFS_BACK_OFF
            self._backing_off[queue] = None
        else:
            self._complete(request, queue, result)
            return
        queue.waiting = request
        self._returned.clear()
        self._attempted = None

    def retry(self, timeout: float | None) -> float | None:
        """Before a wait: try what waits for no edge, if it is time. Returns how long to wait."""
        if self._unfinished and not (self._stalled or self.full):
            queues, self._unfinished = list(self._unfinished), {}
            for place, queue in enumerate(queues):
                request = queue.waiting
                if request is not None and request.more:
                    self._try_repeatedly(request, queue)
                if self._stalled:
                    # Those that found no room are the first the next time: floods, which go on, have had their turn.
                    self._unfinished = {**dict.fromkeys(queues[place:]), **self._unfinished}
                    break
            if self.arrivals or self.completed or (self._unfinished and not self._stalled):
                timeout = 0
        return self._retry_writes(timeout) if self._backing_off else timeout

    def _retry_writes(self, timeout: float | None) -> float | None:
        """Try those that met ENOBUFS."""
        remaining = self._retry_at - monotonic()
        if remaining <= 0:
            queues, self._backing_off = self._backing_off, {}
            for queue in queues:
                if queue.waiting is not None:
                    self._try_write(queue.waiting, queue)
            if self.completed:
                return 0
            if not self._backing_off:
                return timeout
            remaining = ENOBUFS_BACK_OFF
        return remaining if timeout is None else min(timeout, remaining)

    # --- edges ----------------------------------------------------------------------------------------------

    def readable(self, descriptor: Descriptor, until_eagain: int) -> None:
        """The edge came: bytes, a connection, the end or an error can be read."""
        queue: Queue = descriptor.reads
        if until_eagain:
            queue.ready = READY_UNTIL_EAGAIN
            if is_connecting(descriptor):
                self.writable(descriptor)  # connect() gets the error, which is told once, and no read takes it
        elif not queue.ready:
            queue.ready = READY
        if queue.waiting is not None and not (until_eagain and is_connecting(descriptor)):
            self._try_read(queue.waiting, queue)

    def failed(self, descriptor: Descriptor, error: int) -> None:
        """The edge came with an error of the socket, which a call may not find any more."""
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
            if queue.waiting is not None and queue not in self._backing_off:
                self._try_write(queue.waiting, queue)

    def _wait_failed(self, name: str) -> None:
        """The wait returned -1. A signal is no error: its handler runs now, and the core works out how much is left of
        the timeout.
        """
        number = ctypes.get_errno()
        self._counts.clear()
        if number != errno.EINTR:
            raise _libc.failed(name, number)

    @abstractmethod
    def _take_events(self) -> None:
        """Deal with as many events as `_counts` says, and empty that."""

    @abstractmethod
    def wake(self) -> None: ...
