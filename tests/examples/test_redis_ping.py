"""The little Redis, seen by redis-cli, by redis-benchmark and by plain sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.backends import Name
from tests.examples.real_clients import redis_benchmark, redis_cli
from tests.peers import receive_exactly, receive_until_eof
from tests.server_process import Server, running
from tests.waiting import Background


@pytest.fixture
def server(backend: Name) -> Iterator[Server]:
    with running("examples.redis_ping", "--backend", backend) as program:
        yield program


def test_redis_cli(server: Server) -> None:
    assert redis_cli(server, "ping") == "PONG\n"
    assert redis_cli(server, "ping", "there") == "there\n"
    assert redis_cli(server, "echo", "with spaces\tand more") == "with spaces\tand more\n"
    assert redis_cli(server, "get", "answer") == "\n"
    assert redis_cli(server, "set", "answer", "42") == "OK\n"
    assert redis_cli(server, "get", "answer") == "42\n"
    assert redis_cli(server, "flushall").startswith("ERR unknown command")
    assert redis_cli(server, "get").startswith("ERR")


@pytest.mark.parametrize("pipeline", ["1", "16"])
def test_redis_benchmark(server: Server, pipeline: str) -> None:
    tests = ("-t", "ping,set,get", "-n", "2000", "-c", "20", "-P", pipeline)
    rates = redis_benchmark(server, *tests)
    assert set(rates) == {"PING_INLINE", "PING_MBULK", "SET", "GET"}
    assert all(rates.values())


def command(*arguments: bytes) -> bytes:
    return b"*%d\r\n" % len(arguments) + b"".join(b"$%d\r\n%s\r\n" % (len(item), item) for item in arguments)


def test_bytes_of_every_kind_and_large_values(server: Server) -> None:
    key, value = b"\0\r\n$3", bytes(range(256)) * 2000
    with server.client() as client:
        client.sendall(command(b"SET", key, value) + command(b"GET", key) + command(b"get", b"other"))
        expected = b"+OK\r\n$512000\r\n" + value + b"\r\n" + b"$-1\r\n"
        assert receive_exactly(client, len(expected)) == expected


def test_a_command_in_single_bytes(server: Server) -> None:
    with server.client() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in command(b"ECHO", b"patience") + b"PING\r\n":
            client.sendall(bytes([byte]))
        expected = b"$8\r\npatience\r\n+PONG\r\n"
        assert receive_exactly(client, len(expected)) == expected


@pytest.mark.parametrize(
    "nonsense",
    [
        b"*x\r\n",
        b"*-1\r\n",
        b"*99999999\r\n",
        b"*1\r\n:5\r\n",
        b"*1\r\n$99999999999\r\n",
        b"*1\r\n\r\n\r\n",
        b"*1\r\n*4\r\nPING\r\n",
        b"*1\r\n$4\r\nPINGxy",
        b"*1\r\n$4\r\nPING\rx",
        b"x" * 2_000_000,
        b"PING " + b"x" * 65_536 + b"\r\n",
        b"*%s\r\n" % (b"9" * 5000),
        b"*3\r\n" + b"$1000000\r\n%s\r\n" % bytes(1_000_000) * 3,
    ],
    ids=lambda nonsense: repr(nonsense[:20]),
)
def test_nonsense_ends_the_connection(server: Server, nonsense: bytes) -> None:
    """After the replies to the commands before it."""
    with server.client() as client:
        client.sendall(command(b"PING"))
        try:
            client.sendall(nonsense)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has been dropped before it was all sent
        expected = b"+PONG\r\n-ERR Protocol error: "
        assert receive_exactly(client, len(expected)) == expected
    assert is_served(server)


def test_lines_of_any_length_up_to_the_bound(server: Server) -> None:
    """In pieces that end anywhere, also within the line end."""
    for length in (1, 1000, 65_000):
        with server.client() as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            message = b"x" * length
            for piece in (b"PING ", message, b"\r", b"\nPING\r\n"):
                client.sendall(piece)
            expected = b"$%d\r\n%s\r\n+PONG\r\n" % (length, message)
            assert receive_exactly(client, len(expected)) == expected


def test_the_replies_before_nonsense_arrive_whole(server: Server) -> None:
    """Although more comes after it, which nobody reads: a connection that is closed with that unread is reset."""
    count = 20_000
    with server.client() as client:
        sending = Background(lambda: client.sendall(command(b"PING") * count + b"*x\r\n" + bytes(300_000)))
        assert receive_exactly(client, 7 * count) == b"+PONG\r\n" * count
        assert receive_exactly(client, 4) == b"-ERR"
        sending.result()
        client.shutdown(socket.SHUT_WR)
        receive_until_eof(client)


def test_empty_commands_are_passed_over(server: Server) -> None:
    with server.client() as client:
        client.sendall(b"\r\n*0\r\n" + command(b"PING"))
        assert receive_exactly(client, 7) == b"+PONG\r\n"


def test_replies_beyond_what_one_write_carries(server: Server) -> None:
    value = bytes(range(256)) * 2000
    whole = b"$512000\r\n%s\r\n" % value
    with server.client() as client:
        client.sendall(command(b"SET", b"key", value) + command(b"GET", b"key") * 20 + command(b"PING"))
        expected = b"+OK\r\n" + whole * 20 + b"+PONG\r\n"
        assert receive_exactly(client, len(expected)) == expected


def is_served(server: Server) -> bool:
    with server.client() as client:
        client.sendall(b"PING\r\n")
        return receive_exactly(client, 7) == b"+PONG\r\n"


def test_a_command_that_never_ends_is_forgotten_with_its_client(server: Server) -> None:
    with server.client() as client:
        client.sendall(b"*2\r\n$4\r\nECHO\r\n$100\r\nonly so much")
        client.shutdown(socket.SHUT_WR)
        assert receive_until_eof(client) == b""
    assert is_served(server)
