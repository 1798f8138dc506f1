"""TCP_NODELAY: what gaio accepts and connects has it, as with Go and asyncio; what others connect is left alone."""

from __future__ import annotations

import errno
import socket

import pytest

from tests.accounting import AccountedWatcher, MakeWatcher
from tests.faulty_libc import FaultyLibc
from tests.peers import Pairs, loopback
from tests.waiting import LIMIT

FAMILIES = pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=lambda family: family.name)


def has_it(conn: socket.socket) -> bool:
    return bool(conn.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))


def detached(watcher: AccountedWatcher, conn: socket.socket, pairs: Pairs) -> socket.socket:
    sock = watcher.watcher.detach(conn)
    pairs.also_close(sock)
    return sock


@FAMILIES
def test_what_is_accepted(watcher: AccountedWatcher, pairs: Pairs, family: socket.AddressFamily) -> None:
    with socket.create_server((loopback(family), 0), family=family) as listener:
        address = listener.getsockname()[:2]
        one = watcher.accept(listener)
        pairs.also_close(socket.create_connection(address, timeout=LIMIT))
        watcher.finish(one)
        every = watcher.accept_start(listener)
        pairs.also_close(socket.create_connection(address, timeout=LIMIT))
        while not every.arrivals:
            watcher.wait(LIMIT)
        accepted = [one.accepted, *every.connections]
        pairs.also_close(*accepted)
        assert [has_it(conn) for conn in accepted] == [True, True]
        watcher.free(listener)
        watcher.finish(every)


@FAMILIES
def test_what_is_connected(watcher: AccountedWatcher, pairs: Pairs, family: socket.AddressFamily) -> None:
    with socket.create_server((loopback(family), 0), family=family) as listener:
        conn = socket.socket(family)
        watcher.finish(watcher.connect(conn, listener.getsockname()))
        assert has_it(detached(watcher, conn, pairs))


def test_who_turns_it_off_has_it_off(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """Of what was accepted, before the first request; of what was connected, when it is back."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        accept = watcher.accept(listener)
        conn = socket.socket()
        watcher.finish(accept, watcher.connect(conn, address))
        for sock in (accept.accepted, detached(watcher, conn, pairs)):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
            watcher.finish(watcher.write(sock, b"x"))
            assert not has_it(detached(watcher, sock, pairs))
        watcher.free(listener)


def test_what_others_have_connected_stays_as_it_is(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, _ = pairs.tcp()
    conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
    watcher.finish(watcher.write(conn, b"x"))
    assert not has_it(detached(watcher, conn, pairs))


def test_where_it_cannot_be_set_all_goes_on(
    make_watcher: MakeWatcher, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a sandbox that forbids it."""
    from gaio.platform import _libc, _sockets

    libc = FaultyLibc(monkeypatch)
    monkeypatch.setattr(_sockets, "_setsockopt", _libc.checked("setsockopt"))
    watcher = make_watcher()
    libc.fail("setsockopt", errno.EPERM, times=None)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        accept = watcher.accept(listener)
        conn = socket.socket()
        watcher.finish(accept, watcher.connect(conn, address))
        pairs.also_close(accept.accepted)
        assert libc.struck >= 2
        assert not has_it(accept.accepted)
        watcher.free(conn)
        watcher.free(listener)
