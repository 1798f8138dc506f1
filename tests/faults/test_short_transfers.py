"""Calls that move less than they were asked to, or nothing for the moment: no byte is lost, doubled or out of order."""

from __future__ import annotations

import errno
import itertools
import socket

import pytest

from tests import backends
from tests.accounting import AccountedWatcher, MakeWatcher
from tests.faulty_libc import FaultyLibc, enters_ring
from tests.peers import Pairs, pattern, receive_exactly
from tests.waiting import Background


@pytest.mark.scenario(7, 20, on="epoll, kqueue")
@pytest.mark.parametrize("backend", backends.telling_readiness(), indirect=True)
@pytest.mark.parametrize("most", [1, 7, 1000])
@pytest.mark.parametrize("protocol", ["unix", "mptcp"])
def test_send_and_recv_move_a_few_bytes_at_a_time(
    libc: FaultyLibc, make_watcher: MakeWatcher, pairs: Pairs, protocol: str, most: int
) -> None:
    """A short transfer that is no sign of a full or empty buffer: waiting for an edge then would be for ever.

    Of TCP, and TCP alone, a short receive does mean that the buffer is empty.
    """
    libc.shorten("send", most)
    libc.shorten("recv", most)
    watcher = make_watcher()
    conn, peer = pairs.unix() if protocol == "unix" else pairs.multipath_tcp()
    size = 4000 * most if most < 100 else 400_000
    payload = pattern(size)
    buffers = [bytearray(size // 4) for _ in range(4)]
    reads = [watcher.read_full(conn, buffer) for buffer in buffers]
    writes = [watcher.write(conn, payload[start : start + size // 8]) for start in range(0, size, size // 8)]
    sending = Background(lambda: peer.sendall(payload))
    receiving = Background(lambda: receive_exactly(peer, size))
    finished = watcher.finish(*reads, *writes)
    sending.result()
    assert [request for request in finished if request in writes] == writes
    assert b"".join(buffers) == payload
    assert receiving.result() == payload


@pytest.mark.scenario(20, on="epoll")
@pytest.mark.usefixtures("thread_acts_when_told")
@pytest.mark.parametrize("backend", [name for name in backends.under_test() if name == "epoll"], indirect=True)
def test_a_short_send_of_tcp_is_not_repeated_in_vain(
    libc: FaultyLibc, make_watcher: MakeWatcher, pairs: Pairs
) -> None:
    """It means that the buffer is full: what is left waits for the edge that tells of room."""
    watcher = make_watcher()
    conn, peer = pairs.tcp()
    watcher.finish(watcher.write(conn, b"x"))
    assert watcher.wait(0) == []  # by now the edge with which each descriptor begins has come
    libc.shorten("send", 10)
    before = libc.calls["send"]
    write = watcher.write(conn, pattern(100))
    for _ in range(3):
        assert watcher.wait(0) == []
    assert libc.calls["send"] == before + 1
    watcher.free(conn)  # the kernel's buffer is not full in truth, and so there will be no edge
    watcher.finish(write)
    assert receive_exactly(peer, 1 + write.size) == b"x" + pattern(100)[: write.size]


@pytest.mark.scenario(7, 20)
def test_a_write_through_a_tiny_send_buffer(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """The kernel itself takes little at a time; twenty writes of both kinds, one behind the other."""
    conn, peer = pairs.tcp(buffers=2048)
    payload = pattern(600_000)
    parts = [payload[start : start + 30_000] for start in range(0, 600_000, 30_000)]
    writes = [
        watcher.write(conn, [bytearray(part[:10_000]), part[10_000:]] if number % 2 else part)
        for number, part in enumerate(parts)
    ]
    receiving = Background(lambda: receive_exactly(peer, len(payload)))
    assert watcher.finish(*writes) == writes
    assert receiving.result() == payload


@pytest.mark.scenario(18, on="epoll, kqueue")
@pytest.mark.parametrize("backend", backends.telling_readiness(), indirect=True)
@pytest.mark.parametrize("name", ["send", "sendmsg"])
def test_a_write_without_memory_for_the_moment(
    libc: FaultyLibc, make_watcher: MakeWatcher, pairs: Pairs, name: str
) -> None:
    """ENOBUFS: the descriptor stays writable, so no edge will tell; it is tried again by time."""
    watcher = make_watcher()
    conn, peer = pairs.tcp()
    libc.fail(name, errno.ENOBUFS, times=8)  # more often than others have it look again
    payload = pattern(100_000)
    write = watcher.write(conn, payload if name == "send" else [payload[:1], payload[1:]])
    receiving = Background(lambda: receive_exactly(peer, len(payload)))
    watcher.finish(write)
    assert write.error is None
    assert receiving.result() == payload
    assert libc.struck == 8


@pytest.mark.scenario(18, on="epoll, kqueue")
@pytest.mark.parametrize("backend", backends.telling_readiness(), indirect=True)
def test_the_watcher_thread_tries_again_as_well(
    libc: FaultyLibc, make_watcher: MakeWatcher, pairs: Pairs
) -> None:
    watcher = make_watcher()
    conn, peer = pairs.tcp()
    libc.fail("send", errno.ENOBUFS, times=2)
    write = watcher.write(conn, b"at last")
    assert peer.recv(100) == b"at last", "nobody waits for results"
    watcher.finish(write)


@pytest.mark.scenario(17, 19, on="io_uring")
@pytest.mark.parametrize("backend", [name for name in backends.under_test() if name == "io_uring"], indirect=True)
@pytest.mark.parametrize("error", [errno.EAGAIN, errno.EBUSY, errno.ETIME])
def test_the_ring_takes_no_entries_for_the_moment(
    libc: FaultyLibc, make_watcher: MakeWatcher, pairs: Pairs, error: int
) -> None:
    """io_uring_enter(2) fails with the entries written: they stay the kernel's to take, with all that they refer to."""
    watcher = make_watcher()
    ends = [pairs.tcp() for _ in range(10)]
    turns = itertools.cycle([True, True, False])
    libc.fail("syscall", error, times=None, when=lambda *arguments: enters_ring(*arguments) and next(turns))
    requests = []
    for _ in range(20):
        for number, (conn, peer) in enumerate(ends):
            requests.append(watcher.write(conn, bytearray(b"%04d" % number) * 2000))
            requests.append(watcher.read_full(conn, bytearray(4)))
            peer.send(b"ping")
    receiving = [Background(lambda peer=peer: receive_exactly(peer, 160_000)) for _, peer in ends]  # type: ignore[misc]
    watcher.finish(*requests)
    assert all(request.error is None for request in requests)
    for number, peer_received in enumerate(receiving):
        assert peer_received.result() == b"%04d" % number * 40_000
    assert libc.struck > 10


@pytest.mark.scenario(17, on="epoll, io_uring")
@pytest.mark.parametrize("backend", backends.on_a_real_kernel(), indirect=True)
def test_an_error_of_the_wait_comes_out_and_loses_nothing(
    libc: FaultyLibc, make_watcher: MakeWatcher, pairs: Pairs, backend: str
) -> None:
    """One that nobody can foresee: wait_io() raises it, and the next call goes on."""
    watcher = make_watcher()
    conn, peer = pairs.tcp()
    read, write = watcher.read(conn), watcher.write(conn, b"hello")
    name = {"epoll": "epoll_wait", "kqueue": "kevent", "io_uring": "syscall"}[backend]
    libc.fail(name, errno.EIO, when=lambda *arguments: backend != "io_uring" or enters_ring(*arguments))
    with pytest.raises(OSError) as caught:
        watcher.finish(read)
    assert caught.value.errno == errno.EIO
    peer.sendall(b"x")
    watcher.finish(read, write)
    assert read.data == b"x"
    assert receive_exactly(peer, 5) == b"hello"


@pytest.mark.scenario(4, on="epoll, kqueue")
@pytest.mark.parametrize("backend", backends.telling_readiness(), indirect=True)
@pytest.mark.parametrize("error", [errno.EPIPE, errno.ECONNRESET, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.EIO])
@pytest.mark.parametrize("name", ["recv", "send"])
def test_an_error_of_one_connection_is_its_own(
    libc: FaultyLibc, make_watcher: MakeWatcher, pairs: Pairs, name: str, error: int
) -> None:
    """It is told with what had moved before; neither the other direction nor another connection hears of it."""
    watcher = make_watcher()
    (conn, peer), (other, other_peer) = pairs.tcp(), pairs.tcp()
    first = watcher.read_full(conn, bytearray(10)) if name == "recv" else watcher.write(conn, b"x" * 10)
    if name == "recv":
        peer.sendall(b"half.")
        assert watcher.wait(0.02) == []
    libc.fail(name, error)
    if name == "recv":
        peer.sendall(b"more.")
    watcher.finish(first)
    assert isinstance(first.error, OSError)
    assert first.error.errno == error
    assert first.size == (5 if name == "recv" else 0)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    other_peer.sendall(b"well")
    there, here = watcher.write(other, b"served"), watcher.read(other)
    watcher.finish(there, here)
    assert here.data == b"well"
    assert receive_exactly(other_peer, 6) == b"served"
    if name == "send":
        peer.sendall(b"readable all the same")
        read = watcher.read(conn)
        watcher.finish(read)
        assert read.data == b"readable all the same"
    else:
        write = watcher.write(conn, b"writable all the same")
        watcher.finish(write)
        assert receive_exactly(peer, 21) == b"writable all the same"
