"""Every test here is told of the opcodes that run below gaio/."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from tests.interruption import opcodes


@pytest.fixture(autouse=True)
def _on_one_processor(worker_id: str) -> Iterator[None]:
    """The tests here make some hundred thousand watchers, each with a thread that begins and ends.

    Waking that thread on another processor would take most of the time. What the two do at the same time matters not
    to these tests: they say themselves in what order things happen.
    """
    if sys.platform != "linux":
        yield
        return
    allowed = os.sched_getaffinity(0)
    number = int(worker_id.removeprefix("gw")) if worker_id != "master" else 0
    os.sched_setaffinity(0, {sorted(allowed)[number % len(allowed)]})
    yield
    os.sched_setaffinity(0, allowed)


@pytest.fixture(autouse=True)
def _told_of_opcodes() -> Iterator[None]:
    with opcodes.told_of_opcodes():
        yield
