"""Clients that no server wants, for so many seconds: `python3 -m benchmarks.bad_neighbours PORT SECONDS KIND`.

KIND `flood`: one sends as fast as it can and reads what comes back. `all`: beside it, one sends and never reads, and
one sends a byte a second.
"""

import socket
import sys
import threading
import time

BLOCK = bytes(65536)


def connect(port: int) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=10)
    client.settimeout(None)
    return client


def take(client: socket.socket) -> None:
    while client.recv(1 << 20):
        pass


def flood(client: socket.socket) -> None:
    while True:
        client.sendall(BLOCK)


def trickle(client: socket.socket) -> None:
    while True:
        client.sendall(b"x")
        time.sleep(1)


def main() -> None:
    port, seconds, kind = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
    flooding = connect(port)
    clients = [(take, flooding), (flood, flooding)]
    if kind == "all":
        # Of the first nobody reads: what is echoed to it fills its buffers.
        clients += [(flood, connect(port)), (trickle, connect(port))]
    for work, client in clients:
        threading.Thread(target=work, args=(client,), daemon=True).start()
    time.sleep(seconds)


if __name__ == "__main__":
    main()
