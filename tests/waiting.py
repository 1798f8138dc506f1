"""Waits that end: on an event where there is one, and after LIMIT seconds in any case."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

LIMIT = 30.0

T = TypeVar("T")


class TimeLimit:
    """One limit over several waits."""

    def __init__(self, seconds: float = LIMIT) -> None:
        self._end = time.monotonic() + seconds

    def left(self, waiting_for: str) -> float:
        seconds = self._end - time.monotonic()
        if seconds <= 0:
            raise AssertionError(f"waited in vain for {waiting_for}")
        return seconds


def wait_until(condition: Callable[[], object], waiting_for: str, seconds: float = LIMIT) -> None:
    """For what can only be seen by looking again, such as a counter or a descriptor that goes away."""
    limit = TimeLimit(seconds)
    while not condition():
        time.sleep(min(0.002, limit.left(waiting_for)))


class Background(Generic[T]):
    """A function that runs in a thread of its own; what it raises comes out of result()."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._future: Future[T] = Future()
        self._function = function
        self._thread = threading.Thread(target=self._run, name=f"background {function!r}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._future.set_result(self._function())
        except BaseException as error:  # noqa: BLE001 - handed over to the thread that asks for the result
            self._future.set_exception(error)

    def done(self) -> bool:
        return self._future.done()

    def result(self) -> T:
        result = self._future.result(LIMIT)
        self._thread.join(LIMIT)
        return result
