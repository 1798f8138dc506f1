"""One watcher with its connections, made for one interruption and checked to the last descriptor after it."""

from __future__ import annotations

import gc
import socket
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Literal

import gaio
from gaio.leader import Leader
from tests import backends, leaks
from tests.accounting import AccountedWatcher, Request
from tests.interruption.opcodes import Strike
from tests.peers import Pairs
from tests.waiting import TimeLimit

if TYPE_CHECKING:
    from typing_extensions import Self

SECONDS = 20.0  # what has not come by then never will

ResumedBy = Literal["consumer", "watcher thread"]


class InterruptedWatcher(AccountedWatcher):
    """Also keeps the books of requests whose submission was interrupted: they yield one result or none."""

    def __init__(self, watcher: gaio.Watcher, swap_size: int) -> None:
        super().__init__(watcher, swap_size)
        self._uncertain: set[int] = set()
        self.uncertain: list[Request] = []
        self.results = 0
        self.last_view: memoryview | None = None  # that of the last result with one; the result would keep its conn

    def _submit(self, request: Request, call: Callable[[int], None]) -> Request:
        serial = next(self._serial)
        self._pending[serial] = request
        try:
            call(serial)
        except KeyboardInterrupt:
            self._uncertain.add(serial)
            self.uncertain.append(request)
            raise
        except BaseException:
            del self._pending[serial]
            raise
        return request

    def wait(self, timeout: float | None) -> list[Request]:
        batch = self.watcher.wait_io(timeout)
        for result in batch:
            if result.operation is gaio.READ and type(result.buffer) is memoryview:  # with no code of gaio's own
                self.last_view = result.buffer
        return [self._book(result) for result in batch]

    def _book(self, result: gaio.OpResult) -> Request:
        self.results += 1
        Strike.held_back = True
        try:
            return super()._book(result)
        finally:
            Strike.held_back = False

    def finish(self, *requests: Request) -> list[Request]:
        limit = TimeLimit(SECONDS)
        finished: list[Request] = []
        while left := [request for request in requests if request.result is None]:
            finished += self.wait(limit.left(f"{len(left)} results, the first of {left[0]!r}"))
        return finished

    def close_and_check(self) -> list[Request]:
        self.watcher.close()
        limit = TimeLimit(SECONDS)
        finished: list[Request] = []
        try:
            while True:
                finished += self.wait(limit.left("WatcherClosedError from wait_io()"))
        except gaio.WatcherClosedError:
            pass
        for serial in self._uncertain:
            self._pending.pop(serial, None)
        assert not self._pending, f"never came back: {list(self._pending.values())}"
        return finished


class World:
    """What a scenario acts in. As a context manager it ends with the books, the descriptors and the threads."""

    def __init__(self, backend: backends.Name, swap_size: int) -> None:
        self._before = leaks.in_use()
        self.backend = backend
        self.pairs = Pairs()
        self.watcher = InterruptedWatcher(gaio.Watcher(swap_size=swap_size, backend=backend), swap_size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, et: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        if et is not None:
            self.pairs.close()
            return  # a lock may be held for ever: the rest would only hang
        self.watcher.close_and_check()
        stats = self.watcher.watcher.stats()
        assert (stats.conns, stats.pending) == (0, 0), stats
        assert stats.completions == self.watcher.results, stats
        assert stats.batches <= stats.completions, stats
        assert stats.gc_found == stats.gc_closed, stats
        del self.watcher
        self.pairs.close()
        if leaks.in_use().since(self._before):
            gc.collect()
            left = leaks.in_use().since(self._before)
            assert not left, "\n".join(left)

    @property
    def leader(self) -> Leader:
        return self.watcher.watcher._leader

    def hand_to_thread(self) -> None:
        """Have the watcher thread take the lead, work off what there is, and wait in the kernel."""
        leader = self.leader
        limit = TimeLimit(SECONDS)
        while leader.lead.acquire(blocking=False):
            leader.lead.release()
            leader.end_tick()
            time.sleep(0)
            limit.left("the watcher thread to take the lead")
        while not leader.needs_wakeup:
            time.sleep(0)
            limit.left("the watcher thread to wait in the kernel")

    def receive_until_closed(self, peer: socket.socket) -> bytes:
        """What the peer gets before the watcher closes the connection, which waits for all that the kernel holds.

        That may be a request whose submission was interrupted, and which nobody can wait for.
        """
        peer.setblocking(False)
        received = bytearray()
        limit = TimeLimit(SECONDS)
        while True:
            self.watcher.wait(0)
            try:
                part = peer.recv(1 << 20)
            except BlockingIOError:
                limit.left("the connection to be closed")
                continue
            if not part:
                return bytes(received)
            received += part

    def prove_it_goes_on(self) -> None:
        """It takes another connection and serves it."""
        conn, peer = self.pairs.unix()
        question, answer = self.watcher.read(conn), self.watcher.write(conn, b"still there?")
        peer.send(b"yes")
        self.watcher.finish(question, answer)
        assert question.data == b"yes"
        assert peer.recv(100) == b"still there?"
