"""What every server among the examples does: it starts and stops cleanly, and survives its clients."""

from __future__ import annotations

import errno
import os
import signal
import socket
from contextlib import ExitStack

import pytest

from tests.backends import Name
from tests.peers import reset
from tests.server_process import output_of_failure, running
from tests.waiting import wait_until

SERVERS = ("examples.echo_server", "examples.push_server")
# These speak protocols of their own, in which the tests of their own talk to them.
EVERY_SERVER = (
    *SERVERS,
    "examples.http_server",
    "examples.wsgi_server",
    "examples.redis_ping",
    "examples.tcp_proxy",
    "examples.chat_server",
    "examples.multicore",
    "examples.tls_echo",
    "examples.dns_server",
)


@pytest.fixture(params=EVERY_SERVER)
def every_server(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The name of each, and the arguments it cannot do without."""
    name: str = request.param
    if name == "examples.http_server":
        pytest.importorskip("h11")
    elif name == "examples.tcp_proxy":
        return name, "--target", "127.0.0.1:9"
    elif name == "examples.tls_echo":
        return name, "--cert", str(request.getfixturevalue("certificate"))
    return (name,)


def is_served(client: socket.socket) -> bool:
    try:
        client.sendall(b"x")
        return client.recv(1) != b""
    except (ConnectionResetError, BrokenPipeError):
        return False


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM], ids=lambda by: by.name)
@pytest.mark.parametrize("server", SERVERS)
def test_a_signal_stops_it_cleanly(backend: Name, server: str, by: signal.Signals) -> None:
    """With a client connected, which sees the end of its connection."""
    with running(server, "--backend", backend) as program, program.client() as client:
        client.sendall(b"x")
        assert client.recv(1)
        assert program.stop(by) == (0, "")
        try:
            while client.recv(65536):
                pass
        except ConnectionResetError:
            pass  # bytes of this client had not been read


def test_a_signal_stops_it_before_the_first_client(every_server: tuple[str, ...]) -> None:
    with running(*every_server) as program:
        assert program.stop(signal.SIGTERM) == (0, "")


def test_ctrl_c_stops_it_though_a_shell_had_it_ignored(every_server: tuple[str, ...]) -> None:
    """As shells do for what they start in the background."""
    with running(*every_server, under=("/bin/sh", "-c", "trap '' INT; exec \"$@\"", "sh")) as program:
        assert program.stop(signal.SIGINT) == (0, "")


@pytest.mark.parametrize("server", SERVERS)
def test_a_client_that_breaks_off_takes_nobody_along(backend: Name, server: str) -> None:
    with running(server, "--backend", backend) as program, program.client() as other:
        assert is_served(other)
        for _ in range(20):
            with program.client() as client:
                client.sendall(b"x" * 1000)
                reset(client)
        assert is_served(other)
        with program.client() as newcomer:
            assert is_served(newcomer)  # so all those before have been accepted


@pytest.mark.parametrize("server", SERVERS)
def test_more_clients_than_descriptors(server: str) -> None:
    """One too many waits; the others are served, and when they leave, there is room again."""
    few = ("/bin/sh", "-c", 'ulimit -n 32; exec "$@"', "sh")
    with running(server, under=few) as program:
        with ExitStack() as clients:
            crowd = 0
            while True:
                client = clients.enter_context(program.client())
                client.sendall(b"x")
                if program.complains_before(client):
                    break
                assert client.recv(1)
                crowd += 1
            assert 16 < crowd < 32

        def a_new_client_is_served() -> bool:
            with program.client() as client:
                return is_served(client)

        wait_until(a_new_client_is_served, "room for a new client")
        status, complaints = program.stop(signal.SIGINT)
    assert status == 0
    out_of_descriptors = str(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
    assert {line[line.find("[") :] for line in complaints.splitlines()} == {out_of_descriptors}


def test_a_silent_client_does_not_hinder_the_end(every_server: tuple[str, ...]) -> None:
    """Some do not even get to know that it is there: the target of the proxy refuses."""
    with running(*every_server) as program, program.client():
        status, _ = program.stop(signal.SIGINT)
        assert status == 0


def test_a_port_that_does_not_exist_is_told(every_server: tuple[str, ...]) -> None:
    """Before that line Python may warn of the socket that socket.create_server() has left to the collector."""
    complaints = output_of_failure(*every_server, "--port", "70000")
    assert complaints.splitlines()[-1].startswith("cannot serve: ")
    assert "Traceback" not in complaints


def test_a_backend_that_does_not_exist_is_told(every_server: tuple[str, ...]) -> None:
    complaints = output_of_failure(*every_server, "--port", "0", under=("/usr/bin/env", "GAIO_BACKEND=bogus"))
    assert complaints.splitlines()[-1].startswith("cannot serve: ")
    assert "bogus" in complaints
    assert "Traceback" not in complaints


@pytest.mark.parametrize("value", ["-1", "inf", "nan", "soon"])
@pytest.mark.parametrize(
    ("server", "option"),
    [
        ("examples.push_server", "--interval"),
        ("examples.push_server", "--patience"),
        ("examples.http_server", "--idle"),
        ("examples.wsgi_server", "--timeout"),
        ("examples.wsgi_server", "--grace"),
        ("examples.wsgi_server", "--threads"),
        ("examples.tls_echo", "--patience"),
        ("examples.multicore", "--workers"),
    ],
)
def test_a_wrong_option_is_told_before_it_serves(server: str, option: str, value: str) -> None:
    if server == "examples.http_server":
        pytest.importorskip("h11")
    needed = ("--cert", "none.pem") if server == "examples.tls_echo" else ()
    complaints = output_of_failure(server, *needed, option, value)
    assert option in complaints.splitlines()[-1]
    assert "Traceback" not in complaints


def test_a_port_that_is_taken_is_told_in_one_line(every_server: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        complaints = output_of_failure(*every_server, "--port", str(taken.getsockname()[1]))
    assert complaints.startswith("cannot serve: ")
    assert complaints.count("\n") == 1
