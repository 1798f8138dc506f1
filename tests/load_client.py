"""The clients of an echo server, in a process of their own: `python -m tests.load_client PORT CONNECTIONS`.

Plain blocking sockets: every connection is open before the first byte goes out, and every message is under
way before the first answer is read. Exit status 0 means that every byte came back, in order.
"""

from __future__ import annotations

import resource
import socket
import sys

from tests.peers import receive_exactly
from tests.waiting import LIMIT

SIZES = (1024, 16)


def message(number: int, size: int) -> bytes:
    """Different for each connection, so that an answer on the wrong one shows."""
    return (b"%d-%d-" % (number, size) * size)[:size]


def main(port: int, connections: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (connections + 100, hard))
    socks = [socket.create_connection(("127.0.0.1", port), timeout=LIMIT) for _ in range(connections)]
    for size in SIZES:
        for number, sock in enumerate(socks):
            sock.sendall(message(number, size))
        for number, sock in enumerate(socks):
            if receive_exactly(sock, size) != message(number, size):
                raise SystemExit(f"connection {number}: other bytes came back than the {size} that went out")
    for sock in socks:
        sock.shutdown(socket.SHUT_WR)
    for number, sock in enumerate(socks):
        if sock.recv(1):
            raise SystemExit(f"connection {number}: more bytes came back than went out")
        sock.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
