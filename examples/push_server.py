"""Push server: every second the time, to every connected client.

    python3 -m examples.push_server --port 8000

A client that has not taken what it was sent is left out of the rounds that follow: it holds up nobody, and nothing
piles up for it. When that has lasted for `--patience` seconds, the client is dropped.
"""

import argparse
import math
import signal
import socket
import sys
import time

import gaio

# What the kernel keeps for a client that does not read. The default grows to megabytes, hours of pushes.
SEND_BUFFER = 16384


def message() -> bytes:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z\n").encode()


def serve(watcher: gaio.Watcher, listener: socket.socket, interval: float, patience: float) -> None:
    """Accept clients and push until the watcher is closed."""
    clients: set[socket.socket] = set()
    watcher.accept_start(listener)
    due = time.monotonic()
    while True:
        for result in watcher.wait_io(max(0, due - time.monotonic())):
            if result.operation is gaio.ACCEPT:
                welcome(watcher, result, clients, patience)
            elif result.error is not None:
                clients.discard(result.conn)  # too slow (gaio.DeadlineError), or gone
                watcher.free(result.conn)
        now = time.monotonic()
        if now >= due:
            due = max(due + interval, now)  # rounds that were missed are not made up for
            text = message()
            # First asked, then written: to ask takes time for all that has been submitted since the last wait_io().
            for conn in [conn for conn in clients if not watcher.unsent(conn)]:
                watcher.write(conn, text, timeout=patience)


def welcome(watcher: gaio.Watcher, result: gaio.OpResult, clients: set[socket.socket], patience: float) -> None:
    """The first request hands the connection over to the watcher."""
    try:
        if result.error is not None:
            raise result.error  # EMFILE, say: this client waits in the backlog until others have left
        watcher.write(result.accepted, message(), timeout=patience)
        clients.add(result.accepted)
    except (OSError, gaio.UnsupportedConnError) as error:
        if result.accepted is not None:
            result.accepted.close()  # it is gone already, or the kernel has no room to watch it
        print(f"a client was not served: {error}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python3 -m examples.push_server")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 lets the system choose one")
    parser.add_argument("--backend", choices=("auto", "epoll", "kqueue", "io_uring"))
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two pushes")
    parser.add_argument("--patience", type=float, default=10.0, help="seconds until a slow client is dropped")
    options = parser.parse_args()
    if not 0 < options.interval < math.inf:
        parser.error("--interval must be a number of seconds, more than 0")
    if not 0 <= options.patience < math.inf:
        parser.error("--patience must be a number of seconds, 0 or more")

    # Both Ctrl-C and `kill` raise KeyboardInterrupt, also where the shell started this with Ctrl-C ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        with (
            socket.create_server((options.host, options.port), backlog=1024) as listener,
            gaio.Watcher(backend=options.backend) as watcher,
        ):
            # Set before the first client comes: its connections inherit it.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            host, port = listener.getsockname()
            print(f"listening on {host}:{port}", flush=True)
            serve(watcher, listener, options.interval, options.patience)
    except KeyboardInterrupt:
        pass  # leaving the `with` has closed every connection
    except (OSError, OverflowError, ValueError) as error:
        sys.exit(f"cannot serve: {error}")  # the port is taken or none at all, the backend unknown or unavailable


if __name__ == "__main__":
    main()
