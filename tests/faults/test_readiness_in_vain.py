"""A connection that is reported as readable again and again with nothing to read takes nobody else's bytes.

On io_uring a receive that waits in the kernel and is woken in vain 128 times blocks a kernel thread, which consumes
buffers that others receive into: they once got zeros, or the bytes of another client.
"""

from __future__ import annotations

import socket
import sys
import time

import pytest

from tests.accounting import AccountedWatcher
from tests.leaks import kernel_threads
from tests.peers import Pairs
from tests.waiting import Background

SOF_TIMESTAMPING_TX_SOFTWARE = 1 << 1
SOF_TIMESTAMPING_SOFTWARE = 1 << 4
SOF_TIMESTAMPING_TX_ACK = 1 << 9
SO_TIMESTAMPING = 37  # <asm-generic/socket.h>; socket has no name for it


@pytest.mark.skipif(sys.platform != "linux", reason="what urgent data wakes is told differently elsewhere")
def test_urgent_data_on_one_connection(watcher: AccountedWatcher, pairs: Pairs) -> None:
    at_work = kernel_threads()  # those of a test before linger for some seconds
    (conn, peer), (other, other_peer) = pairs.tcp(), pairs.tcp()
    reads = [watcher.read(conn)]
    other_read = watcher.read(other)
    for _ in range(140):
        peer.send(b"!", socket.MSG_OOB)
        # Time for the kernel to try. Some of these bytes are read, by and by: those that no longer are urgent.
        reads += [watcher.read(conn) for request in watcher.wait(0.003) if request in reads]
    assert kernel_threads() <= at_work
    other_peer.sendall(b"hello")
    watcher.finish(other_read)
    assert other_read.data == b"hello"
    peer.sendall(b"world")
    while not reads[-1].data.endswith(b"world"):
        watcher.finish(reads[-1])
        if not reads[-1].data.endswith(b"world"):
            reads.append(watcher.read(conn))
    assert {bytes([byte]) for read in reads for byte in read.data} <= {b"!", *(b"%c" % byte for byte in b"world")}


@pytest.mark.skipif(sys.platform != "linux", reason="SO_TIMESTAMPING is of Linux")
def test_timestamps_that_nobody_fetches(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """The error queue has one: the socket polls as failed for ever."""
    at_work = kernel_threads()  # those of a test before linger for some seconds
    (conn, peer), (other, other_peer) = pairs.tcp(), pairs.tcp()
    wanted = SOF_TIMESTAMPING_TX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE | SOF_TIMESTAMPING_TX_ACK
    conn.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, wanted)
    conn.sendall(b"x")
    assert peer.recv(1) == b"x"
    read, other_read = watcher.read(conn), watcher.read(other)
    assert watcher.wait(0.05) == []
    assert kernel_threads() <= at_work
    other_peer.sendall(b"hello")
    watcher.finish(other_read)
    assert other_read.data == b"hello"
    peer.sendall(b"world")
    watcher.finish(read)
    assert read.data == b"world"


@pytest.mark.skipif(sys.platform != "linux", reason="what urgent data wakes is told differently elsewhere")
def test_urgent_data_while_the_consumer_waits(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """In one call of wait_io(). On io_uring before Linux 6.12 each byte takes a whole buffer of those there are."""
    (conn, peer), (other, other_peer) = pairs.tcp(), pairs.tcp()
    never, other_read = watcher.read(conn), watcher.read(other)

    def send() -> None:
        for _ in range(150):
            peer.send(b"!", socket.MSG_OOB)
            time.sleep(0.003)  # time for the kernel to try; else many make one wake-up, and the test only finds less
        other_peer.sendall(b"hello")

    sending = Background(send)
    watcher.finish(other_read)
    sending.result()
    assert other_read.data == b"hello"
    watcher.free(conn)
    watcher.finish(never)
