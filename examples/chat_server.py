"""Chat server: what one client says, all the others hear, line by line.

    python3 -m examples.chat_server --port 8000
    nc 127.0.0.1 8000

Each client is read from all the time, and what is said goes to all the others at once. Where a client does not take
it, it waits in memory; once a second those are dropped for whom more than `MAX_UNSENT` bytes wait. So a slow one holds
nobody up, not even a speaker who says more than it can read.
"""

import argparse
import signal
import socket
import sys
import time

import gaio

MAX_LINE = 4096
MAX_UNSENT = 1 << 18  # bytes that wait for one client
SEND_BUFFER = 65536  # what the kernel keeps for a client that does not read; the default grows to megabytes


class Client:
    """One connection: the line that is arriving."""

    def __init__(self, conn: socket.socket, name: str) -> None:
        self.conn, self.name = conn, name
        self.rest = b""

    def lines(self, data: bytes) -> list[bytes]:
        *complete, self.rest = (self.rest + data).split(b"\n")
        if len(self.rest) > MAX_LINE:
            complete.append(self.rest)
            self.rest = b""
        return complete


class Room:
    """Everybody who is here."""

    def __init__(self, watcher: gaio.Watcher) -> None:
        self.watcher = watcher
        self.clients: set[Client] = set()

    def enter(self, result: gaio.OpResult) -> None:
        conn: socket.socket = result.accepted
        try:
            if result.error is not None:
                raise result.error  # EMFILE, say: this client waits in the backlog until others have left
            client = Client(conn, "{}:{}".format(*conn.getpeername()))
            self.watcher.read_start(conn, context=client)
        except (OSError, gaio.UnsupportedConnError) as error:
            if result.accepted is not None:
                conn.close()  # it is gone already, or the kernel has no room to watch it
            print(f"a client was not served: {error}", file=sys.stderr, flush=True)
            return
        self.clients.add(client)
        self.say(client, "has come")

    def leave(self, client: Client, why: str) -> None:
        if client in self.clients:  # else another result of it has told already
            self.clients.remove(client)
            if client.rest:
                self.speak(client, client.rest)
            self.watcher.free(client.conn)
            self.say(client, why)

    def say(self, speaker: Client, text: str) -> None:
        line = f"{speaker.name} {text}\n".encode(errors="replace")
        for client in self.clients:
            if client is not speaker:
                self.watcher.write(client.conn, line, context=client)

    def speak(self, client: Client, line: bytes) -> None:
        self.say(client, f"says: {line.decode(errors='replace').rstrip()}")

    def drop_slow(self) -> None:
        for client in [client for client in self.clients if self.watcher.unsent(client.conn) > MAX_UNSENT]:
            self.leave(client, "was too slow")


def serve(watcher: gaio.Watcher, listener: socket.socket) -> None:
    """Accept clients and pass on what they say until the watcher is closed."""
    room = Room(watcher)
    watcher.accept_start(listener)
    due = time.monotonic()
    while True:
        results = watcher.wait_io(1)
        if time.monotonic() >= due:
            room.drop_slow()  # once a second and not with each line: unsent() takes time for all that waits
            due = time.monotonic() + 1
        for result in results:
            client = result.context
            if result.operation is gaio.ACCEPT:
                room.enter(result)
            elif result.error is not None:
                room.leave(client, "has left")
            elif result.operation is gaio.READ and client in room.clients:
                for line in filter(bytes.strip, client.lines(bytes(result.buffer))):
                    room.speak(client, line)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python3 -m examples.chat_server")
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
            # Small reads: whoever says a thousand lines at once is heard by turns with the others.
            gaio.Watcher(backend=options.backend, swap_size=MAX_LINE) as watcher,
        ):
            # Set before the first client comes: its connections inherit it.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            print("listening on {}:{}".format(*listener.getsockname()), flush=True)
            serve(watcher, listener)
    except KeyboardInterrupt:
        pass  # leaving the `with` has closed every connection
    except (OSError, OverflowError, ValueError) as error:
        sys.exit(f"cannot serve: {error}")  # the port is taken or none at all, the backend unknown or unavailable


if __name__ == "__main__":
    main()
