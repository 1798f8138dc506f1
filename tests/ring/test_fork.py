"""After fork(2) the ring is the parent's: the child has neither its descriptor nor its memory, so it cannot reap."""

from __future__ import annotations

import pytest

from tests import child
from tests.backends import Name

pytestmark = pytest.mark.scenario(12, on="io_uring")

PROGRAM = """
import os, socket
import gaio

def kept():
    '''What this process has of any ring.'''
    descriptors = [os.readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")
                   if os.path.islink(f"/proc/self/fd/{number}")]
    with open("/proc/self/maps") as maps:
        return [name for name in (*descriptors, *maps) if "io_uring" in name]

watcher = gaio.Watcher(backend="io_uring")
ends = [socket.socketpair() for _ in range(10)]
for conn, _ in ends:
    watcher.read(conn)
assert watcher.wait_io(0) == []
assert len(kept()) >= 2, kept()
for _, peer in ends:
    peer.send(b"x")  # completions wait in the ring when the process forks
pid = os.fork()
if pid == 0:
    left = kept()
    watcher.close()
    os._exit(len(left))
assert os.waitpid(pid, 0)[1] == 0, "the child has a part of the ring"
finished = []
while len(finished) < 10:
    finished += watcher.wait_io(60)
assert all(bytes(result.buffer) == b"x" for result in finished)
watcher.close()
assert kept() == []
for _, peer in ends:
    peer.close()
print("good")
"""


def test_the_child_has_nothing_of_the_ring(backend: Name) -> None:
    # Python 3.12 and newer warn of fork() in a process with threads, which is just what this is about.
    assert child.output_of(PROGRAM, "-W", "ignore::DeprecationWarning") == "good"
