"""`python3 -m gaio`: what works here, what does not and why, and how fast an echo is. `--json` for bug reports.

Exit status 0 when the backend that a program gets by default works, 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import platform as system
import socket
import sys
from time import monotonic
from typing import Any

import gaio
import gaio.types  # before there is no descriptor left to read it with
from gaio.platform import best_first

CONNECTIONS = 16
MESSAGE = bytes(64)
SECONDS = 1.0


# Made before main() is called, because argparse imports modules for it, which takes descriptors.
PARSER = argparse.ArgumentParser(prog="python3 -m gaio", description="What gaio can do on this machine.")
PARSER.add_argument("--json", action="store_true", help="the same for machines, and for bug reports")


def libc() -> str:
    """Name and version of the C library, of musl the name alone; empty when it cannot be told.

    glibc answers confstr(3). For others `platform` reads the interpreter's file, in which musl leaves no name.
    """
    try:
        named = " ".join(system.libc_ver()).strip()
        if sys.platform == "linux" and not named.startswith("glibc"):
            with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
                if "/ld-musl-" in maps.read():
                    return "musl"
        return named
    except OSError:
        return ""  # there are no descriptors left to look with


def report(seconds: float) -> dict[str, Any]:
    """Everything that this command has to tell."""
    offered = gaio.backends()
    facts: dict[str, Any] = {
        "gaio": gaio.__version__,
        "python": f"{system.python_implementation()} {system.python_version()}",
        "system": f"{system.system()} {system.release()} {system.machine()}",
        "libc": libc(),
        "cpus": os.cpu_count(),
        "environment": os.environ.get("GAIO_BACKEND"),
        "backends": [backend._asdict() for backend in offered],
        "chosen": None,
        "why": "",
        "echo": None,
        "failure": None,
    }
    try:
        with gaio.Watcher() as watcher:
            facts["chosen"] = watcher.backend
    except (OSError, ValueError, RuntimeError, ImportError) as error:  # BackendUnavailableError is an OSError
        facts["why"] = str(error)
        return facts
    facts["why"] = reason(facts["chosen"])
    try:
        facts["echo"] = echo(seconds)
    except (OSError, EOFError, RuntimeError, ImportError) as error:
        facts["failure"] = str(error) or type(error).__name__
    return facts


def reason(chosen: str) -> str:
    if os.environ.get("GAIO_BACKEND", "auto") not in ("", "auto"):
        return "the environment variable GAIO_BACKEND asks for it"
    order = best_first()
    better = order[: order.index(chosen)]
    if better:
        return f"auto takes the first that works, and {' and '.join(better)} cannot be used now"
    return "auto takes the first that works, and that is the best one for this system"


def echo(seconds: float) -> dict[str, float]:
    """Clients and server of an echo on one watcher, over loopback, for so long."""
    sent: dict[socket.socket, float] = {}
    times: list[float] = []
    with socket.create_server(("127.0.0.1", 0)) as listener, gaio.Watcher() as watcher:
        start = monotonic()
        for _ in range(CONNECTIONS):
            client = socket.create_connection(listener.getsockname())
            served, _ = listener.accept()
            for end in (client, served):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                watcher.read(end)
            sent[client] = monotonic()
            watcher.write(client, MESSAGE)
        while monotonic() - start < seconds:
            for result in watcher.wait_io(seconds):
                conn = result.conn
                if result.error is not None:
                    raise result.error
                if result.operation is gaio.WRITE:
                    continue
                if conn in sent:
                    if result.buffer != MESSAGE[: result.size]:
                        raise RuntimeError("other bytes came back than were sent")
                    now = monotonic()
                    times.append(now - sent[conn])
                    sent[conn] = now
                watcher.write(conn, result.buffer)
                watcher.read(conn)
        elapsed = monotonic() - start
        stats = watcher.stats()
    if not times:
        raise RuntimeError(f"no message came back within {seconds} seconds")
    times.sort()
    return {
        "connections": CONNECTIONS,
        "bytes": len(MESSAGE),
        "echoes_per_second": round(len(times) / elapsed),
        "median_microseconds": round(times[len(times) // 2] * 1e6),
        "p99_microseconds": round(times[len(times) * 99 // 100] * 1e6),
        "results_per_batch": round(stats.completions / stats.batches, 1),
    }


def as_text(facts: dict[str, Any]) -> str:
    lines = [
        f"gaio {facts['gaio']}, {facts['python']}, {facts['system']}, {facts['libc'] or 'libc unknown'}",
        "",
        *(
            f"  {backend['name']:<10}{'works  ' if backend['available'] else 'cannot '}{backend['reason']}"
            for backend in facts["backends"]
        ),
        "",
        f"used: {facts['chosen']}, because {facts['why']}" if facts["chosen"] else f"none: {facts['why']}",
    ]
    if facts["failure"] is not None:
        lines.append(f"the echo failed: {facts['failure']}")
    figures = facts["echo"]
    if figures is not None:
        lines.append(
            f"echo of {figures['bytes']} bytes on {figures['connections']} connections, clients in the same thread: "
            f"{figures['echoes_per_second']} a second, median {figures['median_microseconds']} us, "
            f"99% within {figures['p99_microseconds']} us, {figures['results_per_batch']} results in a batch"
        )
    return "\n".join(lines)


def main() -> int:
    options = PARSER.parse_args()
    facts = report(SECONDS)
    print(json.dumps(facts, indent=2) if options.json else as_text(facts))
    return 0 if facts["echo"] is not None else 1


if __name__ == "__main__":
    sys.exit(main())
