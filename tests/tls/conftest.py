"""A TLSWatcher that keeps books, and peers that speak TLS with the standard library's blocking sockets."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from gaio.tls import TLSWatcher
from tests.accounting import AccountedWatcher
from tests.backends import Name
from tests.examples.conftest import certificate as certificate
from tests.peers import Pairs
from tests.waiting import Background, TimeLimit

# A record may be complete only with what comes later: so a read may bring that much more than the swap size.
MOST_AT_ONCE = 65536 + 16384


class Contexts(NamedTuple):
    server: ssl.SSLContext
    client: ssl.SSLContext

    def only(self, version: ssl.TLSVersion) -> None:
        for context in self:
            context.minimum_version = context.maximum_version = version


@pytest.fixture
def contexts(certificate: Path) -> Contexts:
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(certificate)
    return Contexts(server, ssl.create_default_context(cafile=str(certificate)))


@pytest.fixture(params=["TLSv1_2", "TLSv1_3"])
def version(request: pytest.FixtureRequest, contexts: Contexts) -> ssl.TLSVersion:
    """Both versions in turn, which the contexts are bound to."""
    chosen = ssl.TLSVersion[request.param]
    contexts.only(chosen)
    return chosen


@pytest.fixture
def tls(backend: Name, request: pytest.FixtureRequest) -> Iterator[TLSWatcher]:
    with TLSWatcher(backend=backend) as watcher:
        yield watcher


@pytest.fixture
def watcher(tls: TLSWatcher) -> Iterator[AccountedWatcher]:
    """The same, whose books are checked when the test ends."""
    accounted = AccountedWatcher(tls, MOST_AT_ONCE)
    yield accounted
    accounted.close_and_check()


def harvest_until_done(tls: TLSWatcher, background: Background[ssl.SSLSocket]) -> None:
    """Let the watcher shake hands. No result may come of that, as nothing has been submitted."""
    limit = TimeLimit()
    while not background.done():
        limit.left("the handshake")
        assert tls.wait_io(0.005) == []


Connect = Callable[[], tuple[socket.socket, ssl.SSLSocket]]


@pytest.fixture
def as_server(tls: TLSWatcher, contexts: Contexts, pairs: Pairs) -> Connect:
    """Makes a connection of which the watcher is the server, and the client has shaken hands."""

    def connect() -> tuple[socket.socket, ssl.SSLSocket]:
        conn, peer = pairs.tcp()
        tls.start_server(conn, contexts.server)
        shaking = Background(lambda: contexts.client.wrap_socket(peer, server_hostname="localhost"))
        harvest_until_done(tls, shaking)
        client = shaking.result()
        pairs.also_close(client)
        return conn, client

    return connect


@pytest.fixture
def as_client(tls: TLSWatcher, contexts: Contexts, pairs: Pairs) -> Connect:
    """The same the other way round."""

    def connect() -> tuple[socket.socket, ssl.SSLSocket]:
        conn, peer = pairs.tcp()
        tls.start_client(conn, contexts.client, server_hostname="localhost")
        shaking = Background(lambda: contexts.server.wrap_socket(peer, server_side=True))
        harvest_until_done(tls, shaking)
        server = shaking.result()
        pairs.also_close(server)
        return conn, server

    return connect


@pytest.fixture(params=["server", "client"])
def connect(request: pytest.FixtureRequest) -> Connect:
    """The watcher in either role."""
    made: Connect = request.getfixturevalue(f"as_{request.param}")
    return made
