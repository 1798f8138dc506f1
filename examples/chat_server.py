"""Chat server: what one client says, all the others hear, line by line.

    python3 -m examples.chat_server --port 8000
    nc 127.0.0.1 8000

Each client has one read and at most one write under way. What is said meanwhile waits, and goes out in one write. A
client whose write takes longer than `--patience` seconds is dropped, or for which more than a megabyte waits: a slow
one holds nobody up, not even a speaker who says more than it can read.
"""

import argparse
import math
import signal
import socket
import sys

import gaio

MAX_LINE = 4096
MAX_WAITING = 1 << 20  # bytes that wait for one client
SEND_BUFFER = 65536  # what the kernel keeps for a client that does not read; the default grows to megabytes


class Client:
    """One connection: the line that is arriving, and the lines that wait to be sent."""

    def __init__(self, conn: socket.socket, name: str) -> None:
        self.conn, self.name = conn, name
        self.rest = b""
        self.waiting = bytearray()
        self.writing = False

    def lines(self, data: bytes) -> list[bytes]:
        *complete, self.rest = (self.rest + data).split(b"\n")
        if len(self.rest) > MAX_LINE:
            complete.append(self.rest)
            self.rest = b""
        return complete


class Room:
    """Everybody who is here."""

    def __init__(self, watcher: gaio.Watcher, patience: float) -> None:
        self.watcher = watcher
        self.patience = patience
        self.clients: set[Client] = set()
        self.slow: set[Client] = set()  # those of them that are to be dropped

    def enter(self, result: gaio.OpResult) -> None:
        conn: socket.socket = result.accepted
        try:
            if result.error is not None:
                raise result.error  # EMFILE, say: this client waits in the backlog until others have left
            client = Client(conn, "{}:{}".format(*conn.getpeername()))
            self.watcher.read(conn, context=client)
        except (OSError, gaio.UnsupportedConnError) as error:
            if result.accepted is not None:
                conn.close()  # it is gone already, or no descriptor is left to take it over
            print(f"a client was not served: {error}", file=sys.stderr, flush=True)
            return
        self.clients.add(client)
        self.say(client, "has come")

    def leave(self, client: Client, why: str) -> None:
        if client in self.clients:  # else its other request has told already
            self.clients.remove(client)
            if client.rest:
                self.speak(client, client.rest)
            self.watcher.free(client.conn)
            self.say(client, why)

    def say(self, speaker: Client, text: str) -> None:
        line = f"{speaker.name} {text}\n".encode(errors="replace")
        for client in self.clients - self.slow - {speaker}:
            client.waiting += line
            self.send(client)
            if len(client.waiting) > MAX_WAITING:
                self.slow.add(client)  # not leave() from here: that has something to say, too

    def drop_slow(self) -> None:
        while self.slow:
            self.leave(self.slow.pop(), "was too slow")

    def speak(self, client: Client, line: bytes) -> None:
        self.say(client, f"says: {line.decode(errors='replace').rstrip()}")

    def send(self, client: Client) -> None:
        if client.waiting and not client.writing:
            client.writing = True
            self.watcher.write(client.conn, client.waiting, context=client, timeout=self.patience)
            client.waiting = bytearray()  # the other one is the watcher's until it is written


def serve(watcher: gaio.Watcher, listener: socket.socket, patience: float) -> None:
    """Accept clients and pass on what they say until the watcher is closed."""
    room = Room(watcher, patience)
    watcher.accept(listener)
    for result in watcher:
        client = result.context
        if result.operation is gaio.ACCEPT:
            room.enter(result)
            watcher.accept(listener)
        elif result.error is not None:
            slow = result.operation is gaio.WRITE and isinstance(result.error, gaio.DeadlineError)
            room.leave(client, "was too slow" if slow else "has left")
        elif client not in room.clients:
            pass  # it has been dropped, and this had finished before
        elif result.operation is gaio.READ:
            for line in filter(bytes.strip, client.lines(bytes(result.buffer))):
                room.speak(client, line)
            watcher.read(client.conn, context=client)
        else:
            client.writing = False
            room.send(client)
        room.drop_slow()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python3 -m examples.chat_server")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 lets the system choose one")
    parser.add_argument("--backend", choices=("auto", "epoll", "kqueue", "io_uring"))
    parser.add_argument("--patience", type=float, default=10.0, help="seconds until a slow client is dropped")
    options = parser.parse_args()
    if not 0 <= options.patience < math.inf:
        parser.error("--patience must be a number of seconds, 0 or more")

    # Both Ctrl-C and `kill` raise KeyboardInterrupt, also where the shell started this with Ctrl-C ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        with (
            socket.create_server((options.host, options.port), backlog=1024) as listener,
            # Small reads: whoever says a thousand lines at once is heard by turns with the others.
            gaio.Watcher(backend=options.backend, swap_size=MAX_LINE) as watcher,
        ):
            # Set before the first client comes: its connections inherit it.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            print("listening on {}:{}".format(*listener.getsockname()), flush=True)
            serve(watcher, listener, options.patience)
    except KeyboardInterrupt:
        pass  # leaving the `with` has closed every connection
    except (OSError, OverflowError, ValueError) as error:
        sys.exit(f"cannot serve: {error}")  # the port is taken or none at all, the backend unknown or unavailable


if __name__ == "__main__":
    main()
