"""What must hold: between two calls, when all has come to rest, and in the end."""

from __future__ import annotations

import os

from gaio.closing import CLOSED_BACKEND
from gaio.result import ACCEPT, CONNECT, READ, WRITE
from tests.simulation.model import Link, Record, Violation, is_open
from tests.simulation.world import World


class Invariants(World):
    """Each raises a Violation."""

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

    def check_engine(self) -> None:
        """Between two calls: each request is in one place, the first of each queue with somebody, the heap in order."""
        engine = self.leader.engine
        if engine.interrupted or self.leader.closed:
            return
        delivered = all(isinstance(what, OSError) for _, what in self.backend.arrivals)  # of accepts held back
        if engine.partial or self.backend.completed or not delivered:
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
        queued = {id(item) for item in (*engine.inbox, *engine.timers)}
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
            if entry.request is not None and entry.request._deadline is not entry:
                raise Violation(f"{entry.request.context} has two deadlines")
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
        for note in self.notes:
            if not note.cancelled:
                raise Violation(f"{note} never had a result")
        for name in ("timers", "outbox", "connections", "listeners", "connecting", "descriptors"):
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
        for note in self.notes:
            note.timer = None  # which knows the note
        self.notes.clear()
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
