"""KeyboardInterrupt between any two opcodes: each request that was accepted has exactly one result all the same."""

from __future__ import annotations

import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

import gaio
from gaio.tls import TLSWatcher
from tests.backends import Name
from tests.interruption.opcodes import Opcode, Strike, at_opcodes, interruption, told_of_opcodes
from tests.tls.conftest import Contexts

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("thread_acts_when_told")]


@pytest.fixture(autouse=True)
def _told_of_opcodes() -> Iterator[None]:
    with told_of_opcodes():
        yield


class Scene:
    """A server of TLS, and a client in memory that has shaken hands with it and said something."""

    def __init__(self, backend: Name, contexts: Contexts) -> None:
        self.tls = TLSWatcher(backend=backend)
        self.conn, self.peer = socket.socketpair()
        self.called: list[str] = []
        self.accepted: list[str] = []  # those calls that have returned
        self.results: list[gaio.OpResult] = []
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = contexts.client.wrap_bio(incoming, outgoing, server_hostname="localhost")
        self.tls.start_server(self.conn, contexts.server)
        self.tls.handshake(self.conn, context="handshake")
        self.peer.setblocking(False)
        while not self.results:
            try:
                client.do_handshake()
            except ssl.SSLWantReadError:
                pass
            self.peer.send(outgoing.read() or b"")
            self.results += self.tls.wait_io(0)
            try:
                incoming.write(self.peer.recv(65536))
            except BlockingIOError:
                pass
        self.results.clear()
        for words in (b"in one record ", b"in another one ", b"in two parts"):
            client.write(words)
        everything = outgoing.read()
        self.peer.send(everything[:-5])
        self.rest = everything[-5:]
        self.said = b"in one record in another one in two parts"
        self.heard = b""

    def submit(self, name: str, call: Callable[..., None], *arguments: object) -> None:
        self.called.append(name)
        call(self.conn, *arguments, context=name)
        self.accepted.append(name)

    def turns(self) -> None:
        tls = self.tls
        self.submit("once", tls.read)
        self.submit("again", tls.read_start)
        self.submit("small", tls.write, b"small")
        self.submit("large", tls.write, bytearray(100_000))
        self.submit("shutdown", tls.shutdown)
        for _ in range(3):
            self.fetch()
        self.peer.send(self.rest)
        self.fetch()
        tls.read_stop(self.conn)
        self.fetch()

    def fetch(self) -> None:
        for result in self.tls.wait_io(0):
            self.take(result)

    def take(self, result: gaio.OpResult) -> None:
        Strike.held_back = True
        self.results.append(result)
        if result.operation is gaio.READ and result.buffer is not None:
            self.heard += result.buffer
        Strike.held_back = False


def play(backend: Name, contexts: Contexts, at: Opcode) -> Strike:
    scene = Scene(backend, contexts)
    strike = interruption(at)
    strike.interrupts(scene.turns)
    if strike.is_last or at.number % 2:
        scene.tls.free(scene.conn)  # else close() has to answer all
    scene.tls.close()
    for result in scene.tls:
        scene.take(result)
    scene.peer.close()
    last = Counter(result.context for result in scene.results if not result.more)
    assert set(scene.accepted) <= set(last) <= set(scene.called), (strike.place, last, scene.accepted)
    assert set(last.values()) <= {1}, (strike.place, last)
    assert scene.said.startswith(scene.heard), (strike.place, scene.heard)
    return strike


def test_every_third_opcode(backend: Name, contexts: Contexts) -> None:
    at_opcodes(lambda at: play(backend, contexts, at), step=3, more_than=1000)
