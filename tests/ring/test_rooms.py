"""The files of the package import one another downwards only, and nothing of the core."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import gaio

FOLDER = Path(gaio.__file__).parent / "platform" / "_io_uring"
ROOMS = ["abi", "ring", "buffers", "operations", "backend", "probe", "__init__"]  # as docs/design.md has them
AROUND = {"gaio.memory", "gaio.swap", "gaio.platform"}


def imported_by(room: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse((FOLDER / f"{room}.py").read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "gaio.platform._io_uring":
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(node.module)
    return {name for name in found if name.split(".")[0] == "gaio"}


def test_every_file_is_a_room() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.py")) == sorted(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_downwards(room: str) -> None:
    below = {f"gaio.platform._io_uring.{name}" for name in ROOMS[: ROOMS.index(room)]}
    siblings = {name for name in imported_by(room) if name.startswith("gaio.platform._io_uring")}
    assert siblings <= below
    others = imported_by(room) - siblings
    assert all(name in AROUND or name.startswith("gaio.platform._") for name in others), others
