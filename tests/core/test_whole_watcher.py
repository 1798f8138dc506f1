"""The whole watcher as a state machine: anything a caller and its peers may do, in any order, against a model.

The model knows for each connection which requests are pending, in their order, and the bytes that went either way.
After every step:
    * a result belongs to a pending request, and to the first of its queue unless that was cut off,
    * the bytes of the reads, one behind the other, are what the peer sent, from the first byte on,
    * the views of the last batch show what they showed when it was delivered,
    * the counters are right.
What is due comes: a read of bytes that have been sent, or of their end, writes to a peer that reads, the requests of a
connection that was freed. And when the watcher is closed in the end, each request has had one result, and the peers
have received what the results of the writes say.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

import gaio
from tests import backends
from tests.accounting import Request
from tests.interruption.opcodes import Opcode, interrupted_at, told_of_opcodes
from tests.interruption.world import SECONDS, World
from tests.peers import pattern, reset
from tests.waiting import TimeLimit

STREAM = pattern(1 << 16)
SWAP_SIZE = 1000  # small, so that batches fill it
SIZES = st.one_of(st.integers(1, 100), st.integers(1, 5000), st.just(400_000))
TIMEOUTS = st.sampled_from([None, None, None, 0, 0.001, 1000])
CUT_OFF = (gaio.DeadlineError, gaio.ConnClosedError, gaio.WatcherClosedError)


def stretch(start: int, size: int) -> bytes:
    """So many bytes of an endless stream, from that place on."""
    begin = start % len(STREAM)
    return (STREAM * (size // len(STREAM) + 2))[begin : begin + size]


class Pending(NamedTuple):
    request: Request
    timeout: float | None
    least: int  # bytes that a read needs in order to succeed
    data: bytes  # to be written


class Link:
    """A connection, its peer, and what is known of both."""

    def __init__(self, conn: socket.socket, peer: socket.socket) -> None:
        peer.setblocking(False)
        self.conn: socket.socket | None = conn  # None when the caller has given it up
        self.peer: socket.socket | None = peer  # None when the peer has reset the connection
        self.delegated = False
        self.sent = 0  # bytes, by the peer
        self.ended = False  # the peer sends no more
        self.read = 0  # bytes that the results of reads have brought
        self.reads: list[Pending] = []  # in the order of submission
        self.received = bytearray()  # by the peer
        self.submitted = 0  # bytes to be written
        self.writes: list[Pending] = []  # in the order of submission
        self.written = bytearray()  # what the results of writes account for

    def receive(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while self.peer is not None and (part := self.peer.recv(1 << 20)):
                self.received += part

    def due(self) -> list[Pending]:
        """The first read, if it can finish. What a read_full() has got so far is not known."""
        if self.conn is None or self.peer is None or not self.reads:
            return []
        first = self.reads[0]
        return [first] if self.ended or self.sent - self.read >= first.least else []

    def pending(self) -> list[Pending]:
        return [*self.reads, *self.writes]


class WatcherMachine(RuleBasedStateMachine):
    links: Bundle[Link] = Bundle("links")

    def __init__(self, backend: backends.Name) -> None:
        super().__init__()
        self.backend = backend
        self.opened = False
        self.all_links: list[Link] = []
        self.pending: dict[Request, tuple[Link, Pending]] = {}
        self.forgotten = 0
        self.views: list[tuple[memoryview, bytes]] = []  # of the last batch, and what they showed

    @initialize()
    def open(self) -> None:
        """Not in __init__(), which hypothesis calls for machines that it never runs."""
        self.world = World(self.backend, SWAP_SIZE)
        self.watcher = self.world.watcher
        self.opened = True

    # --- the caller

    @rule(target=links, tcp=st.booleans())
    def connect(self, tcp: bool) -> Link:
        link = Link(*(self.world.pairs.tcp() if tcp else self.world.pairs.unix()))
        self.all_links.append(link)
        return link

    def _note(self, link: Link, queue: list[Pending], pending: Pending) -> None:
        link.delegated = True
        queue.append(pending)
        self.pending[pending.request] = (link, pending)

    @rule(link=links, size=st.one_of(st.none(), SIZES), timeout=TIMEOUTS)
    def submit_read(self, link: Link, size: int | None, timeout: float | None) -> None:
        if link.conn is not None:
            buffer = None if size is None else bytearray(size)
            request = self.watcher.read(link.conn, buffer, timeout=timeout)
            self._note(link, link.reads, Pending(request, timeout, least=1, data=b""))

    @rule(link=links, size=SIZES, timeout=TIMEOUTS)
    def submit_read_full(self, link: Link, size: int, timeout: float | None) -> None:
        if link.conn is not None:
            request = self.watcher.read_full(link.conn, bytearray(size), timeout=timeout)
            self._note(link, link.reads, Pending(request, timeout, least=size, data=b""))

    @rule(link=links, sizes=st.lists(SIZES, min_size=1, max_size=3), timeout=TIMEOUTS)
    def submit_write(self, link: Link, sizes: list[int], timeout: float | None) -> None:
        if link.conn is None:
            return
        parts = []
        for size in sizes:
            parts.append(stretch(link.submitted, size))
            link.submitted += size
        request = self.watcher.write(link.conn, parts if len(parts) > 1 else bytearray(parts[0]), timeout=timeout)
        self._note(link, link.writes, Pending(request, timeout, least=0, data=b"".join(parts)))

    @rule(link=links)
    def free(self, link: Link) -> None:
        if link.conn is not None:
            self.watcher.free(link.conn)
            link.conn = None

    @rule(link=links)
    def forget(self, link: Link) -> None:
        """Drop the last reference to it, which is the caller's when no request is pending."""
        if link.delegated and link.conn is not None and not link.reads and not link.writes:
            link.conn = None
            self.forgotten += 1

    @rule(timeout=st.sampled_from([0, 0, 0.001]))
    def wait(self, timeout: float) -> None:
        self._check_views()
        self._take(self.watcher.wait(timeout))

    @rule(opcode=st.builds(Opcode, st.integers(1, 60), st.integers(1, 40)))
    def wait_and_be_interrupted(self, opcode: Opcode) -> None:
        finished: list[Request] = []
        self._check_views()
        self.views.clear()  # whether it has begun is not known
        interrupted_at(opcode, lambda: finished.extend(self.watcher.wait(0)))
        self._take(finished)

    @rule()
    def the_thread_takes_the_watch(self) -> None:
        self.world.hand_to_thread()

    # --- the peers

    @rule(link=links, size=SIZES)
    def send(self, link: Link, size: int) -> None:
        if link.peer is not None and not link.ended:
            with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
                link.sent += link.peer.send(stretch(link.sent, size))

    @rule(link=links)
    def receive(self, link: Link) -> None:
        link.receive()

    @rule(link=links)
    def end(self, link: Link) -> None:
        if link.peer is not None and not link.ended:
            with contextlib.suppress(OSError):  # ENOTCONN: freed already
                link.peer.shutdown(socket.SHUT_WR)
            link.ended = True

    @rule(link=links)
    def reset(self, link: Link) -> None:
        if link.peer is not None:
            reset(link.peer)
            link.peer = None

    # --- what must come of it

    @rule(link=links)
    def what_is_due_comes(self, link: Link) -> None:
        self._finish(link.due())

    @rule(link=links)
    def what_is_written_goes_out(self, link: Link) -> None:
        limit = TimeLimit(SECONDS)
        while link.peer is not None and link.writes:
            link.receive()
            self.wait(0.001)
            limit.left(f"{len(link.writes)} writes to finish")

    @rule(link=links)
    def what_was_cut_off_comes(self, link: Link) -> None:
        if link.conn is None or link.peer is None:
            self._finish(link.pending())

    def _finish(self, requests: list[Pending]) -> None:
        limit = TimeLimit(SECONDS)
        while left := [pending for pending in requests if pending.request in self.pending]:
            self.wait(limit.left(f"{left} to finish"))

    def _take(self, finished: list[Request]) -> None:
        self.views = []
        for request in finished:
            link, pending = self.pending.pop(request)
            if request.operation is gaio.READ:
                self._take_read(link, pending)
            else:
                self._take_write(link, pending)
            self._check_error(link, pending)

    def _take_read(self, link: Link, pending: Pending) -> None:
        request = pending.request
        place = link.reads.index(pending)
        del link.reads[place]
        assert place == 0 or isinstance(request.error, CUT_OFF), "out of order"
        data = request.data if request.buffer is None else bytes(request.buffer[: request.size])
        assert place == 0 or not data
        assert data == stretch(link.read, request.size)
        link.read += request.size
        assert link.read <= link.sent
        assert request.result is not None
        if request.result.is_swap_buffer:
            self.views.append((request.result.buffer, data))
        if isinstance(request.error, EOFError):
            assert link.peer is None or (link.ended and link.read == link.sent)

    def _take_write(self, link: Link, pending: Pending) -> None:
        request = pending.request
        place = link.writes.index(pending)
        del link.writes[place]
        assert place == 0 or (isinstance(request.error, CUT_OFF) and not request.size), "out of order"
        link.written += pending.data[: request.size]

    def _check_error(self, link: Link, pending: Pending) -> None:
        error = pending.request.error
        if isinstance(error, gaio.DeadlineError):
            assert pending.timeout is not None
            assert pending.timeout < 1000
        elif isinstance(error, gaio.ConnClosedError):
            assert link.conn is None
        elif isinstance(error, gaio.WatcherClosedError):
            assert self.watcher.watcher.closed
        elif isinstance(error, OSError):
            assert link.peer is None, error

    def _check_views(self) -> None:
        for view, data in self.views:
            assert view == data, "memory in the caller's hands was written"

    @invariant()
    @precondition(lambda self: self.opened)
    def counters_are_right(self) -> None:
        stats = self.watcher.watcher.stats()
        assert stats.conns == len([link for link in self.all_links if link.delegated and link.conn is not None])
        assert stats.pending <= len(self.pending)
        # A batch that an interruption kept from getting out has been counted, and will be again when it does.
        assert self.watcher.results <= stats.completions <= self.watcher.results + len(self.pending)

    def teardown(self) -> None:
        if not self.opened:
            return
        if sys.exc_info()[0] is not None:
            self.watcher.watcher.close()
            self.world.pairs.close()
            return  # what failed may have left anything behind: more checks would only hide it
        with self.world:
            self._check_views()
            for link in self.all_links:
                link.receive()
            self._take(self.watcher.close_and_check())
            assert not self.pending
            for link in self.all_links:
                link.receive()
                if link.peer is not None and not self._cut(link):
                    assert link.received == link.written
                else:
                    assert link.written.startswith(link.received)
            assert self.watcher.watcher.stats().gc_found == self.forgotten
            self.all_links.clear()
            del self.watcher  # its finalizer is not to run in the middle of another example

    def _cut(self, link: Link) -> bool:
        """Bytes of the peer that were never read make a reset of the closing, which may overtake what was written."""
        return link.read < link.sent


@pytest.mark.slow
@pytest.mark.usefixtures("thread_acts_when_told")
def test_whole_watcher(backend: backends.Name) -> None:
    class Machine(WatcherMachine):
        def __init__(self) -> None:
            super().__init__(backend)

    Machine.TestCase.settings = settings(
        max_examples=100,
        stateful_step_count=50,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    with told_of_opcodes():
        Machine.TestCase().runTest()
