"""The files of the package import one another downwards only, as the picture in docs/design.md has them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import gaio

FOLDER = Path(gaio.__file__).parent
PICTURE = (FOLDER.parent / "docs" / "design.md").read_text("utf-8")
# From the picture, top to bottom: `leader.py`, `platform/_io_uring/abi.py` …
ROOMS = re.findall(r"^    ([a-z_/]+\.py)\b", PICTURE.partition("| file |")[0], re.MULTILINE)
# What the core may know of platform/: nothing of any kernel.
OF_NO_KERNEL = {"__init__", "_libc", "_sockets", "_sockaddr", "_affinity"}


def module_of(room: str) -> str:
    return "gaio." + room.removesuffix(".py").replace("/", ".")


def imported_by(room: str) -> set[str]:
    """Modules, of which some may be names within one; imports for the type checker are left out."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module))
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse((FOLDER / room).read_text("utf-8")))
    return found


def test_the_picture_has_every_file() -> None:
    assert sorted(ROOMS) == sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_downwards(room: str) -> None:
    below = {module_of(other).removesuffix(".__init__") for other in ROOMS[ROOMS.index(room) + 1 :]}
    modules = {module_of(other).removesuffix(".__init__") for other in ROOMS}
    package = module_of(room).rpartition(".")[0]  # importing from a package is importing what stands in it, too
    assert imported_by(room) & modules - {package} <= below


@pytest.mark.parametrize("room", [room for room in ROOMS if "/" not in room])
def test_the_core_knows_no_kernel(room: str) -> None:
    kernels = {module_of(other) for other in ROOMS if "/" in other and Path(other).stem not in OF_NO_KERNEL}
    assert not imported_by(room) & kernels


@pytest.mark.parametrize("room", [*ROOMS[ROOMS.index("engine.py") : ROOMS.index("connection.py") + 1], "deadlines.py"])
def test_the_engine_knows_no_thread(room: str) -> None:
    """What stands in the brace of the picture, and the heap that it has."""
    assert not imported_by(room) & {"threading", "_thread", "signal", "time", "gaio.leader", "gaio.watcher"}
