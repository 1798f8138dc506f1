"""The https client, of servers that Python and openssl have."""

from __future__ import annotations

import http.server
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from tests.backends import Name
from tests.environment import ROOT
from tests.peers import pattern
from tests.server_process import PYTHON, environment, module
from tests.waiting import LIMIT


class Pages(http.server.BaseHTTPRequestHandler):
    """/SIZE is a page of that size; /cut is one of which the end is missing."""

    sizes: ClassVar[dict[str, int]] = {"/0": 0, "/1": 1, "/1000000": 1_000_000, "/cut": 1000}

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(pattern(self.sizes[self.path]))
        if self.path != "/cut":
            connection = self.connection
            assert isinstance(connection, ssl.SSLSocket)
            connection.unwrap()

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the name that the base class has
        pass


@pytest.fixture
def site(certificate: Path) -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    server.daemon_threads = False
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"https://localhost:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def https_get(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [*PYTHON, *module("examples.https_get"), *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, timeout=LIMIT, check=False)


def test_a_page(site: str, certificate: Path, backend: Name) -> None:
    done = https_get("--backend", backend, "--cafile", str(certificate), f"{site}/1000000")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == pattern(1_000_000)


def test_many_pages(site: str, certificate: Path) -> None:
    sizes = [0, 1, 1_000_000] * 5
    done = https_get("--cafile", str(certificate), *(f"{site}/{size}" for size in sizes))
    assert (done.returncode, done.stderr) == (0, b"")
    lines = sorted(f"{site}/{size}: HTTP/1.0 200 OK, {size} bytes" for size in sizes)
    assert sorted(done.stdout.decode().splitlines()) == lines


def test_a_page_that_was_cut_off(site: str, certificate: Path) -> None:
    done = https_get("--cafile", str(certificate), f"{site}/cut")
    assert done.returncode == 1
    assert b"EOF occurred in violation of protocol" in done.stderr


def test_a_certificate_for_another_name(site: str, certificate: Path) -> None:
    done = https_get("--cafile", str(certificate), site.replace("localhost", "127.0.0.1"))
    assert done.returncode == 1
    assert b"certificate verify failed" in done.stderr
    done = https_get(site)
    assert b"certificate verify failed" in done.stderr


@pytest.mark.parametrize("url", ["http://localhost/", "nonsense", "https://no.such.name.invalid/"])
def test_what_cannot_be_fetched_is_told(url: str) -> None:
    done = https_get(url)
    assert done.returncode == 1
    assert done.stderr.startswith(b"cannot fetch: ")
    assert done.stderr.count(b"\n") == 1
