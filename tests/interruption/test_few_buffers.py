"""KeyboardInterrupt at every opcode on io_uring with hardly any buffers: reads wait for them, and there come more."""

from __future__ import annotations

import socket

import pytest

import gaio
from gaio.platform._io_uring import buffers
from tests import backends
from tests.accounting import Request
from tests.interruption.opcodes import Opcode, Strike, at_opcodes, interrupted_at
from tests.interruption.world import World
from tests.peers import wait_for_bytes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.scenario(2, on="io_uring"),
    pytest.mark.usefixtures("thread_acts_when_told"),
]

MESSAGES = [bytes([letter]) * 64 for letter in b"ABCDEF"]


@pytest.fixture(autouse=True)
def _few_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    if "io_uring" not in backends.under_test():
        pytest.skip("another backend was chosen")
    monkeypatch.setattr(buffers, "buffer_geometry", lambda *_: (64, 1, 2))


def reads_that_want_buffers(world: World) -> tuple[list[socket.socket], list[Request]]:
    """Of as many connections as there are messages: one has got the only buffer, the others want one."""
    ends = [world.pairs.tcp() for _ in MESSAGES]
    reads = [world.watcher.read(conn) for conn, _ in ends]
    for message, (_, peer) in zip(MESSAGES, ends, strict=True):
        peer.sendall(message)
    world.watcher.wait(1)
    return [conn for conn, _ in ends], reads


def test_harvest_when_buffers_are_added() -> None:
    """The ring of buffers is filled to the last entry: each of them must be in it once."""

    def play(at: Opcode) -> Strike:
        with World("io_uring", 64) as world:
            _, reads = reads_that_want_buffers(world)
            strike = interrupted_at(at, lambda: world.watcher.wait(1))
            world.watcher.finish(*reads)
            assert [read.data for read in reads] == MESSAGES, strike.place
            return strike

    at_opcodes(play)


@pytest.mark.parametrize("by", ["free", "close"])
def test_cutting_off_reads_that_want_a_buffer(by: str) -> None:
    def play(at: Opcode) -> Strike:
        with World("io_uring", 64) as world:
            conns, reads = reads_that_want_buffers(world)

            def free_all() -> None:
                for conn in conns:
                    world.watcher.free(conn)
                world.watcher.wait(0)

            act = free_all if by == "free" else world.watcher.watcher.close
            strike = interrupted_at(at, act)
            act()
            world.watcher.finish(*reads)
            expected = gaio.ConnClosedError if by == "free" else gaio.WatcherClosedError
            assert all(read.error is None or isinstance(read.error, expected) for read in reads), strike.place
            return strike

    at_opcodes(play)


def test_deadlines_of_reads_that_want_a_buffer() -> None:
    """What they want a buffer for had come in time."""

    def play(at: Opcode) -> Strike:
        with World("io_uring", 64) as world:
            ends = [world.pairs.tcp() for _ in MESSAGES]
            for message, (_, peer) in zip(MESSAGES, ends, strict=True):
                peer.sendall(message)
            wait_for_bytes(conn for conn, _ in ends)
            reads = [world.watcher.read(conn, timeout=0) for conn, _ in ends]
            strike = interrupted_at(at, lambda: world.watcher.finish(*reads))
            world.watcher.finish(*reads)
            assert [read.data for read in reads] == MESSAGES, strike.place
            return strike

    at_opcodes(play)
