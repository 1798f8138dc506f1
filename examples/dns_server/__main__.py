"""The server, and its command line."""

import argparse
import signal
import socket
import sys
from collections.abc import Iterator

import gaio
from examples.dns_server.messages import Zone, answer

# Name, type and data. What is more than one line belongs into a file: --zone.
ZONE = """
example.test      SOA   ns.example.test hostmaster.example.test 1 3600 600 86400 60
example.test      NS    ns.example.test
example.test      TXT   a small zone
ns.example.test   A     192.0.2.1
www.example.test  A     192.0.2.80
www.example.test  AAAA  2001:db8::80
"""
MOST_WAITING = 1000  # answers; with more of them, questions are dropped
MAX_UNSENT = 1 << 18  # bytes that may wait for one client of TCP
IDLE = 30.0  # seconds that it may keep a connection without a question


class Client:
    """A connection of TCP, where each message has its length in front."""

    def __init__(self, conn: socket.socket) -> None:
        self.conn = conn
        self.rest = b""

    def messages(self, data: bytes) -> Iterator[bytes]:
        self.rest += data
        while len(self.rest) >= 2 and len(self.rest) >= (end := 2 + int.from_bytes(self.rest[:2], "big")):
            message, self.rest = self.rest[2:end], self.rest[end:]
            yield message


def serve(watcher: gaio.Watcher, udp: socket.socket, listener: socket.socket, zone: Zone) -> None:
    waiting = 0  # answers by UDP
    watcher.read_start(udp)
    watcher.accept_start(listener)
    for result in watcher:
        if result.operation is gaio.ACCEPT:
            welcome(watcher, result)
        elif result.conn is not udp:
            serve_client(watcher, result, zone)
        elif result.operation is gaio.WRITE:
            waiting -= 1  # if it has failed, the client will ask again
        elif not result.more:
            raise result.error or EOFError
        elif result.error is None and waiting < MOST_WAITING:  # else it was larger than any question
            reply = answer(zone, bytes(result.buffer), 512)
            if reply is not None and result.address[1]:  # anybody may claim to be port 0, where nothing can be sent
                watcher.write(udp, reply, address=result.address)
                waiting += 1


def serve_client(watcher: gaio.Watcher, result: gaio.OpResult, zone: Zone) -> None:
    client: Client = result.context
    try:
        if isinstance(result.error, EOFError):
            watcher.finish(client.conn, timeout=IDLE)  # behind the answers that are still to be written
        elif result.error is not None:
            watcher.free(client.conn)
        elif result.operation is gaio.READ:
            for message in client.messages(bytes(result.buffer)):
                reply = answer(zone, message, 0xFFFF)
                if reply is None:
                    watcher.free(client.conn)
                    return
                framed = len(reply).to_bytes(2, "big") + reply
                watcher.write(client.conn, framed, context=client, timeout=IDLE)
            if watcher.unsent(client.conn) > MAX_UNSENT:
                watcher.free(client.conn)  # it asks, and does not listen
    except gaio.ConnClosedError:
        pass  # it has been freed, and this had arrived before


def welcome(watcher: gaio.Watcher, result: gaio.OpResult) -> None:
    try:
        if result.error is not None:
            raise result.error  # EMFILE, say: this client waits in the backlog until others have left
        watcher.read_start(result.accepted, context=Client(result.accepted), timeout=IDLE)
    except (OSError, gaio.UnsupportedConnError) as error:
        if result.accepted is not None:
            result.accepted.close()
        print(f"a client was not served: {error}", file=sys.stderr, flush=True)


def sockets(host: str, port: int) -> tuple[socket.socket, socket.socket]:
    """Both on the same port: one for datagrams, and one that listens."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for left in reversed(range(10)):
        listener = socket.create_server((host, port), family=family, backlog=1024)
        udp = socket.socket(family, socket.SOCK_DGRAM)
        try:
            udp.bind(listener.getsockname()[:2])
            return udp, listener
        except OSError:
            udp.close()
            listener.close()
            if port or not left:
                raise  # else the system has chosen a port that is free for one of them only
    raise AssertionError


def main() -> None:
    parser = argparse.ArgumentParser(prog="python3 -m examples.dns_server")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=5353, help="0 lets the system choose one")
    parser.add_argument("--zone", help="a file with lines as ZONE has them")
    parser.add_argument("--backend", choices=("auto", "epoll", "kqueue", "io_uring"))
    options = parser.parse_args()

    # Both Ctrl-C and `kill` raise KeyboardInterrupt, also where the shell started this with Ctrl-C ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        text = ZONE
        if options.zone is not None:
            with open(options.zone, encoding="utf-8") as file:
                text = file.read()
        zone = Zone(text)
        udp, listener = sockets(options.host, options.port)
        with udp, listener, gaio.Watcher(backend=options.backend) as watcher:
            print("listening on {}:{}".format(*listener.getsockname()[:2]), flush=True)
            serve(watcher, udp, listener, zone)
    except KeyboardInterrupt:
        pass  # leaving the `with` has closed every connection
    except (OSError, OverflowError, ValueError) as error:
        sys.exit(f"cannot serve: {error}")  # the port is taken or none at all, the zone or the backend is wrong


if __name__ == "__main__":
    main()
