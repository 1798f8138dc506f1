"""repr() of results tells one connection from another, though their sockets all look closed alike."""

from __future__ import annotations

import re
import socket

import pytest

from tests.accounting import AccountedWatcher, MakeWatcher
from tests.peers import Pairs


def name_of(watcher: AccountedWatcher, conn: socket.socket) -> str:
    """What stands behind `conn=` in the repr() of a result."""
    write = watcher.write(conn, b"x")
    watcher.finish(write)
    found = re.search(r" conn=(.*)>$", repr(write.result))
    assert found is not None, repr(write.result)
    return found[1]


def test_each_connection_has_a_number_of_its_own(make_watcher: MakeWatcher, pairs: Pairs) -> None:
    watcher = make_watcher()
    names = set()
    for _ in range(20):
        conn, _ = pairs.unix()
        names.add(name_of(watcher, conn))
        assert name_of(watcher, conn) in names, "it keeps its number"
        watcher.free(conn)
        del conn  # its id() and its descriptor's number may be the next one's
    assert len(names) == 20
    assert all(re.search(r"socket #\d+$", name) for name in names), names


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_the_peer_is_told(watcher: AccountedWatcher, pairs: Pairs, family: socket.AddressFamily) -> None:
    conn, peer = pairs.tcp(family)
    host, port, *_ = peer.getsockname()
    expected = f" to [{host}]:{port}" if family == socket.AF_INET6 else f" to {host}:{port}"
    assert name_of(watcher, conn).endswith(expected)


def test_the_peer_is_told_when_it_has_gone(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """As it was when the connection was delegated, of the result with the error too."""
    conn, peer = pairs.tcp()
    host, port = peer.getsockname()
    read = watcher.read(conn)
    peer.close()
    watcher.finish(read)
    watcher.free(conn)
    assert f" to {host}:{port}" in repr(read.result)
    assert "EOFError" in repr(read.result)


def test_the_peer_that_connect_was_told_of(watcher: AccountedWatcher) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        conn = socket.socket()
        connect = watcher.connect(conn, (host, port))
        watcher.finish(connect)
        assert f" to {host}:{port}" in repr(connect.result)
        watcher.free(conn)


def test_a_unix_socket_with_a_name(watcher: AccountedWatcher, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = str(tmp_path_factory.mktemp("s") / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        conn = socket.socket(socket.AF_UNIX)
        conn.connect(path)
        assert name_of(watcher, conn).endswith(f" to {path!r}")
        watcher.free(conn)


def test_a_file(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.pipe_to_read()
    read = watcher.read(conn)
    peer.write(b"x")
    watcher.finish(read)
    assert re.search(r"READ size=1 ok conn=FileIO #\d+>$", repr(read.result))


@pytest.mark.skipif(not hasattr(socket, "AF_NETLINK"), reason="netlink(7) is Linux's")
def test_an_address_of_a_family_that_is_not_known(watcher: AccountedWatcher) -> None:
    with socket.socket(getattr(socket, "AF_NETLINK"), socket.SOCK_RAW) as conn:  # noqa: B009  # typeshed: Linux's
        conn.bind((0, 0))
        conn.connect((0, 0))
        read = watcher.read(conn, timeout=0)
        watcher.finish(read)
        assert re.search(r" conn=socket #\d+>$", repr(read.result)), repr(read.result)
        watcher.free(conn)
