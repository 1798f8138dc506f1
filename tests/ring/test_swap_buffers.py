"""The ring of provided buffers: used up while nobody fetches results, then given back in the same order."""

from __future__ import annotations

import random
import socket
from typing import Any

import pytest

from gaio.platform._io_uring import abi, buffers
from tests.accounting import Request
from tests.faulty_libc import FaultyLibc
from tests.peers import Pairs, pattern
from tests.ring.conftest import MakeRing, leading, refuse_incremental_buffers
from tests.waiting import Background, wait_until

pytestmark = pytest.mark.scenario(18, on="io_uring")


COUNT = 16
SIZE = 64


@pytest.fixture(params=["offered", "whole"], autouse=True)
def few_buffers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few and small, consumed the way that this kernel offers, and the way every kernel does: as a whole."""
    monkeypatch.setattr(buffers, "buffer_geometry", lambda *_: (SIZE, COUNT, COUNT))
    if request.param == "whole":
        refuse_incremental_buffers(FaultyLibc(monkeypatch))


def filling(text: str) -> bytes:
    """A message that takes a whole buffer, either way."""
    return text.encode().ljust(SIZE)


def test_more_messages_than_buffers_while_nobody_fetches(make_ring: MakeRing, pairs: Pairs) -> None:
    """The watcher thread receives until no buffer is left; the rest waits in the sockets, and no one sees an error."""
    watcher = make_ring()
    ends = [pairs.unix() for _ in range(100)]
    reads = [watcher.read(conn) for conn, _ in ends]
    for number, (_, peer) in enumerate(ends):
        peer.send(filling(f"message {number}"))
    wait_until(lambda: watcher.watcher.stats().pending == 100 - COUNT, "the buffers to be used up")
    batch = watcher.wait(30)
    assert len(batch) == COUNT
    watcher.finish(*reads)
    assert [read.data for read in reads] == [filling(f"message {number}") for number in range(100)]


def test_a_message_is_cut_where_its_buffer_ends(make_ring: MakeRing, pairs: Pairs) -> None:
    """The next read has the rest of it, whosever message was taken in between."""
    watcher = make_ring()
    ends = [pairs.unix() for _ in range(3)]
    received = [b""] * len(ends)
    payload = pattern(20 * SIZE)
    for number, (_, peer) in enumerate(ends, 1):
        peer.send(payload[: number * 5 * SIZE + number])
        peer.shutdown(socket.SHUT_WR)
    open_ends = set(range(len(ends)))
    while open_ends:
        reads = {number: watcher.read(ends[number][0]) for number in open_ends}
        watcher.finish(*reads.values())
        for number, read in reads.items():
            received[number] += read.data
            if read.error is not None:
                open_ends.remove(number)
    assert received == [payload[: number * 5 * SIZE + number] for number in (1, 2, 3)]


def test_one_connection_floods_through_few_buffers(make_ring: MakeRing, pairs: Pairs) -> None:
    watcher = make_ring()
    conn, peer = pairs.tcp()
    payload = pattern(200_000)
    sending = Background(lambda: peer.sendall(payload))
    received = bytearray()
    while len(received) < len(payload):
        for read in watcher.finish(*(watcher.read(conn) for _ in range(40))) if len(received) < 100_000 else [
            *watcher.finish(watcher.read(conn))
        ]:
            assert read.error is None
            received += read.data
    sending.result()
    assert received == payload


def test_reads_with_their_own_memory_go_on_meanwhile(make_ring: MakeRing, pairs: Pairs) -> None:
    watcher = make_ring()
    ends = [pairs.unix() for _ in range(30)]
    reads = [watcher.read(conn) for conn, _ in ends]
    own, own_peer = pairs.unix()
    whole = watcher.read_full(own, bytearray(5))
    for _, peer in ends:
        peer.send(filling("x"))
    wait_until(lambda: watcher.watcher.stats().pending == 31 - COUNT, "the buffers to be used up")
    own_peer.send(b"whole")
    wait_until(lambda: watcher.watcher.stats().pending == 30 - COUNT, "the read into the caller's buffer")
    watcher.finish(*reads, whole)
    assert whole.buffer == b"whole"


@pytest.mark.parametrize("way", ["free", "deadline", "close"])
def test_a_read_that_waits_for_a_buffer_can_be_cut_off(make_ring: MakeRing, pairs: Pairs, way: str) -> None:
    watcher = make_ring()
    ends = [pairs.unix() for _ in range(20)]
    reads = [watcher.read(conn) for conn, _ in ends]
    for _, peer in ends:
        peer.send(filling("x"))
    wait_until(lambda: watcher.watcher.stats().pending == 4, "the buffers to be used up")
    late = watcher.read(pairs.unix()[0], timeout=0.01)
    if way == "free":
        for conn, _ in ends:
            watcher.free(conn)
        watcher.finish(*reads, late)
    elif way == "close":
        watcher.close_and_check()
    wait_until(lambda: watcher.watcher.stats().pending <= 4, "the deadline")
    watcher.finish(*reads, late)
    assert sum(read.size for read in reads) <= 20 * SIZE
    assert sum(read.error is None for read in reads) >= COUNT


def test_there_are_as_many_buffers_as_the_largest_batches_take(
    make_ring: MakeRing, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buffers, "buffer_geometry", lambda *_: (SIZE, 2, COUNT))
    watcher = make_ring()
    ends = [pairs.unix() for _ in range(100)]
    reads = [watcher.read(conn) for conn, _ in ends]
    assert watcher.wait(0) == []
    for number, (_, peer) in enumerate(ends):
        peer.send(filling(f"message {number}"))
    sizes: list[int] = []
    while sum(sizes) < 100:
        sizes.append(len(watcher.wait(30)))
    assert max(sizes) == COUNT
    assert sizes[0] <= 4, "the first batch has what there was at first, and at most what its first turn found missing"
    assert [read.data for read in reads] == [filling(f"message {number}") for number in range(100)]


def test_there_are_no_more_buffers_than_batches_take(
    make_ring: MakeRing, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buffers, "buffer_geometry", lambda *_: (SIZE, 2, COUNT))
    watcher = make_ring()
    conn, peer = pairs.unix()
    for number in range(5):
        read = watcher.read(conn)
        peer.send(filling(f"message {number}"))
        watcher.finish(read)
    backend: Any = watcher.watcher._leader.engine.backend
    assert backend.buffers.provided[1] == 2


@pytest.mark.parametrize("few_buffers", ["whole"], indirect=True)
def test_completions_that_overtake_others(make_ring: MakeRing, pairs: Pairs) -> None:
    """Before Linux 6.2 one that failed could come before those of earlier receives, and name a later buffer."""
    watcher = make_ring()
    ends = [pairs.unix() for _ in range(3)]
    with leading(watcher):
        ring: Any = watcher.watcher._leader.engine.backend
        assert watcher.wait(0) == []  # the ring is armed: what completes from now on is received
        for round_number in range(3 * COUNT):
            reads = [watcher.read(conn) for conn, _ in ends]
            for number, (_, peer) in enumerate(ends):
                peer.send(b"%d %d" % (round_number, number))
            watcher.watcher._leader.engine.admit(watcher.watcher._leader.inbox[:])
            ring.start(watcher.watcher._leader.engine.ready)
            watcher.watcher._leader.engine.ready.clear()
            ring.ring.enter()
            swap_completions(ring)
            watcher.finish(*reads)
            assert [read.data for read in reads] == [b"%d %d" % (round_number, number) for number in range(3)]


def swap_completions(ring: Any) -> None:
    """Let the first two that wait in the ring change places."""
    head, size = ring._reaped[0], abi.CQE.size
    assert ring.ring.kcq_tail[0] - head == 3
    first, second = ((place & ring.ring.cq_mask) * size for place in (head, head + 1))
    entries = [bytes(ring.ring.kcqes[place : place + size]) for place in (second, first)]
    for place, entry in zip((first, second), entries, strict=True):
        ring.ring.kcqes[place : place + size] = entry


@pytest.mark.parametrize("at_first", [1, 2, COUNT])
def test_views_stay_intact_through_many_rounds_of_the_ring(
    make_ring: MakeRing, pairs: Pairs, monkeypatch: pytest.MonkeyPatch, at_first: int
) -> None:
    """Every buffer is lent again and again, with batches of every size; no delivered byte changes meanwhile."""
    monkeypatch.setattr(buffers, "buffer_geometry", lambda *_: (SIZE, at_first, COUNT))
    watcher = make_ring()
    chooser = random.Random(5)
    ends = [pairs.unix() for _ in range(24)]
    number = 0
    for _ in range(300):
        expected: dict[int, bytes] = {}
        chosen = chooser.sample(ends, chooser.randrange(1, 25))
        reads: list[Request] = []
        for conn, peer in chosen:
            number += 1
            read = watcher.read(conn)
            reads.append(read)
            expected[id(read)] = (b"%d " % number * SIZE)[: SIZE // 4]
            peer.send(expected[id(read)])
        while any(read.result is None for read in reads):
            batch = watcher.wait(30)
            assert batch
            for read in batch:
                assert read.result is not None
                assert bytes(read.result.buffer) == expected[id(read)]
