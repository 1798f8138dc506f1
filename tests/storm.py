"""Bad weather for a whole test: signals that arrive all the time, or threads that change places all the time.

    signals     SIGALRM every few milliseconds, handled in the main thread (setitimer(2))
    switches    sys.setswitchinterval() so low that threads change places at every turn

The behaviour suite runs in calm weather and in each storm (tests/behaviour/conftest.py).
`python3 -m tests --storm KIND` runs every test in that one.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType

CALM = "calm"
KINDS = ("signals", "switches")
EVERY = 0.003  # seconds between two signals
SWITCH_INTERVAL = 1e-6

struck = 0  # signals that were handled


def handler(number: int, frame: FrameType | None) -> None:
    global struck
    struck += 1


@contextlib.contextmanager
def raging(weather: str) -> Iterator[None]:
    if weather == "signals":
        before = signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, EVERY, EVERY)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    elif weather == "switches":
        interval = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_INTERVAL)
        try:
            yield
        finally:
            sys.setswitchinterval(interval)
    else:
        yield
