"""What becomes of watchers that are collected, or still there when the interpreter exits, and in a child after fork(2).

What a child does with one is in abandon() of gaio/closing.py.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from functools import partial

from gaio.leader import FORKING

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from collections.abc import Iterator

    from gaio.leader import Leader

# For how long the collection of a watcher that was not closed may hold up the thread that drops it, in seconds.
PATIENCE = 1.0

# Any thread adds to it, and a leader that is collected leaves it, in a single set operation each; to go through it, it
# is copied in one, too. Not a WeakSet, whose operations are many: another thread could add to it in the middle.
_leaders: set[weakref.ref[Leader]] = set()


def register(leader: Leader) -> None:
    """See to it that this watcher ends with the interpreter, and that a child process leaves it alone: its kernel
    objects are the parent's.
    """
    if not hasattr(register, "done"):
        os.register_at_fork(
            before=partial(FORKING.append, True), after_in_parent=FORKING.clear, after_in_child=_abandon_all
        )
        atexit.register(_close_all)
        # Once, and not when gaio is imported. Two threads may both do it: to do these twice is to do them once.
        register.done = True  # type: ignore[attr-defined]  # functions take any attribute
    _leaders.add(weakref.ref(leader, _leaders.discard))


def _all() -> Iterator[Leader]:
    return filter(None, [reference() for reference in _leaders.copy()])


def finalize(leader: Leader) -> None:
    """The handle was collected: have the watcher thread close everything, and wait until it has.

    From then on the buffers are the caller's again. The collector may run where this thread holds a lock that the
    other one needs, say for its end: so this does not wait for that, nor for ever.
    """
    _ask_to_close(leader)
    if leader.follows and leader.started and threading.get_ident() != leader.thread.ident:
        leader.shut_by_thread.acquire(timeout=PATIENCE)


def _ask_to_close(leader: Leader) -> None:
    """By a thread that is made for that, where the watcher has none. By this one where none can be started: for want of
    memory, or, from Python 3.12 on, when the interpreter exits.
    """
    if leader.closed:
        return
    leader.ask_to_close()
    if leader.follows:
        return
    thread = threading.Thread(target=leader.run, name="gaio-watcher", daemon=True)
    leader.follows = True
    try:
        thread.start()
    except RuntimeError:
        leader.follows = False
        leader.call(leader.lead_and_shut)
    else:
        leader.thread = thread
        leader.started = True


def _close_all() -> None:
    for leader in _all():
        _ask_to_close(leader)
        leader.join()


def _abandon_all() -> None:
    for leader in _all():
        leader.abandon()
    FORKING.clear()
