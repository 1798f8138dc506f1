"""mypy, with gaio installed as a user has it, accepts the right use and refuses the wrong one."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import gaio
from tests.environment import ROOT, as_installed

SAMPLES = Path(__file__).parent / "samples"


def mypy(sample: str) -> list[tuple[int, str]]:
    """Line and text of each complaint."""
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--config-file=",
        "--no-error-summary",
        "--show-error-codes",
    ]
    command += ["--cache-dir", str(ROOT / ".mypy_cache" / "samples"), sample]
    with as_installed() as (elsewhere, variables):
        shutil.copy(SAMPLES / sample, elsewhere)
        done = subprocess.run(
            command, cwd=elsewhere, env=variables, capture_output=True, text=True, check=False
        )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert done.stderr == ""
    return [
        (int(found[1]), found[2])
        for found in re.finditer(rf"^{sample}:(\d+): error: (.*)$", done.stdout, re.MULTILINE)
    ]


def test_right_use_is_accepted() -> None:
    assert mypy("accepted_usage.py") == []


def test_wrong_use_is_refused_line_by_line() -> None:
    lines = (SAMPLES / "refused_usage.py").read_text(encoding="utf-8").splitlines()
    marked = [number for number, line in enumerate(lines, 1) if line.endswith("# refused")]
    complaints = mypy("refused_usage.py")
    assert len(marked) > 40
    assert sorted({line for line, _ in complaints}) == marked, complaints


def test_every_public_name_is_used() -> None:
    sample = (SAMPLES / "accepted_usage.py").read_text(encoding="utf-8")
    assert [name for name in gaio.__all__ if not re.search(rf"gaio\.{name}\b", sample)] == []
