"""Bytes go through a watcher and back unchanged, however many and in whatever memory."""

from __future__ import annotations

import socket

import pytest

from tests.accounting import AccountedWatcher, MakeWatcher
from tests.behaviour.echo import WAYS, Buffers, EchoServer
from tests.peers import Pairs, pattern, receive_exactly, receive_until_eof
from tests.waiting import Background

MIB = 1 << 20
SIZES = [1, 2, 15, 4095, 4096, 65535, 65536, 65537, MIB, 7 * MIB + 3]


def echo_through(server: EchoServer, conn: socket.socket, peer: socket.socket, payload: bytes) -> bytes:
    """Send the payload from one thread, receive in another, serve in this one."""

    def send() -> None:
        peer.sendall(payload)
        peer.shutdown(socket.SHUT_WR)

    sending = Background(send)
    receiving = Background(lambda: receive_until_eof(peer))
    server.start(conn)
    server.serve(connections=1)
    sending.result()
    return receiving.result()


@pytest.mark.parametrize("buffers", WAYS)
@pytest.mark.parametrize("size", SIZES)
def test_echo_returns_the_same_bytes(
    watcher: AccountedWatcher, pairs: Pairs, size: int, buffers: Buffers
) -> None:
    conn, peer = pairs.tcp()
    payload = pattern(size)
    server = EchoServer(watcher, buffers)
    assert echo_through(server, conn, peer, payload) == payload
    assert server.echoed == size


@pytest.mark.slow
@pytest.mark.parametrize("buffers", WAYS)
def test_echo_of_100_mib_returns_the_same_bytes(
    watcher: AccountedWatcher, pairs: Pairs, buffers: Buffers
) -> None:
    conn, peer = pairs.tcp()
    payload = pattern(100 * MIB)
    assert echo_through(EchoServer(watcher, buffers), conn, peer, payload) == payload


@pytest.mark.parametrize("swap_size", [1, 2, 16, 1000])
def test_echo_through_a_tiny_swap_arena(make_watcher: MakeWatcher, pairs: Pairs, swap_size: int) -> None:
    """A small arena may cost speed, never bytes."""
    conn, peer = pairs.tcp()
    payload = pattern(2000)
    assert echo_through(EchoServer(make_watcher(swap_size), "swap"), conn, peer, payload) == payload


def test_one_watcher_serves_both_ends_of_a_connection(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """The two ends of one connection, each with a read and a write of a megabyte under way."""
    one, other = pairs.tcp()
    there, back = pattern(MIB, seed=1), pattern(MIB, seed=2)
    at_one, at_other = bytearray(MIB), bytearray(MIB)
    watcher.finish(
        watcher.read_full(one, at_one),
        watcher.read_full(other, at_other),
        watcher.write(one, there),
        watcher.write(other, back),
    )
    assert at_other == there
    assert at_one == back


def test_request_and_answer_a_thousand_times(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    for number in range(1000):
        message = b"%d" % number
        read = watcher.read(conn)
        peer.sendall(message)
        watcher.finish(read)
        assert read.data == message
        watcher.finish(watcher.write(conn, message))
        assert receive_exactly(peer, len(message)) == message


def test_results_carry_what_was_submitted(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """The very objects, not equal ones: a caller keeps its state in them."""
    conn, peer = pairs.tcp()
    context, buffer, data = object(), bytearray(10), b"ping"
    watcher.watcher.write(conn, data, context=context)
    (result,) = watcher.watcher.wait_io(60)
    assert result.context is context
    assert result.conn is conn
    assert result.buffer is data
    assert (result.operation.name, result.size, result.error) == ("WRITE", 4, None)
    assert not result.is_swap_buffer
    watcher.watcher.read(conn, buffer)
    peer.sendall(b"pong")
    (result,) = watcher.watcher.wait_io(60)
    assert result.context is None
    assert result.conn is conn
    assert result.buffer is buffer
    assert (result.operation.name, result.size, result.error) == ("READ", 4, None)
    assert buffer == b"pong" + bytes(6)
    assert not result.is_swap_buffer
