"""`python -X dev`: a view of the swap arena that is used too late raises, instead of showing another one's bytes."""

from __future__ import annotations

import sys

import pytest

from tests import child
from tests.accounting import AccountedWatcher
from tests.backends import Name
from tests.peers import Pairs

PROGRAM = """
import pickle, socket
import gaio

def fetch(watcher):
    batch = []
    while not batch:
        batch = watcher.wait_io(30)
    return batch

watcher = gaio.Watcher(backend={backend!r})
conn, peer = socket.socketpair()
{body}
watcher.close()
peer.close()
print("good")
"""


def run(backend: Name, body: str) -> str:
    return child.output_of(PROGRAM.format(backend=backend, body=body))


USE_TOO_LATE = """
views = []
for number in range(50):
    watcher.read(conn)
    peer.send(b"message %d" % number)
    (result,) = fetch(watcher)
    assert bytes(result.buffer) == b"message %d" % number
    views.append(result.buffer)
    for stale in views[:-1]:
        try:
            bytes(stale)
        except ValueError as error:
            assert "released" in str(error)
        else:
            raise AssertionError("a stale view can still be used")
assert bytes(views[-1]) == b"message 49", "it stays until the next wait_io()"
watcher.wait_io(0)
try:
    views[-1][0]
except ValueError:
    pass
else:
    raise AssertionError("not released by a call that returned nothing")
"""


def test_stale_views_are_released(backend: Name) -> None:
    assert run(backend, USE_TOO_LATE) == "good"


def test_what_the_caller_still_exports_is_left_alone(backend: Name) -> None:
    body = """
watcher.read(conn)
peer.send(b"kept")
(result,) = fetch(watcher)
exported = pickle.PickleBuffer(result.buffer)
watcher.wait_io(0)
watcher.wait_io(0)
assert bytes(result.buffer) == b"kept"
"""
    assert run(backend, body) == "good"


def test_other_buffers_are_not_touched(backend: Name) -> None:
    """The caller's own, what a write was given, and views that a caller owns for good."""
    body = """
own = memoryview(bytearray(10))
watcher.read(conn, own)
out = memoryview(b"data to be written")
watcher.write(conn, out)
peer.send(b"own")
finished = []
while len(finished) < 2:
    finished += fetch(watcher)
watcher.wait_io(0)
assert bytes(own[:3]) == b"own" and bytes(out) == b"data to be written"
watcher.read(conn)
peer.send(b"echoed")
(result,) = fetch(watcher)
watcher.write(conn, result.buffer, context="echo")
(echo,) = fetch(watcher)
assert peer.recv(100) == b"data to be writtenechoed"
watcher.wait_io(0)
"""
    assert run(backend, body) == "good"


@pytest.mark.skipif(sys.flags.dev_mode, reason="these tests run in development mode themselves")
def test_without_it_nothing_is_released(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """It costs time, and is not meant for production."""
    conn, peer = pairs.tcp()
    read = watcher.read(conn)
    peer.send(b"x")
    watcher.finish(read)
    assert watcher.wait(0) == []
    assert read.result is not None
    assert bytes(read.result.buffer) == b"x"
