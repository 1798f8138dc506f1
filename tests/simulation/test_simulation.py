"""The simulation over its first seeds, and that a seed is the same run everywhere."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests import interpreters
from tests.environment import ROOT
from tests.simulation.run import run

SEEDS = 20_000
ITEMS = 10  # so that several processes share them


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, SEEDS, SEEDS // ITEMS))
def test_the_engine_keeps_every_promise(first: int) -> None:
    for seed in range(first, first + SEEDS // ITEMS):
        run(seed)


@pytest.mark.slow
def test_a_seed_is_the_same_run_on_every_python() -> None:
    executables = {sys.executable, *(found.executable for found in interpreters.others(interpreters.invoking()))}
    said = set()
    for number, executable in enumerate(sorted(executables)):
        command = [executable, "-m", "tests.simulation", "--seeds", "300", "--digest"]
        variables = {"PYTHONHASHSEED": str(number + 1)}
        outcome = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=True)
        said.add(outcome.stdout.rpartition("digest")[2])
    assert len(said) == 1


def test_every_step_of_a_seed_can_be_told() -> None:
    told: list[str] = []
    run(0, told.append)
    assert any("result" in line for line in told)
    again: list[str] = []
    run(0, again.append)
    assert told == again
