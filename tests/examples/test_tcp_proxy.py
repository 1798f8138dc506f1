"""The TCP proxy, between real and hostile ends."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backends import Name
from tests.examples.real_clients import redis_benchmark, redis_cli, redis_server
from tests.peers import pattern, receive_exactly, receive_until_eof, reset
from tests.server_process import Server, running
from tests.waiting import LIMIT, Background

MIB = 1 << 20


@pytest.fixture
def target() -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(LIMIT)
        yield listener


@contextlib.contextmanager
def proxy_to(port: int, backend: Name) -> Iterator[Server]:
    with running("examples.tcp_proxy", "--backend", backend, "--target", f"127.0.0.1:{port}") as server:
        yield server


@pytest.fixture
def proxy(backend: Name, target: socket.socket) -> Iterator[Server]:
    with proxy_to(target.getsockname()[1], backend) as server:
        yield server


@contextlib.contextmanager
def connection(proxy: Server, target: socket.socket) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of one proxied connection."""
    with proxy.client() as client:
        server, _ = target.accept()
        with server:
            server.settimeout(LIMIT)
            yield client, server


def test_redis_benchmark_through_it(backend: Name) -> None:
    with redis_server() as port, proxy_to(port, backend) as proxy:
        assert redis_cli(proxy, "set", "through", "the proxy") == "OK\n"
        assert redis_cli(proxy, "get", "through") == "the proxy\n"
        rates = redis_benchmark(proxy, "-t", "ping,set,get", "-n", "2000", "-c", "20", "-P", "4")
        assert set(rates) == {"PING_INLINE", "PING_MBULK", "SET", "GET"}
        assert all(rates.values())


def test_every_byte_both_ways_at_once(proxy: Server, target: socket.socket) -> None:
    there, back = pattern(4 * MIB, 1), pattern(4 * MIB, 2)
    with connection(proxy, target) as (client, server):
        receiving = [Background(lambda: receive_until_eof(server)), Background(lambda: receive_until_eof(client))]

        def send(sock: socket.socket, data: bytes) -> None:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)

        sending = [Background(lambda: send(client, there)), Background(lambda: send(server, back))]
        for thread in sending:
            thread.result()
        assert receiving[0].result() == there
        assert receiving[1].result() == back


@pytest.mark.parametrize("first", ["client", "server"])
def test_a_half_close_is_passed_on_and_the_other_way_goes_on(
    proxy: Server, target: socket.socket, first: str
) -> None:
    with connection(proxy, target) as ends:
        ending, going_on = ends if first == "client" else ends[::-1]
        ending.sendall(b"request")
        ending.shutdown(socket.SHUT_WR)
        assert receive_until_eof(going_on) == b"request"
        for number in range(20):
            going_on.sendall(b"%02d" % number)
            assert receive_exactly(ending, 2) == b"%02d" % number
        going_on.shutdown(socket.SHUT_WR)
        assert ending.recv(1) == b""


@pytest.mark.parametrize("first", ["client", "server"])
def test_a_reset_ends_the_other_side(proxy: Server, target: socket.socket, first: str) -> None:
    with connection(proxy, target) as ends:
        ending, other = ends if first == "client" else ends[::-1]
        ending.sendall(b"x")
        assert other.recv(1) == b"x"
        reset(ending)
        try:
            assert other.recv(1) == b""
        except ConnectionResetError:
            pass
    with connection(proxy, target) as (client, server):  # it still serves
        client.sendall(b"x")
        assert server.recv(1) == b"x"


def resident_kib(process: int) -> int:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS in /proc/PID/status, proc(5)")


def send_until_stuck(sock: socket.socket, data: bytes) -> int:
    """How many bytes go out before the connection takes no more."""
    sock.settimeout(1.0)
    sent = 0
    try:
        while sent < len(data):
            sent += sock.send(data[sent : sent + 65536])
    except TimeoutError:
        pass
    sock.settimeout(LIMIT)
    return sent


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/PID/status")
def test_a_fast_source_and_a_slow_sink_leave_memory_flat(proxy: Server, target: socket.socket) -> None:
    """The source has to wait: what the proxy holds of it is one read, and the rest is in the kernel's buffers."""
    payload = pattern(64 * MIB)
    with connection(proxy, target) as (client, server):
        # First what a sink that keeps up costs: the swap arena is memory once it has been written to.
        flowing = Background(lambda: client.sendall(payload))
        assert receive_exactly(server, len(payload)) == payload
        flowing.result()
        before = resident_kib(proxy.process.pid)
        sent = send_until_stuck(client, payload)
        assert sent < len(payload), "the kernel's buffers took it all: nothing was tested"
        grown = [resident_kib(proxy.process.pid) - before]
        sending = Background(lambda: client.sendall(payload[sent:]))
        for start in range(0, len(payload), 4 * MIB):
            assert receive_exactly(server, 4 * MIB) == payload[start : start + 4 * MIB]
            grown.append(resident_kib(proxy.process.pid) - before)
        sending.result()
        assert max(grown) < 2048, f"KiB more than at the start: {grown}"


def test_a_target_that_refuses(backend: Name) -> None:
    with socket.socket() as silent:
        # Bound, and not listening. Were the port free, the proxy could get it for its own, and call itself for ever.
        silent.bind(("127.0.0.1", 0))
        target = "{}:{}".format(*silent.getsockname())
        with running("examples.tcp_proxy", "--backend", backend, "--target", target) as proxy:
            with proxy.client() as client:
                try:
                    client.sendall(b"hello?")
                    assert client.recv(1) == b""
                except (ConnectionResetError, BrokenPipeError):
                    pass  # what it had sent was not read
            status, complaints = proxy.stop(signal.SIGINT)
    assert status == 0
    refused = errno.ECONNREFUSED
    assert complaints == f"a client was not served: [Errno {refused}] {os.strerror(refused)}\n"
