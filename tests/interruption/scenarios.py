"""The kinds of turns: each sets its stage, yields what is to be interrupted, and then sees everything through.

When a scenario is resumed, the function it yielded has been cut short somewhere or has run to its end. From there on
it goes on as a caller would, to the outcome that a caller may rely on.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import resource
import select
import socket
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gaio
from gaio.closing import Sends
from tests import backends, leaks
from tests.accounting import Request, is_cut_off
from tests.interruption.opcodes import Strike
from tests.interruption.world import SECONDS, ResumedBy, World
from tests.nest import Nest
from tests.peers import Closable, fill, pattern, receive_exactly, receive_until_eof, reset
from tests.waiting import TimeLimit, wait_until

Act = Callable[[], object]
Play = Callable[[World], Iterator[Act]]


class Scenario(NamedTuple):
    name: str
    play: Play
    swap_size: int


SCENARIOS: list[Scenario] = []


def scenario(swap_size: int = 4096) -> Callable[[Play], Scenario]:
    def enter(play: Play) -> Scenario:
        entered = Scenario(play.__name__, play, swap_size)
        SCENARIOS.append(entered)
        return entered

    return enter


def play(
    scenario: Scenario, backend: backends.Name, *strikes: Strike, resumed_by: ResumedBy = "consumer"
) -> Strike:
    """Play the scenario, what it does being begun and struck once for each of the strikes, one after the other, until
    it comes to its end.

    Returns the last of those that were tried.
    """
    tried: list[Strike] = []
    try:
        with World(backend, scenario.swap_size) as world:
            steps = scenario.play(world)
            act = next(steps)
            for strike in strikes:
                tried.append(strike)
                strike.interrupts(act)
                if strike.place is None:
                    break
            if resumed_by == "watcher thread" and not world.watcher.watcher.closed:
                world.hand_to_thread()
            for _ in steps:
                pass
            if not world.watcher.watcher.closed:
                world.prove_it_goes_on()
    except BaseException as error:
        raise AssertionError(f"interrupted at {[(str(s.at), s.place) for s in tried]}") from error
    return tried[-1]


# --- results without I/O ----------------------------------------------------------------------------------------


@scenario()
def post_and_fetch(world: World) -> Iterator[Act]:
    """What stands before and behind it in the inbox is dealt with as well."""
    conn, peer = world.pairs.tcp()
    read, first, second = world.watcher.read(conn), world.watcher.post(), world.watcher.post()
    peer.send(b"x")
    yield lambda: world.watcher.finish(first, second, read)
    world.watcher.finish(first, second, read)
    assert (first.error, second.error, read.data) == (None, None, b"x")


@scenario()
def post_while_interrupted(world: World) -> Iterator[Act]:
    """The call itself: it posts, or it does not."""
    yield world.watcher.post
    posted = world.watcher.post()
    world.watcher.finish(posted)
    assert all(other.result is None or other.error is None for other in world.watcher.uncertain)


@scenario()
def timers_come_due(world: World) -> Iterator[Act]:
    (first, _), (second, _) = world.watcher.after(0.0), world.watcher.after(0.001)
    (cancelled, timer), (later, _) = world.watcher.after(1000), world.watcher.after(1000)
    yield lambda: world.watcher.finish(first, second)
    world.watcher.finish(first, second)
    assert timer.cancel()
    world.watcher.cancelled(cancelled)
    assert later.result is None


@scenario()
def cancel_a_timer(world: World) -> Iterator[Act]:
    """Once it has said that the result will not come, none comes; interrupted it may have said so to nobody."""
    request, timer = world.watcher.after(1000)
    world.watcher.cancelled(request)  # a result now would be one that nobody waits for

    def cancel() -> None:
        timer.cancel()
        world.watcher.wait(0)

    yield cancel
    assert timer.cancel()
    world.watcher.finish(world.watcher.post())


@scenario()
def close_with_timers(world: World) -> Iterator[Act]:
    requests = [world.watcher.after(1000)[0] for _ in range(2)]
    posted = world.watcher.post()
    yield world.watcher.watcher.close
    world.watcher.close_and_check()
    assert posted.error is None
    assert all(isinstance(request.error, gaio.WatcherClosedError) for request in requests)


# --- finish() ---------------------------------------------------------------------------------------------------


@scenario()
def finish_with_all_that_there_can_be(world: World) -> Iterator[Act]:
    """Writes before it, reads that end, bytes that are dropped."""
    conn, peer = world.pairs.unix()
    reads = [world.watcher.read_start(conn), world.watcher.read(conn), world.watcher.read(conn, timeout=1000)]
    write = world.watcher.write(conn, b"the end")
    finish = world.watcher.finish_conn(conn, timeout=1000)
    peer.send(b"dropped")
    peer.shutdown(socket.SHUT_WR)
    yield lambda: world.watcher.finish(finish, write, *reads)
    world.watcher.finish(finish, write, *reads)
    assert (finish.error, write.error) == (None, None)
    assert receive_until_eof(peer) == b"the end"


@scenario()
def finish_waits_and_goes_on(world: World) -> Iterator[Act]:
    conn, peer = world.pairs.tcp()
    finish = world.watcher.finish_conn(conn, timeout=1000)
    yield lambda: world.watcher.wait(0)
    world.watcher.wait(0)
    assert receive_until_eof(peer) == b""
    peer.send(b"dropped")
    peer.close()
    world.watcher.finish(finish)
    assert finish.error is None
    assert world.watcher.watcher.stats().conns == 0


@scenario()
def finish_is_cut_off(world: World) -> Iterator[Act]:
    """By its time and by free(), before FIN and after it."""
    (draining, to_draining), (full, _), (freed, _) = world.pairs.tcp(), world.pairs.unix(), world.pairs.unix()
    first = world.watcher.finish_conn(draining, timeout=0.0)
    writes = [world.watcher.write(conn, bytes(4 << 20)) for conn in (full, freed)]
    second, third = world.watcher.finish_conn(full, timeout=0.0), world.watcher.finish_conn(freed)
    world.watcher.free(freed)
    yield lambda: world.watcher.finish(first, second, third, *writes)
    world.watcher.finish(first, second, third, *writes)
    assert isinstance(first.error, gaio.DeadlineError)
    assert isinstance(second.error, gaio.DeadlineError)
    assert isinstance(third.error, gaio.ConnClosedError)
    assert all(isinstance(write.error, gaio.ConnClosedError) for write in writes)
    assert world.receive_until_closed(to_draining) == b""


@scenario()
def finish_itself(world: World) -> Iterator[Act]:
    """The call: it can be made again, and what was taken yields its result."""
    conn, peer = world.pairs.tcp()
    write = world.watcher.write(conn, b"x")

    def finish() -> None:
        with contextlib.suppress(gaio.ConnClosedError):  # it has been finished already
            world.watcher.finish_conn(conn)

    yield finish
    finish()
    peer.close()
    world.watcher.finish(write)
    limit = TimeLimit(SECONDS)
    while world.watcher.watcher.stats().conns:
        world.watcher.wait(limit.left("the connection to be closed"))


# --- reads ----------------------------------------------------------------------------------------------------


@scenario()
def read_into_the_swap_arena(world: World) -> Iterator[Act]:
    (one, to_one), (two, to_two) = world.pairs.tcp(), world.pairs.tcp()
    first, second, other = (world.watcher.read(conn) for conn in (one, one, two))
    to_one.send(b"first")
    to_two.send(b"other")
    yield lambda: world.watcher.finish(first, other)
    world.watcher.finish(first, other)
    to_one.send(b"second")
    world.watcher.finish(second)
    assert (first.data, second.data, other.data) == (b"first", b"second", b"other")


@scenario()
def read_batch_after_batch(world: World) -> Iterator[Act]:
    """The memory of one batch is given back when the next one is fetched."""
    conn, peer = world.pairs.unix(socket.SOCK_DGRAM)
    reads = [world.watcher.read(conn) for _ in range(2)]
    for number in range(2):
        peer.send(b"message %d" % number)
    yield lambda: world.watcher.finish(*reads)
    world.watcher.finish(*reads)
    assert [read.data for read in reads] == [b"message 0", b"message 1"]


@scenario(swap_size=16)
def read_beyond_the_swap_arena(world: World) -> Iterator[Act]:
    """More in one batch than the arena holds: the rest gets memory of its own."""
    pairs = [world.pairs.unix() for _ in range(4)]
    reads = [world.watcher.read(conn) for conn, _ in pairs]
    for number, (_, peer) in enumerate(pairs):
        peer.send(b"message number %d" % number)
    yield lambda: world.watcher.finish(*reads)
    more: list[Request] = []
    for (conn, _), read in zip(pairs, reads, strict=True):
        world.watcher.finish(read)
        if len(read.data) < 16:  # io_uring's buffers are a part of the arena each
            more.append(world.watcher.read(conn))
    world.watcher.finish(*more)
    assert all(read.data == (b"message number %d" % number)[: read.size] for number, read in enumerate(reads))


@scenario(swap_size=16)
def read_datagrams_and_their_senders(world: World) -> Iterator[Act]:
    """Into the arena and into a buffer; one of each has no room."""
    (conn, address), (peer, from_there) = world.pairs.bound(), world.pairs.bound()
    buffers = [bytearray(16) for _ in range(2)]
    reads = [world.watcher.read(conn, buffer) for buffer in (None, None, *buffers)]
    messages = [b"short", b"longer than there is room", b"", b"longer than the buffer is"]
    for message in messages:
        peer.sendto(message, address)
    yield lambda: world.watcher.finish(*reads)
    world.watcher.finish(*reads)
    assert [read.data for read in reads[:2]] == [message[:16] for message in messages[:2]]
    assert [bytes(buffer) for buffer in buffers] == [bytes(16), messages[3][:16]]
    assert [read.size for read in reads] == [5, 16, 0, 16]
    assert [is_cut_off(read.error) for read in reads] == [False, True, False, True]
    assert [read.address for read in reads] == [from_there] * 4


@scenario(swap_size=16)
def datagrams_that_arrive(world: World) -> Iterator[Act]:
    """More than one call brings."""
    (conn, address), (peer, from_there) = world.pairs.bound(), world.pairs.bound()
    read = world.watcher.read_start(conn)
    messages = [b"%d" % number * (number % 12) for number in range(20)]
    for message in messages:
        peer.sendto(message, address)
    yield lambda: world.watcher.harvest_until(lambda: len(read.messages) == 20, "the datagrams")
    world.watcher.harvest_until(lambda: len(read.messages) == 20, "the datagrams")
    assert read.messages == [message[:16] for message in messages]
    assert read.cut_off == [message[:16] for message in messages if len(message) > 16]
    assert read.addresses == [from_there] * 20


@scenario()
def datagrams_to_addresses(world: World) -> Iterator[Act]:
    """The last has to wait until its receiver has room, of which nothing tells."""
    (conn, address), (peer, to_peer) = world.pairs.bound(), world.pairs.bound()
    named, (full, to_full) = world.pairs.bound(socket.AF_UNIX)[0], world.pairs.bound(socket.AF_UNIX)
    filled = fill(world.pairs.unbound(socket.AF_UNIX), to_full)
    writes = [world.watcher.write(conn, message, address=to_peer) for message in (b"first", [b"sec", b"ond"])]
    writes.append(world.watcher.write(conn, b"to nowhere", address=("127.0.0.1", 0)))
    waits = world.watcher.write(named, b"last", address=to_full)
    yield lambda: world.watcher.finish(*writes)
    world.watcher.finish(*writes)
    assert [write.error is None for write in writes] == [True, True, False]
    assert [peer.recvfrom(9) for _ in range(2)] == [(b"first", address), (b"second", address)]
    for _ in range(filled):
        full.recv(9)
    world.watcher.finish(waits)
    assert full.recv(9) == b"last"


@scenario()
def read_into_own_buffer(world: World) -> Iterator[Act]:
    conn, peer = world.pairs.tcp()
    whole, part = bytearray(5), bytearray(10)
    first, second = world.watcher.read(conn, whole), world.watcher.read(conn, part)
    peer.send(b"first")
    yield lambda: world.watcher.finish(first)
    world.watcher.finish(first)
    peer.send(b"second")
    world.watcher.finish(second)
    assert whole == b"first"
    assert part[: second.size] == b"second"


@scenario()
def read_full_in_pieces(world: World) -> Iterator[Act]:
    conn, peer = world.pairs.tcp()
    buffer = bytearray(10)
    request = world.watcher.read_full(conn, buffer)
    following = world.watcher.read(conn)
    pieces = [b"and more", b"456789", b"0123"]
    assert world.watcher.wait(0) == []

    def act() -> None:
        while pieces:
            peer.send(pieces.pop())
            world.watcher.wait(0)

    yield act
    act()
    world.watcher.finish(request, following)
    assert buffer == b"0123456789"
    assert following.data == b"and more"


@scenario()
def read_the_end(world: World) -> Iterator[Act]:
    conn, peer = world.pairs.tcp()
    last, end = world.watcher.read(conn), world.watcher.read(conn)
    peer.send(b"the last")
    peer.shutdown(socket.SHUT_WR)
    yield lambda: world.watcher.finish(last, end)
    world.watcher.finish(last, end)
    assert last.data == b"the last"
    assert isinstance(end.error, EOFError)


@scenario()
def read_a_reset(world: World) -> Iterator[Act]:
    conn, peer = world.pairs.tcp()
    read = world.watcher.read(conn)
    assert world.watcher.wait(0) == []
    reset(peer)
    yield lambda: world.watcher.finish(read)
    world.watcher.finish(read)
    assert isinstance(read.error, ConnectionResetError)


@scenario()
def read_from_a_pipe(world: World) -> Iterator[Act]:
    conn, peer = world.pairs.pipe_to_read()
    buffer = bytearray(20)
    reads = [world.watcher.read(conn), world.watcher.read(conn, buffer)]
    assert world.watcher.wait(0) == []
    peer.write(b"through")
    yield lambda: world.watcher.finish(reads[0])
    world.watcher.finish(reads[0])
    peer.write(b"the pipe")
    world.watcher.finish(reads[1])
    assert reads[0].data == b"through"
    assert buffer[: reads[1].size] == b"the pipe"


@scenario()
def read_datagrams(world: World) -> Iterator[Act]:
    """Without a byte, a datagram is a message all the same."""
    conn, peer = world.pairs.udp()
    reads = [world.watcher.read(conn) for _ in range(2)]
    for message in (b"", b"not empty"):
        peer.send(message)
    yield lambda: world.watcher.finish(*reads)
    world.watcher.finish(*reads)
    assert [(read.data, read.error) for read in reads] == [(b"", None), (b"not empty", None)]


# --- reads that repeat ----------------------------------------------------------------------------------------


def _until(world: World, condition: Callable[[], object], waiting_for: str) -> None:
    limit = TimeLimit(SECONDS)
    while not condition():
        world.watcher.wait(limit.left(waiting_for))


@scenario()
def read_again_and_again(world: World) -> Iterator[Act]:
    """Arrivals of several connections in one turn, of every kind that a backend treats in its own way."""
    ends: list[tuple[Closable, Closable]] = [world.pairs.tcp(), world.pairs.unix(socket.SOCK_DGRAM)]
    ends += [world.pairs.tcp(), world.pairs.unix(), world.pairs.pipe_to_read(), world.pairs.udp()]
    reads = [world.watcher.read_start(conn) for conn, _ in ends]
    assert world.watcher.wait(0) == []
    for _, peer in ends:
        os.write(peer.fileno(), b"first")
    yield lambda: _until(world, lambda: all(read.received == 5 for read in reads), "the first")
    _until(world, lambda: all(read.received >= 5 for read in reads), "the first")
    for _, peer in ends:
        os.write(peer.fileno(), b"second")
    _until(world, lambda: all(read.received >= 11 for read in reads), "the second")
    assert [read.stream for read in reads] == [b"firstsecond"] * len(reads)
    assert reads[1].messages == reads[5].messages == [b"first", b"second"]


@scenario(swap_size=16)
def read_a_flood_again_and_again(world: World) -> Iterator[Act]:
    """More than a turn takes, and in pieces, as a small arena takes it; and then the end."""
    conn, peer = world.pairs.tcp()
    datagrams, to_datagrams = world.pairs.unix(socket.SOCK_DGRAM)
    read, messages = world.watcher.read_start(conn), world.watcher.read_start(datagrams)
    sent = pattern(600)
    peer.sendall(sent)
    peer.shutdown(socket.SHUT_WR)
    for number in range(5):
        to_datagrams.send(b"message %d" % number)

    def act() -> None:
        _until(world, lambda: read.result and len(messages.messages) == 5, "all of it")

    yield act
    _until(world, lambda: read.result and len(messages.messages) >= 5, "all of it")
    assert read.stream == sent
    assert isinstance(read.error, EOFError)
    assert messages.messages == [b"message %d" % number for number in range(5)]


@scenario()
def read_datagrams_among_bytes(world: World) -> Iterator[Act]:
    """Of both there is something in the completion queue at the same time: the bytes first, and then the datagram."""
    (conn, peer), (datagrams, to_datagrams) = world.pairs.tcp(), world.pairs.unix(socket.SOCK_DGRAM)
    read, messages = world.watcher.read_start(conn), world.watcher.read_start(datagrams)
    assert world.watcher.wait(0) == []
    for number in range(3):
        to_datagrams.send(b"message %d" % number)
    sent = 0

    def act() -> None:
        nonlocal sent
        limit = TimeLimit(SECONDS)
        while len(messages.messages) < 3:
            peer.send(b"x")
            sent += 1
            world.watcher.wait(0)
            limit.left("the messages")

    yield act
    act()
    to_datagrams.send(b"the last")
    _until(world, lambda: len(messages.messages) >= 4 and read.received >= sent, "the rest")
    assert messages.messages == [b"message 0", b"message 1", b"message 2", b"the last"]
    assert read.received == sent


@scenario()
def stop_reading(world: World) -> Iterator[Act]:
    """Bytes and the stop come together: no byte is lost or doubled, and what comes later is for the next read."""
    ends = [world.pairs.tcp(), world.pairs.unix(socket.SOCK_SEQPACKET)]
    reads = [world.watcher.read_start(conn) for conn, _ in ends]
    behind = [world.watcher.read(conn) for conn, _ in ends]
    assert world.watcher.wait(0) == []
    for _, peer in ends:
        peer.send(b"before")

    def act() -> None:
        for conn, _ in ends:
            world.watcher.read_stop(conn)
        world.watcher.finish(*reads)

    yield act
    act()
    assert [read.error for read in reads] == [None, None]
    for (_, peer), read in zip(ends, reads, strict=True):
        if read.received:
            peer.send(b"behind")
    world.watcher.finish(*behind)
    for read, following in zip(reads, behind, strict=True):
        assert (read.stream, following.data) in [(b"before", b"behind"), (b"", b"before")]


@scenario()
def deadline_of_a_read_that_repeats(world: World) -> Iterator[Act]:
    """One gets a byte when its deadline has passed, and one does not."""
    (one, to_one), (two, _), (three, to_three) = (world.pairs.tcp() for _ in range(3))
    reads = [world.watcher.read_start(conn, timeout=0.001) for conn in (one, two, three)]
    world.watcher.wait(0)
    to_one.send(b"x")
    to_three.send(b"x")
    yield lambda: world.watcher.finish(*reads)
    world.watcher.finish(*reads)
    assert all(isinstance(read.error, gaio.DeadlineError) for read in reads)
    for conn, read in ((one, reads[0]), (three, reads[2])):
        if not read.received:
            rest = world.watcher.read(conn)
            world.watcher.finish(rest)
            assert rest.data == b"x"


@scenario()
def free_a_read_that_repeats(world: World) -> Iterator[Act]:
    conn, peer = world.pairs.tcp()
    read = world.watcher.read_start(conn)
    assert world.watcher.wait(0) == []
    peer.send(b"before")

    def act() -> None:
        world.watcher.free(conn)
        world.watcher.finish(read)

    yield act
    act()
    assert isinstance(read.error, gaio.ConnClosedError)
    assert read.stream in (b"", b"before")


# --- writes ---------------------------------------------------------------------------------------------------


@scenario()
def write_many_small_ones(world: World) -> Iterator[Act]:
    """They leave together, as far as there is room: what the kernel takes ends in the middle of one of them."""
    conn, peer = world.pairs.unix()
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    sent = [pattern(700, number % 4) for number in range(20)]
    writes = [world.watcher.write(conn, part) for part in sent]
    large = world.watcher.write(conn, bytearray(10_000))
    last = [world.watcher.write(conn, b"a"), world.watcher.write(conn, b"b", timeout=1000)]
    last.append(world.watcher.shutdown(conn))
    received = bytearray()
    peer.setblocking(False)
    wanted = 20 * 700 + 10_000 + 2

    def act() -> None:
        limit = TimeLimit(SECONDS)
        while len(received) < wanted:
            world.watcher.wait(0)
            with contextlib.suppress(BlockingIOError):
                received.extend(peer.recv(1000))
            limit.left(f"the last {wanted - len(received)} bytes")

    yield act
    act()
    world.watcher.finish(*writes, large, *last)
    assert received == b"".join(sent) + bytes(10_000) + b"ab"
    assert not any(request.error for request in (*writes, large, *last))
    assert world.watcher.watcher.unsent(conn) == 0


@scenario()
def free_among_small_writes(world: World) -> Iterator[Act]:
    """The sizes of all of them tell what the peer gets."""
    conn, peer = world.pairs.unix()
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    sent = [pattern(700, number % 4) for number in range(20)]
    writes = [world.watcher.write(conn, part) for part in sent]

    def act() -> None:
        world.watcher.wait(0)
        world.watcher.free(conn)
        world.watcher.finish(*writes)

    yield act
    act()
    world.watcher.wait(0)
    assert receive_until_eof(peer) == b"".join(sent)[: sum(write.size for write in writes)]
    assert all(write.size == 700 if write.error is None else write.size < 700 for write in writes)


@scenario(swap_size=65536)
def write_large_views_where_they_are(world: World) -> Iterator[Act]:
    """They are begun, or copied, before their memory is written anew."""
    source, to_source = world.pairs.unix()
    conn, peer = world.pairs.unix()
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    messages = [pattern(40_000, number) for number in range(3)]
    received, written = bytearray(), bytearray()
    writes: list[Request] = []
    peer.setblocking(False)

    def take() -> None:
        with contextlib.suppress(BlockingIOError):
            received.extend(peer.recv(3000))

    read = world.watcher.read_start(source)
    to_source.sendall(messages[0])
    _until(world, lambda: read.received >= 40_000, "the first message")
    view = world.watcher.last_view
    assert view is not None
    start = read.received - len(view)
    writes += [world.watcher.write(conn, view), world.watcher.write(conn, view[1:])]
    written += messages[0][start:] + messages[0][start + 1 :]
    to_source.sendall(messages[1])

    def act() -> None:
        limit = TimeLimit(SECONDS)
        while read.received < 80_000:
            world.watcher.wait(0)
            limit.left("the second message")
        while len(received) < len(written):
            world.watcher.wait(0)
            take()
            limit.left("what was written")

    yield act
    to_source.sendall(messages[2])
    act()
    _until(world, lambda: read.received == 120_000, "the third message")
    world.watcher.finish(*writes)
    assert read.stream == b"".join(messages)
    assert received == written


@scenario()
def write_and_read(world: World) -> Iterator[Act]:
    """Both directions of a connection, and two writes in order."""
    conn, peer = world.pairs.tcp()
    peer.send(b"question")
    read = world.watcher.read(conn)
    writes = [world.watcher.write(conn, b"ans"), world.watcher.write(conn, bytearray(b"wer"))]
    yield lambda: world.watcher.finish(read, *writes)
    world.watcher.finish(read, *writes)
    assert read.data == b"question"
    assert receive_exactly(peer, 6) == b"answer"


@scenario(swap_size=8192)
def write_large_views_of_the_swap_arena(world: World) -> Iterator[Act]:
    """Their copies are let go in the middle of a turn, where an interruption must not be lost."""
    conn, peer = world.pairs.unix()
    message = pattern(6000)
    peer.sendall(message)
    read = world.watcher.read(conn)
    world.watcher.finish(read)
    assert read.result is not None
    writes = [world.watcher.write(conn, read.result.buffer) for _ in range(2)]
    yield lambda: world.watcher.finish(*writes)
    world.watcher.finish(*writes)
    assert receive_exactly(peer, 12000) == message * 2


def _write_to_a_slow_peer(world: World, conn: Closable, peer: Closable, parts: list[bytes]) -> Iterator[Act]:
    """The kernel's buffer is full again and again, and the rest of the request waits for room."""
    sent = b"".join(parts)
    writes = [world.watcher.write(conn, parts if len(parts) > 1 else bytearray(sent)), world.watcher.write(conn, b".")]
    wanted = len(sent) + 1
    received = bytearray()
    os.set_blocking(peer.fileno(), False)

    def act() -> None:
        limit = TimeLimit(SECONDS)
        while len(received) < wanted:
            world.watcher.wait(0)
            with contextlib.suppress(BlockingIOError):
                received.extend(os.read(peer.fileno(), wanted))
            limit.left(f"the last {wanted - len(received)} bytes")

    yield act
    act()
    world.watcher.finish(*writes)
    assert received == sent + b"."


@scenario()
def write_to_a_slow_peer(world: World) -> Iterator[Act]:
    conn, peer = world.pairs.unix()
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    yield from _write_to_a_slow_peer(world, conn, peer, [pattern(10_000)])


@scenario()
def write_vectored_to_a_slow_peer(world: World) -> Iterator[Act]:
    conn, peer = world.pairs.unix()
    yield from _write_to_a_slow_peer(world, conn, peer, [pattern(200_000, 1), pattern(200_000, 2)])


@scenario()
def write_to_a_pipe(world: World) -> Iterator[Act]:
    conn, peer = world.pairs.pipe_to_write()
    yield from _write_to_a_slow_peer(world, conn, peer, [pattern(70_000)])  # a pipe holds 64 KiB


@scenario()
def write_vectored_to_a_pipe(world: World) -> Iterator[Act]:
    conn, peer = world.pairs.pipe_to_write()
    yield from _write_to_a_slow_peer(world, conn, peer, [pattern(40_000, 1), pattern(40_000, 2)])


@scenario()
def write_to_a_peer_that_has_gone(world: World) -> Iterator[Act]:
    conn, peer = world.pairs.unix()
    writes = [world.watcher.write(conn, b"to nobody") for _ in range(2)]
    peer.close()
    yield lambda: world.watcher.finish(*writes)
    world.watcher.finish(*writes)
    assert all(isinstance(write.error, BrokenPipeError) for write in writes)


# --- deadlines ------------------------------------------------------------------------------------------------


@scenario()
def deadline_of_reads(world: World) -> Iterator[Act]:
    """Of the first in a queue, which is with the kernel, and of one behind another, which is not."""
    (one, to_one), (two, to_two) = world.pairs.tcp(), world.pairs.tcp()
    first = world.watcher.read(one, timeout=0)
    patient, second = world.watcher.read(two), world.watcher.read(two, timeout=0)
    last = world.watcher.read(two)
    yield lambda: world.watcher.finish(first, second)
    world.watcher.finish(first, second)
    assert isinstance(first.error, gaio.DeadlineError)
    assert isinstance(second.error, gaio.DeadlineError)
    to_one.send(b"after the deadline")
    to_two.send(b"patient")
    world.watcher.wait(0)
    late = world.watcher.read(one)
    world.watcher.finish(patient, late)
    to_two.send(b"last")
    world.watcher.finish(last)
    assert (late.data, patient.data, last.data) == (b"after the deadline", b"patient", b"last")


@scenario()
def deadline_of_what_came_in_time(world: World) -> Iterator[Act]:
    """It has passed when it is looked at for the first time, and so has that of one for which nothing came."""
    ends: list[tuple[Closable, Closable]] = [world.pairs.unix(socket.SOCK_DGRAM), world.pairs.pipe_to_read()]
    reads = [world.watcher.read(conn, timeout=0) for conn, _ in ends]
    in_vain = world.watcher.read(world.pairs.unix(socket.SOCK_DGRAM)[0], timeout=0)
    for _, peer in ends:
        os.write(peer.fileno(), b"in time")
    yield lambda: world.watcher.finish(*reads, in_vain)
    world.watcher.finish(*reads, in_vain)
    assert [(read.data, read.error) for read in reads] == [(b"in time", None)] * 2
    assert isinstance(in_vain.error, gaio.DeadlineError)


@scenario()
def deadline_that_is_kept(world: World) -> Iterator[Act]:
    """The request is admitted before the interruption and expires after it, so its deadline must not be forgotten."""
    conn, _ = world.pairs.tcp()
    kept = world.watcher.read(conn, timeout=0.001)
    yield lambda: world.watcher.wait(0)
    world.watcher.finish(kept)
    assert isinstance(kept.error, gaio.DeadlineError)


@scenario()
def deadline_after_a_part(world: World) -> Iterator[Act]:
    conn, peer = world.pairs.tcp()
    buffer = bytearray(10)
    request = world.watcher.read_full(conn, buffer, timeout=0.001)
    peer.send(b"part")
    yield lambda: world.watcher.finish(request)
    world.watcher.finish(request)
    following = world.watcher.read(conn)
    peer.send(b"following")
    world.watcher.finish(following)
    assert isinstance(request.error, gaio.DeadlineError)
    assert bytes(buffer[: request.size]) + following.data == b"partfollowing"


@scenario()
def deadline_of_a_write(world: World) -> Iterator[Act]:
    conn, peer = world.pairs.unix()
    sent = pattern(1_000_000)
    write = world.watcher.write(conn, sent, timeout=0.001)
    yield lambda: world.watcher.finish(write)
    world.watcher.finish(write)
    assert isinstance(write.error, gaio.DeadlineError)
    world.watcher.free(conn)
    world.watcher.wait(0)
    assert receive_until_eof(peer) == sent[: write.size]


# --- the ends of connections ----------------------------------------------------------------------------------


@scenario()
def free_with_requests_pending(world: World) -> Iterator[Act]:
    conn, peer = world.pairs.unix()
    sent = pattern(1_000_000)
    reads = [world.watcher.read(conn) for _ in range(3)]
    writes = [world.watcher.write(conn, sent) for _ in range(2)]
    assert world.watcher.wait(0) == []
    idle, peer_of_idle = world.pairs.unix()
    world.watcher.finish(world.watcher.write(idle, b"idle"))

    def act() -> None:
        world.watcher.free(conn)
        world.watcher.free(idle)
        world.watcher.finish(*reads, *writes)

    yield act
    act()
    assert all(isinstance(request.error, gaio.ConnClosedError) for request in (*reads, *writes))
    assert writes[1].size == 0
    world.watcher.wait(0)
    assert receive_until_eof(peer) == sent[: writes[0].size]
    assert receive_until_eof(peer_of_idle) == b"idle"


@scenario()
def free_what_was_just_submitted(world: World) -> Iterator[Act]:
    """The requests and the release are admitted in one go."""
    conn, peer = world.pairs.unix()
    reads = [world.watcher.read(conn), world.watcher.read(conn)]
    write = world.watcher.write(conn, b"in time")
    world.watcher.free(conn)
    yield lambda: world.watcher.finish(*reads, write)
    world.watcher.finish(*reads, write)
    assert all(isinstance(read.error, gaio.ConnClosedError) for read in reads)
    assert write.error is None or isinstance(write.error, gaio.ConnClosedError)
    world.watcher.wait(0)
    assert receive_until_eof(peer) == b"in time"[: write.size]


def _held_by_a_list(world: World) -> tuple[list[socket.socket], socket.socket]:
    """A connection that the watcher knows and that goes when the list is cleared, and its peer."""
    conn, peer = world.pairs.unix()
    world.watcher.finish(world.watcher.write(conn, b"known"))
    return [conn], peer


@scenario()
def free_and_drop(world: World) -> Iterator[Act]:
    """An interrupted free() that nobody repeats: the connection is closed, and not counted any more."""
    held, peer = _held_by_a_list(world)
    yield lambda: world.watcher.free(held[0])
    held.clear()
    world.watcher.wait(0)
    assert receive_until_eof(peer) == b"known"
    assert world.watcher.watcher.stats().conns == 0


@scenario()
def close_with_requests_pending(world: World) -> Iterator[Act]:
    conn, peer = world.pairs.unix()
    idle, peer_of_idle = world.pairs.unix()
    sent = pattern(1_000_000)
    world.watcher.finish(world.watcher.write(idle, b"idle"))
    requests = [world.watcher.read(conn), world.watcher.read(conn), world.watcher.write(conn, sent)]
    assert world.watcher.wait(0) == []
    requests += [world.watcher.write(conn, sent), world.watcher.read(conn, timeout=1000)]
    yield world.watcher.watcher.close
    if not world.watcher.watcher.closed:
        assert world.watcher.wait(0) == []
    world.watcher.close_and_check()
    assert all(isinstance(request.error, gaio.WatcherClosedError) for request in requests)
    assert receive_until_eof(peer) == sent[: requests[2].size]
    assert receive_until_eof(peer_of_idle) == b"idle"


@scenario()
def wait_after_close_was_cut_short(world: World) -> Iterator[Act]:
    """Once it has said that it is closed, nobody has to call close() again."""
    conn, _ = world.pairs.tcp()
    read = world.watcher.read(conn)
    yield world.watcher.watcher.close
    if world.watcher.watcher.closed:
        world.watcher.finish(read)
        assert isinstance(read.error, gaio.WatcherClosedError)


@scenario()
def harvest_after_close(world: World) -> Iterator[Act]:
    conn, peer = world.pairs.unix()
    requests = [world.watcher.read(conn), world.watcher.write(conn, b"x"), world.watcher.read(conn)]
    peer.send(b"first")
    world.watcher.watcher.close()
    yield lambda: world.watcher.finish(*requests)
    world.watcher.finish(*requests)
    assert requests[0].data == b"first"[: requests[0].size]
    assert isinstance(requests[2].error, gaio.WatcherClosedError)


@scenario()
def forgotten_connections(world: World) -> Iterator[Act]:
    conns = [world.pairs.unix() for _ in range(2)]
    peers = [peer for _, peer in conns]
    world.watcher.finish(*[world.watcher.write(conn, b"x") for conn, _ in conns])
    conns.clear()

    yield lambda: world.watcher.wait(0)
    world.watcher.wait(0)
    for peer in peers:
        assert receive_until_eof(peer) == b"x"
    stats = world.watcher.watcher.stats()
    assert (stats.gc_found, stats.gc_closed) == (2, 2)


# --- submission -----------------------------------------------------------------------------------------------


@scenario()
def submit(world: World) -> Iterator[Act]:
    """Of every kind of memory, to a connection that is known."""
    conn, peer = world.pairs.unix()
    world.watcher.finish(world.watcher.write(conn, b"known"))
    requests: list[Request] = []

    def act() -> None:
        requests.append(world.watcher.write(conn, bytearray(b"one")))
        requests.append(world.watcher.write(conn, [pattern(40_000), pattern(40_000)], timeout=1000))
        requests.append(world.watcher.read(conn, bytearray(10), timeout=1000))
        requests.append(world.watcher.read_full(conn, bytearray(3)))

    yield act
    world.watcher.free(conn)
    world.watcher.finish(*requests)
    world.receive_until_closed(peer)


@scenario()
def delegate_in_a_read(world: World) -> Iterator[Act]:
    conn, peer = world.pairs.tcp()
    requests: list[Request] = []
    peer.send(b"hello")
    yield lambda: requests.append(world.watcher.read(conn))
    _use(world, conn, peer, requests)


@scenario()
def delegate_in_a_write(world: World) -> Iterator[Act]:
    conn, peer = world.pairs.tcp()
    requests: list[Request] = []
    peer.send(b"hello")
    yield lambda: requests.append(world.watcher.write(conn, b"welcome"))
    _use(world, conn, peer, requests)


@scenario()
def delegate_in_a_read_that_repeats(world: World) -> Iterator[Act]:
    conn, peer = world.pairs.tcp()
    peer.send(b"hello")
    yield lambda: world.watcher.read_start(conn)
    world.watcher.finish(world.watcher.write(conn, b"bye"))
    assert receive_exactly(peer, 3) == b"bye"
    world.watcher.free(conn)
    world.watcher.wait(0)


@scenario()
def delegate_and_drop(world: World) -> Iterator[Act]:
    """Interrupted or not, it is closed when nobody refers to it."""
    conn, peer = socket.socketpair()
    world.pairs.also_close(peer)
    conns = [conn]
    del conn
    yield lambda: world.watcher.watcher._delegation.connection(conns[0], gaio.READ)
    conns.pop().close()
    assert world.receive_until_closed(peer) == b""


@scenario()
def duplicate_in_a_read(world: World) -> Iterator[Act]:
    """It works, or is closed and says so; nothing in between."""
    sock, peer = world.pairs.tcp()
    conn = Wrapper(sock)
    requests: list[Request] = []
    peer.send(b"hello")

    def act() -> None:
        with contextlib.suppress(gaio.ConnClosedError):  # an interruption has closed it
            requests.append(world.watcher.read(conn))

    yield act
    try:
        _use(world, conn, peer, requests)
    except gaio.ConnClosedError:
        assert conn.fileno() == -1
        world.watcher.wait(0)
        with contextlib.suppress(ConnectionResetError):
            assert receive_until_eof(peer) == b""


class Wrapper:
    """No socket, so its descriptor is duplicated."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def fileno(self) -> int:
        return self.sock.fileno()

    def close(self) -> None:
        self.sock.close()


def _use(world: World, conn: gaio.Conn, peer: socket.socket, requests: list[Request]) -> None:
    read = world.watcher.read(conn)
    written = world.watcher.write(conn, b"bye")
    world.watcher.finish(written)
    world.watcher.free(conn)
    world.watcher.finish(read, *requests)
    world.watcher.wait(0)
    reads = [request for request in (*world.watcher.uncertain, *requests, read) if request.operation is gaio.READ]
    assert b"".join(read.data for read in reads) == b"hello"


# --- requests that move no bytes ------------------------------------------------------------------------------


@scenario()
def accept_again_and_again(world: World) -> Iterator[Act]:
    """Each client is accepted once; those that come after the stop are not."""
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    accept = world.watcher.accept_start(listener)
    assert world.watcher.wait(0) == []
    clients = [socket.create_connection(address, timeout=SECONDS) for _ in range(4)]
    world.pairs.also_close(*clients)

    def act() -> None:
        _until(world, lambda: len(accept.arrivals) >= 4, "the clients")
        world.watcher.accept_stop(listener)
        world.watcher.finish(accept)

    yield act
    act()
    assert (accept.errors, accept.error) == ([], None)
    late = socket.create_connection(address, timeout=SECONDS)
    world.pairs.also_close(late, *accept.connections)
    assert [sock.getpeername() for sock in accept.connections] == [client.getsockname() for client in clients]
    one = world.watcher.accept(listener)
    world.watcher.finish(one)
    world.pairs.also_close(one.accepted)
    assert one.accepted.getpeername() == late.getsockname()
    world.watcher.free(listener)
    world.watcher.wait(0)


@scenario()
def free_an_accept_that_repeats_without_descriptors(world: World) -> Iterator[Act]:
    """It ends, and does not go on as soon as there are some: nobody would cut it off again."""
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname(), timeout=SECONDS)
    world.pairs.also_close(client)
    assert select.select([listener], [], [], SECONDS)[0], "connected over loopback, and never come"
    accept = world.watcher.accept_start(listener)

    def act() -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            world.watcher.free(listener)
            world.watcher.finish(accept)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    yield act
    act()
    world.pairs.also_close(*accept.connections)
    error = accept.error
    assert isinstance(error, gaio.ConnClosedError) or getattr(error, "errno", 0) == errno.EMFILE, error


@scenario()
def accept_clients(world: World) -> Iterator[Act]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        accepts = [world.watcher.accept(listener) for _ in range(2)]
        clients = [socket.create_connection(address, SECONDS) for _ in range(2)]
        world.pairs.also_close(*clients)
        yield lambda: world.watcher.finish(*accepts)
        world.watcher.finish(*accepts)
        world.pairs.also_close(*(accept.accepted for accept in accepts))
        for client, accept in zip(clients, accepts, strict=True):
            client.send(b"%d" % client.getsockname()[1])
            assert accept.accepted.recv(10) == b"%d" % accept.accepted.getpeername()[1]
        assert accepts[0].accepted.getpeername() != accepts[1].accepted.getpeername()


@scenario()
def take_what_was_accepted(world: World) -> Iterator[Act]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        accept = world.watcher.accept(listener)
        client = socket.create_connection(address, SECONDS)
        world.pairs.also_close(client)
        world.watcher.finish(accept)
        yield lambda: accept.accepted
        assert accept.result is not None
        assert accept.result.address == client.getsockname()
        with accept.accepted as accepted:
            client.send(b"hello")
            assert accepted.recv(10) == b"hello"


@scenario()
def deadline_of_an_accept(world: World) -> Iterator[Act]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        accepts = [world.watcher.accept(listener, timeout=0) for _ in range(2)]
        yield lambda: world.watcher.finish(*accepts)
        world.watcher.finish(*accepts)
        assert all(isinstance(accept.error, gaio.DeadlineError) for accept in accepts)
        late = world.watcher.accept(listener)
        world.pairs.also_close(socket.create_connection(address, SECONDS))
        world.watcher.finish(late)
        late.accepted.close()


@scenario()
def connect_and_write(world: World) -> Iterator[Act]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        conn = socket.socket()
        world.pairs.also_close(conn)
        connect = world.watcher.connect(conn, listener.getsockname())
        write = world.watcher.write(conn, b"hello")
        yield lambda: world.watcher.finish(connect, write)
        world.watcher.finish(connect, write)
        assert connect.error is None
        assert write.error is None
        peer, _ = listener.accept()
        world.pairs.also_close(peer)
        assert peer.recv(10) == b"hello"


@scenario()
def connect_in_vain(world: World) -> Iterator[Act]:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # and does not listen; were the port free, a socket could connect to itself
        conn = socket.socket()
        world.pairs.also_close(conn)
        connect = world.watcher.connect(conn, silent.getsockname())
        yield lambda: world.watcher.finish(connect)
        world.watcher.finish(connect)
        assert isinstance(connect.error, ConnectionRefusedError)


@scenario()
def submit_a_connect(world: World) -> Iterator[Act]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        conn = socket.socket()
        world.pairs.also_close(conn)
        connects: list[Request] = []

        def act() -> None:
            with contextlib.suppress(gaio.ConnClosedError):  # an interruption has closed it
                connects.append(world.watcher.connect(conn, listener.getsockname()))

        yield act
        world.watcher.wait(0)
        connects += [connect for connect in world.watcher.uncertain if connect.result]
        if not connects:
            act()
        if connects:
            world.watcher.finish(*connects)
            # One that was submitted, though interrupted, has connected it before one that was tried after it.
            assert None in [connect.error for connect in connects]
        else:
            assert conn.fileno() == -1


@scenario()
def shutdown_after_a_write(world: World) -> Iterator[Act]:
    conn, peer = world.pairs.tcp()
    requests = [world.watcher.write(conn, b"the last"), world.watcher.shutdown(conn)]
    yield lambda: world.watcher.finish(*requests)
    world.watcher.finish(*requests)
    assert [request.error for request in requests] == [None, None]
    assert receive_until_eof(peer) == b"the last"


# --- connections on a descriptor that the caller keeps ----------------------------------------------------------


class CountsClosing(socket.socket):
    """A socket that knows how often close(2) was made for it: with the first its number may be a stranger's."""

    closed_for_good = 0

    def _real_close(self, *arguments: Any) -> None:
        self.closed_for_good += self.fileno() >= 0
        real_close: Any = getattr(super(), "_real_close")  # noqa: B009  # private, hence unknown to typeshed
        real_close(*arguments)


def _shared(world: World) -> tuple[CountsClosing, socket.socket]:
    given, peer = world.pairs.unix()
    return CountsClosing(given.family, given.type, given.proto, given.detach()), peer


@scenario()
def share(world: World) -> Iterator[Act]:
    """What was interrupted is done again, whatever came of it."""
    conn, peer = _shared(world)
    share = world.watcher.watcher._delegation.share
    yield lambda: share(conn)
    number = conn.fileno()
    share(conn)
    assert world.watcher.watcher.stats().conns == 1
    read, write = world.watcher.read(conn), world.watcher.write(conn, b"out")
    peer.send(b"in")
    world.watcher.finish(read, write)
    assert (read.data, peer.recv(10)) == (b"in", b"out")
    assert (conn.fileno(), conn.closed_for_good) == (number, 0)
    world.watcher.free(conn)
    assert world.receive_until_closed(peer) == b""
    assert conn.closed_for_good == 1


@scenario()
def share_and_close_oneself(world: World) -> Iterator[Act]:
    """A caller who gives up after the interruption closes the object, and its number is another's."""
    conn, _ = _shared(world)
    share = world.watcher.watcher._delegation.share
    done: list[bool] = []

    def act() -> None:
        share(conn)
        done.append(True)

    yield act
    if done or world.watcher.watcher._delegation.known(conn) is not None:
        world.watcher.free(conn)
    else:
        conn.close()
        other, peer = _shared(world)
        share(other)
        read = world.watcher.read(other)
        assert world.watcher.wait(0) == []
        peer.send(b"heard")
        world.watcher.finish(read)
        assert read.data == b"heard"
        world.watcher.free(other)
    world.watcher.wait(0)


@scenario()
def free_what_is_shared(world: World) -> Iterator[Act]:
    conn, peer = _shared(world)
    world.watcher.watcher._delegation.share(conn)
    reads = [world.watcher.read(conn), world.watcher.read(conn)]
    write = world.watcher.write(conn, b"the last")
    assert world.watcher.wait(0) == [write]

    def act() -> None:
        world.watcher.free(conn)
        world.watcher.finish(*reads)
        world.watcher.wait(0)

    yield act
    stranger, _ = world.pairs.unix()
    number = stranger.fileno()
    act()
    assert all(isinstance(read.error, gaio.ConnClosedError) for read in reads)
    assert world.receive_until_closed(peer) == b"the last"
    assert (conn.closed_for_good, stranger.fileno()) == (1, number)
    os.fstat(number)
    stranger.close()


# --- messages that leave together -------------------------------------------------------------------------------


def _together(world: World) -> bool:
    return world.leader.engine.backend.sends_together


def _all_sent(world: World) -> bool:
    backend: Any = world.leader.engine.backend  # not kept by what is to be interrupted, see World.__exit__()
    sent: bool = not _together(world) or backend.all_sent()
    return sent


@scenario()
def send_together(world: World) -> Iterator[Act]:
    """Each message leaves once, and what does not leave whole is told of; beside them reads and writes."""
    ends = [_shared(world) for _ in range(6)]
    for conn, _ in ends:
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    (other, to_other), (asked, to_asked) = world.pairs.tcp(), world.pairs.unix()
    much = pattern(1 << 18)
    messages = [much if place % 3 == 1 else b"message %d" % place for place in range(len(ends))]
    reset(ends[5][1])
    read, write = world.watcher.read(asked), world.watcher.write(other, b"beside them")
    to_asked.send(b"read")
    sends = Sends([(conn.fileno(), message) for (conn, _), message in zip(ends, messages, strict=True)])
    if _together(world):
        world.leader.inbox.append(sends)

    def act() -> None:
        world.watcher.finish(read, write)
        while not _all_sent(world):
            world.watcher.wait(0)

    yield act
    act()
    assert (read.data, receive_exactly(to_other, 11)) == (b"read", b"beside them")
    if _together(world):
        outcomes = sends.outcomes
        assert sorted(outcomes) == [1, 4, 5]
        assert outcomes[5] == -errno.EPIPE
        for place, (_, peer) in enumerate(ends[:5]):
            count = outcomes.get(place, len(messages[place]))
            assert receive_exactly(peer, count) == messages[place][:count]
            peer.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                assert not peer.recv(1), "more than it is told to have sent"
    for conn, _ in ends:
        conn.close()


@scenario()
def send_together_and_free(world: World) -> Iterator[Act]:
    """The descriptor is closed behind its message."""
    ends = [_shared(world) for _ in range(3)]
    for conn, _ in ends:
        world.watcher.watcher._delegation.share(conn)
    if _together(world):
        world.leader.inbox.append(Sends([(conn.fileno(), b"the last") for conn, _ in ends]))
    for conn, _ in ends:
        world.watcher.free(conn)
    yield lambda: world.watcher.wait(0)
    for conn, peer in ends:
        assert world.receive_until_closed(peer) == (b"the last" if _together(world) else b"")
        assert conn.closed_for_good == 1
    assert _all_sent(world)


@scenario()
def detach(world: World) -> Iterator[Act]:
    """It stays with the watcher, or is closed."""
    conn, peer = world.pairs.unix()
    world.watcher.finish(world.watcher.write(conn, b"known"))
    detached: list[socket.socket] = []

    def act() -> None:
        with contextlib.suppress(gaio.ConnClosedError):
            detached.append(world.watcher.watcher.detach(conn))

    yield act
    world.watcher.wait(0)
    if not detached:
        act()
    for sock in detached:
        with sock:
            sock.send(b" and taken back")
    assert receive_until_eof(peer) == (b"known and taken back" if detached else b"known")


@scenario()
def detach_or_free(world: World) -> Iterator[Act]:
    """After an interruption of detach(), free() closes the connection if that has not been done already."""
    conn, peer = world.pairs.unix()
    world.watcher.finish(world.watcher.write(conn, b"known"))
    detached: list[socket.socket] = []

    def act() -> None:
        with contextlib.suppress(gaio.ConnClosedError):
            detached.append(world.watcher.watcher.detach(conn))

    yield act
    world.watcher.free(conn)
    with contextlib.suppress(gaio.ConnClosedError):
        raise AssertionError(f"it was freed, and handed back as {world.watcher.watcher.detach(conn)}")
    world.watcher.wait(0)
    for sock in detached:
        sock.close()
    assert receive_until_eof(peer) == b"known"


@scenario()
def detach_or_drop(world: World) -> Iterator[Act]:
    """After an interruption of detach(), a connection that nobody holds any more is closed."""
    held, peer = _held_by_a_list(world)
    detached: list[socket.socket] = []

    def act() -> None:
        with contextlib.suppress(gaio.ConnClosedError):
            detached.append(world.watcher.watcher.detach(held[0]))

    yield act
    held.clear()
    world.watcher.wait(0)
    for sock in detached:
        sock.close()
    assert receive_until_eof(peer) == b"known"


@scenario()
def nest_in_another_loop(world: World) -> Iterator[Act]:
    conn, peer = world.pairs.unix()
    read = world.watcher.read(conn)

    def act() -> None:
        select.select([world.watcher.watcher.fileno()], [], [], 0)
        world.watcher.wait(0)

    yield act
    peer.send(b"hello")
    Nest(world.watcher).finish(read)
    assert read.data == b"hello"


@scenario()
def results_for_another_loop(world: World) -> Iterator[Act]:
    """The edge, or the wake-up, that made the descriptor readable is taken by the call that is cut short."""
    nest = Nest(world.watcher)
    ends = [world.pairs.unix() for _ in range(4)]
    timeouts = (50, 100, 200, 3600)  # that of the one that finishes leads the heap
    read, *others = [world.watcher.read(conn, timeout=t) for (conn, _), t in zip(ends, timeouts, strict=True)]
    world.watcher.wait(0)
    ends[0][1].send(b"x")
    write = world.watcher.write(ends[1][0], b"y")
    yield lambda: world.watcher.wait(0)
    nest.finish(read, write)
    nest.finish(world.watcher.write(ends[2][0], b"z"))
    entries = world.leader.engine.deadlines.entries
    assert not any(entry < entries[(index - 1) // 2] for index, entry in enumerate(entries) if index), "no heap"
    assert not any(request.result for request in others)


@scenario()
def deadline_for_another_loop(world: World) -> Iterator[Act]:
    nest = Nest(world.watcher)
    world.watcher.wait(0)
    conn, _ = world.pairs.unix()
    read = world.watcher.read(conn, timeout=0.005)
    yield lambda: world.watcher.wait(0)
    nest.finish(read)
    assert isinstance(read.error, gaio.DeadlineError)


# --- the lead -------------------------------------------------------------------------------------------------


@scenario()
def take_the_lead(world: World) -> Iterator[Act]:
    """The watcher thread has it and waits in the kernel."""
    conn, peer = world.pairs.tcp()
    first, second = world.watcher.read(conn), world.watcher.read(conn)
    world.hand_to_thread()
    peer.send(b"first")
    yield lambda: world.watcher.finish(first)
    world.watcher.finish(first)
    peer.send(b"second")
    world.watcher.finish(second)
    assert (first.data, second.data) == (b"first", b"second")


@scenario()
def submit_to_the_thread(world: World) -> Iterator[Act]:
    """The watcher thread has to be woken to see the request."""
    conn, peer = world.pairs.tcp()
    world.watcher.finish(world.watcher.write(conn, b"known"))
    requests: list[Request] = []
    world.hand_to_thread()

    def act() -> None:
        with contextlib.suppress(gaio.ConnClosedError):  # freed by the one before
            requests.append(world.watcher.write(conn, b"one"))
            requests.append(world.watcher.write(conn, b"two"))
        world.watcher.free(conn)

    yield act
    world.watcher.free(conn)
    world.watcher.finish(*requests)
    assert world.receive_until_closed(peer).startswith(b"known")


@scenario()
def close_while_the_thread_waits(world: World) -> Iterator[Act]:
    conn, peer = world.pairs.tcp()
    read = world.watcher.read(conn)
    world.hand_to_thread()
    yield world.watcher.watcher.close
    world.watcher.close_and_check()
    assert isinstance(read.error, gaio.WatcherClosedError)
    assert receive_until_eof(peer) == b""


@scenario()
def make_a_watcher(world: World) -> Iterator[Act]:
    """One that was interrupted leaves nothing behind, though nobody has it to close it."""
    made: list[gaio.Watcher] = []
    before = leaks.in_use()
    yield lambda: made.append(gaio.Watcher(backend=world.backend))
    if not made:
        gc.collect()
        # Its thread may have been started and not have begun yet; it closes what it opens.
        wait_until(lambda: not leaks.in_use().since(before), "its thread and its descriptors to go away", SECONDS)
    for watcher in made:
        conn, peer = world.pairs.unix()
        watcher.write(conn, b"made")
        watcher.close()
        assert receive_until_eof(peer) == b"made"[: watcher.wait_io()[0].size]
