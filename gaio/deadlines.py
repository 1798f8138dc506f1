"""The deadlines of pending requests: a heap with entries that can be called off.

Most deadlines are called off, because most requests finish in time. An entry called off lets go of its request
at once and stays in the heap as an empty shell; when the shells outnumber the rest, the heap is built anew, so
memory follows the requests that are pending and not those that were ever submitted.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from collections.abc import Iterable

    from gaio.result import OpResult

_FEW = 64  # shells that are not worth building the heap anew


class Deadline:
    """When a request expires, in seconds of `time.monotonic()`."""

    __slots__ = ("when", "request", "before", "idle", "until")

    def __init__(self, when: float, request: OpResult, idle: float = 0) -> None:
        self.when = when
        self.request: OpResult | None = request
        self.idle = idle  # of one that repeats: so many seconds after each arrival
        self.until = when  # to be postponed until then, once `when` has come: Engine.put_off() sets it on an arrival
        self.before: OpResult | None = None  # what stands before that one in its queue; None of the first there

    def __lt__(self, other: Deadline) -> bool:
        return self.when < other.when


class Deadlines:
    """Pending deadlines, earliest first. Not thread-safe: it belongs to the leader."""

    __slots__ = ("entries", "_shells")

    def __init__(self) -> None:
        self.entries: list[Deadline] = []
        self._shells = 0

    def __len__(self) -> int:
        """Entries held, shells included."""
        return len(self.entries)

    def add(self, deadline: Deadline) -> None:
        """Take a deadline in. One that is called off already, or is here already, does no harm."""
        heappush(self.entries, deadline)

    def call_off(self, deadline: Deadline) -> None:
        """Forget the deadline: its request has finished."""
        if deadline.request is None:
            return
        deadline.request = deadline.before = None
        self._shells += 1
        if self._shells > _FEW and self._shells * 2 > len(self.entries):
            self.replace(self.entries)

    def replace(self, deadlines: Iterable[Deadline]) -> None:
        """Hold these deadlines and no others; those called off are left out.

        That is also how the heap is mended: comparing entries runs bytecode, so heappush() and heappop() that an
        exception cuts short there leave them out of order.
        """
        alive = [deadline for deadline in deadlines if deadline.request is not None]
        heapify(alive)
        self.entries = alive
        self._shells = 0

    def postpone(self, request: OpResult, now: float) -> bool:
        """If the first deadline of all, which is that of this request, is to come later, see to that."""
        deadline = self.entries[0]
        if deadline.until <= now:
            return False
        later = Deadline(deadline.until, request, deadline.idle)
        request._deadline = later
        heapreplace(self.entries, later)
        return True

    def earliest(self) -> float | None:
        """When the next deadline expires, None when there is none."""
        heap = self.entries
        while heap and heap[0].request is None:
            heappop(heap)
            self._shells -= 1
        return heap[0].when if heap else None

    def expired(self, now: float) -> OpResult | None:
        """The request whose deadline passed first and has not been called off; it stays until `call_off()`."""
        when = self.earliest()
        if when is None or when > now:
            return None
        return self.entries[0].request
