"""Echo server on several cores: one process and one watcher for each, all on the same port (SO_REUSEPORT).

    python3 -m examples.multicore --port 8000 --workers 4

Python runs one thread at a time, so it takes processes to use more cores. Each has a listening socket of its own
on the same port, and the kernel deals the connections out (Linux; elsewhere one socket may get them all). Once a
second, when that has changed, the parent prints how many connections each worker has had. When a worker dies, the
whole server ends; when the parent does, so do the workers.
"""

import argparse
import multiprocessing
import os
import signal
import socket
import sys
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from time import monotonic
from typing import NoReturn, cast

import gaio


def serve(watcher: gaio.Watcher, listener: socket.socket, report: Connection, parent: gaio.Conn) -> None:
    """Accept clients and answer them until the parent is gone; report each one."""
    count = 0
    watcher.read(parent)
    watcher.accept_start(listener)
    for result in watcher:
        if result.conn is parent:
            return  # a pipe in which nothing comes but the end
        if result.operation is gaio.ACCEPT:
            count += result.error is None
            report.send(count)
            welcome(watcher, result)
        elif result.error is not None:
            watcher.free(result.conn)
        elif result.operation is gaio.READ:
            watcher.write(result.conn, result.buffer)
        else:
            watcher.read(result.conn)


def welcome(watcher: gaio.Watcher, result: gaio.OpResult) -> None:
    try:
        if result.error is not None:
            raise result.error  # EMFILE, say: this client waits in the backlog until others have left
        watcher.read(result.accepted)
    except (OSError, gaio.UnsupportedConnError) as error:
        if result.accepted is not None:
            result.accepted.close()  # it is gone already, or the kernel has no room to watch it
        print(f"a client was not served: {error}", file=sys.stderr, flush=True)


def work(address: tuple[str, int], backend: gaio.BackendName | None, report: Connection) -> None:
    """One worker: a process of its own."""
    # Ctrl-C reaches the whole group of processes; the parent alone decides, and then sends SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parent = cast(BaseProcess, multiprocessing.parent_process())
    try:
        with (
            os.fdopen(os.dup(parent.sentinel), "rb", buffering=0) as end,
            socket.create_server(address, backlog=1024, reuse_port=True) as listener,
            gaio.Watcher(backend=backend) as watcher,
        ):
            report.send(0)  # it listens
            serve(watcher, listener, report, end)
    except (KeyboardInterrupt, BrokenPipeError):
        pass  # leaving the `with` has closed every connection; the pipe breaks when a report finds the parent gone
    except (OSError, ValueError) as error:
        sys.exit(f"cannot serve: {error}")


def supervise(workers: list[BaseProcess], reports: list[Connection], where: str) -> None:
    """Print how many connections each worker has had, until one of them dies."""
    counts: dict[Connection, int] = {}
    told: list[int] = []
    due = monotonic()
    while all(worker.is_alive() for worker in workers):
        for report in wait(reports, timeout=max(0.0, due - monotonic())):
            assert isinstance(report, Connection)
            try:
                counts[report] = report.recv()
            except EOFError:
                return  # its worker has died
        now = [counts.get(report, -1) for report in reports]
        if not told and min(now) >= 0:
            print(f"listening on {where}", flush=True)
            told = now
        if monotonic() >= due:
            due = monotonic() + 1
            if told not in ([], now):
                print("connections per worker:", *now, flush=True)
                told = now


def stop(_number: int, _frame: object) -> NoReturn:
    """The first signal ends all of it; another one must not keep it from ending the workers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    raise KeyboardInterrupt


def main() -> None:
    parser = argparse.ArgumentParser(prog="python3 -m examples.multicore")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 lets the system choose one")
    parser.add_argument("--backend", choices=("auto", "epoll", "kqueue", "io_uring"))
    parser.add_argument("--workers", type=int, default=multiprocessing.cpu_count(), help="one for each core")
    options = parser.parse_args()
    if options.workers < 1:
        parser.error("--workers must be 1 or more")

    # Both Ctrl-C and `kill`, also where the shell started this with Ctrl-C ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    workers: list[BaseProcess] = []
    reports: list[Connection] = []
    spawn = multiprocessing.get_context("spawn")  # a fork would copy whatever threads and locks there are
    stopped = False
    try:
        # Bound and not listening: it keeps the port for the workers and gets no connection.
        with socket.socket() as port:
            port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as create_server() does
            port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            port.bind((options.host, options.port))
            for _ in range(options.workers):
                report, theirs = spawn.Pipe(duplex=False)
                workers.append(spawn.Process(target=work, args=(port.getsockname(), options.backend, theirs)))
                workers[-1].start()
                theirs.close()  # so that the worker's end is the last, and its death shows
                reports.append(report)
            supervise(workers, reports, "{}:{}".format(*port.getsockname()))
    except KeyboardInterrupt:
        stopped = True
    except (OSError, OverflowError) as error:
        print(f"cannot serve: {error}", file=sys.stderr)  # the port is taken or none at all
    for end in (BaseProcess.terminate, BaseProcess.join):
        for worker in filter(BaseProcess.is_alive, workers):
            end(worker)
    sys.exit(0 if stopped else 1)


if __name__ == "__main__":
    main()
