"""A backend in memory, behind the contract of gaio/platform/__init__.py. The seed decides what its kernel does.

It comes in two manners. As `epoll` and `kqueue` it holds nothing: after an interruption everything that was not
answered is forgotten. As `io_uring` its kernel holds what was started, through an interruption too. Requests are
answered when they are started, in one of the waits that follow, or when they are cancelled; in any order; and what has
been answered may come back later. Beyond the contract it only checks that the engine keeps to it.
"""

from __future__ import annotations

import ctypes
import errno
import weakref
from typing import TYPE_CHECKING, Any

from gaio.memory import Vector, iovec
from gaio.platform import CANCELLED, FILE
from gaio.result import ACCEPT, CONNECT, READ, SHUTDOWN, WRITE, Operation
from tests.simulation.model import PENDING, Chance, Link, Record, Violation

if TYPE_CHECKING:
    from gaio.platform import Descriptor
    from tests.simulation.program import Simulation

# What each call may say beside success, from its man page; CANCELLED: the kernel cancels unasked.
_EVERY = ("EINTR", "ECANCELED", "EIO", "EBADF", "ENOMEM", "EINVAL")
_ERRORS: dict[Operation, tuple[str, ...]] = {
    READ: (*_EVERY, "EAGAIN", "ENOBUFS", "ECONNRESET", "ETIMEDOUT", "EHOSTUNREACH", "ENOTCONN", "ECONNREFUSED"),
    WRITE: (*_EVERY, "EAGAIN", "ENOBUFS", "EPIPE", "ECONNRESET", "EMSGSIZE", "ENETDOWN", "EDESTADDRREQ", "EPERM"),
    ACCEPT: (
        *_EVERY,
        *("EAGAIN", "ECONNABORTED", "EPROTO", "ENETDOWN", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH", "ENOPROTOOPT"),
        *("EOPNOTSUPP", "EMFILE", "EMFILE", "ENFILE", "ENOBUFS", "EPERM"),
    ),
    CONNECT: (*_EVERY, "EAGAIN", "ECONNREFUSED", "ETIMEDOUT", "ENETUNREACH", "EALREADY", "EISCONN", "EADDRINUSE"),
    SHUTDOWN: (*_EVERY, "ENOTCONN", "ENOBUFS"),
}
ERRORS = {
    operation: (CANCELLED, CANCELLED, *(-getattr(errno, name) for name in names))
    for operation, names in _ERRORS.items()
}
SWAP_READ = 300  # the most bytes that a read without a buffer gets


class Flight:
    """A request that was started and has not come back."""

    __slots__ = ("request", "record", "cancelling", "parked", "answer", "view", "taken")

    def __init__(self, request: Any) -> None:
        self.request = request
        self.record: Record = request.context
        self.cancelling = False
        self.parked = False  # until a buffer is given back
        self.answer: int | None = None
        self.view: memoryview | None = None
        self.taken: list[bytearray] = []  # swap memory, also where it was for nothing


class SimulatedBackend:
    """See above."""

    name = "simulation"

    def __init__(self, world: Simulation, chance: Chance) -> None:
        self.completed: list[Any] = []
        self.world = world
        self.chance = chance
        self.holds = chance.happens(0.5)  # as io_uring does
        self.at_once = chance.one_of((0.0, 0.3, 0.9))  # how often a request is tried when it is started
        self.later = chance.one_of((0.3, 0.8, 1.0))  # how often in each wait
        self.comes_back = chance.one_of((0.4, 0.9, 1.0))  # how often what is answered comes back with a wait
        self.whole = chance.one_of((0.1, 0.6, 1.0))  # how often as many bytes move as can
        self.fails = chance.one_of((0.0, 0.03, 0.15))
        self.prompt = False  # everything is answered at once and nothing fails
        self.flights: dict[int, Flight] = {}  # by the token of the queue
        self.registered: dict[int, Descriptor] = {}
        self.links: dict[int, Link] = {}
        self.markers: list[weakref.ref[Any]] = []  # of queues, which cannot be referred to weakly themselves
        # Swap memory: free buffers, those that have come back since the last lend(), and those lent.
        self.free = chance.one_of((1, 2, 1000))
        self.taken: list[bytearray] = []
        self.lent: list[bytearray] = []
        self.strikes = 0  # KeyboardInterrupt when this is counted down to 0
        self.idle = 0  # waits in a row that brought nothing
        self.closed = False

    # --- what the engine calls ------------------------------------------------------------------------------

    def register(self, descriptor: Descriptor) -> None:
        self._check_open()
        self.registered[descriptor.token] = descriptor
        self._mark(descriptor.reads)

    def unregister(self, descriptor: Descriptor) -> None:
        self._check_open()
        self.strike()
        if any(token in self.flights for token in (descriptor.token, descriptor.token + 1)):
            raise Violation(f"conn {descriptor} is unregistered with a request in flight")
        self.registered.pop(descriptor.token, None)
        self.strike()

    def start(self, requests: list[Any]) -> None:
        self._check_open()
        for request in requests:
            self.strike()
            self._begin(request)
        self.strike()

    def cancel(self, request: Any) -> None:
        self._check_open()
        self.strike()
        flight = self.flights.get(request._queue.token)
        if flight is not None and flight.request is request and flight.answer is None:
            self.world.note("cancel", flight.record)
            if not self.holds:
                self._end(flight)
                self._bring_back(flight)
            elif self.chance.happens(0.3):
                self._end(flight)
            else:
                flight.cancelling = True
        self.strike()

    def wait(self, timeout: float | None) -> None:
        self._check_open()
        chance, prompt = self.chance, self.prompt
        self.strike()
        self.world.while_waiting()
        for flight in list(self.flights.values()):
            if flight.answer is None and (prompt or chance.happens(self.later)):
                if flight.cancelling:
                    self._end(flight)
                else:
                    self._try(flight)
        answered = [flight for flight in self.flights.values() if flight.answer is not None]
        if not prompt:
            chance.shuffle(answered)
            answered = [flight for flight in answered if chance.happens(self.comes_back)]
        for flight in answered:
            self._bring_back(flight)
            self.strike()
        if answered or self.completed:
            self.idle = 0
        elif timeout != 0:
            self.world.pass_time(timeout)
            self.idle += 1
            if self.idle > 50 and self.world.closing:
                raise Violation(f"waits for ever, with {len(self.flights)} requests in flight")
        self.strike()

    def wake(self) -> None:
        self._check_open()

    def fileno(self) -> int:
        return -1

    def lend(self) -> None:
        self._check_open()
        self.strike()
        self.lent += self.taken
        self.taken = []
        self.strike()

    def recycle(self) -> None:
        self._check_open()
        self.strike()
        self._free(self.lent)
        self.lent = []
        self.strike()

    def recycle_unused(self) -> None:
        self._check_open()
        if self.world.leader.engine.outbox or any(request.operation is READ for request in self.completed):
            raise Violation("recycle_unused() with results that the caller will see")
        self._free(self.taken)
        self.taken = []

    def recover(self) -> list[Any]:
        self.strike()
        for flight in list(self.flights.values()):
            if flight.answer is not None and (not self.holds or self.chance.happens(0.5)):
                self._bring_back(flight)
        if not self.holds:
            self.flights.clear()
        self.strike()
        return [flight.request for flight in self.flights.values()]

    def close(self) -> None:
        if self.flights:
            raise Violation("closed with requests in flight")
        self.closed = True

    def abandon(self) -> None:
        raise Violation("abandoned, but nobody has forked")

    def describe(self) -> str:
        return "in memory"

    # --- the kernel -----------------------------------------------------------------------------------------

    def strike(self) -> None:
        if self.strikes:
            self.strikes -= 1
            if not self.strikes:
                self.world.interrupted()

    def _check_open(self) -> None:
        if self.closed:
            raise Violation("the backend is used after it was closed")

    def _mark(self, queue: Any) -> None:
        queue.entry = marker = Marker()
        self.markers.append(weakref.ref(marker))

    def _free(self, buffers: list[bytearray]) -> None:
        for memory in buffers:
            memory[:] = bytes(len(memory))  # they are written again from now on
        self.free += len(buffers)
        for flight in self.flights.values():
            flight.parked = False

    def _begin(self, request: Any) -> None:
        queue = request._queue
        record: Record = request.context
        if queue is None:
            raise Violation(f"{record} is started after it has finished")
        token = queue.token
        connection = self.registered.get(token & ~1)
        if connection is None or connection.fd < 0 or queue.fd != connection.fd:
            raise Violation(f"{record} is started on a descriptor that is not registered")
        if token in self.flights:
            raise Violation(f"{record} is started with {self.flights[token].record} in flight")
        if any(request is other for other in self.completed):
            raise Violation(f"{record} is started though it has come back")
        if queue.head is not request:
            raise Violation(f"{record} is started and is not the first of its queue")
        again = record.operation is ACCEPT and self.world.disturbed and type(record.verdict) is int
        if record.verdict != PENDING and not again:
            raise Violation(f"{record} is started again after the answers {record.answers}")
        if request._offset != record.moved:
            raise Violation(f"{record} is started from byte {request._offset}, but {record.moved} have moved")
        if not queue.entry:
            self._mark(queue)
        self.world.note("start", record)
        flight = self.flights[token] = Flight(request)
        if self.prompt or self.chance.happens(self.at_once):
            self._try(flight)
            if flight.answer is not None and not self.holds and self.chance.happens(0.8):
                self._bring_back(flight)

    def _bring_back(self, flight: Flight) -> None:
        request = flight.request
        request._result = flight.answer
        self.taken += flight.taken
        if flight.view is not None:
            request.buffer = flight.view
        self.completed.append(request)
        del self.flights[request._queue.token]

    def _answer(self, flight: Flight, number: int) -> None:
        flight.answer = number
        flight.record.answer(number, self.world.clock)
        self.world.note("answer", flight.record, number)

    def _end(self, flight: Flight) -> None:
        """It is cancelled: with its result, if what it needs is there by now."""
        flight.parked = False
        self._try(flight)
        if flight.answer is None:
            says_eagain = flight.record.operation <= ACCEPT and self.chance.happens(0.3)
            self._answer(flight, -errno.EAGAIN if says_eagain else CANCELLED)

    def _try(self, flight: Flight) -> None:
        """One attempt: it is answered, or goes on waiting."""
        if flight.parked:
            return
        record = flight.record
        operation = record.operation
        if not self.prompt and self.chance.happens(self.fails):
            if flight.request._memory is None and operation is READ and self.free and self.chance.happens(0.3):
                self._take_buffer(flight, b"")  # for nothing
            self._answer(flight, self.chance.one_of(ERRORS[operation]))
        elif operation is READ:
            self._try_read(flight, record.link)
        elif operation is WRITE:
            self._try_write(flight, record.link)
        elif operation is ACCEPT:
            if record.link.backlog:
                record.link.backlog -= 1
                self._answer(flight, self.world.new_descriptor())
        elif operation is SHUTDOWN or self.prompt or self.chance.happens(0.5):
            self._answer(flight, 0)

    def _try_read(self, flight: Flight, link: Link) -> None:
        request, chance = flight.request, self.chance
        if not link.has_something_to_read():
            return
        memory = request._memory
        left = SWAP_READ if memory is None else request._length - request._offset
        if link.keeps_boundaries():
            data = link.messages[0][:left] if link.messages else b""  # what is longer is cut off
        else:
            size = min(left, link.sent - link.taken)
            if size and not (self.prompt or chance.happens(self.whole)):
                size = chance.between(1, size)
            data = link.stretch(link.taken, size)
        if data:
            if memory is None:
                if flight.cancelling and not self.free:
                    # Nothing waits for a buffer that is cancelled: it gets memory of its own.
                    flight.view = memoryview(bytearray(data))
                    request._length = len(data)
                elif not self.free:
                    flight.parked = True
                    return
                else:
                    flight.view = memoryview(self._take_buffer(flight, data))
            else:
                ctypes.memmove(memory.address + request._offset, data, len(data))
        if link.messages:
            del link.messages[0]
        else:
            link.taken += len(data)
        link.given += data
        self._answer(flight, len(data))

    def _take_buffer(self, flight: Flight, data: bytes) -> bytearray:
        self.free -= 1
        memory = bytearray(data)
        flight.taken.append(memory)
        return memory

    def _try_write(self, flight: Flight, link: Link) -> None:
        request, chance = flight.request, self.chance
        left = request._length - request._offset
        if not link.room:
            return
        if link.keeps_boundaries():
            size = left
        else:
            size = min(left, link.room)
            if not (self.prompt or chance.happens(self.whole)):
                size = chance.between(0 if link.kind == FILE else 1, size)
        link.received += _bytes_of(request, size)
        link.room = max(0, link.room - size)
        self._answer(flight, size)


class Marker:
    """Lives as long as the queue whose `entry` it is."""

    __slots__ = ("__weakref__",)


def _bytes_of(request: Any, size: int) -> bytes:
    """So many bytes from where the attempt begins, as the kernel would read them."""
    memory, offset = request._memory, request._offset
    if type(memory) is bytes:
        return memory[offset : offset + size]
    if type(memory) is not Vector:
        return ctypes.string_at(memory.address + offset, size)
    address, count = memory.after(offset)
    parts = (iovec * count).from_address(address)
    return b"".join(ctypes.string_at(part.iov_base, part.iov_len) for part in parts)[:size]
