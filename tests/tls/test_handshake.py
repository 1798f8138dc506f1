"""The handshake: who is who, what is agreed, and everything that can go wrong in it."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pytest

import gaio
from gaio.tls import TLSWatcher
from tests.accounting import AccountedWatcher
from tests.peers import Pairs, receive_exactly, receive_until_eof, reset
from tests.tls.conftest import Connect, Contexts
from tests.waiting import Background, TimeLimit


def results(tls: TLSWatcher, count: int) -> list[gaio.OpResult]:
    found: list[gaio.OpResult] = []
    limit = TimeLimit()
    while len(found) < count:
        found += tls.wait_io(limit.left(f"{count} results, beside {found}"))
    return found


def test_requests_wait_for_it(tls: TLSWatcher, contexts: Contexts, version: ssl.TLSVersion) -> None:
    """A client that submits all at once, from connect() on; and is told of the handshake, as it asks."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> bytes:
            accepted, _ = listener.accept()
            with contexts.server.wrap_socket(accepted, server_side=True) as server:
                return receive_exactly(server, 5)

        serving = Background(serve)
        conn = socket.socket()
        tls.connect(conn, listener.getsockname(), context="TCP")
        tls.start_client(conn, contexts.client, server_hostname="localhost")
        tls.handshake(conn, context="TLS")
        tls.write(conn, b"hello", context="written")
        done = [(result.operation, result.context, result.error) for result in results(tls, 3)]
        assert done == [
            (gaio.CONNECT, "TCP", None),
            (gaio.CONNECT, "TLS", None),
            (gaio.WRITE, "written", None),
        ]
        assert serving.result() == b"hello"
    told = tls.ssl_object(conn)
    assert told is not None
    assert told.version() == version.name.replace("_", ".")
    assert told.getpeercert() is not None
    tls.handshake(conn, context="again")  # it is done already
    assert results(tls, 1)[0].context == "again"


def test_a_connection_that_fails(tls: TLSWatcher, contexts: Contexts) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    conn = socket.socket()
    tls.connect(conn, address)
    tls.start_client(conn, contexts.client, server_hostname="localhost")
    tls.write(conn, b"hello")
    tls.read_start(conn)
    errors = [result.error for result in results(tls, 3)]
    assert all(isinstance(error, OSError) for error in errors), errors


def test_alpn(tls: TLSWatcher, contexts: Contexts, pairs: Pairs) -> None:
    contexts.server.set_alpn_protocols(["h2", "http/1.1"])
    contexts.client.set_alpn_protocols(["http/1.1"])
    conn, peer = pairs.tcp()
    tls.start_server(conn, contexts.server)
    shaking = Background(lambda: contexts.client.wrap_socket(peer, server_hostname="localhost"))
    tls.handshake(conn)
    assert results(tls, 1)[0].error is None
    client = shaking.result()
    told = tls.ssl_object(conn)
    assert told is not None
    assert told.selected_alpn_protocol() == client.selected_alpn_protocol() == "http/1.1"
    assert tls.ssl_object(peer) is None
    client.close()


def test_mutual_tls(
    tls: TLSWatcher, contexts: Contexts, certificate: Path, pairs: Pairs, version: ssl.TLSVersion
) -> None:
    contexts.server.verify_mode = ssl.CERT_REQUIRED
    contexts.server.load_verify_locations(certificate)
    anonymous, peer = pairs.tcp()
    tls.start_server(anonymous, contexts.server)
    tls.read_start(anonymous)

    def without() -> None:
        with contexts.client.wrap_socket(peer, server_hostname="localhost") as client:
            client.recv(1)  # TLS 1.3 tells only here

    refused = Background(without)
    (last,) = results(tls, 1)
    assert isinstance(last.error, ssl.SSLError)
    tls.wait_io(0)
    with pytest.raises(ssl.SSLError, match=r"(?i)certificate.required|handshake.failure"):
        refused.result()

    contexts.client.load_cert_chain(certificate)
    conn, peer = pairs.tcp()
    tls.start_server(conn, contexts.server)
    shaking = Background(lambda: contexts.client.wrap_socket(peer, server_hostname="localhost"))
    tls.handshake(conn)
    assert results(tls, 1)[0].error is None
    told = tls.ssl_object(conn)
    assert told is not None
    assert told.getpeercert()["subject"] == ((("commonName", "localhost"),),)  # type: ignore[index]  # there is one
    shaking.result().close()


@pytest.mark.parametrize("name", ["elsewhere.example", "127.0.0.1"])
def test_a_certificate_for_another_name(
    tls: TLSWatcher, contexts: Contexts, pairs: Pairs, name: str, version: ssl.TLSVersion
) -> None:
    """All that is pending fails, and the peer gets to know why."""
    conn, peer = pairs.tcp()
    shaking = Background(lambda: contexts.server.wrap_socket(peer, server_side=True).recv(1))
    tls.start_client(conn, contexts.client, server_hostname=name)
    tls.write(conn, b"secret")
    tls.read(conn)
    tls.shutdown(conn)
    errors = [result.error for result in results(tls, 3)]
    assert all(isinstance(error, ssl.SSLCertVerificationError) for error in errors), errors
    with pytest.raises(ssl.SSLError, match=r"(?i)bad.certificate"):
        shaking.result()
    tls.read_start(conn)
    assert isinstance(results(tls, 1)[0].error, ssl.SSLCertVerificationError)


def test_a_certificate_that_nobody_vouches_for(tls: TLSWatcher, contexts: Contexts, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    shaking = Background(lambda: contexts.server.wrap_socket(peer, server_side=True).recv(1))
    tls.start_client(conn, ssl.create_default_context(), server_hostname="localhost")
    tls.handshake(conn)
    assert isinstance(results(tls, 1)[0].error, ssl.SSLCertVerificationError)
    with pytest.raises(ssl.SSLError, match=r"(?i)unknown.ca"):
        shaking.result()


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", bytes(100), b"\x16\x03\x01\x00\x05hello"], ids=ascii)
@pytest.mark.parametrize("role", ["server", "client"])
def test_garbage(tls: TLSWatcher, contexts: Contexts, pairs: Pairs, garbage: bytes, role: str) -> None:
    conn, peer = pairs.tcp()
    if role == "server":
        tls.start_server(conn, contexts.server)
    else:
        tls.start_client(conn, contexts.client, server_hostname="localhost")
    tls.read_start(conn)
    peer.sendall(garbage)
    (last,) = results(tls, 1)
    assert isinstance(last.error, ssl.SSLError)
    assert last.more is False
    tls.free(conn)
    tls.wait_io(0)


@pytest.mark.parametrize("some", [b"", b"\x16\x03\x01"])
def test_the_peer_goes_in_the_middle(tls: TLSWatcher, contexts: Contexts, pairs: Pairs, some: bytes) -> None:
    for leave in (socket.socket.close, reset):
        conn, peer = pairs.tcp()
        tls.start_server(conn, contexts.server)
        tls.read_start(conn)
        tls.write(conn, b"hello")
        if some:
            peer.sendall(some)
        leave(peer)
        for result in results(tls, 2):
            assert isinstance(result.error, (ssl.SSLError, ConnectionError)), result
        tls.free(conn)


@pytest.mark.parametrize("some", [b"", b"\x16\x03\x01"])
def test_a_peer_that_stalls(tls: TLSWatcher, contexts: Contexts, pairs: Pairs, some: bytes) -> None:
    conn, peer = pairs.tcp()
    tls.start_server(conn, contexts.server, timeout=0.05)
    tls.read_start(conn)
    tls.write(conn, b"hello")
    if some:
        peer.sendall(some)
    for result in results(tls, 2):
        assert isinstance(result.error, gaio.DeadlineError)


def test_requests_have_their_own_time(tls: TLSWatcher, contexts: Contexts, pairs: Pairs) -> None:
    """Which passes also while they wait for the handshake."""
    conn, peer = pairs.tcp()
    tls.start_server(conn, contexts.server)
    tls.read(conn, timeout=0.02)
    tls.write(conn, b"hello", timeout=0.02)
    tls.handshake(conn, timeout=0.02)
    for result in results(tls, 3):
        assert isinstance(result.error, gaio.DeadlineError)
    tls.read_start(conn)
    tls.read_stop(conn)
    (last,) = results(tls, 1)
    assert (last.error, last.more) == (None, False)
    tls.handshake(conn)
    shaking = Background(lambda: contexts.client.wrap_socket(peer, server_hostname="localhost"))
    assert results(tls, 1)[0].error is None
    shaking.result().close()


def test_it_may_begin_later(tls: TLSWatcher, contexts: Contexts, pairs: Pairs) -> None:
    """STARTTLS."""
    conn, peer = pairs.tcp()
    peer.sendall(b"STARTTLS")
    tls.read(conn)
    assert bytes(results(tls, 1)[0].buffer) == b"STARTTLS"
    tls.start_server(conn, contexts.server)
    tls.write(conn, b"hello")
    with contexts.client.wrap_socket(peer, server_hostname="localhost", do_handshake_on_connect=False) as client:

        def receive() -> bytes:
            client.do_handshake()
            return receive_exactly(client, 5)

        received = Background(receive)
        assert results(tls, 1)[0].error is None
        assert received.result() == b"hello"


def test_what_comes_right_behind_it(tls: TLSWatcher, contexts: Contexts, pairs: Pairs) -> None:
    """In one segment with the client's last words, before anybody reads."""
    conn, peer = pairs.tcp()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = contexts.client.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    peer.sendall(outgoing.read())
    tls.start_server(conn, contexts.server)
    peer.settimeout(0.02)
    while True:
        assert tls.wait_io(0) == []
        try:
            incoming.write(peer.recv(65536))
            client.do_handshake()
            break
        except (TimeoutError, ssl.SSLWantReadError):
            pass
    client.write(b"early")
    with pytest.raises(ssl.SSLWantReadError):
        client.unwrap()
    peer.sendall(outgoing.read())
    tls.handshake(conn)
    assert results(tls, 1)[0].error is None
    assert tls.wait_io(0) == []
    tls.read_start(conn)
    first, last = results(tls, 2)
    assert (bytes(first.buffer), first.more, last.more) == (b"early", True, False)
    assert isinstance(last.error, EOFError)


def test_wrong_use(tls: TLSWatcher, contexts: Contexts, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    with pytest.raises(TypeError, match=r"ssl\.SSLContext"):
        tls.start_server(conn, "certificate.pem")  # type: ignore[arg-type]  # refused
    with pytest.raises(ValueError, match="server_hostname"):
        tls.start_client(conn, contexts.client, server_hostname=None)
    with pytest.raises(ssl.SSLError):
        tls.start_server(conn, contexts.client)
    with pytest.raises(ValueError, match="timeout"):
        tls.start_server(conn, contexts.server, timeout=-1)
    with pytest.raises(gaio.UnsupportedConnError):
        tls.start_server("no connection", contexts.server)  # type: ignore[arg-type]  # refused
    with pytest.raises(gaio.UnsupportedConnError, match="start_client"):
        tls.handshake(conn)
    assert conn.fileno() != -1, "it has been taken over, though all was refused"
    tls.start_server(conn, contexts.server)
    with pytest.raises(gaio.UnsupportedConnError, match="already"):
        tls.start_server(conn, contexts.server)
    tls.free(conn)
    with pytest.raises(gaio.ConnClosedError):
        tls.start_server(conn, contexts.server)
    with pytest.raises(gaio.ConnClosedError):
        tls.write(conn, b"x")
    assert receive_until_eof(peer) == b""


def test_plain_connections_pass_through(watcher: AccountedWatcher, as_server: Connect, pairs: Pairs) -> None:
    as_server()
    conn, peer = pairs.tcp()
    read, write = watcher.read_start(conn), watcher.write(conn, b"plain")
    peer.sendall(b"text")
    watcher.harvest_until(lambda: read.received == 4 and write.result, "both")
    assert peer.recv(100) == b"plain"
