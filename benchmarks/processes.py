"""Servers and loads as processes: on their processors, bounded in time, ended by their process id."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from . import places
from .contenders import Contender, Request

START_LIMIT = 20.0  # seconds a server may take to announce its port


class Failed(Exception):
    """A measurement that gave no figure; the message says why."""


@dataclass(frozen=True)
class Placement:
    name: str
    server: frozenset[int]  # processors
    load: frozenset[int]


def usable_processors() -> frozenset[int]:
    if sys.platform == "darwin":
        raise Failed("macOS does not assign processors to a process")
    return frozenset(os.sched_getaffinity(0))


def move_to(processors: frozenset[int]) -> None:
    if sys.platform == "darwin":
        raise Failed("macOS does not assign processors to a process")
    os.sched_setaffinity(0, processors)


def placements() -> list[Placement]:
    """Pinned: the server alone on one processor, the load on another. Free: the scheduler decides, as it does
    in most deployments, and handing work between threads costs what it costs."""
    everywhere = usable_processors()
    usable = sorted(everywhere)
    found = [Placement("free", everywhere, everywhere)]
    if len(usable) > 1:
        found.insert(0, Placement("pinned", frozenset(usable[:1]), frozenset(usable[1:2])))
    return found


@contextlib.contextmanager
def on_processors(processors: frozenset[int]) -> Iterator[None]:
    """A child started inside has its place before its first instruction, and so do its threads."""
    before = usable_processors()
    move_to(processors)
    try:
        yield
    finally:
        move_to(before)


class Server:
    """A contender's process, from the announcement of its port to its end."""

    def __init__(self, contender: Contender, request: Request, placement: Placement) -> None:
        assert contender.command is not None, f"{contender.name} serves nothing"
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        with on_processors(placement.server):
            self._process = subprocess.Popen(
                contender.command(request),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                cwd=places.PROJECT,
            )
        self.pid = self._process.pid
        try:
            self.port = self._announced_port()
        except BaseException:
            self.stop()
            raise

    def _announced_port(self) -> int:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], START_LIMIT)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            raise Failed(f"the server did not start: {self.complaint() or 'it said nothing'}")
        return int(json.loads(line)["port"])

    def complaint(self) -> str:
        """The last line the server wrote on standard error."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def stop(self) -> None:
        # SIGKILL: the figures are taken, and how politely each contender ends is not measured.
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> "Server":  # noqa: PYI034 - typing.Self is not in Python 3.10
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def resident(self) -> int:
        """Resident bytes: proc_pid_statm(5), second field, in pages."""
        return int(self._proc("statm").split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def cpu(self) -> tuple[float, float]:
        """Seconds in user mode and in the kernel so far: proc_pid_stat(5), fields 14 and 15, in ticks."""
        fields = self._proc("stat").rpartition(")")[2].split()
        tick = os.sysconf("SC_CLK_TCK")
        return int(fields[11]) / tick, int(fields[12]) / tick

    def descriptors(self) -> int:
        try:
            return len(os.listdir(f"/proc/{self.pid}/fd"))
        except OSError:
            raise Failed(f"the server died: {self.complaint()}") from None

    def _proc(self, name: str) -> str:
        try:
            with open(f"/proc/{self.pid}/{name}") as file:
                text = file.read()
        except OSError:
            raise Failed(f"the server died: {self.complaint()}") from None
        return text


class Bystanders:
    """How busy other processes keep the machine between two moments: the noise the figures were taken in.

    proc_stat(5), first line, less what this process and the children it has waited for used themselves.
    """

    def __init__(self) -> None:
        self._before = self._now()

    def share(self) -> float:
        """Of all processors together; 0 on a machine that does nothing else."""
        (busy, total), (busy_before, total_before) = self._now(), self._before
        return max(busy - busy_before, 0.0) / max(total - total_before, 1e-9)

    @staticmethod
    def _now() -> tuple[float, float]:
        with open("/proc/stat") as file:
            ticks = [int(field) for field in file.readline().split()[1:9]]
        idle = ticks[3] + ticks[4]
        ours = os.times()
        total = sum(ticks) / os.sysconf("SC_CLK_TCK")
        return total - idle / os.sysconf("SC_CLK_TCK") - sum(ours[:4]), total


@contextlib.contextmanager
def beside(command: list[str], processors: frozenset[int]) -> Iterator[None]:
    """A program that runs meanwhile and is ended by its process id."""
    with on_processors(processors):
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=places.PROJECT)
    try:
        yield
    finally:
        process.kill()
        process.wait()


class Held:
    """A load that holds when it is warm, having said so in a line, and again when it has printed its figures, with
    its connections open."""

    def __init__(self, command: list[str], processors: frozenset[int], limit: float) -> None:
        self._name, self._limit = os.path.basename(command[0]), limit
        self._process = _start(command, processors, subprocess.PIPE)
        try:
            self._line()
        except BaseException:
            self.stop()
            raise

    def figures(self) -> str:
        """Tells it to go on, and returns the line it prints when it is through."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], self._limit)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            _output, errors = self.stop()
            raise Failed(f"{self._name}: {errors.strip() or 'it said nothing'}")
        return line

    def stop(self) -> tuple[str, str]:
        self._process.kill()
        return self._process.communicate()

    def __enter__(self) -> "Held":  # noqa: PYI034 - typing.Self is not in Python 3.10
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _start(command: list[str], processors: frozenset[int], stdin: int) -> "subprocess.Popen[str]":
    with on_processors(processors):
        return subprocess.Popen(
            command,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=places.PROJECT,
        )


def run(command: list[str], processors: frozenset[int], limit: float) -> str:
    """What a program printed on standard output; it has to end by itself, well, and in time."""
    process = _start(command, processors, subprocess.DEVNULL)
    try:
        output, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        raise Failed(f"{os.path.basename(command[0])} did not end within {limit:.0f} s") from None
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    if process.returncode != 0:
        said = errors.strip().splitlines()
        raise Failed(
            f"{os.path.basename(command[0])} {_ending(process.returncode)}"
            + (f": {said[-1]}" if said else "")
        )
    return output


def _ending(status: int) -> str:
    return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
