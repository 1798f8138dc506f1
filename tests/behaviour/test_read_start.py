"""read_start(): each arrival is a result of its own, until the end, an error, or read_stop()."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import select
import socket
import threading
from collections.abc import Callable
from functools import partial
from time import monotonic

import pytest

import gaio
from gaio import swap
from tests import child
from tests.accounting import AccountedWatcher, MakeWatcher, Repeating, Request
from tests.backends import Name
from tests.behaviour.test_connect import crowded
from tests.behaviour.test_fork import MAY_FORK
from tests.nest import Nest
from tests.peers import Closable, Pairs, pattern, receive_exactly, receive_until_eof, reset, wait_for_bytes
from tests.waiting import LIMIT, Background, TimeLimit, wait_until

MIB = 1 << 20

STREAMS = ["tcp", "unix", "pipe_to_read"]
MESSAGES = {"udp": None, "unix datagrams": socket.SOCK_DGRAM, "seqpacket": socket.SOCK_SEQPACKET}


def stream(pairs: Pairs, kind: str) -> tuple[Closable, Closable]:
    make: Callable[[], tuple[Closable, Closable]] = getattr(pairs, kind)
    return make()


def messages(pairs: Pairs, kind: str) -> tuple[socket.socket, socket.socket]:
    unix = MESSAGES[kind]
    return pairs.udp() if unix is None else pairs.unix(unix)


def put(peer: Closable, data: bytes) -> None:
    """Send all of it; the peer blocks."""
    if isinstance(peer, socket.socket):
        peer.sendall(data)
    else:
        view = memoryview(data)
        while view:
            view = view[os.write(peer.fileno(), view) :]


def receive(watcher: AccountedWatcher, read: Repeating, size: int) -> None:
    """Harvest until it has brought so many bytes, and no more."""
    watcher.harvest_until(lambda: read.received >= size or read.result, f"{size} bytes")
    assert read.result is None, read
    assert read.received == size


def has_begun_or_ended(read: Repeating) -> bool:
    return read.received > 0 or read.result is not None


def has_messages(read: Repeating, count: int) -> bool:
    return len(read.messages) == count


def all_have(reads: list[Repeating], size: int) -> bool:
    return all(read.received == size for read in reads)


def has_result(request: Request) -> bool:
    return request.result is not None


def stop(watcher: AccountedWatcher, read: Repeating) -> None:
    assert read.conn is not None
    watcher.read_stop(read.conn)
    watcher.finish(read)
    assert read.error is None


# --- arrivals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", STREAMS)
def test_one_arrival_after_the_other(watcher: AccountedWatcher, pairs: Pairs, kind: str) -> None:
    conn, peer = stream(pairs, kind)
    read = watcher.read_start(conn)
    for number in range(100):
        put(peer, b"message %02d" % number)
        receive(watcher, read, 10 * number + 10)
        assert read.messages[-1] == b"message %02d" % number
    stop(watcher, read)


@pytest.mark.parametrize("kind", STREAMS)
def test_many_arrivals_in_order(watcher: AccountedWatcher, pairs: Pairs, kind: str) -> None:
    conn, peer = stream(pairs, kind)
    chooser = random.Random(kind)
    sent = [chooser.randbytes(chooser.randrange(1, 4000)) for _ in range(500)]
    read = watcher.read_start(conn)

    def send() -> None:
        for message in sent:
            put(peer, message)
        peer.close()

    sending = Background(send)
    watcher.finish(read)
    sending.result()
    assert isinstance(read.error, EOFError)
    assert read.stream == b"".join(sent)


def test_the_result_of_an_arrival(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    context = object()
    watcher.watcher.read_start(conn, context=context)
    peer.sendall(b"hello")
    (result,) = watcher.watcher.wait_io(LIMIT)
    assert result.operation is gaio.READ
    assert result.conn is conn
    assert result.context is context
    assert (bytes(result.buffer), result.size, result.error, result.more) == (b"hello", 5, None, True)
    assert result.is_swap_buffer
    assert result.buffer.readonly
    assert result.accepted is None
    assert "READ" in repr(result)
    assert "pending" not in repr(result)
    watcher.watcher.read_stop(conn)
    (last,) = watcher.watcher.wait_io(LIMIT)
    assert last is not result
    assert (last.conn, last.context) == (conn, context)
    assert (last.buffer, last.size, last.error, last.more) == (None, 0, None, False)


def test_a_request_of_another_kind_has_no_more(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    peer.sendall(b"x")
    requests = [watcher.read(conn), watcher.write(conn, b"x"), watcher.write(conn, bytes(MIB)), watcher.shutdown(conn)]
    receiving = Background(lambda: receive_until_eof(peer))
    watcher.finish(*requests)
    receiving.result()
    assert [request.result and request.result.more for request in requests] == [False] * 4


@pytest.mark.parametrize("swap_size", [1, 16, 1000, MIB])
@pytest.mark.parametrize("kind", STREAMS)
def test_no_result_is_larger_than_swap_size(
    make_watcher: MakeWatcher, pairs: Pairs, kind: str, swap_size: int
) -> None:
    watcher = make_watcher(swap_size)
    conn, peer = stream(pairs, kind)
    sent = pattern(min(3 * MIB, 5000 * swap_size))
    read = watcher.read_start(conn)

    def send() -> None:
        put(peer, sent)
        peer.close()

    sending = Background(send)
    watcher.finish(read)
    sending.result()
    assert read.stream == sent  # the accounts look at the size of each


def test_bytes_stay_as_they_are_until_the_next_wait(backend: Name, pairs: Pairs) -> None:
    """Each batch is looked at only after the watcher thread has received more."""
    ends = [pairs.unix() for _ in range(8)]
    sent, received = [b""] * 8, [b""] * 8
    chooser = random.Random(3)
    with gaio.Watcher(swap_size=256, backend=backend) as watcher:

        def send() -> None:
            for number, (_, peer) in enumerate(ends):
                message = chooser.randbytes(chooser.randrange(1, 200))
                sent[number] += message
                peer.sendall(message)

        def take(batch: list[gaio.OpResult]) -> None:
            for result in batch:
                received[result.context] += bytes(result.buffer)

        for number, (conn, _) in enumerate(ends):
            watcher.read_start(conn, context=number)
        for _ in range(40):
            send()
            batch = watcher.wait_io(LIMIT)
            send()
            wait_until(lambda: len(watcher._leader.engine.outbox) >= 8, "the watcher thread to receive more")
            take(batch)
        limit = TimeLimit()
        while received != sent:
            take(watcher.wait_io(limit.left("the rest")))


def test_the_bytes_go_back_as_they_are(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """The server loop that this is for: a result is written back, with nothing else to do."""
    ends = [pairs.tcp() for _ in range(16)]
    for conn, _ in ends:
        watcher.read_start(conn)
    payloads = [pattern(200_000, number) for number in range(4)]

    def talk(number: int) -> bytes:
        _, peer = ends[number]
        sending = Background(partial(peer.sendall, payloads[number % 4]))
        echo = receive_exactly(peer, 200_000)
        sending.result()
        peer.shutdown(socket.SHUT_WR)
        return echo

    clients = [Background(partial(talk, number)) for number in range(16)]
    ended = 0
    limit = TimeLimit()
    while ended < 16:
        batch = watcher.watcher.wait_io(limit.left("the ends"))
        for result in batch:
            watcher._book(result)
            if result.operation is gaio.READ:
                if result.more:
                    watcher.write(result.conn, result.buffer)
                else:
                    assert isinstance(result.error, EOFError)
                    ended += 1
    assert [client.result() for client in clients] == [payloads[number % 4] for number in range(16)]


# --- its end --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", STREAMS)
def test_the_end_comes_after_the_bytes(watcher: AccountedWatcher, pairs: Pairs, kind: str) -> None:
    conn, peer = stream(pairs, kind)
    put(peer, b"the last")
    peer.close()
    read = watcher.read_start(conn)
    watcher.finish(read)
    assert read.stream == b"the last"
    assert isinstance(read.error, EOFError)
    again = watcher.read_start(conn)
    watcher.finish(again)
    assert isinstance(again.error, EOFError)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_half_close(watcher: AccountedWatcher, pairs: Pairs, kind: str) -> None:
    """The other direction is not touched, of either side."""
    conn, peer = getattr(pairs, kind)()
    read = watcher.read_start(conn)
    watcher.finish(watcher.write(conn, b"first"), watcher.shutdown(conn))
    peer.sendall(b"question")
    receive(watcher, read, 8)
    peer.shutdown(socket.SHUT_WR)
    watcher.finish(read)
    assert isinstance(read.error, EOFError)
    assert receive_until_eof(peer) == b"first"


def test_writing_goes_on_after_the_end(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    read = watcher.read_start(conn)
    peer.shutdown(socket.SHUT_WR)
    watcher.finish(read)
    watcher.finish(watcher.write(conn, b"answer"))
    assert receive_exactly(peer, 6) == b"answer"


def test_a_reset(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    read = watcher.read_start(conn)
    peer.sendall(b"before")
    receive(watcher, read, 6)
    reset(peer)
    watcher.finish(read)
    assert isinstance(read.error, ConnectionResetError)
    assert read.stream == b"before"


def test_a_reset_while_nobody_looks(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """The bytes before it may be lost, as with recv(2), but not its error."""
    conn, peer = pairs.tcp()
    read = watcher.read_start(conn)
    assert watcher.wait(0) == []
    peer.sendall(b"before")
    reset(peer)
    watcher.finish(read)
    assert isinstance(read.error, ConnectionResetError)
    assert read.stream in (b"", b"before")


def test_shutdown_of_the_own_side(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """shutdown(2) for reading by another handle of the connection: the end, as a read() would see it."""
    conn, _ = pairs.tcp()
    with conn.dup() as other:
        read = watcher.read_start(conn)
        assert watcher.wait(0) == []
        other.shutdown(socket.SHUT_RD)
        watcher.finish(read)
    assert isinstance(read.error, EOFError)


def test_free(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    read = watcher.read_start(conn)
    peer.sendall(b"x")
    receive(watcher, read, 1)
    behind = watcher.read(conn)
    watcher.free(conn)
    watcher.finish(read, behind)
    assert isinstance(read.error, gaio.ConnClosedError)
    assert isinstance(behind.error, gaio.ConnClosedError)
    assert peer.recv(1) == b""


def test_free_among_arrivals(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """What comes is the beginning of what was sent; the last result comes once, and nothing after it."""
    for round_number in range(20):
        conn, peer = pairs.unix()
        read = watcher.read_start(conn)
        sent = pattern(100_000, round_number % 4)
        peer.setblocking(False)
        peer.send(sent)
        watcher.wait(0)
        watcher.free(conn)
        watcher.finish(read)
        assert isinstance(read.error, gaio.ConnClosedError)
        assert sent.startswith(read.stream)


def test_close(make_watcher: MakeWatcher, pairs: Pairs) -> None:
    watcher = make_watcher()
    ends = [pairs.tcp(), pairs.unix(), pairs.udp(), pairs.unix(socket.SOCK_SEQPACKET)]
    reads = [watcher.read_start(conn) for conn, _ in ends]
    for _, peer in ends:
        peer.send(b"perhaps")
    watcher.close_and_check()
    assert all(isinstance(read.error, gaio.WatcherClosedError) for read in reads)
    assert all(read.messages in ([], [b"perhaps"]) for read in reads)


def test_submitted_to_a_connection_that_was_freed(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, _ = pairs.tcp()
    watcher.finish(watcher.write(conn, b"x"))
    watcher.free(conn)
    with pytest.raises(gaio.ConnClosedError):
        watcher.read_start(conn)


# --- read_stop() ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", STREAMS)
def test_what_comes_after_a_stop_is_for_the_next_read(watcher: AccountedWatcher, pairs: Pairs, kind: str) -> None:
    conn, peer = stream(pairs, kind)
    read = watcher.read_start(conn)
    put(peer, b"before")
    receive(watcher, read, 6)
    stop(watcher, read)
    put(peer, b"after")
    assert watcher.wait(0) == []
    following = watcher.read(conn)
    watcher.finish(following)
    assert following.data == b"after"


@pytest.mark.parametrize("kind", STREAMS)
def test_no_byte_is_lost_around_a_stop(watcher: AccountedWatcher, pairs: Pairs, kind: str) -> None:
    """What had arrived comes before the last result; the rest is found by whoever reads next."""
    for round_number in range(30):
        conn, peer = stream(pairs, kind)
        sent = pattern(10_000, round_number % 4)
        read = watcher.read_start(conn)
        if round_number % 3:
            watcher.wait(0)
        put(peer, sent)
        if round_number % 2:
            watcher.wait(0)
        watcher.read_stop(conn)
        watcher.finish(read)
        assert read.error is None
        left = len(sent) - read.received
        rest = watcher.read_full(conn, bytearray(left)) if left else None
        if rest is not None:
            watcher.finish(rest)
        assert read.stream + bytes(rest.buffer if rest else b"") == sent


def test_what_had_arrived_comes_before_the_last_result(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """The watcher thread had received it, or it was in the kernel when the request was stopped."""
    conn, peer = pairs.tcp()
    read = watcher.read_start(conn)
    peer.sendall(b"first")
    receive(watcher, read, 5)
    with conn_of(watcher, conn) as probe:
        peer.sendall(b"second")
        wait_for_bytes_or_taken(probe)
    stop(watcher, read)
    assert read.stream == b"firstsecond"


def conn_of(watcher: AccountedWatcher, conn: socket.socket) -> socket.socket:
    """Another handle of a delegated connection."""
    connection = watcher.watcher._connections[id(conn)]
    return socket.socket(fileno=os.dup(connection.fd))


def wait_for_bytes_or_taken(probe: socket.socket) -> None:
    """Until bytes are there, or the watcher thread has received them, which is not waited for but for a moment."""
    select.select([probe], [], [], 0.5)


def test_the_rest_comes_out_of_detach(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    sent = pattern(2 * MIB)

    def send() -> None:
        peer.sendall(sent)
        peer.shutdown(socket.SHUT_WR)

    sending = Background(send)
    read = watcher.read_start(conn)
    watcher.harvest_until(lambda: read.received > 10_000, "the beginning")
    stop(watcher, read)
    with watcher.watcher.detach(conn) as sock:
        sock.settimeout(LIMIT)
        rest = receive_until_eof(sock)
    sending.result()
    assert read.stream + rest == sent


@pytest.mark.parametrize("kind", STREAMS)
def test_started_and_stopped_again_and_again(watcher: AccountedWatcher, pairs: Pairs, kind: str) -> None:
    conn, peer = stream(pairs, kind)
    sent = pattern(4 * MIB)
    sending = Background(lambda: put(peer, sent))
    received = bytearray()
    chooser = random.Random(kind)
    while len(received) < len(sent):
        read = watcher.read_start(conn)
        for _ in range(chooser.randrange(3)):
            watcher.wait(0)
        watcher.read_stop(conn)
        watcher.finish(read)
        received += read.stream
        if chooser.random() < 0.5 and len(received) < len(sent):
            once = watcher.read(conn)
            watcher.finish(once)
            received += once.data
    sending.result()
    assert received == sent


def test_stop_from_another_thread_while_bytes_come(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    sent = pattern(8 * MIB)
    sending = Background(lambda: peer.sendall(sent))
    received = bytearray()
    while len(received) < len(sent):
        read = watcher.read_start(conn)
        stopping = Background(lambda: watcher.read_stop(conn))
        watcher.finish(read)
        stopping.result()
        assert read.error is None
        received += read.stream
    sending.result()
    assert received == sent


def test_stop_twice(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    read = watcher.read_start(conn)
    watcher.read_stop(conn)
    watcher.read_stop(conn)
    watcher.finish(read)
    assert read.error is None
    watcher.read_stop(conn)
    following = watcher.read(conn)
    assert watcher.wait(0) == []
    watcher.read_stop(conn)  # which is for what repeats
    peer.sendall(b"x")
    watcher.finish(following)
    assert following.data == b"x"


def test_stop_before_anything_was_done(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """Both are admitted in one go."""
    conn, peer = pairs.tcp()
    peer.sendall(b"early")
    wait_for_bytes([conn])
    read = watcher.read_start(conn)
    watcher.read_stop(conn)
    watcher.finish(read)
    assert read.error is None
    assert read.stream in (b"", b"early")
    if not read.stream:
        rest = watcher.read(conn)
        watcher.finish(rest)
        assert rest.data == b"early"


def test_stop_with_nothing_standing(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, _ = pairs.tcp()
    watcher.finish(watcher.write(conn, b"known"))
    watcher.read_stop(conn)
    assert watcher.wait(0) == []


def test_stop_after_the_end(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    read = watcher.read_start(conn)
    peer.close()
    watcher.finish(read)
    watcher.read_stop(conn)
    assert watcher.wait(0) == []


@pytest.mark.parametrize("how", ["free", "detach", "close"])
def test_stop_when_it_has_gone_is_no_error(watcher: AccountedWatcher, pairs: Pairs, how: str) -> None:
    conn, _ = pairs.tcp()
    watcher.finish(watcher.write(conn, b"known"))
    if how == "free":
        watcher.free(conn)
    elif how == "detach":
        pairs.also_close(watcher.watcher.detach(conn))
    else:
        watcher.watcher.close()
    watcher.read_stop(conn)


def test_stop_of_what_was_never_submitted(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, _ = pairs.tcp()
    pairs.also_close(conn)
    with pytest.raises(gaio.UnsupportedConnError, match="never submitted"):
        watcher.read_stop(conn)
    for nothing in (None, 5, "conn", object()):
        with pytest.raises(gaio.UnsupportedConnError):
            watcher.read_stop(nothing)  # type: ignore[arg-type]


@pytest.mark.parametrize("conn", [None, 5, "conn", object()], ids=lambda conn: type(conn).__name__)
def test_start_of_what_is_no_connection(watcher: AccountedWatcher, conn: Closable) -> None:
    with pytest.raises(gaio.UnsupportedConnError):
        watcher.read_start(conn)


def test_start_of_a_listener(watcher: AccountedWatcher, told_who_listens: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(gaio.UnsupportedConnError):
        watcher.read_start(listener)


@pytest.mark.parametrize("timeout", [-1, float("nan"), "1"])
def test_wrong_timeouts(watcher: AccountedWatcher, pairs: Pairs, timeout: float) -> None:
    conn, _ = pairs.tcp()
    pairs.also_close(conn)
    with pytest.raises((ValueError, TypeError)):
        watcher.read_start(conn, timeout=timeout)
    assert conn.fileno() != -1, "refused, it is the caller's still"


def test_detach_is_refused_while_it_stands(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    read = watcher.read_start(conn)
    for number in range(3):
        with pytest.raises(RuntimeError, match="pending"):
            watcher.watcher.detach(conn)
        peer.sendall(b"x")
        receive(watcher, read, number + 1)
    stop(watcher, read)
    with watcher.watcher.detach(conn) as sock:
        peer.sendall(b"y")
        assert sock.recv(1) == b"y"


# --- beside other requests ------------------------------------------------------------------------------------


def test_reads_before_it_and_behind_it(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    first = watcher.read_full(conn, bytearray(5))
    swap = watcher.read(conn, bytearray(4))
    read = watcher.read_start(conn)
    behind = [watcher.read_full(conn, bytearray(3)), watcher.read(conn)]
    peer.sendall(b"firstswap")
    watcher.finish(first, swap)
    peer.sendall(b"repeated")
    receive(watcher, read, 8)
    assert not any(request.result for request in behind), "these wait for its end"
    stop(watcher, read)
    peer.sendall(b"one")
    watcher.finish(behind[0])
    peer.sendall(b"two")
    watcher.finish(behind[1])
    assert (first.buffer, swap.buffer, read.stream) == (b"first", b"swap", b"repeated")
    assert (behind[0].buffer, behind[1].data) == (b"one", b"two")


def test_a_swap_read_before_it(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """On io_uring it leaves an entry of its own kind behind, and whether there is more to read."""
    for _ in range(3):
        conn, peer = pairs.tcp()
        first, read = watcher.read(conn), watcher.read_start(conn)
        peer.sendall(b"a")
        watcher.finish(first)
        for number in range(5):
            peer.sendall(b"b")
            receive(watcher, read, number + 1)
        peer.close()
        watcher.finish(read)
        assert isinstance(read.error, EOFError)


def test_the_end_is_told_to_those_behind_it(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    requests = [watcher.read_start(conn), watcher.read(conn), watcher.read_start(conn)]
    peer.close()
    watcher.finish(*requests)
    assert all(isinstance(request.error, EOFError) for request in requests)


def test_two_of_them(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """The second waits for the end of the first; a stop ends the one that came first."""
    conn, peer = pairs.tcp()
    first, second = watcher.read_start(conn), watcher.read_start(conn)
    peer.sendall(b"one")
    receive(watcher, first, 3)
    stop(watcher, first)
    assert second.result is None
    peer.sendall(b"two")
    receive(watcher, second, 3)
    stop(watcher, second)
    assert (first.stream, second.stream) == (b"one", b"two")


def test_two_of_them_are_stopped_at_once(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    reads = [watcher.read_start(conn) for _ in range(3)]
    assert watcher.wait(0) == []
    watcher.read_stop(conn)
    watcher.read_stop(conn)
    watcher.finish(*reads[:2])
    assert [read.error for read in reads[:2]] == [None, None]
    assert reads[2].result is None
    peer.sendall(b"x")
    receive(watcher, reads[2], 1)


def test_stop_of_one_that_waits_behind_a_read(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    before = watcher.read(conn)
    read = watcher.read_start(conn, timeout=3600)
    behind = watcher.read(conn, timeout=3600)
    assert watcher.wait(0) == []
    stop(watcher, read)
    assert before.result is None
    peer.sendall(b"a")
    watcher.finish(before)
    peer.sendall(b"b")
    watcher.finish(behind)
    assert (before.data, behind.data) == (b"a", b"b")


def test_while_the_connection_is_being_made(watcher: AccountedWatcher, pairs: Pairs) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        conn = socket.socket()
        pairs.also_close(conn)
        connect, read = watcher.connect(conn, listener.getsockname()), watcher.read_start(conn)
        peer, _ = listener.accept()
        pairs.also_close(peer)
        peer.sendall(b"welcome")
        watcher.finish(connect)
        assert connect.error is None
        receive(watcher, read, 7)
        stop(watcher, read)


# --- deadlines ------------------------------------------------------------------------------------------------


class Clock:
    """The watcher's, which goes faster where a test says so."""

    def __init__(self, watcher: AccountedWatcher) -> None:
        self.ahead = 0.0
        watcher.watcher._leader.engine.clock = lambda: monotonic() + self.ahead


def test_a_deadline_without_a_byte(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    read = watcher.read_start(conn, timeout=0.02)
    watcher.finish(read)
    assert isinstance(read.error, gaio.DeadlineError)
    peer.sendall(b"late")
    late = watcher.read(conn)
    watcher.finish(late)
    assert late.data == b"late"


@pytest.mark.parametrize("kind", STREAMS)
def test_each_byte_puts_the_deadline_off(watcher: AccountedWatcher, pairs: Pairs, kind: str) -> None:
    conn, peer = stream(pairs, kind)
    clock = Clock(watcher)
    read = watcher.read_start(conn, timeout=1000)
    for number in range(10):
        clock.ahead += 600
        put(peer, b"x")
        receive(watcher, read, number + 1)
    clock.ahead += 600
    assert watcher.wait(0) == []
    clock.ahead += 600
    watcher.finish(read)
    assert isinstance(read.error, gaio.DeadlineError)
    assert read.received == 10


def test_a_byte_that_comes_with_the_deadline(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """It arrives, whether the request ends or goes on after it."""
    for _ in range(20):
        conn, peer = pairs.tcp()
        clock = Clock(watcher)
        read = watcher.read_start(conn, timeout=1000)
        assert watcher.wait(0) == []
        peer.sendall(b"x")
        clock.ahead += 2000
        watcher.harvest_until(partial(has_begun_or_ended, read), "the byte or the end")
        if read.result is not None and not read.received:
            rest = watcher.read(conn)
            watcher.finish(rest)
            assert rest.data == b"x"
        elif read.result is None:
            clock.ahead += 500
            assert watcher.wait(0) == [], "it counts from the byte on"
            clock.ahead += 600
            watcher.finish(read)
            assert isinstance(read.error, gaio.DeadlineError)


def test_a_deadline_behind_another_read(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    before, read, behind = watcher.read(conn), watcher.read_start(conn, timeout=0.02), watcher.read(conn)
    watcher.finish(read)
    assert isinstance(read.error, gaio.DeadlineError)
    peer.sendall(b"a")
    watcher.finish(before)
    peer.sendall(b"b")
    watcher.finish(behind)
    assert (before.data, behind.data) == (b"a", b"b")


def test_a_stop_calls_the_deadline_off(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    clock = Clock(watcher)
    read = watcher.read_start(conn, timeout=1000)
    peer.sendall(b"x")
    receive(watcher, read, 1)
    stop(watcher, read)
    clock.ahead += 5000
    following = watcher.read(conn)
    assert watcher.wait(0) == []
    assert following.result is None


def test_deadlines_of_many(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """Those that get bytes stay, those that get none go; in one heap."""
    clock = Clock(watcher)
    ends = [pairs.unix() for _ in range(40)]
    reads = [watcher.read_start(conn, timeout=100 + number) for number, (conn, _) in enumerate(ends)]
    for round_number in range(1, 6):
        clock.ahead += 60
        for _, peer in ends[::2]:
            peer.sendall(b"x")
        watcher.harvest_until(partial(all_have, reads[::2], round_number), "a byte each")
    watcher.finish(*reads[1::2])
    assert all(isinstance(read.error, gaio.DeadlineError) for read in reads[1::2])
    assert not any(read.result for read in reads[::2])


# --- what keeps messages apart --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MESSAGES)
def test_messages_keep_their_boundaries(watcher: AccountedWatcher, pairs: Pairs, kind: str) -> None:
    conn, peer = messages(pairs, kind)
    read = watcher.read_start(conn)
    sent = [pattern(size, 1) for size in (1, 2, 3, 1000, 1, 9000, 5)]
    for number, message in enumerate(sent, 1):
        peer.send(message)
        watcher.harvest_until(partial(has_messages, read, number), "a message")
    stop(watcher, read)
    assert read.messages == sent


@pytest.mark.parametrize("kind", MESSAGES)
def test_many_messages_that_wait_already(watcher: AccountedWatcher, pairs: Pairs, kind: str) -> None:
    """More than one turn takes of one connection."""
    conn, peer = messages(pairs, kind)
    watcher.finish(watcher.write(conn, b"known"))
    sent = []
    peer.setblocking(False)
    for number in range(100):
        try:
            peer.send(b"message %d" % number)
        except BlockingIOError:
            break
        sent.append(b"message %d" % number)
    assert len(sent) > 5
    read = watcher.read_start(conn)
    watcher.harvest_until(lambda: len(read.messages) == len(sent), "the messages")
    assert read.messages == sent


@pytest.mark.parametrize("kind", ["udp", "unix datagrams"])
def test_datagrams_without_a_byte(watcher: AccountedWatcher, pairs: Pairs, kind: str) -> None:
    conn, peer = messages(pairs, kind)
    read = watcher.read_start(conn)
    sent = [b"", b"", b"not empty", b"", b"x"]
    for message in sent:
        peer.send(message)
    watcher.harvest_until(lambda: len(read.messages) == len(sent), "the messages")
    stop(watcher, read)
    assert read.messages == sent


@pytest.mark.parametrize("kind", MESSAGES)
def test_messages_are_cut_to_swap_size(make_watcher: MakeWatcher, pairs: Pairs, kind: str) -> None:
    """As a read() cuts them; the next one is whole."""
    watcher = make_watcher(16)
    conn, peer = messages(pairs, kind)
    read = watcher.read_start(conn)
    for message in (b"x" * 100, b"y" * 16, b"z"):
        peer.send(message)
    watcher.harvest_until(lambda: len(read.messages) == 3, "the messages")
    assert read.messages == [b"x" * 16, b"y" * 16, b"z"]


@pytest.mark.parametrize("kind", MESSAGES)
def test_no_message_is_lost_around_a_stop(watcher: AccountedWatcher, pairs: Pairs, kind: str) -> None:
    conn, peer = messages(pairs, kind)
    received: list[bytes] = []
    for number in range(50):
        read = watcher.read_start(conn)
        if number % 2:
            watcher.wait(0)
        peer.send(b"message %d" % number)
        if number % 3 == 0:
            watcher.wait(0)
        stop(watcher, read)
        received += read.messages
        if len(received) <= number:
            once = watcher.read(conn)
            watcher.finish(once)
            received.append(once.data)
    assert received == [b"message %d" % number for number in range(50)]


def test_the_end_of_a_seqpacket(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.unix(socket.SOCK_SEQPACKET)
    read = watcher.read_start(conn)
    peer.send(b"the last")
    peer.close()
    watcher.finish(read)
    assert read.messages == [b"the last"]
    assert isinstance(read.error, EOFError)


def test_an_error_of_a_datagram_socket(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """Nobody is there: ICMP says so, and that ends it, as it would a read()."""
    conn, peer = pairs.udp()
    read = watcher.read_start(conn)
    assert watcher.wait(0) == []
    peer.close()
    watcher.finish(watcher.write(conn, b"anybody?"), read)
    assert isinstance(read.error, ConnectionRefusedError)


# --- nested in another loop -----------------------------------------------------------------------------------


def test_nested(watcher: AccountedWatcher, pairs: Pairs) -> None:
    nest = Nest(watcher)
    conn, peer = pairs.tcp()
    read = watcher.read_start(conn)
    for number in range(20):
        nest.settle()
        assert nest.look(0) is None
        peer.sendall(b"x")
        limit = TimeLimit()
        while read.received <= number:
            assert nest.look(limit.left("the byte")) is not None, "never readable"
    nest.settle()
    watcher.read_stop(conn)
    nest.finish(read)
    nest.settle()


@pytest.mark.parametrize("kind", [*STREAMS, "udp", "seqpacket"])
def test_nested_with_work_left_behind(make_watcher: MakeWatcher, pairs: Pairs, kind: str) -> None:
    """More is there than a turn takes, and no edge will tell of it: the descriptor stays readable."""
    watcher = make_watcher(64)
    conn, peer = messages(pairs, kind) if kind in MESSAGES else stream(pairs, kind)
    nest = Nest(watcher)
    os.set_blocking(peer.fileno(), False)
    sent = []
    for number in range(1000):
        try:
            os.write(peer.fileno(), b"%063d" % number)
        except (BlockingIOError, ConnectionRefusedError):
            break
        sent.append(b"%063d" % number)
        if kind == "udp" and number == 99:
            break  # what goes beyond the buffer would be lost
    read = watcher.read_start(conn)
    limit = TimeLimit()
    while read.received < 63 * len(sent):
        assert nest.look(limit.left("the rest")) is not None, f"{read.received} bytes came, and then nothing"
    assert read.stream == b"".join(sent)
    nest.settle()


def test_nested_among_others(make_watcher: MakeWatcher, pairs: Pairs) -> None:
    watcher = make_watcher(4096)
    nest = Nest(watcher)
    ends = [pairs.tcp() for _ in range(10)]
    reads = [watcher.read_start(conn) for conn, _ in ends]
    sending = [Background(partial(peer.sendall, pattern(300_000, 1))) for _, peer in ends]
    limit = TimeLimit()
    while any(read.received < 300_000 for read in reads):
        assert nest.look(limit.left("the rest")) is not None, "never readable"
    for thread in sending:
        thread.result()
    assert all(read.stream == pattern(300_000, 1) for read in reads)
    nest.settle()


def test_nested_behind_a_connect_that_nobody_answers(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """The loop sleeps meanwhile."""
    nest = Nest(watcher)
    with crowded(pairs) as address:
        conn = socket.socket()
        pairs.also_close(conn)
        connect, read = watcher.connect(conn, address), watcher.read_start(conn)
        nest.settle()
        assert connect.result is None
        watcher.free(conn)
        nest.finish(connect, read)


def test_nested_deadlines(watcher: AccountedWatcher, pairs: Pairs) -> None:
    nest = Nest(watcher)
    conn, peer = pairs.tcp()
    read = watcher.read_start(conn, timeout=0.05)
    peer.sendall(b"x")
    nest.finish(read)
    assert isinstance(read.error, gaio.DeadlineError)
    nest.settle()


def test_in_asyncio(backend: Name) -> None:
    """Nothing but the watcher's descriptor wakes the loop."""
    ended: list[gaio.OpResult] = []

    def serve(watcher: gaio.Watcher) -> None:
        for result in watcher.wait_io(0):
            if result.operation is gaio.READ:
                if result.more:
                    watcher.write(result.conn, result.buffer)
                else:
                    ended.append(result)
                    watcher.shutdown(result.conn)
            elif result.operation is gaio.SHUTDOWN:
                watcher.free(result.conn)

    def be_client(peer: socket.socket, number: int) -> bool:
        peer.settimeout(LIMIT)
        payload = pattern(300_000, number)
        sending = Background(lambda: peer.sendall(payload))
        received = receive_exactly(peer, len(payload))
        sending.result()
        peer.shutdown(socket.SHUT_WR)
        return received == payload and peer.recv(1) == b""

    async def main(watcher: gaio.Watcher) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(watcher.fileno(), serve, watcher)
        ends = [socket.socketpair() for _ in range(4)]
        for conn, _ in ends:
            watcher.read_start(conn)
        clients = [loop.run_in_executor(None, be_client, peer, number) for number, (_, peer) in enumerate(ends)]
        assert all(await asyncio.wait_for(asyncio.gather(*clients), LIMIT))
        loop.remove_reader(watcher.fileno())
        for _, peer in ends:
            peer.close()

    with gaio.Watcher(backend=backend) as watcher:
        asyncio.run(main(watcher))
    assert len(ended) == 4


# --- a consumer that stays away, and one that floods ------------------------------------------------------------

MOST = 128 * MIB


def send_until_full(peer: Closable, message: bytes, most: int) -> int:
    """How often it went, until there was no room for a whole second."""
    os.set_blocking(peer.fileno(), False)
    for sent in range(most):
        while True:
            try:
                count = os.write(peer.fileno(), message)
                assert count == len(message) or isinstance(peer, socket.socket)
                break
            except BlockingIOError:
                if not select.select([], [peer], [], 1)[1]:
                    return sent
    return most


def send_until_it_waits(peer: Closable, chunk: bytes) -> int:
    """How many bytes went, until there was no room for a whole second."""
    os.set_blocking(peer.fileno(), False)
    sent = 0
    while sent < MOST:
        try:
            sent += os.write(peer.fileno(), chunk)
        except BlockingIOError:
            if not select.select([], [peer], [], 1)[1]:
                break
    assert sent < 64 * MIB, "the peer was never made to wait"
    return sent


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tcp", "unix", "pipe_to_read", "seqpacket", "unix datagrams"])
def test_what_waits_undelivered_is_bounded(watcher: AccountedWatcher, pairs: Pairs, kind: str) -> None:
    """The consumer stays away: the peer has to wait. Then everything arrives."""
    conn, peer = messages(pairs, kind) if kind in MESSAGES else stream(pairs, kind)
    read = watcher.read_start(conn)
    assert watcher.wait(0) == []
    sent = send_until_it_waits(peer, pattern(4096))
    watcher.harvest_until(lambda: read.received == sent, "all of it")
    put(peer, b"goes on")
    watcher.harvest_until(lambda: read.received == sent + 7, "what comes then")
    assert read.stream.endswith(b"goes on")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pipe_to_read", "seqpacket", "unix datagrams"])
def test_large_messages_that_wait_undelivered_are_bounded(watcher: AccountedWatcher, pairs: Pairs, kind: str) -> None:
    conn, peer = messages(pairs, kind) if kind in MESSAGES else stream(pairs, kind)
    read = watcher.read_start(conn)
    assert watcher.wait(0) == []
    sent = send_until_it_waits(peer, pattern(60_000))
    watcher.harvest_until(lambda: read.received == sent, "all of it")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["seqpacket", "unix datagrams"])
def test_messages_of_one_byte_that_wait_undelivered_are_bounded(
    watcher: AccountedWatcher, pairs: Pairs, kind: str
) -> None:
    conn, peer = messages(pairs, kind)
    read = watcher.read_start(conn)
    assert watcher.wait(0) == []
    sent = send_until_full(peer, b"x", 50_000)
    assert sent < 25_000, "the peer was never made to wait"
    watcher.harvest_until(lambda: len(read.messages) == sent, "all of them")
    os.set_blocking(peer.fileno(), True)
    peer.send(b"goes on")
    watcher.harvest_until(lambda: len(read.messages) == sent + 1, "what comes then")


@pytest.mark.slow
def test_bytes_of_many_connections_that_wait_undelivered_are_bounded(
    watcher: AccountedWatcher, pairs: Pairs
) -> None:
    """One byte at a time, which takes little of the arena: it is the results that are counted."""
    ends = [pairs.tcp() for _ in range(40)]
    reads = [watcher.read_start(conn) for conn, _ in ends]
    assert watcher.wait(0) == []
    engine = watcher.watcher._leader.engine
    outbox = engine.outbox
    rounds = 0

    def have_come(count: int) -> bool:
        """Each by itself: no two bytes make one arrival."""
        return len(outbox) >= count or engine.backend.full

    while not engine.backend.full:
        assert rounds < 600, "there is no end to it"
        for _, peer in ends:
            peer.send(b"x")
        rounds += 1
        wait_until(partial(have_come, rounds * len(ends)), "the watcher thread")
    for _ in range(200):
        for _, peer in ends:
            peer.send(b"x")
        rounds += 1
    assert len(watcher.wait(LIMIT)) < 25_000
    watcher.harvest_until(partial(all_have, reads, rounds), "all of them")
    for _, peer in ends:
        peer.send(b"y")
    watcher.harvest_until(partial(all_have, reads, rounds + 1), "what comes then")


@pytest.mark.parametrize("kind", ["tcp", "unix", "pipe_to_read", "seqpacket"])
def test_a_flood_beside_others(watcher: AccountedWatcher, pairs: Pairs, kind: str) -> None:
    """One connection always has more. The others' messages come all the same, within so many batches."""
    conn, peer = messages(pairs, kind) if kind in MESSAGES else stream(pairs, kind)
    others = [pairs.tcp() for _ in range(8)]
    ended = threading.Event()

    def flood() -> None:
        chunk = bytes(32768)
        os.set_blocking(peer.fileno(), False)
        while not ended.is_set():
            try:
                os.write(peer.fileno(), chunk)
            except BlockingIOError:
                select.select([], [peer], [], 0.1)

    flooding = Background(flood)
    try:
        read = watcher.read_start(conn)
        reads = [watcher.read_start(other) for other, _ in others]
        watcher.harvest_until(lambda: read.received > MIB, "the flood")
        for round_number in range(1, 11):
            before = read.received
            for _, other_peer in others:
                other_peer.sendall(b"message")
            batches = watcher.harvest_until(
                partial(all_have, reads, 7 * round_number),
                "the others' messages",
            )
            assert batches <= 30
            watcher.harvest_until(partial(read.has, before + 1), "the flood to go on")
    finally:
        ended.set()
        flooding.result()


def test_a_flood_does_not_keep_one_shot_reads_waiting(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    other, other_peer = pairs.tcp()
    ended = threading.Event()

    def flood() -> None:
        chunk = bytes(65536)
        peer.setblocking(False)
        while not ended.is_set():
            try:
                peer.send(chunk)
            except BlockingIOError:
                select.select([], [peer], [], 0.1)

    flooding = Background(flood)
    try:
        read = watcher.read_start(conn)
        watcher.harvest_until(lambda: read.received > MIB, "the flood")
        for _ in range(20):
            once = watcher.read(other)
            other_peer.sendall(b"x")
            assert watcher.harvest_until(partial(has_result, once), "the other's byte") <= 30
    finally:
        ended.set()
        flooding.result()


@pytest.mark.slow
def test_a_consumer_that_comes_by_now_and_then(make_watcher: MakeWatcher, pairs: Pairs) -> None:
    """The arena is full again and again, and freed again."""
    watcher = make_watcher(1024)
    ends = [pairs.tcp() if number % 2 else pairs.unix() for number in range(6)]
    reads = [watcher.read_start(conn) for conn, _ in ends]
    sending = [Background(partial(peer.sendall, pattern(3 * MIB, number % 4))) for number, (_, peer) in enumerate(ends)]
    leader = watcher.watcher._leader
    for turn in itertools.count():
        watcher.wait(0 if turn % 2 else LIMIT)
        if all(read.received == 3 * MIB for read in reads):
            break
        if turn % 20 == 0:  # until the watcher thread has had the lead
            seen = leader.visits
            leader.end_tick()
            select.select([], [], [], 0.005)
            assert leader.visits == seen
    for thread in sending:
        thread.result()
    assert all(read.stream == pattern(3 * MIB, number % 4) for number, read in enumerate(reads))


# --- threads and processes ------------------------------------------------------------------------------------


def test_the_consumer_changes(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """What a thread has asked of io_uring ends with it; the request does not."""
    conn, peer = pairs.tcp()
    read = watcher.read_start(conn)
    for number in range(10):
        peer.sendall(b"x")
        Background(partial(receive, watcher, read, number + 1)).result()
    peer.sendall(b"y")
    receive(watcher, read, 11)


def test_fork(backend: Name) -> None:
    code = """
        import os, socket, sys
        import gaio

        watcher = gaio.Watcher(backend={backend!r})
        conn, peer = socket.socketpair()
        tcp = socket.create_server(("127.0.0.1", 0))
        client = socket.create_connection(tcp.getsockname())
        server, _ = tcp.accept()
        tcp.close()
        watcher.read_start(conn, context="unix")
        watcher.read_start(server, context="tcp")
        received = {{"unix": b"", "tcp": b""}}

        def receive(size):
            while min(map(len, received.values())) < size:
                for result in watcher.wait_io(60):
                    assert result.more and result.error is None, result
                    received[result.context] += bytes(result.buffer)

        peer.sendall(b"a")
        client.sendall(b"a")
        receive(1)
        for number in range(3):
            peer.sendall(b"b")
            client.sendall(b"b")
            pid = os.fork()
            if pid == 0:
                refused = 0
                for call, argument in ((watcher.read_start, conn), (watcher.wait_io, 0)):
                    try:
                        call(argument)
                    except gaio.WatcherClosedError:
                        refused += 1
                watcher.read_stop(conn)
                watcher.close()
                os._exit(0 if refused == 2 else 1)
            assert os.waitpid(pid, 0)[1] == 0
            receive(2 + 2 * number)
            peer.sendall(b"c")
            client.sendall(b"c")
            receive(3 + 2 * number)
        assert received == {{"unix": b"abcbcbc", "tcp": b"abcbcbc"}}, received
        watcher.close()
        assert peer.recv(1) == b"" and client.recv(1) == b"", "no copy stays open"
        peer.close()
        client.close()
        print("good")
    """
    assert child.output_of(code.format(backend=backend), *MAY_FORK) == "good"


def test_dropped_by_its_owner(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """A request that stands keeps its connection, as every request does."""
    conn, peer = pairs.unix()
    reference = id(conn)
    read = watcher.read_start(conn)
    pairs._conns.clear()
    del conn
    peer.sendall(b"x")
    receive(watcher, read, 1)
    assert id(read.conn) == reference


def test_completions_count_each_result(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.unix(socket.SOCK_DGRAM)
    read = watcher.read_start(conn)
    assert watcher.wait(0) == []
    for _ in range(5):
        peer.send(b"x")
    watcher.harvest_until(lambda: len(read.messages) == 5, "the messages")
    assert watcher.watcher.stats().pending == 1
    stop(watcher, read)
    stats = watcher.watcher.stats()
    assert (stats.completions, stats.pending) == (6, 0)


def test_floods_that_fill_the_arena_take_turns_with_others(
    make_watcher: MakeWatcher, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has found no room is the first the next time, though floods want more as soon as they have had theirs."""
    monkeypatch.setattr(swap, "SEGMENTS", 4)
    watcher = make_watcher(4096)
    floods = [pairs.unix() for _ in range(8)]
    calm, calm_peer = pairs.unix()
    for _, peer in floods:
        peer.sendall(bytes(80_000))
    for conn, _ in floods:
        watcher.read_start(conn)
    read = watcher.read_start(calm)
    watcher.wait(1)
    calm_peer.sendall(b"x")
    batches = 0
    while not read.received:
        watcher.wait(1)
        batches += 1
    assert batches <= 8
