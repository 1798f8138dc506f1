"""Requests on their way into the ring, and those that are held outside it until something changes.

    start()   turns requests into entries and makes them the kernel's, or makes their call at once: _submit()
    cancel()  by an entry of its own, or at once where the kernel does not have the request

What comes back is the business of backend.py, of which this is the half that the kernel reads.

Facts about io_uring that shaped this file
    * Closing a descriptor cancels nothing: a receive that is pending still writes into its buffer
      (io_uring_cancelation.7). So a request ends by its own CQE only (a multishot receive by the last of them), and the
      core closes after that.
    * `user_data` names a queue and not a request: a queue has one request in flight, and the next one starts only
      when the CQE has come and, if it was cancelled, that of the cancellation too. So neither a CQE nor a
      cancellation that comes late can hit a later request. The numbers of closed descriptors' queues are never used
      again.
"""

from __future__ import annotations

import errno
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial

from gaio.memory import is_connecting
from gaio.platform import CANCELLED, FILE, SOCKET, _libc
from gaio.platform._eventfd import Wakeup
from gaio.platform._io_uring import abi, operations
from gaio.platform._io_uring.abi import SQE
from gaio.platform._io_uring.buffers import ProvidedBuffers
from gaio.platform._io_uring.operations import PAUSED, POLL, POLLED, SEND, UNKNOWN
from gaio.platform._io_uring.ring import CQ_ENTRIES, ENTRIES, MASK32, Ring
from gaio.platform._libc import BYTES_AT, SEND_FLAGS
from gaio.platform._writability import Writability

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from typing import Any

    from gaio.platform import Descriptor, Sends
    from gaio.swap import SwapArena

# user_data: the token of the queue (`Queue.token`). Beyond those:
CANCELLATION = 1 << 62  # of the queue named by the rest
SENT = 1 << 61  # of the message in that place, see send_all()
WAKE = 0  # tokens begin with 2
WRITABLE = 1

_ASYNC_CANCEL = abi.first_word(abi.IORING_OP_ASYNC_CANCEL)

open_rings: set[int] = set()  # the descriptors of this process's
last_closed = [-math.inf]  # when one of them was closed, by the monotonic clock


class Submission(ABC):
    """The way in. What drives it is IoUringBackend."""

    sends_together = True

    def __init__(
        self,
        arena: SwapArena,
        descriptors: Mapping[int, Descriptor],
        entries: int = ENTRIES,  # two at least: a read takes as many
        cq_entries: int = CQ_ENTRIES,
    ) -> None:
        self.completed: list[Any] = []
        self.arrivals: list[tuple[Any, Any]] = []
        self.full = False
        self._sends: Any = None  # what send_all() was given, until all_sent() has said that it is done
        self._told = -1  # the CQ tail when the kernel had taken all of that, -1 until then
        self.fell_short = False
        self._again: list[Any] = []  # requests that repeat, to be started with the next wait()
        self._descriptors = descriptors
        # Requests held here -> whether for want of a swap buffer, or as a multishot receive that was paused; else until
        # the next wait(), for the end of a cancellation or of a connect(), or while too much is undelivered.
        self._parked: dict[Any, bool] = {}
        self._unpark = False  # something has changed for those
        self._cancelling: set[int] = set()  # queue tokens with a cancellation under way
        self._missed: list[Any] = []  # requests that a cancellation did not find
        self._last_tries: dict[Any, None] = {}  # parked ones that are being cancelled
        self._armed: set[int] = set()  # WAKE, WRITABLE: the polls under way
        self._woken = False  # a wake-up has been taken out of the ring, for the wait() under way or the next one
        self._blocked: dict[int, Any] = {}  # by descriptor, the write that waits for room
        self._some_writable = False  # one of those descriptors is, or was

        self.ring = Ring()
        try:
            self.ring.open(entries, cq_entries)
            self.buffers = ProvidedBuffers(self.ring, arena.size)
            self.swap = self.buffers.storage
            calls = operations.SystemCalls(self.completed, self.arrivals, self._again, arena.size)
            self.operations = operations.Operations(calls, self.buffers.read_size)
            self._messages = self.operations.send.messages
            self._send_unless_short = operations.SendUnlessShort(self.ring.features)
            # CQ head; provided buffers consumed until there, and bytes of the one that is being consumed
            self._reaped = (self.ring.cq_head_word[0], 0, 0)
            # The CQ head where _reap() has begun, how many arrivals there were, and `_cancelling`.
            self._begun: tuple[int, int, set[int]] = (-1, 0, set())
            self._wakeup = Wakeup()
            self._writability = Writability(self.ring.to_close)
            # What may be refused, by a seccomp filter say, is not to be found out in the middle of something.
            self._writability.watch(self._wakeup.fd)
            self._writability.leave_alone(self._wakeup.fd)
            self.ring.enter()
            open_rings.add(self.ring.fd)
        except BaseException:
            open_rings.difference_update(self.ring.to_close)
            self.ring.close()
            raise

    # --- descriptors ----------------------------------------------------------------------------------------

    def register(self, descriptor: Descriptor) -> None:
        if descriptor.kind == FILE and sys.platform == "linux":  # it always is; the type checker has to be told
            with _libc.epoll() as poller:
                poller.register(descriptor.fd)  # EPERM for what cannot be polled, as regular files

    def unregister(self, descriptor: Descriptor) -> None:
        if self._sends is not None and descriptor.token in self._descriptors:
            self._make_room()  # no request tells of its messages, and the number may be a stranger's next
        self._writability.leave_alone(descriptor.fd)  # the ring knows descriptors only through requests

    # --- requests on their way in ---------------------------------------------------------------------------

    def start(self, requests: list[Any]) -> None:
        ring = self.ring
        # A read may take two entries: it is linked to a poll.
        if 2 * len(requests) <= ring.room():
            self._submit(requests)
            return
        at_once = ring.sq_entries // 2
        for index in range(0, len(requests), at_once):
            self._make_room()
            self._submit(requests[index : index + at_once])

    def send_all(self, sends: Sends) -> None:
        ring = self.ring
        if self._sends is not None and self._sends is not sends:  # an exception came between it and its end
            while not self._has_told():  # the kernel needs its messages until then, and its outcomes have these places
                ring.enter()
                self._reap()
        self._sends = sends
        self._told = -1
        while sends.begun < len(sends.messages):
            messages = sends.messages[sends.begun : sends.begun + ring.sq_entries]
            if len(messages) > ring.room():
                self._make_room()
            entries = self._send_unless_short.entries(messages, SENT + sends.begun)
            ring.batch = [partial(setattr, sends, "begun", sends.begun)]
            sends.begun += len(messages)
            ring.push(entries)

    def all_sent(self) -> bool:
        if not self._has_told():
            return False
        self._sends = None
        self.fell_short = False
        return True

    def _has_told(self) -> bool:
        """Whether the kernel has taken the messages, and what it had told by then has been reaped.

        A message does not wait, and the CQEs of entries stand in the CQ before these are taken from the SQ. What others
        send meanwhile may fill the CQ again and again: that is not waited for.
        """
        ring = self.ring
        if self._told < 0:
            if ring.ksq_head[0] != ring.sq_tail or ring.ksq_flags[0] & abi.IORING_SQ_CQ_OVERFLOW:
                return False
            self._told = ring.kcq_tail[0]
        return (self._reaped[0] - self._told) & MASK32 < 1 << 31

    def _make_room(self) -> None:
        """Have the kernel take what the SQ holds."""
        while self.ring.ksq_head[0] != self.ring.sq_tail:
            self.ring.enter()
            self._reap()

    def _submit(self, requests: list[Any]) -> None:
        """Write the entries of requests for which there is room, and make them the kernel's."""
        self.ring.batch = requests
        entries: list[bytes] = []
        append = entries.append
        pack = SQE.pack
        uncommon = self._parked or self._cancelling
        for request in requests:
            queue = request._queue
            memory = request._memory
            # The two common cases come first: a swap read, whose entry is always the same, and a whole bytes object.
            if memory is None and queue.entry and queue.ready <= UNKNOWN and not uncommon:
                append(queue.entry)
            elif type(memory) is bytes and queue.entry and not (request._offset or queue.ready >= POLL or uncommon):
                descriptor = queue.descriptor
                address, token = id(memory) + BYTES_AT, descriptor.token + 1
                append(pack(SEND, descriptor.fd, 0, address, request._length, SEND_FLAGS, token, 0))
            else:
                if queue.token in self._cancelling or (not queue.outbound and is_connecting(queue.descriptor)):
                    self._parked[request] = False
                    continue
                self._parked.pop(request, None)
                entry = self.operations.of(request, queue).entry(request, queue)
                if not entry:
                    if entry is None:
                        self._wait_until_writable(request, queue)
                    continue
                append(entry)
            queue.waiting = request
        self.ring.push(entries)

    def cancel(self, request: Any) -> None:
        queue = request._queue
        if queue.ready == PAUSED:
            queue.ready = UNKNOWN  # it is to end, and not only for now
        self._cancel(request, queue)

    def _cancel(self, request: Any, queue: Any) -> None:
        if not self.ring.room():
            self._make_room()  # by which the request may come back
        if queue.waiting is not request:
            # The kernel does not have it.
            if request in self._again:
                self._try_once_more(request, queue)
                self._again.remove(request)
            elif request in self._parked or self._blocked.get(queue.fd) is request:
                self._try_once_more(request, queue)
            return
        if queue.token not in self._cancelling:
            entry = SQE.pack(_ASYNC_CANCEL, -1, 0, queue.token, 0, 0, CANCELLATION | queue.token, 0)
            self._push_own(entry, self._cancelling, queue.token)

    def _try_once_more(self, request: Any, queue: Any) -> None:
        """Start a request that waits here and is being cancelled: what is there already counts as arrived in time.

        Nobody cancels it again, so that goes with it, see wait(); most come back with -EAGAIN before.
        """
        if not self.operations.of(request, queue).moves_bytes or is_connecting(queue.descriptor):
            self._come_back(request, CANCELLED)
            self._parked.pop(request, None)  # interrupted before this, recover() does it: nobody comes here again
            return
        self._last_tries[request] = None  # first: interrupted after this, it is cancelled all the same
        if self._parked.get(request) or (request.more and queue.descriptor.kind <= SOCKET):
            operations.give_own_memory(request, self.buffers.read_size)
        queue.ready = POLLED
        self._parked[request] = False
        if queue.outbound:
            self._blocked.pop(queue.fd, None)
        self._unpark = True

    def _come_back(self, request: Any, result: int) -> None:
        request._result = result
        self.completed.append(request)

    # --- requests that repeat ---------------------------------------------------------------------------------

    def _go_on(self, request: Any, queue: Any, ready: int) -> None:
        """An attempt of a request that repeats has ended, and what came of it is in `arrivals`."""
        if queue.token not in self._cancelling and request not in self._last_tries:
            self._again.append(request)
        elif queue.ready == PAUSED:
            self._parked[request] = False
        else:
            self._come_back(request, CANCELLED)
        if ready == UNKNOWN:
            queue.entry = b""  # it may be that of a receive that does not repeat: see ReceiveRepeatedly
        queue.ready = ready
        queue.waiting = None

    def _start_again(self) -> None:
        requests = self._again.copy()
        if self.full:
            self._parked.update(dict.fromkeys(requests, False))
        self._again.clear()
        if not self.full:
            self.start(requests)

    def _pause(self) -> None:
        """Stop multishot receives that have just brought something, until the next recycle()."""
        for request, _ in self.arrivals:
            queue = request._queue
            if queue is not None and queue.waiting is request and queue.ready == UNKNOWN:
                queue.ready = PAUSED
                self._cancel(request, queue)

    # --- writes that wait for room --------------------------------------------------------------------------

    def _wait_until_writable(self, request: Any, queue: Any) -> None:
        queue.ready = POLL
        if request in self._last_tries:  # a write of a file, which has said so at once: nobody would cancel it again
            self._come_back(request, -errno.EAGAIN)
            return
        self._blocked[queue.fd] = request
        try:
            self._writability.watch(queue.fd)
        except OSError as error:
            self._come_back(request, -(error.errno or errno.EIO))
            del self._blocked[queue.fd]

    def _go_on_writing(self) -> None:
        self._some_writable = False
        writable = self._writability.look()
        requests = []
        for fd in writable:
            request = self._blocked.pop(fd, None)  # from here on with neither, until it is started: see recover()
            if request is not None:
                request._queue.ready = POLLED
                requests.append(request)
        for fd in writable:
            self._writability.leave_alone(fd)  # before: what finds no room again is watched again
        self.start(requests)

    # --- requests that are held -----------------------------------------------------------------------------

    def _start_held(self) -> None:
        """Start what is held here, if it is time."""
        if self._again:
            self._start_again()
        if self._parked and (self._unpark or self._buffers_are_left()):
            self._unpark = False
            self.start(self._startable())
        if self._last_tries:
            # Behind their entries, of which one may be the poll of a file.
            self._missed += [request for request in self._last_tries if request not in self._parked]
            self._last_tries = {request: None for request in self._last_tries if request in self._parked}

    def _buffers_are_left(self) -> bool:
        """Whether reads are parked for want of a swap buffer though there are some.

        Those that were started to take them have found nothing to receive: a peer can arrange that by urgent data,
        for which a socket polls as readable. No result comes of these, so no recycle() that the rest could wait for.
        """
        return not self.full and self._reaped[1] < self.buffers.provided[0] and any(self._parked.values())

    def _startable(self) -> list[Any]:
        """The parked requests to start: of those that want a swap buffer, no more than there can be.

        With thousands of them, most would only come back for want of one, again and again.
        """
        requests = []
        buffers = self.buffers.provided[1] * self.buffers.size // self.buffers.read_size
        for request, lacks_buffer in self._parked.items():
            if request.more and self.full:
                continue
            if lacks_buffer:
                if not buffers:
                    self.buffers.too_few = True
                    continue  # the next recycle() is for these
                buffers -= 1
            requests.append(request)
        return requests

    # --- entries that are no request's ------------------------------------------------------------------------

    def _arm(self) -> bool:
        """Have the ring tell of everything that is to be told of; whether there was anything to arrange."""
        ring, armed = self.ring, self._armed
        tail = ring.sq_tail
        if WAKE not in armed:
            # Multishot: the eventfd is never read, each write to it makes a CQE.
            self._poll(self._wakeup.fd, WAKE, abi.IORING_POLL_ADD_MULTI)
        if self._blocked and WRITABLE not in armed:
            self._poll(self._writability.fd, WRITABLE)
        if self._missed:
            for request in self._missed:
                if request in self._again:  # its last try has brought something
                    self._come_back(request, CANCELLED)
                    self._again.remove(request)
                elif request._queue is not None:
                    self.cancel(request)
            self._missed.clear()
        return ring.sq_tail != tail

    def _poll(self, fd: int, token: int, flags: int = 0) -> None:
        """Have the ring poll a descriptor of our own."""
        if not self.ring.room():
            self._make_room()
        self._push_own(operations.poll_entry(fd, token, flags), self._armed, token)

    def _push_own(self, entry: bytes, under_way: set[int], token: int) -> None:
        self.ring.batch = [partial(under_way.discard, token)]  # before the next line: recover() undoes that
        under_way.add(token)
        self.ring.push([entry])

    @abstractmethod
    def _reap(self) -> bool: ...
