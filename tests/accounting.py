"""A watcher that keeps books: exactly one result for every accepted request, and each the right one."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable, Sequence
from socket import SOCK_DGRAM, SOCK_RAW, SOCK_STREAM, socket
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


def is_cut_off(error: Exception | None) -> bool:
    """Whether that is the error of a message that was larger than the buffer."""
    return isinstance(error, OSError) and error.errno == errno.EMSGSIZE


class Request:
    """One accepted request, and its result once that was delivered."""

    __slots__ = ("_conn", "_whole", "buffer", "data", "operation", "result", "size_wanted")

    def __init__(self, operation: gaio.Operation, conn: Closable | None, buffer: Any, *, whole: bool) -> None:
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
    def address(self) -> Any:
        """Who sent the datagram that was read."""
        assert self.result is not None, f"{self!r} has no result yet"
        return self.result.address

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
        assert result.more is False, f"{result!r} says that another one will follow"
        assert result.error is None or isinstance(result.error, (EOFError, gaio.GaioError, OSError)), (
            result.error
        )
        assert isinstance(result.size, int)
        assert result.size >= 0
        if self.operation not in (gaio.READ, gaio.WRITE):
            self._check_without_bytes(result)
            return
        assert result.accepted is None
        assert result.address is None or (self.operation is gaio.READ and self._is_of_datagrams())
        if self.buffer is None:
            self._check_swap_buffer(result)
        else:
            assert result.buffer is self.buffer
            assert not result.is_swap_buffer
            assert self.size_wanted is not None
            assert result.size <= self.size_wanted
            if self._whole and result.error is None:
                assert result.size == self.size_wanted
        if result.error is None:
            assert result.size > 0 or self._may_be_empty(), "success without a byte, on a stream"
        self._keep(result)

    def _may_be_empty(self) -> bool:
        return isinstance(self._conn, socket) and self._conn.type != SOCK_STREAM

    def _is_of_datagrams(self) -> bool:
        return isinstance(self._conn, socket) and self._conn.type in (SOCK_DGRAM, SOCK_RAW)

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


class Repeating(Request):
    """One accepted request that repeats: any number of arrivals, and then its result, which is the last."""

    __slots__ = ("_swap_size", "addresses", "arrivals", "cut_off", "messages", "received")

    def __init__(self, operation: gaio.Operation, conn: Closable, swap_size: int) -> None:
        super().__init__(operation, conn, None, whole=False)
        self.messages: list[bytes] = []  # READ: each arrival's bytes, copied while they were valid
        self.addresses: list[Any] = []  # who sent each
        self.cut_off: list[bytes] = []  # those of the messages that were larger than the swap size
        self.received = 0  # bytes of those
        self.arrivals: list[gaio.OpResult] = []  # ACCEPT: those results, which own the connections
        self._swap_size = swap_size

    @property
    def stream(self) -> bytes:
        """All the bytes so far."""
        return b"".join(self.messages)

    def has(self, size: int) -> bool:
        """Whether it has brought so many bytes."""
        return self.received >= size

    @property
    def connections(self) -> list[socket]:
        """All that have been accepted so far."""
        return [result.accepted for result in self.arrivals if result.error is None]

    @property
    def errors(self) -> list[Exception]:
        """Those that did not end it."""
        return [result.error for result in self.arrivals if result.error is not None]

    def record(self, result: gaio.OpResult) -> None:
        if not result.more:
            assert (result.size, result.buffer, result.is_swap_buffer) == (0, None, False), "the last brings nothing"
            assert result.accepted is None
            super().record(result)
            return
        assert self.result is None, f"{result!r} comes after the last one, {self.result!r}"
        assert result.more is True
        assert result.operation is self.operation
        assert result.conn is self.conn
        if self.operation is gaio.ACCEPT:
            assert (result.size, result.buffer, result.is_swap_buffer) == (0, None, False)
            assert result.error is None or (isinstance(result.error, OSError) and result.accepted is None)
            self.arrivals.append(result)
            return
        assert result.error is None or is_cut_off(result.error), f"an arrival with an error: {result!r}"
        assert result.accepted is None
        assert isinstance(result.buffer, memoryview)
        assert result.buffer.readonly
        assert result.is_swap_buffer or super()._may_be_empty(), "of a message the view is the caller's for good"
        assert result.buffer.nbytes == result.size <= self._swap_size
        assert result.size > 0 or super()._may_be_empty(), "an arrival without a byte, on a stream"
        self.messages.append(bytes(result.buffer))
        assert result.address is None or self._is_of_datagrams()
        self.addresses.append(result.address)
        if result.error is not None:
            assert result.size == self._swap_size
            assert super()._may_be_empty()
            self.cut_off.append(self.messages[-1])
        self.received += result.size

    def _may_be_empty(self) -> bool:
        return True  # the last one, which has been stopped


class AccountedWatcher:
    """Submits and harvests through a gaio.Watcher, for which it keeps the books.

    The context of each request is a serial number: a result is matched by nothing but what gaio hands back.
    """

    def __init__(self, watcher: gaio.Watcher, swap_size: int = 65536) -> None:
        self.watcher = watcher
        self._swap_size = swap_size
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
        self,
        conn: Closable,
        buffer: Buffer | Sequence[Buffer],
        *,
        timeout: float | None = None,
        address: Any = None,
    ) -> Request:
        request = Request(gaio.WRITE, conn, buffer, whole=True)
        return self._submit(
            request,
            lambda serial: self.watcher.write(conn, buffer, context=serial, timeout=timeout, address=address),
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

    def read_start(self, conn: Closable, *, timeout: float | None = None) -> Repeating:
        request = Repeating(gaio.READ, conn, self._swap_size)
        self._submit(request, lambda serial: self.watcher.read_start(conn, context=serial, timeout=timeout))
        return request

    def accept_start(self, listener: Closable) -> Repeating:
        request = Repeating(gaio.ACCEPT, listener, self._swap_size)
        self._submit(request, lambda serial: self.watcher.accept_start(listener, context=serial))
        return request

    def shutdown(self, conn: Closable) -> Request:
        request = Request(gaio.SHUTDOWN, conn, None, whole=False)
        return self._submit(request, lambda serial: self.watcher.shutdown(conn, context=serial))

    def finish_conn(self, conn: Closable, *, timeout: float | None = None) -> Request:
        request = Request(gaio.FINISH, conn, None, whole=False)
        return self._submit(request, lambda serial: self.watcher.finish(conn, context=serial, timeout=timeout))

    def post(self) -> Request:
        return self._submit(Request(gaio.POST, None, None, whole=False), self.watcher.post)

    def after(self, seconds: float) -> tuple[Request, gaio.Timer]:
        timers: list[gaio.Timer] = []
        request = self._submit(
            Request(gaio.TIMER, None, None, whole=False),
            lambda serial: timers.append(self.watcher.after(seconds, context=serial)),
        )
        return request, timers[0]

    def cancelled(self, request: Request) -> None:
        """Of a timer: no result may come any more."""
        self._pending = {serial: other for serial, other in self._pending.items() if other is not request}

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

    def read_stop(self, conn: Closable) -> None:
        self.watcher.read_stop(conn)

    def accept_stop(self, listener: Closable) -> None:
        self.watcher.accept_stop(listener)

    # --- harvest: one thread

    def wait(self, timeout: float | None) -> list[Request]:
        """One batch, booked: the requests of its results, in their order; one that repeats may stand there often."""
        return [self._book(result) for result in self.watcher.wait_io(timeout)]

    def _book(self, result: gaio.OpResult) -> Request:
        assert isinstance(result, gaio.OpResult)
        request = self._pending.get(result.context)
        assert request is not None, f"a result nobody waits for: {result!r} with context {result.context!r}"
        request.record(result)
        if not result.more:
            del self._pending[result.context]
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

    def harvest_until(self, condition: Callable[[], object], waiting_for: str) -> int:
        """Harvest until the condition holds; how many batches with results it took."""
        limit = TimeLimit()
        batches = 0
        while not condition():
            batches += bool(self.wait(limit.left(waiting_for)))
        return batches

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
