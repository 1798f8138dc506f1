"""TLS echo server, which also serves clients that speak no TLS, with one loop for both.

    openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -keyout key.pem -out cert.pem
    python3 -m examples.tls_echo --port 8443 --cert cert.pem --key key.pem --plain-port 8000
    openssl s_client -connect 127.0.0.1:8443
    nc 127.0.0.1 8000

Each client has one request under way at any time, so nothing piles up for one that does not read.
"""

import argparse
import math
import signal
import socket
import ssl
import sys
from contextlib import ExitStack

import gaio
from gaio.tls import TLSWatcher


def serve(watcher: TLSWatcher, patience: float) -> None:
    """Answer clients until the watcher is closed. Who accepts has the SSLContext as context, or None."""
    for result in watcher:
        conn = result.conn
        if result.operation is gaio.ACCEPT:
            welcome(watcher, result, patience)
        elif isinstance(result.error, EOFError):
            watcher.shutdown(conn)  # it has said all, and now it hears that we have, too
        elif result.error is not None or result.operation is gaio.SHUTDOWN:
            watcher.free(conn)  # it is served; or it spoke no TLS, was cut off, has gone, or was silent for too long
        elif result.operation is gaio.READ:
            watcher.write(conn, result.buffer, timeout=patience)
        else:
            watcher.read(conn, timeout=patience)


def welcome(watcher: TLSWatcher, result: gaio.OpResult, patience: float) -> None:
    try:
        if result.error is not None:
            raise result.error  # EMFILE, say: this client waits in the backlog until others have left
        if result.context is not None:
            watcher.start_server(result.accepted, result.context, timeout=patience)
        watcher.read(result.accepted, timeout=patience)
    except (OSError, gaio.UnsupportedConnError) as error:
        if result.accepted is not None:
            watcher.free(result.accepted)  # it is gone already, or the kernel has no room to watch it
        print(f"a client was not served: {error}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python3 -m examples.tls_echo")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8443, help="0 lets the system choose one")
    parser.add_argument("--plain-port", type=int, help="for clients without TLS")
    parser.add_argument("--backend", choices=("auto", "epoll", "kqueue", "io_uring"))
    parser.add_argument("--cert", required=True, help="the certificate, a PEM file")
    parser.add_argument("--key", help="its private key, a PEM file; may stand in the first as well")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds until a silent client is dropped")
    options = parser.parse_args()
    if not 0 <= options.patience < math.inf:
        parser.error("--patience must be a number of seconds, 0 or more")

    # Both Ctrl-C and `kill` raise KeyboardInterrupt, also where the shell started this with Ctrl-C ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(options.cert, options.key)
        with ExitStack() as stack:
            watcher = stack.enter_context(TLSWatcher(backend=options.backend))
            for port, speaks, what in ((options.port, context, ""), (options.plain_port, None, "without TLS, ")):
                if port is not None:
                    listener = stack.enter_context(socket.create_server((options.host, port), backlog=1024))
                    print("{}listening on {}:{}".format(what, *listener.getsockname()), flush=True)
                    watcher.accept_start(listener, context=speaks)
            serve(watcher, options.patience)
    except KeyboardInterrupt:
        pass  # leaving the `with` has closed every connection
    except (OSError, OverflowError, ValueError) as error:
        # The port is taken or none at all, there is no such certificate, the backend is unknown or unavailable.
        sys.exit(f"cannot serve: {error}")


if __name__ == "__main__":
    main()
