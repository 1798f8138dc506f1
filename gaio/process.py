"""What becomes of the watchers of a process when the interpreter exits, and in a child after fork(2).

What a child does with one is in abandon() of gaio/closing.py.
"""

from __future__ import annotations

import atexit
import os
import weakref
from functools import partial

from gaio.leader import FORKING

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from collections.abc import Iterator

    from gaio.leader import Leader

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


def _close_all() -> None:
    for leader in _all():
        if not leader.closed:
            leader.ask_to_close()
            if not leader.follows:
                leader.follow()
        leader.join()


def _abandon_all() -> None:
    for leader in _all():
        leader.abandon()
    FORKING.clear()
