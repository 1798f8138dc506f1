"""The engine: a turn carries requests from the inbox through their queues and the backend to the outbox.

    inbox --> admit: each to its connection's queue --> backend.start
                  next of that queue <-- finish <-- backend.wait --> outbox

It knows no thread and no signal, and no lock but the one that it is given: whoever calls it is alone in it, and
gaio/leader.py sees to that. Inbox, clock and backend come from outside, as tests/simulation/ has its own.

What keeps a turn safe from KeyboardInterrupt
    At every bytecode, each accepted request is in the inbox, in a queue or in the outbox, which the leader keeps until
    the batch is returned; what the kernel has given is in memory (gaio/platform/__init__.py). A request leaves one
    place only after it is in the next. So the worst that an interruption can leave is a request in two places, and
    gaio/recovery.py puts that right by looking at all of them before the next turn, which finds `interrupted` set. It
    costs a walk over every connection, and happens only then.
"""

from __future__ import annotations

from gaio.connection import NO_MORE, Connection, RequestQueue
from gaio.deadlines import Deadline, Deadlines
from gaio.errors import ConnClosedError, DeadlineError, WatcherClosedError
from gaio.outcome import BACK_OFF, cancelled, close_error, conclude
from gaio.platform import CANCELLED, LISTENER, _libc
from gaio.recovery import recover
from gaio.result import CONNECT, OpResult

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from typing import Any

    from gaio import platform
    from gaio.errors import GaioError

    Wait = Callable[[float | None], object]  # backend.wait(), and what its caller has to do before and after

# For how long an accept that ran out of descriptors is held back before its error is delivered, in seconds.
BACK_OFF_SECONDS = 0.1


class Close:
    """An item of the inbox that is no request: close this connection; with None, only look up."""

    __slots__ = ("connection", "forgotten")

    _queue = None  # what tells it from a request

    def __init__(self, connection: Connection | None, forgotten: bool = False) -> None:
        self.connection = connection
        self.forgotten = forgotten  # the collector asked for it, not the caller


class Detach(Close):
    """An item of the inbox: part with this connection without closing it."""

    __slots__ = ("done", "error", "owner")

    connection: Connection

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.done = False
        self.error: Exception | None = None
        self.owner: list[Any] = []  # of the descriptor, once the engine has parted with it


class Engine:
    """Requests, queues and deadlines of one watcher. Only for whoever leads, but for what is said to be shared."""

    def __init__(
        self, inbox: list[Any], clock: Callable[[], float], new_queues: AbstractContextManager[object]
    ) -> None:
        """`new_queues` is held while a connection stops taking requests: nobody adds a queue to it meanwhile."""
        self.inbox = inbox  # shared: any thread appends; copied here, and then deleted
        self.clock = clock
        self.new_queues = new_queues
        # Shared with submitters; a single dictionary or set operation at a time, each atomic in itself.
        self.connections: dict[int, Connection] = {}  # id(conn) -> its connection, while it takes requests
        self.listeners: dict[int, Connection] = {}  # the same for listening sockets, which only accept
        self.connecting: set[int] = set()  # tokens of the connections with a connect() under way
        self.descriptors: dict[int, Connection] = {}  # token -> connection, from delegation until it is closed
        # Not shared.
        self.outbox: list[OpResult] = []
        self.ready: list[OpResult] = []  # heads of queues, to be started
        self.partial: list[OpResult] = []  # came back with work left, to be started again
        # To be closed when nothing of it is under way -> its number among those that the collector found, 0 if the
        # caller freed it.
        self.closing: dict[Connection, int] = {}
        self.backing_off: dict[OpResult, None] = {}  # accepts that ran out of descriptors
        self.being_closed: list[int] = []  # the number whose closing has begun; empty otherwise
        self.deadlines: Deadlines = Deadlines()
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
        completed = backend.completed
        finished = len(self.outbox)

        inbox = self.inbox
        if inbox:
            self.admit(inbox[:])
        if self.ready:
            backend.start(self.ready)
            self.ready.clear()
        if self.deadlines.entries:
            timeout = self.expire(timeout)
        if self.closing:
            self.close_idle()  # what has nothing under way need not wait for the kernel

        # What was cut off before it was started is in the outbox already.
        if completed or timeout == 0 or len(self.outbox) != finished:
            backend.wait(0)
        else:
            wait(timeout)

        if completed:
            self.finish(completed)
            completed.clear()
            if self.partial:
                for request in self.partial:
                    request._offset = request.size
                self.ready.extend(self.partial)
                self.partial.clear()
        if self.closing:
            self.close_idle()
        self.interrupted = False

    def admit(self, items: list[Any]) -> None:
        """Put each request into its queue; those that come first there are ready to start."""
        ready = self.ready
        for request in items:
            queue = request._queue
            if queue is None:
                self.close(request)
                continue
            tail = queue.tail
            if tail is None:
                queue.head = request
                queue.tail = request
                ready.append(request)
            elif tail is NO_MORE:
                request.error = close_error(queue.descriptor)
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
            if request._deadline is not None:
                request._deadline.before = tail
                self.deadlines.add(request._deadline)
        del self.inbox[: len(items)]

    def finish(self, completed: list[OpResult]) -> None:
        """Make results of what came back, and let the next of each queue follow."""
        outbox = self.outbox
        ready = self.ready
        for request in completed:
            queue = request._queue
            result = request._result
            if result > 0 and request.error is None:
                request.size = size = request._offset + result
                if size < request._goal:
                    self.partial.append(request)
                    continue
            else:
                ends = conclude(request, queue, result)
                if not ends:
                    self.partial.append(request)
                    continue
                if ends is BACK_OFF:
                    self.back_off(request)
                    continue
                if request.operation is CONNECT:
                    self.connecting.discard(queue.descriptor.token)
            # First in the outbox, then out of the queue: see gaio/recovery.py.
            outbox.append(request)
            following = request._next
            queue.head = following
            if following is None:
                queue.tail = None
            else:
                if following._deadline is not None:
                    following._deadline.before = None
                if queue.descriptor.close_reason is None:
                    ready.append(following)
                else:
                    completed.append(cancelled(following))  # which this loop comes to
            request._queue = request._next = request._memory = None
            if request._deadline is not None:
                self.deadlines.call_off(request._deadline)

    def back_off(self, request: OpResult) -> None:
        """Hold an accept that failed back for a moment, so that a loop around it does not spin."""
        until = self.clock() + BACK_OFF_SECONDS
        if request._deadline is not None:
            until = min(until, request._deadline.when)
            self.deadlines.call_off(request._deadline)
        request._deadline = Deadline(until, request)
        self.deadlines.add(request._deadline)
        self.backing_off[request] = None

    # --- what cuts requests off -----------------------------------------------------------------------------

    def expire(self, timeout: float | None) -> float | None:
        """Cut off what is past its deadline, and shorten `timeout` to the next one."""
        now = self.clock()
        deadlines = self.deadlines
        while True:
            request = deadlines.expired(now)
            if request is None:
                break
            if request in self.backing_off:
                self.cut_off(request, request.error)
            else:
                self.cut_off(request, DeadlineError("timed out; `size` tells how many bytes had moved"))
            if request._deadline is not None:
                deadlines.call_off(request._deadline)
        when = deadlines.earliest()
        if when is None:
            return timeout
        remaining = max(0.0, when - now)
        return remaining if timeout is None else min(timeout, remaining)

    def cut_off(self, request: OpResult, error: Exception | None) -> None:
        """Have the request end with this error, unless it finishes first. What is no head must have a deadline."""
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
        deadline = request._deadline
        assert deadline is not None
        before: Any = deadline.before
        request.error = error
        if request.operation is CONNECT:
            self.connecting.discard(queue.descriptor.token)
        self.outbox.append(request)
        self.deadlines.call_off(deadline)  # not before: interrupted here, recover() sees it in the outbox
        following = before._next = request._next
        if following is None:
            queue.tail = before
        elif following._deadline is not None:
            following._deadline.before = before
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

    # --- closing and detaching ------------------------------------------------------------------------------

    def close(self, item: Close, reason: type[GaioError] = ConnClosedError) -> None:
        """Have the requests of a connection end with `reason`; then close_idle() closes its descriptor."""
        connection = item.connection
        if type(item) is Detach:
            self.detach(item)
            return
        if connection is None or connection.fd < 0:
            return
        with self.new_queues:  # first: close_idle() closes what is in `closing`, and then the reason is wanted
            connection.close_reason = connection.close_reason or reason
            queues = connection.queues()
        # The number is kept with the connection, so that this can be interrupted and done again without counting twice.
        number = self.closing.setdefault(connection, self.gc_found + 1 if item.forgotten else 0)
        self.gc_found = max(self.gc_found, number)
        for queue in queues:
            self.cancel_all(queue)

    def close_idle(self) -> None:
        """Close the descriptors of connections that are to be closed and have nothing under way any more."""
        for connection in list(self.closing):
            queues = connection.queues()
            for queue in queues:
                if queue.head is None:
                    queue.tail = NO_MORE  # finish() has left it open
            if any(queue.head is not None for queue in queues):
                continue  # the kernel may still write into its buffers
            if connection.fd >= 0:
                self.backend.unregister(connection)
                self.being_closed[:] = (connection.fd,)
                connection.fd = -1
            _libc.close_all(self.being_closed)
            self.descriptors.pop(connection.token, None)
            connection.let_go_of_queues()
            if connection.finalizer is not None:
                connection.finalizer.detach()
            table = self.table_of(connection)
            if table.get(connection.key) is connection:
                table.pop(connection.key, None)  # free() was interrupted before it did so, or has done it just now
            del self.closing[connection]

    def detach(self, item: Detach) -> None:
        """Part with the connection, if it has nothing pending: its descriptor goes to the item."""
        if item.done:
            return  # this was interrupted after its end
        connection: Any = item.connection
        if not item.owner:  # else this was interrupted, and goes on
            if connection.close_reason is WatcherClosedError:
                item.error = close_error(connection)
            elif connection.close_reason is not None:
                item.error = ConnClosedError("conn has been freed or detached meanwhile")
            elif any(queue.head is not None for queue in connection.queues()):
                item.error = RuntimeError("requests are pending: detach() when their results have come, or free()")
            if item.error is not None:
                item.done = True
                return
            item.owner.extend(map(_libc.socket_owner_of, (connection.fd,)))
        if connection.fd >= 0:
            self.backend.unregister(connection)
        connection.fd = -1
        with self.new_queues:
            connection.close_reason = ConnClosedError
            for queue in connection.queues():
                queue.tail = NO_MORE
        self.table_of(connection).pop(connection.key, None)
        self.descriptors.pop(connection.token, None)
        connection.let_go_of_queues()
        item.done = True

    def close_everything(self, wait: Wait) -> None:
        """Each request gets its result, each descriptor is closed. Goes on where an interruption ended it."""
        self.interrupted = True  # until the end of these steps, which like those of a turn may be interrupted
        with self.new_queues:  # whoever delegates after this sees that the watcher is closing
            connections = list(self.descriptors.values())
        for connection in connections:
            self.close(Close(connection), WatcherClosedError)
        self.close_idle()
        self.interrupted = False
        while self.descriptors:
            self.turn(None, wait)
        self.connections.clear()
        self.listeners.clear()

    def admit_the_late(self) -> None:
        """When all is closed: what is in the inbox still is answered with the error."""
        if self.interrupted:
            recover(self)
        self.interrupted = True
        self.admit(self.inbox.copy())
        self.interrupted = False

    def close_backend(self) -> None:
        """Goes on where an interruption ended it; does nothing when that is done."""
        if self.backend is not CLOSED_BACKEND:
            # Out of reach before it is closed: to recover() a ring that is no longer mapped would be fatal.
            self.retired = self.backend
            self.backend = CLOSED_BACKEND
        self.retired.close()
        self.retired = CLOSED_BACKEND

    def withdraw(self, request: OpResult) -> bool:
        """Take back a request that came when all was closed; False when it has got its result already."""
        if request not in self.inbox:
            return False
        self.inbox.remove(request)
        if request._deadline is not None:
            request._deadline.request = None
        return True

    def abandon(self) -> None:
        """In the child after fork(2): close the child's copies, touch nothing that is shared with the parent."""
        # Another thread of the parent may have been in the middle of closing one, or of detaching one.
        fds = {*self.being_closed, *(connection.fd for connection in self.descriptors.values() if connection.fd >= 0)}
        for item in self.inbox:
            if isinstance(item, Detach) and item.owner:
                fds.discard(item.owner[0].fileno())
                item.owner.clear()
        for connection in self.descriptors.values():
            connection.fd = -1
            for queue in connection.queues():
                queue.fd = -1  # a call that a signal handler interrupted, to fork, may go on here for a while
        _libc.close_all(list(fds))
        self.connections.clear()
        self.listeners.clear()
        self.descriptors.clear()
        self.inbox.clear()
        self.outbox.clear()
        for backend in {self.backend, self.retired}:  # the same one while it is being closed
            backend.abandon()
        self.backend = self.retired = CLOSED_BACKEND


class _ClosedBackend:
    """What an engine has for a backend before there is one, and after: no thread can be in the middle of waking it."""

    def register(self, _: Connection) -> None:
        raise WatcherClosedError("the watcher was closed meanwhile")

    def recover(self) -> list[OpResult]:
        return []

    def wake(self) -> None: ...
    def lend(self) -> None: ...
    def recycle(self) -> None: ...
    def recycle_unused(self) -> None: ...
    def close(self) -> None: ...
    def abandon(self) -> None: ...


CLOSED_BACKEND: Any = _ClosedBackend()
