"""The calls that receive and send datagrams, when the kernel says no."""

from __future__ import annotations

import errno
import socket

import pytest

import gaio
from tests.accounting import MakeWatcher
from tests.faulty_libc import FaultyLibc
from tests.peers import Pairs, fill, pattern

RECEIVING = ("recvmsg", "recvmmsg")  # which of them, the backend decides, and whether the read repeats


@pytest.mark.scenario(1)
@pytest.mark.parametrize("repeats", [False, True], ids=["read", "read_start"])
def test_a_signal_interrupts_a_receive(
    libc: FaultyLibc, make_watcher: MakeWatcher, pairs: Pairs, repeats: bool
) -> None:
    watcher = make_watcher()
    (conn, address), (peer, from_there) = pairs.bound(), pairs.bound()
    for name in RECEIVING:
        libc.fail(name, errno.EINTR, times=2)
    read = watcher.read_start(conn) if repeats else watcher.read(conn)
    assert watcher.wait(0) == []
    peer.sendto(b"x", address)
    watcher.wait(None)
    if repeats:
        watcher.read_stop(conn)
    watcher.finish(read)
    assert libc.struck == 2
    assert read.error is None
    assert repeats or (read.data, read.address) == (b"x", from_there)


@pytest.mark.scenario(1)
def test_a_signal_interrupts_a_send(libc: FaultyLibc, make_watcher: MakeWatcher, pairs: Pairs) -> None:
    watcher = make_watcher()
    (conn, address), (peer, to_peer) = pairs.bound(), pairs.bound()
    libc.fail("sendto", errno.EINTR, times=2)
    watcher.finish(watcher.write(conn, b"x", address=to_peer))
    assert (libc.struck, peer.recvfrom(9)) == (2, (b"x", address))


@pytest.mark.parametrize("number", [errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EPERM, errno.EACCES, errno.EINVAL])
def test_what_a_send_says_is_the_error_of_that_one(
    libc: FaultyLibc, make_watcher: MakeWatcher, pairs: Pairs, number: int
) -> None:
    watcher = make_watcher()
    (conn, address), (peer, to_peer) = pairs.bound(), pairs.bound()
    libc.fail("sendto", number)
    first, second = (watcher.write(conn, data, address=to_peer) for data in (b"first", b"second"))
    watcher.finish(first, second)
    assert isinstance(first.error, OSError)
    assert (first.error.errno, first.size, second.error) == (number, 0, None)
    assert peer.recvfrom(9) == (b"second", address)


@pytest.mark.scenario(18)
@pytest.mark.parametrize("number", [errno.ENOMEM, errno.ENOBUFS, errno.ECONNREFUSED, errno.EHOSTUNREACH])
def test_what_a_receive_says_ends_what_repeats(
    libc: FaultyLibc, make_watcher: MakeWatcher, pairs: Pairs, number: int
) -> None:
    """It can begin anew, and nothing is lost."""
    watcher = make_watcher()
    (conn, address), (peer, _) = pairs.bound(), pairs.bound()
    for name in RECEIVING:
        libc.fail(name, number)
    read = watcher.read_start(conn)
    peer.sendto(b"x", address)
    watcher.finish(read)
    assert isinstance(read.error, OSError)
    assert (read.error.errno, read.messages) == (number, [])
    libc.recover()
    again = watcher.read_start(conn)
    watcher.harvest_until(lambda: again.messages, "the datagram")
    assert again.messages == [b"x"]


@pytest.mark.scenario(6)
def test_to_wait_for_a_receiver_that_is_full_costs_next_to_nothing(
    libc: FaultyLibc, make_watcher: MakeWatcher, pairs: Pairs
) -> None:
    """Nothing tells when there is room, so it is tried a hundred times a second: who spins makes tens of thousands."""
    watcher = make_watcher()
    (conn, _), (peer, to_peer) = pairs.bound(socket.AF_UNIX), pairs.bound(socket.AF_UNIX)
    filled = fill(pairs.unbound(socket.AF_UNIX), to_peer)
    write = watcher.write(conn, b"y", address=to_peer)
    assert watcher.wait(0) == []
    before = sum(libc.calls.values())
    assert watcher.wait(0.2) == []
    assert sum(libc.calls.values()) - before < 200
    for _ in range(filled):
        peer.recv(9)
    watcher.finish(write)
    assert peer.recv(9) == b"y"


@pytest.mark.scenario(6)
def test_who_stays_away_is_not_sent_more_than_it_can_hold(
    make_watcher: MakeWatcher, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits undelivered is bounded; the rest stays in the kernel, or is lost there, as datagrams are."""
    monkeypatch.setattr(gaio.engine, "MOST_UNDELIVERED", 20)
    watcher = make_watcher()
    (conn, address), (peer, _) = pairs.bound(), pairs.bound()
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    read = watcher.read_start(conn)
    assert watcher.wait(0) == []
    sent = [pattern(10, seed) for seed in range(100)]
    for message in sent:
        peer.sendto(message, address)
    most = 0
    while len(read.messages) < len(sent):
        before = len(read.messages)
        watcher.wait(None)
        most = max(most, len(read.messages) - before)
    assert read.messages == sent
    assert most < 40
