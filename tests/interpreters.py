"""Finds every CPython this machine offers that gaio supports.

Runs before anything is installed: standard library only.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

OLDEST = (3, 10)

# Asked of each candidate, so that a launcher that stands in for another interpreter answers for that one.
_QUESTION = """
import json, platform, sys, sysconfig
print(json.dumps([platform.python_implementation(), list(sys.version_info[:3]),
                  bool(sysconfig.get_config_var("Py_GIL_DISABLED")), sys.executable]))
"""
_NAME = re.compile(r"python3(\.\d+)?t?")


class Interpreter(NamedTuple):
    executable: str
    version: tuple[int, int, int]
    free_threaded: bool

    @property
    def name(self) -> str:
        return ".".join(map(str, self.version)) + ("t" if self.free_threaded else "")


def ask(executable: str) -> Interpreter | None:
    """What runs under this name, or None when nothing that gaio supports does."""
    try:
        answer = subprocess.run(
            [executable, "-I", "-c", _QUESTION], capture_output=True, timeout=30, text=True, check=False
        )
        implementation, version, free_threaded, real = json.loads(answer.stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return None  # a pyenv shim whose version is not selected, a broken link, a Python 2
    if implementation != "CPython" or tuple(version[:2]) < OLDEST:
        return None
    return Interpreter(real, (version[0], version[1], version[2]), free_threaded)


def _candidates() -> Iterator[Path]:
    pyenv_root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from sorted(pyenv_root.glob("versions/*/bin/python3"))
    for folder in os.get_exec_path():
        try:
            entries = sorted(Path(folder).iterdir())
        except OSError:
            continue  # PATH may name folders that are not there
        yield from (entry for entry in entries if _NAME.fullmatch(entry.name))


def invoking() -> Interpreter:
    """The interpreter that runs this code, outside any virtual environment it may be in."""
    executable = getattr(sys, "_base_executable", None) or sys.executable
    found = ask(executable)
    if found is None:
        raise SystemExit(f"{executable} is not a CPython >= {'.'.join(map(str, OLDEST))}")
    return found


def others(first: Interpreter) -> list[Interpreter]:
    """Every other supported CPython on PATH and among pyenv's versions, one of each exact version."""
    by_name = {first.name: first}
    asked: set[str] = set()
    for candidate in _candidates():
        if candidate.resolve().as_posix() in asked:
            continue
        asked.add(candidate.resolve().as_posix())
        found = ask(str(candidate))
        if found is not None:
            by_name.setdefault(found.name, found)
    del by_name[first.name]
    return sorted(by_name.values(), key=lambda interpreter: (interpreter.version, interpreter.free_threaded))
