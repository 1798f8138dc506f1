"""free(): the connection ends at once, and every request it still had comes back."""

from __future__ import annotations

import gc
import os
import random
import socket
import sys
import threading
import weakref
from functools import partial
from types import FrameType

import pytest

import gaio
from tests import storm
from tests.accounting import AccountedWatcher, MakeWatcher
from tests.peers import Pairs, pattern, receive_until_eof
from tests.waiting import Background

MIB = 1 << 20


@pytest.mark.scenario(10)
def test_pending_requests_come_back_with_conn_closed_error(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, _ = pairs.tcp(buffers=8192)
    reads = [watcher.read(conn), watcher.read(conn, bytearray(10)), watcher.read_full(conn, bytearray(10))]
    writes = [watcher.write(conn, bytes(MIB)) for _ in range(3)]
    assert watcher.wait(0) == []  # the first read and the first write are under way
    watcher.free(conn)
    finished = watcher.finish(*reads, *writes)
    assert [request for request in finished if request in reads] == reads, "in the order of submission"
    assert [request for request in finished if request in writes] == writes
    assert all(isinstance(request.error, gaio.ConnClosedError) for request in [*reads, *writes])
    assert all(isinstance(request.error, ConnectionError) for request in [*reads, *writes])
    assert [read.size for read in reads] == [0, 0, 0]
    assert watcher.watcher.stats().conns == 0


def test_requests_not_yet_begun_come_back_too(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """Submitted and freed before anyone could look at it."""
    for _ in range(200):
        conn, peer = pairs.unix()
        read, write = watcher.read(conn), watcher.write(conn, b"perhaps")
        watcher.free(conn)
        watcher.finish(read, write)
        assert isinstance(read.error, gaio.ConnClosedError)
        assert write.error is None or isinstance(write.error, gaio.ConnClosedError)
        assert receive_until_eof(peer) == b"perhaps"[: write.size]


def test_progress_is_told(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp(buffers=8192)
    payload = pattern(4 * MIB)
    buffer = bytearray(100)
    first, read = watcher.read_full(conn, bytearray(1)), watcher.read_full(conn, buffer)
    write = watcher.write(conn, payload)
    peer.sendall(b"!partial")
    watcher.finish(first)
    assert watcher.wait(0.05) == []
    watcher.free(conn)
    watcher.finish(read, write)
    assert isinstance(read.error, gaio.ConnClosedError)
    assert read.size == 7
    assert buffer[:7] == b"partial"
    assert isinstance(write.error, gaio.ConnClosedError)
    assert 0 < write.size < len(payload)
    assert receive_until_eof(peer) == payload[: write.size]


def test_the_peer_sees_the_end_though_nobody_waits(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    write = watcher.write(conn, b"bye")
    watcher.finish(write)
    watcher.free(conn)
    assert receive_until_eof(peer) == b"bye"


@pytest.mark.scenario(10)
def test_freeing_twice_gives_no_result_of_its_own(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    read = watcher.read(conn)
    watcher.free(conn)
    watcher.free(conn)
    assert watcher.finish(read) == [read]
    watcher.free(conn)
    assert watcher.wait(0.05) == []
    assert receive_until_eof(peer) == b""


@pytest.mark.scenario(10)
def test_a_connection_the_watcher_never_saw_is_simply_closed(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """At once, in the calling thread: not adopted first, not left to the garbage collector."""
    conn, peer = pairs.tcp()
    watcher.free(conn)
    assert conn.fileno() == -1
    assert peer.recv(1) == b""
    watcher.free(conn)
    assert watcher.wait(0) == []
    assert watcher.watcher.stats().conns == 0


def test_freeing_what_the_caller_closed_already(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    conn.close()
    watcher.free(conn)
    assert peer.recv(1) == b""


def test_a_freed_connection_takes_no_more_requests(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, _ = pairs.tcp()
    watcher.finish(watcher.write(conn, b"x"))
    watcher.free(conn)
    with pytest.raises(gaio.ConnClosedError, match=r"closed|freed"):
        watcher.read(conn)
    with pytest.raises(gaio.ConnClosedError, match=r"closed|freed"):
        watcher.write(conn, b"x")
    assert watcher.wait(0) == []


@pytest.mark.scenario(8)
def test_freed_connections_leave_the_others_alone(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """Descriptor numbers are used again at once; no request may reach a connection by an old number."""
    for _ in range(50):
        freed, freed_peer = pairs.unix()
        pending = watcher.read(freed)
        watcher.free(freed)
        conn, peer = pairs.unix()
        read = watcher.read(conn)
        peer.sendall(b"mine")
        watcher.finish(pending, read)
        assert isinstance(pending.error, gaio.ConnClosedError)
        assert read.data == b"mine"
        assert freed_peer.recv(1) == b""
        watcher.free(conn)


@pytest.mark.scenario(10, 15)
def test_freeing_from_eight_threads_at_once(watcher: AccountedWatcher, pairs: Pairs) -> None:
    ends = [pairs.unix() for _ in range(100)]
    requests = [watcher.read(conn) for conn, _ in ends] + [watcher.read(conn) for conn, _ in ends]
    barrier = threading.Barrier(8)

    def free_all() -> None:
        barrier.wait()
        for conn, _ in random.sample(ends, len(ends)):
            watcher.free(conn)

    threads = [Background(free_all) for _ in range(8)]
    watcher.finish(*requests)
    for thread in threads:
        thread.result()
    assert all(isinstance(request.error, gaio.ConnClosedError) for request in requests)
    assert [peer.recv(1) for _, peer in ends] == [b""] * 100


@pytest.mark.scenario(10)
def test_free_and_data_race_without_loss(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """A request is overtaken by free() or it has its data; never both, never neither."""
    outcomes = set()
    for _ in range(300):
        conn, peer = pairs.unix()
        read = watcher.read(conn)
        sending = Background(partial(peer.send, b"data", socket.MSG_DONTWAIT))
        if random.random() < 0.5:
            watcher.wait(random.choice([0, 0.0001]))
        watcher.free(conn)
        watcher.finish(read)
        try:
            sending.result()
        except OSError:
            pass  # free() came first, so nobody is left to receive
        assert isinstance(read.error, gaio.ConnClosedError) if read.size == 0 else read.data == b"data"
        outcomes.add(read.size)
    assert outcomes <= {0, 4}


@pytest.mark.scenario(2)
def test_a_freed_connection_is_collected_without_swallowing_ctrl_c(make_watcher: MakeWatcher, pairs: Pairs) -> None:
    """What is raised in a finalizer the interpreter swallows, so none runs: a server once did not hear its SIGINT."""
    watcher = make_watcher().watcher
    conn, _ = pairs.tcp()
    watcher.read(conn)
    watcher.free(conn)
    assert isinstance(watcher.wait_io()[0].error, gaio.ConnClosedError)
    there = weakref.ref(conn)
    called: list[str] = []

    def note_call(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and frame.f_code is not storm.handler.__code__:
            called.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")

    before = sys.getprofile()
    sys.setprofile(note_call)
    del conn
    sys.setprofile(before)
    assert there() is None
    assert called == []


def test_what_was_cut_off_is_not_kept_until_its_deadline(make_watcher: MakeWatcher, pairs: Pairs) -> None:
    class Context:
        """Anything that can be weakly referred to."""

    watcher = make_watcher().watcher
    conn, _ = pairs.tcp()
    contexts = [Context() for _ in range(3)]
    for context in contexts:
        watcher.read(conn, context=context, timeout=3600)
    watcher.free(conn)
    results = watcher.wait_io()
    assert len(results) == 3
    there = [weakref.ref(context) for context in contexts]
    del context, results, contexts
    gc.collect()
    assert [context() for context in there] == [None] * 3


def test_a_close_that_tells_of_the_peer(
    watcher: AccountedWatcher, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FreeBSD: close(2) closes, and says ECONNRESET where the peer has gone first."""
    close = os.close

    def as_on_freebsd(fd: int) -> None:
        close(fd)
        raise ConnectionResetError

    ends = [pairs.unix() for _ in range(3)]
    reads = [watcher.read(conn) for conn, _ in ends]
    assert watcher.wait(0) == []
    with monkeypatch.context() as patch:
        patch.setattr(os, "close", as_on_freebsd)
        for conn, _ in ends:
            watcher.free(conn)
        watcher.finish(*reads)
        assert [peer.recv(1) for _, peer in ends] == [b""] * 3
