"""TCP proxy: every connection to it becomes one to `--target`, both ways.

    python3 -m examples.tcp_proxy --port 8000 --target 127.0.0.1:6379

What arrives from one side is written to the other at once. When a receiver does not take it, and more than
`MAX_UNSENT` bytes wait, the sender is not read from until they have gone: its connection fills up, and it has to wait.
Memory stays flat. When one side ends its direction, the other side sees that end, and the opposite direction goes on.
When one side breaks off (a reset), both connections are closed, and the other side sees an orderly end, from which it
cannot tell that something may be missing; or a reset, if bytes of its own had not been read yet.
"""

import argparse
import signal
import socket
import sys

import gaio

MAX_UNSENT = 1 << 18


class Way:
    """One direction of one proxied connection."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.waits = False  # the source is not read from, until the sink has taken what was read
        self.ended = False
        self.back: Way

    @classmethod
    def pair(cls, client: socket.socket, server: socket.socket) -> "Way":
        there, back = cls(client, server), cls(server, client)
        there.back, back.back = back, there
        return there


def serve(watcher: gaio.Watcher, listener: socket.socket, family: int, target: object) -> None:
    """Accept clients and connect them until the watcher is closed."""
    watcher.accept_start(listener)
    for result in watcher:
        way = result.context
        if result.operation is gaio.ACCEPT:
            if result.error is None:
                welcome(watcher, result.accepted, family, target)
            else:
                complain(result.error)  # EMFILE, say: this client waits in the backlog until others have left
        elif way.ended:
            pass  # both connections have been freed, and this had been under way
        elif result.operation is gaio.READ and isinstance(result.error, EOFError):
            watcher.shutdown(way.sink, context=way)  # pass the end on, behind what is still to be written
        elif result.error is not None:
            if result.operation is gaio.CONNECT:
                complain(result.error)
            end(watcher, way)
        elif result.more:
            watcher.write(way.sink, result.buffer, context=way)
            if watcher.unsent(way.sink) > MAX_UNSENT:
                watcher.read_stop(way.source)
        elif result.operation is gaio.READ or way.waits:
            # Reading has stopped, or a write has finished since.
            way.waits = watcher.unsent(way.sink) > 0
            if not way.waits:
                watcher.read_start(way.source, context=way)
        elif result.operation is gaio.SHUTDOWN:
            way.ended = True
            if way.back.ended:
                end(watcher, way)


def end(watcher: gaio.Watcher, way: Way) -> None:
    """Both connections at once."""
    way.ended = way.back.ended = True
    watcher.free(way.source)
    watcher.free(way.sink)


def welcome(watcher: gaio.Watcher, client: socket.socket, family: int, target: object) -> None:
    """Connect to the target for a client. What arrives meanwhile is written when that has succeeded."""
    try:
        way = Way.pair(client, socket.socket(family))
    except OSError as error:
        client.close()  # no descriptor is left
        complain(error)
        return
    try:
        watcher.connect(way.sink, target, context=way, timeout=10)
        for each in (way, way.back):
            watcher.read_start(each.source, context=each)
    except (OSError, gaio.UnsupportedConnError) as error:
        end(watcher, way)  # the client is gone already, or the kernel has no room to watch it
        complain(error)


def complain(error: Exception) -> None:
    print(f"a client was not served: {error}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python3 -m examples.tcp_proxy")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 lets the system choose one")
    parser.add_argument("--target", required=True, metavar="HOST:PORT", help="of a name, the first address")
    parser.add_argument("--backend", choices=("auto", "epoll", "kqueue", "io_uring"))
    options = parser.parse_args()
    host, _, port = options.target.rpartition(":")

    # Both Ctrl-C and `kill` raise KeyboardInterrupt, also where the shell started this with Ctrl-C ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        # Looked up once, before anybody has to wait for it.
        family, _, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with (
            socket.create_server((options.host, options.port), backlog=1024) as listener,
            gaio.Watcher(backend=options.backend) as watcher,
        ):
            print("listening on {}:{}".format(*listener.getsockname()), flush=True)
            serve(watcher, listener, family, target)
    except KeyboardInterrupt:
        pass  # leaving the `with` has closed every connection
    except (OSError, OverflowError, ValueError) as error:
        sys.exit(f"cannot serve: {error}")  # the port is taken or none at all, the backend unknown or unavailable


if __name__ == "__main__":
    main()
