from __future__ import annotations

import sys

import pytest

from tests.backends import Name

if sys.platform != "linux":
    collect_ignore_glob = ["test_*.py"]  # a system with a kqueue of its own needs no other
else:
    from tests import simulated_kqueue

    @pytest.fixture
    def kernel(monkeypatch: pytest.MonkeyPatch) -> simulated_kqueue.Kernel:
        """The kernel that every watcher of the test gets. Its `faults` may be set at any time."""
        monkeypatch.setenv("GAIO_KQUEUE_LIBRARY", simulated_kqueue.PATH)
        return simulated_kqueue.install(replace=monkeypatch.setattr)

    @pytest.fixture
    def backend(kernel: simulated_kqueue.Kernel) -> Name:
        return "kqueue"
