"""How each load is measured: a fresh server in its place, a load in its own, and the figures of one round."""

import contextlib
import csv
import json
import re
import socket
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from . import places
from .contenders import Contender, Request
from .loads import Load
from .processes import Failed, Held, Placement, Server, beside, run, usable_processors
from .system_calls import Counter

Figures = dict[str, float]


@dataclass(frozen=True)
class Timing:
    seconds: float  # of the measured window
    warm_up: float  # before it


@dataclass
class Sample:
    """One round of one contender at one load: a line of the JSON."""

    group: str
    connections: int
    size: int
    idle: int
    placement: str
    contender: str
    round: int
    figures: Figures = field(default_factory=dict)
    others_busy: float = 0.0  # share of the machine that other processes used meanwhile
    failure: str = ""


def measure(contender: Contender, load: Load, placement: Placement, timing: Timing) -> Figures:
    kinds: dict[str, Callable[[Contender, Load, Placement, Timing], Figures]] = {
        "echo": echo,
        "streams": echo,
        "tls": echo,
        "uvicorn": http,
        "uvicorn-burn": http,
        "wsgi": http,
        "push": echo,
        "idle": echo,
        "burn": echo,
        "flood": neighbours,
        "neighbours": neighbours,
        "ping": ping,
        "http": http,
        "memory": memory,
        "latency": latency,
    }
    return kinds[load.group](contender, load, placement, timing)


def _request(load: Load, limit: float) -> Request:
    return Request(
        load.protocol,
        int(limit) + 10,
        load.burns,
        load.size,
        load.group in ("flood", "neighbours"),
    )


def _load_command(load: Load, server: Server, timing: Timing) -> list[str]:
    program = {"push": places.push_load, "tls": places.tls_load}.get(load.group, places.echo_load)()
    options = {
        "-p": server.port,
        "-c": load.connections,
        "-s": load.size,
        "-t": timing.seconds,
        # The first round of very many connections is one burst: let it pass.
        "-w": timing.warm_up + load.connections / 20_000,
        "-i": load.idle,
        "-P": server.pid,
    }
    return [str(program), *(text for name, value in options.items() for text in (name, str(value)))]


def echo(
    contender: Contender, load: Load, placement: Placement, timing: Timing, *, bad_neighbours: str = ""
) -> Figures:
    """The loads of load/: an echo of some kind or a push. `bad_neighbours` names the kind, see bad_neighbours.py."""
    limit = timing.seconds + timing.warm_up + 60
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Server(contender, _request(load, limit), placement))
        if bad_neighbours:
            command = [sys.executable, "-m", "benchmarks.bad_neighbours", str(server.port), str(limit)]
            stack.enter_context(beside([*command, bad_neighbours], placement.load))
        try:
            said = json.loads(run(_load_command(load, server, timing), placement.load, limit))
        except Failed as problem:
            raise Failed(f"{problem} {server.complaint()}".strip()) from None
    user, kernel = said["server_cpu"]["user"], said["server_cpu"]["kernel"]
    load_cpu = said["load_cpu"]["user"] + said["load_cpu"]["kernel"]
    return {
        "requests_per_second": said["requests_per_second"],
        "megabytes_per_second": said["requests_per_second"] * load.size / 1e6,
        **{f"{name}_us": said["latency_us"][name] for name in ("mean", "p50", "p90", "p99", "p99_9", "max")},
        **_cpu_per_request(user, kernel, said["requests"]),
        "server_busy": (user + kernel) / said["seconds"],
        "load_busy": load_cpu / said["seconds"],
    }


COUNTED_SECONDS = 0.2  # of the pass that counts system calls


def count_system_calls(
    contender: Contender, load: Load, placement: Placement, timing: Timing, counter: Counter
) -> float:
    """System calls of the server a request, in a pass of its own: counting slows it down. The load holds when it
    is warm, goes on once the counter is attached, and keeps its connections until that is through (`-H`,
    load/load.h)."""
    timing = Timing(COUNTED_SECONDS, timing.warm_up)
    limit = timing.seconds + timing.warm_up + 60
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Server(contender, _request(load, limit), placement))
        held = stack.enter_context(
            Held([*_load_command(load, server, timing), "-H"], placement.load, limit)
        )
        count = stack.enter_context(counter.attached(server.pid))
        requests: int = json.loads(held.figures())["requests"]
        return count() / max(requests, 1)


def neighbours(contender: Contender, load: Load, placement: Placement, timing: Timing) -> Figures:
    """The figures beside bad neighbours, and the latency of the same load without them."""
    calm = echo(contender, load, placement, timing)
    kind = "flood" if load.group == "flood" else "all"
    return {
        **echo(contender, load, placement, timing, bad_neighbours=kind),
        **{f"calm_{name}": calm[name] for name in ("p50_us", "p99_us")},
    }


def _cpu_per_request(user: float, kernel: float, requests: float) -> Figures:
    return {
        "server_user_us": user / max(requests, 1) * 1e6,
        "server_kernel_us": kernel / max(requests, 1) * 1e6,
    }


def ping(contender: Contender, load: Load, placement: Placement, timing: Timing) -> Figures:
    """redis-benchmark counts requests, not seconds: a short run finds how many of them fill the time."""
    limit = 10 * timing.seconds + 30

    def redis_benchmark(requests: int) -> dict[str, str]:
        rows = list(
            csv.DictReader(
                run(
                    [
                        "redis-benchmark",
                        "-h",
                        "127.0.0.1",
                        "-p",
                        str(server.port),
                        "-c",
                        str(load.connections),
                        "-n",
                        str(requests),
                        "-t",
                        "ping_mbulk",
                        "--csv",
                    ],
                    placement.load,
                    limit,
                ).splitlines()
            )
        )
        if not rows or "rps" not in rows[0]:
            raise Failed("redis-benchmark printed no figures (version 6.2 or later is needed)")
        return rows[0]

    with Server(contender, _request(load, limit), placement) as server:
        requests = max(int(float(redis_benchmark(10_000)["rps"]) * timing.seconds), 10_000)
        before = server.cpu()
        said = redis_benchmark(requests)
        after = server.cpu()
    return {
        "requests_per_second": float(said["rps"]),
        "p50_us": float(said["p50_latency_ms"]) * 1000,
        "p99_us": float(said["p99_latency_ms"]) * 1000,
        **_cpu_per_request(after[0] - before[0], after[1] - before[1], requests),
    }


def http(contender: Contender, load: Load, placement: Placement, timing: Timing) -> Figures:
    seconds = max(round(timing.seconds), 1)  # wrk takes whole seconds
    if load.burns:
        seconds *= 3  # there is no warm-up, and a slow server needs a while to accept them all

    def wrk(duration: int) -> str:
        return run(
            [
                "wrk",
                "--threads",
                "1",
                "--connections",
                str(load.connections),
                "--duration",
                f"{duration}s",
                "--timeout",
                "20s",  # of its 2 s more are needed where each answer waits for a thread that computes
                "--latency",
                f"http://127.0.0.1:{server.port}/",
            ],
            placement.load,
            duration + 30,
        )

    with Server(contender, _request(load, seconds + 60), placement) as server:
        before = server.cpu()
        said = wrk(seconds)
        after = server.cpu()
    if wrong := re.search(r"Socket errors.*|Non-2xx.*", said):
        raise Failed(f"wrk: {wrong[0]}")
    rate, count = re.search(r"Requests/sec:\s+([\d.]+)", said), re.search(r"(\d+) requests in", said)
    if rate is None or count is None:
        raise Failed(f"wrk printed no figures: {said!r}")
    return {
        "requests_per_second": float(rate[1]),
        "p50_us": _wrk_latency(said, 50),
        "p99_us": _wrk_latency(said, 99),
        **_cpu_per_request(after[0] - before[0], after[1] - before[1], float(count[1])),
    }


def _wrk_latency(said: str, percent: int) -> float:
    found = re.search(rf"^\s+{percent}%\s+([\d.]+)(us|ms|s) *$", said, re.MULTILINE)
    if found is None:
        raise Failed(f"wrk printed no {percent} % latency")
    return float(found[1]) * {"us": 1.0, "ms": 1e3, "s": 1e6}[found[2]]


FEW = 64  # connections that have exchanged a message before the first look at the memory
GROUP = 200  # connections opened before waiting for the server to accept them: well below its backlog


def memory(contender: Contender, load: Load, placement: Placement, _timing: Timing) -> Figures:
    """Resident memory that `load.connections` idle ones add to a server that is warm: first those that have
    only been accepted, then the same ones once each has been answered and waits again, so that a contender
    which keeps more for writing from then on has it. The kernel's own memory for sockets is not in it; it is
    the same for every contender."""
    opened: list[socket.socket] = []

    def open_connections(server: Server, count: int) -> None:
        for start in range(0, count, GROUP):
            # Counted from the beginning: a server that duplicates descriptors has one more for a moment.
            wanted = descriptors + len(opened) + min(GROUP, count - start)
            opened.extend(
                socket.create_connection(("127.0.0.1", server.port), timeout=10)
                for _ in range(min(GROUP, count - start))
            )
            _wait_until(lambda: server.descriptors() >= wanted, "the server did not accept all connections")  # noqa: B023

    def exchange(connection: socket.socket) -> None:
        connection.sendall(b"alive?")
        if connection.recv(6, socket.MSG_WAITALL) != b"alive?":
            raise Failed("a connection was not echoed")

    try:
        with Server(contender, Request("echo", 120), placement) as server:
            descriptors = server.descriptors()
            open_connections(server, FEW)
            for connection in opened:
                exchange(connection)
            before = _settled(server)
            open_connections(server, load.connections)
            after = _settled(server)
            for connection in opened[FEW:]:
                exchange(connection)  # they were connections with a read pending, not just accepted ones
            served = _settled(server)
    finally:
        for connection in opened:
            connection.close()
    return {
        "bytes_per_connection": (after - before) / load.connections,
        "served_bytes_per_connection": (served - before) / load.connections,
        "resident_megabytes": before / 1e6,
    }


def _wait_until(condition: Callable[[], bool], otherwise: str) -> None:
    limit = time.monotonic() + 20
    while not condition():
        if time.monotonic() > limit:
            raise Failed(otherwise)
        time.sleep(0.002)


def _settled(server: Server) -> int:
    """Resident bytes once they have stayed the same for a third of a second."""
    last, since = server.resident(), time.monotonic()
    limit = since + 10
    while time.monotonic() < min(since + 0.33, limit):
        time.sleep(0.03)
        if (now := server.resident()) != last:
            last, since = now, time.monotonic()
    return last


def latency(contender: Contender, load: Load, placement: Placement, timing: Timing) -> Figures:
    """One request at a time in one process: both ends of the socketpair belong to single_request.py."""
    said = json.loads(
        run(
            [
                sys.executable,
                "-m",
                "benchmarks.single_request",
                contender.single_request,
                "--size",
                str(load.size),
                "--seconds",
                str(timing.seconds),
            ],
            placement.server,
            timing.seconds + 30,
        )
    )
    return {key: float(value) for key, value in said.items()}


IMPORTS = 15  # interpreter starts a module and round


def import_time(modules: list[str]) -> dict[str, Figures]:
    """Milliseconds that importing each module adds to an interpreter's life from start to end. The files are
    in the page cache and compiled, as on every start but the first."""
    everything = [*modules, ""]
    took: dict[str, list[float]] = {module: [] for module in everything}
    for _ in range(IMPORTS + 1):
        for module in everything:
            began = time.perf_counter()
            run([sys.executable, "-c", f"import {module}" if module else "pass"], usable_processors(), 30)
            took[module].append((time.perf_counter() - began) * 1e3)
    start = statistics.median(took[""][1:])  # the first of each compiles or warms a cache
    return {
        module: {"import_ms": statistics.median(took[module][1:]) - start, "start_ms": start}
        for module in modules
    }
