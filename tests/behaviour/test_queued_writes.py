"""Writes that stand in a queue: small ones of a stream leave together, and each has its own result all the same."""

from __future__ import annotations

import os
import random
import socket
from functools import partial

import pytest

import gaio
from gaio.memory import JOIN_LIMIT
from tests.accounting import AccountedWatcher, Request
from tests.peers import Closable, Pairs, pattern, receive_exactly, receive_until_eof, reset
from tests.waiting import Background, wait_until

MIB = 1 << 20


def check_in_order(finished: list[Request], writes: list[Request]) -> None:
    """Every write has succeeded with all its bytes, in the order of submission."""
    wanted = set(map(id, writes))
    assert [id(request) for request in finished if id(request) in wanted] == list(map(id, writes))
    assert all(write.error is None and write.size == write.size_wanted for write in writes)


@pytest.mark.parametrize("kind", ["tcp", "unix", "pipe_to_write"])
def test_thousands_of_small_ones(watcher: AccountedWatcher, pairs: Pairs, kind: str) -> None:
    ends: tuple[Closable, Closable] = getattr(pairs, kind)()
    conn, peer = ends
    sent = [b"%029d\n" % number for number in range(5000)]

    def receive() -> bytes:
        received = bytearray()
        while len(received) < 30 * 5000:
            received += os.read(peer.fileno(), 65536)
        return bytes(received)

    if isinstance(peer, socket.socket):
        peer.setblocking(True)
    receiving = Background(receive)
    writes = [watcher.write(conn, part) for part in sent]
    check_in_order(watcher.finish(*writes), writes)
    assert receiving.result() == b"".join(sent)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_slow_reader(watcher: AccountedWatcher, pairs: Pairs, kind: str) -> None:
    """What the kernel takes ends in the middle of one of them, again and again."""
    conn, peer = pairs.tcp(buffers=4096) if kind == "tcp" else pairs.unix()
    if kind == "unix":
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    chooser = random.Random(kind)
    sent = [chooser.randbytes(chooser.randrange(1, 1500)) for _ in range(1500)]
    writes = [watcher.write(conn, part) for part in sent]
    wanted = sum(map(len, sent))
    peer.setblocking(False)
    received = bytearray()
    finished: list[Request] = []
    while len(received) < wanted:
        finished += watcher.wait(0)
        try:
            received += peer.recv(chooser.randrange(1, 20_000))
        except BlockingIOError:
            continue
    finished += watcher.finish(*writes)
    check_in_order(finished, writes)
    assert received == b"".join(sent)


@pytest.mark.parametrize("seed", range(4))
def test_of_every_size_and_kind(watcher: AccountedWatcher, pairs: Pairs, seed: int) -> None:
    """Small ones, large ones, vectored ones, mutable ones, some with deadlines; and the end of the stream."""
    conn, peer = pairs.tcp(buffers=8192) if seed % 2 else pairs.unix()
    chooser = random.Random(seed)
    writes, sent = [], bytearray()
    for _ in range(300):
        size = chooser.choice([1, 30, 700, 4096, 4097, 20_000, JOIN_LIMIT, JOIN_LIMIT + 1])
        data = chooser.randbytes(size)
        sent += data
        timeout = chooser.choice([None, None, None, 1000])
        kind = chooser.choice(["bytes", "bytes", "bytes", "bytearray", "parts", "many parts"])
        if kind == "bytes":
            writes.append(watcher.write(conn, data, timeout=timeout))
        elif kind == "bytearray":
            writes.append(watcher.write(conn, bytearray(data), timeout=timeout))
        else:
            cut = size // 2 if kind == "parts" else max(1, size // 100)
            parts = [data[start : start + cut or None] for start in range(0, size, cut or size)]
            writes.append(watcher.write(conn, parts, timeout=timeout))
        if chooser.random() < 0.05:
            watcher.wait(0)
    end = watcher.shutdown(conn)
    receiving = Background(lambda: receive_until_eof(peer))
    watcher.finish(*writes, end)
    assert all(write.error is None and write.size == write.size_wanted for write in writes)
    assert end.error is None
    assert receiving.result() == sent


def test_behind_a_connect(watcher: AccountedWatcher, pairs: Pairs) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        conn = socket.socket()
        pairs.also_close(conn)
        connect = watcher.connect(conn, listener.getsockname())
        writes = [watcher.write(conn, b"%03d" % number) for number in range(500)]
        end = watcher.shutdown(conn)
        peer, _ = listener.accept()
        pairs.also_close(peer)
        finished = watcher.finish(connect, *writes, end)
        assert finished[0] is connect
        check_in_order(finished, writes)
        assert receive_until_eof(peer) == b"".join(b"%03d" % number for number in range(500))


def test_behind_a_connect_that_fails(watcher: AccountedWatcher, pairs: Pairs) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    conn = socket.socket()
    pairs.also_close(conn)
    connect = watcher.connect(conn, address)
    writes = [watcher.write(conn, b"x" * 30) for _ in range(50)]
    watcher.finish(connect, *writes)
    assert isinstance(connect.error, ConnectionRefusedError)
    assert all(isinstance(write.error, OSError) and write.size == 0 for write in writes)
    assert len({id(write.error) for write in writes}) == len(writes), "each has an error of its own"


@pytest.mark.parametrize("way", ["reset", "close"])
@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_peer_that_goes_in_the_middle(watcher: AccountedWatcher, pairs: Pairs, kind: str, way: str) -> None:
    """Those before have succeeded, one may be left in the middle, those behind have not moved a byte."""
    conn, peer = pairs.tcp(buffers=8192) if kind == "tcp" else pairs.unix()
    writes = [watcher.write(conn, pattern(100, number % 4)) for number in range(20_000)]
    watcher.wait(0)
    received = receive_exactly(peer, 30_000)
    watcher.wait(0)
    if way == "reset":
        reset(peer)
    else:
        peer.close()
    watcher.finish(*writes)
    good = [write for write in writes if write.error is None]
    bad = [write for write in writes if write.error is not None]
    assert writes == good + bad
    assert bad
    assert all(write.size == 100 for write in good)
    assert all(isinstance(write.error, OSError) for write in bad)
    assert len({id(write.error) for write in bad}) == len(bad), "each has an error of its own"
    assert bad[0].size < 100
    assert all(write.size == 0 for write in bad[1:])
    assert sum(write.size for write in writes) >= len(received)


def test_free_in_the_middle(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """The sizes of all are what the peer gets."""
    for _ in range(10):
        conn, peer = pairs.unix()
        sent = [pattern(300, number % 4) for number in range(3000)]
        writes = [watcher.write(conn, part) for part in sent]
        watcher.wait(0)
        watcher.free(conn)
        watcher.finish(*writes)
        watcher.wait(0)
        assert receive_until_eof(peer) == b"".join(sent)[: sum(write.size for write in writes)]
        assert all(isinstance(write.error, (type(None), gaio.ConnClosedError)) for write in writes)
        assert all((write.error is None) == (write.size == 300) for write in writes)


def test_close_in_the_middle(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.unix()
    sent = [pattern(300, number % 4) for number in range(3000)]
    writes = [watcher.write(conn, part) for part in sent]
    watcher.wait(0)
    watcher.close_and_check()
    assert receive_until_eof(peer) == b"".join(sent)[: sum(write.size for write in writes)]
    assert isinstance(writes[-1].error, gaio.WatcherClosedError)


def test_deadlines_on_some(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """They go without a byte, from among those that wait, and the others go on as if they had never been."""
    conn, peer = pairs.tcp(buffers=8192)
    blocker = watcher.write(conn, bytes(MIB))
    writes = [
        watcher.write(conn, b"%05d" % number, timeout=0.05 if number % 3 == 0 else None) for number in range(300)
    ]
    cut = writes[::3]
    watcher.finish(*cut)
    assert all(isinstance(write.error, gaio.DeadlineError) and write.size == 0 for write in cut)
    left = [write for write in writes if write not in cut]
    receiving = Background(lambda: receive_exactly(peer, MIB + 5 * len(left)))
    check_in_order(watcher.finish(blocker, *left), left)
    assert receiving.result()[MIB:] == b"".join(b"%05d" % number for number in range(300) if number % 3)


def test_the_first_has_a_deadline(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """It may be cut off in the middle; what was to leave with it begins where it ends."""
    for size in (1000, 3000):
        conn, peer = pairs.unix()
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sent = [pattern(size, number % 4) for number in range(60)]
        filling = [watcher.write(conn, part) for part in sent[:20]]
        first = watcher.write(conn, sent[20], timeout=0.03)
        behind = [watcher.write(conn, part) for part in sent[21:]]
        watcher.finish(first)
        receiving = Background(partial(receive_until_eof, peer))
        end = watcher.shutdown(conn)
        watcher.finish(*filling, *behind, end)
        expected = b"".join(sent[:20]) + sent[20][: first.size] + b"".join(sent[21:])
        assert receiving.result() == expected
        assert all(write.error is None for write in (*filling, *behind))


@pytest.mark.parametrize("kind", ["udp", "datagrams", "seqpacket"])
def test_messages_keep_their_boundaries(watcher: AccountedWatcher, pairs: Pairs, kind: str) -> None:
    if kind == "udp":
        conn, peer = pairs.udp()
    else:
        conn, peer = pairs.unix(socket.SOCK_DGRAM if kind == "datagrams" else socket.SOCK_SEQPACKET)
    sent = [b"message %d" % number for number in range(100)]
    writes = [watcher.write(conn, part) for part in sent]
    receiving = Background(lambda: [peer.recv(1000) for _ in sent])
    check_in_order(watcher.finish(*writes), writes)
    assert receiving.result() == sent


def test_submitted_by_many_threads_meanwhile(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """Each thread's bytes are in its order, and no write is torn."""
    conn, peer = pairs.tcp(buffers=8192)
    each = 1000

    def submit(name: int) -> list[Request]:
        return [watcher.write(conn, b"%d%07d" % (name, number)) for number in range(each)]

    submitting = [Background(partial(submit, name)) for name in range(4)]
    receiving = Background(lambda: receive_exactly(peer, 8 * 4 * each))
    writes = []
    for thread in submitting:
        writes += thread.result()
    watcher.finish(*writes)
    received = receiving.result()
    records = [received[start : start + 8] for start in range(0, len(received), 8)]
    for name in range(4):
        mine = [record for record in records if record[:1] == b"%d" % name]
        assert mine == [b"%d%07d" % (name, number) for number in range(each)]


def test_while_the_consumer_is_away(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp(buffers=8192)
    writes = [watcher.write(conn, b"%029d\n" % number) for number in range(5000)]
    assert receive_exactly(peer, 150_000) == b"".join(b"%029d\n" % number for number in range(5000))
    wait_until(lambda: watcher.watcher.stats().pending == 0, "the watcher thread to finish")
    check_in_order(watcher.finish(*writes), writes)


def test_reads_go_on_beside_them(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp(buffers=8192)
    read = watcher.read_start(conn)
    writes = [watcher.write(conn, b"x" * 30) for _ in range(10_000)]
    for number in range(10):
        peer.sendall(b"y")
        watcher.harvest_until(partial(read.has, number + 1), "a byte")
    receiving = Background(lambda: receive_exactly(peer, 300_000))
    watcher.finish(*writes)
    receiving.result()
    assert read.stream == b"y" * 10


def test_buffers_may_be_used_again(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """A small buffer is copied when it is submitted, also when it leaves with others later on."""
    conn, peer = pairs.tcp(buffers=8192)
    blocker = watcher.write(conn, bytes(MIB))
    buffer = bytearray(10)
    writes = []
    for number in range(500):
        buffer[:] = b"%010d" % number
        writes.append(watcher.write(conn, buffer))
    buffer[:] = bytes(10)
    receiving = Background(lambda: receive_exactly(peer, MIB + 5000))
    check_in_order(watcher.finish(blocker, *writes), writes)
    assert receiving.result()[MIB:] == b"".join(b"%010d" % number for number in range(500))
