"""What a watcher tells of itself: counters, and who is delegated and waits for what. Any thread, also while another one
leads: so everything is looked at once, in one step of C code each, and is right for itself.
"""

from __future__ import annotations

import weakref

from gaio.connection import nobody
from gaio.platform import _sockaddr
from gaio.result import OpResult
from gaio.types import ConnectionInfo, Stats

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from gaio.connection import Connection, RequestQueue
    from gaio.leader import Leader


def stats(leader: Leader) -> Stats:
    engine = leader.engine
    pending = {id(timer) for timer in list(engine.timers)}
    pending.update(id(item) for item in leader.inbox.copy() if isinstance(item, OpResult))
    for connection in list(engine.descriptors.values()):
        for queue in connection.queues():
            pending.update(_in(queue))
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
    return [_info(connection, submitted) for connection in sorted(found, key=lambda known: known.token)]


def _info(connection: Connection, submitted: dict[RequestQueue, list[OpResult]]) -> ConnectionInfo:
    reads, writes = connection.reads, connection.writes
    conn = connection.conn
    by_reference = isinstance(conn, weakref.ref) or conn is nobody  # else it is the object itself
    to_write = {} if writes is None else _pending(writes, submitted.get(writes, []))
    return ConnectionInfo(
        conn=conn() if by_reference else conn,
        number=connection.token // 2,
        peer=None if connection.peer is None else _sockaddr.unpack(connection.peer),
        reads=len(_pending(reads, submitted.get(reads, []))),
        writes=len(to_write),
        # Not by way of writes.unsent(), which goes through the whole inbox for each connection.
        unsent=sum(to_write.values()),
    )


def _pending(queue: RequestQueue, submitted: list[OpResult]) -> dict[int, int]:
    """What stands there, and what was in the inbox and has not finished since."""
    found = _in(queue)
    found.update((id(request), _to_go(request)) for request in submitted if request._queue is queue)
    return found


def _in(queue: RequestQueue) -> dict[int, int]:
    """The requests that stand there, and how many bytes each has to go. By identity, because a turn may have one in two
    places.
    """
    while True:
        head, tail = queue.head, queue.tail
        found = {}
        request = head
        while request is not None:
            found[id(request)] = _to_go(request)
            request = request._next
        if queue.head is head and queue.tail is tail:
            return found  # else a link may have been cut meanwhile


def _to_go(request: OpResult) -> int:
    # For a moment, the first of writes that are joined has the size of all: see writes.finish_joined().
    return max(0, request._goal - request.size)
