"""Bad neighbours: whatever one connection does, the others are served, and memory stays where it was."""

from __future__ import annotations

import gc
import socket
import threading
from collections.abc import Callable
from functools import partial

import pytest

from tests import soak
from tests.accounting import AccountedWatcher
from tests.behaviour.echo import EchoServer
from tests.peers import Pairs, pattern, receive_exactly, receive_until_eof
from tests.waiting import Background

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
    """Asks for a lot and takes nothing."""
    peer.sendall(b"x" * 1000)
    stop.wait()


def send_byte_by_byte(peer: socket.socket, stop: threading.Event) -> None:
    while not stop.wait(0.001):
        peer.send(b"x")


NEIGHBOURS: dict[str, Callable[[socket.socket, threading.Event], None]] = {
    "one that floods": flood,
    "one that never reads": never_read,
    "one that sends a byte at a time": send_byte_by_byte,
}


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
    talking = [Background(partial(talk, peer)) for _, peer in good]
    before = soak.resident_bytes()
    server.serve(connections=16)
    for client in talking:
        client.result()
    gc.collect()
    # Each bad one holds at most a read, a write and their buffers, the rest stands in the kernel; and the swap memory
    # may have grown to its 16 MB.
    assert soak.resident_bytes() - before < 30_000_000
    stop.set()
    for conn, _ in bad:
        watcher.free(conn)
    watcher.finish_all()
    for _, peer in bad:
        peer.close()
    for peers_thread in misbehaving:
        peers_thread.result()
