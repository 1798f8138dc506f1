"""Messages that leave together, without a request for each: what is told of them, and what is not."""

from __future__ import annotations

import contextlib
import errno
import gc
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gaio.closing import Sends, admit_the_late
from gaio.platform._io_uring import abi, probe
from gaio.platform._io_uring import backend as its_module
from gaio.platform._io_uring.ring import CQ_ENTRIES, ENTRIES
from gaio.selector import LoopWatcher
from tests.faulty_libc import FaultyLibc, enters_ring
from tests.peers import HeldPairs, pattern, receive_exactly, reset
from tests.waiting import Background, wait_until

MakeThreadless = Callable[..., LoopWatcher]
Ends = tuple[socket.socket, socket.socket]


pytestmark = pytest.mark.usefixtures("backend")  # they are skipped where there is no ring


@pytest.fixture
def make_threadless(monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeThreadless]:
    """Makes watchers as the loop of gaio.asyncio has them, on rings with so many entries."""
    with contextlib.ExitStack() as stack:

        def make(entries: int = ENTRIES, cq_entries: int = CQ_ENTRIES) -> LoopWatcher:
            with monkeypatch.context() as patch:
                patch.setattr(probe, "GEOMETRIES", ((entries, cq_entries, sys.maxsize),))
                return stack.enter_context(LoopWatcher(backend="io_uring"))

        yield make


@pytest.fixture(params=["silent", "each is told of"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Kernels that tell of short messages only, which is so from 6.3 on, and those before."""
    if request.param != "silent":
        monkeypatch.setattr(abi, "IORING_FEAT_REG_REG_RING", 0)
    kind: str = request.param
    return kind


def backend_of(watcher: LoopWatcher) -> Any:
    return watcher._leader.engine.backend


def begin(watcher: LoopWatcher, messages: list[tuple[socket.socket, bytes]]) -> Sends:
    sends = Sends([(conn.fileno(), data) for conn, data in messages])
    watcher._inbox.append(sends)
    return sends


def send(watcher: LoopWatcher, messages: list[tuple[socket.socket, bytes]]) -> dict[int, int]:
    """The outcomes of those that did not go out whole."""
    sends = begin(watcher, messages)
    watcher.wait_io(0)
    while not backend_of(watcher).all_sent():
        watcher.wait_io(0)
    return sends.outcomes


def small(ends: Ends) -> Ends:
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    return ends


def unix(held_pairs: HeldPairs) -> Ends:
    return small(held_pairs.unix())


def tcp(held_pairs: HeldPairs) -> Ends:
    return held_pairs.tcp(buffers=4096)


def test_what_goes_out_whole_is_not_told_of(make_threadless: MakeThreadless, held_pairs: HeldPairs) -> None:
    watcher = make_threadless()
    ring = backend_of(watcher).ring
    ends = [held_pairs.unix() for _ in range(20)] + [held_pairs.tcp() for _ in range(20)]
    watcher.wait_io(0)
    told = ring.kcq_tail[0]
    assert send(watcher, [(conn, b"%03d" % number) for number, (conn, _) in enumerate(ends)]) == {}
    for number, (_, peer) in enumerate(ends):
        assert receive_exactly(peer, 3) == b"%03d" % number
    silent = ring.features & abi.IORING_FEAT_REG_REG_RING
    assert ring.kcq_tail[0] - told == (0 if silent else len(ends))


@pytest.mark.parametrize("make", [unix, tcp])
@pytest.mark.usefixtures("kernel")
def test_what_leaves_in_part_is_told_of_with_its_count(
    make_threadless: MakeThreadless, held_pairs: HeldPairs, make: Callable[[HeldPairs], Ends]
) -> None:
    watcher = make_threadless()
    (short, peer), (whole, to_whole) = make(held_pairs), make(held_pairs)
    much = pattern(1 << 20)
    outcomes = send(watcher, [(whole, b"first"), (short, much), (whole, b"second")])
    assert list(outcomes) == [1]
    assert 0 < outcomes[1] < len(much)
    assert receive_exactly(to_whole, 11) == b"firstsecond"
    left = much[: outcomes[1]]
    while (outcome := send(watcher, [(short, much)]).get(0, len(much))) > 0:  # TCP moves what the peer has room for
        left += much[:outcome]
    assert outcome == -errno.EAGAIN
    assert receive_exactly(peer, len(left)) == left
    peer.setblocking(False)
    with pytest.raises(BlockingIOError):
        peer.recv(1)


@pytest.mark.usefixtures("kernel")
def test_whoever_waits_is_told_at_once(make_threadless: MakeThreadless, held_pairs: HeldPairs) -> None:
    """The peer reads, and then waits for the rest: nothing else will happen."""
    watcher = make_threadless()
    conn, _ = unix(held_pairs)
    sends = begin(watcher, [(conn, pattern(1 << 20))])
    assert Background(lambda: watcher.wait_io(None)).result() == []
    assert list(sends.outcomes) == [0]
    assert backend_of(watcher).all_sent()
    assert not backend_of(watcher).fell_short


@pytest.mark.usefixtures("kernel")
def test_told_while_room_was_made(make_threadless: MakeThreadless, held_pairs: HeldPairs) -> None:
    """The short one is the first of more than the ring takes at once, and was heard of before the wait began."""
    watcher = make_threadless(entries=2, cq_entries=2)
    (short, _), (whole, peer) = unix(held_pairs), held_pairs.unix()
    sends = begin(watcher, [(short, pattern(1 << 20)), *[(whole, b"x")] * 8])
    assert Background(lambda: watcher.wait_io(None)).result() == []
    while not backend_of(watcher).all_sent():
        watcher.wait_io(0)
    assert list(sends.outcomes) == [0]
    assert receive_exactly(peer, 8) == b"x" * 8


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("make", [HeldPairs.unix, HeldPairs.tcp])
def test_peers_that_are_gone(
    make_threadless: MakeThreadless, held_pairs: HeldPairs, make: Callable[[HeldPairs], Ends]
) -> None:
    watcher = make_threadless()
    ends = [make(held_pairs) for _ in range(4)]
    for _, peer in ends[::2]:
        reset(peer)
    for conn, _ in ends[::2]:
        with contextlib.suppress(OSError):
            conn.recv(1)  # until it has arrived, and so that EPIPE is left to be said
    outcomes = send(watcher, [(conn, b"x") for conn, _ in ends])
    assert outcomes == {0: -errno.EPIPE, 2: -errno.EPIPE}
    assert all(receive_exactly(peer, 1) == b"x" for _, peer in ends[1::2])


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("entries", [2, 8, 64])
def test_more_than_the_ring_has_entries(make_threadless: MakeThreadless, held_pairs: HeldPairs, entries: int) -> None:
    """Every third does not leave whole: what the completion queue cannot hold is kept by the kernel."""
    watcher = make_threadless(entries=entries, cq_entries=entries)
    ends = [unix(held_pairs) if number % 3 == 0 else held_pairs.unix() for number in range(200)]
    much = pattern(1 << 20)
    messages = [much if number % 3 == 0 else b"<%03d>" % number for number in range(200)]
    outcomes = send(watcher, [(conn, data) for (conn, _), data in zip(ends, messages, strict=True)])
    assert sorted(outcomes) == list(range(0, 200, 3))
    for number, (_, peer) in enumerate(ends):
        count = outcomes.get(number, 5)
        assert receive_exactly(peer, count) == messages[number][:count]


@pytest.mark.usefixtures("kernel")
def test_more_completions_than_one_look_takes(
    make_threadless: MakeThreadless, held_pairs: HeldPairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(its_module, "MAX_COMPLETIONS", 3)
    watcher = make_threadless()
    conn, peer = held_pairs.unix()
    reader, to_reader = held_pairs.unix()
    watcher.read(reader, context="read")
    to_reader.send(b"among them")
    reset(peer)
    sends = begin(watcher, [(conn, b"x")] * 100)
    batch = list(watcher.wait_io(0))
    while not backend_of(watcher).all_sent():
        batch += watcher.wait_io(0)
    while not batch:
        batch += watcher.wait_io(20)
    assert sends.outcomes == dict.fromkeys(range(100), -errno.EPIPE)
    assert [result.context for result in batch] == ["read"]


@pytest.mark.usefixtures("kernel")
def test_in_order_on_one_connection(make_threadless: MakeThreadless, held_pairs: HeldPairs) -> None:
    watcher = make_threadless(entries=8, cq_entries=8)
    conn, peer = held_pairs.unix()
    assert send(watcher, [(conn, b"%04d" % number) for number in range(200)]) == {}
    assert receive_exactly(peer, 800) == b"".join(b"%04d" % number for number in range(200))


@pytest.mark.usefixtures("kernel")
def test_a_kernel_that_is_short_of_memory(
    make_threadless: MakeThreadless, held_pairs: HeldPairs, libc: FaultyLibc
) -> None:
    """It takes nothing for a while: io_uring_enter(2) says EAGAIN."""
    watcher = make_threadless()
    conn, peer = held_pairs.unix()
    watcher.wait_io(0)
    libc.fail("syscall", errno.EAGAIN, times=5, when=enters_ring)
    sends = begin(watcher, [(conn, b"late")])
    watcher.wait_io(0)
    assert not backend_of(watcher).all_sent()
    while not backend_of(watcher).all_sent():
        watcher.wait_io(0)
    assert sends.outcomes == {}
    assert receive_exactly(peer, 4) == b"late"


@pytest.mark.usefixtures("kernel")
def test_those_that_an_exception_left_in_the_ring_are_done_first(
    make_threadless: MakeThreadless, held_pairs: HeldPairs, libc: FaultyLibc
) -> None:
    """Their memory is the kernel's until then, and their outcomes are not those of the next."""
    watcher = make_threadless()
    (first, _), (whole, peer), (second, _) = unix(held_pairs), held_pairs.unix(), unix(held_pairs)
    watcher.wait_io(0)
    libc.fail("syscall", errno.ENOMEM, times=1, when=enters_ring)
    before = begin(watcher, [(first, pattern(1 << 20)), (whole, b"y" * 4000)])
    with pytest.raises(OSError, match="io_uring_enter"):
        watcher.wait_io(0)
    assert backend_of(watcher).ring.ksq_head[0] != backend_of(watcher).ring.sq_tail
    outcomes = before.outcomes
    del before
    gc.collect()
    filler = [b"z" * 4000 for _ in range(100)]  # to be where freed memory was
    assert list(send(watcher, [(whole, b"then"), (second, pattern(1 << 20))])) == [1]
    assert list(outcomes) == [0]
    assert receive_exactly(peer, 4004) == b"y" * 4000 + b"then"
    del filler


@pytest.mark.usefixtures("kernel")
def test_a_descriptor_is_closed_behind_its_messages(make_threadless: MakeThreadless, held_pairs: HeldPairs) -> None:
    """Its number may be a stranger's next."""
    watcher = make_threadless()
    ends = [held_pairs.unix() for _ in range(3)]
    for conn, _ in ends:
        watcher._delegation.share(conn)
    sends = begin(watcher, [(conn, b"the last") for conn, _ in ends])
    for conn, _ in ends:
        watcher.free(conn)
    watcher.wait_io(0)
    assert backend_of(watcher).all_sent()
    assert sends.outcomes == {}
    assert all(conn.fileno() == -1 for conn, _ in ends)
    for _, peer in ends:
        assert receive_exactly(peer, 8) == b"the last"
        assert peer.recv(1) == b""


@pytest.mark.usefixtures("kernel")
def test_those_of_a_watcher_that_is_closed(make_threadless: MakeThreadless, held_pairs: HeldPairs) -> None:
    """Given before, they leave; given after, it is told that nothing of them did."""
    watcher = make_threadless()
    conn, peer = held_pairs.unix()
    before = begin(watcher, [(conn, b"before")])
    watcher.close()
    after = begin(watcher, [(conn, b"after")])  # as another thread may just then
    admit_the_late(watcher._leader.engine)
    assert backend_of(watcher).all_sent()
    assert before.outcomes == {}
    assert after.outcomes == {0: 0}
    assert receive_exactly(peer, 6) == b"before"
    peer.setblocking(False)
    with pytest.raises(BlockingIOError):
        peer.recv(10)


@pytest.mark.usefixtures("kernel")
def test_beside_requests_and_their_results(make_threadless: MakeThreadless, held_pairs: HeldPairs) -> None:
    """Each turn has reads that repeat, and answers to what they bring, one of which leaves short now and then."""
    watcher = make_threadless(entries=8, cq_entries=16)
    ends = [held_pairs.tcp() for _ in range(30)]
    for number, (conn, _) in enumerate(ends):
        watcher._delegation.share(conn)
        watcher.read_start(conn, context=number)
    for turn in range(20):
        for _, peer in ends:
            peer.send(b"%03d" % turn)
        answered: set[int] = set()
        while len(answered) < len(ends):
            batch = watcher.wait_io(20)
            assert batch
            answers = [(ends[result.context][0], bytes(result.buffer)) for result in batch]
            answered.update(result.context for result in batch)
            assert send(watcher, answers) == {}
        for _, peer in ends:
            assert receive_exactly(peer, 3) == b"%03d" % turn
    wait_until(lambda: backend_of(watcher).all_sent(), "the end")
