"""A libc that can be told to fail."""

from __future__ import annotations

import pytest

from tests.faulty_libc import FaultyLibc


@pytest.fixture
def libc(monkeypatch: pytest.MonkeyPatch) -> FaultyLibc:
    """Ask for it before a watcher is made: backends bind their functions when they are opened."""
    return FaultyLibc(monkeypatch)
