"""gaio, through its public API: requests that repeat, and in proactor.py those that do not."""

import socket
from typing import TYPE_CHECKING, cast

import gaio

from . import common, proactor

if TYPE_CHECKING:
    from gaio import BackendName


def echo_repeating(watcher: gaio.Watcher, listener: socket.socket) -> None:
    """What arrives is written back: one result for each arrival, one for each write."""
    watcher.accept_start(listener)
    while True:
        for result in watcher.wait_io():
            if result.operation is gaio.READ:
                if result.error is None:
                    watcher.write(result.conn, result.buffer)
                else:
                    watcher.free(result.conn)
            elif result.operation is gaio.ACCEPT and result.accepted is not None:
                watcher.read_start(result.accepted)


def answer_repeating(watcher: gaio.Watcher, listener: socket.socket, protocol: str) -> None:
    """Request in, answer out: RESP PING or HTTP. The context carries the parser of the connection."""
    watcher.accept_start(listener)
    while True:
        for result in watcher.wait_io():
            if result.operation is gaio.READ:
                if result.error is not None:
                    watcher.free(result.conn)
                elif reply := result.context(bytes(result.buffer)):
                    watcher.write(result.conn, reply)
            elif result.operation is gaio.ACCEPT and result.accepted is not None:
                watcher.read_start(
                    result.accepted, context=common.answer_for(protocol)
                )


HIGH, LOW = 4 * common.READ_SIZE, common.READ_SIZE  # bytes that a peer may leave untaken


class Peer:
    """What `echo_controlled` knows of a connection."""

    __slots__ = ("paused",)

    def __init__(self) -> None:
        self.paused = False


def echo_controlled(watcher: gaio.Watcher, listener: socket.socket) -> None:
    """`echo_repeating`, but nothing is read from a peer that leaves its answers untaken, until it takes them.

    For the loads with neighbours that send without end: what is read there is memory until it has been sent.
    """
    watcher.accept_start(listener)
    while True:
        for result in watcher.wait_io():
            conn, peer = result.conn, result.context
            if result.operation is gaio.ACCEPT:
                if result.accepted is not None:
                    watcher.read_start(result.accepted, context=Peer())
            elif result.operation is gaio.WRITE:
                # Where a write has failed the read will fail as well, and says so when it is started again.
                if peer.paused and watcher.unsent(conn) <= LOW:
                    peer.paused = False
                    watcher.read_start(conn, context=peer)
            elif result.error is not None:
                watcher.free(conn)
            elif result.size:
                watcher.write(conn, result.buffer, context=peer)
                if watcher.unsent(conn) > HIGH:
                    watcher.read_stop(conn)
            elif watcher.unsent(conn) > LOW:
                peer.paused = True  # the last result, after read_stop()
            else:
                watcher.read_start(conn, context=peer)


def push(watcher: gaio.Watcher, listener: socket.socket, size: int) -> None:
    """One message to everybody, whenever somebody asks for one."""
    messages = common.pushed_messages(size)
    everybody: set[socket.socket] = set()
    watcher.accept_start(listener)
    while True:
        for result in watcher.wait_io():
            if result.operation is gaio.READ:
                if result.error is not None:
                    everybody.discard(result.conn)
                    watcher.free(result.conn)
                    continue
                data = bytes(result.buffer)
                if common.HERE in data:
                    watcher.write(result.conn, common.HERE)
                for _ in range(data.count(common.NEXT)):
                    message = next(messages)
                    for receiver in everybody:
                        watcher.write(receiver, message)
            elif result.operation is gaio.ACCEPT and result.accepted is not None:
                everybody.add(result.accepted)
                watcher.read_start(result.accepted)


def main() -> None:
    options = common.start()
    watcher = gaio.Watcher(backend=cast("BackendName", options.backend))
    if options.variant:
        proactor.serve(watcher, options)
    elif options.protocol == "push":
        push(watcher, common.listen(), options.message_size)
    elif options.flow_control:
        echo_controlled(watcher, common.listen())
    elif options.protocol == "echo":
        echo_repeating(watcher, common.listen())
    else:
        answer_repeating(watcher, common.listen(), options.protocol)


if __name__ == "__main__":
    main()
