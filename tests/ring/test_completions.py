"""What a request costs: no completion that brings nothing, where the one before has said what there is."""

from __future__ import annotations

from typing import Any

import pytest

from tests.accounting import AccountedWatcher
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
