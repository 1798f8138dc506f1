"""CPython's own tests of asyncio pass on gaio's event loop: see stdlib_suite.py."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import backends, server_process
from tests.asyncio_loop.stdlib_suite import FAILED, PACKAGE, Complaint, Report
from tests.environment import ROOT

LIMIT = 170  # seconds of a module; the longest take 20

# These make stream transports, and so the backends differ.
WITH_TRANSPORTS = (
    "test_buffered_proto",
    "test_events",
    "test_sendfile",
    "test_server",
    "test_sock_lowlevel",
    "test_ssl",
    "test_sslproto",
    "test_streams",
    "test_unix_events",
)
# These make a loop, and use whatever else it has.
WITHOUT_TRANSPORTS = (
    "test_base_events",
    "test_locks",
    "test_queues",
    "test_runners",
    "test_subprocess",
    "test_taskgroups",
    "test_tasks",
    "test_threads",
    "test_timeouts",
    "test_waitfor",
)


class LeftOut(NamedTuple):
    """A test that fails on this loop, and why it may. It is run all the same: one that passes has no place here."""

    test: str  # MODULE.CLASS.TEST, of which parts may be `*`
    reason: str
    hangs: bool = False  # so it is run by itself, and not for long
    since: tuple[int, int] = (3, 10)
    until: tuple[int, int] = (3, 99)

    def applies_to(self, test: str) -> bool:
        return self.since <= sys.version_info[:2] <= self.until and fnmatchcase(test, self.test)


LEFT_OUT = (
    LeftOut(
        "test_ssl.TestSSL.test_remote_shutdown_receives_trailing_data_on_slow_socket",
        "asks asyncio's own transport for _read_ready_cb, so as to exchange its socket; its server then waits for ever",
        hangs=True,
    ),
)
LIMIT_OF_THOSE_THAT_HANG = 5


def run(module: str, loop: str, backend: str, folder: Path, *more: str) -> tuple[Report, str]:
    """What was found, and all that was printed."""
    command = [sys.executable, *server_process.module("tests.asyncio_loop.stdlib_suite"), module]
    command += ["--loop", loop, "--backend", backend, "--report", str(folder / "report.json"), *more]
    folder.mkdir()
    # A file, which ends where a pipe does not: a test may leave processes that hold it.
    with open(folder / "output.txt", "w+", encoding="utf-8", errors="replace") as output:
        environment = server_process.environment()
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH"))))
        ended = subprocess.run(
            command, cwd=folder, env=environment, stdout=output, stderr=output, timeout=LIMIT, check=False
        )
        output.seek(0)
        printed = output.read()
    try:
        report: Report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    except OSError:
        pytest.fail(f"{module} did not come to its end, exit status {ended.returncode}:\n{printed[-20_000:]}")
    report["complaints"] = [Complaint(*complaint) for complaint in report["complaints"]]
    return report, printed


def check(module: str, backend: str, folder: Path, *, transports: bool) -> None:
    if importlib.util.find_spec("test") is None or importlib.util.find_spec(PACKAGE) is None:
        pytest.skip(f"this interpreter came without {PACKAGE}")
    if importlib.util.find_spec(f"{PACKAGE}.{module}") is None:
        pytest.skip(f"Python {sys.version_info.major}.{sys.version_info.minor} has no {PACKAGE}.{module}")
    left_out = [entry for entry in LEFT_OUT if entry.applies_to(entry.test) and entry.test.startswith(f"{module}.")]
    hanging = [entry.test for entry in left_out if entry.hangs]
    report, printed = run(module, "gaio", backend, folder / "gaio", *repeated("--without", hanging))
    assert report["ran"], printed
    if transports:
        assert report["transports"] > 0
        assert report["backends"] == [backend]

    not_ours = set()
    if suspects := {complaint.test for complaint in report["complaints"]}:
        with_stdlib, _ = run(module, "stdlib", backend, folder / "stdlib", *repeated("--only", suspects))
        not_ours = {(complaint.test, complaint.kind) for complaint in with_stdlib["complaints"]}
    ours = [complaint for complaint in report["complaints"] if (complaint.test, complaint.kind) not in not_ours]
    ran = set(report["ran"])
    if hanging:
        limit = ("--limit", str(LIMIT_OF_THOSE_THAT_HANG))
        by_themselves, _ = run(module, "gaio", backend, folder / "hanging", *limit, *repeated("--only", hanging))
        ran.update(by_themselves["ran"])
        ours += by_themselves["complaints"]

    failed = {complaint.test for complaint in ours if complaint.kind == FAILED}
    stale = [
        f"{test} passes: it need not be left out"
        for test in sorted(ran - failed) if any(entry.applies_to(test) for entry in left_out)
    ]
    unexpected = [
        f"{complaint.test}: {complaint.kind}, as it is not with asyncio's own loop\n{complaint.text}"
        for complaint in ours if not any(entry.applies_to(complaint.test) for entry in left_out)
    ]
    if stale or unexpected:
        pytest.fail("\n".join([*stale, *unexpected]), pytrace=False)


def repeated(option: str, values: Iterable[str]) -> Iterator[str]:
    for value in values:
        yield from (option, value)


@pytest.mark.slow
@pytest.mark.parametrize("module", WITH_TRANSPORTS)
def test_streams_and_all_that_stands_on_them(module: str, backend: backends.Name, tmp_path: Path) -> None:
    check(module, backend, tmp_path, transports=True)


@pytest.mark.slow
@pytest.mark.parametrize("module", WITHOUT_TRANSPORTS)
def test_the_rest_of_the_loop(module: str, tmp_path: Path) -> None:
    check(module, backends.under_test()[0], tmp_path, transports=False)
