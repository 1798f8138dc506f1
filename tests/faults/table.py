"""`python3 -m tests.faults.table`: writes README.md, the table of fault scenarios and the tests that meet them.

It is made from the tests: each says by a mark which scenarios it meets, pytest collects them, and a test sees to it
that the table is what they say.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from pathlib import Path

import pytest

from tests import backends
from tests.environment import ROOT

README = Path(__file__).with_name("README.md")
EVERY = "every"
FOLDERS = ("behaviour", "core", "faults", "interruption", "kqueue", "ring")

SCENARIOS = {
    1: "A signal interrupts a call (EINTR)",
    2: "KeyboardInterrupt strikes the consumer",
    3: "No descriptor is left (EMFILE, ENFILE), or the kernel refuses",
    4: "The peer resets, or goes away in the middle of a write",
    5: "One direction ends while the other goes on",
    6: "A peer reads slowly or not at all",
    7: "Partial writes, and the order of queued ones",
    8: "The number of a freed descriptor is used again",
    9: "The caller closes or detaches the object meanwhile",
    10: "Freed twice, while pending, or never delegated",
    11: "Closed while another thread waits or submits, or twice",
    12: "The process forks",
    13: "A connection or a watcher is garbage with requests pending",
    14: "A buffer's owner would resize or drop it",
    15: "Many threads submit and free",
    16: "A deadline races a completion",
    17: "The kernel takes a submission late, or gives it back",
    18: "Buffers or memory have run out (ENOBUFS)",
    19: "The completion queue overflows",
    20: "Calls move less than they were asked to",
    21: "An edge comes once",
    22: "The interpreter ends with requests pending",
    23: "Subinterpreters",
    24: "No global interpreter lock to rely on",
    25: "Years of churn",
    26: "The non-blocking flag is shared with other holders",
}

HEAD = """# Fault scenarios

What a network library meets in years of service, and the tests that show that gaio holds: nothing lost, nothing
doubled, nothing leaked, nobody stuck. `every` stands for each backend that works on the machine, kqueue on Linux
included by a simulated kernel; the others say which one they are about. *core* means that no backend is involved.

This file is written by `python3 -m tests.faults.table` from the marks of the tests, and a test fails when it is out of
date.
"""


class Collected:
    """What pytest collects: scenario -> test -> the backend it is for."""

    def __init__(self) -> None:
        self.tests: dict[int, dict[str, str]] = {}
        self.ran: dict[str, tuple[str, set[str]]] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            for mark in item.iter_markers("scenario"):
                for number in mark.args:
                    name = item.nodeid.partition("[")[0].removeprefix("tests/")
                    # The mark of a test itself comes before that of its module.
                    self.tests.setdefault(number, {}).setdefault(name, self.backend_of(item, mark))
                    self.check(item, self.tests[number][name])

    def backend_of(self, item: pytest.Item, mark: pytest.Mark) -> str:
        if "on" in mark.kwargs:
            return str(mark.kwargs["on"])
        fixtures: list[str] = getattr(item, "fixturenames", [])
        return EVERY if "backend" in fixtures else "core"

    def check(self, item: pytest.Item, told: str) -> None:
        """What the mark says against the backends that the test does run on."""
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        name = parameters.get("backend")
        if isinstance(name, str):
            self.ran.setdefault(item.nodeid.partition("[")[0], (told, set()))[1].add(name)

    def lies(self) -> list[str]:
        found = []
        for test, (told, ran) in self.ran.items():
            here = set(backends.under_test())
            expected = here if told == EVERY else here.intersection(told.split(", "))
            if ran != expected:
                found.append(f"{test} is said to run on {told}, and runs on {', '.join(sorted(ran))}")
        return found


def collect() -> dict[int, dict[str, str]]:
    collected = Collected()
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        arguments = ["--collect-only", "-q", "-p", "no:cacheprovider"]
        arguments += [str(ROOT / "tests" / folder) for folder in FOLDERS if (ROOT / "tests" / folder).exists()]
        status = pytest.main(arguments, [collected])
    if status:
        raise RuntimeError(f"pytest could not collect the tests:\n{output.getvalue()[-2000:]}")
    if lies := collected.lies():
        raise RuntimeError("\n".join(lies))
    return collected.tests


def table(tests: dict[int, dict[str, str]]) -> str:
    lines = [HEAD, "| | scenario | backend | test |", "| ---: | --- | --- | --- |"]
    for number, what in SCENARIOS.items():
        title = f"{number} | {what}"
        for name, backend in sorted(tests.get(number, {}).items()):
            path, _, test = name.partition("::")
            lines.append(f"| {title} | {backend} | [{test.replace('::', ', ')}](../{path}) |")
            title = " | "
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    argparse.ArgumentParser(prog="tests.faults.table", description="Writes tests/faults/README.md.").parse_args()
    README.write_text(table(collect()), encoding="utf-8")
    sys.stdout.write(f"wrote {README.relative_to(ROOT)}\n")
