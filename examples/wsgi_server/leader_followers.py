"""A pool of threads that do their own I/O: leader and followers (Schmidt and others, POSA2).

All threads are equal. One at a time leads: it is the consumer of a watcher, and makes jobs of what one wait_io()
returned. Then it lets go of the lead and works on those jobs, one after the other, as a program without threads would.
So a job that takes little costs no change of threads, where a thread for the I/O beside those for jobs costs two.

What if jobs wait, for a database or another server? A watchdog looks every `TICK` seconds whether somebody has led
meanwhile. If not, it wakes a thread, which takes the lead and the jobs that are left. Then, for `REMEMBERED` seconds,
who leads only leads, and wakes others for the jobs. So it is as well when each wait is too short for the watchdog, but
they are half of the time: with less than that, the changes of threads would cost more than is won. Go's runtime takes a
processor from a thread that is held up in a system call in the same way.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic, sleep, thread_time
from typing import Generic, TypeVar

import gaio

TICK = 0.005  # seconds for which a job may hold up others; the interpreter lets a thread compute as long
REMEMBERED = 1.0  # seconds for which jobs count as such that wait
AT_ONCE = 16  # jobs that are done before there is a look at what else has come
IDLE_TICKS = 200  # after so many without a job the watchdog sleeps

Job = TypeVar("Job")


class Threads(Generic[Job]):
    """`count` of them may work at a time; there is one more, so that somebody can always lead.

    `lead(timeout)` calls wait_io(timeout) and puts what is to be done into `jobs`; nobody else is in it meanwhile. The
    views that wait_io() returned are void when it returns. `work(job)` is called by many threads. A WatcherClosedError
    out of either ends the thread.
    """

    def __init__(self, count: int, lead: Callable[[float | None], None], work: Callable[[Job], None]) -> None:
        self.jobs: deque[Job] = deque()
        self._lead, self._work = lead, work
        self._leading = threading.Lock()
        self._turns = 0  # how often somebody has led
        self._permits: list[None] = [None] * count  # to work
        self._idle: list[threading.Lock] = []  # one for each thread that sleeps: released to wake it
        self._hand_out_until = 0.0  # until then who leads leaves the jobs to others
        self._waits, self._waits_at = 0.0, 0.0  # seconds that jobs have waited, less half of those since
        self._watchdog_sleeps = False
        self._alarm = _taken_lock()  # released to wake it
        for step in (self._watch, *[self._run] * (count + 1)):
            threading.Thread(target=step, daemon=True).start()

    def let_others_lead(self) -> None:
        """To be called by work() before it waits for what somebody who leads has to do."""
        self._wake(1)

    def _run(self) -> None:
        gate = _taken_lock()
        done, hands_out = 0, False
        with contextlib.suppress(gaio.WatcherClosedError):
            while True:
                if not hands_out and done < AT_ONCE and self._work_on_one():
                    done += 1
                elif self._leading.acquire(False):
                    try:
                        self._lead(0 if done >= AT_ONCE and self.jobs else None)
                    finally:
                        self._turns += 1
                        self._leading.release()
                    if self._watchdog_sleeps:
                        with contextlib.suppress(RuntimeError):  # another thread has released it
                            self._alarm.release()
                    done, hands_out = 0, monotonic() < self._hand_out_until
                    if hands_out:
                        self._wake(len(self.jobs))
                else:
                    done, hands_out = 0, False
                    self._sleep(gate)

    def _work_on_one(self) -> bool:
        """Whether there was a job for this thread."""
        if not self.jobs:
            return False
        try:
            self._permits.pop()
        except IndexError:
            return False
        try:
            job = self.jobs.popleft()
        except IndexError:
            self._permits.append(None)
            return False
        if self.jobs and (begun := monotonic()) >= self._hand_out_until:
            used = thread_time()
            self._work(job)
            self._measure(begun, thread_time() - used)
        else:
            self._work(job)
        self._permits.append(None)
        return True

    def _measure(self, begun: float, used: float) -> None:
        """A job has kept others waiting since `begun`, and has computed for `used` seconds of that."""
        now = monotonic()
        self._waits = max(0.0, self._waits - (now - self._waits_at) / 2) + min(now - begun - used, TICK)
        self._waits_at = now
        if self._waits > 2 * TICK:
            self._waits = 0.0
            self._hand_out()

    def _hand_out(self) -> None:
        self._hand_out_until = monotonic() + REMEMBERED
        self._wake(len(self.jobs) + 1)

    def _wake(self, count: int) -> None:
        with contextlib.suppress(IndexError):
            for _ in range(count):
                self._idle.pop().release()

    def _sleep(self, gate: threading.Lock) -> None:
        self._idle.append(gate)
        # Who makes a job, or lets go of the lead, looks at `_idle` after this, or else it is seen here.
        if (self.jobs and self._permits) or not self._leading.locked():
            try:
                self._idle.remove(gate)
                return
            except ValueError:
                pass  # somebody is about to release it
        gate.acquire()

    def _watch(self) -> None:
        quiet = 0
        while True:
            seen = self._turns
            sleep(TICK)
            if self._turns != seen:
                quiet = 0
            elif not self._leading.locked():
                self._hand_out()
            elif quiet < IDLE_TICKS:
                quiet += 1
            else:
                self._watchdog_sleeps = True
                if self._turns == seen and self._leading.locked():
                    self._alarm.acquire()
                self._watchdog_sleeps = False
                quiet = 0


def _taken_lock() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock
