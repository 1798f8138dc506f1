"""`python -m tests.mutation`: small changes to the package, drawn at random, of which the tests must notice nearly all.

cosmic-ray makes them in this worktree, one at a time: so it is to be one of its own. A run that was stopped goes on
where it was. Each place is drawn once, with one change to it. Left out is what cannot be noticed: in annotations, in
what only type checkers run, @abstractmethod, and `==` made `is` or the reverse, which are one for the numbers here.
"""

from __future__ import annotations

import ast
import os
import random
import re
import resource
import signal
import subprocess
import sys
from contextlib import suppress
from typing import Any

from cosmic_ray.work_db import use_db

from tests.environment import ROOT

CHANGES, SEED, SESSION = 240, 1, "mutation.sqlite"  # the session: which were drawn, and what came of each
FOLDERS = ("layout", "core", "ring", "kqueue", "behaviour", "faults")
LEFT_OUT = re.compile(r".*(_Eq_Is|_NotEq_IsNot|_Is_Eq|_IsNot_NotEq|RemoveDecorator)$")
PYTEST = ("pytest", "-x", "-n0", "--storm=calm", "-ofaulthandler_timeout=60", "--ignore=tests/faults/test_table.py")
QUICK = tuple((*PYTEST, "-m", "not slow", f"tests/{name}") for name in FOLDERS)
SIMULATION = tuple(("tests.simulation", "--seeds", seeds) for seeds in ("1500", "20000"))


def suite() -> int:
    """Whether it notices how this worktree is changed: the quickest first, on the backends that may be concerned."""
    resource.setrlimit(resource.RLIMIT_AS, (1 << 33, 1 << 33))
    changed = subprocess.run(["git", "diff", "--name-only", "gaio"], capture_output=True, text=True, check=True).stdout
    backends = ["io_uring"] if "_io_uring" in changed else ["epoll", "kqueue" if "platform" in changed else "io_uring"]
    for stage in (*(() if "platform" in changed else SIMULATION), *QUICK, (*PYTEST, "tests/interruption")):
        for backend in backends[: 1 if stage in SIMULATION else None]:
            variables = {**os.environ, "GAIO_TEST_BACKEND": backend}
            process = subprocess.Popen([sys.executable, "-m", *stage], env=variables, start_new_session=True)
            status = None
            with suppress(subprocess.TimeoutExpired):
                status = process.wait(300)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and what it has left
            if status != 0:
                return 1
    return 0


def can_be_noticed(change: Any) -> bool:
    spared: list[Any] = []
    for node in ast.walk(ast.parse((ROOT / change.module_path).read_text(encoding="utf-8"))):
        spared += [getattr(node, "annotation", None), getattr(node, "returns", None)]
        if isinstance(node, (ast.If, ast.Assign)) and "TYPE_CHECKING" in ast.unparse(node).split("\n")[0]:
            spared.append(node)
    ranges = [((n.lineno, n.col_offset), (n.end_lineno, n.end_col_offset)) for n in spared if n is not None]
    return not (LEFT_OUT.match(change.operator_name) or any(a <= change.start_pos < b for a, b in ranges))


def main() -> int:
    os.environ["PATH"] = os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"]))
    if not os.path.exists(SESSION):
        subprocess.run(["cosmic-ray", "init", "tests/mutation.toml", SESSION], check=True)
        chance, places = random.Random(SEED), dict[Any, Any]()
        with use_db(SESSION) as db:
            items = sorted(db.work_items, key=lambda item: str(item.mutations))
            chance.shuffle(items)
            for item in items:
                change = item.mutations[0]
                places.setdefault((change.module_path, change.start_pos, change.operator_name.partition("_")[0]), item)
            db.clear()
            db.add_work_items(chance.sample([i for i in places.values() if can_be_noticed(i.mutations[0])], CHANGES))
    subprocess.run(["cosmic-ray", "exec", "tests/mutation.toml", SESSION], check=True)
    return subprocess.run(["cr-report", "--surviving-only", "--show-diff", SESSION], check=True).returncode


if __name__ == "__main__":
    sys.exit(suite() if "--suite" in sys.argv else main())
