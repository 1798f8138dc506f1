"""The TLS echo server, seen by Python's ssl and by openssl s_client."""

from __future__ import annotations

import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.backends import Name
from tests.examples.real_clients import need
from tests.peers import pattern, receive_exactly, receive_until_eof
from tests.server_process import Server, output_of_failure, running
from tests.waiting import LIMIT, Background


@pytest.fixture
def server(backend: Name, certificate: Path) -> Iterator[Server]:
    with running("examples.tls_echo", "--backend", backend, "--cert", str(certificate)) as program:
        yield program


@contextmanager
def tls_client(server: Server, certificate: Path) -> Iterator[ssl.SSLSocket]:
    context = ssl.create_default_context(cafile=str(certificate))
    with server.client() as plain, context.wrap_socket(plain, server_hostname="localhost") as client:
        yield client


def test_every_byte_comes_back(server: Server, certificate: Path) -> None:
    payload = pattern(2 << 20)
    with tls_client(server, certificate) as client:
        for size in (1, 100, 20_000):
            client.sendall(payload[:size])
            assert receive_exactly(client, size) == payload[:size]
        # An SSLSocket must not be used by two threads at once, so it goes to and fro.
        for start in range(0, len(payload), 65536):
            client.sendall(payload[start : start + 65536])
            assert receive_exactly(client, 65536) == payload[start : start + 65536]


def test_a_client_that_has_said_all_gets_its_echo_and_the_end(server: Server, certificate: Path) -> None:
    with tls_client(server, certificate) as client:
        client.sendall(b"last words")
        assert receive_exactly(client, 10) == b"last words"
        plain = client.unwrap()  # close_notify, and waits for the server's
        assert plain.recv(1) == b""
        plain.close()


def test_last_words_that_come_together_with_the_end(server: Server, certificate: Path) -> None:
    """In one segment, as an SSLObject lets us see."""
    context = ssl.create_default_context(cafile=str(certificate))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with server.client() as sock:
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                sock.sendall(outgoing.read())
                incoming.write(sock.recv(65536))
        tls.write(b"last words")
        with pytest.raises(ssl.SSLWantReadError):
            tls.unwrap()
        sock.sendall(outgoing.read())
        incoming.write(receive_until_eof(sock))
        assert tls.read(100) == b"last words"
        with pytest.raises(ssl.SSLZeroReturnError):  # the server's close_notify
            tls.read(100)


def test_openssl(server: Server) -> None:
    command = [need("openssl", "openssl"), "s_client", "-quiet", "-connect", "{}:{}".format(*server.address)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        try:
            for line in (b"hello\n", b"again\n"):
                client.stdin.write(line)
                client.stdin.flush()
                assert Background(client.stdout.readline).result() == line
        finally:
            client.kill()


@pytest.mark.parametrize("nonsense", [b"GET / HTTP/1.1\r\n\r\n", bytes(100), b"\x16\x03\x01\x00\x05hello"], ids=ascii)
def test_nonsense_ends_the_connection(server: Server, certificate: Path, nonsense: bytes) -> None:
    with server.client() as client:
        client.sendall(nonsense)
        receive_until_eof(client)
    with tls_client(server, certificate) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"


def test_a_client_that_breaks_off_takes_nobody_along(server: Server, certificate: Path) -> None:
    with tls_client(server, certificate) as other:
        for _ in range(10):
            with server.client() as client:
                client.sendall(b"\x16\x03\x01")
            with tls_client(server, certificate) as client:
                client.sendall(b"x")
        other.sendall(b"x")
        assert other.recv(1) == b"x"


def test_silent_clients_are_dropped(backend: Name, certificate: Path) -> None:
    options = ("--backend", backend, "--cert", str(certificate), "--patience", "0.2")
    with running("examples.tls_echo", *options) as server, server.client() as client:
        assert client.recv(1) == b""


def test_clients_without_tls_are_served_by_the_same_loop(backend: Name, certificate: Path) -> None:
    options = ("--backend", backend, "--cert", str(certificate), "--plain-port", "0")
    with running("examples.tls_echo", *options) as server, tls_client(server, certificate) as client:
        assert server.process.stdout is not None
        host, _, port = Background(server.process.stdout.readline).result().strip().rpartition(" ")[2].partition(":")
        with socket.create_connection((host, int(port)), timeout=LIMIT) as plain:
            for size in (1, 50_000):
                for each in (client, plain):
                    each.sendall(pattern(size))
                for each in (client, plain):
                    assert receive_exactly(each, size) == pattern(size)
            plain.shutdown(socket.SHUT_WR)
            assert plain.recv(1) == b""


def test_without_a_certificate(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.pem")
    assert output_of_failure("examples.tls_echo", "--port", "0", "--cert", missing).startswith("cannot serve: ")


@pytest.mark.slow
def test_a_client_that_does_not_read_is_not_read_from(server: Server, certificate: Path) -> None:
    """Nor does it hold the others up."""
    payload = pattern(64 << 20)
    with tls_client(server, certificate) as greedy, tls_client(server, certificate) as other:
        greedy.settimeout(1.0)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < len(payload):
                sent += greedy.send(payload[sent : sent + 16384])
        assert sent < len(payload)
        other.settimeout(LIMIT)
        other.sendall(b"x")
        assert other.recv(1) == b"x"
