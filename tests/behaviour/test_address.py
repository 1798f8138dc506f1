"""`address` of an ACCEPT: who was accepted, as the socket module writes addresses."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

import gaio
from tests.accounting import AccountedWatcher
from tests.peers import Pairs, loopback, receive_until_eof, reset
from tests.waiting import LIMIT


def accept_from(watcher: AccountedWatcher, listener: socket.socket, client: socket.socket) -> gaio.OpResult:
    address = listener.getsockname()
    accept = watcher.accept(listener)
    client.connect(address)
    watcher.finish(accept)
    assert accept.result is not None
    return accept.result


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=lambda family: family.name)
@pytest.mark.parametrize("first", ["address", "accepted"])
def test_tcp(watcher: AccountedWatcher, pairs: Pairs, family: socket.AddressFamily, first: str) -> None:
    with socket.create_server((loopback(family), 0), family=family) as listener, socket.socket(family) as client:
        result = accept_from(watcher, listener, client)
        getattr(result, first)
        assert result.address == client.getsockname()
        assert len(result.address) == (2 if family is socket.AF_INET else 4)
        pairs.also_close(result.accepted)
        assert result.accepted.getpeername() == result.address
        watcher.free(listener)


def test_unix(watcher: AccountedWatcher, pairs: Pairs, tmp_path: Path) -> None:
    names: list[str | bytes] = ["", str(tmp_path / "client")]
    if sys.platform == "linux":
        names.append(b"\0gaio test \0 " + tmp_path.name.encode())
    for number, name in enumerate(names):
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
            listener.bind(str(tmp_path / str(number)))
            listener.listen()
            if name:
                client.bind(name)
            result = accept_from(watcher, listener, client)
            assert result.address == name
            assert type(result.address) is type(name)
            pairs.also_close(result.accepted)
            watcher.free(listener)


def test_of_each_that_an_accept_which_repeats_brings(watcher: AccountedWatcher, pairs: Pairs) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        accept = watcher.accept_start(listener)
        clients = [socket.create_connection(address, timeout=LIMIT) for _ in range(10)]
        pairs.also_close(*clients)
        while len(accept.arrivals) < 10:
            watcher.wait(LIMIT)
        pairs.also_close(*accept.connections)
        assert [result.address for result in accept.arrivals] == [client.getsockname() for client in clients]
        watcher.accept_stop(listener)
        watcher.finish(accept)
        assert accept.result is not None
        assert accept.result.address is None
        watcher.free(listener)


def test_after_the_first_request(watcher: AccountedWatcher) -> None:
    """It is kept when `accepted` is taken, for then the socket may be the watcher's, or closed."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        result = accept_from(watcher, listener, client)
        read = watcher.read(result.accepted)
        assert result.address == client.getsockname()
        watcher.free(result.accepted)
        watcher.finish(read)
        assert result.address == client.getsockname()
        watcher.free(listener)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=lambda family: family.name)
def test_of_a_peer_that_has_reset_the_connection(
    watcher: AccountedWatcher, pairs: Pairs, family: socket.AddressFamily
) -> None:
    """Linux still knows it."""
    with socket.create_server((loopback(family), 0), family=family) as listener:
        client = socket.socket(family)
        result = accept_from(watcher, listener, client)
        address = client.getsockname()
        reset(client)
        assert result.address == address or sys.platform != "linux"
        read = watcher.read(result.accepted)
        watcher.finish(read)
        assert isinstance(read.error, ConnectionResetError)
        watcher.free(listener)


def test_asking_for_it_takes_nothing(watcher: AccountedWatcher) -> None:
    """Who does not want that client drops the result, and the connection is closed without a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        client.settimeout(LIMIT)
        client.connect(listener.getsockname())
        accept = watcher.accept(listener)
        watcher.finish(accept)
        assert accept.result is not None
        assert accept.result.address == client.getsockname()
        accept.result = None
        assert receive_until_eof(client) == b""
        watcher.free(listener)


def test_of_none_where_there_is_nobody(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, _ = pairs.tcp()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        requests = [watcher.accept(listener, timeout=0), watcher.write(conn, b"x")]
        watcher.finish(*requests)
        assert [request.result.address for request in requests if request.result] == [None, None]
        watcher.free(listener)
