"""Echo server: whatever a client sends, it gets back.

    python3 -m examples.echo_server --port 8000

Each client has one request under way at any time: first a read, then the write of what came, and when that
is done the next read. A client that sends without reading fills its own connection and nothing else: no byte
more is read from it until it has taken its echo.
"""

import argparse
import signal
import socket
import sys

import gaio


def serve(watcher: gaio.Watcher, listener: socket.socket) -> None:
    """Accept clients and answer them until the watcher is closed."""
    watcher.accept(listener)
    for result in watcher:
        if result.operation is gaio.ACCEPT:
            if result.error is None:
                welcome(watcher, result.accepted)
            else:
                complain(result.error)  # EMFILE, say: this client waits in the backlog until others have left
            watcher.accept(listener)  # the next one
        elif result.error is not None:
            watcher.free(result.conn)  # it has finished sending, and has had its echo, or it is gone
        elif result.operation is gaio.READ:
            watcher.write(result.conn, result.buffer)
        else:
            watcher.read(result.conn)


def welcome(watcher: gaio.Watcher, conn: socket.socket) -> None:
    """The first request hands the connection over to the watcher. Options that are set before remain."""
    try:
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # an echo does not wait for the one before
        watcher.read(conn)
    except (OSError, gaio.UnsupportedConnError) as error:
        conn.close()  # it is gone already, or no descriptor is left to take it over
        complain(error)


def complain(error: Exception) -> None:
    print(f"a client was not served: {error}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python3 -m examples.echo_server")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 lets the system choose one")
    parser.add_argument("--backend", choices=("auto", "epoll", "kqueue", "io_uring"))
    options = parser.parse_args()

    # Both Ctrl-C and `kill` raise KeyboardInterrupt, also where the shell started this with Ctrl-C ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        with (
            socket.create_server((options.host, options.port), backlog=1024) as listener,
            gaio.Watcher(backend=options.backend) as watcher,
        ):
            host, port = listener.getsockname()
            print(f"listening on {host}:{port}", flush=True)
            serve(watcher, listener)
    except KeyboardInterrupt:
        pass  # leaving the `with` has closed every connection
    except (OSError, OverflowError, ValueError) as error:
        sys.exit(f"cannot serve: {error}")  # the port is taken or none at all, the backend unknown or unavailable


if __name__ == "__main__":
    main()
