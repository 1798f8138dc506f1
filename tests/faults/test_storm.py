"""A part of the behaviour suite in bad weather; `python3 -m tests --storm KIND` runs all of it so."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests import storm
from tests.environment import ROOT
from tests.waiting import wait_until

PART = ("test_order.py", "test_threads.py", "test_free.py", "test_half_close.py", "test_reset.py")


@pytest.mark.slow
@pytest.mark.scenario(1, 15, 24, on="every")
@pytest.mark.parametrize("kind", storm.KINDS)
def test_the_behaviour_suite_in_a_storm(kind: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", "--storm", kind]
    command += [f"tests/behaviour/{name}" for name in PART]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    assert " passed" in done.stdout


def test_the_signals_do_come() -> None:
    before = storm.struck
    with storm.raging("signals"):
        wait_until(lambda: storm.struck > before + 10, "signals")


def test_the_threads_do_switch() -> None:
    before = sys.getswitchinterval()
    with storm.raging("switches"):
        assert sys.getswitchinterval() < 1e-5 < before
    assert sys.getswitchinterval() == before
