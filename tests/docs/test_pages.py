"""Every Python block of the documentation runs, and every name it has to explain is there."""

from __future__ import annotations

import re
import select
import signal
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

import gaio
from tests import child
from tests.backends import Name
from tests.docs.pages import PAGES, Program, programs
from tests.environment import ROOT
from tests.examples.real_clients import need
from tests.peers import pattern, receive_until_eof, reset
from tests.server_process import PYTHON, listening
from tests.waiting import LIMIT, Background

# What Go's gaio exports: its functions and methods, the fields of OpResult, its errors.
NAMES_IN_GO = {
    *(
        "NewWatcher",
        "NewWatcherSize",
        "Read",
        "ReadTimeout",
        "ReadFull",
        "Write",
        "WriteTimeout",
        "Free",
        "WaitIO",
    ),
    *("Close", "SetLoopAffinity", "SetPollerAffinity", "GetGC"),
    *("OpResult.Operation", "OpResult.Conn", "OpResult.IsSwapBuffer", "OpResult.Buffer", "OpResult.Size"),
    *("OpResult.Error", "OpResult.Context"),
    *(
        "ErrUnsupported",
        "ErrNoRawConn",
        "ErrWatcherClosed",
        "ErrPollerClosed",
        "ErrConnClosed",
        "ErrDeadline",
    ),
    *("ErrEmptyBuffer", "ErrCPUID"),
}


# In development mode asyncio warns of a callback that takes a tenth of a second: on a busy machine any may.
BLIND_TO_TIME = "import logging; logging.getLogger('asyncio').setLevel(logging.ERROR)"


def by_name(program: Program) -> str:
    return program.name


def code_of(program: Program) -> str:
    """Its lines keep their numbers: the first one is empty."""
    assert program.code.startswith("\n")
    return BLIND_TO_TIME * ("import asyncio" in program.code) + program.code


@pytest.mark.parametrize("program", [p for p in programs() if not p.is_server], ids=by_name)
def test_snippets_do_what_they_say(backend: Name, program: Program) -> None:
    """They say so by assert; what they print is for the reader."""
    if '"openssl"' in program.code:
        need("openssl", "openssl")
    child.output_of(code_of(program), GAIO_BACKEND=backend)


@pytest.mark.parametrize("program", [p for p in programs() if p.is_server], ids=by_name)
def test_servers_echo(program: Program) -> None:
    if "import trio" in program.code:
        pytest.importorskip("trio")
    # asyncio does not hear a signal that comes when the interpreter has looked for signals and epoll_wait(2) has not
    # begun.
    by = signal.SIGINT if "import gaio" in program.code else signal.SIGKILL
    with listening(*PYTHON, "-c", code_of(program)) as server:
        for seed in range(3):
            with server.client() as client:
                client.sendall(pattern(1000, seed))
                client.shutdown(socket.SHUT_WR)
                assert receive_until_eof(client) == pattern(1000, seed)
        _, complaints = server.stop(by)
    assert re.sub("^Traceback.*^KeyboardInterrupt\n", "", complaints, flags=re.DOTALL | re.MULTILINE) == ""


def test_the_front_page_begins_with_a_server() -> None:
    first = next(programs())
    assert first.page == ROOT / "README.md"
    assert first.is_server
    assert len(first.code.strip().splitlines()) <= 20


def test_the_server_of_the_front_page_survives(backend: Name) -> None:
    """More clients than it has descriptors for, some that break off, and one that has finished sending long before it
    has its echo.
    """
    few = ("/bin/sh", "-c", f'ulimit -n 32; GAIO_BACKEND={backend} exec "$@"', "sh")
    payload = pattern(4 << 20)
    with listening(*few, *PYTHON, "-c", child.program(next(programs()).code)) as server:
        with ExitStack() as stack:
            crowd = [stack.enter_context(server.client()) for _ in range(40)]
            for client in crowd:
                client.sendall(b"x")
            served: list[socket.socket] = []
            while len(served) < 16:  # the others wait, or are turned away: to take one over needs a second descriptor
                served, _, _ = select.select(crowd, (), (), LIMIT)
                assert served
        for _ in range(20):
            with server.client() as client:
                client.sendall(payload[:100_000])
                reset(client)

        def send() -> None:
            client.sendall(payload)
            client.shutdown(socket.SHUT_WR)

        with server.client() as client:
            sending = Background(send)
            assert receive_until_eof(client) == payload
            sending.result()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_the_table_from_go_has_every_name() -> None:
    rows = re.findall(r"^\| (`[^|]+) \| `", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    explained = {name for row in rows for name in re.findall(r"`([\w.]+)", row)}
    assert NAMES_IN_GO - explained == set()


def test_every_file_is_named_in_the_design() -> None:
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    files = {path.name for path in (ROOT / "gaio").rglob("*.py")} - {"__init__.py"}
    assert [name for name in sorted(files) if name not in text] == []


def test_every_public_name_is_explained() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    methods = [name for name in dir(gaio.Watcher) if not name.startswith("_")]
    fields = [name for name in (*gaio.OpResult.__slots__, "is_swap_buffer") if not name.startswith("_")]
    names = [*gaio.__all__, *methods, *fields, *gaio.Stats._fields]
    assert [name for name in names if not re.search(rf"\b{name}\b", text)] == []


def test_every_example_is_on_the_front_page_and_short() -> None:
    """One that is not short is a package."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    examples = {path.stem: path for path in (ROOT / "examples").glob("*.py") if path.stem != "__init__"}
    packages = [path.parent.name for path in (ROOT / "examples").glob("*/__main__.py")]
    assert [name for name in sorted([*examples, *packages]) if f"python3 -m examples.{name}" not in text] == []
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in examples.items()}
    assert {name: count for name, count in lines.items() if count >= 150} == {}
