"""What callers do: each is one step of a seed."""

from __future__ import annotations

import errno
import weakref
from collections.abc import Callable
from typing import Any

from gaio.errors import ConnClosedError, UnsupportedConnError, WatcherClosedError
from gaio.memory import Lent, SocketAddress, Vector
from gaio.platform import DATAGRAM, FILE, LISTENER, SEQPACKET, SOCKET, STREAM
from gaio.result import ACCEPT, CONNECT, READ, SHUTDOWN, WRITE, OpResult
from tests.simulation.model import Link, Note, Record, Violation
from tests.simulation.world import TICK, World

KINDS = (STREAM, STREAM, SOCKET, DATAGRAM, SEQPACKET, FILE, LISTENER)
TIMEOUTS = (None, None, None, 0, TICK, 4 * TICK, 40 * TICK, 1000)
SIZES = (1, 2, 7, 40, 300, 700)


class Callers(World):
    """Threads that submit, also the handlers of signals."""

    def open(self) -> None:
        if len(self.links) < 4:
            self.links.append(Link(len(self.links), self.chance.one_of(KINDS), self.descriptor))

    def one(self, *kinds: int) -> Link | None:
        """A connection that the caller still has."""
        links = [link for link in self.links if link.conn is not None and (not kinds or link.kind in kinds)]
        return self.chance.one_of(links) if links else None

    def submit_anything(self) -> None:
        self.chance.one_of(
            (
                *(self.submit_read, self.submit_write, self.submit_read, self.submit_accept, self.submit_late),
                *(self.free, self.start_repeating, self.start_repeating, self.stop, self.ask_unsent),
                *(self.post, self.start_timer, self.cancel_timer),
            )
        )()

    def post(self) -> None:
        note = Note(next(self.numbers), None)
        self.submit_note(note, lambda: self.watcher.post(note))

    def start_timer(self) -> None:
        seconds = self.chance.one_of((0, TICK, 4 * TICK, 1000))
        note = Note(next(self.numbers), self.clock + seconds)

        def submit() -> None:
            note.timer = self.watcher.after(seconds, context=note)
            note.timer._request._deadline.when = self.clock + seconds  # by this clock, and not that of the machine

        self.submit_note(note, submit)

    def submit_note(self, note: Note, submit: Callable[[], None]) -> None:
        self.notes.append(note)
        self.records.append(weakref.ref(note))
        self.note("submit", note)
        try:
            submit()
        except WatcherClosedError:
            if not self.closing:
                raise Violation(f"{note} is refused as if the watcher were closed") from None
            self.notes.remove(note)

    def cancel_timer(self) -> None:
        timers = [note for note in self.notes if note.timer is not None]
        if timers:
            note = self.chance.one_of(timers)
            assert note.timer is not None
            said = note.timer.cancel()
            self.note("cancel", note, said)
            if note.cancelled and not said:
                raise Violation(f"{note} is cancelled, and then not")
            note.cancelled = said

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

    def start_repeating(self) -> None:
        link = self.one()
        if link is None:
            return
        record = Record(next(self.numbers), ACCEPT if link.kind == LISTENER else READ, link)
        record.repeats = True
        watcher, conn = self.watcher, link.conn
        assert conn is not None
        if link.kind == LISTENER:
            self.submit(record, None, lambda: watcher.accept_start(conn, context=record))
        else:
            record.timeout = timeout = self.chance.one_of(TIMEOUTS)
            self.submit(record, timeout, lambda: watcher.read_start(conn, context=record, timeout=timeout))

    def stop(self) -> None:
        link = self.one()
        if link is None:
            return
        repeating = [record for record in self.unfinished(link) if record.repeats and not record.must_stop]
        conn: Any = link.conn
        self.note("stop", link)
        try:
            (self.watcher.accept_stop if link.kind == LISTENER else self.watcher.read_stop)(conn)
        except UnsupportedConnError:
            if link.connection is not None and not link.given_up and not self.closing:
                raise Violation(f"{link} is not stopped, as if it were not delegated") from None
            return
        # What had come back when a turn was interrupted may count as ended, though its result is not there yet. Then
        # this is for the next one, and that ends at once, where it stands behind others.
        came_back = [request.context for request in self.backend.completed]
        if self.inside or any(record.may_stop or record in came_back for record in repeating):
            # A turn is under way, which may end the first of them before this is come to.
            for record in repeating:
                record.may_stop = True
        elif repeating:
            repeating[0].may_stop = repeating[0].must_stop = True

    def ask_unsent(self) -> None:
        link = self.one()
        if link is None:
            return
        queue = link.connection.writes if link.connection is not None else None
        if queue is not None and queue.head is not None and queue.head._queue is None:
            raise Violation(f"unsent() would go round for ever: a request of {link} is the first and has finished")
        try:
            said = self.watcher.unsent(link.conn)  # type: ignore[arg-type]  # such an object will do
        except UnsupportedConnError:
            if link.connection is not None and not link.given_up and not self.closing:
                raise Violation(f"{link} cannot be asked, as if it were not delegated") from None
            return
        if self.inside or self.leader.engine.interrupted or link.given_up or self.closing:
            return  # a request may be in two places, or may have been seen before it went
        if said != self.expected_unsent(link):
            raise Violation(f"unsent() of {link} is {said}, and should be {self.expected_unsent(link)}")

    def expected_unsent(self, link: Link) -> int:
        left = sum(record.goal - record.moved for record in self.unfinished(link) if record.operation is WRITE)
        flights = self.backend.flights.values()
        # What the kernel has written, and not told yet.
        return left + sum(
            flight.answer or 0
            for flight in flights
            if flight.record.link is link and flight.record.operation is WRITE and (flight.answer or 0) > 0
        )

    def write_in_hand(self) -> None:
        """Write what has just been read, from where it is in swap memory."""
        link = self.one(STREAM, SOCKET, DATAGRAM, SEQPACKET, FILE)
        if link is None or not self.in_hand:
            return
        view, data = self.chance.one_of(self.in_hand)
        record = Record(next(self.numbers), WRITE, link)
        record.data, record.goal = data, len(data)
        timeout = self.chance.one_of(TIMEOUTS)
        watcher, conn = self.watcher, link.conn
        assert conn is not None
        self.submit(record, timeout, lambda: watcher.write(conn, view, context=record, timeout=timeout))
        if record in link.writes:
            # Short ones are copied; these are left where they are, as long ones are.
            request = self.leader.inbox[-1]
            request._memory = Lent(view)
            self.leader.lent_writes.append(request)

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
        if operation is READ and self.chance.happens(0.3):
            record.repeats, record.timeout = True, timeout
        memory: Any = record.data or None
        if operation is CONNECT:
            memory = SocketAddress(b"an address")
            connecting.add(connection.token)
        arguments: Any = (conn, connection, queue, memory, memory, record.goal, record, timeout, record.repeats)
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
            record.when = record.earliest = self.clock + timeout
            request._deadline.when = request._deadline.until = record.when  # by this clock, and not that of the machine
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
