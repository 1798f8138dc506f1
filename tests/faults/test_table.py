"""The table of fault scenarios tells the truth: each has its tests, and the file is what they say."""

from __future__ import annotations

import subprocess
import sys

from tests.environment import ROOT
from tests.faults import table


def test_the_table_is_what_the_tests_say() -> None:
    code = "from tests.faults import table; print(table.table(table.collect()), end='')"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert table.README.read_text(encoding="utf-8") == done.stdout, "run: python3 -m tests.faults.table"


def test_every_scenario_has_a_test() -> None:
    lines = table.README.read_text(encoding="utf-8").splitlines()
    shown = {int(line.split("|")[1]) for line in lines if line.startswith("|") and line.split("|")[1].strip().isdigit()}
    assert shown == set(range(1, 27)) == set(table.SCENARIOS)
