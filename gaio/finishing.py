"""The orderly end of a connection, finish(): what is queued goes out, then FIN, then what the peer still sends is read
and dropped until its end, then the descriptor is closed.

Closed at once, with bytes unread or still to come, a TCP socket sends a reset, and that may destroy at the peer what it
has not read yet (RFC 9112, section 9.6).

One request does it, in two places. In the queue of writes it is a shutdown(2). When that is done it goes over to the
queue of reads, as a read that repeats, whose arrivals nobody gets. These are steps of a turn, see gaio/engine.py, and
as safe from interruption: on its way from one queue to the other it stays in `completed`, and may be sent there again.
"""

from __future__ import annotations

from gaio.closing import Close
from gaio.connection import FINISHED
from gaio.errors import ConnClosedError
from gaio.platform import CANCELLED, DATAGRAM, FILE
from gaio.result import FINISH, UNDER_WAY, OpResult

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from gaio.connection import Connection, RequestQueue
    from gaio.engine import Engine


class FinishResult(OpResult):
    """The request of finish(), and its result."""

    __slots__ = ("_draining",)

    def __init__(self) -> None:
        self._draining = False  # FIN has been sent


class StopReading(Close):
    """An item of the inbox, before that request: have the reads of this connection end."""

    __slots__ = ()

    connection: Connection


def cut_off_reads(engine: Engine, connection: Connection) -> None:
    if engine.ready:
        engine.backend.start(engine.ready)  # only what has been started can be cancelled
        engine.ready.clear()
    head = connection.reads.head
    while head is not None and head._next is not None and head._next.operation is not FINISH:
        engine.cut_off(head._next, _error(), head)
    if head is not None and head.operation is not FINISH:
        engine.cut_off(head, _error())


def _error() -> ConnClosedError:
    return ConnClosedError("finish() was called for this connection")


def drains(engine: Engine, request: FinishResult) -> bool:
    """Whether it goes on, in the queue of reads: it comes back from shutdown(2), or is to be started again there."""
    queue = request._queue
    if queue.outbound:
        if (request._result < 0 and not request._draining) or queue.descriptor.kind in (FILE, DATAGRAM):
            return False
        request._draining = True  # first: interrupted from here on, all of this is done again
        request._result = CANCELLED
        if request.error is not UNDER_WAY:
            return False  # it was cut off: FIN alone is no orderly end
    elif request._result != CANCELLED or request.error is not UNDER_WAY:
        return False
    connection: Connection = request._connection
    writes, reads = connection.writes, connection.reads
    if writes is not None and writes.head is request:
        leave(engine, request, writes)
    request.more = True
    request._queue = reads
    cut_off_reads(engine, connection)  # those of threads that were late
    _join(engine, request, reads)
    if reads.head is request:
        engine.partial.append(request)
    return True


def _join(engine: Engine, request: FinishResult, reads: RequestQueue) -> None:
    """To the end of that queue, unless it is there."""
    before, following = None, reads.head
    while following is not None:
        if following is request:
            return
        before, following = following, following._next
    request._next = None
    if request._deadline is not None:
        request._deadline.before = before
        engine.deadlines.add(request._deadline)  # of what was in no queue, recover() has lost it
    if before is None:
        reads.head = request
    else:
        before._next = request
    reads.tail = request


def leave(engine: Engine, request: OpResult, queue: RequestQueue) -> None:
    following = request._next
    if following is None:
        queue.head = queue.tail = None
    else:
        engine.advance(queue, following)


def end(engine: Engine, request: FinishResult, queue: RequestQueue) -> None:
    """It is a result. With it the connection is closed, whatever the error."""
    if queue.descriptor.kind in (FILE, DATAGRAM) and type(request.error) is OSError:
        request.error = None  # there is no FIN to send: shutdown(2) has said so
    connection: Connection = request._connection
    request.more = False
    engine.outbox.append(request)
    leave(engine, request, queue)
    engine.closing.setdefault(connection, FINISHED)  # recover() does so as well
    request._queue = request._next = None
    if request._deadline is not None:
        engine.deadlines.call_off(request._deadline)
