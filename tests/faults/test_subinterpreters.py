"""Subinterpreters: nothing of gaio is global to the process, so each interpreter has its own watchers."""

from __future__ import annotations

import sys

import pytest

from tests import child
from tests.backends import Name
from tests.environment import ROOT

ECHO = f"""
import os, socket, sys
sys.path.insert(0, {str(ROOT)!r})
import gaio
watcher = gaio.Watcher(backend={{backend!r}})
conn, peer = socket.socketpair()
watcher.read(conn)
peer.send(b"in here")
(result,) = watcher.wait_io(60)
watcher.write(conn, result.buffer)
watcher.wait_io(60)
assert peer.recv(100) == b"in here"
watcher.free(conn)
watcher.close()
peer.close()
"""

# Three names for one thing: a private module until 3.12, another one from 3.13 on.
RUN_IN_SUBINTERPRETER = """
try:
    import _interpreters as interpreters
    def create():
        return interpreters.create("legacy")
except ImportError:
    import _xxsubinterpreters as interpreters
    def create():
        return interpreters.create(isolated=False)

def run(code):
    identifier = create()
    failed = interpreters.run_string(identifier, code)
    assert failed is None, failed.errdisplay
    interpreters.destroy(identifier)
"""


@pytest.mark.scenario(23)
def test_an_echo_in_a_subinterpreter(backend: Name) -> None:
    if backend == "kqueue" and sys.platform == "linux":
        pytest.skip("the simulated kernel lives in the main interpreter")
    echo = ECHO.format(backend=backend)
    code = f"{RUN_IN_SUBINTERPRETER}\nfor _ in range(3):\n    run({echo!r})\n{echo}\nprint('good')"
    assert child.output_of(code) == "good"


THREADS_REFUSED = """
import gaio, gc, os
import gaio.platform._{backend}, select, socket  # what is imported when it is needed, and what that keeps open
before = sorted(os.listdir("/proc/self/fd"))
try:
    gaio.Watcher(backend={backend!r})
except RuntimeError as error:
    assert "thread" in str(error), error
gc.collect()
assert sorted(os.listdir("/proc/self/fd")) == before
"""


@pytest.mark.scenario(23)
def test_an_interpreter_that_forbids_threads(backend: Name) -> None:
    """An isolated one allows no daemon threads, which a watcher needs: it says so, and keeps nothing."""
    if sys.version_info < (3, 13):
        pytest.skip("isolated interpreters cannot import ctypes before Python 3.13")
    if backend == "kqueue" and sys.platform == "linux":
        pytest.skip("the simulated kernel lives in the main interpreter")
    isolated = RUN_IN_SUBINTERPRETER.replace('"legacy"', '"isolated"')
    refused = THREADS_REFUSED.format(backend=backend)
    assert child.output_of(f"{isolated}\nrun({refused!r})\nprint('good')") == "good"


@pytest.mark.scenario(3)
def test_no_thread_can_be_started(backend: Name) -> None:
    """The watcher cannot be made; it leaves neither descriptors nor memory of the kernel behind."""
    code = """
    import os, threading
    import gaio
    from tests import leaks
    gaio.Watcher(backend={backend!r}).close()  # what is imported when it is needed is imported by now
    before = leaks.in_use()
    threading.stack_size(1 << 46)  # more than there is
    for _ in range(5):
        try:
            gaio.Watcher(backend={backend!r})
        except RuntimeError as error:
            assert "thread" in str(error), error
        else:
            raise AssertionError("the thread was started")
    threading.stack_size(0)
    assert leaks.in_use().since(before) == [], leaks.in_use().since(before)
    with gaio.Watcher(backend={backend!r}):
        pass
    print("good")
    """
    assert child.output_of(code.format(backend=backend)) == "good"
