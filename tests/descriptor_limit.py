"""How many descriptors a test may open."""

from __future__ import annotations

import resource

import pytest


def need_descriptors(count: int) -> None:
    """Skip, visibly, where the limit is too low; conftest.py has raised it as far as it goes."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count + 100:
        pytest.skip(f"needs {count} descriptors, the limit is {soft} (ulimit -Hn)")
