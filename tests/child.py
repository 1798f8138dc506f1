"""Runs a piece of Python in an interpreter of its own, in which every warning is an error."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

from tests.environment import ROOT
from tests.waiting import LIMIT


def run(code: str, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """What became of it; its output is text. In development mode, so that leaks and wrong memory show."""
    command = [sys.executable, "-X", "dev", "-W", "error", *options, "-c", textwrap.dedent(code)]
    environment = {name: value for name, value in os.environ.items() if name != "GAIO_BACKEND"}
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def output_of(code: str, *options: str, **variables: str) -> str:
    """What it printed; it must have ended well and complained of nothing."""
    done = run(code, *options, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout.strip()
