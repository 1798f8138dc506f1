"""What a wait() of the ring must still arrange, or see, before it sleeps or leaves: nobody else would come for it."""

from __future__ import annotations

import errno
import socket
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import gaio
from gaio.platform import _writability
from gaio.platform._io_uring import buffers
from gaio.platform._io_uring.ring import Ring
from gaio.platform._io_uring.submission import WAKE
from tests.accounting import MakeWatcher
from tests.faulty_libc import FaultyLibc, enters_ring
from tests.interruption.opcodes import Opcode, Strike, at_opcodes, interrupted_at, told_of_opcodes
from tests.interruption.world import World
from tests.nest import Nest
from tests.peers import Pairs, pattern, receive_exactly
from tests.ring.conftest import MakeRing, leading
from tests.waiting import Background

MESSAGE = pattern(1 << 20)


def test_room_for_more_writes_than_are_looked_at(
    make_watcher: MakeWatcher, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_writability, "MAX_EVENTS", 1)
    watcher = make_watcher()
    ends = [pairs.unix() for _ in range(4)]
    nest = Nest(watcher)
    writes = [watcher.write(conn, MESSAGE) for conn, _ in ends]
    assert watcher.wait(0) == []
    receiving = [Background(partial(receive_exactly, peer, len(MESSAGE))) for _, peer in ends]
    nest.finish(*writes)
    assert [thread.result() for thread in receiving] == [MESSAGE] * 4


def test_entries_that_the_kernel_had_no_memory_to_take(
    libc: FaultyLibc, make_watcher: MakeWatcher, pairs: Pairs
) -> None:
    watcher = make_watcher()
    conn, _ = pairs.unix()
    nest = Nest(watcher)
    nest.finish(watcher.write(conn, b"known"))
    write = watcher.write(conn, b"x")
    libc.fail("syscall", errno.EAGAIN, times=4, when=enters_ring)
    nest.finish(write)
    assert libc.struck


def test_reads_that_found_no_buffer_behind_others_that_take_none(
    make_ring: MakeRing, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Urgent data makes a connection readable with nothing to read, which a read that finds no buffer does not see."""
    monkeypatch.setattr(buffers, "buffer_geometry", lambda *_: (64, 4, 4))
    watcher = make_ring()
    full = [pairs.unix() for _ in range(4)]
    in_vain = [pairs.unix() for _ in range(12)]
    conn, peer = pairs.unix()
    for _, sender in full:
        sender.send(bytes(64))
    for _, sender in in_vain:
        sender.send(b"!", socket.MSG_OOB)
    peer.send(b"x")
    with leading(watcher):  # all of them in one turn
        reads = [watcher.read(reader) for reader, _ in full]
        for reader, _ in in_vain:
            watcher.read(reader)
        read = watcher.read(conn)
        watcher.finish(*reads)
        watcher.finish(read)
    assert read.data == b"x"


@pytest.mark.usefixtures("thread_acts_when_told")
def test_results_of_making_room(make_ring: MakeRing, pairs: Pairs) -> None:
    """The ring is so small that the way to wake it has no place beside the only request."""
    watcher = make_ring(entries=2, cq_entries=2)
    ends = [pairs.unix() for _ in range(2)]
    with leading(watcher):
        ring: Any = watcher.watcher._leader.engine.backend
        assert WAKE not in ring._armed
        for conn, _ in ends:
            watcher.write(conn, b"x")
        results = watcher.watcher.wait_io()  # for as long as it takes
    assert len(results) == 2
    for result in results:
        watcher._book(result)


def test_a_wakeup_that_was_taken_in_making_room(make_ring: MakeRing, pairs: Pairs) -> None:
    """As that of a close() that comes when a turn has begun with more requests than the ring has entries for."""
    watcher = make_ring(entries=4, cq_entries=64)
    ends = [pairs.unix() for _ in range(10)]
    turn = watcher.watcher._leader.engine.turn
    with leading(watcher):
        ring: Any = watcher.watcher._leader.engine.backend
        turn(0, ring.wait)
        assert WAKE in ring._armed
        for conn, _ in ends:
            watcher.read(conn)
        ring.wake()
        turn(None, ring.wait)  # for as long as it takes


def test_a_read_behind_a_connect_that_waits_for_room(make_watcher: MakeWatcher, pairs: Pairs, tmp_path: Path) -> None:
    """Such a socket polls as ready, with nothing that could be received. Who waits for it is not told of it."""
    path = str(tmp_path / "socket")
    watcher = make_watcher()
    conn = socket.socket(socket.AF_UNIX)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)
        first.connect(path)
        connect, read = watcher.connect(conn, path), watcher.read(conn)
        late = watcher.read(conn, timeout=0.001)
        nest = Nest(watcher)
        nest.finish(late)
        nest.settle()
        assert isinstance(late.error, gaio.DeadlineError)
        assert read.result is None
        listener.accept()[0].close()
        peer, _ = listener.accept()
        with peer:
            peer.send(b"hello")
            nest.finish(connect, read)
    assert connect.error is None
    assert read.data == b"hello"


def read_interrupted_at(at: Opcode, world: World) -> Strike:
    conn, peer = world.pairs.unix()
    read = world.watcher.read(conn)
    peer.send(b"x")
    strike = interrupted_at(at, lambda: world.watcher.wait(1))
    world.watcher.finish(read)
    return strike


@pytest.mark.usefixtures("backend", "thread_acts_when_told")
def test_the_order_of_memory_accesses_is_kept_after_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a lock, on processors that reorder them. Interrupted, it must not be locked for ever."""
    monkeypatch.setattr(Ring, "weakly_ordered", True)

    def play(at: Opcode) -> Strike:
        with World("io_uring", 4096) as world:
            return read_interrupted_at(at, world)

    with told_of_opcodes():
        at_opcodes(play)


def completions(world: World) -> tuple[int, int]:
    """How many the kernel has been told are taken, and how many there were."""
    backend: Any = world.leader.engine.backend
    return backend.ring.cq_head_word[0], backend.ring.kcq_tail[0]


@pytest.mark.usefixtures("backend", "thread_acts_when_told")
def test_an_interrupted_wait_leaves_no_completion_that_counts_as_new() -> None:
    """The kernel would have every wait return at once, for ever."""

    def play(at: Opcode) -> Strike:
        with World("io_uring", 4096) as world:
            strike = read_interrupted_at(at, world)
            assert world.watcher.wait(0) == []
            assert completions(world)[0] == completions(world)[1], strike.place
        return strike

    with told_of_opcodes():
        at_opcodes(play)


@pytest.mark.usefixtures("backend", "thread_acts_when_told")
def test_a_wakeup_is_told_of_once_however_many_waits_were_interrupted() -> None:
    def completions_of_a_wakeup(world: World) -> int:
        world.watcher.wait(0)
        _, before = completions(world)
        world.leader.engine.backend.wake()
        world.watcher.wait(0)
        return completions(world)[1] - before

    with told_of_opcodes(), World("io_uring", 4096) as world:
        conn, _ = world.pairs.unix()
        world.watcher.read(conn)
        assert completions_of_a_wakeup(world) == 1
        at_opcodes(lambda at: interrupted_at(at, lambda: world.watcher.wait(0)), step=3)
        assert completions_of_a_wakeup(world) == 1
