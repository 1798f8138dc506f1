"""Runs a piece of Python in an interpreter of its own, in which every warning is an error."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

from tests.environment import ROOT
from tests.waiting import LIMIT

SIMULATED = "a simulated kernel"  # tests/simulated_kqueue.py, which a child must install for itself
WITH_SIMULATED_KQUEUE = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from tests import simulated_kqueue
simulated_kqueue.install()
"""

def program(code: str) -> str:
    """What to give to `python -c`: the code, after it has got the kernel that this process has."""
    code = textwrap.dedent(code)
    return WITH_SIMULATED_KQUEUE + code if os.environ.get("GAIO_KQUEUE_LIBRARY") == SIMULATED else code


def run(code: str, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """What became of it; its output is text. In development mode, so that leaks and wrong memory show."""
    return run_for(LIMIT, code, *options, **variables)


def run_for(seconds: float, code: str, /, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The same, of what may take so long."""
    environment = {name: value for name, value in os.environ.items() if name != "GAIO_BACKEND"}
    command = [sys.executable, "-X", "dev", "-W", "error", *options, "-c", program(code)]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def output_of(code: str, *options: str, **variables: str) -> str:
    """What it printed; it must have ended well and complained of nothing."""
    done = run(code, *options, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout.strip()
