"""accept(): the connections of a listening socket arrive as results."""

from __future__ import annotations

import gc
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import gaio
from tests import child
from tests.accounting import AccountedWatcher, MakeWatcher
from tests.backends import Name
from tests.peers import Pairs, loopback, receive_exactly, reset
from tests.waiting import LIMIT, Background, wait_until


def listen(family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
    return socket.create_server((loopback(family), 0), family=family)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with listen() as sock:
        yield sock


@pytest.fixture
def address(listener: socket.socket) -> tuple[str, int]:
    host, port = listener.getsockname()
    return host, port


def client_of(address: object, pairs: Pairs) -> socket.socket:
    """A client that the pairs close."""
    assert isinstance(address, tuple)
    client = socket.create_connection(address[:2], timeout=LIMIT)
    pairs.also_close(client)
    return client


def taken(accepted: socket.socket, pairs: Pairs) -> socket.socket:
    """An accepted connection, to be closed with the pairs."""
    pairs.also_close(accepted)
    accepted.settimeout(LIMIT)
    return accepted


def test_the_result_is_a_plain_socket(
    watcher: AccountedWatcher, pairs: Pairs, listener: socket.socket, address: tuple[str, int]
) -> None:
    accept = watcher.accept(listener)
    assert listener.fileno() == -1, "the first request delegates a listener like any connection"
    client = client_of(address, pairs)
    watcher.finish(accept)
    accepted = accept.accepted
    pairs.also_close(accepted)
    assert accepted.family is socket.AF_INET
    assert accepted.type is socket.SOCK_STREAM
    assert accepted.getblocking()
    assert not os.get_inheritable(accepted.fileno())
    assert accepted.getpeername() == client.getsockname()
    assert accepted.getsockname() == address
    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    accepted.settimeout(LIMIT)
    client.sendall(b"ping")
    assert receive_exactly(accepted, 4) == b"ping"
    accepted.sendall(b"pong")
    assert receive_exactly(client, 4) == b"pong"


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=lambda family: family.name)
def test_a_whole_server_in_one_loop(
    watcher: AccountedWatcher, pairs: Pairs, family: socket.AddressFamily
) -> None:
    listener = listen(family)
    address = listener.getsockname()
    watcher.accept(listener)

    def clients() -> list[bytes]:
        socks = [client_of(address, pairs) for _ in range(30)]
        for number, sock in enumerate(socks):
            sock.sendall(b"%02d" % number)
        echoes = [receive_exactly(sock, 2) for sock in socks]
        for sock in socks:
            sock.shutdown(socket.SHUT_WR)
        return echoes

    echoes = Background(clients)
    ended = 0
    while ended < 30:
        for request in watcher.wait(LIMIT):
            result = request.result
            assert result is not None
            if result.operation is gaio.ACCEPT:
                watcher.read(request.accepted)
                watcher.accept(listener)
            elif result.operation is gaio.WRITE:
                watcher.read(result.conn)
            elif result.error is None:
                watcher.write(result.conn, result.buffer)
            else:
                assert isinstance(result.error, EOFError)
                watcher.free(result.conn)
                ended += 1
    assert echoes.result() == [b"%02d" % number for number in range(30)]
    watcher.free(listener)


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")
def test_a_unix_listener(watcher: AccountedWatcher, pairs: Pairs, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        accept = watcher.accept(listener)
        client = socket.socket(socket.AF_UNIX)
        pairs.also_close(client)
        client.connect(path)
        watcher.finish(accept)
        accepted = taken(accept.accepted, pairs)
        assert accepted.family is socket.AF_UNIX
        client.sendall(b"x")
        assert receive_exactly(accepted, 1) == b"x"


def test_several_queued_accepts_finish_in_order(
    watcher: AccountedWatcher, pairs: Pairs, listener: socket.socket, address: tuple[str, int]
) -> None:
    """Each with a connection of its own, the connections in the order in which they came."""
    accepts = [watcher.accept(listener) for _ in range(20)]
    clients = [client_of(address, pairs) for _ in range(20)]
    assert watcher.finish(*accepts) == accepts
    peers = [taken(accept.accepted, pairs).getpeername() for accept in accepts]
    assert peers == [client.getsockname() for client in clients]


def test_connections_that_wait_already(
    watcher: AccountedWatcher, pairs: Pairs, listener: socket.socket, address: tuple[str, int]
) -> None:
    clients = [client_of(address, pairs) for _ in range(20)]
    peers = []
    for _ in clients:
        accept = watcher.accept(listener)
        watcher.finish(accept)
        peers.append(taken(accept.accepted, pairs).getpeername())
    assert peers == [client.getsockname() for client in clients]


def test_a_connection_that_waits_is_there_with_timeout_0(
    watcher: AccountedWatcher, pairs: Pairs, listener: socket.socket, address: tuple[str, int]
) -> None:
    client_of(address, pairs)
    accept = watcher.accept(listener, timeout=0)
    watcher.finish(accept)
    taken(accept.accepted, pairs)


def test_a_deadline_passes(
    watcher: AccountedWatcher, pairs: Pairs, listener: socket.socket, address: tuple[str, int]
) -> None:
    """Of the request alone: the one behind it goes on, and so does the listener."""
    first, second = watcher.accept(listener, timeout=0.05), watcher.accept(listener)
    assert watcher.finish(first) == [first]
    assert isinstance(first.error, gaio.DeadlineError)
    client = client_of(address, pairs)
    watcher.finish(second)
    assert taken(second.accepted, pairs).getpeername() == client.getsockname()


def test_deadlines_and_clients_race_without_loss(
    watcher: AccountedWatcher, pairs: Pairs, listener: socket.socket, address: tuple[str, int]
) -> None:
    """A request has a connection or an error; no connection falls in between."""
    count = 200

    def come_and_wait() -> None:
        for _ in range(count):
            with socket.create_connection(address, timeout=LIMIT) as client:
                assert client.recv(1) == b""  # accepted and closed

    coming = Background(come_and_wait)
    accepted = 0
    while accepted < count:
        accept = watcher.accept(listener, timeout=0.0001)
        watcher.finish(accept)
        if accept.error is None:
            accepted += 1
            accept.accepted.close()
        else:
            assert isinstance(accept.error, gaio.DeadlineError)
    coming.result()


def test_free_cuts_accepts_off_and_closes_the_listener(
    watcher: AccountedWatcher, listener: socket.socket, address: tuple[str, int]
) -> None:
    accepts = [watcher.accept(listener) for _ in range(3)]
    assert watcher.wait(0) == []
    watcher.free(listener)
    watcher.finish(*accepts)
    assert all(isinstance(accept.error, gaio.ConnClosedError) for accept in accepts)
    assert refuses_connections(address)
    watcher.free(listener)
    with pytest.raises(gaio.ConnClosedError, match=r"freed|closed"):
        watcher.accept(listener)


def test_close_cuts_accepts_off_and_closes_the_listener(
    make_watcher: MakeWatcher, listener: socket.socket, address: tuple[str, int]
) -> None:
    watcher = make_watcher()
    accepts = [watcher.accept(listener) for _ in range(3)]
    watcher.close_and_check()
    assert all(isinstance(accept.error, gaio.WatcherClosedError) for accept in accepts)
    assert refuses_connections(address)


def test_a_forgotten_listener_is_closed(watcher: AccountedWatcher, pairs: Pairs) -> None:
    listener = listen()
    address = listener.getsockname()
    accept = watcher.accept(listener)
    client_of(address, pairs)
    watcher.finish(accept)
    taken(accept.accepted, pairs)
    assert watcher.watcher.stats().conns == 1
    del accept, listener
    gc.collect()
    wait_until(lambda: watcher.watcher.stats().gc_closed == 1, "gc_closed to reach 1")
    assert refuses_connections(address)
    assert watcher.watcher.stats().conns == 0


def test_a_pending_accept_keeps_its_listener(watcher: AccountedWatcher, pairs: Pairs) -> None:
    listener = listen()
    address = listener.getsockname()
    accept = watcher.accept(listener)
    del listener
    gc.collect()
    assert watcher.wait(0.05) == []
    client_of(address, pairs)
    watcher.finish(accept)
    taken(accept.accepted, pairs)


def refuses_connections(address: tuple[str, int]) -> bool:
    def refused() -> bool:
        try:
            socket.create_connection(address, timeout=LIMIT).close()
        except ConnectionRefusedError:
            return True
        return False

    wait_until(refused, "the listener to be closed")
    return True


def test_a_connection_that_nobody_takes_is_closed(
    watcher: AccountedWatcher, pairs: Pairs, listener: socket.socket, address: tuple[str, int]
) -> None:
    accept = watcher.accept(listener)
    client = client_of(address, pairs)
    watcher.finish(accept)
    assert accept.error is None
    del accept
    gc.collect()
    assert client.recv(1) == b""


def test_results_that_nobody_fetched_close_their_connections(
    backend: Name, pairs: Pairs, listener: socket.socket, address: tuple[str, int]
) -> None:
    def accept_and_forget() -> socket.socket:
        with gaio.Watcher(backend=backend) as watcher:
            watcher.accept(listener)
            client = client_of(address, pairs)
            wait_until(lambda: watcher.stats().pending == 0, "the watcher thread to accept")
        return client

    client = accept_and_forget()
    gc.collect()
    assert client.recv(1) == b""


def test_a_client_that_has_gone_already(
    watcher: AccountedWatcher, pairs: Pairs, listener: socket.socket, address: tuple[str, int]
) -> None:
    """It is accepted and says so at the first read, or is left out; the next client is served in any case."""
    reset(socket.create_connection(address, timeout=LIMIT))
    client = client_of(address, pairs)
    peers = []
    while client.getsockname() not in peers:
        accept = watcher.accept(listener)
        watcher.finish(accept)
        try:
            peers.append(taken(accept.accepted, pairs).getpeername())
        except OSError:
            pass  # ENOTCONN: this was the one that has gone


def test_from_other_threads(
    watcher: AccountedWatcher, pairs: Pairs, listener: socket.socket, address: tuple[str, int]
) -> None:
    """Eight threads delegate the same listener at once, while the consumer waits."""
    barrier = threading.Barrier(8)

    def submit() -> None:
        barrier.wait()
        for _ in range(5):
            watcher.accept(listener)

    threads = [Background(submit) for _ in range(8)]
    for thread in threads:
        thread.result()
    clients = [client_of(address, pairs) for _ in range(40)]
    peers = {taken(accept.accepted, pairs).getpeername() for accept in watcher.finish_all()}
    assert peers == {client.getsockname() for client in clients}
    assert watcher.watcher.stats().conns == 1


class TestWrongUse:
    def test_accept_on_a_connection(self, watcher: AccountedWatcher, pairs: Pairs) -> None:
        conn, peer = pairs.tcp()
        with pytest.raises(gaio.UnsupportedConnError, match="listen"):
            watcher.accept(conn)
        conn.sendall(b"untouched")
        assert receive_exactly(peer, 9) == b"untouched"
        read = watcher.read(conn)
        with pytest.raises(gaio.UnsupportedConnError, match="listen"):
            watcher.accept(conn)
        peer.sendall(b"x")
        watcher.finish(read)
        assert read.data == b"x"

    def test_what_is_no_connection(self, watcher: AccountedWatcher) -> None:
        for wrong in (None, 7, "listener", object()):
            with pytest.raises(gaio.UnsupportedConnError):
                watcher.accept(wrong)  # type: ignore[arg-type]  # wrong on purpose
        with socket.socket() as fresh, pytest.raises(gaio.UnsupportedConnError, match="listen"):
            watcher.accept(fresh)
        assert watcher.watcher.stats().conns == 0

    @pytest.mark.usefixtures("told_who_listens")
    def test_one_that_is_bound_and_does_not_listen(self, watcher: AccountedWatcher, tmp_path: Path) -> None:
        """Until that is done which the message says; socket.create_server() makes none of this family."""
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
            listener.bind(str(tmp_path / "socket"))
            with pytest.raises(gaio.UnsupportedConnError, match=r"call its listen\(\) before"):
                watcher.accept(listener)
            listener.listen()
            accept = watcher.accept(listener)
            client.connect(str(tmp_path / "socket"))
            watcher.finish(accept)
            assert accept.result is not None
            assert accept.result.accepted is not None
            accept.result.accepted.close()
            watcher.free(listener)

    def test_a_wrong_timeout(self, watcher: AccountedWatcher, listener: socket.socket) -> None:
        with pytest.raises(ValueError, match="timeout"):
            watcher.accept(listener, timeout=-1)
        assert listener.fileno() != -1, "delegated, though it was refused"

    @pytest.mark.usefixtures("told_who_listens")
    def test_other_requests_for_a_listener(
        self, watcher: AccountedWatcher, pairs: Pairs, listener: socket.socket, address: tuple[str, int]
    ) -> None:
        """Before it is delegated and afterwards; it goes on listening."""
        for _ in range(2):
            for submit in (watcher.read, watcher.shutdown):
                with pytest.raises(gaio.UnsupportedConnError, match="accept"):
                    submit(listener)
            with pytest.raises(gaio.UnsupportedConnError, match="accept"):
                watcher.write(listener, b"x")
            with pytest.raises(gaio.UnsupportedConnError, match="accept"):
                watcher.read_full(listener, bytearray(1))
            with pytest.raises(gaio.UnsupportedConnError):
                watcher.connect(listener, address)
            accept = watcher.accept(listener)
            client_of(address, pairs)
            watcher.finish(accept)
            taken(accept.accepted, pairs)

    def test_after_close(self, make_watcher: MakeWatcher, listener: socket.socket) -> None:
        watcher = make_watcher()
        watcher.watcher.close()
        with pytest.raises(gaio.WatcherClosedError):
            watcher.accept(listener)
        assert listener.fileno() != -1


OUT_OF_DESCRIPTORS = """
    import errno, os, resource, socket
    import gaio

    listener = socket.create_server(("127.0.0.1", 0))
    clients = [socket.create_connection(listener.getsockname()) for _ in range(3)]
    watcher = gaio.Watcher()
    watcher.accept(listener)
    (result,) = watcher.wait_io()
    result.accepted.close()
    conn, peer = socket.socketpair()
    watcher.write(conn, b"delegated while there was room")
    watcher.wait_io()

    # No number below the limit is free: whatever is asked for, there is EMFILE.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    hogs = []
    try:
        while True:
            hogs.append(os.dup(0))
    except OSError as error:
        assert error.errno == errno.EMFILE, error

"""


def test_out_of_descriptors(backend: Name) -> None:
    """The error is the result, and the connection waits until there is room again."""
    code = """
    for _ in range(2):
        watcher.accept(listener)
        (result,) = watcher.wait_io()
        assert isinstance(result.error, OSError), result
        assert result.error.errno == errno.EMFILE, result
        assert result.accepted is None

    for hog in hogs:
        os.close(hog)
    for client in clients[1:]:
        watcher.accept(listener)
        (result,) = watcher.wait_io()
        assert result.error is None, result
        assert result.accepted.getpeername() == client.getsockname()
        result.accepted.close()
    for closable in (watcher, peer, *clients):
        closable.close()
    """
    assert child.output_of(OUT_OF_DESCRIPTORS + code, GAIO_BACKEND=backend) == ""


def test_the_last_descriptor_is_enough(backend: Name) -> None:
    """To take an accepted connection, no second one is needed."""
    code = """
    os.close(hogs.pop())
    watcher.accept(listener)
    (result,) = watcher.wait_io()
    assert result.error is None, result
    accepted = result.accepted
    accepted.sendall(b"welcome")
    assert clients[1].recv(100) == b"welcome"
    for closable in (watcher, accepted, peer, *clients):
        closable.close()
    """
    assert child.output_of(OUT_OF_DESCRIPTORS + code, GAIO_BACKEND=backend) == ""


def test_out_of_descriptors_does_not_spin(backend: Name) -> None:
    """A loop that accepts again at once meets few errors until the deadline of another request passes."""
    code = """
    watcher.accept(listener)
    failures = 0
    passed = False
    while not passed:
        for result in watcher.wait_io():
            if result.operation is gaio.READ:
                passed = True
                continue
            assert result.error.errno == errno.EMFILE, result
            failures += 1
            if failures == 1:
                watcher.read(conn, timeout=0.5)  # not before: it could pass before there was an error to count
            watcher.accept(listener)
    assert 1 <= failures <= 20, failures
    for closable in (watcher, peer, *clients):
        closable.close()
    """
    assert child.output_of(OUT_OF_DESCRIPTORS + code, GAIO_BACKEND=backend) == ""


def test_an_accept_that_rests_keeps_its_own_deadline(backend: Name) -> None:
    """Which comes before that of another request, and that one before the error otherwise would."""
    code = """
    watcher.accept(listener, timeout=0.02)
    watcher.read(conn, timeout=0.06)
    results = []
    while len(results) < 2:
        results += watcher.wait_io()
    assert [result.operation for result in results] == [gaio.ACCEPT, gaio.READ], results
    assert results[0].error.errno == errno.EMFILE, results
    for closable in (watcher, peer, *clients):
        closable.close()
    """
    assert child.output_of(OUT_OF_DESCRIPTORS + code, GAIO_BACKEND=backend) == ""


def test_free_does_not_wait_for_an_accept_that_rests(backend: Name) -> None:
    code = """
    watcher.accept(listener)
    watcher.accept(listener)
    watcher.free(listener)
    results = []
    while len(results) < 2:
        results += watcher.wait_io()
    for result in results:
        assert isinstance(result.error, (gaio.ConnClosedError, OSError)), result
    for closable in (watcher, peer, *clients):
        closable.close()
    """
    assert child.output_of(OUT_OF_DESCRIPTORS + code, GAIO_BACKEND=backend) == ""
