"""stats(): what the watcher counts."""

from __future__ import annotations

import gaio
from tests.accounting import AccountedWatcher
from tests.peers import Pairs
from tests.waiting import wait_until


def test_a_new_watcher_has_counted_nothing(watcher: AccountedWatcher) -> None:
    stats = watcher.watcher.stats()
    assert isinstance(stats, gaio.Stats)
    assert stats._replace(wakeups=0) == (0, 0, 0, 0, 0, 0, 0)


def test_counters_follow_the_life_of_requests(watcher: AccountedWatcher, pairs: Pairs) -> None:
    ends = [pairs.tcp() for _ in range(10)]
    reads = [watcher.read(conn) for conn, _ in ends]
    stats = watcher.watcher.stats()
    assert (stats.conns, stats.pending, stats.completions, stats.batches) == (10, 10, 0, 0)
    for _, peer in ends[:4]:
        peer.sendall(b"x")
    watcher.finish(*reads[:4])
    stats = watcher.watcher.stats()
    assert (stats.conns, stats.pending, stats.completions) == (10, 6, 4)
    assert 1 <= stats.batches <= 4
    for conn, _ in ends:
        watcher.free(conn)
    watcher.finish(*reads)
    stats = watcher.watcher.stats()
    assert (stats.conns, stats.pending, stats.completions) == (0, 0, 10)
    assert (stats.gc_found, stats.gc_closed) == (0, 0)


def test_batches_counts_what_wait_io_gave(watcher: AccountedWatcher, pairs: Pairs) -> None:
    ends = [pairs.tcp() for _ in range(10)]
    for conn, _ in ends:
        watcher.write(conn, b"x")
    wait_until(lambda: watcher.watcher.stats().pending == 0, "everything to be written")
    assert len(watcher.wait(0)) == 10
    assert watcher.wait(0) == []
    assert watcher.watcher.stats()[2:4] == (10, 1)


def test_a_submitter_that_wakes_the_watcher_thread_is_counted(
    watcher: AccountedWatcher, pairs: Pairs
) -> None:
    """The thread sleeps in the kernel; without the wake-up it would not notice the request."""
    conn, peer = pairs.tcp()
    watcher.finish(watcher.write(conn, b"x"))
    assert peer.recv(1) == b"x"
    before = watcher.watcher.stats().wakeups

    def written_and_counted() -> bool:
        watcher.write(conn, b"x")
        assert peer.recv(1) == b"x"
        return watcher.watcher.stats().wakeups > before

    # Once need not do: a thread that has yet to fall asleep sees the request without a wake-up.
    wait_until(written_and_counted, "a request to meet the thread asleep")


def test_stats_of_a_closed_watcher(watcher: AccountedWatcher, pairs: Pairs) -> None:
    watcher.finish(watcher.write(pairs.tcp()[0], b"x"))
    watcher.close_and_check()
    stats = watcher.watcher.stats()
    assert (stats.conns, stats.pending, stats.completions) == (0, 0, 1)
