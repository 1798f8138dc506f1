"""`python3 -m tests.soak --minutes N`: years of churn in miniature, and a watch on what must not grow.

Clients in a second process connect, talk and leave in every way there is: an echo and an orderly end, a reset in the
middle, a slow reader that is given more than it takes, silence until the deadline, a connection that the server
forgets. The watcher serves them all. Once a second a line tells what was done and what is held. In the end, memory,
descriptors, threads and the sizes of every table are looked at as lines over time: where one rises, the soak has
failed. Slopes and not absolute numbers, because an allocator keeps what it once had.

Every backend is soaked at the same time, each in a process of its own; on Linux kqueue too, over the simulated kernel.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple, cast

import gaio
from tests.child import SIMULATED
from tests.environment import ROOT

DEADLINE = 0.2  # of a read from a client that says nothing, in seconds
PATIENCE = 20.0  # until nothing is left when the clients have gone: a hundred deadlines, for a machine that is busy
# What must be done, of which all sums only rise: connections that ended in each way, bytes written.
KINDS = ("EOFError", "ConnectionResetError", "DeadlineError", "forgotten", "written")
# The part of what the second quarter of a soak did that the last must do. At nice 10, one other process on each
# processor leaves it a tenth (sched(7)); of sixty clients, one is less than this.
ENOUGH = 1 / 20
AT_ONCE = 60  # clients
LARGE = 300_000  # bytes for a client that reads slowly
# What one connection that is there takes of each, about: taken off, or a busy moment would look like a leak.
OF_A_CONNECTION = {"descriptors": 1, "tables": 3.5, "objects": 9}
# What may rise between the second quarter of a soak and its last: three times the most that was seen in an hour, cut
# into pieces of two minutes. A descriptor left behind by one connection in five thousand is more than that.
TOLERANCE = {"rss": 1_200_000, "connections": 60, "descriptors": 6, "threads": 0, "tables": 80, "objects": 100}


class Sample(NamedTuple):
    seconds: float
    rss: int  # bytes
    connections: int
    descriptors: int
    threads: int
    tables: int  # entries of every table of the watcher
    objects: int  # that the garbage collector knows


class Record:
    """The samples so far, as bare numbers: a tuple for each would be what rises most."""

    def __init__(self) -> None:
        self._columns = {name: array("d") for name in Sample._fields}
        self._done = {kind: array("d") for kind in KINDS}

    def add(self, sample: Sample, done: Mapping[str, int]) -> None:
        for column, value in zip(self._columns.values(), sample, strict=True):
            column.append(value)
        for kind, column in self._done.items():
            column.append(done.get(kind, 0))

    def rises(self) -> list[str]:
        """What grew: the middle value of the last quarter of the samples against that of the second quarter.

        The first quarter is warming up.
        """
        found = []
        for name, tolerance in TOLERANCE.items():
            share = OF_A_CONNECTION.get(name, 0)
            pairs = zip(self._columns[name], self._columns["connections"], strict=True)
            values = [value - share * connections for value, connections in pairs]
            quarter = max(1, len(values) // 4)
            before, after = median(values[quarter : 2 * quarter]), median(values[-quarter:])
            if after - before > tolerance:
                besides = " beside those of connections" if share else ""
                found.append(f"{name}{besides} rose from {before:.0f} to {after:.0f}")
        return found


    def stops(self) -> list[str]:
        """What was hardly done any more in the last quarter, measured by the second: less was tested than it says."""
        found = []
        for kind, column in self._done.items():
            quarter = max(1, len(column) // 4)
            before, after = column[2 * quarter - 1] - column[quarter - 1], column[-1] - column[-1 - quarter]
            if not after or after < ENOUGH * before:
                counts = f"{before:.0f} in the second quarter, {after:.0f} in the last"
                found.append(f"{kind}: {counts}: too little was tested")
        return found


def resident_bytes() -> int:
    if sys.platform == "linux":
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def entries(watcher: gaio.Watcher) -> int:
    """How many entries all containers of the watcher have: of its leader, its engine, its backend and its deadlines."""
    leader = watcher._leader
    engine = leader.engine
    total = len(engine.deadlines)
    for owner in (leader, engine, engine.backend):
        slots = [name for kind in type(owner).__mro__ for name in getattr(kind, "__slots__", ())]
        for name in [*getattr(owner, "__dict__", {}), *slots]:
            value = getattr(owner, name, None)
            if isinstance(value, (dict, list, set)):
                total += len(value)
    return total


def sample(watcher: gaio.Watcher, start: float) -> Sample:
    gc.collect()
    folder = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"
    return Sample(
        time.monotonic() - start,
        resident_bytes(),
        watcher.stats().conns,
        len(os.listdir(folder)),
        threading.active_count(),
        entries(watcher),
        len(gc.get_objects()),
    )


# --- the server -----------------------------------------------------------------------------------------------


class Server:
    """Accepts and echoes; each connection begins with a letter that says what is to be done with it."""

    def __init__(self, watcher: gaio.Watcher, listener: socket.socket) -> None:
        self.done: Counter[str] = Counter()
        self._watcher = watcher
        self._listener = listener
        watcher.accept(listener)

    def serve(self, until: float) -> None:
        while (left := until - time.monotonic()) > 0:
            for result in self._watcher.wait_io(min(left, 1.0)):
                self._go_on(result)

    def _go_on(self, result: gaio.OpResult) -> None:
        watcher = self._watcher
        if result.operation is gaio.ACCEPT:
            watcher.accept(self._listener)
            if result.accepted is not None:
                watcher.read(result.accepted, context="first", timeout=DEADLINE)
            else:
                self.done["accept failed"] += 1
        elif result.error is not None:
            self.done[type(result.error).__name__] += 1
            watcher.free(result.conn)
        elif result.operation is gaio.WRITE:
            self.done["written"] += result.size
            if result.context == "forget":
                self.done["forgotten"] += 1  # nobody holds it any more once this batch is gone
            else:
                watcher.read(result.conn, timeout=DEADLINE)
        else:
            kind = bytes(result.buffer[:1]) if result.context == "first" else b""
            if kind == b"S":
                watcher.write(result.conn, bytearray(LARGE), timeout=1.0)
            else:
                watcher.write(result.conn, result.buffer, context="forget" if kind == b"F" else None, timeout=1.0)


# --- the clients: a process of their own -----------------------------------------------------------------------


def source_address() -> tuple[str, int]:
    """Whoever closes first keeps its port for a minute (TIME_WAIT): one address has too few of them for this.

    Linux has all of 127.0.0.0/8 on its loopback interface.
    """
    if sys.platform == "linux":
        return f"127.{random.randrange(1, 255)}.{random.randrange(1, 255)}.{random.randrange(1, 255)}", 0
    return "127.0.0.1", 0


def client(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=10, source_address=source_address()) as sock:
        kind = random.choices(["echo", "reset", "slow", "silent", "forgotten", "half"], [6, 3, 1, 1, 2, 2])[0]
        if kind == "silent":
            sock.recv(1)  # the server's deadline ends it
            return
        letter = {"slow": b"S", "forgotten": b"F"}.get(kind, b"E")
        for turn in range(random.randrange(1, 6)):
            message = (letter if turn == 0 else b"") + bytes(random.choice([1, 60, 1500, 20_000]))
            sock.sendall(message)
            if kind == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            left = LARGE if kind == "slow" else len(message)
            while left:
                part = sock.recv(4096 if kind == "slow" else 65536)
                if not part:
                    return
                left -= len(part)
                if kind == "slow" and random.random() < 0.05:
                    time.sleep(0.01)
            if kind in ("slow", "forgotten"):
                break
        if kind in ("half", "forgotten"):
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass


def clients(port: int, count: int) -> None:
    """Runs until its standard input ends."""
    ended = threading.Event()

    def churn() -> None:
        while not ended.is_set():
            try:
                client(("127.0.0.1", port))
            except OSError:
                pass  # the server may end a connection whenever it likes

    threads = [threading.Thread(target=churn, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    ended.set()


# --- the soak -------------------------------------------------------------------------------------------------


def soak(backend: str, seconds: float) -> list[str]:
    """What went wrong; nothing as a rule."""
    name = cast("gaio.BackendName", backend)
    with gaio.Watcher(backend=name) as watcher, socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        port = listener.getsockname()[1]
        server = Server(watcher, listener)
        command = [sys.executable, "-m", "tests.soak", "--clients-of", str(port)]
        with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE) as other:
            start = time.monotonic()
            record = Record()
            try:
                while time.monotonic() - start < seconds:
                    server.serve(until=time.monotonic() + 1)
                    now = sample(watcher, start)
                    record.add(now, server.done)
                    print(line(watcher, now, server.done), flush=True)
                    if other.poll() is not None:
                        return [f"{backend}: the clients ended with status {other.returncode}"]
            finally:
                assert other.stdin is not None
                other.stdin.close()
        # Nobody talks any more: everything that is still open has its deadline.
        end = time.monotonic() + PATIENCE
        while not all_gone(watcher.stats()) and time.monotonic() < end:
            server.serve(until=time.monotonic() + DEADLINE)
            gc.collect()
        found = [f"{backend}: {what}" for what in (*record.rises(), *record.stops())]
        stats = watcher.stats()
        if not all_gone(stats):
            found.append(f"{backend}: connections or requests stayed behind after {PATIENCE} s: {stats}")
        if not stats.gc_found:
            found.append(f"{backend}: forgotten connections were not reclaimed: {stats}")
    return found


def all_gone(stats: gaio.Stats) -> bool:
    """Only the listener and its accept are there, and what was forgotten is closed."""
    return (stats.conns, stats.pending) == (1, 1) and stats.gc_found == stats.gc_closed


def line(watcher: gaio.Watcher, now: Sample, done: Counter[str]) -> str:
    stats = watcher.stats()
    return (
        f"{watcher.backend:>8} {now.seconds:6.0f} s  {stats.completions:>9} results  {now.connections:>4} connections"
        f"  {now.rss / 1e6:6.1f} MB  {now.descriptors:>4} descriptors  {now.threads} threads  {now.tables:>5} entries"
        f"  {now.objects:>6} objects  ended {done['EOFError']}, reset {done['ConnectionResetError']}"
        f", deadline {done['DeadlineError']}, forgotten {done['forgotten']}"
    )


def known() -> list[str]:
    """What can be soaked here."""
    return [offer.name for offer in gaio.backends() if offer.available or is_simulated(offer.name)]


def is_simulated(backend: str) -> bool:
    library = os.environ.get("GAIO_KQUEUE_LIBRARY", SIMULATED)
    return backend == "kqueue" and sys.platform == "linux" and library == SIMULATED


def soak_each_in_a_process(chosen: Sequence[str], minutes: float) -> list[str]:
    """At the same time. What went wrong in one is the last that it prints."""
    command = [sys.executable, "-m", "tests.soak", "--minutes", str(minutes), "--backend"]
    with contextlib.ExitStack() as running:
        processes = [running.enter_context(subprocess.Popen([*command, name], cwd=ROOT)) for name in chosen]
        statuses = [process.wait() for process in processes]
    return [f"{name}: see above" for name, status in zip(chosen, statuses, strict=True) if status]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.soak", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--backend", action="append", help="one that works here; more than once for several")
    parser.add_argument("--clients-of", type=int, help=argparse.SUPPRESS)  # how it starts its second process
    options = parser.parse_args(arguments)
    if options.clients_of is not None:
        clients(options.clients_of, AT_ONCE)
        return 0
    chosen: list[str] = options.backend or known()
    if unknown := set(chosen).difference(known()):
        parser.error(f"no such backend here: {', '.join(sorted(unknown))}; there are {', '.join(known())}")
    if len(chosen) > 1:
        found = soak_each_in_a_process(chosen, options.minutes)
    else:
        if is_simulated(chosen[0]):
            from tests import simulated_kqueue

            os.environ["GAIO_KQUEUE_LIBRARY"] = simulated_kqueue.PATH
            simulated_kqueue.install()
        found = soak(chosen[0], options.minutes * 60)
    print("\n".join(found) or f"nothing rose in {options.minutes:g} minutes on {', '.join(chosen)}", flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
