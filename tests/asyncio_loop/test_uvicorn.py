"""uvicorn with a Starlette application, seen by curl, by the client of `websockets` and by plain sockets."""

from __future__ import annotations

import hashlib
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")
pytest.importorskip("websockets")

from websockets.sync.client import connect

from tests.asyncio_loop.uvicorn_application import PIECE, SIZE
from tests.asyncio_loop.uvicorn_process import Uvicorn, uvicorn
from tests.examples.real_clients import curl, run
from tests.peers import pattern, receive_exactly, receive_until_eof, reset
from tests.waiting import LIMIT, wait_until

HEAD = b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\n"
TEXT = b"content-type: text/plain; charset=utf-8\r\n"
BODY = pattern(SIZE)
SUM = f"{SIZE} {hashlib.sha256(BODY).hexdigest()}".encode()


@pytest.fixture(scope="module", params=["httptools", "h11"])
def server(request: pytest.FixtureRequest, loop: str) -> Iterator[Uvicorn]:
    pytest.importorskip(request.param)
    with uvicorn(loop, "--http", request.param) as program:
        yield program


def get(path: str, headers: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode()


def receive_head(client: socket.socket) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += receive_exactly(client, 1)
    return head


def hello(number: int) -> bytes:
    text = b"hello %d" % number
    return HEAD + b"content-length: %d\r\n" % len(text) + TEXT + b"\r\n" + text


def test_is_served_by_that_loop(server: Uvicorn, loop: str) -> None:
    assert curl(server, "/loop").decode() == loop


def test_curl_keeps_the_connection(server: Uvicorn) -> None:
    host, port = server.address
    counted = ("--write-out", " %{num_connects}\n")
    output = curl(server, "/hello/1", *counted, *counted, f"http://{host}:{port}/hello/2")
    assert output.splitlines() == [b"hello 2 1", b"hello 1 0"]


def test_one_request_after_the_other(server: Uvicorn) -> None:
    with server.client() as client:
        for number in range(100):
            client.sendall(get(f"/hello/{number}"))
            assert receive_exactly(client, len(hello(number))) == hello(number)


def test_many_connections_and_pipelined_requests(server: Uvicorn) -> None:
    requests = b"".join(get(f"/hello/{number}") for number in range(20))
    answers = b"".join(hello(number) for number in range(20))
    with ExitStack() as stack:
        clients = [stack.enter_context(server.client()) for _ in range(64)]
        for client in clients:
            client.sendall(requests)
        for client in clients:
            assert receive_exactly(client, len(answers)) == answers


def test_a_client_that_has_said_all_gets_its_answer(server: Uvicorn) -> None:
    """Although uvicorn has its transport closed as soon as the client has: the request is answered before."""
    with server.client() as client:
        client.sendall(get("/hello/1"))
        client.shutdown(socket.SHUT_WR)
        assert receive_until_eof(client) == hello(1)


def test_the_last_answer_is_followed_by_the_end(server: Uvicorn) -> None:
    with server.client() as client:
        client.sendall(get("/hello/1") + get("/count/2", "Connection: close\r\n"))
        assert receive_exactly(client, len(hello(1))) == hello(1)
        head, _, body = receive_until_eof(client).partition(b"\r\n\r\n")
    assert head.startswith(HEAD)
    assert body == b"2\r\n0\n\r\n2\r\n1\n\r\n0\r\n\r\n"


def test_what_is_streamed(server: Uvicorn) -> None:
    assert curl(server, "/count/3000") == b"".join(b"%d\n" % number for number in range(3000))


@pytest.mark.parametrize("path", ["/download", "/download-in-pieces"])
def test_ten_megabytes_down(server: Uvicorn, path: str) -> None:
    assert curl(server, path) == BODY


def test_ten_megabytes_down_to_a_client_that_is_slow(server: Uvicorn) -> None:
    """It has little room, and reads when the server has long been waiting for it."""
    with server.client(receive_buffer=4096) as client:
        client.sendall(get("/download", "Connection: close\r\n"))
        assert curl(server, "/hello/1") == b"hello 1"
        assert receive_until_eof(client).partition(b"\r\n\r\n")[2] == BODY


@pytest.mark.parametrize("header", ["Expect:", "Expect: 100-continue", "Transfer-Encoding: chunked"])
def test_ten_megabytes_up(server: Uvicorn, header: str) -> None:
    assert curl(server, "/upload", "--data-binary", "@-", "--header", header, stdin=BODY) == SUM


def test_ten_megabytes_both_ways_at_once(server: Uvicorn) -> None:
    assert curl(server, "/return", "--data-binary", "@-", "--header", "Expect:", stdin=BODY) == BODY


@pytest.mark.parametrize("leave", [socket.socket.close, reset])
def test_a_client_gone_in_the_middle_of_its_download(server: Uvicorn, leave: Callable[[socket.socket], None]) -> None:
    with server.client() as client:
        client.sendall(get("/download-for-ever"))
        receive_exactly(client, 10 * PIECE)
        leave(client)
    assert curl(server, "/next-end") == b"download broken off"


@pytest.mark.parametrize("leave", [socket.socket.close, reset])
def test_a_client_gone_in_the_middle_of_its_upload(server: Uvicorn, leave: Callable[[socket.socket], None]) -> None:
    with server.client() as client:
        client.sendall(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % SIZE)
        client.sendall(BODY[: SIZE // 2])
        leave(client)
    assert curl(server, "/next-end") == b"upload broken off"


def test_websocket(server: Uvicorn) -> None:
    with connect("ws://{}:{}/echo".format(*server.address), proxy=None, max_size=None) as client:
        for message in ("hello", "", b"\0\1\2", "ü" * 1000, BODY[: 1 << 20]):
            client.send(message)
            assert client.recv(LIMIT) == message
        assert client.ping().wait(LIMIT)
        client.close(3000, "enough")
    assert curl(server, "/next-end") == b"websocket ended with 3000"


@pytest.mark.parametrize("leave", [socket.socket.close, reset])
def test_a_websocket_whose_client_is_gone(server: Uvicorn, leave: Callable[[socket.socket], None]) -> None:
    with server.client() as client:
        upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        client.sendall(get("/echo", upgrade + "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"))
        assert receive_head(client).startswith(b"HTTP/1.1 101 ")
        leave(client)
    # Two codes say that no close frame came. Which of them, is uvicorn's choice.
    assert curl(server, "/next-end") in (b"websocket ended with 1005", b"websocket ended with 1006")


def test_a_graceful_stop(loop: str) -> None:
    """A request that is being served when the signal comes is served to its end; new clients are turned away."""
    with uvicorn(loop) as server, server.client() as client:
        client.sendall(b"POST /return HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\nhalf")
        receive_head(client)
        assert receive_exactly(client, 9) == b"4\r\nhalf\r\n"
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: turned_away(server), "the server to listen no more")
        client.sendall(b"done")
        assert receive_until_eof(client) == b"4\r\ndone\r\n0\r\n\r\n"
        assert server.status() == -signal.SIGTERM


def turned_away(server: Uvicorn) -> bool:
    try:
        with server.client():
            return False
    except (ConnectionRefusedError, ConnectionResetError):  # the latter when it came just before the listener went
        return True


def test_a_listener_that_is_handed_over(loop: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, uvicorn(loop, listener=listener.fileno()) as server:
        assert curl(server, "/loop").decode() == loop


def test_a_unix_socket(loop: str, tmp_path: Path) -> None:
    path = str(tmp_path / "listener")
    with uvicorn(loop, "--uds", path):
        answer = run("curl", "--silent", "--max-time", "20", "--unix-socket", path, "http://x/loop", package="curl")
        assert answer.decode() == loop
        large = run("curl", "--silent", "--max-time", "20", "--unix-socket", path, "http://x/download", package="curl")
        assert large == BODY
