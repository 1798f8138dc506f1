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
import threading
import time

import gaio


def serve(watcher: gaio.Watcher) -> None:
    """Answer every client until the watcher is closed."""
    for result in watcher:
        if result.error is not None:
            watcher.free(result.conn)  # it has finished sending, and has had its echo, or it is gone
        elif result.operation is gaio.READ:
            watcher.write(result.conn, result.buffer)
        else:
            watcher.read(result.conn)


def accept_clients(listener: socket.socket, watcher: gaio.Watcher) -> None:
    """Hand each new connection to the watcher. Blocks, so it has a thread of its own."""
    while not watcher.closed:
        try:
            conn, _ = listener.accept()
        except OSError as error:
            if watcher.closed:
                return
            # EMFILE: there are too many clients already. Trying again at once would only burn the CPU.
            print(f"accept: {error}", file=sys.stderr, flush=True)
            time.sleep(0.1)
            continue
        try:
            # Do not hold an echo back until the one before is acknowledged. Options outlive the handing over.
            conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            watcher.read(conn)
        except (OSError, gaio.GaioError) as error:
            # This client is gone, no descriptor is left to take it over, or the watcher is closed.
            conn.close()
            if not watcher.closed:
                print(f"a client was turned away: {error}", file=sys.stderr, flush=True)


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
            threading.Thread(target=accept_clients, args=(listener, watcher), daemon=True).start()
            host, port = listener.getsockname()
            print(f"listening on {host}:{port}", flush=True)
            serve(watcher)
    except KeyboardInterrupt:
        pass  # leaving the `with` has closed every connection
    except OSError as error:
        sys.exit(f"cannot serve: {error}")  # the port is taken, or the backend cannot run here


if __name__ == "__main__":
    main()
