"""The echo server, seen from its clients."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.backends import Name
from tests.peers import pattern, receive_exactly, receive_until_eof
from tests.server_process import Server, running
from tests.waiting import LIMIT, Background

MIB = 1 << 20


@pytest.fixture
def server(backend: Name) -> Iterator[Server]:
    with running("examples.echo_server", "--backend", backend) as program:
        yield program


def test_every_client_gets_its_own_bytes_back(server: Server) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(server.client()) for _ in range(50)]
        for size in (1, 1000, 100_000):
            for seed, client in enumerate(clients):
                client.sendall(pattern(size, seed)[:size])
            for seed, client in enumerate(clients):
                assert receive_exactly(client, size) == pattern(size, seed)


def test_a_client_that_has_finished_sending_still_gets_its_echo(server: Server) -> None:
    payload = pattern(8 * MIB)
    with server.client() as client:
        receiving = Background(lambda: receive_until_eof(client))
        client.sendall(payload)
        client.shutdown(socket.SHUT_WR)
        assert receiving.result() == payload


def send_until_stuck(client: socket.socket, payload: bytes) -> int:
    """How many bytes go out before the connection takes no more."""
    client.settimeout(1.0)
    sent = 0
    try:
        while sent < len(payload):
            sent += client.send(payload[sent : sent + 65536])
    except TimeoutError:
        pass
    client.settimeout(LIMIT)
    return sent


@pytest.mark.slow
def test_a_client_that_does_not_read_is_not_read_from(server: Server) -> None:
    """Nor does it hold the others up; and when it reads at last, nothing is missing."""
    payload = pattern(64 * MIB)  # more than all kernel buffers between the two take
    with server.client(receive_buffer=4096) as greedy, server.client() as other:
        sent = send_until_stuck(greedy, payload)
        assert sent < len(payload)
        for number in range(100):
            other.sendall(b"%03d" % number)
            assert receive_exactly(other, 3) == b"%03d" % number
        sending = Background(lambda: greedy.sendall(payload[sent:]))
        assert receive_exactly(greedy, len(payload)) == payload
        sending.result()
