"""Rings too small for what they are asked: more requests than entries, more completions than there is room for."""

from __future__ import annotations

import random
import threading
from functools import partial
from typing import Any

import pytest

import gaio
from gaio.platform._io_uring import abi, submission
from gaio.platform._io_uring import backend as its_module
from tests.peers import Pairs, pattern, receive_exactly
from tests.ring.conftest import MakeRing, leading
from tests.waiting import LIMIT, Background, wait_until

pytestmark = pytest.mark.scenario(19, on="io_uring")


def ring_of(watcher: gaio.Watcher) -> Any:
    backend: Any = watcher._leader.engine.backend
    assert type(backend) is its_module.IoUringBackend
    return backend


def test_a_geometry_is_what_was_asked_for(make_ring: MakeRing) -> None:
    """Or the tests below would prove nothing."""
    ring = ring_of(make_ring(entries=2, cq_entries=2).watcher)
    assert (ring.ring.sq_entries, ring.ring.cq_mask + 1) == (2, 2)


@pytest.mark.parametrize("entries", [2, 4, 8])
def test_completions_beyond_the_queue_are_kept_by_the_kernel(
    make_ring: MakeRing, pairs: Pairs, entries: int
) -> None:
    """Two hundred sockets turn readable while the completion queue has room for a few."""
    watcher = make_ring(entries=entries, cq_entries=entries * 2)
    ends = [pairs.unix() for _ in range(200)]
    reads = [watcher.read(conn, bytearray(8) if number % 2 else None) for number, (conn, _) in enumerate(ends)]
    assert watcher.wait(0) == []
    for number, (_, peer) in enumerate(ends):
        peer.send(b"%07d" % number)
    watcher.finish(*reads)
    for number, read in enumerate(reads):
        data = read.data if read.buffer is None else bytes(read.buffer[: read.size])
        assert data == b"%07d" % number


# The watcher thread must neither reap nor, should this one be held up, submit: the completions would then be worked
# out in that thread, while this one reaps.
@pytest.mark.usefixtures("thread_acts_when_told")
def test_an_overflow_did_happen_and_was_drained(make_ring: MakeRing, pairs: Pairs) -> None:
    """The kernel's own flag: every completion comes in one batch. There is a buffer for each."""
    watcher = make_ring(entries=4, cq_entries=8)
    ring = ring_of(watcher.watcher)
    ends = [pairs.unix() for _ in range(50)]
    reads = [watcher.read(conn) for conn, _ in ends]
    assert watcher.wait(0) == []
    for _, peer in ends:
        peer.send(b"x")
    # With COOP_TASKRUN completions are worked out when the thread that submitted them enters the kernel next.
    ring.ring.enter()
    wait_until(lambda: ring.ring.ksq_flags[0] & abi.IORING_SQ_CQ_OVERFLOW, "the queue to overflow")
    batch = watcher.wait(30)
    assert set(batch) == set(reads), "what overflowed belongs to the same batch"


def test_a_batch_larger_than_the_submission_queue(make_ring: MakeRing, pairs: Pairs) -> None:
    """Five hundred requests at once into four entries, reads and writes, every one with its own bytes."""
    watcher = make_ring(entries=4, cq_entries=8)
    ends = [pairs.unix() for _ in range(250)]
    reads = [watcher.read_full(conn, bytearray(6)) for conn, _ in ends]
    writes = [watcher.write(conn, b"<%04d>" % number) for number, (conn, _) in enumerate(ends)]
    watcher.finish(*writes)
    for number, (_, peer) in enumerate(ends):
        assert receive_exactly(peer, 6) == b"<%04d>" % number
        peer.sendall(b"(%04d)" % number)
    watcher.finish(*reads)
    assert [bytes(read.buffer) for read in reads] == [b"(%04d)" % number for number in range(250)]


def test_the_submission_queue_wraps_around(make_ring: MakeRing, pairs: Pairs) -> None:
    """Batches of every size, so that an entry stands at each place where the queue may be cut."""
    watcher = make_ring(entries=8, cq_entries=16)
    ends = [pairs.unix() for _ in range(24)]
    for size in [*range(1, 25), *random.Random(1).choices(range(1, 25), k=30)]:
        chosen = ends[:size]
        reads = [watcher.read(conn) for conn, _ in chosen]
        for number, (_, peer) in enumerate(chosen):
            peer.send(b"%d" % number)
        watcher.finish(*reads)
        assert [read.data for read in reads] == [b"%d" % number for number in range(size)]


def test_vectored_writes_beyond_the_submission_queue(make_ring: MakeRing, pairs: Pairs) -> None:
    """Each has a msghdr that must stay in place until the kernel has read it."""
    watcher = make_ring(entries=2, cq_entries=4)
    ends = [pairs.unix() for _ in range(20)]
    parts = [pattern(40_000, seed) for seed in range(3)]
    receiving = [Background(partial(receive_exactly, peer, 120_000)) for _, peer in ends]
    watcher.finish(*(watcher.write(conn, parts) for conn, _ in ends))
    assert all(peer.result() == b"".join(parts) for peer in receiving)


def test_cancellations_beyond_the_submission_queue(make_ring: MakeRing, pairs: Pairs) -> None:
    """Each deadline and each free() needs an entry of its own."""
    watcher = make_ring(entries=2, cq_entries=4)
    ends = [pairs.unix() for _ in range(100)]
    reads = [watcher.read(conn, timeout=0.05 if number % 2 else None) for number, (conn, _) in enumerate(ends)]
    watcher.wait(0)  # to nothing as a rule; on a machine that is held up, deadlines may have passed by now
    for conn, _ in ends[::2]:
        watcher.free(conn)
    watcher.finish(*reads)
    assert all(isinstance(read.error, gaio.DeadlineError) for read in reads[1::2])
    assert all(isinstance(read.error, gaio.ConnClosedError) for read in reads[::2])


def test_waking_up_through_a_full_queue(make_ring: MakeRing, pairs: Pairs) -> None:
    """Eight threads submit to a ring of two entries, whose consumer sleeps in the kernel in between."""
    watcher = make_ring(entries=2, cq_entries=2)
    ends = [pairs.unix() for _ in range(8)]
    rounds = 100
    answered = [threading.Semaphore(0) for _ in ends]
    places = {id(conn): number for number, (conn, _) in enumerate(ends)}

    def submit(number: int) -> None:
        for _ in range(rounds):
            watcher.write(ends[number][0], b"x")
            assert answered[number].acquire(timeout=LIMIT)

    submitting = [Background(partial(submit, number)) for number in range(8)]
    finished = 0
    while finished < rounds * 8:
        batch = watcher.wait(LIMIT)
        assert batch, "a submitter was not heard"
        for request in batch:
            assert request.result is not None
            answered[places[id(request.result.conn)]].release()
        finished += len(batch)
    for thread in submitting:
        thread.result()
    assert all(len(receive_exactly(peer, rounds)) == rounds for _, peer in ends)


def test_a_wake_up_that_the_kernel_gave_up_is_armed_again(make_ring: MakeRing, pairs: Pairs) -> None:
    """A multishot poll ends when its completion finds no room; the next submitter must be heard all the same."""
    watcher = make_ring(entries=2, cq_entries=2)
    leader = watcher.watcher._leader
    ring = ring_of(watcher.watcher)

    def given_up() -> bool:
        ring.ring.enter()
        ring._reap()
        return submission.WAKE not in ring._armed

    for _ in range(5):
        ends = [pairs.unix() for _ in range(20)]
        reads = [watcher.read(conn) for conn, _ in ends]
        assert watcher.wait(0) == []
        with leading(watcher):  # so that nobody makes room meanwhile
            for _, peer in ends:
                peer.send(b"x")
            ring.ring.enter()
            wait_until(lambda: ring.ring.ksq_flags[0] & abi.IORING_SQ_CQ_OVERFLOW, "the queue to overflow")
            ring.wake()
            wait_until(given_up, "the kernel to give up the wake-up, without which this would prove nothing")
        watcher.finish(*reads)
        harvesting = Background(lambda: watcher.wait(LIMIT))
        wait_until(lambda: leader.needs_wakeup, "the consumer to sleep in the kernel")
        conn, peer = ends[0]
        write = watcher.write(conn, b"heard")
        assert harvesting.result() == [write]
        assert peer.recv(10) == b"heard"


def test_what_one_batch_does_not_take_comes_with_the_next(
    make_ring: MakeRing, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No system call, and no event, is needed for what stands in the completion queue already."""
    monkeypatch.setattr(its_module, "MAX_COMPLETIONS", 3)
    watcher = make_ring()
    ends = [pairs.unix() for _ in range(10)]
    reads = [watcher.read(conn) for conn, _ in ends]
    assert watcher.wait(0) == []
    for number, (_, peer) in enumerate(ends):
        peer.send(b"%d" % number)
    sizes: list[int] = []
    while sum(sizes) < len(reads):
        sizes.append(len(watcher.wait(30)))
    assert max(sizes) <= 3
    assert [read.data for read in reads] == [b"%d" % number for number in range(10)]
    assert watcher.wait(0) == []
