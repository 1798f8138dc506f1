"""The push server, seen from its clients."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from datetime import datetime
from typing import IO

import pytest

from tests.backends import Name
from tests.server_process import running


def next_time(lines: IO[bytes]) -> datetime:
    return datetime.strptime(lines.readline().decode(), "%Y-%m-%dT%H:%M:%S%z\n")


def test_every_client_is_told_the_time(backend: Name) -> None:
    options = ("--backend", backend, "--interval", "0.01")
    with running("examples.push_server", *options) as program, ExitStack() as stack:
        clients = [stack.enter_context(program.client()) for _ in range(20)]
        for client in clients:
            with client.makefile("rb") as lines:
                times = [next_time(lines) for _ in range(5)]
                assert times == sorted(times)
                assert abs((datetime.now().astimezone() - times[-1]).total_seconds()) < 3600


def test_a_client_that_has_finished_sending_is_still_told(backend: Name) -> None:
    options = ("--backend", backend, "--interval", "0.01")
    with running("examples.push_server", *options) as program, program.client() as client:
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as lines:
            for _ in range(10):
                next_time(lines)


@pytest.mark.slow
def test_a_slow_client_is_dropped_and_holds_nobody_up(backend: Name) -> None:
    """It gets what the kernel had taken for it, which is little, and then the end."""
    options = ("--backend", backend, "--interval", "0.0005", "--patience", "0.5")
    with (
        running("examples.push_server", *options) as program,
        program.client(receive_buffer=1024) as slow,
        program.client() as fast,
        fast.makefile("rb") as lines,
    ):
        pushed = 0
        while pushed < 60_000:  # by then the kernel takes no more for the slow one
            pushed += len(lines.readline())
        for _ in range(1000):  # rounds that take half a second together, so its patience ends
            next_time(lines)
        received = 0
        while part := slow.recv(65536):
            received += len(part)
            assert received < pushed // 2
