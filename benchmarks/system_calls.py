"""Counts the system calls of a server for a while: with perf(1) or strace(1), whichever can be had.

perf counts in the kernel, at a tracepoint, and the server hardly feels it. strace stops the server twice at each call:
slower than its load, it finds more to do whenever it looks, so that whoever works in batches needs fewer calls.
"""

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import IO

LIMIT = 10.0  # seconds a tool may take to attach or to end


class Refused(Exception):
    """The tool is there, and may not attach or count."""


class Counter(ABC):
    name: str

    @abstractmethod
    def attached(self, pid: int) -> AbstractContextManager[Callable[[], float]]:
        """Counts the calls of that process, with all its threads; the function says how many, and ends it."""


class Perf(Counter):
    name = "perf stat"

    @contextlib.contextmanager
    def attached(self, pid: int) -> Iterator[Callable[[], float]]:
        # It counts as long as the shell waits for the end of its input, and has begun before the shell starts.
        with tempfile.NamedTemporaryFile() as report:
            options = ["-x", ",", "-o", report.name, "-e", "raw_syscalls:sys_enter", "-p", str(pid)]
            perf = _start(["perf", "stat", *options, "--", "sh", "-c", "echo attached; read end"])

            def count() -> float:
                _end(perf)
                for line in report.read().decode().splitlines():
                    if "sys_enter" in line and line.partition(",")[0].isdigit():
                        return int(line.partition(",")[0])
                raise Refused("perf counted nothing")

            try:
                _wait_for("attached", perf.stdout)
                yield count
            finally:
                _end(perf)


class Strace(Counter):
    name = "strace"

    @contextlib.contextmanager
    def attached(self, pid: int) -> Iterator[Callable[[], float]]:
        with tempfile.NamedTemporaryFile() as report:
            strace = _start(["strace", "-c", "-f", "-U", "name,calls", "-o", report.name, "-p", str(pid)])

            def count() -> float:
                # As timeout(1) and Ctrl-C do: it detaches, and writes its summary.
                strace.send_signal(signal.SIGINT)
                _end(strace)
                for line in report.read().decode().splitlines():
                    if line.endswith(" total") or line.startswith("total "):
                        return next(int(word) for word in line.split() if word.isdigit())
                raise Refused("strace counted nothing")

            try:
                _wait_for("attached", strace.stderr)
                yield count
            finally:
                if strace.poll() is None:
                    strace.send_signal(signal.SIGINT)
                _end(strace)


def _start(command: list[str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def _wait_for(word: str, stream: IO[bytes] | None) -> None:
    assert stream is not None
    said, limit = b"", time.monotonic() + LIMIT
    while word.encode() not in said:
        ready, _, _ = select.select([stream], [], [], max(limit - time.monotonic(), 0))
        more = os.read(stream.fileno(), 4096) if ready else b""
        if not more:
            raise Refused(said.decode(errors="replace").strip().rpartition("\n")[2] or "it could not attach")
        said += more


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.returncode is None:
        try:
            process.communicate(timeout=LIMIT)  # closes its input
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


# What the trial counts the calls of: it makes some all the time, and no child of the tool is it, as no server is.
TRIAL = "import os, time; [(os.getppid(), time.sleep(0.001)) for _ in range(20000)]"


def find() -> Counter | None:
    """The better tool of those that are installed and allowed, tried on a process of the same kind as a server."""
    for counter in (Perf(), Strace()):
        if shutil.which(counter.name.split()[0]) is None:
            continue
        process = subprocess.Popen([sys.executable, "-c", TRIAL], stdin=subprocess.DEVNULL)
        try:
            with counter.attached(process.pid) as count:
                time.sleep(0.1)
                if count() > 0:
                    return counter
        except (Refused, OSError):
            pass
        finally:
            process.kill()
            process.wait()
    return None
