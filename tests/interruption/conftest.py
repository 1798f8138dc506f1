"""Every test here is told of the opcodes that run below gaio/."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.interruption import opcodes


@pytest.fixture(autouse=True)
def _told_of_opcodes() -> Iterator[None]:
    with opcodes.told_of_opcodes():
        yield
