"""A short form of `python3 -m tests.soak`, and that it would notice."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests import backends, soak
from tests.environment import ROOT

SECONDS = float(os.environ.get("GAIO_TEST_SOAK", "120"))


@pytest.mark.slow
@pytest.mark.scenario(25, on="every")
def test_nothing_grows() -> None:
    chosen = backends.under_test()
    command = [sys.executable, "-m", "tests.soak", "--minutes", str(SECONDS / 60)]
    for name in chosen:
        command += ["--backend", name]
    # Beside other tests it takes what they leave.
    command = ["nice", "-n", "10", *command]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS + 40, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    for name in chosen:
        assert f"nothing rose in {SECONDS / 60:g} minutes on {name}\n" in done.stdout


def flat(seconds: float) -> soak.Sample:
    return soak.Sample(seconds, rss=20_000_000, descriptors=70, threads=2, tables=300, objects=15_000)


@pytest.mark.parametrize("what", list(soak.TOLERANCE))
def test_a_slope_is_noticed(what: str) -> None:
    samples = [flat(second) for second in range(20)]
    assert soak.rises(samples) == []
    steep = soak.TOLERANCE[what] / 5 + 1
    rising = [entry._replace(**{what: int(getattr(entry, what) + steep * entry.seconds)}) for entry in samples]
    (found,) = soak.rises(rising)
    assert found.startswith(what)


def test_what_is_only_held_for_a_while_is_not_taken_for_a_leak() -> None:
    samples = [flat(second)._replace(tables=300 + (second % 7) * 100) for second in range(28)]
    assert soak.rises(samples) == []
