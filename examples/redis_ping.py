"""A little of Redis: PING, ECHO, SET and GET over RESP, its protocol, for any Redis client.

    python3 -m examples.redis_ping --port 6379
    redis-cli -p 6379 set answer 42

Clients may pipeline: the replies to many commands go out in one write. Who does not take them is not read from, so
they cannot pile up. The store has no bound, though: any client can fill the memory with SET. It is a demonstration.
"""

import argparse
import signal
import socket
import sys

import gaio

MAX_LINE, MAX_ARGUMENTS = 65_536, 1024
MAX_BULK, MAX_COMMAND, MAX_REPLIES = 1 << 20, 2 << 20, 1 << 20  # bytes: of one argument, of all, of a write


class Client:
    """What has come from one connection and has not been carried out yet."""

    def __init__(self) -> None:
        self.rest, self.broken = bytearray(), False
        self.arguments: list[bytes] = []  # of the command that is arriving
        self.missing = self.size = 0  # how many more of them come, and the bytes of those that have

    def next_command(self) -> list[bytes] | None:
        """Take out an array of bulk strings, "*1 $4 PING" with a line end in place of each space, if it is complete."""
        while (end := self.rest.find(b"\r\n", 0, MAX_LINE)) >= 0:
            head, position = bytes(self.rest[:end]), end + 2
            if self.missing:
                end = position + number(head, b"$", MAX_BULK)
                if self.size + end > MAX_COMMAND or not b"\r\n".startswith(self.rest[end : end + 2]):
                    raise ValueError("too long a command, or an argument longer than it says")
                if len(self.rest) < end + 2:
                    return None
                self.arguments.append(bytes(self.rest[position:end]))
                self.missing, self.size, position = self.missing - 1, self.size + end - position, end + 2
            elif head[:1] == b"*":
                self.arguments, self.missing, self.size = [], number(head, b"*", MAX_ARGUMENTS), 0
            else:
                self.arguments = head.split()  # typed by hand, into telnet
            del self.rest[:position]
            if not self.missing:
                return self.arguments
        if len(self.rest) > MAX_LINE:
            raise ValueError("too long a line")
        return None


def number(head: bytes, kind: bytes, limit: int) -> int:
    if not (head[:1] == kind and head[1:].isdigit() and len(head) < 10 and int(head[1:]) <= limit):
        raise ValueError("invalid length")
    return int(head[1:])


def reply(store: dict[bytes, bytes], command: list[bytes]) -> bytes:
    match [argument.upper() for argument in command[:1]] + command[1:]:
        case []:
            return b""  # an empty line, or "*0": Redis passes over it, too
        case [b"PING"]:
            return b"+PONG\r\n"
        case [b"PING" | b"ECHO", message]:
            return b"$%d\r\n%s\r\n" % (len(message), message)
        case [b"SET", key, value]:
            store[key] = value
            return b"+OK\r\n"
        case [b"GET", key]:
            found = store.get(key)
            return b"$-1\r\n" if found is None else b"$%d\r\n%s\r\n" % (len(found), found)
    # Redis' own clients ask for COMMAND and CONFIG first, and do without when they are unknown.
    return b"-ERR unknown command or wrong number of arguments\r\n"


def replies(store: dict[bytes, bytes], client: Client) -> bytearray:
    """To the commands that have come whole, but no more of them than one write is to carry."""
    answers = bytearray()
    try:
        while len(answers) < MAX_REPLIES and (command := client.next_command()) is not None:
            answers += reply(store, command)
    except ValueError as error:
        client.broken = True
        answers += b"-ERR Protocol error: %s\r\n" % str(error).encode()
    return answers


def serve(watcher: gaio.Watcher, listener: socket.socket) -> None:
    """Accept clients and answer them until the watcher is closed."""
    store: dict[bytes, bytes] = {}
    watcher.accept_start(listener)
    for result in watcher:
        conn, client = result.conn, result.context
        if result.operation is gaio.ACCEPT:
            welcome(watcher, result)
        elif result.error is not None:
            watcher.free(conn)
        elif client.broken and result.operation is gaio.WRITE:
            watcher.shutdown(conn, context=client)  # closing with bytes unread could lose what was written
        elif client.broken:
            watcher.read(conn, context=client, timeout=5)
        else:
            if result.operation is gaio.READ:
                client.rest += result.buffer
            if answers := replies(store, client):
                watcher.write(conn, answers, context=client)
            else:
                watcher.read(conn, context=client)


def welcome(watcher: gaio.Watcher, result: gaio.OpResult) -> None:
    try:
        if result.error is not None:
            raise result.error  # EMFILE, say: this client waits in the backlog until others have left
        watcher.read(result.accepted, context=Client())
    except (OSError, gaio.UnsupportedConnError) as error:
        if result.accepted is not None:
            result.accepted.close()  # it is gone already, or the kernel has no room to watch it
        print(f"a client was not served: {error}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python3 -m examples.redis_ping")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=6379, help="0 lets the system choose one")
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
            print("listening on {}:{}".format(*listener.getsockname()), flush=True)
            serve(watcher, listener)
    except KeyboardInterrupt:
        pass  # leaving the `with` has closed every connection
    except (OSError, OverflowError, ValueError) as error:
        sys.exit(f"cannot serve: {error}")  # the port is taken or none at all, the backend unknown or unavailable


if __name__ == "__main__":
    main()
