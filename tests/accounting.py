"""A watcher that keeps books: exactly one result for every accepted request, and each the right one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from socket import SOCK_STREAM, socket
from typing import TYPE_CHECKING, Any, Protocol

import gaio
from tests.peers import Closable
from tests.waiting import TimeLimit

if TYPE_CHECKING:
    from typing_extensions import Buffer


def nbytes(buffer: Buffer | Sequence[Buffer]) -> int:
    if isinstance(buffer, (list, tuple)):
        return sum(memoryview(part).nbytes for part in buffer)
    single: Any = buffer  # a sequence is a list or a tuple in these tests
    return memoryview(single).nbytes


class Request:
    """One accepted request, and its result once that was delivered."""

    __slots__ = ("_conn", "_whole", "buffer", "data", "operation", "result", "size_wanted")

    def __init__(self, operation: gaio.Operation, conn: Closable, buffer: Any, *, whole: bool) -> None:
        self.operation = operation
        self.buffer = buffer  # what the caller passed, None for a read into the swap arena
        self.size_wanted = None if buffer is None else nbytes(buffer)
        self.result: gaio.OpResult | None = None
        self.data = b""  # the bytes of a read into the swap arena, copied while they were valid
        self._conn: Closable | None = conn
        self._whole = whole  # success means that every byte moved

    @property
    def conn(self) -> Closable | None:
        return self._conn

    @property
    def size(self) -> int:
        assert self.result is not None, f"{self!r} has no result yet"
        return self.result.size

    @property
    def error(self) -> Exception | None:
        assert self.result is not None, f"{self!r} has no result yet"
        return self.result.error

    @property
    def accepted(self) -> socket:
        """The connection of an ACCEPT that succeeded."""
        assert self.result is not None, f"{self!r} has no result yet"
        accepted = self.result.accepted
        assert self.result.accepted is accepted, "one connection, one socket"
        assert isinstance(accepted, socket), self.result
        return accepted

    def record(self, result: gaio.OpResult) -> None:
        """Take the result, which must be the first, and must be this request's."""
        assert self.result is None, f"a second result for one request: {self.result!r}, then {result!r}"
        assert result.operation is self.operation
        assert result.conn is self._conn
        assert result.error is None or isinstance(result.error, (EOFError, gaio.GaioError, OSError)), (
            result.error
        )
        assert isinstance(result.size, int)
        assert result.size >= 0
        if self.operation not in (gaio.READ, gaio.WRITE):
            self._check_without_bytes(result)
            return
        assert result.accepted is None
        if self.buffer is None:
            self._check_swap_buffer(result)
        else:
            assert result.buffer is self.buffer
            assert not result.is_swap_buffer
            assert self.size_wanted is not None
            assert result.size <= self.size_wanted
            if self._whole and result.error is None:
                assert result.size == self.size_wanted
        if result.error is None and not (isinstance(self._conn, socket) and self._conn.type != SOCK_STREAM):
            assert result.size > 0, "success without a byte, on a stream"
        self._keep(result)

    def _keep(self, result: gaio.OpResult) -> None:
        self._conn = None  # a test may want to forget it
        self.result = result

    def _check_without_bytes(self, result: gaio.OpResult) -> None:
        assert (result.size, result.buffer, result.is_swap_buffer) == (0, None, False)
        if self.operation is not gaio.ACCEPT or result.error is not None:
            assert result.accepted is None  # of one that succeeded, only looked at when the test does
        self._keep(result)

    def _check_swap_buffer(self, result: gaio.OpResult) -> None:
        if result.size:
            assert isinstance(result.buffer, memoryview)
            self.data = bytes(result.buffer)
        assert len(self.data) == result.size

    def __repr__(self) -> str:
        return f"<{self.operation.name} of {self.size_wanted or 'any'} bytes, result {self.result!r}>"


class AccountedWatcher:
    """Submits and harvests through a gaio.Watcher, for which it keeps the books.

    The context of each request is a serial number: a result is matched by nothing but what gaio hands back.
    """

    def __init__(self, watcher: gaio.Watcher) -> None:
        self.watcher = watcher
        self._pending: dict[int, Request] = {}
        self._serial = itertools.count()

    # --- submit: any thread

    def read(self, conn: Closable, buffer: Buffer | None = None, *, timeout: float | None = None) -> Request:
        request = Request(gaio.READ, conn, buffer, whole=False)
        return self._submit(
            request, lambda serial: self.watcher.read(conn, buffer, context=serial, timeout=timeout)
        )

    def read_full(self, conn: Closable, buffer: Buffer, *, timeout: float | None = None) -> Request:
        request = Request(gaio.READ, conn, buffer, whole=True)
        return self._submit(
            request, lambda serial: self.watcher.read_full(conn, buffer, context=serial, timeout=timeout)
        )

    def write(
        self, conn: Closable, buffer: Buffer | Sequence[Buffer], *, timeout: float | None = None
    ) -> Request:
        request = Request(gaio.WRITE, conn, buffer, whole=True)
        return self._submit(
            request, lambda serial: self.watcher.write(conn, buffer, context=serial, timeout=timeout)
        )

    def accept(self, listener: Closable, *, timeout: float | None = None) -> Request:
        request = Request(gaio.ACCEPT, listener, None, whole=False)
        return self._submit(
            request, lambda serial: self.watcher.accept(listener, context=serial, timeout=timeout)
        )

    def connect(self, conn: Closable, address: Any, *, timeout: float | None = None) -> Request:
        request = Request(gaio.CONNECT, conn, None, whole=False)
        return self._submit(
            request, lambda serial: self.watcher.connect(conn, address, context=serial, timeout=timeout)
        )

    def shutdown(self, conn: Closable) -> Request:
        request = Request(gaio.SHUTDOWN, conn, None, whole=False)
        return self._submit(request, lambda serial: self.watcher.shutdown(conn, context=serial))

    def _submit(self, request: Request, call: Callable[[int], None]) -> Request:
        serial = next(self._serial)
        self._pending[serial] = request  # before the call: its result may be there before it returns
        try:
            call(serial)
        except BaseException:
            del self._pending[serial]  # refused where the caller stands, so no result may come
            raise
        return request

    def free(self, conn: Closable) -> None:
        self.watcher.free(conn)

    # --- harvest: one thread

    def wait(self, timeout: float | None) -> list[Request]:
        """One batch, booked: the requests it finished, in the order of their results."""
        return [self._book(result) for result in self.watcher.wait_io(timeout)]

    def _book(self, result: gaio.OpResult) -> Request:
        assert isinstance(result, gaio.OpResult)
        request = self._pending.pop(result.context, None)
        assert request is not None, f"a result nobody waits for: {result!r} with context {result.context!r}"
        request.record(result)
        return request

    def finish(self, *requests: Request) -> list[Request]:
        """Harvest until all of these have their result; everything that finished meanwhile, in order."""
        limit = TimeLimit()
        finished: list[Request] = []
        left = list(requests)
        while left := [request for request in left if request.result is None]:
            finished += self.wait(limit.left(f"{len(left)} results, the first of {left[0]!r}"))
        limit.left("results that came only when the wait for them had ended")
        return finished

    def finish_all(self) -> list[Request]:
        return self.finish(*self._pending.values())

    @property
    def pending(self) -> int:
        return len(self._pending)

    def pending_on(self, conn: Closable) -> list[Request]:
        """The requests of one connection that have no result yet."""
        return [request for request in self._pending.values() if request.conn is conn]

    # --- the end

    def close_and_check(self) -> list[Request]:
        """Close; what had not finished yet must come back all the same, once. Returns that."""
        self.watcher.close()
        assert self.watcher.closed
        finished: list[Request] = []
        limit = TimeLimit()
        try:
            while True:
                finished += self.wait(limit.left("WatcherClosedError from wait_io()"))
        except gaio.WatcherClosedError:
            pass
        assert not self._pending, (
            f"never came back: {list(self._pending.values())[:5]} of {len(self._pending)}"
        )
        return finished


class MakeWatcher(Protocol):
    """The fixture make_watcher."""

    def __call__(self, swap_size: int = ...) -> AccountedWatcher: ...
