"""What callers have in hand: kept from being freed by the wrong thread, or taken back for `python -X dev`.

Where the memory of the views comes from, and when it is used again: gaio/swap.py.
"""

from __future__ import annotations

from time import monotonic

from gaio.engine import Engine
from gaio.leader import Leader
from gaio.memory import PinnedApart, Vector

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from gaio import platform
    from gaio.result import OpResult


class FreeThreadedEngine(Engine):
    """Keeps what is pinned for each request until that is delivered."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.pins: dict[OpResult, PinnedApart | Vector] = {}

    def admit(self, items: list[Any]) -> None:
        for item in items:
            if item._queue is not None and isinstance(item._memory, (PinnedApart, Vector)):
                self.pins[item] = item._memory
        super().admit(items)


class FreeThreadedLeader(Leader):
    """For builds without an interpreter lock. What a thread has made is freed there by that thread alone, which may be
    at any time later, and counts of exports are not atomic (CPython issue 127716). So nothing that a caller has in hand
    is left to be freed.
    """

    engine: FreeThreadedEngine

    def __init__(self, open_backend: Callable[[Engine], platform.Backend], follows: bool = True) -> None:
        super().__init__(open_backend, follows)
        # The swap views of the batch in the caller's hands. Freed by the thread that did the reading, while another one
        # slices a part of it that it has kept, a view would spoil the count of that part.
        self.lent: list[memoryview] = []

    def make_engine(self) -> FreeThreadedEngine:
        return FreeThreadedEngine(self.inbox, monotonic, self.delegation)

    def collect(self, timeout: float | None, thread: int) -> list[OpResult]:
        if self.delivery is None:  # else the batch never reached the caller, and goes again
            self.take_back()
        batch = super().collect(timeout, thread)
        self.lent += [result.buffer for result in batch if result.is_swap_buffer]
        pins = self.engine.pins
        if pins:
            for result in batch:
                pin = pins.get(result)
                if pin is not None:
                    pin.release()
                    del pins[result]
        return batch

    def take_back(self) -> None:
        self.lent.clear()


class DevelopmentLeader(FreeThreadedLeader):
    """For `python -X dev`: releases the swap views of a batch when their memory is lent anew, so that use raises."""

    def take_back(self) -> None:
        for view in self.lent:
            try:
                view.release()
            except BufferError:
                pass  # the caller has exported it in turn, say to a ctypes object: that is still in use
        super().take_back()
