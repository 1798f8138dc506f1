"""A server as a user runs it: a process of its own, started from the checkout, stopped by a signal."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence

from tests import child
from tests.environment import ROOT
from tests.waiting import LIMIT, Background

# In development mode, with warnings as errors, what a program leaks or does wrong shows on standard error.
PYTHON = (sys.executable, "-X", "dev", "-W", "error")


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "GAIO_BACKEND"}


def module(name: str) -> tuple[str, ...]:
    """The options of Python that run a module: as a user does, unless its kernel must be installed before."""
    if os.environ.get("GAIO_KQUEUE_LIBRARY") != child.SIMULATED:
        return "-m", name
    return "-c", child.program(f"import runpy; runpy.run_module({name!r}, run_name='__main__', alter_sys=True)")


class Server:
    """A program that has said where it listens."""

    def __init__(self, process: subprocess.Popen[str], address: tuple[str, int]) -> None:
        self.process = process
        self.address = address

    @contextlib.contextmanager
    def client(self, *, receive_buffer: int = 0) -> Iterator[socket.socket]:
        """A connection to the server, with a time limit on everything."""
        with socket.socket() as sock:
            sock.settimeout(LIMIT)
            if receive_buffer:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            sock.connect(self.address)
            yield sock

    def complains_before(self, client: socket.socket) -> bool:
        """Wait for an answer to this client, or for something on standard error."""
        assert self.process.stderr is not None
        ready, _, _ = select.select([client.fileno(), self.process.stderr.fileno()], [], [], LIMIT)
        assert ready, "neither an answer nor a word"
        return client.fileno() not in ready

    def stop(self, by: signal.Signals) -> tuple[int, str]:
        """Send the signal; the exit status, and what stood on standard error."""
        self.process.send_signal(by)
        _, complaints = self.process.communicate(timeout=LIMIT)
        return self.process.returncode, complaints


@contextlib.contextmanager
def listening(*command: str) -> Iterator[Server]:
    """The server that this command starts, from its first line on."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=pipe, stderr=pipe, text=True)
    try:
        assert process.stdout is not None
        line = Background(process.stdout.readline).result()
        address = re.fullmatch(r"listening on (127\.0\.0\.1):(\d+)\n", line)
        assert address is not None, line + process.communicate(timeout=LIMIT)[1]
        yield Server(process, (address[1], int(address[2])))
    finally:
        with process:
            process.kill()


@contextlib.contextmanager
def running(example: str, *arguments: str, under: Sequence[str] = ()) -> Iterator[Server]:
    """An example; it must have complained of nothing when it is stopped.

    `under` is a command that runs another one, given behind it.
    """
    with listening(*under, *PYTHON, *module(example), "--port", "0", *arguments) as server:
        yield server
        if server.process.returncode is None:
            status, complaints = server.stop(signal.SIGINT)
            assert (status, complaints) == (0, ""), f"exit status {status}, and on standard error:\n{complaints}"


def output_of_failure(example: str, *arguments: str, under: Sequence[str] = ()) -> str:
    """What it says on standard error when it cannot start; it must end by itself, and not with success.

    `under` as for running().
    """
    command = [*under, *PYTHON, *module(example), *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode != 0
    assert done.stdout == ""
    return done.stderr
