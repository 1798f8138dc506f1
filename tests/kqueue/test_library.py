"""GAIO_KQUEUE_LIBRARY: on Linux, a library that exports kqueue() and kevent() makes the backend available."""

from __future__ import annotations

import ctypes.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import gaio
from tests import child

SOURCE = Path(__file__).with_name("library.c")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler to make a library with")
    path = str(tmp_path_factory.mktemp("library") / "libkqueue.so")
    options = ["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", path]
    subprocess.run([compiler, *options, str(SOURCE)], check=True, timeout=60)
    return path


def offer_of(path: str | None, monkeypatch: pytest.MonkeyPatch) -> gaio.Backend:
    if path is None:
        monkeypatch.delenv("GAIO_KQUEUE_LIBRARY", raising=False)
    else:
        monkeypatch.setenv("GAIO_KQUEUE_LIBRARY", path)
    return {offer.name: offer for offer in gaio.backends()}["kqueue"]


def test_a_library_makes_it_available(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    offered = offer_of(library, monkeypatch)
    assert offered.available


def test_it_serves(library: str) -> None:
    """In an interpreter of its own, where nothing is simulated: the way through ctypes, with many connections."""
    code = """
        import socket, threading
        import gaio

        with gaio.Watcher(backend="kqueue") as watcher, socket.create_server(("127.0.0.1", 0)) as listener:
            address = listener.getsockname()
            for _ in range(300):
                watcher.accept(listener)  # by the watcher thread, while this one connects
            clients = [socket.create_connection(address) for _ in range(300)]
            echoed = ended = 0
            for client in clients:
                client.sendall(bytes(1000))
            def finish():
                for client in clients:
                    received = 0
                    while received < 1000:
                        received += len(client.recv(1000))
                    client.close()
            finishing = threading.Thread(target=finish)
            finishing.start()
            for result in watcher:
                if result.operation is gaio.Operation.ACCEPT:
                    watcher.read(result.accepted)
                elif isinstance(result.error, (EOFError, ConnectionResetError)):
                    watcher.free(result.conn)
                    ended += 1
                    if ended == len(clients):
                        break
                elif result.operation is gaio.READ:
                    echoed += result.size
                    watcher.write(result.conn, bytes(result.buffer))
                    watcher.read(result.conn)
            finishing.join()
            watcher.free(listener)
        print(echoed, ended)
    """
    assert child.output_of(code, GAIO_KQUEUE_LIBRARY=library) == "300000 300"


def test_without_one_the_reason_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (None, ""):
        offered = offer_of(path, monkeypatch)
        assert not offered.available
        assert "GAIO_KQUEUE_LIBRARY" in offered.reason


def test_a_path_that_leads_nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    offered = offer_of(str(tmp_path / "libkqueue.so"), monkeypatch)
    assert not offered.available
    assert "libkqueue.so" in offered.reason
    with pytest.raises(gaio.BackendUnavailableError, match="libkqueue"):
        gaio.Watcher(backend="kqueue")


def test_a_library_without_the_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    path = ctypes.util.find_library("c") or "libc.so.6"
    offered = offer_of(path, monkeypatch)
    assert not offered.available
    assert "kqueue" in offered.reason
    assert os.environ["GAIO_KQUEUE_LIBRARY"] == path
