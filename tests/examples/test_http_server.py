"""The HTTP server, seen by curl, by wrk and by plain sockets."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

import pytest

from tests.backends import Name
from tests.examples.real_clients import curl, wrk
from tests.peers import receive_exactly, receive_until_eof
from tests.server_process import Server, running

pytest.importorskip("h11")


@pytest.fixture
def server(backend: Name) -> Iterator[Server]:
    with running("examples.http_server", "--backend", backend) as program:
        yield program


def test_curl_gets_and_keeps_the_connection(server: Server) -> None:
    host, port = server.address
    verbose = ("--write-out", "%{http_code} %{num_connects}\n")
    output = curl(server, "/first", *verbose, *verbose, f"http://{host}:{port}/second").decode()
    assert output.splitlines() == [
        *("hello from gaio, you asked for /second", "200 1"),
        *("hello from gaio, you asked for /first", "200 0"),
    ]


def test_curl_posts(server: Server) -> None:
    """More than one read brings, and with `Expect: 100-continue`, which curl sends for a body of this size."""
    body = b"0123456789" * 30_000
    assert curl(server, "/", "--data-binary", "@-", stdin=body) == body
    assert curl(server, "/", "--data-binary", "@-", "--header", "Transfer-Encoding: chunked", stdin=body) == body
    assert curl(server, "/", "--data-binary", "@-", "--header", "Expect: 100-continue", stdin=body) == body


def test_curl_asks_for_the_head(server: Server) -> None:
    head = curl(server, "/", "--head").decode()
    assert head.startswith("HTTP/1.1 200")
    assert "content-length: 33" in head


def test_curl_is_told_what_is_too_large(server: Server) -> None:
    body = bytes(2_000_000)
    code = curl(server, "/", "--data-binary", "@-", "--output", "/dev/null", "--write-out", "%{http_code}", stdin=body)
    assert code == b"413"


def test_wrk_finds_no_error(server: Server) -> None:
    report = wrk(server, "--connections", "20", "--threads", "1", "--duration", "1s", "--latency")
    requests = re.search(r"(\d+) requests in", report)
    assert requests is not None, report
    assert int(requests[1]) > 0
    assert "Socket errors" not in report
    assert "Non-2xx" not in report


GET = b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n"


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    with server.client() as client:
        client.sendall(b"".join(GET % number for number in range(100)))
        client.shutdown(socket.SHUT_WR)
        answers = receive_until_eof(client)
    assert re.findall(rb"asked for /(\d+)", answers) == [b"%d" % number for number in range(100)]


def test_a_request_in_single_bytes(server: Server) -> None:
    with server.client() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in GET % 1:
            client.sendall(bytes([byte]))
        assert receive_exactly(client, 15) == b"HTTP/1.1 200 \r\n"


def test_the_last_answer_ends_the_connection(server: Server) -> None:
    with server.client() as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert receive_until_eof(client).endswith(b"hello from gaio, you asked for /\n")


@pytest.mark.parametrize(
    "nonsense", [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" * 10 + b"\r\n\r\n"]
)
def test_nonsense_is_answered_with_400(server: Server, nonsense: bytes) -> None:
    with server.client() as client:
        client.sendall(nonsense)
        assert receive_until_eof(client).startswith(b"HTTP/1.1 400")


def test_who_wants_a_tunnel_is_refused(server: Server) -> None:
    with server.client() as client:
        client.sendall(b"CONNECT there:1 HTTP/1.1\r\nHost: there\r\n\r\n")
        assert receive_until_eof(client).startswith(b"HTTP/1.1 405")
    assert curl(server, "/")


def test_nonsense_after_a_head(server: Server) -> None:
    with server.client() as client:
        client.sendall(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n\0nonsense\r\n\r\n")
        answers = receive_until_eof(client)
    assert answers.startswith(b"HTTP/1.1 200")
    assert answers.endswith(b"\r\n\r\nnot understood\n")
    assert curl(server, "/")


def test_a_silent_client_is_dropped(backend: Name) -> None:
    options = ("--backend", backend, "--idle", "0.1")
    with running("examples.http_server", *options) as server, server.client() as client:
        assert client.recv(1) == b""
