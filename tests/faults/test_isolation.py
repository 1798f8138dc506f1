"""Bad neighbours: whatever one connection does, the others are served, and memory stays where it was."""

from __future__ import annotations

import gc
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest

import gaio
from tests import soak
from tests.accounting import AccountedWatcher
from tests.behaviour.echo import EchoServer
from tests.peers import Pairs, pattern, receive_exactly, receive_until_eof
from tests.waiting import Background, TimeLimit

pytestmark = [pytest.mark.scenario(6), pytest.mark.slow]

ROUNDS = 200


def flood(peer: socket.socket, stop: threading.Event) -> None:
    """Sends as fast as it can and never reads: what is echoed to it soon fills every buffer on the way."""
    peer.settimeout(0.05)
    data = bytes(1 << 20)
    while not stop.is_set():
        try:
            peer.send(data)
        except TimeoutError:
            pass
        except OSError:
            return


def never_read(peer: socket.socket, stop: threading.Event) -> None:
    """Asks for more than all buffers on the way can hold and takes nothing: the write of an answer gets stuck."""
    peer.setblocking(False)
    data = bytes(1 << 16)
    while not stop.is_set():
        try:
            peer.send(data)
        except BlockingIOError:
            stop.wait(0.001)


def send_byte_by_byte(peer: socket.socket, stop: threading.Event) -> None:
    while not stop.wait(0.001):
        peer.send(b"x")


NEIGHBOURS: dict[str, Callable[[socket.socket, threading.Event], None]] = {
    "one that floods": flood,
    "one that never reads": never_read,
    "one that sends a byte at a time": send_byte_by_byte,
}


def serve_until_stuck(server: EchoServer, watcher: AccountedWatcher, conns: list[socket.socket]) -> None:
    """While nobody else asks for anything, until the watcher has nothing to do but wait for room for these."""
    limit = TimeLimit()
    while server.serve_batch(0.05) or any(
        request.operation is not gaio.WRITE for conn in conns for request in watcher.pending_on(conn)
    ):
        limit.left("every write to a peer that never reads to be stuck")
    assert all(watcher.pending_on(conn) for conn in conns)


@pytest.mark.parametrize("neighbour", NEIGHBOURS.values(), ids=NEIGHBOURS)
@pytest.mark.parametrize("buffers", ["swap", "caller"])
def test_others_are_served(
    watcher: AccountedWatcher, pairs: Pairs, neighbour: Callable[[socket.socket, threading.Event], None], buffers: str
) -> None:
    """Sixteen well-behaved clients get two hundred answers each beside four bad ones."""
    server = EchoServer(watcher, "swap" if buffers == "swap" else "caller", size=4096)
    stop = threading.Event()
    bad = [pairs.tcp() for _ in range(4)]
    good = [pairs.tcp() for _ in range(16)]

    def talk(peer: socket.socket) -> None:
        for number in range(ROUNDS):
            message = pattern(64 + number, seed=number % 4)
            peer.sendall(message)
            assert receive_exactly(peer, len(message)) == message
        peer.shutdown(socket.SHUT_WR)
        assert receive_until_eof(peer) == b""

    for conn, _ in (*bad, *good):
        server.start(conn)
    misbehaving = [Background(partial(neighbour, peer, stop)) for _, peer in bad]
    if neighbour is never_read:
        serve_until_stuck(server, watcher, [conn for conn, _ in bad])
    talking = [Background(partial(talk, peer)) for _, peer in good]
    before = soak.resident_bytes()
    server.serve(connections=16)
    for client in talking:
        client.result()
    if neighbour is never_read:
        serve_until_stuck(server, watcher, [conn for conn, _ in bad])
    gc.collect()
    # Each bad one holds at most a read, a write and their buffers, the rest stands in the kernel; and the swap memory
    # may have grown to its 16 MB.
    assert soak.resident_bytes() - before < 30_000_000
    stop.set()
    for peers_thread in misbehaving:
        peers_thread.result()
    for conn, _ in bad:
        watcher.free(conn)
    watcher.finish_all()


def batches_until_answered(
    server: EchoServer, clients: dict[socket.socket, socket.socket], rounds: int
) -> Iterator[int]:
    """How many batches each answer takes, when all of these ask at the same time, again and again."""
    limit = TimeLimit()
    for number in range(rounds):
        message = pattern(64, seed=number % 4)
        for peer in clients.values():
            peer.sendall(message)
        left, batches = dict.fromkeys(clients, len(message)), 0
        while left:
            batches += 1
            for request in server.serve_batch(limit.left(f"{len(left)} answers in round {number}")):
                assert request.result is not None
                conn = request.result.conn
                if request.operation is gaio.WRITE and conn in left:
                    left[conn] -= request.size  # a message may be read in two parts, where swap memory ends
                    if not left[conn]:
                        del left[conn]
                        yield batches
        for peer in clients.values():
            assert receive_exactly(peer, len(message)) == message


def percentile_99(numbers: Iterator[int]) -> int:
    ordered = sorted(numbers)
    return ordered[len(ordered) * 99 // 100]


def test_nobody_waits_longer_for_bad_neighbours(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """Counted in batches, which no other work on the machine can disturb; benchmarks/ measures it in seconds."""
    server = EchoServer(watcher, "mixed", size=4096)
    clients = dict(pairs.tcp() for _ in range(64))
    for conn in clients:
        server.start(conn)
    calm = percentile_99(batches_until_answered(server, clients, ROUNDS // 2))
    bad, misbehaving = [], []
    stop = threading.Event()
    for neighbour in sorted(NEIGHBOURS.values(), key=lambda neighbour: neighbour is not never_read):
        conn, peer = pairs.tcp()
        bad.append(conn)
        server.start(conn)
        misbehaving.append(Background(partial(neighbour, peer, stop)))
        if neighbour is never_read:  # the first, since the others leave the watcher no rest
            serve_until_stuck(server, watcher, [conn])
    disturbed = percentile_99(batches_until_answered(server, clients, ROUNDS // 2))
    stop.set()
    for thread in misbehaving:
        thread.result()
    for conn in (*clients, *bad):
        watcher.free(conn)
    watcher.finish_all()
    assert disturbed <= 3 * calm, (disturbed, calm)
