"""fork(2) in a signal handler, at every line of a call: the child does nothing more for its parent.

The call goes on in the child when the handler has returned, with whatever it had in hand. The numbers of the watcher's
descriptors are free there, and what the handler opens gets them.
"""

from __future__ import annotations

import pytest

from tests import child
from tests.backends import Name
from tests.waiting import LIMIT

pytestmark = [pytest.mark.slow, pytest.mark.scenario(12)]

PROGRAM = """
import linecache, os, signal, socket, sys
import gaio

def prepared(backend):
    watcher = gaio.Watcher(backend=backend)
    ends = [socket.socketpair() for _ in range(6)]
    for conn, peer in ends[:5]:
        watcher.write(conn, b"a")
        watcher.read(conn)
        peer.send(b"zz")
    left = 10
    while left:
        left -= len(watcher.wait_io(60))
    for conn, _ in ends[:2]:
        watcher.write(conn, b"for the peer of the parent")
        watcher.read(conn)
    watcher.free(ends[2][0])
    watcher.shutdown(ends[3][0])
    return watcher, ends

calls = {{
    "wait_io": lambda watcher, ends: watcher.wait_io(0.1),
    "read": lambda watcher, ends: watcher.read(ends[5][0]),
    "detach": lambda watcher, ends: watcher.detach(ends[4][0]).close(),
    "fileno": lambda watcher, ends: watcher.fileno(),
    "close": lambda watcher, ends: watcher.close(),
}}
call = calls[{call!r}]
forked_at = set()

def forked_somewhere_new():
    watcher, ends = prepared({backend!r})
    place = pid = None
    own = []

    def handler(*_):
        nonlocal pid
        pid = os.fork()
        if pid == 0:
            own.extend(end for _ in range(12) for end in socket.socketpair())

    def trace(frame, event, _):
        nonlocal place
        code, number = frame.f_code, frame.f_lineno
        if "/gaio/" not in code.co_filename:
            return None
        # Right before these no handler runs: what is returned is the caller's already.
        hand_over = linecache.getline(code.co_filename, number).strip() in {handing_over}
        if event == "line" and (code, number) not in forked_at and not hand_over:
            sys.settrace(None)
            forked_at.add((code, number))
            place = f"{{code.co_name}}(), line {{number}}"
            os.kill(os.getpid(), signal.SIGUSR1)
            return None
        return trace

    signal.signal(signal.SIGUSR1, handler)
    outcome = None
    sys.settrace(trace)
    try:
        call(watcher, ends)
    except Exception as error:
        outcome = error
    finally:
        sys.settrace(None)
    if pid == 0:
        complaints = []
        if type(outcome) not in {outcomes}:
            complaints.append(f"the call ended with {{outcome!r}}")
        for sock in own:
            try:
                sock.setblocking(False)
                complaints.append(f"{{sock.recv(100)}} came to a socket of the child")
            except BlockingIOError:
                pass
            except OSError as error:
                complaints.append(f"a socket of the child is closed: {{error}}")
        if complaints:
            print(place, *complaints, sep="; ", file=sys.stderr, flush=True)
        os._exit(1 if complaints else 0)
    bad = pid is not None and os.waitpid(pid, 0)[1] != 0
    watcher.close()
    for conn, peer in ends:
        peer.close()
        watcher.free(conn)
    return None if pid is None else not bad

good = []
while (outcome := forked_somewhere_new()) is not None:
    good.append(outcome)
assert len(good) >= {lines}, good
print(good.count(False))
"""


HANDING_OVER = ("leader.delivery = None", "leader.consumer = 0", "return batch", "return sock")
REFUSED = "(gaio.WatcherClosedError,)"


# How many lines each has at least, and how it may end in the child: what close() is for is done there.
@pytest.mark.parametrize(
    ("call", "lines", "outcomes"),
    [
        ("wait_io", 80, REFUSED),
        ("read", 40, REFUSED),
        ("detach", 60, REFUSED),
        ("fileno", 40, "(gaio.WatcherClosedError, type(None))"),  # too late to be refused, it returns a number
        ("close", 60, "(type(None),)"),
    ],
    ids=["wait_io", "read", "detach", "fileno", "close"],
)
def test_fork_at_every_line(backend: Name, call: str, lines: int, outcomes: str) -> None:
    # Python 3.12 and newer warn of fork() in a process with threads, which is just what this is about.
    code = PROGRAM.format(backend=backend, call=call, lines=lines, outcomes=outcomes, handing_over=HANDING_OVER)
    # A process for each line: ten seconds, and many times that where a fork is dear.
    done = child.run_for(5 * LIMIT, code, "-W", "ignore::DeprecationWarning")
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
