"""The public API of gaio.asyncio. stubtest holds the code to it."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from gaio import BackendName, Watcher

_T = TypeVar("_T")

__all__ = ("EventLoop", "new_event_loop", "run")

class EventLoop(asyncio.SelectorEventLoop):
    def __init__(self, *, backend: BackendName | None = None) -> None: ...
    @property
    def watcher(self) -> Watcher | None: ...

def new_event_loop() -> EventLoop: ...
def run(main: Coroutine[Any, Any, _T], *, debug: bool | None = None) -> _T: ...
