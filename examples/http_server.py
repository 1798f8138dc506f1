"""HTTP/1.1 server: greets whoever asks. Keep-alive and pipelining; h11 speaks the protocol, gaio moves the bytes.

    python3 -m pip install h11
    python3 -m examples.http_server --port 8000

GET and HEAD of any path answer with a greeting, POST and PUT with what was sent. Each client has one request under way
at any time, a read or a write: the answers to all that one read brought go out in one vectored write, and nothing more
is read until they are gone. `--idle` seconds without them, or without a byte, end a connection.
"""

import argparse
import math
import signal
import socket
import sys

import h11

import gaio

MAX_BODY = 1 << 20  # of a request: it is kept in memory until it is complete


class Client:
    """One connection: the state of its protocol, and of the request that is arriving."""

    def __init__(self) -> None:
        self.http = h11.Connection(h11.SERVER)
        self.request: h11.Request | None = None
        self.body = bytearray()

    def answers(self, data: bytes) -> list[bytes]:
        """What to send for what has come: the answers to every request that is complete by now."""
        parts: list[bytes] = []
        try:
            self.http.receive_data(data)
            while True:
                event = self.http.next_event()
                if isinstance(event, h11.Request):
                    self.request, self.body = event, bytearray()
                    if event.method == b"CONNECT":  # a success would turn the connection into a tunnel
                        raise h11.RemoteProtocolError("no proxy", error_status_hint=405)
                    if self.http.they_are_waiting_for_100_continue:
                        parts += self._send(h11.InformationalResponse(status_code=100, headers=[]))
                elif isinstance(event, h11.Data):
                    self.body += event.data
                    if len(self.body) > MAX_BODY:
                        raise h11.RemoteProtocolError("too much", error_status_hint=413)
                elif isinstance(event, h11.EndOfMessage):
                    parts += self._answer(200, self._content())
                    if self.http.our_state is not h11.DONE:
                        return parts  # this was the last one: the connection ends
                    self.http.start_next_cycle()
                    self.request = None  # what is not understood next is no HEAD, though the last one was
                else:
                    return parts  # more bytes are needed, or the client has ended
        except h11.RemoteProtocolError as error:
            if self.http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                parts += self._answer(error.error_status_hint, b"not understood\n", (b"connection", b"close"))
            return parts

    def _content(self) -> bytes:
        assert self.request is not None
        if self.request.method in (b"POST", b"PUT"):
            return bytes(self.body)
        return b"hello from gaio, you asked for " + self.request.target + b"\n"

    def _answer(self, status: int, content: bytes, *headers: tuple[bytes, bytes]) -> list[bytes]:
        length = (b"content-length", b"%d" % len(content))
        response = h11.Response(status_code=status, headers=[(b"content-type", b"text/plain"), length, *headers])
        parts = self._send(response)
        if self.request is None or self.request.method != b"HEAD":
            parts += self._send(h11.Data(data=content))
        return parts + self._send(h11.EndOfMessage())

    def _send(self, event: h11.Event) -> list[bytes]:
        data = self.http.send(event)
        return [data] if data else []

    @property
    def ended(self) -> bool:
        return self.http.our_state in (h11.MUST_CLOSE, h11.CLOSED, h11.ERROR)


def serve(watcher: gaio.Watcher, listener: socket.socket, idle: float) -> None:
    """Accept clients and answer them until the watcher is closed."""
    watcher.accept_start(listener)
    for result in watcher:
        conn, client = result.conn, result.context
        if result.operation is gaio.ACCEPT:
            welcome(watcher, result, idle)
        elif result.error is not None:
            watcher.free(conn)  # it has ended, it was idle for too long, or it is gone
        elif result.operation is gaio.SHUTDOWN:
            watcher.read(conn, context=client, timeout=idle)
        elif result.operation is gaio.READ and not client.ended:
            answers = client.answers(bytes(result.buffer))
            if answers:
                watcher.write(conn, answers, context=client, timeout=idle)
            else:
                watcher.read(conn, context=client, timeout=idle)
        elif client.ended and result.operation is gaio.WRITE:
            # Closing with bytes unread would reset the connection, and the answer might not arrive.
            watcher.shutdown(conn, context=client)
        else:
            watcher.read(conn, context=client, timeout=idle)


def welcome(watcher: gaio.Watcher, result: gaio.OpResult, idle: float) -> None:
    try:
        if result.error is not None:
            raise result.error  # EMFILE, say: this client waits in the backlog until others have left
        watcher.read(result.accepted, context=Client(), timeout=idle)
    except (OSError, gaio.UnsupportedConnError) as error:
        if result.accepted is not None:
            result.accepted.close()  # it is gone already, or the kernel has no room to watch it
        print(f"a client was not served: {error}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python3 -m examples.http_server")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 lets the system choose one")
    parser.add_argument("--backend", choices=("auto", "epoll", "kqueue", "io_uring"))
    parser.add_argument("--idle", type=float, default=60.0, help="seconds until a silent client is dropped")
    options = parser.parse_args()
    if not 0 <= options.idle < math.inf:
        parser.error("--idle must be a number of seconds, 0 or more")

    # Both Ctrl-C and `kill` raise KeyboardInterrupt, also where the shell started this with Ctrl-C ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        with (
            socket.create_server((options.host, options.port), backlog=1024) as listener,
            gaio.Watcher(backend=options.backend) as watcher,
        ):
            print("listening on {}:{}".format(*listener.getsockname()), flush=True)
            serve(watcher, listener, options.idle)
    except KeyboardInterrupt:
        pass  # leaving the `with` has closed every connection
    except (OSError, OverflowError, ValueError) as error:
        sys.exit(f"cannot serve: {error}")  # the port is taken or none at all, the backend unknown or unavailable


if __name__ == "__main__":
    main()
