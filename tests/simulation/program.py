"""The program of a seed: which steps there are, what peers do, when turns run and results are taken."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

from gaio import engine
from gaio.errors import WatcherClosedError
from gaio.platform import DATAGRAM, LISTENER
from gaio.result import ACCEPT, READ, OpResult
from tests.simulation.callers import SIZES, Callers
from tests.simulation.interruption import calm
from tests.simulation.invariants import Invariants
from tests.simulation.kernel import OwnMemory
from tests.simulation.model import Link, Note, Record, Violation, is_open
from tests.simulation.world import TICK


class Simulation(Callers, Invariants):
    """One seed."""

    def __init__(self, seed: int, descriptor: socket.socket, say: Callable[[str], object] | None = None) -> None:
        super().__init__(seed, descriptor, say)
        chance = self.chance
        self.bored = chance.one_of((0.2, 0.6))  # how often a turn follows a step
        steps: tuple[tuple[int, Callable[[], object]], ...] = (
            (3, self.open),
            (8, self.submit_read),
            (7, self.submit_write),
            (3, self.submit_accept),
            (4, self.start_repeating),
            (2, self.stop),
            (2, self.write_in_hand),
            (1, self.ask_unsent),
            (2, self.submit_connect),
            (1, self.submit_shutdown),
            (10, self.peer_acts),
            (3, self.let_time_pass),
            (3, self.lead_a_turn),
            (1, self.free),
            (1, self.forget),
            (1, self.submit_late),
            (2, self.post),
            (2, self.start_timer),
            (1, self.cancel_timer),
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

    # --- turns ----------------------------------------------------------------------------------------------

    def lead_a_turn(self) -> None:
        """As the watcher thread does, or a consumer that waits."""
        if self.leader.closed:
            return
        timeout = self.chance.one_of((None, 0, 4 * TICK, 1.0))
        self.note("a turn of", timeout)
        leader = self.leader
        undelivered = len(leader.engine.outbox)
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
        else:
            if self.backend.full is not (undelivered >= engine.MOST_UNDELIVERED):
                raise Violation(f"with {undelivered} undelivered results, full is {self.backend.full}")

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

    def take_note(self, note: Note, result: OpResult) -> None:
        self.note("result", note, repr(result.error))
        self.results += 1
        if note not in self.notes:
            raise Violation(f"{note} has a second result, or was not accepted")
        self.notes.remove(note)
        note.timer = None  # which knows the note
        if note.cancelled:
            raise Violation(f"{note} was cancelled, and comes")
        if note.when is None:
            if note.number < self.posted and not self.handled:
                raise Violation(f"{note} comes behind #{self.posted}")
            self.posted = note.number
        if type(result.error) is WatcherClosedError and self.closing and note.when is not None:
            return
        if result.error is not None or (note.when is not None and note.when > self.clock):
            raise Violation(f"{note} comes with {result.error!r}")

    def take(self, result: OpResult) -> None:
        if isinstance(result.context, Note):
            self.take_note(result.context, result)
            return
        record: Record = result.context
        self.note("result", record, "and more," if result.more else "", f"size {result.size}, {result.error!r}")
        queue = record.link.reads if record.operation in (READ, ACCEPT) else record.link.writes
        self.results += 1
        if record.finished:
            raise Violation(f"{record} has a second result")
        if record not in queue:
            raise Violation(f"{record} has a result and was not accepted")
        at_once = type(result.error).__name__ == "DeadlineError" or (record.may_stop and result.error is None)
        if queue[0] is not record and not at_once:
            raise Violation(f"{record} has its result before {queue[0]}")
        if not result.more:
            record.finished = True
            queue.remove(record)
        if result.is_swap_buffer and result.size:
            # A closed backend is not told any more, and takes nothing back either.
            memory = result.buffer.obj
            lent = self.closing or type(memory) is OwnMemory or any(memory is other for other in self.backend.lent)
            if not lent:
                raise Violation(f"{record}: its memory is not lent")
            self.in_hand.append((result.buffer, bytes(result.buffer)))
        if result.more:
            record.check_arrival(result)
        else:
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
                    if record.must_stop:
                        raise Violation(f"{record} is pending, and was stopped")
            if link.connection is not None and link.connection.fd >= 0 and not is_open(link.connection.fd):
                raise Violation(f"{link}: its descriptor has been closed")
        for note in self.notes:
            if not note.cancelled and (note.when is None or note.when <= self.clock):
                raise Violation(f"{note} is pending")
        self.ask_unsent()

    def come_to_rest(self) -> None:
        quiet = 0
        for _ in range(200):
            brought = self.deliver()
            under_way = self.leader.inbox or self.leader.engine.ready or self.backend.arrivals
            quiet = 0 if brought or under_way else quiet + 1
            if quiet == 2:
                return
        raise Violation("it never comes to rest")

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
