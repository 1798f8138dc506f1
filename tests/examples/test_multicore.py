"""The server on several cores."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys

import pytest

from tests.backends import Name, is_simulated
from tests.peers import pattern, receive_exactly
from tests.server_process import PYTHON, Server, listening, module, running
from tests.waiting import Background, wait_until


def next_line(server: Server) -> str:
    assert server.process.stdout is not None
    return Background(server.process.stdout.readline).result()


def children(process: int) -> list[int]:
    with open(f"/proc/{process}/task/{process}/children", encoding="ascii") as file:
        return [int(number) for number in file.read().split()]


def test_every_connection_is_served_and_counted(backend: Name) -> None:
    if is_simulated(backend):
        pytest.skip("the workers are interpreters of their own, without the simulated kernel")
    count = 50
    with running("examples.multicore", "--backend", backend, "--workers", "2") as server:
        for seed in range(count):
            with server.client() as client:
                client.sendall(pattern(1000, seed % 4))
                assert receive_exactly(client, 1000) == pattern(1000, seed % 4)
        counts: list[int] = []
        while sum(counts) < count:
            found = re.fullmatch(r"connections per worker: (\d+) (\d+)\n", next_line(server))
            assert found is not None
            counts = [int(found[1]), int(found[2])]
        assert sum(counts) == count
        if sys.platform == "linux":
            assert min(counts) > 0, "the kernel deals connections out by their hash, so both must have had some"


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM], ids=lambda by: by.name)
def test_a_signal_stops_all_of_it(by: signal.Signals) -> None:
    with running("examples.multicore", "--workers", "2") as server, server.client() as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        assert server.stop(by) == (0, "")
        assert client.recv(1) == b""
    with socket.socket() as sock:
        assert sock.connect_ex(server.address) != 0


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_another_signal_leaves_no_worker_behind() -> None:
    """It comes while the first one ends the workers."""
    with running("examples.multicore", "--workers", "4") as server:
        workers = [pid for pid in children(server.process.pid) if is_worker(pid)]
        assert len(workers) == 4
        server.process.send_signal(signal.SIGINT)
        assert server.stop(signal.SIGTERM) == (0, "")
        assert not any(os.path.exists(f"/proc/{pid}") for pid in workers)


def test_a_port_on_which_connections_have_just_ended() -> None:
    """On the side of a server that did not set SO_REUSEPORT, so that they linger there: TIME_WAIT."""
    with running("examples.echo_server") as server, server.client() as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        server.stop(signal.SIGTERM)
        assert client.recv(1) == b""
    port = str(server.address[1])
    with listening(*PYTHON, *module("examples.multicore"), "--workers", "1", "--port", port) as server:
        assert server.stop(signal.SIGTERM) == (0, "")


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_a_worker_that_dies_ends_the_server() -> None:
    with running("examples.multicore", "--workers", "2") as server:
        workers = [pid for pid in children(server.process.pid) if is_worker(pid)]  # multiprocessing has a helper, too
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        _, complaints = server.process.communicate(timeout=30)
        assert server.process.returncode == 1
        assert complaints == ""
        wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in workers), "the other worker to end")


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_no_worker_survives_the_parent(backend: Name) -> None:
    """Killed so that it cannot end them."""
    if is_simulated(backend):
        pytest.skip("the workers are interpreters of their own, without the simulated kernel")
    with running("examples.multicore", "--backend", backend, "--workers", "2") as server, server.client() as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        workers = [pid for pid in children(server.process.pid) if is_worker(pid)]
        assert len(workers) == 2
        server.process.kill()
        wait_until(lambda: not any(is_running(pid) for pid in workers), "the workers to end")
        _, complaints = server.process.communicate(timeout=30)
        assert complaints == ""
        assert client.recv(1) == b""


def is_running(process: int) -> bool:
    """One whose parent is gone may stay in the table when it has ended: in a container, nobody need ask for it."""
    try:
        with open(f"/proc/{process}/stat", encoding="ascii") as file:
            return file.read().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def is_worker(process: int) -> bool:
    with open(f"/proc/{process}/cmdline", "rb") as file:
        return b"spawn_main" in file.read()
