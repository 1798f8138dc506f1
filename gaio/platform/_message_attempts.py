"""The attempts of epoll and kqueue at messages: what keeps its boundaries, and what has an address.

The part of `_attempts.py` that no stream has to do with. What stands there goes for this too.
"""

from __future__ import annotations

import ctypes
import errno
from abc import ABC, abstractmethod
from itertools import repeat

from gaio.memory import Addressed
from gaio.platform import SEQPACKET, _libc
from gaio.platform._libc import SEND_FLAGS
from gaio.platform._messages import Messages

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from typing import Any

    from gaio.platform import Request

# Queue.ready
NOT_READY = 0
READY = 1
READY_UNTIL_EAGAIN = 2  # the end, an error or urgent data was reported: a short count does not end this readiness
# -errno: ready until EAGAIN, and this error came with the edge; a read behind the bytes might not report it

EAGAIN = -errno.EAGAIN


class MessageAttempts(ABC):
    """See above. What drives them is ReadinessBackend."""

    __slots__ = (
        *("arrivals", "full", "_returned", "_attempted", "_arrived", "_unfinished", "_stalled", "_last_try"),
        *("_largest", "_messages", "_sendto"),
    )

    many_messages = False  # whether one call may receive many: recvmmsg(2)

    def __init__(self, largest: int) -> None:
        """`largest` is the most bytes of a message for which the caller has brought no buffer."""
        self.arrivals: list[tuple[Any, Any]] = []
        self.full = False
        self._returned: list[int] = []  # what the call of the attempt under way returned, put there by C code
        self._attempted: Request | None = None
        self._arrived = 0  # how many arrivals there were before the attempt under way
        self._unfinished: dict[Any, None] = {}  # queues whose request repeats and has more to bring
        self._stalled = False  # they wait for the next recycle()
        self._last_try = False  # of a request that is being cancelled: what is there counts as arrived in time
        self._largest = largest
        self._messages: Messages | None = None  # made for the first message
        self._sendto = _libc.collecting("sendto", self._returned)

    def _try_receive_message(self, request: Any, queue: Any) -> None:
        """Receive one message, and who has sent it."""
        messages = self._messages or self._message_room()
        if not self._returned:
            self._attempted = request
            messages.receive(request, queue.descriptor.fd)
        moved = self._returned[0]
        if moved < 0:
            self._park_or_complete(request, queue, -ctypes.get_errno())
            return
        result = messages.fill(request, moved)
        if result:
            self._complete(request, queue, result)
        else:
            self._park_or_complete(request, queue, 0)

    def _message_room(self) -> Messages:
        messages = self._messages = Messages(self._largest, self._returned, self.many_messages)
        return messages

    def _try_next_messages(self, request: Any, queue: Any, kind: int) -> bool:
        """Receive the next message, or some of them; whether another attempt may bring more in this turn."""
        messages = self._messages or self._message_room()
        if not self._returned:
            if self.full and not self._last_try:
                return self._stall(queue)
            self._arrived = len(self.arrivals)
            self._attempted = request
            messages.receive_some(queue.fd, kind)
        returned = self._returned[0]
        if returned < 0 or (not returned and kind == SEQPACKET):
            self._park_or_complete(request, queue, -ctypes.get_errno() if returned else 0)
            return False
        if len(self.arrivals) == self._arrived:
            self.arrivals.extend(zip(repeat(request), messages.found(returned), strict=False))  # C code: all, or none
        found = len(self.arrivals) - self._arrived
        if found < messages.asked and queue.ready == READY:
            queue.ready = NOT_READY
        self._returned.clear()
        self._attempted = None
        if found == messages.asked > 1:
            self._unfinished[queue] = None  # let others come first
            return False
        return bool(queue.ready)

    def _try_send_to(self, request: Any, queue: Any, datagram: Addressed) -> None:
        if not self._returned:
            self._attempted = request
            self._sendto(queue.fd, datagram.data, request._length, SEND_FLAGS, datagram.name, len(datagram.name))
        moved = self._returned[0]
        if moved >= 0:
            self._complete(request, queue, moved)
        else:
            error = ctypes.get_errno()
            # Of one that no edge tells of: it is tried again by time, as after ENOBUFS.
            by_time = datagram.by_time and error == errno.EAGAIN
            self._park_or_complete(request, queue, -errno.ENOBUFS if by_time else -error)

    def _stall(self, queue: Any) -> bool:
        """There is no room for another arrival before the next recycle(): so there is no attempt either."""
        self._unfinished[queue] = None
        self._stalled = True
        return False

    @abstractmethod
    def _park_or_complete(self, request: Any, queue: Any, result: int) -> None:
        """Nothing has moved: the call returned 0, or -1 with the errno that is given as -errno."""

    @abstractmethod
    def _complete(self, request: Any, queue: Any, result: int, asked: int = 0) -> None:
        """The request has come back. A count below `asked` means that a TCP socket is empty, or full."""
