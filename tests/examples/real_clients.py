"""Clients and servers that others have written, run by their name on PATH."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server_process import Server
from tests.waiting import LIMIT, wait_until


def need(program: str, package: str) -> str:
    """Its path; a visible skip where it is not installed, as .ci/run sees to it."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed (Debian: apt-get install {package})")
    return path


def run(program: str, *arguments: str, package: str, stdin: bytes = b"") -> bytes:
    """What it printed; it must have ended with success."""
    done = subprocess.run(
        [need(program, package), *arguments], input=stdin, capture_output=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def curl(server: Server, path: str, *options: str, stdin: bytes = b"") -> bytes:
    host, port = server.address
    arguments = ("--silent", "--show-error", "--max-time", "20", *options, f"http://{host}:{port}{path}")
    return run("curl", *arguments, package="curl", stdin=stdin)


def wrk(server: Server, *options: str) -> str:
    host, port = server.address
    return run("wrk", *options, f"http://{host}:{port}/", package="wrk").decode()


def ab(server: Server, *options: str) -> str:
    host, port = server.address
    return run("ab", *options, f"http://{host}:{port}/", package="apache2-utils").decode()


def redis_cli(server: Server, *command: str) -> str:
    host, port = server.address
    return run("redis-cli", "-h", host, "-p", str(port), *command, package="redis-tools").decode()


def redis_benchmark(server: Server, *options: str) -> dict[str, float]:
    """Test -> requests a second."""
    host, port = server.address
    arguments = ("-h", host, "-p", str(port), "--csv", *options)
    lines = run("redis-benchmark", *arguments, package="redis-tools").decode()
    return {name: float(rate) for name, rate in re.findall(r'^"(\w+)","([\d.]+)"', lines, re.MULTILINE)}


@contextlib.contextmanager
def redis_server(*more: str, port: int | None = None) -> Iterator[int]:
    """A Redis that keeps nothing, with more options if need be; the port it listens on."""
    path = need("redis-server", "redis-server")
    with tempfile.TemporaryDirectory(prefix="gaio-redis-") as folder:
        # With port 0 Redis listens on no TCP port, so one that was free a moment ago has to do.
        port = port or _free_port()
        options = ("--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder, "--loglevel", "notice")
        log = Path(folder) / "log"
        with open(log, "wb") as output:
            process = subprocess.Popen([path, *options, *more], stdout=output, stderr=output)
        try:
            _wait_for(process, log)
            yield port
        finally:
            process.terminate()
            process.wait(LIMIT)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _wait_for(process: subprocess.Popen[bytes], log: Path) -> None:
    def ready() -> bool:
        assert process.poll() is None, log.read_text()
        return b"eady to accept connections" in log.read_bytes()

    wait_until(ready, "redis-server to be ready")
