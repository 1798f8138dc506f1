"""An echo server on an accounted watcher, in the three ways a read can get its memory."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Literal

from tests.accounting import AccountedWatcher, Request
from tests.peers import Closable
from tests.waiting import TimeLimit

Buffers = Literal["caller", "swap", "mixed"]
WAYS: tuple[Buffers, ...] = ("caller", "swap", "mixed")


class EchoServer:
    """Reads from each connection and writes back what came, one request under way for each, until its EOF."""

    def __init__(self, watcher: AccountedWatcher, buffers: Buffers, size: int = 65536) -> None:
        self.ended = 0
        self.echoed = 0
        self._watcher = watcher
        self._size = size
        self._share_of_swap = {"caller": 0.0, "swap": 1.0, "mixed": 0.5}[buffers]

    def start(self, conn: Closable) -> None:
        """Serve this connection; any thread."""
        if random.random() < self._share_of_swap:
            self._watcher.read(conn)
        else:
            self._watcher.read(conn, bytearray(self._size))

    def serve(self, connections: int, pause: Callable[[], object] = lambda: None) -> None:
        """Harvest until so many connections have ended, with a pause between the batches."""
        limit = TimeLimit()
        while self.ended < connections:
            self.serve_batch(limit.left(f"{connections - self.ended} connections to end"))
            pause()

    def serve_batch(self, timeout: float | None) -> list[Request]:
        """Harvest one batch and go on with each connection in it."""
        batch = self._watcher.wait(timeout)
        for request in batch:
            self._go_on(request)
        return batch

    def _go_on(self, request: Request) -> None:
        result = request.result
        assert result is not None
        if result.operation is result.operation.WRITE:
            assert result.error is None, result.error
            self.echoed += result.size
            self.start(result.conn)
        elif result.error is None:
            # A view of the swap arena goes to write() as it is: the write must outlive the batch.
            self._watcher.write(result.conn, memoryview(result.buffer)[: result.size])
        else:
            assert isinstance(result.error, EOFError), result.error
            self.ended += 1
            self._watcher.free(result.conn)
