"""read_full: exactly so many bytes, or an error that tells how many there were."""

from __future__ import annotations

import random
import socket
import sys

import pytest

import gaio
from tests.accounting import AccountedWatcher
from tests.peers import Pairs, pattern
from tests.waiting import Background

MIB = 1 << 20


@pytest.mark.slow
def test_read_full_of_100_mib(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    payload = pattern(100 * MIB)
    buffer = bytearray(len(payload))
    read = watcher.read_full(conn, buffer)
    sending = Background(lambda: peer.sendall(payload))
    watcher.finish(read)
    sending.result()
    assert read.error is None
    assert buffer == payload


@pytest.mark.scenario(20)
def test_read_full_gathers_what_comes_in_pieces(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    payload = pattern(5000)
    buffer = bytearray(len(payload))
    read = watcher.read_full(conn, buffer)
    for start in range(0, len(payload), 7):
        assert watcher.wait(0) == []
        peer.sendall(payload[start : start + 7])
    watcher.finish(read)
    assert buffer == payload


def test_read_full_leaves_the_bytes_behind_its_own(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.unix()
    peer.sendall(b"0123456789rest")
    buffer = bytearray(10)
    first, second = watcher.read_full(conn, buffer), watcher.read(conn)
    watcher.finish(first, second)
    assert buffer == b"0123456789"
    assert second.data == b"rest"


def test_read_takes_what_is_there_and_does_not_wait_for_a_full_buffer(
    watcher: AccountedWatcher, pairs: Pairs
) -> None:
    conn, peer = pairs.unix()
    peer.sendall(b"some")
    buffer = bytearray(100)
    read = watcher.read(conn, buffer)
    watcher.finish(read)
    assert read.size == 4
    assert buffer[:4] == b"some"


def test_read_full_that_meets_the_end_tells_how_many_bytes_came(
    watcher: AccountedWatcher, pairs: Pairs
) -> None:
    conn, peer = pairs.tcp()
    peer.sendall(b"partial")
    peer.close()
    buffer = bytearray(100)
    read = watcher.read_full(conn, buffer)
    watcher.finish(read)
    assert isinstance(read.error, EOFError)
    assert read.size == 7
    assert buffer[:7] == b"partial"


def test_read_full_that_meets_its_deadline_tells_how_many_bytes_came(
    watcher: AccountedWatcher, pairs: Pairs
) -> None:
    conn, peer = pairs.unix()
    peer.sendall(b"partial")
    buffer = bytearray(100)
    read = watcher.read_full(conn, buffer, timeout=0.05)
    watcher.finish(read)
    assert isinstance(read.error, gaio.DeadlineError)
    assert read.size == 7
    assert buffer[:7] == b"partial"


@pytest.mark.scenario(5, 21)
def test_data_and_fin_in_one_segment_end_a_waiting_read_full(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """Both arrive as one edge. Whoever stops at the short read waits for ever: no further edge will come."""
    if sys.platform != "linux":
        pytest.skip("only Linux has MSG_MORE, which puts data and FIN into one segment")
    for _ in range(200):
        conn, peer = pairs.tcp()
        read = watcher.read_full(conn, bytearray(100))
        assert watcher.wait(0) == []  # the read now waits in the kernel
        peer.send(b"ten bytes.", socket.MSG_MORE)
        peer.shutdown(socket.SHUT_WR)
        watcher.finish(read)
        assert isinstance(read.error, EOFError)
        assert read.size == 10
        watcher.free(conn)


@pytest.mark.scenario(5, 21)
def test_data_then_fin_end_a_waiting_read_full(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """The same with FIN at any moment after the data, and whichever thread leads."""
    for round_number in range(200):
        conn, peer = pairs.tcp() if round_number % 2 else pairs.unix()
        read = watcher.read_full(conn, bytearray(100))
        if random.random() < 0.5:
            assert watcher.wait(random.choice([0, 0.001])) == []
        peer.sendall(b"ten bytes.")
        peer.shutdown(socket.SHUT_WR)
        watcher.finish(read)
        assert isinstance(read.error, EOFError)
        assert read.size == 10
        watcher.free(conn)
