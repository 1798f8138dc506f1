"""The event loops under test: the standard library's, which says what is right, and gaio's on each backend."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import TypeVar

import gaio.asyncio
from tests import backends

STDLIB = "stdlib"
T = TypeVar("T")


def names() -> list[str]:
    """`stdlib`, and `gaio-BACKEND` for each backend that needs no simulation here."""
    return [STDLIB, *(f"gaio-{name}" for name in backends.on_a_real_kernel())]


def variables(name: str) -> dict[str, str]:
    """The environment variables under which a program gets this loop, if it asks gaio for one."""
    return {} if name == STDLIB else {"GAIO_BACKEND": name.removeprefix("gaio-")}


def running() -> str:
    """The loop that runs this, by its name; to be asked when there has been a connection."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, gaio.asyncio.EventLoop):
        return STDLIB
    return "gaio-" + (loop.watcher.backend if loop.watcher else "without a watcher")


def factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if name == STDLIB:
        return asyncio.SelectorEventLoop
    backend: backends.Name = name.removeprefix("gaio-")  # type: ignore[assignment]  # names() made it of one
    return lambda: gaio.asyncio.EventLoop(backend=backend)


def run(name: str, main: Coroutine[object, object, T]) -> T:
    """asyncio.run() on this loop, which must have served a connection.

    What goes wrong in a callback, which asyncio would only log, is raised.
    """
    complaints: list[str] = []

    def complain(_: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        complaints.append(f"{context['message']}: {context.get('exception')!r}")

    async def accompanied() -> T:
        asyncio.get_running_loop().set_exception_handler(complain)
        result = await main
        assert running() == name
        return result

    if sys.version_info >= (3, 11):
        with asyncio.Runner(loop_factory=factory(name)) as runner:
            result = runner.run(accompanied())
    else:
        result = _run(factory(name)(), accompanied())
    assert complaints == []
    return result


def _run(loop: asyncio.AbstractEventLoop, main: Coroutine[object, object, T]) -> T:
    """What asyncio.Runner does, which came with Python 3.11."""
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(main)
    finally:
        try:
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            asyncio.set_event_loop(None)
            loop.close()
