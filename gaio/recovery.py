"""What a turn that was interrupted has left, put right: requests that are in two places, steps half done."""

from __future__ import annotations

from gaio.connection import FINISHED, NO_MORE, RequestQueue
from gaio.errors import GaioError
from gaio.outcome import cancelled, close_error
from gaio.platform import CANCELLED, _libc
from gaio.result import FINISH, UNDER_WAY, WRITE, AcceptResult, OpResult
from gaio.timers import TimerResult

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from gaio.deadlines import Deadline
    from gaio.engine import Engine


def recover(engine: Engine) -> None:
    """Before the next turn. It may be interrupted as well, and is then begun anew."""
    backend = engine.backend
    held = backend.recover()
    finished = {id(request) for request in engine.outbox}
    for request in engine.outbox:
        if request._deadline is not None:
            engine.deadlines.call_off(request._deadline)
        if type(request) is TimerResult:
            engine.timers.pop(request, None)
        elif request.operation is FINISH:
            engine.closing.setdefault(request._connection, FINISHED)
        if request._queue is not None:
            request.more = False  # it is the request itself, and none of its arrivals
    # An error among them is of an accept that is held back; where that was interrupted it is done again.
    again = {id(request) for request in backend.completed if request._result != CANCELLED}
    backend.arrivals[:] = [
        arrival
        for arrival in not_delivered(engine)
        if not (isinstance(arrival[1], OSError) and id(arrival[0]) in again)
    ]
    backend.completed[:] = [request for request in backend.completed if id(request) not in finished]
    for request in backend.completed:
        concluded = request._result != CANCELLED and not isinstance(request.error, GaioError)
        if request.operation > WRITE and (concluded or request.error is None):
            # It is concluded anew; finish() takes None for a read's or a write's. One that is being closed was cut off
            # before: it must not be taken for one that goes on, as an accept does that ran out of descriptors.
            connection = request._queue.descriptor
            request.error = UNDER_WAY if connection.close_reason is None else close_error(connection)
        if request in engine.backing_off:  # it was being put there, or cut off there: in both cases it ends
            if request._deadline is not None:
                engine.deadlines.call_off(request._deadline)
            del engine.backing_off[request]
    started = {id(request) for request in (*held, *backend.completed, *engine.backing_off)}

    for connection in engine.closing:
        if engine.being_closed and engine.being_closed[0] == connection.fd:
            connection.fd = -1
    _libc.close_all(engine.being_closed)

    engine.partial.clear()
    engine.ready.clear()
    queued: set[int] = set(map(id, engine.timers))
    deadlines: list[Deadline] = [timer._deadline for timer in engine.timers]
    for connection in list(engine.descriptors.values()):
        # A connect() first: a read behind it must find that it is under way.
        for queue in reversed(connection.queues()):
            requests = [request for request in _chain(queue.head) if id(request) not in finished]
            queued.update(map(id, requests))
            deadlines += [request._deadline for request in requests if request._deadline is not None]
            _relink(queue, requests)
            if requests and id(requests[0]) not in started:
                requests[0]._offset = requests[0].size
                if connection.close_reason is None:
                    engine.ready.append(requests[0])
                else:
                    backend.completed.append(cancelled(requests[0]))
    engine.deadlines.replace(deadlines)  # that of a request that was being admitted may be missing
    for request in engine.outbox:
        request._queue = request._next = request._memory = None
    # What was admitted is the inbox's beginning. Only a deletion is safe while others append.
    admitted = 0
    for index, item in enumerate(engine.inbox.copy(), 1):
        if id(item) in queued or id(item) in finished:
            admitted = index
    del engine.inbox[:admitted]


def not_delivered(engine: Engine) -> list[tuple[OpResult, Any]]:
    """The arrivals that have not become results yet. Those that have are taken by these, descriptors among them."""
    for result in engine.outbox:
        if isinstance(result, AcceptResult) and type(result._memory) is tuple:
            result.take(result._memory)
    taken = {id(result._memory) for result in engine.outbox}
    return [arrival for arrival in engine.backend.arrivals if id(arrival) not in taken]


def _chain(request: OpResult | None) -> Iterable[OpResult]:
    while request is not None:
        yield request
        request = request._next


def _relink(queue: RequestQueue, requests: list[OpResult]) -> None:
    before = None
    for request, following in zip(requests, [*requests[1:], None], strict=False):  # of none, nothing follows
        request._next = following
        if request._deadline is not None:
            request._deadline.before = before
        before = request
    queue.behind = sum(request._goal for request in requests[1:])
    queue.head = requests[0] if requests else None
    queue.tail = requests[-1] if requests else NO_MORE if queue.descriptor.close_reason else None
