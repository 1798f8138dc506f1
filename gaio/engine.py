"""The engine: a turn carries requests from the inbox through their queues and the backend to the outbox.

    inbox --> admit: each to its connection's queue --> backend.start
                  next of that queue <-- finish <-- backend.wait --> deliver: what has arrived for one that repeats
                                           |                           |
                                         outbox                      outbox

It knows no thread and no signal, and no lock but the one that it is given: whoever calls it is alone in it, and
gaio/leader.py sees to that. Inbox, clock and backend come from outside, as tests/simulation/ has its own.

What keeps a turn safe from KeyboardInterrupt
    At every bytecode, each accepted request is in the inbox, in a queue or in the outbox, which the leader keeps until
    the batch is returned; what the kernel has given is in memory (gaio/platform/__init__.py). A request leaves one
    place only after it is in the next, and so does an arrival, which the result that is made of it keeps. So the worst
    that an interruption can leave is one of them in two places, and gaio/recovery.py puts that right by looking at all
    of them before the next turn, which finds `interrupted` set. It costs a walk over every connection, and happens only
    then.
"""

from __future__ import annotations

from gaio.closing import CLOSED_BACKEND, Close, Detach, Sends, close, close_idle, detach
from gaio.connection import FINISHED, NO_MORE, Connection, RequestQueue, reclaim_when_collected
from gaio.deadlines import Deadline, Deadlines
from gaio.errors import DeadlineError
from gaio.finishing import FinishResult, StopReading, cut_off_reads, drains, end
from gaio.outcome import BACK_OFF, cancelled, close_error, conclude, result_of_message
from gaio.platform import CANCELLED, LISTENER
from gaio.recovery import recover
from gaio.result import ACCEPT, CONNECT, FINISH, READ, STOPPED, UNDER_WAY, AcceptResult, OpResult
from gaio.timers import Cancel, PostResult, TimerResult, arm, disarm, end_timer
from gaio.writes import finish_joined, join

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from typing import Any

    from gaio import platform

    Wait = Callable[[float | None], object]  # backend.wait(), and what its caller has to do before and after

# For how long an accept that ran out of descriptors is held back, in seconds: before its error is delivered, or, where
# it repeats, before it goes on.
BACK_OFF_SECONDS = 0.1

# With so many results undelivered, requests that repeat bring no more until the consumer has come by. The swap arena
# alone would not bound the number of small messages.
MOST_UNDELIVERED = 16384
# The same for so many bytes of them. Not all are in swap memory, which is bounded itself: io_uring copies messages, and
# what is read from a pipe.
MOST_BYTES_UNDELIVERED = 32 << 20


class Stop(Close):
    """An item of the inbox: have the request of this connection that repeats end."""

    __slots__ = ("request",)

    connection: Connection

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.request: OpResult | None = None  # once it is known: done again, this must not end another one


class Engine:
    """Requests, queues and deadlines of one watcher. Only for whoever leads, but for what is said to be shared."""

    def __init__(
        self, inbox: list[Any], clock: Callable[[], float], new_queues: AbstractContextManager[object]
    ) -> None:
        """`new_queues` is held while a connection stops taking requests: nobody adds a queue to it meanwhile."""
        # What closes a connection whose object is collected, until the watcher is closed: with that it is a cycle.
        self.forget: Callable[[Connection], None] | None = None
        self.inbox = inbox  # shared: any thread appends; copied here, and then deleted
        self.clock = clock
        self.new_queues = new_queues
        # Shared with submitters; a single dictionary or set operation at a time, each atomic in itself.
        self.connections: dict[int, Connection] = {}  # id(conn) -> its connection, while it takes requests
        self.listeners: dict[int, Connection] = {}  # the same for listening sockets, which only accept
        self.finishing: dict[int, Connection] = {}  # the same for those that finish() was called for, until the end
        self.begun: dict[int, Connection] = {}  # id(conn) -> the same, while its descriptor is being taken from conn
        self.connecting: set[int] = set()  # tokens of the connections with a connect() under way
        self.descriptors: dict[int, Connection] = {}  # token -> connection, from delegation until it is closed
        # Not shared.
        self.outbox: list[OpResult] = []
        self.arrived = 0  # bytes of arrivals in there, but for those of a turn that was interrupted
        self.ready: list[OpResult] = []  # heads of queues, to be started
        self.partial: list[OpResult] = []  # came back with work left, to be started again
        # To be closed when nothing of it is under way -> its number among those that the collector found, 0 if the
        # caller freed it, FINISHED when finish() has come to its end, and close() is to be called for it.
        self.closing: dict[Connection, int] = {}
        self.backing_off: dict[OpResult, None] = {}  # accepts that ran out of descriptors
        self.being_closed: list[int] = []  # the number whose closing has begun; empty otherwise
        self.deadlines: Deadlines = Deadlines()
        self.timers: dict[TimerResult, None] = {}  # that are pending, or have been cancelled just now
        self.interrupted = False  # a turn has begun and not ended
        self.gc_found = 0  # connections that the collector found
        self.backend: platform.Backend = CLOSED_BACKEND
        self.retired: platform.Backend = CLOSED_BACKEND  # the backend while it is being closed

    def gc_closed(self) -> int:
        """How many of the connections that the collector found are closed: all but those that still wait for that."""
        found = self.gc_found
        return found - sum(1 for number in list(self.closing.values()) if 0 < number <= found)

    def table_of(self, connection: Connection) -> dict[int, Connection]:
        return self.listeners if connection.kind == LISTENER else self.connections

    # --- a turn ---------------------------------------------------------------------------------------------

    def turn(self, timeout: float | None, wait: Wait) -> None:
        """Admit, start, wait up to `timeout` seconds for completions, finish. `wait` is called where it may block."""
        if self.interrupted:
            recover(self)
        self.interrupted = True
        backend = self.backend
        completed, arrivals = backend.completed, backend.arrivals
        finished = len(self.outbox)
        if not finished:
            self.arrived = 0
        backend.full = finished >= MOST_UNDELIVERED or self.arrived >= MOST_BYTES_UNDELIVERED

        inbox = self.inbox
        if inbox:
            self.admit(inbox[:])
        if self.ready:
            for request in self.ready:
                if request._next is not None:
                    join(request)
            backend.start(self.ready)
            self.ready.clear()
        if self.deadlines.entries:
            timeout = self.expire(timeout)
        if self.closing:
            close_idle(self)  # what has nothing under way need not wait for the kernel

        # What was cut off before it was started is in the outbox already.
        if completed or arrivals or timeout == 0 or len(self.outbox) != finished:
            backend.wait(0)
        else:
            wait(timeout)

        if arrivals:
            self.deliver(arrivals)
        if completed:
            self.finish(completed)
            completed.clear()
            if self.partial:
                for request in self.partial:
                    request._offset = request.size
                self.ready.extend(self.partial)
                self.partial.clear()
        if self.closing:
            close_idle(self)
        self.interrupted = False

    def admit(self, items: list[Any]) -> None:
        """Put each request into its queue; those that come first there are ready to start."""
        ready = self.ready
        for request in items:
            queue = request._queue
            if queue is None:
                self.deal_with(request)
                continue
            tail = queue.tail
            if tail is None:
                queue.head = request
                queue.tail = request
                ready.append(request)
            elif tail is NO_MORE:
                request.error = close_error(queue.descriptor)
                request.more = False
                if request.operation is CONNECT:
                    self.connecting.discard(queue.descriptor.token)
                if request._deadline is not None:
                    request._deadline.request = None  # not called off, for the heap has not got it
                self.outbox.append(request)
                request._queue = request._memory = None
                continue
            else:
                tail._next = request
                queue.tail = request
                queue.behind += request._goal
            if request._deadline is not None:
                request._deadline.before = tail
                self.deadlines.add(request._deadline)
        del self.inbox[: len(items)]

    def deal_with(self, item: Any) -> None:
        """What belongs to no queue, in its place among what does."""
        if type(item) is PostResult:
            self.outbox.append(item)
        elif type(item) is TimerResult:
            arm(self, item)
        elif type(item) is Cancel:
            disarm(self, item.timer)
        elif type(item) is StopReading:
            cut_off_reads(self, item.connection)
        elif type(item) is Stop:
            self.stop(item)
        elif type(item) is Sends:
            together: Any = self.backend
            together.send_all(item)
        elif type(item) is Detach:
            detach(self, item)
        else:
            close(self, item)

    def deliver(self, arrivals: list[tuple[OpResult, Any]]) -> None:
        """Make a result of each arrival of a request that repeats."""
        outbox = self.outbox
        arrived, now = 0, 0.0
        for arrival in arrivals:
            request, what = arrival
            if type(what) is not memoryview or request.operation is not READ:
                if request.operation is ACCEPT:
                    self.deliver_accepted(request, arrival)
                elif request.operation is READ:
                    message = result_of_message(request, arrival)
                    arrived += message.size
                    if request._deadline is not None:
                        self.put_off(request, self.clock())
                    outbox.append(message)
                continue  # of finish() nobody gets them
            result = OpResult()
            result.operation = READ
            result.conn = request.conn
            result.context = request.context
            result.buffer = what
            result.size = size = len(what)
            arrived += size
            result.error = None
            result.more = True
            result._connection = request._connection
            result._queue = result._deadline = None
            result._length = 0
            result._memory = arrival  # tells recover() that it is here
            if request._deadline is not None:  # before: interrupted after the append, this is not done again
                now = now or self.clock()
                self.put_off(request, now)
            outbox.append(result)
        self.arrived += arrived
        arrivals.clear()

    def deliver_accepted(self, request: OpResult, arrival: tuple[OpResult, Any]) -> None:
        """The same of a connection, or of an error that does not end the request."""
        result = AcceptResult()
        result.operation = request.operation
        result.conn = request.conn
        result.context = request.context
        result.buffer = None
        result.size = result._length = 0
        result.error = None
        result.more = True
        result._connection = request._connection
        result._queue = result._deadline = None
        result._memory = arrival
        self.outbox.append(result)  # before it owns the descriptor: lost in an interruption, it would close it
        result.take(arrival)

    def put_off(self, request: OpResult, now: float) -> None:
        """Something has arrived for it: its deadline counts from now."""
        deadline: Any = request._deadline
        if deadline.request is not None:
            deadline.until = now + deadline.idle
        elif type(request.error) is DeadlineError:
            request._deadline = Deadline(now + deadline.idle, request, deadline.idle)
            self.deadlines.add(request._deadline)
        if type(request.error) is DeadlineError:
            request.error = None  # it was being cut off, and the bytes were faster: it goes on when it comes back

    def finish(self, completed: list[OpResult]) -> None:
        """Make results of what came back, and let the next of each queue follow."""
        outbox = self.outbox
        for request in completed:
            queue = request._queue
            result = request._result
            if result > 0 and request.error is None:
                request.size = size = request._offset + result
                if size < request._goal:
                    self.partial.append(request)
                    continue
                if size > request._goal > 0:
                    finish_joined(self, request, queue, size)
                    continue
            elif result > 0 and request._offset + result > request._goal > 0:
                finish_joined(self, request, queue, request._offset + result)
                continue
            else:
                if type(request) is FinishResult and drains(self, request):
                    continue
                ends = conclude(request, queue, request._result)
                if not ends:
                    self.partial.append(request)
                    continue
                if ends is BACK_OFF:
                    self.back_off(request)
                    continue
                if type(request) is FinishResult:
                    end(self, request, queue)
                    continue
                if request.more:
                    self.reclaim(request.conn, queue.descriptor)
                    request.more = False
                if request.operation is CONNECT:
                    self.connecting.discard(queue.descriptor.token)
            # First in the outbox, then out of the queue: see gaio/recovery.py.
            outbox.append(request)
            following = request._next
            if following is None:
                queue.head = queue.tail = None
            else:
                self.advance(queue, following)
                request._next = None
            request._queue = request._memory = None
            if request._deadline is not None:
                self.deadlines.call_off(request._deadline)

    def reclaim(self, conn: Any, connection: Connection) -> None:
        """No request that repeats holds conn any more, so that only the caller does: Delegation._take_descriptor()."""
        if connection.shared:
            return
        if connection.finalizer is None and connection.close_reason is None and self.forget is not None:
            reclaim_when_collected(conn, connection, self.forget)

    def advance(self, queue: RequestQueue, following: OpResult) -> None:
        """What stood before this request in its queue has finished."""
        queue.head = following
        queue.behind -= following._goal
        if following._deadline is not None:
            following._deadline.before = None
        if queue.descriptor.close_reason is None:
            self.ready.append(following)
        else:
            self.backend.completed.append(cancelled(following))  # which finish() comes to

    def back_off(self, request: OpResult) -> None:
        """Hold an accept that failed back for a moment, so that a loop around it does not spin."""
        until = self.clock() + BACK_OFF_SECONDS
        self.backing_off[request] = None  # first: by that recover() knows that the deadline is not one of the caller's
        if request.more:
            self.backend.arrivals.append((request, request.error))
            request.error = UNDER_WAY  # it goes on after that
        elif request._deadline is not None:
            until = min(until, request._deadline.when)
        if request._deadline is not None:
            self.deadlines.call_off(request._deadline)
        request._deadline = Deadline(until, request)
        self.deadlines.add(request._deadline)

    # --- what cuts requests off -----------------------------------------------------------------------------

    def expire(self, timeout: float | None) -> float | None:
        """Cut off what is past its deadline, and shorten `timeout` to the next one."""
        now = self.clock()
        deadlines = self.deadlines
        while True:
            request = deadlines.expired(now)
            if request is None:
                break
            if type(request) is TimerResult:
                end_timer(self, request)
                continue
            if request in self.backing_off:
                self.cut_off(request, request.error)
            elif request.more and deadlines.postpone(request, now):
                continue
            else:
                error: Exception = DeadlineError("timed out; `size` tells how many bytes had moved")
                queue = request._queue
                if request.more and queue.head is request and queue.descriptor.close_reason is not None:
                    error = close_error(queue.descriptor)  # no arrival keeps it going, where closing was interrupted
                self.cut_off(request, error)
            if request._deadline is not None:
                deadlines.call_off(request._deadline)
        when = deadlines.earliest()
        if when is None:
            return timeout
        remaining = max(0.0, when - now)
        return remaining if timeout is None else min(timeout, remaining)

    def stop(self, item: Stop) -> None:
        """Have the first request in the queue that repeats, and does not end already, end without an error."""
        queue: RequestQueue = item.connection.reads
        before, request = None, queue.head
        while request is not None:
            repeats = request.more and request.operation is not FINISH
            if request is item.request or (item.request is None and repeats and request._goal != STOPPED):
                break
            before, request = request, request._next
        if request is None:
            return
        item.request = request
        if request is queue.head and self.ready:
            self.backend.start(self.ready)  # only what has been started can be cancelled
            self.ready.clear()
        request._goal = STOPPED
        self.cut_off(request, request.error if before is None else None, before)

    def cut_off(self, request: OpResult, error: Exception | None, before: Any = None) -> None:
        """Have the request end with this error, unless it finishes first. What is no head must have a deadline, or be
        given with what stands `before` it.
        """
        queue = request._queue
        if queue is None:
            return  # it has finished
        if queue.head is request:
            request.error = error
            if request in self.backing_off:
                # Completed first: should this be interrupted in between, recover() does the rest. Its deadline may have
                # passed already, and the caller may never have set one: it is not for expire() to find.
                request._result = CANCELLED
                self.backend.completed.append(request)
                if request._deadline is not None:
                    self.deadlines.call_off(request._deadline)
                del self.backing_off[request]
            else:
                self.backend.cancel(request)
            return
        # Behind the head nothing has been started: it can go at once.
        deadline: Any = request._deadline
        before = before or deadline.before
        request.error = error
        if request.more and request.operation is not FINISH:
            self.reclaim(request.conn, queue.descriptor)
        if request.operation is CONNECT:
            self.connecting.discard(queue.descriptor.token)
        self.outbox.append(request)
        request.more = False  # not before: interrupted here, it may be started
        if deadline is not None:
            self.deadlines.call_off(deadline)  # not before: interrupted here, recover() sees it in the outbox
        queue.behind -= request._goal
        following = before._next = request._next
        if following is None:
            queue.tail = before
        elif following._deadline is not None:
            following._deadline.before = before
        if request.operation is FINISH:
            self.closing.setdefault(request._connection, FINISHED)
        request._queue = request._next = request._memory = None

    def cancel_all(self, queue: RequestQueue) -> None:
        """Cut off everything in a queue whose connection is being closed, and let nothing more into it."""
        if self.ready:
            self.backend.start(self.ready)  # only what has been started can be cancelled
            self.ready.clear()
        if queue.head is None:
            queue.tail = NO_MORE
        else:
            self.cut_off(queue.head, close_error(queue.descriptor))  # finish() sees to those behind it, in order
