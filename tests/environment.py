"""The virtual environments the tests run in, one for each interpreter, under .venv-tests/.

Runs before anything is installed: standard library only. gaio itself is never installed there; the tests use
the checkout. An environment is used again as long as what it holds of the extras of pyproject.toml and the
interpreter are the same.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import importlib.util
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.interpreters import Interpreter

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = ROOT / ".venv-tests"
# The environment itself, not the terminal, decides which gaio runs and how.
QUIET_PIP = ("-m", "pip", "--quiet", "--quiet", "--disable-pip-version-check", "--no-input")


class CannotPrepare(Exception):
    """An environment cannot be made; the message says what is missing."""


def requirements(*extras: str) -> list[str]:
    """What these extras of pyproject.toml ask for.

    tomllib came with Python 3.11, and nothing is installed yet; a TOML array of strings, comments included,
    happens to be a Python list.
    """
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    wanted: list[str] = []
    for extra in extras:
        found = re.search(rf"^{extra} = (\[.*?^\])", text, re.MULTILINE | re.DOTALL)
        if found is None:
            raise CannotPrepare(f"pyproject.toml has no `{extra} = [...]` under [project.optional-dependencies]")
        wanted += ast.literal_eval(found[1])
    return wanted


@contextlib.contextmanager
def _only_one_at_a_time() -> Iterator[None]:
    ENVIRONMENTS.mkdir(exist_ok=True)
    with open(ENVIRONMENTS / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(command: list[str], purpose: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise CannotPrepare(f"{purpose} failed:\n{' '.join(command)}\n{done.stdout}")


def _install_as_far_as_possible(install: list[str], programs: list[str]) -> None:
    """All at once, or one by one where one of them has no wheel. The tests of those that are missing are skipped."""
    try:
        _run([*install, *programs], "Installing the programs that run on an event loop")
    except CannotPrepare:
        for program in programs:
            try:
                _run([*install, program], f"Installing {program}")
            except CannotPrepare as error:
                print(f"Left out, and so are its tests: {error}", flush=True)


def prepare(interpreter: Interpreter, pip_from: Path | None = None) -> Path:
    """The Python of an environment for this interpreter that holds the extras `test`, `types` and `examples`, and of
    `asyncio` what has a wheel.

    With `pip_from`, the Python of another environment, that one's pip does the installing: the interpreter
    then needs no ensurepip, which Debian keeps in a package of its own. Types are checked in that other one, so the
    extra `types` is left out.
    """
    wanted = requirements("test", "examples") if pip_from else requirements("test", "types", "examples")
    programs = requirements("asyncio")
    folder = ENVIRONMENTS / interpreter.name
    python = folder / "bin" / "python"
    stamp = folder / "installed.json"
    content = json.dumps({"interpreter": interpreter.executable, "requirements": [*wanted, *programs]})
    with _only_one_at_a_time():
        if stamp.exists() and stamp.read_text(encoding="utf-8") == content and python.exists():
            return python
        missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
        if missing and pip_from is None:
            minor = ".".join(map(str, interpreter.version[:2]))
            raise CannotPrepare(
                f"{interpreter.executable} cannot make a virtual environment: {' and '.join(missing)} missing.\n"
                f"On Debian and Ubuntu: apt-get install python{minor}-venv"
            )
        print(f"Making {folder.relative_to(ROOT)}: {', '.join([*wanted, *programs])}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        make = [interpreter.executable, "-m", "venv", str(folder)]
        if pip_from is None:
            _run(make, "Making the virtual environment")
            install = [str(python), *QUIET_PIP, "install"]
        else:
            _run([*make, "--without-pip"], "Making the virtual environment")
            install = [str(pip_from), *QUIET_PIP, "--python", str(python), "install"]
        _run([*install, *wanted], "Installing what the tests need")
        _install_as_far_as_possible([*install, "--only-binary", ":all:"], programs)
        stamp.write_text(content, encoding="utf-8")  # last: what was interrupted is made again
    return python


@contextlib.contextmanager
def as_installed() -> Iterator[tuple[Path, dict[str, str]]]:
    """Where to run a type checker, and the environment variables under which it sees `gaio-stubs` beside `gaio`, as a
    user's does.

    In the checkout, and from MYPYPATH too, the source of a module would hide its stub.
    """
    with tempfile.TemporaryDirectory(prefix="gaio-as-installed-") as folder:
        (Path(folder) / "gaio").symlink_to(ROOT / "gaio")
        (Path(folder) / "gaio-stubs").symlink_to(ROOT / "stubs" / "gaio-stubs")
        (elsewhere := Path(folder) / "elsewhere").mkdir()
        yield elsewhere, {**os.environ, "PYTHONPATH": folder}
