"""Peers that do whatever they like to a watcher with whatever requests: a model, and hypothesis as the adversary.

Each connection has a model of what has gone in either direction. Whatever the order of events:
    * every request has exactly one result (tests/accounting.py),
    * the bytes of all reads, in order, begin the stream that the peer sent; nothing is lost before what follows it,
    * the bytes that the peer receives are those that the results of the writes account for,
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
from tests.waiting import TimeLimit

EXAMPLES = int(os.environ.get("GAIO_TEST_EXAMPLES", "100"))  # a campaign by hand takes thousands
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
        self.received = bytearray()  # by the peer
        self.reads: list[Request] = []
        self.writes: list[Request] = []
        self.written = 0  # bytes submitted
        self.freed = False
        self.cut = False  # by a reset, or with bytes unread: what was under way then may be lost
        peer.setblocking(False)

    # --- the peer

    def send(self, size: int) -> None:
        if self.peer is None:
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
        else:
            data = stream(self.written, size)
            self.written += size
            parts: Any = data if kind == "write" else [data[: size // 2], bytearray(data[size // 2 :])]
            self.writes.append(watcher.write(self.conn, parts, timeout=timeout))

    def free(self, watcher: AccountedWatcher) -> None:
        watcher.free(self.conn)
        self.freed = True

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
    st.tuples(st.sampled_from(["send", "send", "send", "flood", "drain", "drain"]), which, sizes),
    st.tuples(st.sampled_from(["half-close", "disconnect", "reset", "pause"]), which, sizes),
    st.tuples(
        st.sampled_from(["read", "read", "read into", "read_full", "write", "write", "vectored"]),
        which,
        sizes,
        timeouts,
    ),
    st.tuples(st.just("harvest"), st.sampled_from([0, 0, 0.0005, 0.002])),
    st.tuples(st.just("free"), which),
)


def play(watcher: AccountedWatcher, pairs: Pairs, script: list[Any]) -> None:
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
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.lists(steps, min_size=5, max_size=120))
    def run(script: list[Any]) -> None:
        before = leaks.in_use()
        pairs = Pairs()
        watcher = AccountedWatcher(gaio.Watcher(swap_size=swap_size, backend=backend))
        try:
            play(watcher, pairs, script)
            watcher.close_and_check()
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
