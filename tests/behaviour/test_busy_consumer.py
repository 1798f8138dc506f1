"""A consumer that computes instead of waiting: the watcher thread does the work and keeps the results.

Each test waits for something at the peer, or for a counter: never for wait_io().
"""

from __future__ import annotations

import random
import socket
import time
from functools import partial

import pytest

import gaio
from tests.accounting import AccountedWatcher
from tests.behaviour.echo import EchoServer
from tests.peers import Pairs, pattern, receive_exactly, receive_until_eof
from tests.waiting import Background, wait_until

MIB = 1 << 20


def all_done(watcher: AccountedWatcher) -> None:
    wait_until(lambda: watcher.watcher.stats().pending == 0, "the watcher thread to finish every request")


@pytest.mark.scenario(6)
def test_writes_are_done(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp(buffers=8192)
    payload = pattern(4 * MIB)
    write = watcher.write(conn, payload)
    assert receive_exactly(peer, len(payload)) == payload
    all_done(watcher)
    assert watcher.wait(0) == [write]


def test_writes_begun_by_the_consumer_are_finished(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp(buffers=8192)
    payload = pattern(4 * MIB)
    write = watcher.write(conn, payload)
    assert watcher.wait(0.05) == []
    assert receive_exactly(peer, len(payload)) == payload
    all_done(watcher)
    assert watcher.wait(0) == [write]


def test_deadlines_are_kept(watcher: AccountedWatcher, pairs: Pairs) -> None:
    reads = [watcher.read(pairs.unix()[0], timeout=random.uniform(0.1, 0.2)) for _ in range(100)]
    soon = watcher.wait(0)  # none as a rule; on a machine that is held up, deadlines may have passed by now
    all_done(watcher)
    assert set(soon + watcher.wait(0)) == set(reads)
    assert all(isinstance(read.error, gaio.DeadlineError) for read in reads)


def test_reads_are_received_and_kept(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """Into the arena as into the caller's memory, with nothing overwritten before it was looked at."""
    ends = [pairs.unix() for _ in range(100)]
    reads = [
        watcher.read(conn, None if number % 2 else bytearray(2000)) for number, (conn, _) in enumerate(ends)
    ]
    assert watcher.wait(0) == []
    for seed, (_, peer) in enumerate(ends):
        peer.sendall(pattern(1900, seed))
    all_done(watcher)
    assert set(watcher.wait(0)) == set(reads)
    for seed, read in enumerate(reads):
        assert (read.data if seed % 2 else bytes(read.buffer[: read.size])) == pattern(1900, seed)


def test_queued_requests_follow_each_other(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """Each finished request makes way for the next of its connection, a hundred times over."""
    conn, peer = pairs.tcp()
    reads = [watcher.read_full(conn, bytearray(3)) for _ in range(100)]
    for number in range(100):
        peer.sendall(b"%03d" % number)
    all_done(watcher)
    assert watcher.wait(0) == reads
    assert [bytes(read.buffer) for read in reads] == [b"%03d" % number for number in range(100)]


def test_free_is_carried_out(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    read = watcher.read(conn)
    assert watcher.wait(0) == []
    watcher.free(conn)
    assert receive_until_eof(peer) == b""
    all_done(watcher)
    assert watcher.wait(0) == [read]


def test_more_results_than_the_original_could_hold(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """There, deadlines and free() stopped once 16,384 results had piled up unharvested."""
    conn, peer = pairs.unix()
    receiving = Background(lambda: receive_exactly(peer, 20_000))
    writes = [watcher.write(conn, b"x") for _ in range(20_000)]
    assert receiving.result() == b"x" * 20_000
    late = watcher.read(conn, timeout=0)
    all_done(watcher)
    finished = watcher.finish(*writes, late)
    assert [request for request in finished if request is not late] == writes
    assert isinstance(late.error, gaio.DeadlineError)


@pytest.mark.scenario(21)
def test_the_watch_changes_hands_at_random_moments(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """The consumer comes and goes around the time after which the watcher thread takes over."""
    connections = 8
    payload = pattern(300_000)
    server = EchoServer(watcher, "mixed", size=3000)
    clients = []
    for _ in range(connections):
        conn, peer = pairs.tcp()

        def send(peer: socket.socket = peer) -> None:
            for start in range(0, len(payload), 5000):
                peer.sendall(payload[start : start + 5000])
                time.sleep(random.random() / 200)  # the disorder under test, not a wait for anything
            peer.shutdown(socket.SHUT_WR)

        clients.append((Background(send), Background(partial(receive_until_eof, peer))))
        server.start(conn)
    server.serve(
        connections, pause=lambda: time.sleep(random.choice([0, 0, 0.001, 0.009, 0.011, 0.02, 0.04]))
    )
    for sending, receiving in clients:
        sending.result()
        assert receiving.result() == payload


@pytest.mark.usefixtures("thread_acts_when_told")
def test_the_thread_does_not_queue_up_behind_a_consumer_that_waits(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """It looks whether that one is away, and again later: else it would be ahead of it each time it comes back."""
    conn, peer = pairs.unix()
    read = watcher.read(conn)
    leader = watcher.watcher._leader
    consumer = Background(lambda: watcher.wait(None))
    wait_until(lambda: leader.needs_wakeup, "the consumer to wait in the kernel")
    for _ in range(3):
        leader.end_tick()
        wait_until(leader.next_tick.locked, "the watcher thread to begin another tick")
    peer.send(b"x")
    assert consumer.result() == [read]
