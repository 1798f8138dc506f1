"""What callers, peers and checks of one seed have in common: the watcher, the backend, and what is known of both."""

from __future__ import annotations

import itertools
import os
import socket
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gaio import engine
from gaio.connection import Connection
from gaio.delegation import Delegation
from gaio.engine import Engine
from gaio.errors import ConnClosedError
from gaio.leader import Leader
from gaio.result import Operation
from gaio.watcher import Watcher
from tests.simulation.backend import SimulatedBackend
from tests.simulation.interruption import Between
from tests.simulation.model import Chance, Link, Note, Record, Violation

TICK = 1 / 64  # of the clock: sums of these are exact


class SimulatedDelegation(Delegation):
    """The real one, but for taking a descriptor over from the caller's object, which has none."""

    __slots__ = ("world",)

    def __init__(self, leader: Leader, world: World) -> None:
        super().__init__(leader)
        self.world = world

    def _delegate(self, conn: Any, _: Operation, repeats: bool) -> Connection:
        link: Link = conn.link
        if link.connection is not None:
            raise ConnClosedError("it was given up")
        engine = self._engine
        link.fd = self.world.new_descriptor()
        link.connection = connection = Connection(conn, link.fd, link.kind, next(self._tokens))
        engine.descriptors[connection.token] = connection
        engine.backend.register(connection)
        self._reclaim_later(conn, connection, repeats)
        engine.table_of(connection)[connection.key] = connection
        return connection


class SimulatedLeader(Leader):
    """The real one, whose clock is the simulation's, and whose thread never runs."""

    def __init__(self, world: World) -> None:
        self.world = world
        super().__init__(lambda _: world.backend)

    def make_engine(self) -> Engine:
        return Engine(self.inbox, lambda: self.world.clock, self.delegation)


class World:
    """One seed."""

    def __init__(self, seed: int, descriptor: socket.socket, say: Callable[[str], object] | None = None) -> None:
        self.chance = chance = Chance(seed)
        self.descriptor = descriptor.fileno()  # is duplicated for each connection
        self.say = say
        self.clock = 0.0
        self.closing = False  # close() was called
        self.disturbed = False  # a turn was interrupted
        self.inside = False  # a call into the engine is under way
        self.handled = False  # the handler of a signal ran within the turn
        self.links: list[Link] = []
        self.numbers = itertools.count(1)
        self.records: list[weakref.ref[Record] | weakref.ref[Note]] = []
        self.notes: list[Note] = []  # posts and timers that have no result yet
        self.posted = 0  # the number of the last post that has come
        self.descriptors: set[int] = set()  # numbers ever used
        self.results = 0
        self.dropped = 0
        self.in_hand: list[tuple[memoryview, bytes]] = []  # swap views of the last batch, and what they showed

        self.leader = leader = SimulatedLeader(self)
        self.backend = SimulatedBackend(self, chance)
        leader.engine.backend = self.backend
        self.watcher = watcher = Watcher.__new__(Watcher)  # without a thread, and with that backend
        watcher._leader = leader
        watcher._delegation = self.delegation = SimulatedDelegation(leader, self)
        watcher._inbox = leader.inbox
        watcher._connections = leader.engine.connections

        # Undelivered results from which on repeating requests bring no more; see leave_the_limit().
        self.limit_before, engine.MOST_UNDELIVERED = engine.MOST_UNDELIVERED, chance.one_of((1, 2, 5, 1000, 1000))
        self.interrupts = chance.one_of((0.0, 0.0, 0.2, 0.6))  # how often a call is interrupted
        self.handles = chance.one_of((0.0, 0.0, 0.2))  # how often a handler submits in the middle of one
        self.others = chance.one_of((0.0, 0.1))  # how often another thread submits while this one waits
        self.has_large_writes = chance.happens(0.04)

    def leave_the_limit(self) -> None:
        engine.MOST_UNDELIVERED = self.limit_before

    def digest(self) -> tuple[int, float]:
        """What two runs of a seed have in common only if they took the same way."""
        return self.results, self.chance.random()

    def note(self, *words: object) -> None:
        if self.say is not None:
            self.say(f"{self.clock:9.4f}  {' '.join(map(str, words))}")

    def new_descriptor(self) -> int:
        fd = os.dup(self.descriptor)
        self.descriptors.add(fd)
        return fd

    def unfinished(self, link: Link) -> list[Record]:
        """What is pending, and has not only to be delivered."""
        delivered = {
            id(result.context)
            for result in [*self.leader.engine.outbox, *(self.leader.delivery or ())]
            if not result.more or result._queue is not None
        }
        return [record for record in link.pending() if id(record) not in delivered]

    def pass_time(self, timeout: float | None) -> None:
        """The backend has nothing to bring back, and waits for so long, or less."""
        for link in self.links:
            for record in self.unfinished(link):
                if record.when is None or record.when <= self.clock or self.handled:
                    continue  # `handled`: it may be in the inbox still
                if record.repeats and (self.closing or link.given_up):
                    continue  # it was cut off for that, and is not put off any more
                if timeout is None or timeout > record.when - self.clock + 1e-9:
                    raise Violation(f"waits for {timeout}, past the deadline of {record}")
        for note in self.notes:
            if note.when is None or note.when <= self.clock or note.cancelled or self.handled:
                continue
            if timeout is None or timeout > note.when - self.clock + 1e-9:
                raise Violation(f"waits for {timeout}, past {note}")
        if timeout is None or self.chance.happens(0.5):
            ticks = self.chance.one_of((0, 1, 10))
            self.clock += ticks * TICK if timeout is None else min(timeout, ticks * TICK)
        else:
            self.clock += timeout

    # --- interruption ---------------------------------------------------------------------------------------

    def interrupted(self, where: str = "in the backend") -> None:
        self.note("KeyboardInterrupt", where)
        self.disturbed = True
        raise KeyboardInterrupt

    def signal(self, where: str) -> None:
        self.note("the handler of a signal runs", where)
        self.handled = True
        self.submit_anything()

    @contextmanager
    def weather(self) -> Iterator[None]:
        """Perhaps something happens in the middle of a call into the engine."""
        self.handled = False
        self.inside = True
        try:
            with self._within():
                yield
        finally:
            self.inside = False

    @contextmanager
    def _within(self) -> Iterator[None]:
        chance = self.chance
        if chance.happens(self.interrupts):
            if chance.happens(0.3):
                self.backend.strikes = chance.between(1, 12)
                try:
                    yield
                finally:
                    self.backend.strikes = 0
            else:
                with Between(chance.between(1, 120), self.interrupted):
                    yield
        elif chance.happens(self.handles):
            with Between(chance.between(1, 120), self.signal):
                yield
        else:
            yield

    # --- of those that derive from this ---------------------------------------------------------------------

    def submit_anything(self) -> None:
        raise NotImplementedError

    def while_waiting(self) -> None:
        raise NotImplementedError
