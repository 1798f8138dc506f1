"""Thousands of connections at once; their clients run in a second process."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from tests import load_client
from tests.accounting import AccountedWatcher
from tests.behaviour.echo import Buffers, EchoServer
from tests.descriptor_limit import need_descriptors
from tests.environment import ROOT
from tests.waiting import LIMIT, Background


@pytest.mark.slow
@pytest.mark.parametrize(("connections", "buffers"), [(1000, "caller"), (1000, "swap"), (8000, "mixed")])
def test_every_connection_gets_its_own_bytes_back(
    watcher: AccountedWatcher, connections: int, buffers: Buffers
) -> None:
    need_descriptors(connections)
    server = EchoServer(watcher, buffers, size=max(load_client.SIZES))
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        listener.settimeout(LIMIT)
        port = listener.getsockname()[1]

        def accept() -> None:
            for _ in range(connections):
                server.start(listener.accept()[0])

        command = [sys.executable, "-m", "tests.load_client", str(port), str(connections)]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as clients:
            try:
                accepting = Background(accept)
                server.serve(connections)
                accepting.result()
                _, complaint = clients.communicate(timeout=LIMIT)
            finally:
                clients.kill()
    assert clients.returncode == 0, complaint
    assert server.echoed == connections * sum(load_client.SIZES)
    assert watcher.watcher.stats().pending == 0
