"""A short form of `python3 -m tests.soak`, and that it would notice."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable

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


def rises(samples: Iterable[soak.Sample]) -> list[str]:
    record = soak.Record()
    for sample in samples:
        record.add(sample)
    return record.rises()


def flat(second: int) -> soak.Sample:
    """As many connections as there are, each with all that belongs to it, and nothing else that changes."""
    live = 20 + second * 7 % 40
    return soak.Sample(
        second, 20_000_000, live, 10 + live, threads=2, tables=30 + int(3.5 * live), objects=15_000 + 9 * live
    )


@pytest.mark.parametrize("what", list(soak.TOLERANCE))
def test_a_slope_is_noticed(what: str) -> None:
    samples = [flat(second) for second in range(120)]
    assert rises(samples) == []
    steep = soak.TOLERANCE[what] / 40 + 1
    rising = [entry._replace(**{what: int(getattr(entry, what) + steep * entry.seconds)}) for entry in samples]
    (found,) = rises(rising)
    assert found.startswith(what)


def test_a_leak_that_is_small_is_noticed() -> None:
    """One connection in a thousand leaves its descriptor behind, at six hundred a second."""
    samples = [flat(second) for second in range(120)]
    leaking = [
        entry._replace(descriptors=entry.descriptors + second * 6 // 10) for second, entry in enumerate(samples)
    ]
    (found,) = rises(leaking)
    assert found.startswith("descriptors beside those of connections rose")


def test_what_is_only_held_for_a_while_is_not_taken_for_a_leak() -> None:
    assert rises(flat(second)._replace(tables=300 + (second % 7) * 100) for second in range(28)) == []
