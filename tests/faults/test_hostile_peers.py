"""Peers that do whatever they like to a watcher with whatever requests: a model, and hypothesis as the adversary.

Each connection has a model of what has gone in either direction. Whatever the order of events:
    * every request has exactly one result (tests/accounting.py),
    * the bytes of all reads, in order, begin the stream that the peer sent; nothing is lost before what follows it,
    * the bytes that the peer receives are those that the results of the writes account for,
    * what is due comes, though nobody gives the connection up: a read of bytes that were sent, or of their end, a write
      once the peer has read everything, anything once the peer has gone,
    * a connection that has come through the script still does all that a connection does,
    * a well-behaved connection in their midst is served,
    * descriptors and threads are back where they were, and in the end no object of gaio is left.
"""

from __future__ import annotations

import gc
import os
import random
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gaio
from tests import backends, leaks
from tests.accounting import AccountedWatcher, Request
from tests.peers import Pairs, reset
from tests.waiting import LIMIT, TimeLimit

EXAMPLES = int(os.environ.get("GAIO_TEST_EXAMPLES", "60"))  # a campaign by hand takes thousands
SEED = random.Random(11).randbytes(1 << 16)


def stream(start: int, size: int) -> bytes:
    """So many bytes of an endless stream, from that place on."""
    begin = start % len(SEED)
    return (SEED * (size // len(SEED) + 2))[begin : begin + size]


class Link:
    """One connection, its peer, and what is known of both directions."""

    def __init__(self, conn: socket.socket, peer: socket.socket) -> None:
        self.conn = conn
        self.peer: socket.socket | None = peer
        self.sent = 0  # by the peer
        self.ended = False  # the peer sends no more
        self.received = bytearray()  # by the peer
        self.reads: list[Request] = []
        self.whole: set[Request] = set()  # those of the reads that want every byte
        self.writes: list[Request] = []
        self.written = 0  # bytes submitted
        self.freed = False
        self.cut = False  # by a reset, or with bytes unread: what was under way then may be lost
        peer.setblocking(False)

    # --- the peer

    def send(self, size: int) -> None:
        if self.peer is None or self.ended:
            return
        try:
            self.sent += self.peer.send(stream(self.sent, size))
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            self.cut = True

    def flood(self, size: int) -> None:
        for _ in range(20):
            self.send(65536)

    def drain(self, size: int) -> None:
        """What there is, at most so many bytes."""
        if self.peer is None:
            return
        try:
            self.received += self.peer.recv(size)
        except BlockingIOError:
            pass
        except ConnectionResetError:
            self.cut = True

    def half_close(self, size: int) -> None:
        if self.peer is not None:
            self.ended = True
            try:
                self.peer.shutdown(socket.SHUT_WR)
            except OSError:
                self.cut = True

    def disconnect(self, size: int) -> None:
        if self.peer is not None:
            self.peer.close()
            self.peer, self.cut = None, True

    def reset(self, size: int) -> None:
        if self.peer is not None:
            reset(self.peer)
            self.peer, self.cut = None, True

    def pause(self, size: int) -> None:
        """Long enough for the watcher thread to take over."""
        time.sleep(0.012)

    # --- the caller

    def submit(self, watcher: AccountedWatcher, kind: str, size: int, timeout: float | None) -> None:
        if self.freed:
            return
        if kind == "read":
            self.reads.append(watcher.read(self.conn, timeout=timeout))
        elif kind == "read into":
            self.reads.append(watcher.read(self.conn, bytearray(size), timeout=timeout))
        elif kind == "read_full":
            self.reads.append(watcher.read_full(self.conn, bytearray(size), timeout=timeout))
            self.whole.add(self.reads[-1])
        else:
            data = stream(self.written, size)
            self.written += size
            parts: Any = data if kind == "write" else [data[: size // 2], bytearray(data[size // 2 :])]
            self.writes.append(watcher.write(self.conn, parts, timeout=timeout))

    def free(self, watcher: AccountedWatcher) -> None:
        watcher.free(self.conn)
        self.freed = True

    # --- what must come

    @property
    def alive(self) -> bool:
        return not self.freed and not self.cut

    def unread(self) -> int:
        return self.sent - sum(read.size for read in self.reads if read.result is not None)

    def due(self) -> list[Request]:
        """What must finish though the peer reads nothing."""
        reads = [read for read in self.reads if read.result is None]
        if not self.alive:
            return reads + [write for write in self.writes if write.result is None]
        if self.ended or not reads:
            return reads
        least = reads[0].size_wanted if reads[0] in self.whole else 1
        assert least is not None
        return reads[:1] if self.unread() >= least else []

    def let_out(self, watcher: AccountedWatcher, patience: float) -> None:
        """The peer reads all that is written, and so every write must finish."""
        limit = TimeLimit(patience)
        while left := [write for write in self.writes if write.result is None]:
            watcher.wait(0.001)
            self.drain(1 << 20)
            limit.left(f"{left} with a peer that reads")

    def use(self, watcher: AccountedWatcher, patience: float) -> None:
        """All that a connection does, with nothing under way at first but reads that nothing was sent for."""
        if not self.ended:
            self.submit(watcher, "write", 300_000, None)  # more than fits: it waits for the peer to read
            self.submit(watcher, "read", 0, None)
            watcher.wait(0)
            self.send(1000)
            finish_what_is_due(watcher, [self], patience)
            self.send(1000)
            self.half_close(0)  # right behind the bytes
        while not any(read.result is not None and isinstance(read.error, EOFError) for read in self.reads):
            self.submit(watcher, "read", 0, None)
            finish_what_is_due(watcher, [self], patience)
        assert not self.unread()
        self.submit(watcher, "write", 300_000, None)
        self.let_out(watcher, patience)
        for request in (*self.reads, *self.writes):
            assert request.error is None or isinstance(request.error, (EOFError, gaio.DeadlineError))

    # --- what must hold

    def check(self) -> None:
        taken = b"".join(
            read.data if read.buffer is None else bytes(read.buffer[: read.size])
            for read in self.reads
            if read.result is not None
        )
        assert taken == stream(0, len(taken))
        assert len(taken) <= self.sent
        ended = [read for read in self.reads if read.result is not None and isinstance(read.error, EOFError)]
        if ended and not self.cut:
            assert len(taken) == self.sent, "the end came before the bytes that stood before it"
        # Each write is a stretch of the stream; what went out of it is told by its result.
        expected = bytearray()
        place = 0
        for write in self.writes:
            size = write.size_wanted
            assert size is not None
            expected += stream(place, write.size)
            place += size
        assert expected.startswith(self.received) if self.cut else expected == self.received


ACTS: dict[str, Callable[[Link, int], None]] = {
    "send": Link.send,
    "flood": Link.flood,
    "drain": Link.drain,
    "half-close": Link.half_close,
    "disconnect": Link.disconnect,
    "reset": Link.reset,
    "pause": Link.pause,
}
which = st.integers(0, 5)
sizes = st.sampled_from([1, 2, 100, 1000, 5000, 70_000, 300_000])
timeouts = st.sampled_from([None, None, None, 0, 0.0005, 0.01])
steps = st.one_of(
    st.tuples(st.just("connect"), st.booleans()),
    # Seldom what ends a connection, or few would live to see anything else.
    st.tuples(
        st.sampled_from(
            [*["send"] * 5, *["drain"] * 3, *["flood"] * 2, *["free"] * 2, "half-close", "disconnect", "reset", "pause"]
        ),
        which,
        sizes,
    ),
    st.tuples(
        st.sampled_from(["read", "read", "read into", "read_full", "write", "write", "vectored"]),
        which,
        sizes,
        timeouts,
    ),
    st.tuples(st.just("harvest"), st.sampled_from([0, 0, 0.0005, 0.002])),
)


def play(watcher: AccountedWatcher, pairs: Pairs, script: list[Any], patience: float) -> None:
    good, good_peer = pairs.tcp()
    links = [Link(*pairs.tcp(buffers=16384)), Link(*pairs.unix())]
    for name, *arguments in script:
        if name == "connect":
            if len(links) < 6:
                links.append(Link(*(pairs.tcp(buffers=16384) if arguments[0] else pairs.unix())))
        elif name == "harvest":
            watcher.wait(arguments[0])
        elif arguments[0] >= len(links):
            continue
        elif name == "free":
            links[arguments[0]].free(watcher)
        elif name in ACTS:
            ACTS[name](links[arguments[0]], arguments[1])
        else:
            links[arguments[0]].submit(watcher, name, *arguments[1:])

    good_peer.sendall(b"served?")
    question, answer = watcher.read(good), watcher.write(good, b"served!")
    watcher.finish(question, answer)
    assert question.data == b"served?"
    assert good_peer.recv(100) == b"served!"

    finish_what_is_due(watcher, links, patience)
    for link in links:
        if link.alive:
            link.let_out(watcher, patience)
    for link in links:
        if link.alive:
            link.use(watcher, patience)
    for link in links:
        link.free(watcher)
    watcher.finish_all()
    limit = TimeLimit()
    for link in links:
        while link.peer is not None and not link.cut:
            before = len(link.received)
            link.drain(1 << 20)
            if len(link.received) == before and ended(link.peer):
                break
            limit.left("a peer to see the end")
        link.check()


def finish_what_is_due(watcher: AccountedWatcher, links: list[Link], patience: float) -> None:
    limit = TimeLimit(patience)
    while due := [request for link in links for request in link.due()]:
        watcher.wait(limit.left(f"{due}, which are due"))


def ended(peer: socket.socket) -> bool:
    try:
        return peer.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return False  # drain() will see to that


def objects_of_gaio() -> Counter[str]:
    gc.collect()
    return Counter(kind.__qualname__ for kind in map(type, gc.get_objects()) if kind.__module__.startswith("gaio."))


@pytest.mark.slow
@pytest.mark.scenario(4, 5, 6, 7, 10, 16, 20, 21)
@pytest.mark.parametrize("swap_size", [65536, 300])
def test_no_script_breaks_the_model(backend: backends.Name, swap_size: int) -> None:
    patience = LIMIT  # seconds for what is due to come

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.lists(steps, min_size=5, max_size=120))
    def run(script: list[Any]) -> None:
        nonlocal patience
        before = leaks.in_use()
        pairs = Pairs()
        watcher = AccountedWatcher(gaio.Watcher(swap_size=swap_size, backend=backend))
        try:
            play(watcher, pairs, script, patience)
            watcher.close_and_check()
        except Exception:
            patience = 0.2  # it has failed: what follows is only a search for a shorter script
            raise
        finally:
            watcher.watcher.close()
            pairs.close()
        stats = watcher.watcher.stats()
        assert (stats.conns, stats.pending) == (0, 0)
        del watcher
        if leaks.in_use().since(before):
            gc.collect()
        assert leaks.in_use().since(before) == []

    held = objects_of_gaio()
    run()
    assert objects_of_gaio() == held
