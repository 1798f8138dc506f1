"""gaio's `read`, `write`, `free` and `wait_io` from the standard library alone, the straightforward way: the mark that
gaio has to beat. Nothing else of it: no deadlines, no swap arena, no reclaim, no clean end.

A poller thread owns all descriptor state. It takes submitted requests from an inbox, tries each one at once,
parks it until the next edge when the kernel says EAGAIN, and hands finished ones to `wait_io()` through a
Condition.
"""

import os
import select
import socket
import sys
import threading
from collections import deque
from typing import Any

from gaio import READ, WRITE, Operation

from . import common, proactor

assert sys.platform == "linux", "epoll and eventfd are Linux's"

EVERY_EDGE = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
READABLE = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
WRITABLE = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR


class OpResult:
    """One request, and later its outcome."""

    __slots__ = ("buffer", "conn", "context", "error", "operation", "size")

    def __init__(self, operation: Operation, conn: socket.socket, buffer: Any, context: Any) -> None:
        self.operation = operation
        self.conn = conn
        self.buffer = buffer
        self.context = context
        self.size = 0
        self.error: Exception | None = None


class Connection:
    """A descriptor known to the poller thread, with its unfinished requests in order."""

    __slots__ = ("conn", "fd", "reads", "writes")

    def __init__(self, conn: socket.socket) -> None:
        conn.setblocking(False)
        self.conn = conn
        self.fd = conn.fileno()
        self.reads: deque[OpResult] = deque()
        self.writes: deque[OpResult] = deque()


class Watcher:
    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._connections: dict[int, Connection] = {}
        self._inbox: deque[OpResult | socket.socket] = deque()
        self._asleep = False
        self._finished: list[OpResult] = []
        self._condition = threading.Condition(threading.Lock())
        self._results: list[OpResult] = []
        threading.Thread(target=self._poll, name="plain stdlib watcher", daemon=True).start()

    def read(self, conn: socket.socket, buf: Any = None, *, context: Any = None) -> None:
        self._submit(OpResult(READ, conn, buf, context))

    def write(self, conn: socket.socket, buf: Any, *, context: Any = None) -> None:
        self._submit(OpResult(WRITE, conn, buf, context))

    def free(self, conn: socket.socket) -> None:
        self._submit(conn)

    def wait_io(self) -> list[OpResult]:
        with self._condition:
            while not self._results:
                self._condition.wait()
            results, self._results = self._results, []
        return results

    def _submit(self, item: OpResult | socket.socket) -> None:
        self._inbox.append(item)
        if self._asleep:
            self._asleep = False
            os.eventfd_write(self._wake, 1)

    def _poll(self) -> None:
        while True:
            self._take_inbox()
            if self._finished:
                with self._condition:
                    self._results += self._finished
                    self._condition.notify()
                self._finished = []
            self._asleep = True
            # A request submitted before the flag was raised has not woken anybody: do not sleep on it.
            events = self._epoll.poll(0 if self._inbox else -1, 512)
            self._asleep = False
            for fd, event in events:
                if fd == self._wake:
                    os.eventfd_read(fd)
                    continue
                connection = self._connections.get(fd)
                if connection is None:
                    continue
                if event & READABLE and connection.reads:
                    self._run(connection, connection.reads)
                if event & WRITABLE and connection.writes:
                    self._run(connection, connection.writes)

    def _take_inbox(self) -> None:
        while self._inbox:
            item = self._inbox.popleft()
            if not isinstance(item, OpResult):
                self._forget(item)
                continue
            connection = self._connections.get(item.conn.fileno())
            if connection is None:
                if item.conn.fileno() < 0:
                    self._finish(item, ConnectionError("the connection was freed"))
                    continue
                connection = self._connections[item.conn.fileno()] = Connection(item.conn)
                self._epoll.register(connection.fd, EVERY_EDGE)
            queue = connection.reads if item.operation is READ else connection.writes
            queue.append(item)
            if len(queue) == 1:
                self._run(connection, queue)

    def _run(self, connection: Connection, queue: deque[OpResult]) -> None:
        """Performs requests in order until one has to wait for the kernel."""
        while queue:
            request = queue[0]
            try:
                if request.operation is WRITE:
                    view = memoryview(request.buffer)
                    while request.size < len(view):
                        request.size += os.writev(connection.fd, [view[request.size :]])
                elif request.buffer is None:
                    data = os.read(connection.fd, common.READ_SIZE)
                    request.buffer, request.size = data, len(data)
                else:
                    request.size = os.readv(connection.fd, [request.buffer])
            except BlockingIOError:
                return
            except OSError as error:
                request.error = error
            queue.popleft()
            ended = request.operation is READ and request.size == 0 and request.error is None
            self._finish(request, EOFError() if ended else request.error)

    def _forget(self, conn: socket.socket) -> None:
        connection = self._connections.pop(conn.fileno(), None)
        if connection is not None:
            self._epoll.unregister(connection.fd)
            for request in (*connection.reads, *connection.writes):
                self._finish(request, ConnectionError("the connection was freed"))
        conn.close()

    def _finish(self, request: OpResult, error: Exception | None) -> None:
        request.error = error
        self._finished.append(request)


if __name__ == "__main__":
    proactor.serve(Watcher(), common.start())
