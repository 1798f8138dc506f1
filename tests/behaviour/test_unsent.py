"""unsent(): bytes that were submitted to be written and that the kernel has not taken."""

from __future__ import annotations

import os
import socket
import threading
from functools import partial

import pytest

import gaio
from tests.accounting import AccountedWatcher
from tests.peers import Closable, Pairs, pattern, receive_exactly
from tests.waiting import Background

MIB = 1 << 20


def test_it_rises_and_falls(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp(buffers=8192)
    unsent = watcher.watcher.unsent
    payload = pattern(MIB)
    writes = [watcher.write(conn, payload)]
    assert unsent(conn) <= MIB
    watcher.wait(0)
    before = unsent(conn)
    assert 0 < before < MIB, "the kernel has taken a part"
    writes.append(watcher.write(conn, bytearray(payload)))
    assert unsent(conn) == before + MIB
    writes.append(watcher.write(conn, [payload, payload]))
    writes.append(watcher.write(conn, b"x" * 30))
    assert unsent(conn) == before + 3 * MIB + 30
    seen = [unsent(conn)]
    receiving = Background(lambda: receive_exactly(peer, 4 * MIB + 30))
    while any(write.result is None for write in writes):
        watcher.wait(1)
        seen.append(unsent(conn))
    assert seen == sorted(seen, reverse=True)
    assert len(set(seen)) > 3
    assert seen[-1] == 0
    assert receiving.result() == payload * 4 + b"x" * 30


def test_nothing_but_writes_counts(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, _ = pairs.tcp(buffers=8192)
    write = watcher.write(conn, bytes(MIB))
    watcher.read(conn, bytearray(5000))
    watcher.read_full(conn, bytearray(5000))
    watcher.read_start(conn)
    watcher.wait(0)
    before = watcher.watcher.unsent(conn)
    shutdown = watcher.shutdown(conn)
    watcher.wait(0)
    assert write.result is None
    assert watcher.watcher.unsent(conn) == before
    assert shutdown.result is None


@pytest.mark.parametrize("kind", ["unix", "pipe_to_write"])
def test_of_every_kind(watcher: AccountedWatcher, pairs: Pairs, kind: str) -> None:
    ends: tuple[Closable, Closable] = getattr(pairs, kind)()
    conn, peer = ends
    write = watcher.write(conn, bytes(MIB))
    watcher.wait(0)
    assert 0 < watcher.watcher.unsent(conn) < MIB
    received = 0
    while received < MIB:
        received += len(os.read(peer.fileno(), 65536))
        watcher.wait(0)
    watcher.finish(write)
    assert watcher.watcher.unsent(conn) == 0


@pytest.mark.usefixtures("thread_acts_when_told")
def test_small_writes_that_leave_together(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """The first of them stands for all that the kernel has been given; each counts for its own."""
    conn, peer = pairs.tcp(buffers=8192)
    blocker = watcher.write(conn, bytes(MIB))
    watcher.wait(0)
    left = watcher.watcher.unsent(conn)
    writes = [watcher.write(conn, b"%029d " % number) for number in range(5000)]
    assert watcher.watcher.unsent(conn) == left + 30 * 5000
    receiving = Background(lambda: receive_exactly(peer, MIB))
    watcher.finish(blocker)
    receiving.result()
    assert watcher.watcher.unsent(conn) <= 30 * 5000
    received = bytearray()
    peer.setblocking(False)
    while len(received) < 30 * 5000:
        watcher.wait(0)
        done = sum(write.result is not None for write in writes)
        left = watcher.watcher.unsent(conn)
        assert left <= 30 * (5000 - done)
        assert 30 * 5000 - left >= len(received), "what the peer has got has been taken by the kernel"
        try:
            received += peer.recv(1000)
        except BlockingIOError:
            pass
    watcher.finish(*writes)
    assert watcher.watcher.unsent(conn) == 0


def test_from_other_threads(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """While the consumer writes and the queue moves: it never fails, and never tells of more than there is."""
    conn, peer = pairs.tcp(buffers=8192)
    total = 3000 * 700
    ended = threading.Event()
    receiving = Background(lambda: receive_exactly(peer, total))

    def ask() -> int:
        asked = 0
        while not ended.is_set():
            assert 0 <= watcher.watcher.unsent(conn) <= total
            asked += 1
        return asked

    watcher.finish(watcher.write(conn, b"x" * 700))
    asking = [Background(ask) for _ in range(2)]
    try:
        writes = [watcher.write(conn, b"x" * 700) for _ in range(2999)]
        watcher.finish(*writes)
    finally:
        ended.set()
    assert all(thread.result() for thread in asking)
    assert watcher.watcher.unsent(conn) == 0
    receiving.result()


def test_submitted_by_many_threads(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp(buffers=8192)
    blocker = watcher.write(conn, bytes(MIB))
    watcher.wait(0)
    before = watcher.watcher.unsent(conn)

    def submit() -> None:
        for _ in range(100):
            watcher.write(conn, b"x" * 10)

    for thread in [Background(submit) for _ in range(4)]:
        thread.result()
    assert watcher.watcher.unsent(conn) == before + 4000
    receiving = Background(partial(receive_exactly, peer, MIB + 4000))
    watcher.finish_all()
    assert watcher.watcher.unsent(conn) == 0
    assert blocker.error is None
    receiving.result()


def test_after_an_error(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.unix()
    writes = [watcher.write(conn, bytes(MIB)) for _ in range(3)]
    watcher.wait(0)
    peer.close()
    watcher.finish(*writes)
    assert all(write.error for write in writes)
    assert watcher.watcher.unsent(conn) == 0


def test_after_a_deadline(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, _ = pairs.unix()
    write = watcher.write(conn, bytes(4 * MIB), timeout=0.01)
    watcher.finish(write)
    assert isinstance(write.error, gaio.DeadlineError)
    assert watcher.watcher.unsent(conn) == 0


@pytest.mark.parametrize("how", ["free", "detach", "close"])
def test_when_it_has_gone(watcher: AccountedWatcher, pairs: Pairs, how: str) -> None:
    conn, _ = pairs.tcp(buffers=8192)
    watcher.finish(watcher.write(conn, b"known"))
    if how == "detach":
        pairs.also_close(watcher.watcher.detach(conn))
    else:
        watcher.write(conn, bytes(MIB))
        watcher.free(conn) if how == "free" else watcher.watcher.close()
    assert watcher.watcher.unsent(conn) == 0


def test_of_what_only_reads(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, _ = pairs.tcp()
    watcher.read(conn)
    assert watcher.watcher.unsent(conn) == 0


def test_of_what_was_never_submitted(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, _ = pairs.tcp()
    pairs.also_close(conn)
    with pytest.raises(gaio.UnsupportedConnError, match="never submitted"):
        watcher.watcher.unsent(conn)
    with pytest.raises(gaio.UnsupportedConnError):
        watcher.watcher.unsent(None)  # type: ignore[arg-type]


def test_of_a_listener(watcher: AccountedWatcher) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        watcher.accept(listener)
        assert watcher.watcher.unsent(listener) == 0
        watcher.free(listener)
