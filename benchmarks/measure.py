"""One measurement: a fresh server in its place, a load in its place, one sample out."""
import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from . import places
from .contenders import Contender, Request

Sample = dict[str, Any]     # a line of the JSON: what was measured, of whom, where, and the figures

START_LIMIT = 20.0          # seconds a server may take to announce its port


class Failed(Exception):
    """A measurement that gave no figure: the server or the load said why."""


@dataclass(frozen=True)
class Placement:
    name: str
    server: frozenset[int]      # processors
    load: frozenset[int]


def placements() -> list[Placement]:
    """Pinned: the server alone on one processor. Free: the scheduler decides, as in most deployments."""
    usable = sorted(os.sched_getaffinity(0))
    everywhere = frozenset(usable)
    found = [Placement("free", everywhere, everywhere)]
    if len(usable) > 1:
        found.insert(0, Placement("pinned", frozenset(usable[:1]), frozenset(usable[1:2])))
    return found


@contextlib.contextmanager
def on_processors(processors: frozenset[int]) -> Iterator[None]:
    """Children started inside inherit the set before their first instruction."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Server:
    """A contender's process, from the announcement of its port to its death by process id."""

    def __init__(self, contender: Contender, request: Request, placement: Placement) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()
        with on_processors(placement.server):
            self._process = subprocess.Popen(
                contender.command(request), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._errors,
                cwd=places.PROJECT)
        self.pid = self._process.pid
        try:
            self.port = self._announced_port(contender.name)
        except BaseException:
            self.stop()
            raise

    def _announced_port(self, name: str) -> int:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], START_LIMIT)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            raise Failed(f"{name} did not start: {self.complaint() or 'it said nothing'}")
        return int(json.loads(line)["port"])

    def complaint(self) -> str:
        """The last line the server wrote on standard error."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def stop(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def rss(self) -> int:
        """Resident bytes: proc_pid_statm(5), second field, in pages."""
        with open(f"/proc/{self.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def cpu(self) -> tuple[float, float]:
        """Seconds in user mode and in the kernel so far: proc_pid_stat(5), fields 14 and 15, in clock ticks."""
        with open(f"/proc/{self.pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        tick = os.sysconf("SC_CLK_TCK")
        return int(fields[11]) / tick, int(fields[12]) / tick

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))


def run_load(command: list[str], placement: Placement, server: Server, limit: float) -> str:
    """What the load printed on standard output."""
    with on_processors(placement.load):
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   text=True)
    try:
        output, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        raise Failed(f"the load did not end within {limit:.0f} s") from None
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    if process.returncode != 0:
        raise Failed(f"{errors.strip().splitlines()[-1:] or ['the load said nothing']} {server.complaint()}")
    return output


@dataclass(frozen=True)
class Timing:
    seconds: float      # of the measured window
    warm_up: float      # before it


def echo(contender: Contender, placement: Placement, timing: Timing, *, connections: int, size: int, idle: int = 0,
         burn: bool = False) -> Sample:
    """Requests a second, latency and the server's processor time per request, of an echo."""
    life = int(timing.seconds + timing.warm_up) + 75
    with Server(contender, Request("echo", life, burn, size), placement) as server:
        began = time.monotonic()
        output = run_load(
            [str(places.compile_c(places.ECHO_LOAD)), "-p", str(server.port), "-c", str(connections), "-s", str(size),
             "-t", str(timing.seconds), "-w", str(timing.warm_up), "-i", str(idle), "-P", str(server.pid)],
            placement, server, limit=life)
        sample: Sample = json.loads(output)
        sample["set_up_seconds"] = round(time.monotonic() - began - timing.seconds - timing.warm_up, 3)
    requests = max(sample["requests"], 1)
    sample["server_cpu_us"] = {part: round(sample["server_cpu"][part] / requests * 1e6, 3) for part in ("user", "kernel")}
    sample["megabytes_per_second"] = round(sample["requests_per_second"] * size / 1e6, 2)
    return sample
