"""The openssl command and curl at the other end."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import gaio
from gaio.tls import TLSWatcher
from tests.examples.real_clients import need, run
from tests.peers import pattern
from tests.tls.conftest import Contexts
from tests.waiting import Background, TimeLimit, wait_until


class Program:
    """A program that is talked to by its standard input and output."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        self.stdin = process.stdin
        self.process = process
        self.said = b""

    def say(self, words: bytes) -> None:
        self.stdin.write(words)
        self.stdin.flush()

    def read(self) -> None:
        assert self.process.stdout is not None
        while part := os.read(self.process.stdout.fileno(), 65536):
            self.said += part

    def hears(self, words: bytes) -> None:
        wait_until(lambda: words in self.said, f"{words!r} from the program, which has said {self.said!r}")


@contextmanager
def openssl(*arguments: str) -> Iterator[Program]:
    pipe = subprocess.PIPE
    command = [need("openssl", "openssl"), *arguments]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT) as process:
        program = Program(process)
        reading = Background(program.read)
        try:
            yield program
        finally:
            process.kill()
            reading.result()


@contextmanager
def serving(tls: TLSWatcher, context: ssl.SSLContext, answer: Callable[[bytes], bytes]) -> Iterator[int]:
    """A server in a thread; the port it listens on. It says the end when its client does."""

    def serve() -> None:
        tls.accept_start(listener)
        for result in tls:
            if result.operation is gaio.ACCEPT and result.accepted:
                tls.start_server(result.accepted, context)
                tls.read_start(result.accepted)
            elif result.operation is gaio.READ and result.more:
                tls.write(result.conn, answer(bytes(result.buffer)))
            elif isinstance(result.error, EOFError) and not tls.closed:
                tls.shutdown(result.conn)
            elif result.operation is gaio.SHUTDOWN or (result.error and not result.more):
                tls.free(result.conn)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        background = Background(serve)
        try:
            yield port
        finally:
            tls.close()
            background.result()


def test_s_client_with_key_updates(tls: TLSWatcher, contexts: Contexts) -> None:
    """K asks for a new key of ours as well."""
    contexts.only(ssl.TLSVersion.TLSv1_3)
    with (
        serving(tls, contexts.server, bytes.upper) as port,
        openssl("s_client", "-connect", f"127.0.0.1:{port}") as client,
    ):
        client.say(b"hello\n")
        client.hears(b"HELLO\n")
        for number, command in enumerate((b"K\n", b"k\n", b"K\n")):
            client.say(command)
            wait_until(lambda: client.said.count(b"KEYUPDATE") > number, "the new key")  # noqa: B023 - called at once
            client.say(b"again %d\n" % number)
            client.hears(b"AGAIN %d\n" % number)
        client.say(b"Q\n")
        assert client.process.wait(30) == 0


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_s_server(tls: TLSWatcher, contexts: Contexts, certificate: Path, version: str) -> None:
    """With renegotiations in TLS 1.2, and new keys in TLS 1.3, while both ends talk."""
    command = b"R\n" if version == "-tls1_2" else b"K\n"
    with openssl("s_server", "-accept", "127.0.0.1:0", "-cert", str(certificate), version) as server:
        server.hears(b"ACCEPT 127.0.0.1:")
        port = int(server.said.partition(b"ACCEPT 127.0.0.1:")[2].split()[0])
        conn = socket.create_connection(("127.0.0.1", port))
        tls.start_client(conn, contexts.client, server_hostname="localhost")
        tls.read_start(conn)
        heard, ended = b"", False

        def until(condition: Callable[[], bool]) -> None:
            nonlocal heard, ended
            limit = TimeLimit()
            while not condition():
                limit.left(f"what openssl should say; it has said {heard!r} and {server.said!r}")
                for result in tls.wait_io(0.01):
                    ended = isinstance(result.error, EOFError)
                    assert result.error is None or ended, result
                    if result.more:
                        heard += result.buffer

        for number in range(3):
            tls.write(conn, b"question %d\n" % number)
            until(lambda: b"question %d\n" % number in server.said)  # noqa: B023 - called at once
            server.say(command)
            tls.write(conn, b"meanwhile %d\n" % number)
            until(lambda: b"meanwhile %d\n" % number in server.said)  # noqa: B023 - called at once
            server.say(b"answer %d\n" % number)
            until(lambda: b"answer %d\n" % number in heard)  # noqa: B023 - called at once
        tls.shutdown(conn)
        until(lambda: ended)


def page(request: bytes) -> bytes:
    return b"HTTP/1.0 200 OK\r\nContent-Length: 1000000\r\n\r\n" + pattern(1_000_000)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_curl(tls: TLSWatcher, contexts: Contexts, certificate: Path, version: str) -> None:
    with serving(tls, contexts.server, page) as port:
        url = f"https://localhost:{port}/"
        options = ("--silent", "--show-error", "--cacert", str(certificate), f"--tlsv{version}", "--tls-max", version)
        assert run("curl", *options, "--ipv4", url, package="curl") == pattern(1_000_000)


def test_the_page_of_s_server(contexts: Contexts, certificate: Path, tls: TLSWatcher) -> None:
    """-www ends without a close_notify in some versions; this one says so, or it is told."""
    with openssl("s_server", "-accept", "127.0.0.1:0", "-cert", str(certificate), "-www") as server:
        server.hears(b"ACCEPT 127.0.0.1:")
        port = int(server.said.partition(b"ACCEPT 127.0.0.1:")[2].split()[0])
        conn = socket.create_connection(("127.0.0.1", port))
        tls.start_client(conn, contexts.client, server_hostname="localhost")
        tls.write(conn, b"GET / HTTP/1.0\r\n\r\n")
        tls.read_start(conn)
        heard, limit = b"", TimeLimit()
        while True:
            for result in tls.wait_io(limit.left("the page")):
                if result.operation is gaio.READ and result.more:
                    heard += result.buffer
            if result.operation is gaio.READ and not result.more:
                break
        assert isinstance(result.error, (EOFError, ssl.SSLEOFError))
        assert heard.startswith(b"HTTP/1.0 200 ok")
        assert heard.rstrip().endswith(b"</HTML>") or b"</html>" in heard.lower()
