"""fork(2) in a signal handler, at every line of a call: the parent's watcher is untouched, and the child's is closed.

When the handler has returned, the call goes on in the child, which has nothing of the watcher: it may end in any way.
"""

from __future__ import annotations

import pytest

from tests import child
from tests.backends import Name
from tests.waiting import LIMIT

pytestmark = [pytest.mark.slow, pytest.mark.scenario(12)]

PROGRAM = """
import os, signal, socket, sys
import gaio

def prepared():
    watcher = gaio.Watcher(backend={backend!r})
    ends = [socket.socketpair() for _ in range(5)]
    for conn, peer in ends:
        watcher.read(conn)
        peer.send(b"first")
    left = 5
    while left:
        left -= len(watcher.wait_io(60))
    for conn, peer in ends[:2]:
        peer.send(b"second")
        watcher.write(conn, b"answer")
        watcher.read(conn)
    watcher.free(ends[2][0])
    ends.append(socket.socketpair())  # this one is not delegated yet
    return watcher, ends

calls = {{
    "wait_io": lambda watcher, ends: watcher.wait_io(0.1),
    "detach": lambda watcher, ends: watcher.detach(ends[4][0]).close(),
    "fileno": lambda watcher, ends: watcher.fileno(),
    "close": lambda watcher, ends: watcher.close(),
    "write": lambda watcher, ends: watcher.write(ends[5][0], b"answer"),
}}
call = calls[{call!r}]
forked_at = set()

def forked_somewhere_new():
    watcher, ends = prepared()
    pids = []

    def trace(frame, event, _):
        code, number = frame.f_code, frame.f_lineno
        if "/gaio/" not in code.co_filename:
            return None
        if event == "line" and (code, number) not in forked_at:
            sys.settrace(None)
            forked_at.add((code, number))
            os.kill(os.getpid(), signal.SIGUSR1)
            return None
        return trace

    signal.signal(signal.SIGUSR1, lambda *_: pids.append(os.fork()))
    batch = None
    sys.settrace(trace)
    try:
        batch = call(watcher, ends)
    except Exception:
        if pids != [0]:
            raise
    finally:
        sys.settrace(None)
    if pids == [0]:
        os._exit(0 if watcher.closed else 1)
    results = batch if isinstance(batch, list) else []
    while len(results) < 4:
        more = watcher.wait_io(60)
        assert more, results
        results += more
    done = {{(result.conn, result.operation): result for result in results}}
    if not watcher.closed:
        for conn, peer in ends[:2]:
            assert done[conn, gaio.READ].size == 6, results
            assert done[conn, gaio.WRITE].size == 6, results
            assert peer.recv(100) == b"answer"
    watcher.close()
    for conn, peer in ends:
        watcher.free(conn)
        assert peer.recv(100) in (b"", b"answer"), "nothing but the end comes"
        peer.close()
    for pid in pids:
        assert os.waitpid(pid, 0)[1] == 0, "the watcher is closed in the child"
    return bool(pids)

lines = 0
while forked_somewhere_new():
    lines += 1
print(lines)
"""


# How many lines each has at least.
LINES = {"wait_io": 80, "detach": 40, "fileno": 40, "close": 60, "write": 60}


@pytest.mark.parametrize(("call", "lines"), LINES.items())
def test_fork_at_every_line(backend: Name, call: str, lines: int) -> None:
    # Python 3.12 and newer warn of fork() in a process with threads, which is just what this is about.
    code = PROGRAM.format(backend=backend, call=call)
    # A process for each line: ten seconds, and many times that where a fork is dear.
    done = child.run_for(5 * LIMIT, code, "-W", "ignore::DeprecationWarning")
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) >= lines
