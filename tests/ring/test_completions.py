"""What a request costs: no completion that brings nothing, and no call for what can wait for others."""

from __future__ import annotations

import time
from typing import Any

import pytest

from gaio.platform._io_uring import buffers
from tests.accounting import AccountedWatcher, MakeWatcher
from tests.faulty_libc import FaultyLibc
from tests.peers import Pairs, receive_exactly
from tests.ring.conftest import leading
from tests.waiting import Background

pytestmark = pytest.mark.usefixtures("thread_acts_when_told")  # whose turns have a wake-up of their own


@pytest.mark.parametrize("size", [None, 10])
def test_a_read_of_what_is_known_to_be_empty_waits_at_once(
    watcher: AccountedWatcher, pairs: Pairs, size: int | None
) -> None:
    backend: Any = watcher.watcher._leader.engine.backend
    conn, peer = pairs.tcp()
    for number in range(3):
        read = watcher.read(conn, None if size is None else bytearray(size))
        if number:
            before = backend.ring.kcq_tail[0]
            assert watcher.wait(0) == []
            assert backend.ring.kcq_tail[0] == before, "it was tried in vain"
        peer.send(b"x")
        watcher.finish(read)
        assert read.size == 1


def test_a_hundred_cancellations_are_not_a_hundred_calls(
    libc: FaultyLibc, make_watcher: MakeWatcher, pairs: Pairs
) -> None:
    """There is room for them in the queue, with which they go to the kernel."""
    watcher = make_watcher()
    conns = [pairs.unix()[0] for _ in range(100)]
    reads = [watcher.read(conn) for conn in conns]
    assert watcher.wait(0) == []
    for conn in conns:
        watcher.free(conn)
    before = libc.calls["syscall"]
    watcher.finish(*reads)
    assert libc.calls["syscall"] - before < 20


def test_reads_that_want_a_buffer_cost_nothing_while_there_is_none(
    libc: FaultyLibc, make_watcher: MakeWatcher, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buffers, "buffer_geometry", lambda *_: (64, 2, 2))
    watcher = make_watcher()
    leader = watcher.watcher._leader
    ends = [pairs.unix() for _ in range(20)]
    reads = [watcher.read(conn) for conn, _ in ends]
    assert watcher.wait(0) == []
    for _, peer in ends:
        peer.send(bytes(64))
    with leading(watcher):
        for _ in range(20):  # turns, as of the watcher thread: nobody fetches results
            leader.engine.turn(0, leader.pause)
        before = libc.calls["syscall"]
        until = time.monotonic() + 0.1
        while time.monotonic() < until:
            leader.engine.turn(0.05, leader.pause)
        assert libc.calls["syscall"] - before < 50
    watcher.finish(*reads)


def test_the_structures_of_vectored_writes_are_let_go(watcher: AccountedWatcher, pairs: Pairs) -> None:
    backend: Any = watcher.watcher._leader.engine.backend
    conn, peer = pairs.tcp()
    for _ in range(20):
        receiving = Background(lambda: receive_exactly(peer, 600_000))
        watcher.finish(watcher.write(conn, [bytes(300_000), bytes(300_000)]))
        receiving.result()
    assert len(backend._messages) <= 1
