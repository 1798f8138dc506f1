"""Multishot receives and repeating accepts: what ends them in the kernel does not end the request."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

import gaio
from gaio.platform._io_uring import abi, buffers
from gaio.platform._io_uring.backend import IoUringBackend
from gaio.platform._io_uring.operations import ReceiveRepeatedly
from tests.accounting import Repeating
from tests.faults.test_readiness_in_vain import (
    SO_TIMESTAMPING,
    SOF_TIMESTAMPING_SOFTWARE,
    SOF_TIMESTAMPING_TX_ACK,
    SOF_TIMESTAMPING_TX_SOFTWARE,
)
from tests.faulty_libc import FaultyLibc
from tests.leaks import kernel_threads
from tests.nest import Nest
from tests.peers import Pairs, pattern
from tests.ring.conftest import MakeRing, leading, refuse_incremental_buffers
from tests.waiting import Background, wait_until

KIB = 1 << 10


def ring_of(watcher: gaio.Watcher) -> Any:
    return watcher._leader.engine.backend


@pytest.fixture(params=["offered", "whole"])
def few_buffers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four of 64 bytes, consumed the way that this kernel offers, and as a whole."""
    monkeypatch.setattr(buffers, "buffer_geometry", lambda *_: (64, 4, 4))
    if request.param == "whole":
        refuse_incremental_buffers(FaultyLibc(monkeypatch))


@pytest.fixture
def one_shot(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a kernel without multishot receives, before Linux 6.0."""
    original = ReceiveRepeatedly.__init__

    def without(self: ReceiveRepeatedly, size: int) -> None:
        original(self, size)
        self.has_multishot = False

    monkeypatch.setattr(ReceiveRepeatedly, "__init__", without)


def all_have(reads: list[Repeating], size: int) -> bool:
    return all(read.received == size for read in reads)


@pytest.mark.usefixtures("thread_acts_when_told")
def test_a_receive_is_multishot(make_ring: MakeRing, pairs: Pairs) -> None:
    """Or the tests below would prove little: many arrivals of one entry."""
    watcher = make_ring()
    conn, peer = pairs.tcp()
    read = watcher.read_start(conn)
    assert watcher.wait(0) == []
    ring = ring_of(watcher.watcher).ring
    tail = ring.sq_tail
    for number in range(20):
        peer.sendall(b"x")
        watcher.harvest_until(partial(read.has, number + 1), "a byte")
    assert ring.sq_tail == tail


@pytest.mark.usefixtures("thread_acts_when_told")
def test_ended_by_a_completion_queue_that_is_full(make_ring: MakeRing, pairs: Pairs) -> None:
    """The kernel ends a multishot receive whose completion finds no room."""
    watcher = make_ring(entries=4, cq_entries=4)
    ends = [pairs.tcp() for _ in range(40)]
    reads = [watcher.read_start(conn) for conn, _ in ends]
    assert watcher.wait(0) == []
    ring = ring_of(watcher.watcher)
    for round_number in range(1, 6):
        assert watcher.wait(0) == []  # by which all of them are with the kernel again
        with leading(watcher):
            for _, peer in ends:
                peer.sendall(b"x")
            ring.ring.enter()
            wait_until(lambda: ring.ring.ksq_flags[0] & abi.IORING_SQ_CQ_OVERFLOW, "the queue to overflow")
        watcher.harvest_until(partial(all_have, reads, round_number), "a byte each")


@pytest.mark.usefixtures("few_buffers")
def test_ended_by_lack_of_buffers(make_ring: MakeRing, pairs: Pairs) -> None:
    watcher = make_ring()
    ends = [pairs.tcp() for _ in range(12)]
    reads = [watcher.read_start(conn) for conn, _ in ends]
    assert watcher.wait(0) == []
    sending = [Background(partial(peer.sendall, pattern(8 * KIB, number % 4))) for number, (_, peer) in enumerate(ends)]
    watcher.harvest_until(partial(all_have, reads, 8 * KIB), "all the bytes")
    for thread in sending:
        thread.result()
    assert all(read.stream == pattern(8 * KIB, number % 4) for number, read in enumerate(reads))


@pytest.mark.usefixtures("few_buffers")
def test_lack_of_buffers_while_nobody_fetches(make_ring: MakeRing, pairs: Pairs) -> None:
    """Then in a nest: the descriptor tells when there are some again."""
    watcher = make_ring()
    ends = [pairs.tcp() for _ in range(6)]
    reads = [watcher.read_start(conn) for conn, _ in ends]
    assert watcher.wait(0) == []
    for _, peer in ends:
        peer.sendall(pattern(1000, 1))
    wait_until(lambda: any(ring_of(watcher.watcher)._parked.values()), "the buffers to be used up")
    nest = Nest(watcher)
    while not all_have(reads, 1000):
        assert nest.look(30) is not None, "never readable"
    nest.settle()
    assert all(read.stream == pattern(1000, 1) for read in reads)


@pytest.mark.usefixtures("few_buffers")
@pytest.mark.parametrize("way", ["stop", "free", "close"])
def test_cut_off_while_it_waits_for_a_buffer(make_ring: MakeRing, pairs: Pairs, way: str) -> None:
    watcher = make_ring()
    ends = [pairs.tcp() for _ in range(8)]
    reads = [watcher.read_start(conn) for conn, _ in ends]
    assert watcher.wait(0) == []
    for _, peer in ends:
        peer.sendall(pattern(1000, 1))
    wait_until(lambda: any(ring_of(watcher.watcher)._parked.values()), "the buffers to be used up")
    if way == "close":
        watcher.close_and_check()
        return
    for conn, _ in ends:
        watcher.read_stop(conn) if way == "stop" else watcher.free(conn)
    watcher.finish(*reads)
    for (conn, _), read in zip(ends, reads, strict=True):
        assert pattern(1000, 1).startswith(read.stream)
        if way == "stop":
            assert read.error is None
            rest = watcher.read_full(conn, bytearray(1000 - read.received)) if read.received < 1000 else None
            if rest is not None:
                watcher.finish(rest)
                assert read.stream + bytes(rest.buffer) == pattern(1000, 1)
        else:
            assert isinstance(read.error, gaio.ConnClosedError)


def test_ended_with_the_thread_that_submitted_it(make_ring: MakeRing, pairs: Pairs) -> None:
    watcher = make_ring()
    ends = [pairs.tcp(), pairs.unix(), pairs.udp()]
    reads = [watcher.read_start(conn) for conn, _ in ends]
    for number in range(20):
        Background(lambda: watcher.wait(0)).result()
        for _, peer in ends:
            peer.send(b"x")
        watcher.harvest_until(partial(all_have, reads, number + 1), "a byte each")


@pytest.mark.skipif(sys.platform != "linux", reason="what urgent data wakes is told differently elsewhere")
@pytest.mark.parametrize("kernel", ["this", "without multishot"])
def test_urgent_data(
    make_ring: MakeRing, pairs: Pairs, kernel: str, request: pytest.FixtureRequest
) -> None:
    """Bytes that wake a receive in vain: no kernel thread comes of them, and what follows is received whole."""
    if kernel != "this":
        request.getfixturevalue("one_shot")
    at_work = kernel_threads()
    watcher = make_ring()
    (conn, peer), (other, other_peer) = pairs.tcp(), pairs.tcp()
    read, other_read = watcher.read_start(conn), watcher.read_start(other)
    assert watcher.wait(0) == []
    for number in range(400):
        peer.send(b"!", socket.MSG_OOB)
        if number % 4 == 0:
            watcher.wait(0.001)
    assert kernel_threads() <= at_work
    other_peer.sendall(b"hello")
    watcher.harvest_until(lambda: other_read.received == 5, "the other's bytes")
    peer.sendall(b"world")
    watcher.harvest_until(lambda: read.stream.endswith(b"world"), "the bytes that follow")
    assert set(read.stream[:-5]) <= {ord("!")}
    watcher.read_stop(conn)
    watcher.finish(read)
    assert read.error is None
    assert kernel_threads() <= at_work


@pytest.mark.skipif(sys.platform != "linux", reason="SO_TIMESTAMPING is of Linux")
def test_an_error_queue_that_nobody_fetches(make_ring: MakeRing, pairs: Pairs) -> None:
    """The socket polls as failed for ever."""
    at_work = kernel_threads()
    watcher = make_ring()
    (conn, peer), (other, other_peer) = pairs.tcp(), pairs.tcp()
    wanted = SOF_TIMESTAMPING_TX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE | SOF_TIMESTAMPING_TX_ACK
    conn.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, wanted)
    conn.sendall(b"x")
    assert peer.recv(1) == b"x"
    read, other_read = watcher.read_start(conn), watcher.read_start(other)
    watcher.wait(0.05)
    assert kernel_threads() <= at_work
    for number in range(1, 300):
        other_peer.sendall(b"hello")
        peer.sendall(b"world")
        watcher.harvest_until(partial(all_have, [read, other_read], 5 * number), "the bytes")
    assert (read.stream, other_read.stream) == (b"world" * 299, b"hello" * 299)
    watcher.read_stop(conn)
    watcher.finish(read)
    assert read.error is None
    assert kernel_threads() <= at_work


@pytest.mark.parametrize("entries", [2, 64])
def test_a_cancellation_that_races_with_arrivals(make_ring: MakeRing, pairs: Pairs, entries: int) -> None:
    """Each byte is an arrival before the last result, or there for the next read; none is lost, none comes twice."""
    watcher = make_ring(entries=entries, cq_entries=2 * entries)
    ends = [pairs.tcp() for _ in range(4)]
    payload = pattern(200 * KIB, 2)

    def send(peer: socket.socket) -> None:
        for start in range(0, len(payload), 700):
            peer.sendall(payload[start : start + 700])

    sending = [Background(partial(send, peer)) for _, peer in ends]
    received = [bytearray() for _ in ends]
    while any(len(data) < len(payload) for data in received):
        going = [number for number, data in enumerate(received) if len(data) < len(payload)]
        reads = {number: watcher.read_start(ends[number][0]) for number in going}
        watcher.wait(0.001)
        for number in going:
            watcher.read_stop(ends[number][0])
        watcher.finish(*reads.values())
        for number, read in reads.items():
            assert read.error is None
            received[number] += read.stream
    for thread in sending:
        thread.result()
    assert all(data == payload for data in received)


def test_stopped_with_everything_else_in_a_small_ring(make_ring: MakeRing, pairs: Pairs) -> None:
    watcher = make_ring(entries=2, cq_entries=2)
    ends = [pairs.tcp() for _ in range(50)]
    reads = [watcher.read_start(conn) for conn, _ in ends]
    for _, peer in ends:
        peer.sendall(b"x")
    for conn, _ in ends:
        watcher.read_stop(conn)
    watcher.finish(*reads)
    for (conn, _), read in zip(ends, reads, strict=True):
        assert read.error is None
        if not read.received:
            rest = watcher.read(conn)
            watcher.finish(rest)
            assert rest.data == b"x"


@pytest.mark.usefixtures("one_shot")
def test_a_kernel_without_multishot_receives(make_ring: MakeRing, pairs: Pairs) -> None:
    watcher = make_ring()
    ends = [pairs.tcp() for _ in range(8)]
    reads = [watcher.read_start(conn) for conn, _ in ends]
    sending = [Background(partial(peer.sendall, pattern(300 * KIB, 1))) for _, peer in ends]
    watcher.harvest_until(partial(all_have, reads, 300 * KIB), "all the bytes")
    for thread in sending:
        thread.result()
    assert all(read.stream == pattern(300 * KIB, 1) for read in reads)


def test_accepts_leave_no_client_to_the_kernel(make_ring: MakeRing, pairs: Pairs) -> None:
    """Nothing accepts in the kernel while nobody looks: a child forked then would have the connection as well."""
    watcher = make_ring()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        accept = watcher.accept_start(listener)
        assert watcher.wait(0) == []
        with leading(watcher):
            client = socket.create_connection(address, timeout=30)
            pairs.also_close(client)
            ring_of(watcher.watcher).ring.enter()
            probe = socket.socket(fileno=os.dup(watcher.watcher._leader.engine.listeners[id(listener)].fd))
            with probe:
                probe.setblocking(False)
                accepted, _ = probe.accept()  # it is in the backlog still
                accepted.close()
        watcher.accept_stop(listener)
        watcher.finish(accept)
        assert accept.arrivals == []
        watcher.free(listener)


@pytest.mark.usefixtures("thread_acts_when_told")
@pytest.mark.parametrize("little", [0, 3])
def test_a_flood_that_goes_on(make_ring: MakeRing, pairs: Pairs, little: int) -> None:
    """After a stop, and when little has come in between, it is received piece by piece again: others come first."""
    watcher = make_ring()
    conn, peer = pairs.tcp()
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    peer.setblocking(False)
    first = watcher.read_start(conn)
    assert watcher.wait(0) == []
    watcher.read_stop(conn)
    watcher.finish(first)
    read = watcher.read_start(conn)
    for number in range(little):
        assert peer.send(b"x") == 1
        watcher.harvest_until(partial(read.has, number + 1), "a byte")
    flood = bytes(64 * KIB)
    sent = 0
    try:
        while True:
            sent += peer.send(flood)
    except BlockingIOError:
        pass
    assert sent > 256 * KIB
    watcher.wait(1)
    assert 0 < read.received - little <= 128 * KIB


@pytest.mark.usefixtures("thread_acts_when_told")
@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_an_arrival_behind_an_interruption(
    make_ring: MakeRing, pairs: Pairs, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """It is started once after that: of two receives under way, one's bytes would be taken for seen before."""
    watcher = make_ring()
    conn, peer = pairs.tcp() if kind == "tcp" else pairs.unix()
    payload = pattern(1000 * KIB)
    read = watcher.read_start(conn)
    for start in range(0, len(payload), 100 * KIB):
        assert watcher.wait(0) == []
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(IoUringBackend, "_reap", interrupted(IoUringBackend._reap))
            watcher.wait(0)
        peer.sendall(payload[start : start + 100 * KIB])
        watcher.harvest_until(partial(read.has, start + 100 * KIB), "all of that")
    assert read.stream == payload


@pytest.mark.usefixtures("thread_acts_when_told")
def test_interrupted_when_a_stop_comes_with_bytes(
    make_ring: MakeRing, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its completion is worked through twice, behind that of the receive: the stop must not be forgotten."""
    watcher = make_ring()
    conn, peer = pairs.unix()
    read = watcher.read_start(conn)
    assert watcher.wait(0) == []
    peer.sendall(b"before")
    watcher.read_stop(conn)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(IoUringBackend, "_special", interrupted(IoUringBackend._special))
        watcher.wait(1)
    watcher.finish(read)
    assert (read.stream, read.error) == (b"before", None)


def interrupted(original: Callable[..., Any]) -> Callable[..., Any]:
    """That method, struck by a KeyboardInterrupt at its end, the first time."""
    calls: list[Any] = []

    def method(*arguments: Any) -> Any:
        returned = original(*arguments)
        calls.append(returned)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return returned

    return method
