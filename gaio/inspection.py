"""What a watcher tells of itself: counters, and who is delegated and waits for what. Any thread, also while another one
leads: so everything is looked at once, in one step of C code each, and is right for itself.
"""

from __future__ import annotations

import weakref

from gaio.connection import nobody
from gaio.platform import _sockaddr
from gaio.result import OpResult
from gaio.types import ConnectionInfo, Stats
from gaio.writes import unsent

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from gaio.connection import Connection, RequestQueue
    from gaio.engine import Engine
    from gaio.leader import Leader


def stats(leader: Leader) -> Stats:
    engine = leader.engine
    pending = {id(timer) for timer in list(engine.timers)}
    pending.update(id(item) for item in leader.inbox.copy() if isinstance(item, OpResult))
    for connection in list(engine.descriptors.values()):
        for queue in connection.queues():
            pending |= _in(queue)
    return Stats(
        conns=len(engine.connections) + len(engine.listeners) + len(engine.finishing),
        pending=len(pending),
        completions=leader.completions,
        batches=leader.batches,
        wakeups=leader.wakeups,
        gc_found=engine.gc_found,
        gc_closed=engine.gc_closed(),
    )


def connections(leader: Leader) -> list[ConnectionInfo]:
    engine = leader.engine
    submitted: dict[RequestQueue, list[OpResult]] = {}
    for item in leader.inbox.copy():
        queue = item._queue
        if queue is not None:
            submitted.setdefault(queue, []).append(item)
    tables = (engine.connections, engine.listeners, engine.finishing)
    found = [connection for table in tables for connection in list(table.values())]
    return [_info(engine, connection, submitted) for connection in sorted(found, key=lambda known: known.token)]


def _info(
    engine: Engine, connection: Connection, submitted: dict[RequestQueue, list[OpResult]]
) -> ConnectionInfo:
    reads, writes = connection.reads, connection.writes
    conn = connection.conn
    by_reference = isinstance(conn, weakref.ref) or conn is nobody  # else it is the object itself
    return ConnectionInfo(
        conn=conn() if by_reference else conn,
        number=connection.token // 2,
        peer=None if connection.peer is None else _sockaddr.unpack(connection.peer),
        reads=_pending(reads, submitted.get(reads, [])),
        writes=0 if writes is None else _pending(writes, submitted.get(writes, [])),
        unsent=0 if writes is None else unsent(engine, writes),
    )


def _pending(queue: RequestQueue, submitted: list[OpResult]) -> int:
    """How many stand there, or were in the inbox and have not finished since."""
    found = _in(queue)
    return len(found.union(id(request) for request in submitted if request._queue is queue))


def _in(queue: RequestQueue) -> set[int]:
    """The requests that stand there. A set, because a turn may have one in two places."""
    while True:
        head, tail = queue.head, queue.tail
        found = set()
        request = head
        while request is not None:
            found.add(id(request))
            request = request._next
        if queue.head is head and queue.tail is tail:
            return found  # else a link may have been cut meanwhile
