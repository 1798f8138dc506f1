"""The WSGI server, seen by curl, ab, wrk and plain sockets; its application is one that was made to be difficult."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.backends import Name
from tests.examples.real_clients import ab, curl, wrk
from tests.peers import pattern, receive_exactly, receive_until_eof, reset
from tests.server_process import Server, output_of_failure, running
from tests.waiting import LIMIT, Background, wait_until

EXAMPLE = "examples.wsgi_server"
APPLICATIONS = "tests.examples.wsgi_applications"
VALIDATED = f"{APPLICATIONS}:validated"


@pytest.fixture
def server(backend: Name) -> Iterator[Server]:
    """With the application behind wsgiref's validator: what either does wrong is an error, and told."""
    with running(EXAMPLE, VALIDATED, "--backend", backend) as program:
        yield program


@pytest.fixture
def bare(backend: Name) -> Iterator[Server]:
    """Without the validator, which does not let an application do what is wrong."""
    with running(EXAMPLE, APPLICATIONS, "--backend", backend, "--timeout", "1") as program:
        yield program


def get(path: str, *headers: str, method: str = "GET", version: str = "1.1") -> bytes:
    head = [f"{method} {path} HTTP/{version}", "Host: here", *headers]
    return "".join(line + "\r\n" for line in [*head, ""]).encode("latin-1")


class Conversation:
    """A client on a connection that is kept."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.stream = sock.makefile("rb")

    def ask(self, path: str, *headers: str, method: str = "GET", body: bytes = b"") -> tuple[int, bytes]:
        self.sock.sendall(get(path, *headers, method=method) + body)
        return self.answer(method)[0::2]

    def answer(self, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        status = int(self.stream.readline().split()[1])
        headers = {}
        while (line := self.stream.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        if method == "HEAD" or status in (100, 204, 304):
            return status, headers, b""
        if "transfer-encoding" in headers:
            body = b""
            while size := int(self.stream.readline(), 16):
                body += self.stream.read(size)
                assert self.stream.readline() == b"\r\n"
            assert self.stream.readline() == b"\r\n"
            return status, headers, body
        if "content-length" in headers:
            return status, headers, self.stream.read(int(headers["content-length"]))
        return status, headers, self.stream.read()

    def ended(self) -> bool:
        return self.stream.read(1) == b""

    def close(self) -> None:
        self.stream.close()


@pytest.fixture
def client(server: Server) -> Iterator[Conversation]:
    with server.client() as sock:
        conversation = Conversation(sock)
        yield conversation
        conversation.close()


def talk(server: Server, request: bytes) -> bytes:
    """All that is answered to this, until the server ends the connection."""
    with server.client() as sock:
        sock.sendall(request)
        return receive_until_eof(sock)


# --- what it serves -------------------------------------------------------------------------------------------


def test_without_an_application_it_says_hello(backend: Name) -> None:
    with running(EXAMPLE, "--backend", backend) as server:
        assert curl(server, "/there") == b"hello from gaio, you asked for /there\n"
        body = pattern(1_000_000)
        assert curl(server, "/", "--data-binary", "@-", stdin=body) == body


def test_curl_keeps_the_connection(server: Server) -> None:
    host, port = server.address
    verbose = ("--write-out", " %{http_code} %{num_connects}\n")
    output = curl(server, "/first", *verbose, *verbose, f"http://{host}:{port}/second").decode()
    assert output.splitlines() == ["hello /second 200 1", "hello /first 200 0"]


@pytest.mark.parametrize("size", [1, 100_000, 3_000_000])
@pytest.mark.parametrize("options", [(), ("--header", "Transfer-Encoding: chunked")], ids=["length", "chunked"])
@pytest.mark.parametrize("expects", [(), ("--header", "Expect: 100-continue")], ids=["at once", "when asked"])
def test_curl_uploads(server: Server, size: int, options: tuple[str, ...], expects: tuple[str, ...]) -> None:
    body = pattern(size)
    answer = curl(server, "/upload", *options, *expects, "--data-binary", "@-", stdin=body).decode()
    assert answer == f"{size} {hashlib.sha256(body).hexdigest()} {size}"


def test_curl_downloads(server: Server) -> None:
    size = 50_000_000
    expected = (bytes(range(256)) * (size // 256 + 1))[:size]
    assert curl(server, f"/endless?{size}") == expected
    assert len(curl(server, "/at_once?50000000")) > 49_900_000


def test_wrk_finds_no_error(server: Server) -> None:
    report = wrk(server, "--connections", "20", "--threads", "1", "--duration", "1s", "--latency")
    requests = re.search(r"(\d+) requests in", report)
    assert requests is not None, report
    assert int(requests[1]) > 0
    assert "Socket errors" not in report
    assert "Non-2xx" not in report


@pytest.mark.parametrize("options", [("-k",), ()], ids=["keeping", "closing"])
def test_ab_finds_no_error(server: Server, options: tuple[str, ...]) -> None:
    """It speaks HTTP/1.0, where a connection ends unless both want to keep it."""
    report = ab(server, "-n", "500", "-c", "10", *options)
    assert re.search(r"Complete requests: +500\n", report), report
    assert re.search(r"Failed requests: +0\n", report), report
    assert ("Keep-Alive requests:    500" in report) == bool(options), report


def test_an_application_of_flask(backend: Name) -> None:
    pytest.importorskip("flask")
    with running(EXAMPLE, "tests.examples.flask_application", "--backend", backend) as server:
        assert curl(server, "/hello/w%C3%B6rld").decode() == "hello wörld"
        form = curl(server, "/form", "--form", "text=words", "--form", "file=@-;filename=f", stdin=pattern(1_000_000))
        assert json.loads(form) == {"text": "words", "name": "f", "size": 1_000_000}
        assert curl(server, "/source") == Path(__file__).with_name("flask_application.py").read_bytes()
        assert curl(server, "/stream") == b"".join(b"%d\n" % number for number in range(1000))
        assert curl(server, "/elsewhere", "--location") == b"hello from elsewhere"
        assert curl(server, "/teapot", "--write-out", "%{http_code}", "--output", "/dev/null") == b"418"


def test_what_the_application_is_told(client: Conversation) -> None:
    _, body = client.ask(
        "/to%6Cd?a=b%20c",
        *("X-One: 1", "x-one:2", "Cookie: a", "Cookie: b", "X_One: forged", "Proxy: forged", "Content-Type: text/x"),
    )
    environ = json.loads(body)
    wanted = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/told",
        "QUERY_STRING": "a=b%20c",
        "CONTENT_TYPE": "text/x",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": str(client.sock.getpeername()[1]),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_PORT": str(client.sock.getsockname()[1]),
        "HTTP_HOST": "here",
        "HTTP_X_ONE": "1,2",
        "HTTP_COOKIE": "a; b",
        "wsgi.url_scheme": "http",
    }
    assert environ == wanted


@pytest.mark.parametrize(
    ("target", "host", "path"),
    [
        ("http://there:80/told?q", "there:80", "/told"),
        ("HTTP://there/told", "there", "/told"),
    ],
)
def test_the_target_may_be_a_whole_address(client: Conversation, target: str, host: str, path: str) -> None:
    """RFC 9112 section 3.2.2: then the header Host does not count."""
    environ = json.loads(client.ask(target)[1])
    assert (environ["HTTP_HOST"], environ["PATH_INFO"]) == (host, path)


def test_the_server_as_a_whole_may_be_asked_for_its_options(client: Conversation) -> None:
    assert client.ask("*", method="OPTIONS") == (200, b"hello ")


# --- answers --------------------------------------------------------------------------------------------------


def test_an_answer_in_parts_is_chunked(client: Conversation) -> None:
    client.sock.sendall(get("/lines"))
    status, headers, body = client.answer()
    assert (status, body, headers["transfer-encoding"]) == (200, b"first\nsecond\n", "chunked")
    assert "content-length" not in headers
    assert client.ask("/written") == (200, b"written, and returned")
    assert client.ask("/after") == (200, b"hello /after")


def test_an_old_client_sees_the_end_of_such_an_answer_by_that_of_the_connection(server: Server) -> None:
    answer = talk(server, get("/lines", "Connection: keep-alive", version="1.0"))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Connection: close" in head
    assert b"Transfer-Encoding" not in head
    assert body == b"first\nsecond\n"


def test_what_has_no_body_has_none(bare: Server) -> None:
    """Though the application made one; what follows on the connection is understood."""
    with bare.client() as sock:
        client = Conversation(sock)
        for path, method in (
            ("/status?204+No+Content", "GET"),
            ("/status?304+Not+Modified", "GET"),
            ("/status?200+OK", "HEAD"),
            ("/lines", "HEAD"),
            ("/endless?1000000", "HEAD"),
        ):
            sock.sendall(get(path, method=method))
            status, headers, _ = client.answer(method)
            assert ("content-length" in headers) == (path not in ("/status?204+No+Content", "/lines"))
            assert status == (int(path[8:11]) if path.startswith("/status") else 200)
        assert client.ask("/after") == (200, b"hello /after")
        client.close()


@pytest.mark.parametrize("path", ["/fails_before", "/splits", "/leaves"])
def test_an_application_that_fails_is_an_answer_of_500(backend: Name, path: str) -> None:
    with running(EXAMPLE, APPLICATIONS, "--backend", backend) as server:
        assert talk(server, get(path)).startswith(b"HTTP/1.1 500 ")
        assert b"Set-Cookie" not in talk(server, get(path))
        assert curl(server, "/after") == b"hello /after"
        status, complaints = server.stop(signal.SIGINT)
    assert status == 0
    assert complaints.count("Traceback") == 2


@pytest.mark.parametrize("path", ["/fails_between", "/promises_too_much"])
def test_an_answer_that_breaks_off_is_not_taken_for_a_whole_one(backend: Name, path: str) -> None:
    with running(EXAMPLE, APPLICATIONS, "--backend", backend) as server:
        answer = talk(server, get(path))
        assert b"0\r\n\r\n" not in answer
        assert curl(server, "/after") == b"hello /after"
        status, complaints = server.stop(signal.SIGINT)
    assert status == 0
    assert complaints.count("Traceback") == 1


def test_an_answer_that_is_started_anew(bare: Server) -> None:
    assert curl(bare, "/mends", "--write-out", " %{http_code}") == b"mended 502"


# --- one connection, many requests ----------------------------------------------------------------------------


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    """Of all kinds: with bodies of either kind, and answers of either kind."""
    requests = [
        request
        for number in range(50)
        for request in (
            get(f"/{number}"),
            get("/upload", "Content-Length: 5", method="POST") + b"%05d" % number,
            get("/lines"),
            get("/upload", "Transfer-Encoding: chunked", method="POST") + b"3\r\n%03d\r\n0\r\n\r\n" % number,
        )
    ]
    with server.client() as sock:
        sender = Background(lambda: sock.sendall(b"".join(requests)))
        client = Conversation(sock)
        for number in range(50):
            assert client.answer()[2] == b"hello /%d" % number
            assert client.answer()[2].startswith(b"5 %b" % hashlib.sha256(b"%05d" % number).hexdigest().encode())
            assert client.answer()[2] == b"first\nsecond\n"
            assert client.answer()[2].startswith(b"3 %b" % hashlib.sha256(b"%03d" % number).hexdigest().encode())
        sender.result()
        client.close()


def test_a_request_in_single_bytes(client: Conversation) -> None:
    client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    body = b"4;ext=1\r\nbody\r\n0\r\nTrailer: x\r\n\r\n"
    for byte in b"\r\n" + get("/upload", "Transfer-Encoding: chunked", method="POST") + body:
        client.sock.sendall(bytes([byte]))
    assert client.answer()[2].startswith(b"4 ")


def test_a_client_that_has_said_all_gets_its_answers(server: Server) -> None:
    with server.client() as sock:
        sock.sendall(get("/1") + get("/endless?1000000") + get("/2"))
        sock.shutdown(socket.SHUT_WR)
        answers = receive_until_eof(sock)
    assert len(answers) > 1_000_000
    assert answers.endswith(b"hello /2")


def test_the_last_answer_ends_the_connection(server: Server) -> None:
    answer = talk(server, get("/last", "Connection: Foo, close") + get("/never"))
    assert answer.count(b"HTTP/1.1") == 1
    assert b"Connection: close\r\n" in answer
    assert answer.endswith(b"hello /last")


def test_a_body_that_nobody_read_is_not_the_next_request(client: Conversation) -> None:
    body = get("/smuggled")
    assert client.ask("/unread", f"Content-Length: {len(body)}", method="POST", body=body)[0] == 403
    assert client.ask("/after") == (200, b"hello /after")


def test_the_body_is_asked_for_when_the_client_waits_for_that(client: Conversation) -> None:
    headers = ("Content-Length: 4", "Expect: 100-continue")
    client.sock.sendall(get("/upload", *headers, method="POST"))
    assert receive_exactly(client.sock, 25) == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.sock.sendall(b"body")
    assert client.answer()[2].startswith(b"4 ")


def test_a_body_that_is_there_already_is_not_asked_for(client: Conversation) -> None:
    assert client.ask("/upload", "Content-Length: 1", "Expect: 100-continue", method="POST", body=b"x")[0] == 200


def test_what_pipelined_requests_wait_for_is_bounded(bare: Server) -> None:
    """Who asks without end, and takes no answer, has to wait: it fills its own connection, and is cut off."""
    with bare.client(receive_buffer=4096) as sock:
        requests = get("/endless?10000") * 1000
        sent = 0
        try:
            while True:
                sent += sock.send(requests)
        except (ConnectionResetError, BrokenPipeError):
            pass
        assert sent < 50_000_000
    assert curl(bare, "/after") == b"hello /after"


# --- what it refuses ------------------------------------------------------------------------------------------

POST = b"POST /upload HTTP/1.1\r\nHost: here\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
REFUSED = {
    "nonsense": (400, b"nonsense\r\n\r\n"),
    "TLS": (400, b"\x16\x03\x01\x00\n" * 10 + b"\r\n\r\n"),
    "no host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "no host but in the target": (400, b"GET http://here/ HTTP/1.1\r\n\r\n"),
    "a user in the target": (400, get("http://user@here/")),
    "two hosts": (400, get("/", "Host: there")),
    "a host with a path": (400, b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
    "another version": (505, b"GET / HTTP/2.0\r\n\r\n"),
    "HTTP/0.9": (400, b"GET /\r\n\r\n"),
    "two spaces": (400, b"GET  / HTTP/1.1\r\nHost: here\r\n\r\n"),
    "a tab": (400, b"GET\t/ HTTP/1.1\r\nHost: here\r\n\r\n"),
    "a fragment": (400, get("/#x")),
    "no path": (400, get("there")),
    "a tunnel": (501, get("there:443", method="CONNECT")),
    "bare LF": (400, b"GET / HTTP/1.1\nHost: here\n\n"),
    "one bare LF": (400, b"GET / HTTP/1.1\r\nHost: here\nX: y\r\n\r\n"),
    "bare CR": (400, get("/", "X: a\rb")),
    "NUL": (400, get("/", "X: a\0b")),
    "a folded line": (400, get("/", "X: a", " b")),
    "space before the colon": (400, get("/", "Content-Length : 5", method="POST") + b"hello"),
    "space before the first name": (400, b"GET / HTTP/1.1\r\n Host: here\r\n\r\n"),
    "no name": (400, get("/", ": x")),
    "no colon": (400, get("/", "x")),
    "length and chunks": (400, POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "chunks and length": (400, POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"),
    "two lengths": (400, POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello"),
    "the same length twice": (400, POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello"),
    "a list of lengths": (400, POST + b"Content-Length: 5, 5\r\n\r\nhello"),
    "a length with a sign": (400, POST + b"Content-Length: +5\r\n\r\nhello"),
    "a length below zero": (400, POST + b"Content-Length: -5\r\n\r\nhello"),
    "a length with an underscore": (400, POST + b"Content-Length: 1_0\r\n\r\nhellohello"),
    "a length in hexadecimal": (400, POST + b"Content-Length: 0x5\r\n\r\nhello"),
    "no length": (400, POST + b"Content-Length:\r\n\r\n"),
    "a superscript": (400, POST + b"Content-Length: \xb2\r\n\r\n"),
    "another coding": (501, POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    "chunked twice": (400, POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "a coding with a control": (400, POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n"),
    "identity": (501, POST + b"Transfer-Encoding: identity\r\n\r\n"),
    "chunks in HTTP/1.0": (400, b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "a chunk without a size": (400, CHUNKED + b"\r\nhello\r\n0\r\n\r\n"),
    "a chunk of minus one": (400, CHUNKED + b"-1\r\nhello\r\n0\r\n\r\n"),
    "a chunk of 0x5": (400, CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n"),
    "space before a chunk's size": (400, CHUNKED + b" 5\r\nhello\r\n0\r\n\r\n"),
    "space behind a chunk's size": (400, CHUNKED + b"5 \r\nhello\r\n0\r\n\r\n"),
    "a chunk's size of many digits": (400, CHUNKED + b"0" * 16 + b"5\r\nhello\r\n0\r\n\r\n"),
    "a bare LF behind a chunk's size": (400, CHUNKED + b"5\nhello\r\n0\r\n\r\n"),
    "a bare LF in an extension": (400, CHUNKED + b"5;a\nb\r\nhello\r\n0\r\n\r\n"),
    "a bare CR in an extension": (400, CHUNKED + b"5;a\rb\r\nhello\r\n0\r\n\r\n"),
    "a chunk that is longer": (400, CHUNKED + b"5\r\nhello!\r\n0\r\n\r\n"),
    "a bare LF behind a chunk": (400, CHUNKED + b"5\r\nhello\n0\r\n\r\n"),
    "a trailer without a colon": (400, CHUNKED + b"0\r\nx\r\n\r\n"),
    "another expectation": (417, POST + b"Content-Length: 5\r\nExpect: more\r\n\r\nhello"),
    "a long line": (414, b"GET /" + b"x" * 70_000),
    "a long line, complete": (414, get("/" + "x" * 70_000)),
    "a large head": (431, get("/", *["X: y"] * 20_000)),
    "a head without end": (431, b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000),
    "a long line of a chunk": (431, CHUNKED + b"5;" + b"x" * 70_000),
    "trailers without end": (431, CHUNKED + b"0\r\n" + b"X: y\r\n" * 20_000),
    "more than it takes": (413, POST + b"Content-Length: 2000000000\r\n\r\n"),
    "more than it takes, asked for": (413, POST + b"Content-Length: 2000000000\r\nExpect: 100-continue\r\n\r\n"),
    "a chunk of more than it takes": (413, CHUNKED + b"7fffffff\r\n"),
}


@pytest.fixture(scope="module")
def one_server() -> Iterator[Server]:
    """For many requests that have nothing to do with the backend."""
    with running(EXAMPLE, APPLICATIONS) as program:
        yield program


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_request_is_refused_and_nothing_behind_it_is_read(one_server: Server, what: str) -> None:
    """RFC 9112 section 11.2: what could be understood in two ways would be a way to smuggle requests."""
    status, request = REFUSED[what]
    with one_server.client() as sock:
        sender = Background(lambda: _send_as_much_as_it_takes(sock, request + get("/smuggled")))
        answer = receive_until_eof(sock)
        sender.result()
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.count(b"HTTP/1.1") == 1
    assert b"\r\nConnection: close\r\n" in answer


def _send_as_much_as_it_takes(sock: socket.socket, data: bytes) -> None:
    try:
        sock.sendall(data)
    except (BrokenPipeError, ConnectionResetError):
        pass  # it has seen enough


def test_a_limit_for_bodies(backend: Name) -> None:
    with running(EXAMPLE, VALIDATED, "--backend", backend, "--max-body", "1000") as server:
        for options in ((), ("--header", "Transfer-Encoding: chunked")):
            assert curl(server, "/upload", *options, "--data-binary", "@-", stdin=bytes(1000)).startswith(b"1000 ")
            code = ("--output", "/dev/null", "--write-out", "%{http_code}")
            assert curl(server, "/upload", *options, *code, "--data-binary", "@-", stdin=bytes(1001)) == b"413"


def test_a_refusal_arrives_though_the_client_goes_on_sending(server: Server) -> None:
    """Closed at once, the connection would be reset by what comes, and the answer thrown away."""
    with server.client() as sock:
        request = POST + b"Content-Length: x\r\n\r\n" + bytes(5_000_000)
        sender = Background(lambda: sock.sendall(request))
        assert receive_until_eof(sock).startswith(b"HTTP/1.1 400 ")
        sender.result()


# --- slow clients ---------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(backend: Name) -> Iterator[Server]:
    with running(EXAMPLE, VALIDATED, "--backend", backend, "--timeout", "0.2", "--threads", "1") as program:
        yield program


def test_a_silent_client_is_let_go_of(impatient: Server) -> None:
    with impatient.client() as sock:
        assert sock.recv(1) == b""
        assert curl(impatient, "/after") == b"hello /after"


@pytest.mark.parametrize("begun", [b"GET / HT", POST, POST + b"Content-Length: 5\r\n\r\nhel", CHUNKED + b"5\r\nhel"])
def test_who_does_not_go_on_is_cut_off(impatient: Server, begun: bytes) -> None:
    with impatient.client() as sock:
        sock.sendall(begun)
        assert curl(impatient, "/meanwhile") == b"hello /meanwhile"
        assert receive_until_eof(sock).startswith(b"HTTP/1.1 408 ")


def test_who_sends_a_head_drop_by_drop_is_cut_off(impatient: Server) -> None:
    """The time is for the whole of it."""
    with impatient.client() as sock:
        limit = time.monotonic() + LIMIT
        sock.sendall(b"GET / HTTP/1.1\r\n")
        try:
            while time.monotonic() < limit:
                sock.sendall(b"X: y\r\n")
                time.sleep(0.01)
        except (ConnectionResetError, BrokenPipeError):
            return
        raise AssertionError("it went on for ever")


def test_slow_uploads_hold_no_thread(backend: Name) -> None:
    with running(EXAMPLE, VALIDATED, "--backend", backend, "--threads", "1") as server, ExitStack() as clients:
        slow = [Conversation(clients.enter_context(server.client())) for _ in range(20)]
        for client in slow:
            client.sock.sendall(POST + b"Content-Length: 1000000\r\n\r\n" + bytes(500_000))
        assert curl(server, "/meanwhile") == b"hello /meanwhile"
        for client in slow:
            client.sock.sendall(bytes(500_000))
            assert client.answer()[2].startswith(b"1000000 ")
            client.close()


def test_an_answer_waits_for_a_client_that_reads_slowly_and_then_gives_up(impatient: Server) -> None:
    """The application is asked for more only when there is room; at the end its close() is called."""
    with impatient.client(receive_buffer=4096) as sock:
        sock.sendall(get("/endless?1000000000"))

        def state() -> list[int]:
            answer: list[int] = json.loads(curl(impatient, "/state"))
            return answer

        wait_until(lambda: state()[1], "the end of the answer")
        produced, _, _ = state()
    assert 0 < produced < 50_000_000


@pytest.mark.parametrize("path", ["/endless", "/at_once"])
def test_who_takes_an_answer_slowly_and_steadily_gets_it_all(bare: Server, path: str) -> None:
    """It takes longer than the second that there is for a client that takes nothing, though it sends nothing either."""
    with bare.client() as sock:
        sock.sendall(get(f"{path}?60030976", "Connection: close"))
        size = 0
        while part := sock.recv(100_000):
            size += len(part)
            time.sleep(0.002)
    assert size > 60_030_976


@pytest.mark.parametrize("last", [(), ("Connection: close",)], ids=["keeping", "closing"])
@pytest.mark.parametrize("ends", [False, True])
def test_who_takes_nothing_of_an_answer_in_one_piece_is_cut_off(
    backend: Name, ends: bool, last: tuple[str, ...]
) -> None:
    """A peer that reads nothing cannot see it. The server ends when it has no clients, long before its grace does."""
    options = ("--backend", backend, "--timeout", "0.2", "--grace", "1000")
    with running(EXAMPLE, APPLICATIONS, *options) as server, server.client(receive_buffer=4096) as sock:
        sock.sendall(get("/at_once?50000000", *last))
        assert receive_exactly(sock, 8) == b"HTTP/1.1"
        if ends:
            sock.shutdown(socket.SHUT_WR)
        assert server.stop(signal.SIGTERM) == (0, "")


# --- threads --------------------------------------------------------------------------------------------------


def under_way(server: Server) -> int:
    count: int = json.loads(curl(server, "/state"))[2]
    return count


def test_an_application_that_waits_holds_nobody_up(backend: Name, tmp_path: Path) -> None:
    path = tmp_path / "now"
    with running(EXAMPLE, VALIDATED, "--backend", backend, "--threads", "4") as server, ExitStack() as clients:
        waiting = [Conversation(clients.enter_context(server.client())) for _ in range(3)]
        for number, client in enumerate(waiting):
            client.sock.sendall(get(f"/until?path={path}"))
            wait_until(lambda: under_way(server) > number, "the application to wait")  # noqa: B023  # called at once
        assert curl(server, "/meanwhile") == b"hello /meanwhile"
        path.touch()
        for client in waiting:
            assert client.answer()[2] == b"at last"
            client.close()


def test_with_every_thread_taken_requests_wait_and_refusals_do_not(backend: Name, tmp_path: Path) -> None:
    path = tmp_path / "now"
    with running(EXAMPLE, VALIDATED, "--backend", backend, "--threads", "2") as server, ExitStack() as clients:
        waiting = [Conversation(clients.enter_context(server.client())) for _ in range(20)]
        for client in waiting:
            client.sock.sendall(get(f"/until?path={path}") + get("/after"))
        assert talk(server, b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400 ")
        path.touch()
        for client in waiting:
            assert client.answer()[2] == b"at last"
            assert client.answer()[2] == b"hello /after"
            client.close()


def test_clients_that_go_while_they_are_served(backend: Name, tmp_path: Path) -> None:
    path = tmp_path / "now"
    with running(EXAMPLE, VALIDATED, "--backend", backend, "--threads", "2") as server:
        for number in range(40):
            with server.client() as sock:
                sock.sendall(get(("/endless?100000000", f"/until?path={path}", "/lines", "/")[number % 4]))
                if number % 8 < 4:
                    reset(sock)
        path.touch()
        assert curl(server, "/after") == b"hello /after"


# --- the end --------------------------------------------------------------------------------------------------


def is_refused(server: Server) -> bool:
    try:
        with server.client():
            return False
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        return False  # it had come into the backlog, and was reset with that


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM], ids=lambda by: by.name)
def test_a_signal_lets_those_being_served_finish(backend: Name, by: signal.Signals, tmp_path: Path) -> None:
    path = tmp_path / "now"
    with running(EXAMPLE, VALIDATED, "--backend", backend, "--grace", str(LIMIT)) as server, ExitStack() as clients:
        idle, busy, sending = (Conversation(clients.enter_context(server.client())) for _ in range(3))
        assert idle.ask("/") == (200, b"hello /")
        sending.sock.sendall(POST + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        assert sending.answer()[0] == 100
        busy.sock.sendall(get(f"/until?path={path}"))
        wait_until(lambda: under_way(server), "the application to wait")
        server.process.send_signal(by)
        assert idle.ended()
        wait_until(lambda: is_refused(server), "no new client to be accepted")
        path.touch()
        assert busy.answer()[2] == b"at last"
        assert busy.ended()
        sending.sock.sendall(b"hello")
        assert sending.answer()[2].startswith(b"5 ")
        assert sending.ended()
        for client in (idle, busy, sending):
            client.close()
        assert server.process.wait(LIMIT) == 0


@pytest.mark.parametrize("grace", ["0", str(LIMIT)])
def test_after_the_grace_or_another_signal_the_rest_is_cut_off(backend: Name, grace: str, tmp_path: Path) -> None:
    with running(EXAMPLE, VALIDATED, "--backend", backend, "--grace", grace) as server, server.client() as sock:
        sock.sendall(get(f"/until?path={tmp_path / 'never'}"))
        wait_until(lambda: under_way(server), "the application to wait")
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: is_refused(server), "no new client to be accepted")
        if grace != "0":
            server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(LIMIT) == 0
        assert receive_until_eof(sock) == b""


def test_more_clients_than_descriptors() -> None:
    """One too many waits; the others are served, and when they leave, there is room again."""
    few = ("/bin/sh", "-c", 'ulimit -n 32; exec "$@"', "sh")
    with running(EXAMPLE, under=few) as server:

        def is_served(sock: socket.socket) -> bool:
            try:
                sock.sendall(get("/"))
                return sock.recv(8) == b"HTTP/1.1"
            except (ConnectionResetError, BrokenPipeError):
                return False

        with ExitStack() as clients:
            crowd = 0
            while True:
                client = clients.enter_context(server.client())
                client.sendall(get("/"))
                if server.complains_before(client):
                    break
                assert client.recv(8) == b"HTTP/1.1"
                crowd += 1
            assert 10 < crowd < 32

        def a_new_client_is_served() -> bool:
            with server.client() as sock:
                return is_served(sock)

        wait_until(a_new_client_is_served, "room for a new client")
        status, complaints = server.stop(signal.SIGINT)
    assert status == 0
    out_of_descriptors = str(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
    assert {line[line.find("[") :] for line in complaints.splitlines()} == {out_of_descriptors}


@pytest.mark.parametrize("name", ["no_such_module:application", f"{APPLICATIONS}:no_such_name"])
def test_an_application_that_does_not_exist_is_told(name: str) -> None:
    complaints = output_of_failure(EXAMPLE, name)
    assert complaints.startswith(f"cannot serve: {name}: ")
    assert complaints.count("\n") == 1
