"""What every Python server here shares: its command line, its listening socket, its bounded life.

A server prints one line of JSON, ``{"port": N}``, when it can be connected to, and serves until it is killed.
"""

import argparse
import itertools
import json
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .. import places

# The echo of a Protocol is `echo`; by StreamReader and StreamWriter it is `streams`, through TLS `tls`. RESP is `ping`.
PROTOCOLS = ("echo", "ping", "http", "push", "streams", "tls", "uvicorn", "wsgi")
BACKLOG = 4096
READ_SIZE = 65536  # the most one receive may bring, the same for every contender

PING = b"*1\r\n$4\r\nPING\r\n"
PONG = b"+PONG\r\n"
END_OF_REQUEST = b"\r\n\r\n"
# Of the push: answered to the one who sends it, and asks for one more message to everybody (load/push_load.c).
HERE, NEXT = b"?", b"!"
HELLO = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, world!"


@dataclass(frozen=True)
class Options:
    protocol: str  # one of PROTOCOLS
    buffer_size: int  # of the caller's buffers, for a contender that uses some
    backend: str  # of gaio
    loop: str  # of asyncio's contenders: asyncio, uvloop or gaio
    variant: str  # of the server's loop, where there is more than one
    message_size: int  # of a push
    flow_control: bool  # do not read from who does not take the answers, where that is left to the server


def start() -> Options:
    """Reads the command line and starts what it asks for beside the server."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--protocol", choices=PROTOCOLS, default="echo")
    parser.add_argument("--life", type=int, default=60, help="seconds after which the server dies by itself")
    parser.add_argument("--burn", action="store_true", help="a thread of this process computes without pause")
    parser.add_argument("--buffer-size", type=int, default=READ_SIZE)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--loop", choices=("asyncio", "uvloop", "gaio"), default="asyncio")
    parser.add_argument("--variant", default="")
    parser.add_argument("--message-size", type=int, default=100)
    parser.add_argument("--flow-control", action="store_true")
    arguments = parser.parse_args()
    signal.alarm(arguments.life)  # the default action ends the process even when the benchmark is gone
    if arguments.burn:
        threading.Thread(target=burn, name="burn", daemon=True).start()
    return Options(
        arguments.protocol,
        arguments.buffer_size,
        arguments.backend,
        arguments.loop,
        arguments.variant,
        arguments.message_size,
        arguments.flow_control,
    )


def burn() -> None:
    """Pure Python, no system call: gives the GIL away only when the interpreter takes it."""
    number = 0
    while True:
        number = (number * 31 + 7) % 1000003


def listen() -> socket.socket:
    """A listening socket on the loopback interface, announced on standard output."""
    # With its protocol named, as getaddrinfo(3) does and socket.create_server() does not: asyncio sets TCP_NODELAY only
    # where it finds that. Without, an answer in two writes, as uvicorn's, waits 40 ms for the peer's acknowledgement.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen(BACKLOG)
    announce(listener)
    return listener


def announce(listener: socket.socket) -> None:
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)


def tls() -> ssl.SSLContext:
    """What the servers that speak TLS show their clients."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(places.certificate())
    return context


def without_delay(connection: socket.socket) -> socket.socket:
    """TCP_NODELAY: asyncio, uvloop, trio and gaio set it unasked, so the others get it too."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def pushed_messages(size: int) -> Iterator[bytes]:
    """What is pushed, for ever: each message is the bytes from 0 to 250 again and again, from one further on."""
    pattern = bytes(range(251)) * (size // 251 + 2)
    return itertools.cycle([pattern[start : start + size] for start in range(251)])


Arrived = bytes | bytearray  # trio may give either
Answer = Callable[[Arrived], bytes]  # what has arrived -> what to send now, maybe nothing


def answer_for(protocol: str) -> Answer:
    """A fresh answering function for one connection; it keeps the half of a request that has not arrived."""
    if protocol == "ping":
        return _Commands().answer
    if protocol == "http":
        return _HelloRequests().answer
    return bytes


class _Commands:
    """RESP, as far as redis-benchmark needs it: PING is answered, anything else (its CONFIG GET) refused."""

    def __init__(self) -> None:
        self._rest = b""

    def answer(self, data: Arrived) -> bytes:
        if data == PING and not self._rest:
            return PONG
        self._rest += data
        answers = []
        while (end := self._command_end()) is not None:
            command, self._rest = self._rest[:end], self._rest[end:]
            answers.append(PONG if command in (PING, b"PING\r\n") else b"-ERR unknown command\r\n")
        return b"".join(answers)

    def _command_end(self) -> int | None:
        """Where the first command ends, None when it is not complete."""
        line_end = self._rest.find(b"\r\n")
        if line_end < 0:
            return None
        end = line_end + 2
        if self._rest[:1] != b"*":
            return end
        for _ in range(int(self._rest[1:line_end])):
            line_end = self._rest.find(b"\r\n", end)
            if line_end < 0:
                return None
            end = line_end + 2 + int(self._rest[end + 1 : line_end]) + 2
            if len(self._rest) < end:
                return None
        return end


class _HelloRequests:
    """HTTP/1.1 requests without a body, as wrk sends them; each gets the same page."""

    def __init__(self) -> None:
        self._rest = b""

    def answer(self, data: Arrived) -> bytes:
        everything = self._rest + data
        count = everything.count(END_OF_REQUEST)
        self._rest = everything.rpartition(END_OF_REQUEST)[2]
        return HELLO * count
