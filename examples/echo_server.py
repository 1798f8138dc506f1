"""Echo server: whatever a client sends, it gets back.

    python3 -m examples.echo_server --port 8000

Each client is read from all the time, and what arrives is written back at once. A client that does not take its echo
is not read from until it has: so it fills its own connection, and not the memory of the server.
"""

import argparse
import signal
import socket
import sys

import gaio

MAX_UNSENT = 1 << 18  # bytes of echo that may wait for one client


def serve(watcher: gaio.Watcher, listener: socket.socket) -> None:
    """Accept clients and answer them until the watcher is closed."""
    slow: set[socket.socket] = set()  # the clients that are not read from, until they have taken their echo
    watcher.accept_start(listener)
    for result in watcher:
        if result.operation is gaio.ACCEPT:
            welcome(watcher, result)
        else:
            try:
                answer(watcher, result, slow)
            except gaio.ConnClosedError:
                pass  # a write to it has failed, and so it was freed; this had arrived before


def answer(watcher: gaio.Watcher, result: gaio.OpResult, slow: set[socket.socket]) -> None:
    conn = result.conn
    if isinstance(result.error, EOFError):
        watcher.shutdown(conn)  # it has finished sending: the end of its echo comes behind what is still to be written
    elif result.error is not None or result.operation is gaio.SHUTDOWN:
        slow.discard(conn)
        watcher.free(conn)
    elif result.more:
        watcher.write(conn, result.buffer)
        if watcher.unsent(conn) > MAX_UNSENT:
            watcher.read_stop(conn)
    elif result.operation is gaio.READ or conn in slow:
        # Reading has stopped, or a write has finished since.
        if watcher.unsent(conn):
            slow.add(conn)
        else:
            slow.discard(conn)
            watcher.read_start(conn)


def welcome(watcher: gaio.Watcher, result: gaio.OpResult) -> None:
    """The first request hands the connection over to the watcher. Options that are set before remain."""
    try:
        if result.error is not None:
            raise result.error  # EMFILE, say: this client waits in the backlog until others have left
        watcher.read_start(result.accepted)
    except (OSError, gaio.UnsupportedConnError) as error:
        if result.accepted is not None:
            result.accepted.close()  # it is gone already, or the kernel has no room to watch it
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
