"""A backend in memory, behind the contract of gaio/platform/__init__.py. The seed decides what its kernel does.

It comes in two manners. As `epoll` and `kqueue` it holds nothing: after an interruption everything that was not
answered is forgotten. As `io_uring` its kernel holds what was started, through an interruption too. Requests are
answered when they are started, in one of the waits that follow, or when they are cancelled; in any order; and what has
been answered may come back later. Beyond the contract it only checks that the engine keeps to it.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from gaio.result import ACCEPT, READ, WRITE
from tests.simulation.kernel import Flight, Kernel
from tests.simulation.model import PENDING, Chance, Link, Record, Violation

if TYPE_CHECKING:
    from gaio.platform import Descriptor
    from tests.simulation.world import World


class SimulatedBackend(Kernel):
    """See above."""

    name = "simulation"
    sends_together = False
    fell_short = False

    def __init__(self, world: World, chance: Chance) -> None:
        super().__init__(world, chance)
        self.completed: list[Any] = []
        self.swap: Any = None  # views of it are lent by the program itself
        self.flights: dict[int, Flight] = {}  # by the token of the queue
        self.registered: dict[int, Descriptor] = {}
        self.links: dict[int, Link] = {}
        self.markers: list[weakref.ref[Any]] = []  # of queues, which cannot be referred to weakly themselves
        self.lent: list[bytearray] = []  # swap memory
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
                self.end(flight)
                self._bring_back(flight)
            elif self.chance.happens(0.3):
                self.end(flight)
            else:
                flight.cancelling = True
        self.strike()

    def wait(self, timeout: float | None) -> None:
        self._check_open()
        chance, prompt = self.chance, self.prompt
        if timeout != 0 and (self.completed or self.arrivals):
            raise Violation("waits, and what is there already is not delivered meanwhile")
        self.strike()
        self.world.while_waiting()
        for flight in list(self.flights.values()):
            if flight.answer is None and (prompt or chance.happens(self.later)):
                if flight.cancelling:
                    self.end(flight)
                else:
                    self.attempt(flight)
        answered = [flight for flight in self.flights.values() if flight.answer is not None]
        if not prompt:
            chance.shuffle(answered)
            answered = [flight for flight in answered if chance.happens(self.comes_back)]
        for flight in answered:
            self._bring_back(flight)
            self.strike()
        if answered or self.completed or self.arrivals:
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

    def unfinished(self) -> bool:
        return False

    def all_taken(self) -> bool:
        self._check_open()
        return not any(flight.memory is not None and flight.answer is None for flight in self.flights.values())

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
        if any(request.operation is READ for request, _ in self.arrivals):
            raise Violation("recycle_unused() with arrivals that the caller will see")
        self._free(self.taken + self.lent)  # a backend may take this for another recycle()
        self.taken, self.lent = [], []

    def recover(self) -> list[Any]:
        self.strike()
        for flight in list(self.flights.values()):
            if flight.answer is not None and (not self.holds or self.chance.happens(0.5)):
                self._bring_back(flight)
            elif flight.answer is None and flight.record.repeats and self.chance.happens(0.1):
                self.attempt(flight)
                if flight.answer is not None and not self.holds:
                    self._bring_back(flight)
        for request, _ in self.arrivals:
            request.context.put_off(self.world.clock)
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

    # --- requests -----------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self.closed:
            raise Violation("the backend is used after it was closed")

    def _mark(self, queue: Any) -> None:
        queue.entry = marker = Marker()
        self.markers.append(weakref.ref(marker))

    def _free(self, buffers: list[bytearray]) -> None:
        self.free_buffers(buffers)
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
        if request.more is not record.repeats:
            raise Violation(f"{record} is started with more {request.more}")
        if self.world.clock < record.held_until and not self.world.disturbed:
            raise Violation(f"{record} was not held back")
        if not queue.entry:
            self._mark(queue)
        self.world.note("start", record)
        flight = Flight(request)
        if record.operation is WRITE:
            flight.joined = self.joined(request, record)
            flight.memory = request._memory if self.holds else None
        self.flights[token] = flight
        if self.prompt or self.chance.happens(self.at_once):
            self.attempt(flight)
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


class Marker:
    """Lives as long as the queue whose `entry` it is."""

    __slots__ = ("__weakref__",)
