"""Results without I/O: what post() hands over at once, and what after() brings when its time has come.

Each is its own request, as every result is, and an item of the inbox that belongs to no connection. These are steps of
a turn, see gaio/engine.py, and as safe from interruption; only `Timer` is for any thread.

A timer may be due while another thread cancels it. The first to enter its fate decides: `dict.setdefault()` is one step
of C code, and asked again it gives the same answer.
"""

from __future__ import annotations

from gaio.errors import WatcherClosedError
from gaio.result import POST, TIMER, OpResult

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

    from gaio.deadlines import Deadline
    from gaio.engine import Engine

_DUE: Final = "due"
_CANCELLED: Final = "cancelled"


class PostResult(OpResult):
    """What post() hands over."""

    __slots__ = ()

    def __init__(self, context: Any) -> None:
        _fill_in(self, context)
        self.operation = POST


class TimerResult(OpResult):
    """What after() brings: pending until its deadline, and then its own result."""

    __slots__ = ("_fate",)

    _deadline: Deadline

    def __init__(self, context: Any) -> None:
        _fill_in(self, context)
        self.operation = TIMER
        self._fate: dict[str, str] = {}

    def is_now(self, fate: str) -> bool:
        """Whether that is what becomes of it, which it is unless something else has come first."""
        return self._fate.setdefault("fate", fate) is fate


def _fill_in(result: OpResult, context: Any) -> None:
    result.conn = result.buffer = result.error = None
    result.context = context
    result.size = result._length = result._goal = result._offset = 0
    result.more = False
    result._connection = result._queue = result._next = result._memory = result._deadline = None


class Cancel:
    """An item of the inbox: this timer has been cancelled, and need not be kept."""

    __slots__ = ("timer",)

    _queue = None  # what tells it from a request

    def __init__(self, timer: TimerResult) -> None:
        self.timer = timer


class Timer:
    """What `Watcher.after()` returns. Dropping it does not cancel anything."""

    __slots__ = ("_request", "_forget")

    # Set by after() and not by an __init__(), which callers have no use for.
    _request: TimerResult
    _forget: Callable[[Cancel], object]

    def cancel(self) -> bool:
        """Whether its result will not come: True as long as it was not due, and so again when called twice.

        Any thread, also a signal handler. It does not wait.
        """
        cancelled = self._request.is_now(_CANCELLED)
        if cancelled and self._request._deadline.request is not None:  # else it is forgotten already
            self._forget(Cancel(self._request))
        return cancelled


def arm(engine: Engine, timer: TimerResult) -> None:
    engine.timers[timer] = None
    engine.deadlines.add(timer._deadline)


def disarm(engine: Engine, timer: TimerResult) -> None:
    engine.deadlines.call_off(timer._deadline)
    engine.timers.pop(timer, None)
    if timer.is_now(_CANCELLED):
        timer.context = None  # the caller may keep the Timer for long


def end_timer(engine: Engine, timer: TimerResult, error: Exception | None = None) -> None:
    """It is due, or the watcher is closed: this is its result, unless it has been cancelled."""
    if timer.is_now(_DUE):
        timer.error = error
        engine.outbox.append(timer)  # first: by that recover() knows that it has its result
    disarm(engine, timer)


def end_timers(engine: Engine) -> None:
    for timer in list(engine.timers):
        end_timer(engine, timer, WatcherClosedError("the watcher was closed"))
