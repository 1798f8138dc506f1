"""A watcher nested in another event loop, by fileno()."""

from __future__ import annotations

import selectors

from tests.accounting import AccountedWatcher, Request
from tests.waiting import TimeLimit


class Nest:
    """Another event loop, of the plainest kind: wait for the descriptor, and only then look for results."""

    def __init__(self, watcher: AccountedWatcher) -> None:
        self.watcher = watcher
        self.fd = watcher.watcher.fileno()

    def look(self, timeout: float) -> list[Request] | None:
        """The results, or None when the descriptor does not turn readable."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.fd, selectors.EVENT_READ)
            if not selector.select(timeout):
                return None
        return self.watcher.wait(0)

    def finish(self, *requests: Request) -> list[Request]:
        limit = TimeLimit()
        finished: list[Request] = []
        while any(request.result is None for request in requests):
            results = self.look(limit.left("results"))
            assert results is not None, f"never readable, though requests are pending: {requests}"
            finished += results
        return finished

    def settle(self) -> None:
        """Look until there is nothing left to look at, which must be soon."""
        for _ in range(100):
            if self.look(0) is None:
                return
        raise AssertionError("readable again and again, with nothing to do")
