"""What is done to writes on their way: small ones are joined, and what is lent is copied when it has to be.

Small writes that stand in the queue of a stream behind one another leave in one call. The first of them carries the
bytes of all: its memory is longer than its own bytes, `_goal`. How many bytes have moved tells which of them are
finished.
"""

from __future__ import annotations

from gaio.memory import JOIN_LIMIT, Lent
from gaio.platform import SOCKET

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from gaio.connection import RequestQueue
    from gaio.engine import Engine
    from gaio.result import OpResult


def join(request: OpResult) -> None:
    """Have the small writes behind this one leave with it, in one call: its memory is followed by theirs.

    Only on a stream, where no message ends with a write. Not those with a deadline, which are cut off alone.
    """
    queue = request._queue
    if not queue.outbound or queue.descriptor.kind > SOCKET:
        return
    if type(request._memory) is not bytes or request._length != request._goal:
        return  # or they have been joined, and a part has gone
    parts = [request._memory[: request._goal]]  # it is longer where this was interrupted
    length = request._length
    following = request._next
    while following is not None and type(following._memory) is bytes and following._deadline is None:
        length += following._length
        if length > JOIN_LIMIT:
            break
        parts.append(following._memory)
        request_end = length
        following = following._next
    if len(parts) > 1:
        request._memory = b"".join(parts)
        request._length = request_end


def finish_joined(engine: Engine, request: OpResult, queue: RequestQueue, moved: int) -> None:
    """So many bytes have moved of a write and those that were joined to it: make results of what that covers."""
    request.error = None
    request.size = request._goal
    left = moved - request._goal
    finished = [request]
    following = request._next
    while following is not None and left >= following._goal > 0:
        following.size = following._goal
        left -= following._goal
        finished.append(following)
        following = following._next
    if following is not None:
        following._offset = following.size = left
    # In one step of C code: interrupted before, this is done again; after, recover() finds them finished.
    engine.outbox.extend(finished)
    queue.behind -= sum(done._goal for done in finished[1:])
    if following is None:
        queue.head = queue.tail = None
    else:
        engine.advance(queue, following)
    for done in finished:  # not before: what the head has let go of, nobody would find
        done._queue = done._next = done._memory = None
    if request._deadline is not None:
        engine.deadlines.call_off(request._deadline)


def recycle_lent(engine: Engine, lent: list[OpResult], count: int) -> bool:
    """Recycle the swap memory that the first of these writes are made from, now that they have begun. What the kernel
    has not taken of them is copied. False: it has not looked at all of them, and the next call does it.
    """
    if not engine.backend.all_taken():
        return False
    for request in lent[:count]:
        memory = request._memory
        if type(memory) is Lent:
            request._memory = memory.copy(request._length)
    engine.backend.recycle()
    del lent[:count]
    return True


def unsent(engine: Engine, queue: RequestQueue) -> int:
    """Bytes that were submitted to be written and have not gone. Any thread, also while another one leads."""
    while True:
        tail, behind, head = queue.tail, queue.behind, queue.head
        submitted = [item for item in engine.inbox.copy() if item._queue is queue]
        if queue.tail is tail:
            break  # else some were put into the queue meanwhile
    if tail in submitted:
        del submitted[: submitted.index(tail) + 1]  # they are about to be deleted there
    bytes_submitted: int = sum(item._goal for item in submitted)
    return bytes_submitted + behind + (0 if head is None else head._goal - head.size)
