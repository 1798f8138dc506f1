"""What the tests of more than one program need."""

from __future__ import annotations

import pytest

from tests.asyncio_loop import loops
from tests.examples.conftest import certificate as certificate


@pytest.fixture(params=loops.names(), scope="session")
def loop(request: pytest.FixtureRequest) -> str:
    """Each event loop in turn, by its name."""
    name: str = request.param
    return name
