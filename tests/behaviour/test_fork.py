"""fork(): in the child every watcher is closed; the parent's goes on as if nothing had happened."""

from __future__ import annotations

import pytest

from tests import backends, child
from tests.backends import Name

# Python 3.12 and newer warn of fork() in a process with threads, which is just what this is about.
MAY_FORK = ("-W", "ignore::DeprecationWarning")

PROGRAM = """
import os, socket, sys
import gaio

def check(condition, what):
    if not condition:
        print("not so:", what, file=sys.stderr, flush=True)
        os._exit(1)

watcher = gaio.Watcher(backend={backend!r})
conn, peer = socket.socketpair()
waiting, waiting_peer = socket.socketpair()
watcher.write(conn, b"before")
check([result.size for result in watcher.wait_io(60)] == [6], "the write before the fork is done")
watcher.read(waiting, context="waiting")
check(watcher.wait_io(0) == [], "the read waits in the kernel")

pid = os.fork()
if pid == 0:
    check(watcher.closed, "the watcher is closed in the child")
    for call, *arguments in ((watcher.wait_io, 0), (watcher.read, waiting), (watcher.write, conn, b"child")):
        try:
            call(*arguments)
        except gaio.WatcherClosedError:
            pass
        else:
            check(False, "the child's calls are refused")
    watcher.close()
    {in_child}
    {leave}

_, status = os.waitpid(pid, 0)
check(status == 0, "the child ended well")
check(not watcher.closed, "the watcher is open in the parent")
waiting_peer.sendall(b"for the parent")
(result,) = watcher.wait_io(60)
check(result.context == "waiting" and bytes(result.buffer) == b"for the parent", "the parent's read goes on")
watcher.write(conn, b" after")
check([result.size for result in watcher.wait_io(60)] == [6], "the parent's write goes on")
check(peer.recv(100) == b"before after", "the peer sees the parent's bytes alone")
watcher.free(conn)
watcher.close()
check(peer.recv(1) == b"" and waiting_peer.recv(1) == b"", "no copy of a connection stays open")
peer.close()
waiting_peer.close()
print("good")
"""

A_WATCHER_OF_ITS_OWN = """
    with gaio.Watcher(backend={backend!r}) as own:
        here, there = socket.socketpair()
        own.write(here, b"own")
        check([result.size for result in own.wait_io(60)] == [3], "the child may have a watcher of its own")
        check(there.recv(3) == b"own", "and it works")
        there.close()
"""


@pytest.mark.parametrize("leave", ["os._exit(0)", "sys.exit(0)"])
@pytest.mark.parametrize("in_child", ["", A_WATCHER_OF_ITS_OWN], ids=["idle child", "child with a watcher"])
@pytest.mark.scenario(12)
def test_fork(backend: Name, in_child: str, leave: str) -> None:
    if leave == "sys.exit(0)":
        # The interpreter of the child ends in the ordinary way, with the sockets it inherited still open.
        leave = "peer.close(); waiting_peer.close(); sys.exit(0)"
    code = PROGRAM.format(backend=backend, in_child=in_child.strip().format(backend=backend), leave=leave)
    assert child.output_of(code, *MAY_FORK) == "good"


@pytest.mark.scenario(12)
def test_fork_while_another_thread_waits(backend: Name) -> None:
    code = """
        import os, socket, threading
        import gaio

        watcher = gaio.Watcher(backend={backend!r})
        conn, peer = socket.socketpair()
        watcher.read(conn)
        batches = []
        consumer = threading.Thread(target=lambda: batches.append(watcher.wait_io(60)))
        consumer.start()
        for _ in range(20):
            pid = os.fork()
            if pid == 0:
                os._exit(0 if watcher.closed else 1)
            assert os.waitpid(pid, 0)[1] == 0
        peer.sendall(b"x")
        consumer.join()
        assert [bytes(result.buffer) for batch in batches for result in batch] == [b"x"]
        watcher.close()
        peer.close()
        print("good")
    """
    assert child.output_of(code.format(backend=backend), *MAY_FORK) == "good"


@pytest.mark.scenario(12)
def test_fork_in_a_signal_handler(backend: Name) -> None:
    """In the middle of wait_io(): in the child that call ends with WatcherClosedError, and in the parent it goes on."""
    code = """
        import os, signal, socket
        import gaio

        watcher = gaio.Watcher(backend={backend!r})
        conn, peer = socket.socketpair()
        watcher.read(conn)
        forked = []
        signal.signal(signal.SIGALRM, lambda *_: forked.append(os.fork()) or peer.sendall(b"x"))
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        try:
            (result,) = watcher.wait_io(60)
        except gaio.WatcherClosedError:
            os._exit(0 if forked == [0] else 1)
        assert bytes(result.buffer)[:1] == b"x"
        assert os.waitpid(*forked, 0)[1] == 0
        watcher.close()
        peer.close()
        print("good")
    """
    assert child.output_of(code.format(backend=backend), *MAY_FORK) == "good"


# The simulated kernel has descriptors of its own, which a real kqueue(2) does not leave to a child.
@pytest.mark.parametrize("backend", backends.on_a_real_kernel(), indirect=True)
def test_no_descriptor_stays_open_in_the_child(backend: Name) -> None:
    """Though the frame of the watcher thread, which does not run there, holds what it had in hand."""
    code = """
        import os, socket
        import gaio
        from tests import leaks
        from tests.waiting import wait_until

        before = leaks.in_use().descriptors
        watcher = gaio.Watcher(backend={backend!r})
        conn, peer = socket.socketpair()
        watcher.read(conn)
        wait_until(lambda: watcher._leader.needs_wakeup, "the watcher thread to wait in the kernel")
        pid = os.fork()
        if pid == 0:
            peer.close()
            os._exit(0 if leaks.in_use().descriptors == before else 1)
        assert os.waitpid(pid, 0)[1] == 0
        watcher.close()
        peer.close()
        print("good")
    """
    assert child.output_of(code.format(backend=backend), *MAY_FORK) == "good"


VIEW_PROGRAM = """
import os, socket
import gaio

watcher = gaio.Watcher(backend={backend!r})
conn, peer = socket.socketpair()
peer.sendall(b"first")
watcher.read(conn)
(result,) = watcher.wait_io(60)
view = result.buffer
overwritten, tell = os.pipe()
pid = os.fork()
if pid == 0:
    os.read(overwritten, 1)
    os._exit(0 if bytes(view) == b"first" else 1)
block = bytes(32768)
for _ in range(200):  # more than a megabyte: whatever memory there is has had its turn
    peer.sendall(block)
    left = len(block)
    while left:
        watcher.read(conn)
        left -= sum(result.size for result in watcher.wait_io(60))
os.write(tell, b"!")
assert os.waitpid(pid, 0)[1] == 0, "the child sees bytes that came for its parent"
watcher.free(conn)
watcher.close()
peer.close()
print("good")
"""


def test_a_view_that_the_child_inherits_shows_what_it_did(backend: Name) -> None:
    assert child.output_of(VIEW_PROGRAM.format(backend=backend), *MAY_FORK) == "good"


WHILE_THE_THREAD_WAITS = """
import os, socket
import gaio

watcher = gaio.Watcher(backend={backend!r})
conn, peer = socket.socketpair()
watcher.read(conn)
while not watcher._leader.needs_wakeup:
    os.sched_yield()
pid = os.fork()
if pid == 0:
    try:
        watcher.wait_io(0)
    except gaio.WatcherClosedError:
        os._exit(7)
    os._exit(1)
_, status = os.waitpid(pid, 0)
watcher.close()
peer.close()
print(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.scenario(12)
def test_the_child_is_told_that_the_watcher_is_closed_whatever_its_thread_did(backend: Name) -> None:
    """It waited in the kernel, in the middle of a turn."""
    assert child.output_of(WHILE_THE_THREAD_WAITS.format(backend=backend), *MAY_FORK) == "7"


# What an application may ask of the watcher in the child, in a handler that runs before gaio's.
ASKED_FIRST = {
    "close": "watcher.close()",
    "closed": "check(watcher.closed, 'it is closed')",
    "wait_io": "refused(watcher.wait_io)",
    "fileno": "refused(watcher.fileno)",
    "detach": "refused(watcher.detach, conn)",
    "set_affinity": "refused(watcher.set_affinity, 0)",
    "read of a new socket": "refused(watcher.read, fresh)",
    "connect": "new = socket.socket(); refused(watcher.connect, new, ('127.0.0.1', 1)); new.close()",
    "free": "watcher.free(conn)",
    "drop": "globals().__delitem__('conn')",
    "drop the watcher": "globals().__delitem__('watcher')",
}

IN_A_HANDLER = """
import gc, os, socket, sys, threading

def check(condition, what):
    if not condition:
        print("not so:", what, file=sys.stderr, flush=True)
        os._exit(1)

def refused(call, *arguments):
    try:
        call(*arguments)
    except gaio.WatcherClosedError:
        return
    check(False, f"{{call.__name__}} is refused")

def ask():
    {ask}
    gc.collect()
    print("asked", flush=True)

os.register_at_fork(after_in_child=ask)
import gaio
watcher = gaio.Watcher(backend={backend!r})
conn, peer = socket.socketpair()
fresh, fresh_peer = socket.socketpair()
watcher.read(conn)
check(watcher.wait_io(0) == [], "the read waits in the kernel")
results = []

def wait():
    results.extend(watcher.wait_io(60))

if {waiting}:
    thread = threading.Thread(target=wait)
    thread.start()
    while not watcher._leader.needs_wakeup:
        pass
pid = os.fork()
if pid == 0:
    os._exit(0)
_, status = os.waitpid(pid, 0)
check(status == 0, f"the child ended well, not with {{status}}")
peer.sendall(b"hello")
if {waiting}:
    thread.join()
else:
    wait()
check([bytes(result.buffer) for result in results] == [b"hello"], "the parent's read goes on")
watcher.free(conn)
watcher.close()
check(peer.recv(1) == b"", "no copy of the connection stays open")
for end in (fresh, fresh_peer, peer):
    end.close()
print("good")
"""


@pytest.mark.parametrize("waiting", [False, True], ids=["nobody waits", "another thread waits"])
@pytest.mark.parametrize("ask", ASKED_FIRST.values(), ids=ASKED_FIRST)
@pytest.mark.scenario(12)
def test_a_handler_of_the_application_that_runs_first(backend: Name, ask: str, waiting: bool) -> None:
    code = IN_A_HANDLER.format(backend=backend, ask=ask, waiting=waiting)
    assert child.output_of(code, *MAY_FORK).split() == ["asked", "good"]


FORKED_BY_C = """
import ctypes, os, socket, sys
import gaio
watcher = gaio.Watcher(backend={backend!r})
conn, peer = socket.socketpair()
watcher.read(conn)
assert watcher.wait_io(0) == []
pid = ctypes.PyDLL(None).fork()
if pid == 0:
    os._exit(0 if watcher.closed else 1)
assert os.waitpid(pid, 0)[1] == 0
peer.sendall(b"hello")
(result,) = watcher.wait_io(60)
assert bytes(result.buffer) == b"hello"
watcher.close()
peer.close()
print("good")
"""


def test_a_fork_that_python_does_not_know_of(backend: Name) -> None:
    """As of servers that embed Python: no handler of os.register_at_fork() runs."""
    assert child.output_of(FORKED_BY_C.format(backend=backend)) == "good"
