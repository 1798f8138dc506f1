"""Servers on the API that gaio and plain_stdlib.py share: submit reads and writes, collect finished ones.

What only gaio has, requests that repeat, is in gaio_watcher.py.
"""

import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from gaio import READ

from . import common


class Result(Protocol):
    """As much of gaio.OpResult as a server looks at."""

    @property
    def operation(self) -> int: ...
    @property
    def conn(self) -> Any: ...
    @property
    def context(self) -> Any: ...
    @property
    def buffer(self) -> Any: ...
    @property
    def size(self) -> int: ...
    @property
    def error(self) -> Exception | None: ...


class Watcher(Protocol):
    """As much of gaio.Watcher as a server needs."""

    def read(self, conn: socket.socket, buf: Any = None, *, context: Any = None) -> None: ...
    def write(self, conn: socket.socket, buf: Any, *, context: Any = None) -> None: ...
    def free(self, conn: socket.socket) -> None: ...
    def wait_io(self) -> Sequence[Result]: ...


def accept_for_ever(listener: socket.socket, first_read: Callable[[socket.socket], None]) -> None:
    """Starts the thread that accepts; it sleeps in the kernel once all connections are there."""

    def accept() -> None:
        while True:
            connection, _address = listener.accept()
            first_read(common.without_delay(connection))

    threading.Thread(target=accept, name="accept", daemon=True).start()


def echo_swap(watcher: Watcher, listener: socket.socket) -> None:
    """The bytes arrive in the watcher's memory; the next read is submitted right after the write.

    A read that is submitted only when the write is over takes 1 to 5 % more processor time a request at 64
    connections, and makes no difference beyond the noise at 8 and 1,000, on either backend.
    """
    accept_for_ever(listener, watcher.read)
    while True:
        for result in watcher.wait_io():
            if result.error is not None:
                watcher.free(result.conn)
            elif result.operation is READ:
                watcher.write(result.conn, result.buffer)
                watcher.read(result.conn)


def echo_caller(watcher: Watcher, listener: socket.socket, buffer_size: int) -> None:
    """Every connection has a buffer of its own, read into again only when the write from it is over."""

    def first_read(connection: socket.socket) -> None:
        buffer = memoryview(bytearray(buffer_size))
        watcher.read(connection, buffer, context=buffer)

    accept_for_ever(listener, first_read)
    while True:
        for result in watcher.wait_io():
            if result.error is not None:
                watcher.free(result.conn)
            elif result.operation is READ:
                buffer = result.context
                watcher.write(result.conn, buffer[: result.size], context=buffer)
            else:
                buffer = result.context
                watcher.read(result.conn, buffer, context=buffer)


def answer_requests(watcher: Watcher, listener: socket.socket, protocol: str) -> None:
    """Request in, answer out: RESP PING or HTTP. The context carries the parser of the connection."""

    def first_read(connection: socket.socket) -> None:
        watcher.read(connection, context=common.answer_for(protocol))

    accept_for_ever(listener, first_read)
    while True:
        for result in watcher.wait_io():
            if result.error is not None:
                watcher.free(result.conn)
            elif result.operation is READ:
                answer = result.context
                if reply := answer(bytes(result.buffer)):
                    watcher.write(result.conn, reply)
                watcher.read(result.conn, context=answer)


def serve(watcher: Watcher, options: common.Options) -> None:
    listener = common.listen()
    if options.protocol != "echo":
        answer_requests(watcher, listener, options.protocol)
    elif options.variant == "caller":
        echo_caller(watcher, listener, options.buffer_size)
    else:
        echo_swap(watcher, listener)
