"""The wheel holds what a user needs and no more; the README's first program runs where nothing else is."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import venv
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import gaio
from tests.environment import QUIET_PIP, ROOT
from tests.waiting import LIMIT

# Building needs the build backend, which pip fetches for the time of the build.
PATIENCE = 120


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that no file of the build stays in the checkout."""
    checkout = tmp_path_factory.mktemp("checkout") / "gaio"
    leave_out = shutil.ignore_patterns(".*", "__pycache__", "results", "build", "dist")
    shutil.copytree(ROOT, checkout, ignore=leave_out)
    built = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, *QUIET_PIP, "wheel", str(checkout), "--no-deps", "--wheel-dir", str(built)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = built.iterdir()
    return found


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel, and not even pip."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    install = ["--python", str(python), "install", "--no-index", "--no-deps", str(wheel)]
    done = subprocess.run(
        [sys.executable, *QUIET_PIP, *install], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return python


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def test_it_is_pure_python_for_every_platform(wheel: Path) -> None:
    assert wheel.name == f"gaio-{gaio.__version__}-py3-none-any.whl"


def test_it_holds_the_package_and_the_stubs_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    installed = {name for name in names if ".dist-info/" not in name}
    package = {f"gaio/{path.relative_to(ROOT / 'gaio')}" for path in (ROOT / "gaio").rglob("*.py")}
    stubs = {f"gaio-stubs/{name}" for name in ("__init__.pyi", "asyncio.pyi", "tls.pyi", "py.typed")}
    assert installed == package | {"gaio/py.typed"} | stubs
    assert any(name.endswith("LICENSE") for name in names)


def test_it_needs_python_and_nothing_else(wheel: Path) -> None:
    found = metadata(wheel)
    assert found["Requires-Python"] == ">=3.10"
    needed = [entry for entry in found.get_all("Requires-Dist") or [] if "extra ==" not in entry]
    assert needed == []


def first_program() -> str:
    found = re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    assert found is not None, "README.md has no block of Python"
    return found[1]


def test_the_first_program_of_the_readme_echoes(python: Path, tmp_path: Path) -> None:
    """In an empty folder, so that the installed package is the only one; with every warning an error."""
    program = tmp_path / "readme_example.py"
    program.write_text(first_program(), encoding="utf-8")
    command = [str(python), "-X", "dev", "-W", "error", str(program)]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            said = server.stdout.readline()
            found = re.search(r"(\d+\.\d+\.\d+\.\d+):(\d+)", said)
            assert found is not None, f"it must say where it listens, but said {said!r}"
            for message in (b"hello", bytes(100_000)):
                with socket.create_connection((found[1], int(found[2])), timeout=LIMIT) as sock:
                    sock.sendall(message)
                    sock.shutdown(socket.SHUT_WR)
                    with sock.makefile("rb") as answer:
                        assert answer.read() == message
            assert server.poll() is None
        finally:
            server.kill()
            _, complaint = server.communicate(timeout=LIMIT)
    assert complaint == ""


def test_the_installed_package_is_the_one_imported(python: Path, tmp_path: Path) -> None:
    code = "import gaio; print(gaio.__version__, gaio.__file__)"
    done = subprocess.run([str(python), "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    version, _, file = done.stdout.strip().partition(" ")
    assert version == gaio.__version__
    assert Path(file).is_relative_to(python.parent.parent)
