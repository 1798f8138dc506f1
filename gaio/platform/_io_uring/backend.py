"""The contract of gaio/platform/__init__.py, carried out by a ring: what comes back, and the rest.

    wait()   one io_uring_enter(2) submits what submission.py has written, and waits. _reap() makes results and
             arrivals of completions.

Facts about io_uring that shaped this file
    * -ECANCELED that nobody asked for means "start again" (the core does): a thread's requests end with the thread.

Facts about interruption
    CQEs stay in the ring until `_reaped` has been stored, and working through them twice is harmless: a queue that
    waits for nothing takes no result, and arrivals are taken back before. Entries become the kernel's as ring.py says:
    `batch` is stored before anything tells of them.
"""

from __future__ import annotations

import errno
from time import monotonic

from gaio.memory import is_connecting
from gaio.platform import CANCELLED, SOCKET, SwapMemory
from gaio.platform._io_uring import abi, operations
from gaio.platform._io_uring.abi import CQE
from gaio.platform._io_uring.operations import BULK, NOT_EMPTY, PAUSED, POLL, POLLED, SMALL, UNKNOWN, OwnMemory
from gaio.platform._io_uring.ring import MASK32
from gaio.platform._io_uring.submission import CANCELLATION, SENT, WAKE, WRITABLE, Submission, last_closed, open_rings

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from typing import Any

_BUFFER, _BUFFER_SHIFT = abi.IORING_CQE_F_BUFFER, abi.IORING_CQE_BUFFER_SHIFT
_SOCK_NONEMPTY, _MORE = abi.IORING_CQE_F_SOCK_NONEMPTY, abi.IORING_CQE_F_MORE

# So many completions are taken at a time, for the reasons that MAX_EVENTS of epoll has; the rest stays in the CQ.
MAX_COMPLETIONS = 256


class IoUringBackend(Submission):
    """See the contract in gaio/platform/__init__.py."""

    name = "io_uring"

    # --- waiting --------------------------------------------------------------------------------------------

    def wait(self, timeout: float | None) -> None:
        ring = self.ring
        if self._again or self._parked or self._last_tries:
            self._start_held()
        if WAKE not in self._armed or self._blocked or self._missed:
            self._arm()
        # To make room in the SQ is to reap. What has been started just now may take no buffer, see _buffers_are_left().
        held = self._again or (self._parked and (self._unpark or self._buffers_are_left()))
        if self.completed or self.arrivals or self._woken or held or self.fell_short:
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
        if self.full:
            self._pause()
        self._woken = False
        # Now and not with the next wait, and what that answers at once is left to be reaped: a loop that this is nested
        # in sees no other sign.
        if (WAKE not in self._armed or self._blocked or self._missed) and self._arm():
            ring.enter()
        if self._messages and ring.ksq_head[0] == ring.sq_tail:
            self._messages.clear()  # IORING_FEAT_SUBMIT_STABLE: read when the entry was taken

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
        completed, arrivals = self.completed, self.arrivals
        self._begun = (head, len(arrivals), self._cancelling.copy())
        provided = self.buffers
        read_size = provided.read_size
        buffers, stride, mask = provided.views, provided.stride, provided.mask
        size, at_least, buffer_in = provided.size, provided.consumed_at_least, provided.buffer_in
        in_turn = buffer_in[consumed & mask]  # the buffer that is being consumed
        for token, result, flags in CQE.iter_unpack(span):
            descriptor = descriptors.get(token & -2)
            if descriptor is None:
                self._special(token, result, flags)
                continue
            queue: Any = descriptor.writes if token & 1 else descriptor.reads
            request = queue.waiting
            if flags & _BUFFER:
                number = flags >> _BUFFER_SHIFT
                if number != in_turn:
                    if not at_least:
                        raise RuntimeError("the kernel handed out swap buffers out of order: use GAIO_BACKEND=epoll")
                    buffer_in[consumed & mask] = number
                start = number * stride + position
                position += result if result > at_least else at_least
                if position == size:
                    consumed += 1
                    position = 0
                    in_turn = buffer_in[consumed & mask]
                if request is None:
                    continue  # dealt with before an interruption
                if request.more and result > 0:
                    if result <= read_size:
                        arrivals.append((request, buffers[start : start + result]))
                    else:
                        for begin in range(start, start + result, read_size):
                            end = min(begin + read_size, start + result)
                            arrivals.append((request, buffers[begin:end]))
                    if not flags & _MORE:
                        # The last piece of much may be small: so many in a row end that.
                        emptied = BULK if result > SMALL or queue.ready > UNKNOWN else min(UNKNOWN, queue.ready + 1)
                        self._go_on(request, queue, NOT_EMPTY if flags & _SOCK_NONEMPTY else emptied)
                    continue
                if request.more and self._conclude(request, queue, result):
                    continue
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
        own = request._memory
        if request.more and type(own) is OwnMemory and result > 0:
            self.arrivals.append((request, own.view(result)))
            self._go_on(request, queue, BULK)
            operations.drop_own_memory(request)
            return True
        operation = self.operations.of(request, queue)
        outcome = operation.outcome(queue, result)
        lacks_buffer = outcome == operations.LACKS_BUFFER
        if lacks_buffer or outcome == operations.GO_ON:
            cancelled = token in self._cancelling
            if cancelled:
                self._last_tries[request] = None  # nobody else would cancel it where it is started again
            self._parked[request] = lacks_buffer  # until buffers are given back
            multishot = request.more and queue.ready in (UNKNOWN, PAUSED)  # which takes all there are
            self.buffers.too_few = self.buffers.too_few or (lacks_buffer and not multishot)
            self._unpark = self._unpark or not lacks_buffer
            queue.waiting = None
            if cancelled:
                self._try_once_more(request, queue)
            else:
                refused = BULK if request.more else UNKNOWN
                queue.ready = refused if lacks_buffer else POLLED  # if this is not reached, it is polled once more
            return True
        # The next that repeats begins with what had to wait, which may be much.
        inbound = BULK if request.more and queue.descriptor.kind <= SOCKET else UNKNOWN
        otherwise = NOT_EMPTY if queue.outbound else inbound
        queue.ready = operation.refused if result == -errno.EAGAIN else otherwise
        if operation is self.operations.connect:
            self._unpark = True  # reads wait for it
        operations.take_own_memory(request, result)
        if outcome != operations.WAS_CANCELLED:
            return False
        self._come_back(request, CANCELLED)
        queue.waiting = None
        return True

    def _special(self, token: int, result: int, flags: int) -> None:
        """The completion of something that is no request."""
        if token & SENT:
            sends, place = self._sends, token ^ SENT
            if result != len(sends.messages[place][1]):  # else the kernel tells of each
                sends.outcomes[place] = result
                self.fell_short = True
        elif token & CANCELLATION:
            token ^= CANCELLATION
            if result == -errno.ENOENT:
                # It has finished, or just then it was between two attempts, where the kernel does not look.
                descriptor: Any = self._descriptors.get(token & -2)
                queue = None if descriptor is None else descriptor.writes if token & 1 else descriptor.reads
                if queue is not None and queue.waiting is not None:
                    self._missed.append(queue.waiting)
            self._cancelling.discard(token)
            self._unpark = True
        elif token == WRITABLE:
            self._armed.discard(WRITABLE)
            self._some_writable = True
        elif token == WAKE:
            self._woken = True
            if not flags & abi.IORING_CQE_F_MORE:
                self._armed.discard(WAKE)  # its thread has exited, or the kernel gave up on it

    # --- the rest of the contract ---------------------------------------------------------------------------

    def lend(self) -> None:
        self.buffers.lent = self._reaped[1]

    def all_taken(self) -> bool:
        # A send that the kernel has taken from the SQ does not wait (MSG_DONTWAIT): it is over, if not reaped yet.
        return self.ring.ksq_head[0] == self.ring.sq_tail

    def unfinished(self) -> bool:
        # What wants a buffer, or was paused, waits for recycle(). What the kernel was too short of memory to take waits
        # for another enter. Of the end of a cancellation or of a connect() the ring tells.
        held_up = any(lacks_buffer or self._is_paused(request) for request, lacks_buffer in self._parked.items())
        held_up = held_up or (self._unpark and bool(self._parked))
        return bool(self._again or held_up or self.ring.ksq_head[0] != self.ring.sq_tail)

    def _is_paused(self, request: Any) -> bool:
        """Whether one that is parked waits for recycle(), and for nothing that the ring will tell of."""
        queue = request._queue
        return bool(request.more and queue.token not in self._cancelling and not is_connecting(queue.descriptor))

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
        self._take_arrivals_back()
        for request in self.completed:
            self._parked.pop(request, None)  # it was being cancelled
            if request._queue is not None:  # else the core has finished it already
                request._queue.waiting = None
        self.ring.cq_head_word[0] = self._reaped[0]  # interrupted in between, the kernel would count these for ever
        self._reap()
        self._again.clear()  # after it, which adds to these: the core starts them again
        self._unpark = True
        self._blocked.clear()  # they will be started again
        held = list(self._parked)
        for descriptor in list(self._descriptors.values()):
            queues = (descriptor.reads, descriptor.writes)
            held += [queue.waiting for queue in queues if queue is not None and queue.waiting is not None]
        return held

    def _take_arrivals_back(self) -> None:
        """Those of CQEs that will be worked through again: they came to requests that the kernel had then."""
        head, count, cancelling = self._begun
        if head != self._reaped[0]:
            return
        self._cancelling |= cancelling  # the end of one may be among these CQEs, behind what it has cut off
        again: set[int] = set()
        kept = self.arrivals[:count]
        for request, what in self.arrivals[count:]:
            queue = request._queue
            if type(what) is memoryview and type(what.obj) is SwapMemory:
                queue.waiting = request
                queue.ready = UNKNOWN
                operations.drop_own_memory(request)  # given for a last try, to be made behind these
            elif type(what) is not memoryview or queue.waiting is not request:
                kept.append((request, what))  # of these it is known that they have been dealt with to the end
                continue
            again.add(id(request))
            self._parked.pop(request, None)
        self.completed[:] = [request for request in self.completed if id(request) not in again]
        self.arrivals[:] = kept

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
