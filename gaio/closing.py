"""The end of a connection: free(), detach(), the end of the watcher, and a child after fork(2).

A descriptor is closed, or handed back, when nothing of its connection is under way any more: until then the kernel may
write into the buffers of its requests. These are steps of a turn, see gaio/engine.py, and as safe from interruption.
"""

from __future__ import annotations

import weakref

from gaio.connection import FINISHED, NO_MORE
from gaio.errors import ConnClosedError, WatcherClosedError
from gaio.outcome import close_error
from gaio.platform import _libc
from gaio.recovery import not_delivered, recover
from gaio.result import AcceptResult
from gaio.timers import end_timers

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from typing import Any

    from gaio.connection import Connection
    from gaio.engine import Engine, Wait
    from gaio.errors import GaioError
    from gaio.result import OpResult


class Close:
    """An item of the inbox that is no request: close this connection; with None, only look up."""

    __slots__ = ("connection", "forgotten")

    _queue = None  # what tells it from a request

    def __init__(self, connection: Connection | None, forgotten: bool = False) -> None:
        self.connection = connection
        self.forgotten = forgotten  # the collector asked for it, not the caller


class Sends(Close):
    """An item of the inbox: send these messages, without a request for each, see gaio/platform/__init__.py."""

    __slots__ = ("messages", "outcomes", "begun")

    def __init__(self, messages: list[tuple[int, bytes]]) -> None:
        super().__init__(None)
        self.messages = messages
        self.outcomes: dict[int, int] = {}
        self.begun = 0


class Detach(Close):
    """An item of the inbox: part with this connection without closing it."""

    __slots__ = ("done", "error", "owner")

    connection: Connection

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.done = False
        self.error: Exception | None = None
        self.owner: list[Any] = []  # of the descriptor, once the engine has parted with it


def close(engine: Engine, item: Close, reason: type[GaioError] = ConnClosedError) -> None:
    """Have the requests of a connection end with `reason`; then close_idle() closes its descriptor."""
    connection = item.connection
    if connection is None or connection.fd < 0:
        return
    with engine.new_queues:  # first: close_idle() closes what is in `closing`, and then the reason is wanted
        connection.close_reason = connection.close_reason or reason
        queues = connection.queues()
    # The number is kept with the connection, so that this can be interrupted and done again without counting twice.
    number = engine.closing.setdefault(connection, engine.gc_found + 1 if item.forgotten else 0)
    engine.gc_found = max(engine.gc_found, number)
    for queue in queues:
        engine.cancel_all(queue)


def close_idle(engine: Engine) -> None:
    """Close the descriptors of connections that are to be closed and have nothing under way any more."""
    for connection in list(engine.closing):
        if engine.closing[connection] == FINISHED:
            close(engine, Close(connection))
            engine.closing[connection] = 0
        queues = connection.queues()
        for queue in queues:
            if queue.head is None:
                queue.tail = NO_MORE  # finish() has left it open
        if any(queue.head is not None for queue in queues):
            continue  # the kernel may still write into its buffers
        if connection.fd >= 0:
            engine.backend.unregister(connection)
            engine.being_closed[:] = connection.own_descriptor()
            connection.fd = -1
        _libc.close_all(engine.being_closed)
        engine.descriptors.pop(connection.token, None)
        connection.let_go()
        if connection.finalizer is not None:
            connection.finalizer.detach()
        table = engine.table_of(connection)
        if table.get(connection.key) is connection:
            table.pop(connection.key, None)  # free() was interrupted before it did so, or has done it just now
        if engine.finishing.get(connection.key) is connection:
            del engine.finishing[connection.key]
        del engine.closing[connection]


def detach(engine: Engine, item: Detach) -> None:
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
        engine.backend.unregister(connection)
    connection.fd = -1
    with engine.new_queues:
        connection.close_reason = ConnClosedError
        for queue in connection.queues():
            queue.tail = NO_MORE
    engine.table_of(connection).pop(connection.key, None)
    engine.descriptors.pop(connection.token, None)
    connection.let_go()
    item.done = True


def close_everything(engine: Engine, wait: Wait) -> None:
    """Each request gets its result, each descriptor is closed. Goes on where an interruption ended it."""
    engine.interrupted = True  # until the end of these steps, which like those of a turn may be interrupted
    with engine.new_queues:  # whoever delegates after this sees that the watcher is closing
        connections = list(engine.descriptors.values())
    for connection in connections:
        close(engine, Close(connection), WatcherClosedError)
    close_idle(engine)
    engine.interrupted = False
    while engine.descriptors:
        engine.turn(None, wait)
    engine.connections.clear()
    engine.listeners.clear()
    engine.finishing.clear()
    engine.forget = None


def admit_the_late(engine: Engine) -> None:
    """When all is closed: what is in the inbox still is answered with the error, and so are timers."""
    if engine.interrupted:
        recover(engine)
    engine.interrupted = True
    engine.admit(engine.inbox.copy())
    end_timers(engine)
    engine.interrupted = False


def close_backend(engine: Engine) -> None:
    """Goes on where an interruption ended it; does nothing when that is done."""
    if engine.backend is not CLOSED_BACKEND:
        # Out of reach before it is closed: to recover() a ring that is no longer mapped would be fatal.
        engine.retired = engine.backend
        engine.backend = CLOSED_BACKEND
    engine.retired.close()
    engine.retired = CLOSED_BACKEND


def withdraw(engine: Engine, request: OpResult) -> bool:
    """Take back a request that came when all was closed; False when it has got its result already."""
    if request not in engine.inbox:
        return False
    engine.inbox.remove(request)
    if request._deadline is not None:
        request._deadline.request = None
    return True


def abandon(engine: Engine) -> None:
    """In the child after fork(2): close the child's copies, touch nothing that is shared with the parent."""
    # Another thread of the parent may have been in the middle of closing one, or of detaching one.
    fds = set(engine.being_closed)
    for connection in engine.descriptors.values():
        fds.update(connection.own_descriptor())
    for connection in engine.begun.values():
        conn = connection.conn() if isinstance(connection.conn, weakref.ref) else connection.conn
        if conn is not None and conn.fileno() == connection.fd:
            fds.discard(connection.fd)  # it is the caller's still
    fds.update(what for _, what in not_delivered(engine) if isinstance(what, int))
    fds.update(
        request._result
        for request in engine.backend.completed
        if isinstance(request, AcceptResult) and request._result >= 0 and not request._accepted
    )
    for item in engine.inbox:
        if isinstance(item, Detach) and item.owner:
            fds.discard(item.owner[0].fileno())
            item.owner.clear()
    for connection in engine.descriptors.values():
        connection.fd = -1  # a call that a signal handler interrupted, to fork, may go on here for a while
    _libc.close_all(list(fds))
    engine.connections.clear()
    engine.listeners.clear()
    engine.finishing.clear()
    engine.begun.clear()
    engine.descriptors.clear()
    engine.timers.clear()
    engine.inbox.clear()
    engine.outbox.clear()
    for backend in {engine.backend, engine.retired}:  # the same one while it is being closed
        backend.abandon()
    engine.backend = engine.retired = CLOSED_BACKEND


class _ClosedBackend:
    """What an engine has for a backend before there is one, and after: no thread can be in the middle of waking it."""

    completed: list[Any] = []  # noqa: RUF012  # stays empty
    arrivals: list[Any] = []  # noqa: RUF012  # stays empty
    full = False
    sends_together = False
    fell_short = False
    swap: Any = None

    def register(self, _: Connection) -> None:
        raise WatcherClosedError("the watcher was closed meanwhile")

    def unregister(self, _: Connection) -> None: ...

    def recover(self) -> list[OpResult]:
        return []

    def wake(self) -> None: ...
    def unfinished(self) -> bool:
        return False

    def all_taken(self) -> bool:
        return True

    def all_sent(self) -> bool:
        return True

    def send_all(self, sends: Sends) -> None:
        sends.outcomes.update(dict.fromkeys(range(sends.begun, len(sends.messages)), 0))  # nothing of these went out

    def lend(self) -> None: ...
    def recycle(self) -> None: ...
    def recycle_unused(self) -> None: ...
    def close(self) -> None: ...
    def abandon(self) -> None: ...


CLOSED_BACKEND: Any = _ClosedBackend()
