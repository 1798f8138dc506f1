"""The program of a seed: what callers submit, what peers do, when turns run, and what must hold after each batch."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gaio.connection import Connection
from gaio.delegation import Delegation
from gaio.engine import CLOSED_BACKEND, Engine
from gaio.errors import ConnClosedError, UnsupportedConnError, WatcherClosedError
from gaio.leader import Leader
from gaio.memory import Copies, SocketAddress, Vector
from gaio.platform import DATAGRAM, FILE, LISTENER, SEQPACKET, SOCKET, STREAM
from gaio.result import ACCEPT, CONNECT, READ, SHUTDOWN, WRITE, Operation, OpResult
from gaio.watcher import Watcher
from tests.simulation.backend import SimulatedBackend
from tests.simulation.interruption import Between, calm
from tests.simulation.model import Chance, Link, Record, Violation

KINDS = (STREAM, STREAM, SOCKET, DATAGRAM, SEQPACKET, FILE, LISTENER)
TICK = 1 / 64  # of the clock: sums of these are exact
TIMEOUTS = (None, None, None, 0, TICK, 4 * TICK, 40 * TICK, 1000)
SIZES = (1, 2, 7, 40, 300, 700)


class SimulatedDelegation(Delegation):
    """The real one, but for taking a descriptor over from the caller's object, which has none."""

    __slots__ = ("world",)

    def __init__(self, leader: Leader, world: Simulation) -> None:
        super().__init__(leader)
        self.world = world

    def _duplicate(self, conn: Any, _: Operation) -> Connection:
        link: Link = conn.link
        if link.connection is not None:
            raise ConnClosedError("it was given up")
        engine = self._engine
        link.fd = self.world.new_descriptor()
        link.connection = connection = Connection(conn, link.fd, link.kind, next(self._tokens))
        engine.descriptors[connection.token] = connection
        engine.backend.register(connection)
        engine.table_of(connection)[connection.key] = connection
        self.reclaim_when_collected(conn, connection)
        return connection


class SimulatedLeader(Leader):
    """The real one, whose clock is the simulation's, and whose thread never runs."""

    def __init__(self, world: Simulation) -> None:
        self.world = world
        super().__init__(lambda _: world.backend)

    def make_engine(self) -> Engine:
        return Engine(self.inbox, lambda: self.world.clock, self.delegation)


class Simulation:
    """One seed."""

    def __init__(self, seed: int, descriptor: socket.socket, say: Callable[[str], object] | None = None) -> None:
        self.chance = chance = Chance(seed)
        self.descriptor = descriptor.fileno()  # is duplicated for each connection
        self.say = say
        self.clock = 0.0
        self.closing = False  # close() was called
        self.disturbed = False  # a turn was interrupted
        self.handled = False  # the handler of a signal ran within the turn
        self.links: list[Link] = []
        self.numbers = itertools.count(1)
        self.records: list[weakref.ref[Record]] = []
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
        watcher._copies = Copies(1 << 16)

        self.interrupts = chance.one_of((0.0, 0.0, 0.2, 0.6))  # how often a call is interrupted
        self.handles = chance.one_of((0.0, 0.0, 0.2))  # how often a handler submits in the middle of one
        self.others = chance.one_of((0.0, 0.1))  # how often another thread submits while this one waits
        self.bored = chance.one_of((0.2, 0.6))  # how often a turn follows a step
        self.has_large_writes = chance.happens(0.04)
        steps: tuple[tuple[int, Callable[[], object]], ...] = (
            (3, self.open),
            (8, self.submit_read),
            (7, self.submit_write),
            (3, self.submit_accept),
            (2, self.submit_connect),
            (1, self.submit_shutdown),
            (10, self.peer_acts),
            (3, self.let_time_pass),
            (3, self.lead_a_turn),
            (1, self.free),
            (1, self.forget),
            (1, self.submit_late),
            (1, self.detach),
            (1, self.settle),
        )
        # Each seed leaves some out: what seldom meets in a mixture of everything meets often in a mixture of few.
        self.steps: list[Callable[[], object]] = []
        for weight, step in steps:
            if step in (self.open, self.peer_acts) or not chance.happens(0.25):
                self.steps += [step] * weight

    def run(self) -> None:
        """Raises a Violation, or whatever else goes wrong."""
        for _ in range(self.chance.between(1, 3)):
            self.open()
        for _ in range(self.chance.between(10, 40)):
            self.chance.one_of(self.steps)()
            if self.chance.happens(self.bored):
                self.deliver()
        if self.chance.happens(0.6):
            self.settle()
        self.close()
        self.check_end()
        self.let_go()
        self.check_nothing_is_held()

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
        chance = self.chance
        self.handled = False
        if chance.happens(self.interrupts):
            if chance.happens(0.3):
                self.backend.strikes = chance.between(1, 12)
                try:
                    yield
                finally:
                    self.backend.strikes = 0
            else:
                with Between(chance.between(1, 90), self.interrupted):
                    yield
        elif chance.happens(self.handles):
            with Between(chance.between(1, 90), self.signal):
                yield
        else:
            yield

    # --- peers and time -------------------------------------------------------------------------------------

    def while_waiting(self) -> None:
        """The backend waits: what others do meanwhile."""
        chance = self.chance
        if self.backend.prompt:
            return
        if chance.happens(0.3):
            self.peer_acts()
        if chance.happens(self.others):
            self.note("another thread submits")
            self.handled = True
            with calm():  # KeyboardInterrupt is for the main thread
                self.submit_anything()

    def peer_acts(self) -> None:
        chance = self.chance
        link: Link = chance.one_of(self.links)
        size = chance.one_of(SIZES)
        if link.kind == LISTENER:
            link.backlog += 1
            self.note("a peer connects to", link)
        elif chance.happens(0.45):
            link.room += 200_000 if self.has_large_writes else size
            self.note(link, "has room for", link.room)
        elif link.ended:
            pass
        elif link.kind != DATAGRAM and chance.happens(0.1):
            link.ended = True
            self.note("the peer ends", link)
        elif link.keeps_boundaries():
            size = 0 if link.kind == DATAGRAM and chance.happens(0.2) else size
            link.messages.append(link.stretch(link.sent, size))
            link.sent += size
            link.taken = link.sent
            self.note(f"a message of {size} bytes to", link)
        else:
            link.sent += size
            self.note(f"{size} bytes to", link)

    def let_time_pass(self) -> None:
        self.clock += TICK * self.chance.one_of((1, 2, 8, 64))

    def pass_time(self, timeout: float | None) -> None:
        """The backend has nothing to bring back, and waits for so long, or less."""
        for link in self.links:
            for record in self.unfinished(link):
                if record.when is None or record.when <= self.clock or self.handled:
                    continue  # `handled`: it may be in the inbox still
                if timeout is None or timeout > record.when - self.clock + 1e-9:
                    raise Violation(f"waits for {timeout}, past the deadline of {record}")
        if timeout is None or self.chance.happens(0.5):
            ticks = self.chance.one_of((0, 1, 10))
            self.clock += ticks * TICK if timeout is None else min(timeout, ticks * TICK)
        else:
            self.clock += timeout

    # --- callers --------------------------------------------------------------------------------------------

    def open(self) -> None:
        if len(self.links) < 4:
            self.links.append(Link(len(self.links), self.chance.one_of(KINDS), self.descriptor))

    def one(self, *kinds: int) -> Link | None:
        """A connection that the caller still has."""
        links = [link for link in self.links if link.conn is not None and (not kinds or link.kind in kinds)]
        return self.chance.one_of(links) if links else None

    def submit_anything(self) -> None:
        self.chance.one_of(
            (self.submit_read, self.submit_write, self.submit_read, self.submit_accept, self.submit_late, self.free)
        )()

    def submit_read(self) -> None:
        link = self.one(STREAM, SOCKET, DATAGRAM, SEQPACKET, FILE)
        if link is None:
            return
        record = Record(next(self.numbers), READ, link)
        timeout = self.chance.one_of(TIMEOUTS)
        watcher, conn = self.watcher, link.conn
        assert conn is not None
        if self.chance.happens(0.4):
            self.submit(record, timeout, lambda: watcher.read(conn, context=record, timeout=timeout))
            return
        record.buffer = buffer = bytearray(self.chance.one_of(SIZES))
        if self.chance.happens(0.5):
            self.submit(record, timeout, lambda: watcher.read(conn, buffer, context=record, timeout=timeout))
        else:
            record.goal = len(buffer)
            self.submit(record, timeout, lambda: watcher.read_full(conn, buffer, context=record, timeout=timeout))

    def submit_write(self) -> None:
        link = self.one(STREAM, SOCKET, DATAGRAM, SEQPACKET, FILE)
        if link is None:
            return
        chance = self.chance
        record = Record(next(self.numbers), WRITE, link)
        timeout = chance.one_of(TIMEOUTS)
        watcher, conn = self.watcher, link.conn
        assert conn is not None
        size = chance.one_of((5_000, 70_000)) if self.has_large_writes and chance.happens(0.3) else chance.one_of(SIZES)
        record.data = data = link.stretch(link.submitted + 13, size)
        record.goal = size
        link.submitted += size
        parts: Any = data
        if chance.happens(0.3):
            parts = bytearray(data)
        elif size > 1 and chance.happens(0.4):
            parts = [data[: size // 3], b"", bytearray(data[size // 3 :])]
        self.submit(record, timeout, lambda: watcher.write(conn, parts, context=record, timeout=timeout))
        inbox = self.leader.inbox
        if type(parts) is list and inbox and getattr(inbox[-1], "context", None) is record and size < 5_000:
            # Short ones are joined; these are kept in parts all the same, as long ones are.
            inbox[-1]._memory = Vector([memoryview(part) for part in parts if part])

    def submit_accept(self) -> None:
        link = self.one(LISTENER)
        if link is not None:
            record = Record(next(self.numbers), ACCEPT, link)
            timeout = self.chance.one_of(TIMEOUTS)
            watcher, conn = self.watcher, link.conn
            assert conn is not None
            self.submit(record, timeout, lambda: watcher.accept(conn, context=record, timeout=timeout))

    def submit_connect(self) -> None:
        link = self.one(STREAM, SOCKET, DATAGRAM, SEQPACKET)
        if link is None:
            return
        record = Record(next(self.numbers), CONNECT, link)
        timeout = self.chance.one_of(TIMEOUTS)
        watcher, conn = self.watcher, link.conn
        assert conn is not None
        under_way = any(other.operation is CONNECT for other in self.unfinished(link))
        try:
            self.submit(
                record,
                timeout,
                lambda: watcher.connect(conn, ("127.0.0.1", 9), context=record, timeout=timeout),
            )
        except UnsupportedConnError:
            if not under_way:
                raise Violation(f"{link} is taken for connecting, and is not") from None
        except OSError as error:
            # After a detach() that was interrupted there is nothing to do but detach() or free().
            if error.errno != errno.EBADF or not link.detached:
                raise
        else:
            if under_way and record in link.writes and not self.disturbed:
                raise Violation(f"{link} connects for the second time")

    def unfinished(self, link: Link) -> list[Record]:
        """What is pending, and has not only to be delivered."""
        delivered = {id(result.context) for result in [*self.leader.engine.outbox, *(self.leader.delivery or ())]}
        return [record for record in link.pending() if id(record) not in delivered]

    def submit_shutdown(self) -> None:
        link = self.one(STREAM, SOCKET, SEQPACKET)
        if link is not None:
            record = Record(next(self.numbers), SHUTDOWN, link)
            watcher, conn = self.watcher, link.conn
            assert conn is not None
            self.submit(record, None, lambda: watcher.shutdown(conn, context=record))

    def submit_late(self, link: Link | None = None) -> None:
        """A thread that found the connection before it was given up, and goes on only now."""
        links = [link] if link else self.links
        links = [link for link in links if link.connection is not None and link.kind != LISTENER and link.conn]
        if not links:
            return
        link = self.chance.one_of(links)
        assert link is not None
        conn, connection = link.conn, link.connection
        assert connection is not None
        operation = self.chance.one_of((READ, WRITE, SHUTDOWN, CONNECT))
        connecting = self.leader.engine.connecting
        if operation is CONNECT and (link.kind == FILE or connection.token in connecting):
            return
        record = Record(next(self.numbers), operation, link)
        if operation is WRITE:
            record.data = link.stretch(link.submitted + 13, 40)
            record.goal = 40
            link.submitted += 40
        queue = connection.reads if operation is READ else connection.writes or self.delegation.writes(connection)
        timeout = self.chance.one_of(TIMEOUTS)
        memory: Any = record.data or None
        if operation is CONNECT:
            memory = SocketAddress(b"an address")
            connecting.add(connection.token)
        arguments: Any = (conn, connection, queue, memory, memory, record.goal, record, timeout)
        self.submit(record, timeout, lambda: self.watcher._submit(OpResult(), operation, *arguments))
        if operation is WRITE and record in link.writes:
            self.leader.inbox[-1].error = None  # as in Watcher.write()
        if operation is CONNECT and record not in link.writes:
            connecting.discard(connection.token)  # as in Watcher.connect()

    def submit(self, record: Record, timeout: float | None, submit: Callable[[], None]) -> None:
        """Submit it, and note that it is pending if it was accepted."""
        link = record.link
        inbox = self.leader.inbox
        try:
            submit()
        except WatcherClosedError:
            if not self.closing:
                raise Violation(f"{record} is refused as if the watcher were closed") from None
            return
        except ConnClosedError:
            if not link.given_up:
                raise Violation(f"{record} is refused as if it were freed") from None
            return
        request = inbox[-1]
        if timeout is not None:
            record.when = self.clock + timeout
            request._deadline.when = record.when  # by this clock, and not that of the machine
        (link.reads if record.operation in (READ, ACCEPT) else link.writes).append(record)
        self.records.append(weakref.ref(record))
        self.backend.links[request._queue.token] = link
        self.note("submit", record, f"goal {record.goal}, until {record.when}")

    def free(self) -> None:
        link = self.one()
        if link is not None and link.connection is not None:
            self.note("free", link)
            link.freed = True
            link.freed_first = link.freed_first or not self.closing
            self.watcher.free(link.conn)  # type: ignore[arg-type]  # such an object will do
            if self.chance.happens(0.3):
                self.submit_late(link)

    def forget(self) -> None:
        link = self.one()
        if link is not None:
            self.note("drop", link)
            link.freed = True
            link.conn = None
            self.dropped += 1

    def detach(self) -> None:
        link = self.one(STREAM, SOCKET, DATAGRAM, SEQPACKET, LISTENER)
        if link is None or link.connection is None or self.closing:
            return
        had = self.unfinished(link)
        was_given_up, was_detached = link.given_up, link.detached
        self.note("detach", link)
        link.detached = True  # perhaps, and within the call already
        try:
            with self.weather():
                sock = self.watcher.detach(link.conn)  # type: ignore[arg-type]  # such an object will do
        except KeyboardInterrupt:
            return
        except RuntimeError:
            link.detached = False
            if not had and not self.handled:
                raise Violation(f"{link} has nothing pending, and is not detached for that") from None
            return
        except (ConnClosedError, UnsupportedConnError):
            if not was_given_up and not self.handled:
                raise Violation(f"{link} is not detached, as if it were freed") from None
            return
        if sock.fileno() != link.fd:
            raise Violation(f"{link} is detached with another descriptor")
        sock.close()
        connection = link.connection
        # What was submitted after a detach() that was interrupted may be in the inbox still, to be refused.
        left = [] if was_detached else [record for record in self.unfinished(link) if record in had]
        if left or connection.fd >= 0:
            raise Violation(f"{link} is detached with {left[0] if left else 'its descriptor'} pending")

    # --- turns ----------------------------------------------------------------------------------------------

    def lead_a_turn(self) -> None:
        """As the watcher thread does, or a consumer that waits."""
        if self.leader.closed:
            return
        timeout = self.chance.one_of((None, 0, 4 * TICK, 1.0))
        self.note("a turn of", timeout)
        leader = self.leader
        try:
            with self.weather():
                leader.consumer = threading.get_ident()
                leader.lead.acquire()
                leader.engine.turn(timeout, leader.pause)
                leader.lead.release()
                leader.consumer = 0
        except BaseException as error:
            leader.relinquish()
            if not isinstance(error, KeyboardInterrupt):
                raise

    def deliver(self) -> int:
        """wait_io(0); how many results it brought. -1 when it was interrupted."""
        if any(view != copy for view, copy in self.in_hand):
            raise Violation("a view of the last batch has changed before the next wait_io()")
        self.in_hand.clear()
        try:
            with self.weather():
                batch = self.watcher.wait_io(0)
        except KeyboardInterrupt:
            return -1
        for result in batch:
            self.take(result)
        self.check_engine()
        return len(batch)

    def take(self, result: OpResult) -> None:
        record: Record = result.context
        self.note("result", record, f"size {result.size}, {result.error!r}")
        queue = record.link.reads if record.operation in (READ, ACCEPT) else record.link.writes
        if record.finished:
            raise Violation(f"{record} has a second result")
        if record not in queue:
            raise Violation(f"{record} has a result and was not accepted")
        if queue[0] is not record and type(result.error).__name__ != "DeadlineError":
            raise Violation(f"{record} has its result before {queue[0]}")
        record.finished = True
        queue.remove(record)
        self.results += 1
        if result.is_swap_buffer and result.size:
            # A closed backend is not told any more, and takes nothing back either.
            lent = self.closing or any(memory is result.buffer.obj for memory in self.backend.lent)
            if not lent:
                raise Violation(f"{record}: its memory is not lent")
            self.in_hand.append((result.buffer, bytes(result.buffer)))
        record.check(result, self.clock, self.closing, self.disturbed)

    def settle(self) -> None:
        """Nothing fails any more, and everything is answered at once: what is left then must have a reason to wait."""
        self.note("settle")
        backend = self.backend
        weather, self.interrupts, self.handles = (self.interrupts, self.handles), 0.0, 0.0
        backend.prompt = True
        for _ in range(2):  # what is answered by then may be an accept that is held back
            ahead = [record.when for link in self.links for record in link.pending() if record.when is not None]
            self.clock = max(self.clock + 1.0, min(ahead, default=0.0))  # or to the very moment of a deadline
            self.come_to_rest()
        backend.prompt = False
        self.interrupts, self.handles = weather
        if self.leader.engine.closing:
            raise Violation("a connection that was given up is not closed")
        for link in self.links:
            for queue in (link.reads, link.writes):
                if queue:
                    self.check_waits(link, queue[0])
                for record in queue:
                    if record.when is not None and record.when <= self.clock:
                        raise Violation(f"{record} is pending after its deadline")

    def come_to_rest(self) -> None:
        quiet = 0
        for _ in range(200):
            brought = self.deliver()
            quiet = 0 if brought or self.leader.inbox or self.leader.engine.ready else quiet + 1
            if quiet == 2:
                return
        raise Violation("it never comes to rest")

    def check_waits(self, link: Link, first: Record) -> None:
        if link.given_up and (link.connection is None or link.connection.close_reason is not None):
            raise Violation(f"{first} is pending, and its connection is closed")
        if first.operation is READ:
            waits = not link.has_something_to_read()
        elif first.operation is WRITE:
            waits = not link.room
        else:
            waits = first.operation is ACCEPT and not link.backlog
        if not waits:
            raise Violation(f"{first} is pending, and what it needs is there")

    def close(self) -> None:
        self.closing = True
        self.note("close")
        while True:
            try:
                with self.weather():
                    self.watcher.close()
                break
            except KeyboardInterrupt:
                pass
        for _ in range(self.chance.below(3)):
            self.submit_anything()  # too late: it is refused
        for _ in range(1000):
            try:
                self.deliver()
            except WatcherClosedError:
                return
        raise Violation("wait_io() of a closed watcher never ends")

    # --- what must hold -------------------------------------------------------------------------------------

    def check_engine(self) -> None:
        """Between two calls: each request is in one place, the first of each queue with somebody, the heap in order."""
        engine = self.leader.engine
        if engine.interrupted or self.leader.closed:
            return
        if engine.partial or self.backend.completed:
            raise Violation("a turn has left something behind")
        connecting = {
            record.link.connection.token
            for link in self.links
            for record in self.unfinished(link)
            if record.operation is CONNECT and record.link.connection is not None
        }
        # finish() takes the token off before the result is in the outbox. Interrupted in between, a second connect() is
        # accepted, and loses its token to the result of the first: it could be refused no more, but nothing is stuck.
        lost = connecting - engine.connecting
        if engine.connecting - connecting or (lost and not self.disturbed):
            raise Violation(f"connecting is {sorted(engine.connecting)}, and should be {sorted(connecting)}")
        in_flight = {id(flight.request) for flight in self.backend.flights.values()}
        ready = {id(request) for request in engine.ready}
        backing_off = {id(request) for request in engine.backing_off}
        queued = {id(item) for item in engine.inbox}
        for connection in engine.descriptors.values():
            for queue in connection.queues():
                request, before = queue.head, None
                if request is not None:
                    holders = (id(request) in in_flight) + (id(request) in ready) + (id(request) in backing_off)
                    if holders != 1:
                        raise Violation(f"{request.context} is the first of its queue, and {holders} have it")
                while request is not None:
                    if request._queue is not queue:
                        raise Violation(f"{request.context} stands in a queue that it does not know")
                    if request._deadline is not None and request._deadline.before is not before:
                        raise Violation(f"the deadline of {request.context} has another request before it")
                    queued.add(id(request))
                    before, request = request, request._next
        entries = engine.deadlines.entries
        for place, entry in enumerate(entries):
            if place and entry.when < entries[(place - 1) // 2].when:
                raise Violation("the heap of deadlines is out of order")
            if entry.request is not None and id(entry.request) not in queued:
                raise Violation(f"the deadline of {entry.request.context} is kept, and it is not pending")
        if sum(entry.request is None for entry in entries) != engine.deadlines._shells and not self.disturbed:
            raise Violation("deadlines are counted wrongly")

    def check_end(self) -> None:
        engine, backend = self.leader.engine, self.backend
        for link in self.links:
            if link.pending():
                raise Violation(f"{link.pending()[0]} never had a result")
            if link.read != len(link.given):
                raise Violation(f"{link}: {len(link.given)} bytes came, and results brought {link.read}")
            if link.written != link.received:
                raise Violation(f"{link}: the peer received other bytes than results say")
        for name in ("outbox", "connections", "listeners", "connecting", "descriptors"):
            if getattr(engine, name):
                raise Violation(f"{name} is not empty in the end")
        for name in ("ready", "partial", "closing", "backing_off", "being_closed"):
            if getattr(engine, name):
                raise Violation(f"{name} is not empty in the end")
        if any(item._queue is not None for item in engine.inbox):
            raise Violation("a request is in the inbox in the end")
        if any(entry.request is not None for entry in engine.deadlines.entries):
            raise Violation("a deadline is kept in the end")
        if engine.backend is not CLOSED_BACKEND or engine.retired is not CLOSED_BACKEND or not backend.closed:
            raise Violation("the backend is not closed in the end")
        if engine.gc_found > self.dropped or engine.gc_closed() != engine.gc_found:
            raise Violation(f"{self.dropped} were dropped, {engine.gc_found} found, {engine.gc_closed()} closed")
        if backend.registered or backend.flights or backend.completed:
            raise Violation("the backend holds something in the end")

    def let_go(self) -> None:
        for link in self.links:
            link.conn = None  # which knows the link
        self.links.clear()
        self.backend.links.clear()

    def check_nothing_is_held(self) -> None:
        backend = self.backend
        if any(reference() is not None for reference in self.records):
            raise Violation("a request is held in the end")
        if any(reference() is not None for reference in backend.markers):
            raise Violation("a connection is held in the end")
        for fd in sorted(self.descriptors):
            if is_open(fd):
                raise Violation(f"descriptor {fd} is open in the end")

    def leave(self) -> None:
        """After a violation: close what is open."""
        for connection in list(self.leader.engine.descriptors.values()):
            if connection.fd >= 0 and is_open(connection.fd):
                os.close(connection.fd)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
