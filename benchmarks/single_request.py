"""How long one request takes from submit to completion: `python3 -m benchmarks.single_request gaio-epoll`.

One process, one thread that submits and waits, both ends of a socketpair. `write`: submit 64 bytes, wait for
the completion. `read`: the bytes are there already; submit a read, wait for the completion. gaio's read has been
submitted once, by `read_start()`, and there is only the wait; `gaio-BACKEND-oneshot` submits one each time.
Prints JSON.
"""

import argparse
import asyncio
import json
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from .servers import common, proactor

assert sys.platform == "linux", "plain_stdlib.py needs epoll"
from .servers import plain_stdlib  # noqa: E402 - the type checker must not look for it on other platforms

if TYPE_CHECKING:
    import gaio
    from gaio import BackendName

WARM_UP = 300  # requests of each kind before the first that counts


@dataclass
class Trial:
    """The peer's part of the conversation, and the times taken."""

    message: bytes
    seconds: float
    conn: socket.socket
    peer: socket.socket
    nanoseconds: dict[str, list[int]] = field(default_factory=lambda: {"write": [], "read": []})

    def turns(self) -> Iterator[str]:
        """Names the request to be made and timed next; the peer does its part between two of them."""
        end = time.monotonic() + self.seconds
        while time.monotonic() < end or len(self.nanoseconds["read"]) <= 2 * WARM_UP:
            yield "write"
            assert self.peer.recv(len(self.message), socket.MSG_WAITALL) == self.message
            self.peer.sendall(self.message)
            yield "read"

    def run(self, **requests: Callable[[], object]) -> None:
        """Each call returns when its request has completed."""
        clock = time.perf_counter_ns
        for turn in self.turns():
            request = requests[turn]
            began = clock()
            request()
            self.nanoseconds[turn].append(clock() - began)

    async def run_awaiting(self, **requests: Callable[[], Awaitable[object]]) -> None:
        clock = time.perf_counter_ns
        for turn in self.turns():
            request = requests[turn]
            began = clock()
            await request()
            self.nanoseconds[turn].append(clock() - began)

    def figures(self) -> dict[str, float]:
        result = {}
        for name, times in self.nanoseconds.items():
            ordered = sorted(times[WARM_UP:])
            result[f"{name}_p50_us"] = ordered[len(ordered) // 2] / 1e3
            result[f"{name}_p99_us"] = ordered[len(ordered) * 99 // 100] / 1e3
        return result


def blocking_socket(trial: Trial) -> None:
    """The floor: what the two system calls cost from Python."""
    trial.run(write=lambda: trial.conn.sendall(trial.message), read=lambda: trial.conn.recv(common.READ_SIZE))


async def event_loop(trial: Trial) -> None:
    loop = asyncio.get_running_loop()
    trial.conn.setblocking(False)
    await trial.run_awaiting(
        write=lambda: loop.sock_sendall(trial.conn, trial.message),
        read=lambda: loop.sock_recv(trial.conn, common.READ_SIZE),
    )


def proactor_watcher(trial: Trial, watcher: proactor.Watcher) -> None:
    def write() -> None:
        watcher.write(trial.conn, trial.message)
        one_result()

    def read() -> None:
        watcher.read(trial.conn)
        one_result()

    def one_result() -> None:
        [result] = watcher.wait_io()
        assert result.error is None, result.error

    trial.run(write=write, read=read)


def repeating_watcher(trial: Trial, watcher: "gaio.Watcher") -> None:
    def write() -> None:
        watcher.write(trial.conn, trial.message)
        one_result()

    def one_result() -> None:
        [result] = watcher.wait_io()
        assert result.error is None, result.error

    watcher.read_start(trial.conn)
    trial.run(write=write, read=one_result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subject", help="blocking-socket, asyncio, uvloop, plain-stdlib, or gaio-BACKEND[-oneshot]")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    signal.alarm(int(options.seconds) + 15)
    trial = Trial(b"m" * options.size, options.seconds, *socket.socketpair())
    subject: str = options.subject
    if subject == "blocking-socket":
        blocking_socket(trial)
    elif subject == "asyncio":
        asyncio.run(event_loop(trial))
    elif subject == "uvloop":
        import uvloop

        uvloop.run(event_loop(trial))
    elif subject == "plain-stdlib":
        proactor_watcher(trial, plain_stdlib.Watcher())
    else:
        import gaio

        _, backend, *variant = subject.split("-")
        with gaio.Watcher(backend=cast("BackendName", backend)) as watcher:
            (proactor_watcher if variant else repeating_watcher)(trial, watcher)
    print(json.dumps(trial.figures()))


if __name__ == "__main__":
    main()
