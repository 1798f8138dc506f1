"""Requests that a cancellation finds between two places, or does not find."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import gaio
from gaio.platform._io_uring import backend, buffers
from tests.accounting import AccountedWatcher, MakeWatcher
from tests.faulty_libc import FaultyLibc, enters_ring
from tests.interruption.opcodes import Opcode, Strike, at_opcodes, told_of_opcodes
from tests.interruption.world import World
from tests.peers import Pairs, pattern, receive_exactly, wait_for_bytes
from tests.ring.conftest import MakeRing, leading
from tests.waiting import Background, wait_until


def test_close_with_more_reads_than_buffers(
    make_watcher: MakeWatcher, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The read that is being cancelled comes back for want of a buffer, which nobody will give back. It needs none."""
    monkeypatch.setattr(buffers, "buffer_geometry", lambda *_: (64, 1, 1))
    watcher = make_watcher(64)
    conn, peer = pairs.tcp()
    with leading(watcher):  # so that all of it is left to close()
        peer.sendall(bytes(256))
        reads = [watcher.read(conn), watcher.read(conn)]
    Background(watcher.watcher.close).result()
    watcher.finish(*reads)
    assert [(read.data, read.error) for read in reads] == [(bytes(64), None)] * 2


def test_the_deadline_of_reads_that_wait_for_a_buffer(
    make_watcher: MakeWatcher, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their bytes had come in time."""
    monkeypatch.setattr(buffers, "buffer_geometry", lambda *_: (64, 1, 1))
    watcher = make_watcher(64)
    ends = [pairs.tcp() for _ in range(5)]
    for _, peer in ends:
        peer.sendall(bytes(64))
    wait_for_bytes(conn for conn, _ in ends)
    reads = [watcher.read(conn, timeout=0) for conn, _ in ends]
    watcher.finish(*reads)
    assert [(read.data, read.error) for read in reads] == [(bytes(64), None)] * 5


@pytest.mark.usefixtures("thread_acts_when_told")
@pytest.mark.parametrize("ends_by", ["deadline", "free", "close"])
def test_a_pipe_that_somebody_else_has_read(
    make_watcher: MakeWatcher, monkeypatch: pytest.MonkeyPatch, ends_by: str
) -> None:
    """Between the poll and the read, which waits in the ring then: its cancellation comes behind it."""
    hold = backend.IoUringBackend._conclude
    watcher = make_watcher()
    reading, writing = os.pipe()
    with (
        os.fdopen(reading, "rb", buffering=0) as conn,
        os.fdopen(writing, "wb", buffering=0) as writer,
        os.fdopen(os.dup(reading), "rb", buffering=0) as somebody_else,
    ):

        def hold_and_take(ring: Any, request: Any, *arguments: Any) -> bool:
            held = hold(ring, request, *arguments)
            if request in ring._parked:
                assert somebody_else.read(10) == b"x"
            return held

        monkeypatch.setattr(backend.IoUringBackend, "_conclude", hold_and_take)
        read = watcher.read(conn, timeout=0 if ends_by == "deadline" else None)
        writer.write(b"x")
        if ends_by == "free":
            watcher.free(conn)
        elif ends_by == "close":
            watcher.watcher.close()
        watcher.finish(read)
    expected = {"deadline": gaio.DeadlineError, "free": gaio.ConnClosedError, "close": gaio.WatcherClosedError}
    assert isinstance(read.error, expected[ends_by])


@pytest.mark.parametrize("ends_by", ["deadline", "free"])
def test_a_connect_that_is_tried_again_and_again(
    watcher: AccountedWatcher, pairs: Pairs, tmp_path: Path, ends_by: str
) -> None:
    """The backlog is full, though the socket polls as writable: the kernel is between two attempts when it looks."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)
        first.connect(path)
        conn = socket.socket(socket.AF_UNIX)
        connect = watcher.connect(conn, path, timeout=0 if ends_by == "deadline" else None)
        if ends_by == "free":
            watcher.watcher.free(conn)
        watcher.finish(connect)
        expected = gaio.DeadlineError if ends_by == "deadline" else gaio.ConnClosedError
        assert isinstance(connect.error, expected)
        watcher.watcher.free(conn)


@pytest.mark.usefixtures("backend", "thread_acts_when_told")
def test_a_submission_held_up_while_its_connection_goes(libc: FaultyLibc) -> None:
    """One queue of it has ended, the other's cancellation is under way still: the first takes nothing more."""
    with told_of_opcodes():
        at_opcodes(partial(_submission_held_up, libc), more_than=20)


def _submission_held_up(libc: FaultyLibc, at: Opcode) -> Strike:
    with World("io_uring", 4096) as world:
        conn, _ = world.pairs.unix()
        read, blocked = world.watcher.read(conn), world.watcher.write(conn, bytes(1 << 20))
        assert world.watcher.wait(0) == []

        def give_it_up() -> None:
            world.watcher.free(conn)
            # The entry that cancels the read is not taken yet, as when memory is short.
            libc.fail("syscall", errno.EAGAIN, times=1, when=enters_ring)
            world.watcher.wait(0)
            libc.recover()

        strike = Strike(at, give_it_up)
        late = None
        with contextlib.suppress(gaio.ConnClosedError), strike:
            late = world.watcher.write(conn, bytes(1 << 20))
        world.watcher.free(conn)
        world.watcher.finish(*[request for request in (read, blocked, late) if request is not None])
    return strike


def test_a_write_that_waited_for_a_cancellation_and_finds_no_room(
    make_ring: MakeRing, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found to have none on the very way into the kernel, which must wake for it all the same."""
    monkeypatch.setattr(backend, "MAX_COMPLETIONS", 1)  # the cancellation is seen after what it came too late for
    watcher = make_ring()
    conn, peer = pairs.unix()
    already = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            already += conn.send(bytes(4096), socket.MSG_DONTWAIT)
    with leading(watcher):  # both in one turn, and of the watcher thread, which hands nothing over
        cut_off, write = watcher.write(conn, b"?", timeout=0), watcher.write(conn, b"!")
    wait_until(lambda: watcher.watcher.stats().pending == 1, "the deadline")
    assert receive_exactly(peer, already + 1)[-1:] == b"!"
    watcher.finish(cut_off, write)
    assert isinstance(cut_off.error, gaio.DeadlineError)


def test_a_read_that_waited_for_a_cancellation_beside_one_that_waited_for_a_buffer(
    make_ring: MakeRing, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only buffer is offered to the second, whose bytes somebody else has received: the first must have it."""
    monkeypatch.setattr(buffers, "buffer_geometry", lambda *_: (64, 1, 1))
    watcher = make_ring(swap_size=64)
    (full, full_peer), (lacking, lacking_peer), (cancelled, cancelled_peer) = (pairs.tcp() for _ in range(3))
    with lacking.dup() as somebody_else:
        # The kernel says that there is more, so that the next receives are tried at once, in the order of submission.
        for peer in (full_peer, lacking_peer, cancelled_peer):
            peer.sendall(pattern(1 + 64))
        watcher.finish(*(watcher.read(conn, bytearray(1)) for conn in (full, lacking, cancelled)))
        monkeypatch.setattr(backend, "MAX_COMPLETIONS", 1)  # as in the test above
        with leading(watcher):
            taking, starved = watcher.read(full), watcher.read(lacking)
            first, second = watcher.read(cancelled, bytearray(1), timeout=0), watcher.read(cancelled)
            assert watcher.wait(None) == [taking]
            assert somebody_else.recv(64) == pattern(1 + 64)[1:]
            assert watcher.wait(None) == [first]
            watcher.finish(second)
            assert second.data == pattern(1 + 64)[2:]
            assert starved.result is None
    lacking_peer.sendall(b"!")
    watcher.finish(starved)
    assert starved.data == b"!"
