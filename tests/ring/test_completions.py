"""What a request costs: no completion that brings nothing, and no call for what can wait for others."""

from __future__ import annotations

from typing import Any

import pytest

from tests.accounting import AccountedWatcher, MakeWatcher
from tests.faulty_libc import FaultyLibc
from tests.peers import Pairs

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
