"""The behaviour suite runs in every weather: what a user can rely on holds among signals and between threads, too."""

from __future__ import annotations

import pytest

from tests import storm


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.config.getoption("--storm") is None:
        metafunc.parametrize("weather", (storm.CALM, *storm.KINDS), indirect=True)
