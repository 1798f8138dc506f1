"""TLS echo server: the standard library's ssl on top of a watcher.

    openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -keyout key.pem -out cert.pem
    python3 -m examples.tls_echo --port 8443 --cert cert.pem --key key.pem
    openssl s_client -connect 127.0.0.1:8443

gaio refuses an ssl.SSLSocket, because it would use the bare connection beneath it. So an ssl.SSLObject does
the cryptography between two ssl.MemoryBIOs: what gaio reads goes into one, what comes out of the other gaio writes.
Each client has one request under way at any time, so nothing piles up for a client that does not read.
"""

import argparse
import math
import signal
import socket
import ssl
import sys

import gaio


class Session:
    """One connection: its TLS, which touches no socket."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._greeted = False  # the handshake is done
        self.ended = False

    def echo(self, data: bytes) -> None:
        """Take what the client sent, encrypted, and encrypt the plain bytes in it again."""
        self._incoming.write(data)
        try:
            if not self._greeted:
                self._tls.do_handshake()
                self._greeted = True
            while plain := self._tls.read(65536):
                self._tls.write(plain)
            self.ended = True  # close_notify: the client has sent all it had to say
            self._tls.unwrap()  # our own close_notify
        except ssl.SSLWantReadError:
            pass  # that was all of it
        except ssl.SSLError:
            self.ended = True  # not TLS, or broken; what stands in `to_send()` tells the client why

    def to_send(self) -> bytes:
        """What is to go to the client, encrypted."""
        return self._outgoing.read()


def serve(watcher: gaio.Watcher, listener: socket.socket, context: ssl.SSLContext, patience: float) -> None:
    """Accept clients and answer them until the watcher is closed."""
    watcher.accept_start(listener)
    for result in watcher:
        conn, session = result.conn, result.context
        if result.operation is gaio.ACCEPT:
            welcome(watcher, result, Session(context), patience)
            continue
        if result.error is not None:
            watcher.free(conn)  # it is gone, silent for too long, or has ended without a close_notify
            continue
        drains = session.ended and result.operation is not gaio.WRITE
        if result.operation is gaio.READ and not drains:
            session.echo(bytes(result.buffer))
        if out := session.to_send():
            watcher.write(conn, out, context=session, timeout=patience)
        elif session.ended and not drains:
            # Closing with bytes unread would reset the connection, and what was written might not arrive.
            watcher.shutdown(conn, context=session)
        else:
            watcher.read(conn, context=session, timeout=patience)


def welcome(watcher: gaio.Watcher, result: gaio.OpResult, session: Session, patience: float) -> None:
    try:
        if result.error is not None:
            raise result.error  # EMFILE, say: this client waits in the backlog until others have left
        result.accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        watcher.read(result.accepted, context=session, timeout=patience)
    except (OSError, gaio.UnsupportedConnError) as error:
        if result.accepted is not None:
            result.accepted.close()  # it is gone already, or no descriptor is left to take it over
        print(f"a client was not served: {error}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python3 -m examples.tls_echo")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8443, help="0 lets the system choose one")
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
        with (
            socket.create_server((options.host, options.port), backlog=1024) as listener,
            gaio.Watcher(backend=options.backend) as watcher,
        ):
            print("listening on {}:{}".format(*listener.getsockname()), flush=True)
            serve(watcher, listener, context, options.patience)
    except KeyboardInterrupt:
        pass  # leaving the `with` has closed every connection
    except (OSError, OverflowError, ValueError) as error:
        # The port is taken or none at all, there is no such certificate, the backend is unknown or unavailable.
        sys.exit(f"cannot serve: {error}")


if __name__ == "__main__":
    main()
