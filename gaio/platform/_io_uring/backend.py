"""The contract of gaio/platform/__init__.py, carried out by a ring.

    start()  turns requests into entries and makes them the kernel's, or makes their call at once: _submit()
    wait()   one io_uring_enter(2) submits them and waits; completions become results: _reap()

Facts about io_uring that shaped this file
    * -ECANCELED that nobody asked for means "start again" (the core does): a thread's requests end with the thread.
    * Closing a descriptor cancels nothing: a receive that is pending still writes into its buffer
      (io_uring_cancelation.7). So a request ends by its own CQE only, and the core closes after that.
    * `user_data` names a queue and not a request: a queue has one request in flight, and the next one starts only
      when the CQE has come and, if it was cancelled, that of the cancellation too. So neither a CQE nor a
      cancellation that comes late can hit a later request. The numbers of closed descriptors' queues are never used
      again.

Facts about interruption
    CQEs stay in the ring until `_reaped` has been stored, and working through them twice is harmless: a queue that
    waits for nothing takes no result. Entries become the kernel's as ring.py says: `batch` is stored before anything
    tells of them.
"""

from __future__ import annotations

import errno
import math
import sys
from collections.abc import Mapping
from functools import partial
from time import monotonic

from gaio.memory import is_connecting
from gaio.platform import CANCELLED, FILE, _libc
from gaio.platform._eventfd import Wakeup
from gaio.platform._io_uring import abi, operations
from gaio.platform._io_uring.abi import CQE, SQE
from gaio.platform._io_uring.buffers import ProvidedBuffers
from gaio.platform._io_uring.operations import NOT_EMPTY, POLL, POLLED, SEND, SEND_FLAGS, UNKNOWN, OwnMemory
from gaio.platform._io_uring.ring import CQ_ENTRIES, ENTRIES, MASK32, Ring
from gaio.platform._libc import address_of
from gaio.platform._writability import Writability

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from typing import Any

    from gaio.platform import Descriptor
    from gaio.swap import SwapArena

# user_data: the token of the queue (`Queue.token`). Beyond those:
_CANCELLATION = 1 << 62  # of the queue named by the rest
_WAKE = 0  # tokens begin with 2
_WRITABLE = 1

_BUFFER, _BUFFER_SHIFT = abi.IORING_CQE_F_BUFFER, abi.IORING_CQE_BUFFER_SHIFT
_SOCK_NONEMPTY = abi.IORING_CQE_F_SOCK_NONEMPTY

_ASYNC_CANCEL = abi.first_word(abi.IORING_OP_ASYNC_CANCEL)

# So many completions are taken at a time, for the reasons that MAX_EVENTS of epoll has; the rest stays in the CQ.
MAX_COMPLETIONS = 256

open_rings: set[int] = set()  # the descriptors of this process's
last_closed = [-math.inf]  # when one of them was closed, by the monotonic clock


class IoUringBackend:
    """See the contract in gaio/platform/__init__.py."""

    name = "io_uring"

    def __init__(
        self,
        arena: SwapArena,
        descriptors: Mapping[int, Descriptor],
        entries: int = ENTRIES,  # two at least: a read takes as many
        cq_entries: int = CQ_ENTRIES,
    ) -> None:
        self.completed: list[Any] = []
        self._descriptors = descriptors
        # Requests held here -> whether for want of a swap buffer; else until the next wait(), or for the end of a
        # cancellation or of a connect().
        self._parked: dict[Any, bool] = {}
        self._unpark = False  # something has changed for those
        self._cancelling: set[int] = set()  # queue tokens with a cancellation under way
        self._missed: list[Any] = []  # requests that a cancellation did not find
        self._last_tries: dict[Any, None] = {}  # parked ones that are being cancelled
        self._armed: set[int] = set()  # _WAKE, _WRITABLE: the polls under way
        self._woken = False  # a wake-up has been taken out of the ring, for the wait() under way or the next one
        self._blocked: dict[int, Any] = {}  # by descriptor, the write that waits for room
        self._some_writable = False  # one of those descriptors is, or was

        self.ring = Ring()
        try:
            self.ring.open(entries, cq_entries)
            self.buffers = ProvidedBuffers(self.ring, arena.size)
            self.operations = operations.Operations(self.completed, arena.size, self.buffers.read_size)
            self._messages = self.operations.send.messages
            # CQ head; provided buffers consumed until there, and bytes of the one that is being consumed
            self._reaped = (self.ring.cq_head_word[0], 0, 0)
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
        self._writability.leave_alone(descriptor.fd)  # the ring knows descriptors only through requests

    # --- requests on their way in ---------------------------------------------------------------------------

    def start(self, requests: list[Any]) -> None:
        ring = self.ring
        # A read may take two entries: it is linked to a poll.
        if 2 * len(requests) <= ring.sq_entries - ((ring.sq_tail - ring.ksq_head[0]) & MASK32):
            self._submit(requests)
            return
        at_once = ring.sq_entries // 2
        for index in range(0, len(requests), at_once):
            self._make_room()
            self._submit(requests[index : index + at_once])

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
            if memory is None and queue.entry and not (queue.ready or uncommon):
                append(queue.entry)
            elif type(memory) is bytes and queue.entry and not (request._offset or queue.ready >= POLL or uncommon):
                append(pack(SEND, queue.fd, 0, address_of(memory), request._length, SEND_FLAGS, queue.token, 0))
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
        if self.ring.is_full():
            self._make_room()  # by which the request may come back
        queue = request._queue
        if queue.waiting is not request:
            if request in self._parked or self._blocked.get(queue.fd) is request:  # the kernel does not have it
                self._try_once_more(request, queue)
            return
        if queue.token not in self._cancelling:
            entry = SQE.pack(_ASYNC_CANCEL, -1, 0, queue.token, 0, 0, _CANCELLATION | queue.token, 0)
            self._push_own(entry, self._cancelling, queue.token)

    def _try_once_more(self, request: Any, queue: Any) -> None:
        """Start a request that waits here and is being cancelled: what is there already counts as arrived in time.

        Nobody cancels it again, so that goes with it, see wait(); most come back with -EAGAIN before.
        """
        if not self.operations.of(request, queue).moves_bytes or is_connecting(queue.descriptor):
            request._result = CANCELLED
            self.completed.append(request)
            self._parked.pop(request, None)  # interrupted before this, recover() does it: nobody comes here again
            return
        self._last_tries[request] = None  # first: interrupted after this, it is cancelled all the same
        if self._parked.get(request):
            operations.give_own_memory(request, self.buffers.read_size)  # as a message has, see ReceiveMessage
        queue.ready = POLLED
        self._parked[request] = False
        if queue.outbound:
            self._blocked.pop(queue.fd, None)
        self._unpark = True

    # --- writes that wait for room --------------------------------------------------------------------------

    def _wait_until_writable(self, request: Any, queue: Any) -> None:
        queue.ready = POLL
        if request in self._last_tries:  # a write of a file, which has said so at once: nobody would cancel it again
            request._result = -errno.EAGAIN
            self.completed.append(request)
            return
        self._blocked[queue.fd] = request
        try:
            self._writability.watch(queue.fd)
        except OSError as error:
            request._result = -(error.errno or errno.EIO)
            self.completed.append(request)
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

    # --- waiting --------------------------------------------------------------------------------------------

    def wait(self, timeout: float | None) -> None:
        ring = self.ring
        if self._parked and (self._unpark or self._buffers_are_left()):
            self._unpark = False
            self.start(self._startable())
        if self._last_tries:
            # Behind their entries, of which one may be the poll of a file.
            self._missed += [request for request in self._last_tries if request not in self._parked]
            self._last_tries = {request: None for request in self._last_tries if request in self._parked}
        self._arm()
        # To make room in the SQ is to reap. What has been started just now may take no buffer, see _buffers_are_left().
        if self.completed or self._woken or (self._parked and (self._unpark or self._buffers_are_left())):
            timeout = 0
        if timeout == 0 or ring.ksq_head[0] != ring.sq_tail:
            # Sends complete at once as a rule: looking without dropping the GIL keeps the batch together.
            ring.enter()
            if not self._reap() and timeout != 0:
                ring.enter_and_wait(timeout)
                self._reap()
        elif not self._reap():
            ring.enter_and_wait(timeout)
            self._reap()
        while ring.ksq_flags[0] & abi.IORING_SQ_CQ_OVERFLOW and len(self.completed) < MAX_COMPLETIONS:
            ring.enter()
            self._reap()
        if self._some_writable:
            self._go_on_writing()
            ring.enter()
            self._reap()
        self._woken = False
        # Now and not with the next wait, and what that answers at once is left to be reaped: a loop that this is nested
        # in sees no other sign.
        if self._arm():
            ring.enter()
        if self._messages and ring.ksq_head[0] == ring.sq_tail:
            self._messages.clear()  # IORING_FEAT_SUBMIT_STABLE: read when the entry was taken

    def _buffers_are_left(self) -> bool:
        """Whether reads are parked for want of a swap buffer though there are some.

        Those that were started to take them have found nothing to receive: a peer can arrange that by urgent data,
        for which a socket polls as readable. No result comes of these, so no recycle() that the rest could wait for.
        """
        return self._reaped[1] < self.buffers.provided[0] and any(self._parked.values())

    def _startable(self) -> list[Any]:
        """The parked requests to start: of those that want a swap buffer, no more than there can be.

        With thousands of them, most would only come back for want of one, again and again.
        """
        requests = []
        buffers = self.buffers.provided[1] * self.buffers.size // self.buffers.read_size
        for request, lacks_buffer in self._parked.items():
            if lacks_buffer:
                if not buffers:
                    self.buffers.too_few = True
                    continue  # the next recycle() is for these
                buffers -= 1
            requests.append(request)
        return requests

    # --- completions, on the way out ------------------------------------------------------------------------

    def _reap(self) -> bool:
        """Work through CQEs, at most MAX_COMPLETIONS; whether there were any."""
        ring = self.ring
        head, consumed, position = self._reaped
        tail = ring.kcq_tail[0]
        if head == tail:
            return False
        if ring.weakly_ordered:
            ring.keep_order()
        count = (tail - head) & MASK32
        if count > MAX_COMPLETIONS:
            count = MAX_COMPLETIONS
            tail = (head + count) & MASK32
        first = (head & ring.cq_mask) * CQE.size
        span: Any = ring.kcqes[first : first + count * CQE.size]
        if len(span) < count * CQE.size:
            span = bytes(span) + bytes(ring.kcqes[: count * CQE.size - len(span)])
        descriptors = self._descriptors
        completed = self.completed
        provided = self.buffers
        buffers, stride, mask = provided.views, provided.stride, provided.mask
        size, at_least, buffer_in = provided.size, provided.consumed_at_least, provided.buffer_in
        for token, result, flags in CQE.iter_unpack(span):
            descriptor = descriptors.get(token & -2)
            if descriptor is None:
                self._special(token, result, flags)
                continue
            queue: Any = descriptor.writes if token & 1 else descriptor.reads
            request = queue.waiting
            if flags & _BUFFER:
                number = flags >> _BUFFER_SHIFT
                if number != buffer_in[consumed & mask]:
                    if not at_least:
                        raise RuntimeError("the kernel handed out swap buffers out of order: use GAIO_BACKEND=epoll")
                    buffer_in[consumed & mask] = number
                start = number * stride + position
                position += result if result > at_least else at_least
                if position == size:
                    consumed += 1
                    position = 0
                if request is None:
                    continue  # dealt with before an interruption
                request.buffer = buffers[start : start + result] if result > 0 else None
                queue.ready = NOT_EMPTY if flags & _SOCK_NONEMPTY else UNKNOWN
            elif request is None or (
                (result < 0 or queue.ready >= POLL or type(request._memory) is OwnMemory)
                and self._conclude(request, queue, result)
            ):
                continue
            elif not token & 1:
                queue.ready = NOT_EMPTY if flags & _SOCK_NONEMPTY else UNKNOWN
            request._result = result
            completed.append(request)
            queue.waiting = None
        if ring.weakly_ordered:
            ring.keep_order()
        self._reaped = (tail, consumed, position)
        ring.cq_head_word[0] = tail
        return True

    def _conclude(self, request: Any, queue: Any, result: int) -> bool:
        """Whether an uncommon completion is dealt with here: it is no result yet, so that the request stays here to be
        started again, or the request was cancelled.

        What tells which it is, `ready` and `_memory`, changes last: interrupted before, this is done again.
        """
        token = queue.token
        operation = self.operations.of(request, queue)
        outcome = operation.outcome(queue, result)
        lacks_buffer = outcome == operations.LACKS_BUFFER
        if lacks_buffer or outcome == operations.GO_ON:
            cancelled = token in self._cancelling
            if cancelled:
                self._last_tries[request] = None  # nobody else would cancel it where it is started again
            self._parked[request] = lacks_buffer  # until buffers are given back
            self.buffers.too_few = self.buffers.too_few or lacks_buffer
            self._unpark = self._unpark or not lacks_buffer
            queue.waiting = None
            if cancelled:
                self._try_once_more(request, queue)
            else:
                queue.ready = UNKNOWN if lacks_buffer else POLLED  # if this is not reached, it is polled once more
            return True
        otherwise = NOT_EMPTY if queue.outbound else UNKNOWN
        queue.ready = operation.refused if result == -errno.EAGAIN else otherwise
        if operation is self.operations.connect:
            self._unpark = True  # reads wait for it
        operations.take_own_memory(request, result)
        if outcome != operations.WAS_CANCELLED:
            return False
        request._result = CANCELLED
        self.completed.append(request)
        queue.waiting = None
        return True

    # --- entries that are no request's: their way in, and their way out ---------------------------------------

    def _arm(self) -> bool:
        """Have the ring tell of everything that is to be told of; whether there was anything to arrange."""
        ring, armed = self.ring, self._armed
        tail = ring.sq_tail
        if _WAKE not in armed:
            # Multishot: the eventfd is never read, each write to it makes a CQE.
            self._poll(self._wakeup.fd, _WAKE, abi.IORING_POLL_ADD_MULTI)
        if self._blocked and _WRITABLE not in armed:
            self._poll(self._writability.fd, _WRITABLE)
        if self._missed:
            for request in self._missed:
                if request._queue is not None:
                    self.cancel(request)
            self._missed.clear()
        return ring.sq_tail != tail

    def _poll(self, fd: int, token: int, flags: int = 0) -> None:
        """Have the ring poll a descriptor of our own."""
        if self.ring.is_full():
            self._make_room()
        self._push_own(operations.poll_entry(fd, token, flags), self._armed, token)

    def _push_own(self, entry: bytes, under_way: set[int], token: int) -> None:
        self.ring.batch = [partial(under_way.discard, token)]  # before the next line: recover() undoes that
        under_way.add(token)
        self.ring.push([entry])

    def _special(self, token: int, result: int, flags: int) -> None:
        """The completion of something that is no request."""
        if token & _CANCELLATION:
            token ^= _CANCELLATION
            if result == -errno.ENOENT:
                # It has finished, or just then it was between two attempts, where the kernel does not look.
                descriptor: Any = self._descriptors.get(token & -2)
                queue = None if descriptor is None else descriptor.writes if token & 1 else descriptor.reads
                if queue is not None and queue.waiting is not None:
                    self._missed.append(queue.waiting)
            self._cancelling.discard(token)
            self._unpark = True
        elif token == _WRITABLE:
            self._armed.discard(_WRITABLE)
            self._some_writable = True
        elif token == _WAKE:
            self._woken = True
            if not flags & abi.IORING_CQE_F_MORE:
                self._armed.discard(_WAKE)  # its thread has exited, or the kernel gave up on it

    # --- the rest of the contract ---------------------------------------------------------------------------

    def lend(self) -> None:
        self.buffers.lent = self._reaped[1]
        # What wants a buffer waits for recycle(), and what the kernel was too short of memory to take for another
        # enter: a loop that this is nested in must come back for that. Of the end of a cancellation or of a connect()
        # the ring tells it.
        held_up = self._parked and (self._unpark or any(self._parked.values()))
        if held_up or self.ring.ksq_head[0] != self.ring.sq_tail:
            self.wake()

    def recycle(self) -> None:
        self.buffers.recycle()
        if self._parked:
            self._unpark = True

    def recycle_unused(self) -> None:
        if self.buffers.lent != self._reaped[1]:
            self.buffers.lent = self._reaped[1]
            self.recycle()

    def recover(self) -> list[Any]:
        self.operations.calls.finish()
        self.ring.recover()
        for request in self.completed:
            self._parked.pop(request, None)  # it was being cancelled
            if request._queue is not None:  # else the core has finished it already
                request._queue.waiting = None
        self.ring.cq_head_word[0] = self._reaped[0]  # interrupted in between, the kernel would count these for ever
        self._reap()
        self._unpark = True
        self._blocked.clear()  # they will be started again
        held = list(self._parked)
        for descriptor in list(self._descriptors.values()):
            queues = (descriptor.reads, descriptor.writes)
            held += [queue.waiting for queue in queues if queue is not None and queue.waiting is not None]
        return held

    def fileno(self) -> int:
        return self.ring.fd

    def wake(self) -> None:
        self._wakeup.ring()

    def describe(self) -> str:
        """The kernel features in use."""
        incremental = "incremental " if self.buffers.incremental else ""
        index_array = "" if self.ring.index_array else ", NO_SQARRAY"
        return f"COOP_TASKRUN, {incremental}provided-buffer ring{index_array}, {self.ring.sq_entries} entries"

    def close(self) -> None:
        last_closed[0] = monotonic()
        open_rings.difference_update(self.ring.to_close)  # which is empty the second time
        self.ring.close()

    def abandon(self) -> None:
        open_rings.discard(self.ring.fd)
        self.ring.abandon()
        self._wakeup.abandon()
        for part in (self.buffers, self):
            vars(part).clear()  # see Ring.abandon()
