"""The behaviour suite runs in bad weather, and the weather is as bad as it is said to be."""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import pytest

from tests import storm
from tests.environment import ROOT
from tests.waiting import wait_until


@pytest.mark.scenario(1, 15, 24, on="every")
def test_the_whole_behaviour_suite_runs_in_every_storm() -> None:
    calm = count_of_each_file("--storm", storm.CALM)
    assert calm["tests/behaviour/test_order.py"] > 0
    assert count_of_each_file() == {name: number * (1 + len(storm.KINDS)) for name, number in calm.items()}


def count_of_each_file(*options: str) -> dict[str, int]:
    """What pytest finds in the behaviour suite: with so little output, a line for each file."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-p", "no:cacheprovider", "tests/behaviour"]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: int(number) for name, number in re.findall(r"^(\S+\.py): (\d+)$", done.stdout, re.MULTILINE)}


@pytest.mark.parametrize("weather", [storm.CALM, *storm.KINDS], indirect=True)
def test_a_test_is_in_the_storm_that_it_is_said_to_be_in(weather: str) -> None:
    assert (signal.getitimer(signal.ITIMER_REAL) != (0, 0)) is (weather == "signals")
    assert (sys.getswitchinterval() < 1e-5) is (weather == "switches")


def test_the_signals_do_come() -> None:
    before = storm.struck
    with storm.raging("signals"):
        wait_until(lambda: storm.struck > before + 10, "signals")


def test_the_threads_do_switch() -> None:
    before = sys.getswitchinterval()
    with storm.raging("switches"):
        assert sys.getswitchinterval() < 1e-5 < before
    assert sys.getswitchinterval() == before
