"""Signals that the program blocks, to fetch them by sigwait() or a signalfd: no thread of gaio's takes them."""

from __future__ import annotations

import sys

import pytest

from tests import child
from tests.backends import Name

PROGRAM = """
import os, signal, socket, threading
import gaio

signals = {{signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM, signal.SIGCHLD}}
{before}
watcher = gaio.Watcher(backend={backend!r})
{after}
conn, peer = socket.socketpair()
watcher.write(conn, b"x")
assert peer.recv(1) == b"x", "the watcher thread is at work"
for number in signals:
    os.kill(os.getpid(), number)
    assert signal.sigtimedwait(signals, 30).si_signo == number
watcher.close()
peer.close()
print("good")
"""
BLOCK = "signal.pthread_sigmask(signal.SIG_BLOCK, signals)"


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_signal_that_is_waited_for(backend: Name, when: str) -> None:
    code = PROGRAM.format(backend=backend, **{"before": "", "after": "", when: BLOCK})
    assert child.output_of(code) == "good"


FAULT = """
import faulthandler, os, signal, sys, threading
import gaio


faulthandler.enable()
watcher = gaio.Watcher(backend={backend!r})
signal.pthread_kill(watcher._leader.thread.ident, signal.SIGSEGV)
watcher.close()
"""


def test_a_fault_in_that_thread_is_still_reported(backend: Name) -> None:
    """faulthandler tells where, as of any other thread."""
    done = child.run(FAULT.format(backend=backend))
    assert done.returncode < 0
    assert "Segmentation fault" in done.stderr


SYNCHRONOUS = """
import signal
import gaio

path = "/proc/self/task/{{}}/status"
with gaio.Watcher(backend={backend!r}) as watcher, open(path.format(watcher._leader.thread.native_id)) as status:
    mask = int(next(line for line in status if line.startswith("SigBlk:")).split()[1], 16)
for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS):
    assert not mask >> (number - 1) & 1, number
assert mask >> (signal.SIGUSR1 - 1) & 1
print("good")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells of the mask of a thread")
def test_what_a_thread_raises_itself_is_not_blocked(backend: Name) -> None:
    """As SIGSYS, by which a seccomp filter may tell of a call that it refuses: blocked, it would kill the process."""
    assert child.output_of(SYNCHRONOUS.format(backend=backend)) == "good"
