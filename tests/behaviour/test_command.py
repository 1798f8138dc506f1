"""`python3 -m gaio`: what it tells, and its exit status."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap
from typing import Any

import pytest

import gaio
from tests import backends, child

COMMAND = """
    import runpy, sys
    sys.argv[1:] = {arguments}
    runpy.run_module("gaio", run_name="__main__")
"""


def command(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return child.run(COMMAND.replace("{arguments}", repr(list(arguments))), **variables)


def facts_of(**variables: str) -> tuple[int, dict[str, Any]]:
    done = command("--json", **variables)
    assert done.stderr == ""
    facts: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, facts


def test_it_tells_everything(backend: backends.Name) -> None:
    done = command(GAIO_BACKEND=backend)
    assert (done.returncode, done.stderr) == (0, "")
    assert gaio.__version__ in done.stdout
    for name in backends.offered():
        assert f"  {name} " in done.stdout
    assert f"used: {backend}, because the environment variable GAIO_BACKEND asks for it" in done.stdout
    assert " a second, median " in done.stdout


def test_it_tells_machines_everything(backend: backends.Name) -> None:
    status, facts = facts_of(GAIO_BACKEND=backend)
    assert status == 0
    assert (facts["gaio"], facts["chosen"], facts["environment"]) == (gaio.__version__, backend, backend)
    assert facts["python"].split()[1] == ".".join(map(str, sys.version_info[:3]))
    assert [entry["name"] for entry in facts["backends"]] == list(backends.offered())
    assert all(entry["reason"] for entry in facts["backends"])
    figures = facts["echo"]
    assert figures["echoes_per_second"] > 0
    assert 0 < figures["median_microseconds"] <= figures["p99_microseconds"]


@pytest.mark.parametrize("variables", [{}, {"GAIO_BACKEND": ""}, {"GAIO_BACKEND": "auto"}], ids=str)
def test_auto_takes_the_first_that_works(variables: dict[str, str]) -> None:
    status, facts = facts_of(**variables)
    assert status == 0
    assert facts["chosen"] == next(entry["name"] for entry in facts["backends"] if entry["available"])
    assert facts["why"].startswith("auto takes the first that works")


def test_a_backend_that_does_not_exist() -> None:
    status, facts = facts_of(GAIO_BACKEND="select")
    assert (status, facts["chosen"], facts["echo"]) == (1, None, None)
    assert "'select'" in facts["why"]


WITHOUT_DESCRIPTORS = """
    import resource, sys
    import gaio.__main__
    {before}
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    sys.argv[1:] = {arguments}
    sys.exit(gaio.__main__.main())
"""
# What musl does: confstr(3) does not know the name, and `platform` opens the interpreter's file instead.
NO_CONFSTR = """
    import os
    def confstr(name): raise ValueError("unrecognized configuration name")
    os.confstr = confstr
"""


@pytest.mark.parametrize("before", ["", NO_CONFSTR], ids=["", "a libc that does not tell its name"])
@pytest.mark.parametrize("arguments", [[], ["--json"]], ids=["text", "json"])
def test_nothing_that_works(arguments: list[str], before: str) -> None:
    """There are no descriptors left: status 1, and what can be said all the same, with the reason."""
    program = textwrap.dedent(WITHOUT_DESCRIPTORS).replace("{arguments}", repr(arguments))
    done = child.run(program.replace("{before}", textwrap.dedent(before)))
    assert done.stderr == ""
    assert done.returncode == 1
    if arguments:
        facts = json.loads(done.stdout)
        assert (facts["chosen"], facts["echo"]) == (None, None)
        assert os.strerror(errno.EMFILE) in facts["why"]
        assert not (before and facts["libc"])
        told = facts["python"]
    else:
        first, *_, last = done.stdout.splitlines()
        assert last.startswith("none: ")
        assert os.strerror(errno.EMFILE) in last
        assert not before or first.endswith("libc unknown")
        told = first.split(", ")[1]
    assert told.split()[1] == ".".join(map(str, sys.version_info[:3]))


@pytest.mark.parametrize("limit", [4, 5, 7, 9])
def test_few_descriptors(limit: int) -> None:
    """From the start on; the interpreter itself needs one at a time for what it imports, and some need two."""
    code = f"""
        import os, resource, sys
        resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        os.execv(sys.executable, [sys.executable, "-m", "gaio", "--json"])
    """
    done = child.run(code)
    if "init_import_site" in done.stderr:
        pytest.skip(f"this interpreter does not start with {limit} descriptors")
    assert (done.returncode, done.stderr) == (1, "")
    facts = json.loads(done.stdout)
    assert os.strerror(errno.EMFILE) in f"{facts['why']} {facts['failure']}"


def test_an_echo_that_fails() -> None:
    """It takes more descriptors than there are: that is told beside what was chosen and why."""
    code = """
    import resource, sys
    import gaio.__main__
    gaio.__main__.CONNECTIONS = 100
    resource.setrlimit(resource.RLIMIT_NOFILE, (50, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    sys.exit(gaio.__main__.main())
    """
    done = child.run(code)
    assert done.returncode == 1
    *_, used, failure = done.stdout.splitlines()
    assert used.startswith("used: ")
    assert "because auto takes the first that works" in used
    assert failure.startswith("the echo failed: ")
    assert os.strerror(errno.EMFILE) in failure


def test_the_command_itself() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gaio", "--help"], capture_output=True, text=True, timeout=30, check=True
    )
    assert "--json" in done.stdout
