"""A short form of `python3 -m tests.soak`, and that it would notice."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable

import pytest

from tests import backends, soak
from tests.environment import ROOT
from tests.waiting import LIMIT

SECONDS = float(os.environ.get("GAIO_TEST_SOAK", "120"))


@pytest.mark.slow
@pytest.mark.minutes
@pytest.mark.scenario(25, on="every")
def test_nothing_grows() -> None:
    chosen = backends.under_test()
    command = [sys.executable, "-m", "tests.soak", "--minutes", str(SECONDS / 60)]
    for name in chosen:
        command += ["--backend", name]
    # Beside other tests it takes what they leave.
    command = ["nice", "-n", "10", *command]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS + 3 * LIMIT, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    for name in chosen:
        assert f"nothing rose in {SECONDS / 60:g} minutes on {name}\n" in done.stdout


def rises(samples: Iterable[soak.Sample]) -> list[str]:
    record = soak.Record()
    for sample in samples:
        record.add(sample, {})
    return record.rises()


def flat(second: int) -> soak.Sample:
    """As many connections as there are, each with all that belongs to it, and nothing else that changes."""
    live = 20 + second * 7 % 40
    return soak.Sample(
        second, 20_000_000, live, 10 + live, threads=2, tables=30 + int(3.5 * live), objects=15_000 + 9 * live
    )


def stops(done: Iterable[dict[str, int]]) -> list[str]:
    record = soak.Record()
    for second, counts in enumerate(done):
        record.add(flat(second), counts)
    return record.stops()


def test_what_goes_on_is_enough() -> None:
    """At an eighth of the pace too, as on a machine that has other work to do."""
    steady = [dict.fromkeys(soak.KINDS, 800 * second) for second in range(60)]
    slower = [dict.fromkeys(soak.KINDS, 800 * 60 + 100 * second) for second in range(60)]
    assert stops(steady) == []
    assert stops(steady + slower) == []


@pytest.mark.parametrize("kind", soak.KINDS)
@pytest.mark.parametrize("pace", [0, 10], ids=["nothing", "hardly anything"])
def test_clients_that_die_are_noticed(kind: str, pace: int) -> None:
    """All but one of sixty at most, after half of the time."""
    done = [
        {**dict.fromkeys(soak.KINDS, 600 * second), kind: 600 * min(second, 60) + pace * max(0, second - 60)}
        for second in range(120)
    ]
    (found,) = stops(done)
    assert found.startswith(f"{kind}: ")


def test_what_never_happens_is_noticed() -> None:
    (found,) = stops({**dict.fromkeys(soak.KINDS, 600 * second), "forgotten": 0} for second in range(120))
    assert found.startswith("forgotten: 0 in the second quarter, 0 in the last")


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
