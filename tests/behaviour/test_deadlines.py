"""timeout=: a request that takes too long comes back with DeadlineError, and nothing that arrived is lost."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

import pytest

import gaio
from gaio import leader
from tests.accounting import AccountedWatcher
from tests.backends import Name
from tests.descriptor_limit import need_descriptors
from tests.nest import Nest
from tests.peers import Closable, Pairs, pattern, receive_exactly, receive_until_eof
from tests.waiting import Background

if TYPE_CHECKING:
    from _typeshed import TraceFunction

MIB = 1 << 20


def test_read_deadline(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    start = time.monotonic()
    read = watcher.read(conn, timeout=0.05)
    watcher.finish(read)
    assert time.monotonic() - start >= 0.05, "a deadline never comes early"
    assert isinstance(read.error, gaio.DeadlineError)
    assert isinstance(read.error, TimeoutError)
    assert read.size == 0
    peer.sendall(b"later")
    again = watcher.read(conn, timeout=60)
    watcher.finish(again)
    assert again.data == b"later"


def test_a_deadline_beyond_all_times(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """The longest wait that can be asked for is no trouble to the kernel."""
    conn, peer = pairs.tcp()
    read = watcher.read(conn, timeout=sys.float_info.max)
    sending = Background(lambda: peer.sendall(b"x"))
    assert watcher.wait(sys.float_info.max) == [read]
    sending.result()
    assert read.data == b"x"


def test_write_deadline_against_a_peer_that_never_reads(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """The size told is exactly the number of bytes that are on their way to the peer."""
    conn, peer = pairs.tcp(buffers=8192)
    payload = pattern(16 * MIB)
    write = watcher.write(conn, payload, timeout=0.2)
    watcher.finish(write)
    assert isinstance(write.error, gaio.DeadlineError)
    assert 0 < write.size < len(payload)
    watcher.free(conn)
    assert receive_until_eof(peer) == payload[: write.size]


@pytest.mark.slow
@pytest.mark.scenario(16)
def test_8000_read_deadlines_in_the_same_second(watcher: AccountedWatcher, pairs: Pairs) -> None:
    need_descriptors(16_000)
    conns = [pairs.unix()[0] for _ in range(8000)]
    reads = [watcher.read(conn, timeout=random.uniform(1, 2)) for conn in conns]
    finished = watcher.finish(*reads)
    assert len(finished) == 8000
    assert all(isinstance(read.error, gaio.DeadlineError) for read in reads)


@pytest.mark.scenario(16)
def test_equal_deadlines_on_one_connection(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, _ = pairs.tcp()
    reads = [watcher.read(conn, timeout=0.05) for _ in range(10_000)]
    watcher.finish(*reads)
    assert all(isinstance(read.error, gaio.DeadlineError) for read in reads)


def test_deadlines_come_in_their_order_not_in_that_of_submission(
    watcher: AccountedWatcher, pairs: Pairs
) -> None:
    late, early = pairs.tcp()[0], pairs.tcp()[0]
    reads = [watcher.read(late, timeout=1), watcher.read(early, timeout=0.05)]
    assert watcher.finish(*reads) == reads[::-1]


def test_deadline_of_a_request_that_stands_behind_another(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """It ends on time; the one before it is left alone and still gets its data."""
    conn, peer = pairs.tcp()
    first, second = watcher.read(conn), watcher.read(conn, timeout=0.05)
    assert watcher.finish(second) == [second]
    assert isinstance(second.error, gaio.DeadlineError)
    peer.sendall(b"for the first")
    watcher.finish(first)
    assert first.data == b"for the first"


def test_the_next_request_goes_on_when_a_deadline_passes(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    first, second = watcher.read(conn, timeout=0.05), watcher.read(conn)
    assert watcher.finish(first) == [first]
    assert isinstance(first.error, gaio.DeadlineError)
    peer.sendall(b"for the second")
    watcher.finish(second)
    assert second.data == b"for the second"


def test_finished_requests_forget_their_deadline(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    peer.sendall(bytes(20))
    for _ in range(20):
        # Alone, of bytes that are there: it comes in time, however late it is looked at.
        read = watcher.read_full(conn, bytearray(1), timeout=0.3)
        watcher.finish(read)
        assert read.error is None
    assert watcher.wait(0.4) == []


@pytest.mark.parametrize("timeout", [0, 0.0, 1e-9, 0.0001])
def test_tiny_timeout_without_data(watcher: AccountedWatcher, pairs: Pairs, timeout: float) -> None:
    conn, _ = pairs.tcp()
    read = watcher.read(conn, timeout=timeout)
    watcher.finish(read)
    assert isinstance(read.error, gaio.DeadlineError)


KINDS: dict[str, Callable[[Pairs], tuple[Closable, Closable]]] = {
    "tcp": Pairs.tcp,
    "unix": Pairs.unix,
    "messages": lambda pairs: pairs.unix(socket.SOCK_SEQPACKET),
    "datagrams": lambda pairs: pairs.unix(socket.SOCK_DGRAM),
    "udp": Pairs.udp,
    "pipe": Pairs.pipe_to_read,
}
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.mark.parametrize("timeout", [0, 0.0, 1e-9])
@every_kind
@pytest.mark.scenario(16)
def test_tiny_timeout_takes_what_is_already_there(
    watcher: AccountedWatcher, pairs: Pairs, timeout: float, kind: str
) -> None:
    """timeout=0 means: what is there now, or nothing; again and again."""
    conn, peer = KINDS[kind](pairs)
    for _ in range(3):
        os.write(peer.fileno(), b"already here")
        read = watcher.read(conn, timeout=timeout)
        watcher.finish(read)
        assert read.error is None
        assert read.data == b"already here"
    nothing = watcher.read(conn, timeout=timeout)
    watcher.finish(nothing)
    assert isinstance(nothing.error, gaio.DeadlineError)


@pytest.fixture
def an_hour_passes(watcher: AccountedWatcher, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and it has. Of what was submitted before, every deadline of less has passed then."""

    def clock() -> float:
        return time.monotonic() + 3600

    def it_passes() -> None:
        monkeypatch.setattr(leader, "monotonic", clock)
        monkeypatch.setattr(watcher.watcher._leader.engine, "clock", clock)

    return it_passes


@every_kind
@pytest.mark.scenario(16)
def test_what_came_in_time_while_the_other_loop_was_busy(
    watcher: AccountedWatcher, pairs: Pairs, kind: str, an_hour_passes: Callable[[], None]
) -> None:
    """Nested, nothing is looked at meanwhile. That the deadline has passed, too, when it is, does not matter."""
    conn, peer = KINDS[kind](pairs)
    nest = Nest(watcher)
    read, late = watcher.read(conn, timeout=1800), watcher.read(pairs.unix()[0], timeout=1800)
    nest.settle()
    os.write(peer.fileno(), b"in time")
    an_hour_passes()
    nest.finish(read, late)
    assert read.error is None
    assert read.data == b"in time"
    assert isinstance(late.error, gaio.DeadlineError)


@pytest.mark.scenario(16)
def test_room_that_came_in_time_while_the_other_loop_was_busy(
    watcher: AccountedWatcher, pairs: Pairs, an_hour_passes: Callable[[], None]
) -> None:
    conn, peer = pairs.unix()
    nest = Nest(watcher)
    message = pattern(300_000)
    write = watcher.write(conn, message, timeout=1800)
    nest.settle()
    peer.setblocking(False)
    received = bytearray()
    with contextlib.suppress(BlockingIOError):
        while True:
            received += peer.recv(1 << 20)
    assert 0 < len(received) < len(message)
    an_hour_passes()
    nest.finish(write)
    assert write.error is None
    peer.setblocking(True)
    assert bytes(received) + receive_exactly(peer, len(message) - len(received)) == message


def test_zero_timeout_write_sends_what_fits(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.unix()
    write = watcher.write(conn, b"fits", timeout=0)
    watcher.finish(write)
    assert write.error is None
    assert peer.recv(10) == b"fits"


@pytest.mark.parametrize("timeout", [60, 3600.0, 1e9, 1e300])
def test_long_timeouts_are_no_obstacle(watcher: AccountedWatcher, pairs: Pairs, timeout: float) -> None:
    conn, peer = pairs.tcp()
    read = watcher.read(conn, timeout=timeout)
    assert watcher.wait(0.01) == []
    peer.sendall(b"x")
    watcher.finish(read)
    assert read.data == b"x"


@pytest.mark.scenario(16)
def test_data_and_deadlines_race_without_loss(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """Each byte comes with exactly one read, however often a deadline strikes in the same instant."""
    conn, peer = pairs.tcp()
    payload = pattern(300)

    def send() -> None:
        for number in range(len(payload)):
            peer.sendall(payload[number : number + 1])
            time.sleep(random.random() / 500)  # the race under test, not a wait for anything

    sending = Background(send)
    received = b""
    expired = 0
    while len(received) < len(payload):
        read = watcher.read(conn, timeout=random.random() / 500)
        watcher.finish(read)
        expired += isinstance(read.error, gaio.DeadlineError)
        received += read.data
    sending.result()
    assert received == payload
    assert expired, "no deadline struck, so nothing raced"


@pytest.mark.usefixtures("thread_acts_when_told")
def test_deadlines_in_any_order_on_one_connection_take_steps_in_proportion(backend: Name, pairs: Pairs) -> None:
    """Four times as many requests take about four times as many steps, wherever in the queue each stands."""

    def steps(count: int) -> int:
        conn, _ = pairs.tcp()
        with gaio.Watcher(backend=backend) as watcher:
            watcher.read(conn)
            timeouts = [number * 1e-9 for number in range(count)]
            random.Random(count).shuffle(timeouts)
            for timeout in timeouts:
                watcher.read(conn, timeout=timeout)
            lines = 0

            def trace(frame: FrameType, event: str, argument: object) -> TraceFunction:
                nonlocal lines
                lines += event == "line"
                return trace

            before = sys.gettrace()
            sys.settrace(trace)
            try:
                results = watcher.wait_io(0)
            finally:
                sys.settrace(before)
        assert len(results) == count
        assert all(isinstance(result.error, gaio.DeadlineError) for result in results)
        return lines

    few, many = steps(500), steps(2000)
    assert few > 500, "the steps were counted"
    assert many < 6 * few, f"{few} steps for 500 requests, {many} for 2000"
