"""`python3 -m tests`: every check of the project, on a machine with nothing but Python >= 3.10.

Makes a virtual environment of its own (tests/environment.py), then runs mypy for three platforms, stubtest
and pytest, that one in several processes. A check that fails becomes a failed item of the pytest run, so that
pytest's closing line tells it all.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tests import environment, interpreters, storm
from tests.environment import ROOT

PLATFORMS = ("linux", "darwin", "freebsd")
TYPED_FOLDERS = ("gaio", "examples", "tests", "benchmarks")
if sys.platform == "linux":
    PROCESSORS = len(os.sched_getaffinity(0))
else:
    PROCESSORS = os.cpu_count() or 1
# Of pytest-xdist. One process more than there are processors: each waits for a third of its time, for the clock or for
# the kernel. One that has run its share takes over tests of another's: some take a hundred times as long as most. What
# the caller says comes later, and so counts: `-n 0` for one process, and for --pdb.
PARALLEL = (f"--numprocesses={PROCESSORS + 1}", "--dist=worksteal")

# What runs on every other interpreter: the behaviour suite, that of the event loop, which stands on private parts of
# asyncio, and what gaio relies on interpreters to do at opcodes.
ON_OTHERS = (
    "tests/behaviour",
    "tests/asyncio_loop",
    "tests/interruption/test_other_threads.py",
    "tests/interruption/test_uninterruptible.py",
)


class Outcome(NamedTuple):
    status: int
    closing_line: str


def announce(title: str) -> None:
    print(f"\n--- {title}", flush=True)


def check_types(python: Path) -> list[str]:
    """Run mypy and stubtest; the names of those that failed."""
    folders = [folder for folder in TYPED_FOLDERS if any((ROOT / folder).glob("*.py"))]
    failed = []
    for platform in PLATFORMS:
        name = f"mypy --platform {platform}"
        announce(f"{name}  {' '.join(folders)}")
        # A cache each: mypy throws its cache away whenever the platform changes.
        options = ["--platform", platform, "--cache-dir", f".mypy_cache/{platform}"]
        if subprocess.run([str(python), "-m", "mypy", *options, *folders], cwd=ROOT, check=False).returncode:
            failed.append(name)
    announce("stubtest  gaio")
    as_installed = environment.as_installed()
    with as_installed as (elsewhere, variables), tempfile.NamedTemporaryFile("w", suffix=".txt") as modules:
        # What has a stub is public. All else is the implementation, with its types in the source.
        public = {path.stem for path in (ROOT / "stubs" / "gaio-stubs").glob("*.pyi")}
        modules.writelines(
            f"gaio\\.{path.stem}(\\..*)?\n"
            for path in (ROOT / "gaio").iterdir()
            if path.stem[0] != "_" and path.stem not in public
        )
        modules.flush()
        command = [str(python), "-m", "mypy.stubtest", "gaio", "--mypy-config-file", str(ROOT / "pyproject.toml")]
        command += ["--allowlist", str(ROOT / "stubs" / "stubtest_allowlist.txt")]
        command += ["--allowlist", modules.name, "--ignore-unused-allowlist"]
        if subprocess.run(command, cwd=elsewhere, env=variables, check=False).returncode:
            failed.append("stubtest")
    return failed


def run_pytest(python: Path, arguments: list[str], backend: str | None, failed_checks: list[str]) -> Outcome:
    variables = {name: value for name, value in os.environ.items() if name != "GAIO_BACKEND"}
    variables["GAIO_TEST_FAILED_CHECKS"] = ",".join(failed_checks)
    if backend is not None:
        variables["GAIO_TEST_BACKEND"] = backend
    color = "--color=yes" if sys.stdout.isatty() else "--color=no"
    announce(f"pytest  {' '.join(arguments)}")
    with subprocess.Popen(
        [python, "-m", "pytest", color, *PARALLEL, *arguments], cwd=ROOT, env=variables, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        tail = b""
        while chunk := os.read(process.stdout.fileno(), 65536):
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
            tail = (tail + chunk)[-4096:]
    lines = re.sub(rb"\x1b\[[0-9;]*m", b"", tail).decode(errors="replace").split("\n")
    return Outcome(process.returncode, next((line for line in reversed(lines) if line.strip()), ""))


def closing_line(outcomes: list[Outcome], seconds: float) -> str:
    """pytest's own closing lines, added up."""
    total: Counter[str] = Counter()
    for outcome in outcomes:
        for count, word in re.findall(r"(\d+) ([a-z]+)", outcome.closing_line.partition(" in ")[0]):
            total[word.removesuffix("s") if word in ("errors", "warnings") else word] += int(count)
    order = ["failed", "error", "passed", *sorted(set(total) - {"failed", "error", "passed"})]
    counts = ", ".join(f"{total[word]} {word}" for word in order if total[word])
    return f" {counts or 'nothing ran'} on {len(outcomes)} interpreters in {seconds:.2f}s ".center(80, "=")


def run_matrix(first: interpreters.Interpreter, arguments: list[str], backend: str | None) -> int:
    """Everything on the invoking interpreter, the behaviour suite on every other one."""
    start = time.monotonic()
    rest = interpreters.others(first)
    print(f"CPython {first.name} runs everything; the behaviour suite also runs on", end=" ")
    print(
        ", ".join(other.name for other in rest) or "no other: none was found on PATH nor in pyenv", flush=True
    )
    python = environment.prepare(first)
    outcomes = {f"{first.name}, everything": run_pytest(python, arguments, backend, check_types(python))}
    for other in rest:
        name = f"{other.name}, behaviour"
        announce(f"CPython {other.name}  {other.executable}")
        try:
            for_other = ["--storm", storm.CALM, *arguments, *ON_OTHERS]
            outcomes[name] = run_pytest(environment.prepare(other, pip_from=python), for_other, backend, [])
        except environment.CannotPrepare as error:
            print(error, flush=True)
            outcomes[name] = Outcome(1, "1 error in its environment")
    announce("summary")
    for name, outcome in outcomes.items():
        print(f"CPython {name:<24} {outcome.closing_line.strip('= ')}")
    print(closing_line(list(outcomes.values()), time.monotonic() - start), flush=True)
    return max(outcome.status for outcome in outcomes.values())


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python3 -m tests",
        description="Runs mypy, stubtest and pytest in a virtual environment of their own.",
        epilog="Every other argument goes to pytest, as in: python3 -m tests -k echo -x",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--matrix",
        action="store_true",
        help="also run the behaviour suite, and two files of the opcode suite, on every other CPython >= 3.10 "
        "on PATH and among pyenv's versions",
    )
    parser.add_argument("--backend", help="where a test runs on each backend, run it on this one alone")
    own, for_pytest = parser.parse_known_args(arguments)
    try:
        first = interpreters.invoking()
        if own.matrix:
            return run_matrix(first, for_pytest, own.backend)
        python = environment.prepare(first)
        return run_pytest(python, for_pytest, own.backend, check_types(python)).status
    except environment.CannotPrepare as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    if sys.version_info < interpreters.OLDEST:
        raise SystemExit("gaio needs Python 3.10 or newer")
    sys.exit(main(sys.argv[1:]))
