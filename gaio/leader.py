"""Leader and followers: which thread runs the engine, and when (Schmidt and others, POSA2).

    any thread                     the leader                                    the consumer
    submit --> inbox --> engine: queues, backend, outbox --> wait_io()

One thread leads at a time: the consumer inside wait_io(), else the watcher thread, which takes the lead when the
consumer stays away, and lets go of it when that one is back. Of requests this file knows the inbox, the outbox and a
list of the writes whose memory is lent.

States, and who may change them
    lead          the lock of the engine, and of what follows here without a rule of its own. It is an RLock, so that a
                  thread can tell, and give up, what it holds after an exception has hit it between any two bytecodes.
    inbox         any thread appends; the leader copies and then deletes. Protected by the list's own lock (the GIL,
                  or on a free-threaded build the lock of each list), which also orders `needs_wakeup`.
    needs_wakeup  the leader is about to block, or the watcher is closed: who submits must call wake(). The leader sets
                  it and looks into the inbox once more before it blocks; a submitter appends and then looks at it. Both
                  look-and-append go through the inbox's lock, so one of the two sees the other. A list, made anew
                  before each wait, and emptied by who has woken the leader: one who is held up just then empties that
                  list, and not the one of a later wait.
    wanted        the thread of the consumer that waits for the lead, else 0: the watcher thread lets go after the turn
                  under way.
    visits        calls of wait_io() that ended. The watcher thread takes the lead when it stands still.
    delivery      the batch that wait_io() is returning. Not None at the next call: it never got out, and goes again.
    closing       set once by close(); whoever leads then runs shut(). `closed` when that is done.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from ctypes import get_errno, set_errno
from time import monotonic

from gaio.closing import (
    CLOSED_BACKEND,
    Close,
    Detach,
    abandon,
    admit_the_late,
    close_backend,
    close_everything,
    withdraw,
)
from gaio.engine import Engine
from gaio.errors import WatcherClosedError
from gaio.writes import recycle_lent

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

    from gaio import platform
    from gaio.result import OpResult

# The watcher thread takes the lead when the consumer has been away for so long, in seconds. A longer grace delays the
# writes and deadlines of a consumer that computes; a shorter one makes the thread compete with a consumer that is
# merely busy.
GRACE = 0.010
# With results in hand, wait_io() takes so many turns more for the requests that stood behind them: a hundred writes
# queued on one connection are not a hundred batches, and a flood of them does not keep the consumer waiting.
MORE_TURNS = 16
# But no more when so many bytes have come by requests that repeat: each turn brings more of a flood, and beside it
# others wait for the end of the batch.
MOST_BYTES_A_BATCH = 2 << 20
# After so many ticks with the consumer inside wait_io() all the time, the thread sleeps until it comes out.
IDLE_TICKS = 100

# No wait of the consumer is longer, in seconds. A signal that comes between the interpreter's last look at signals and
# the system call does not interrupt that call, and its handler, so Ctrl-C, would run after the next result only; as in
# CPython's own select.select(). epoll_pwait(2) and io_uring_enter(2) could close that gap, with the signal mask of the
# thread changed around every wait; kevent(2) could not. signal.set_wakeup_fd() is the application's.
SIGNAL_LATENCY = 1.0

AWAKE: list[bool] = []  # see `needs_wakeup` above; stays empty
# Not empty while Python forks, in the child until gaio's handler of os.register_at_fork() has run: see look_around().
FORKING: list[bool] = []

# Modules of the package that stand on a watcher as its callers do.
_CALLERS = ("gaio.asyncio", "gaio.selector")

# signal(7): what a thread raises by what it does itself, seccomp(2)'s SECCOMP_RET_TRAP included. Blocked, these kill
# the process though it has a handler for them.
_SYNCHRONOUS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS}


class Leader:
    """Everything of a watcher but the handle that its user holds, so that the handle can be collected."""

    def __init__(self, open_backend: Callable[[Engine], platform.Backend], follows: bool = True) -> None:
        """See begin() for when `open_backend` is called. Unless the thread `follows`, it ends with that, and nothing is
        done but within the calls of the consumer.
        """
        self.inbox: list[Any] = []
        self.needs_wakeup: list[bool] = AWAKE
        # Writes from swap memory that is lent. Any thread appends, before it does so to the inbox.
        self.lent_writes: list[OpResult] = []
        self.wakeups = 0  # counted by whoever wakes, with no lock: two at the same moment may count as one
        self.wanted = 0
        self.closing = self.closed = False
        self.process = os.getpid()
        self.abandoned = False  # this is a child process, and the watcher its parent's
        self.nested = False  # another event loop waits for the backend's descriptor, see Watcher.fileno()
        self.listens = False  # that has been arranged to the end, and not interrupted
        self.alarm: float | None = None  # the next deadline, for the watcher thread when nested
        self.failure: Exception | None = None  # what a turn in the watcher thread raised, until wait_io() raises it

        self.lead = threading.RLock()
        self.delegation = threading.RLock()  # one delegation at a time; re-entrant for signal handlers that submit
        self.next_tick = _taken_lock()  # held; released to end a tick of the watcher thread early
        # The thread inside wait_io(), and those in the middle of something else: a signal handler or a finalizer that
        # runs in one of them may submit, but must not begin what waits for a lock that the thread itself holds.
        # Entered before the lock is taken and left after it is let go.
        self.consumer = 0
        self.inside: set[int] = set()
        self.joining: set[int] = set()  # those that wait for the watcher thread to end
        # Only for the leader, but for `visits`, and for what the engine says is shared.
        self.engine = self.make_engine()
        self.delivery: list[OpResult] | None = None
        self.visits = 0
        self.completions = self.batches = 0
        self.delivered = (0, 0)  # completions and batches before the one in `delivery`

        # The watcher thread.
        self.follows = follows
        self.open_backend = open_backend
        self.backend_name = ""
        # Held by the thread that opens the backend. Where begin() was interrupted, another may be there to close it.
        self.opening = threading.Lock()
        self.opened = _taken_lock()  # held; released when the watcher thread has opened the backend, or could not
        self.shut_by_thread = _taken_lock()  # held; released when that thread is about to end
        self.thread = threading.Thread(target=self.run, name="gaio-watcher", daemon=True)
        self.started = False

    def make_engine(self) -> Engine:
        return Engine(self.inbox, monotonic, self.delegation)

    def begin(self) -> None:
        """Start the watcher thread and wait until it has opened the backend; raises what kept it from that.

        It is done there because no signal handler runs there: Ctrl-C would strike between a system call that opens a
        descriptor and the store that keeps it. When it strikes here, close() or the finalizer tells the thread to end,
        which closes what it has opened.
        """
        self.thread.start()
        self.started = True
        self.opened.acquire()  # a lock and not an Event: that is Python code, which could be left locked for ever
        if not self.follows:
            self.join()
            self.started = False
            del self.thread  # to see it in a list of threads that have ended would puzzle whoever looks for leaks
        if self.failure is not None:
            try:
                raise self.failure
            finally:
                self.failure = None  # its traceback leads here: a cycle would keep what it holds open

    # --- from any thread ------------------------------------------------------------------------------------

    def look_around(self) -> None:
        """Before anything of the kernel is touched: whether this is a child process by now.

        Handlers of os.register_at_fork() run in the order of their registration, and so that of the application may run
        before gaio's. Some programs fork by C code, which runs none at all. wait_io() is called so often that it looks
        for the first case only: getpid(2) would be 4 % of an echo on one connection.
        """
        if os.getpid() != self.process:
            self.abandon()

    def wake(self) -> None:
        """After an append to the inbox that found `needs_wakeup` set."""
        self.look_around()
        needs_wakeup = self.needs_wakeup
        if self.closed:  # looked at later: the list that a closed watcher has must never be emptied
            return  # the caller sees to what it appended: withdraw()
        self.engine.backend.wake()
        needs_wakeup.clear()
        self.wakeups += 1

    def ask_to_close(self) -> None:
        """Have whoever leads, or will lead next, close everything."""
        self.look_around()
        if self.abandoned:
            return
        self.closing = True
        self.inbox.append(Close(None))
        self.engine.backend.wake()
        self.end_tick()

    def end_tick(self) -> None:
        try:
            self.next_tick.release()
        except RuntimeError:
            pass  # it ends already

    def join(self) -> None:
        """Wait for the watcher thread, which ends when the watcher is closed; it may be this one, or never have run.

        Not when start() was interrupted: it waits for the thread by an Event, which it may have left locked for ever.
        Nor in a signal handler that has interrupted this: before Python 3.13, Thread.join() takes a lock that is not
        re-entrant.
        """
        thread = threading.get_ident()
        if not self.started or thread == self.thread.ident or thread in self.joining:
            return
        try:
            self.joining.add(thread)
            self.thread.join()
        finally:
            self.joining.discard(thread)

    def is_inside(self) -> bool:
        """Whether this call comes from within another one, in the same thread."""
        thread = threading.get_ident()
        if thread != self.consumer and thread not in self.inside:
            return False
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and _is_ours(frame):  # the call in question
            frame = frame.f_back
        while frame is not None:
            if _is_ours(frame):
                return True
            frame = frame.f_back
        # No other call is under way: an exception struck again while relinquish() dealt with one.
        self.relinquish()
        return False

    def run_until_done(self, item: Detach) -> None:
        """Have the leader deal with that item of the inbox; when nobody leads, this thread does."""
        while not item.done and not self.closed:
            if self.lead.acquire(timeout=GRACE):
                if not self.closed:
                    self.engine.turn(0, self.pause)
                    if self.nested:
                        self.engine.backend.wake()  # what the turn took or left: the other loop must look after it
                self.lead.release()

    def call(self, step: Callable[[], object]) -> None:
        """Do what takes the lead, and let go of everything at its end, whatever that is."""
        thread = threading.get_ident()
        errno_before = get_errno()  # as in Watcher.wait_io()
        try:
            self.inside.add(thread)
            step()
            release_all(self.lead)
            self.inside.discard(thread)
        except BaseException:
            self.relinquish()
            raise
        finally:
            set_errno(errno_before)

    # --- the consumer ---------------------------------------------------------------------------------------

    def collect(self, timeout: float | None, thread: int) -> list[OpResult]:
        """Take the lead, work until there are results or `timeout` seconds have passed, and let go of it.

        The batch stays in `delivery` until wait_io() is about to return it.
        """
        engine = self.engine
        deadline = None if timeout is None else monotonic() + timeout
        self.consumer = thread
        if not self.lead.acquire(False):
            self.take_lead()
        if self.failure is not None:
            failure, self.failure = self.failure, None
            try:
                raise failure
            finally:
                del failure  # a cycle, as in begin()
        undelivered = self.delivery
        lent = len(self.lent_writes)
        recycled = not lent  # else that is for when these writes have begun
        if undelivered is None:
            if recycled:
                engine.backend.recycle()
            self.delivered = (self.completions, self.batches)
        else:
            self.completions, self.batches = self.delivered
            lent = 0
            if undelivered and not (engine.outbox and engine.outbox[0] is undelivered[0]):
                engine.outbox[:0] = undelivered
            # It stays in `delivery` until a batch that has it takes its place: interrupted before that, the next call
            # must not have its memory recycled either.
        if engine.outbox or lent:
            timeout = 0
        more = MORE_TURNS
        while not self.closed:
            if not self.closing:  # else the wake-up for it may have been taken by a turn of another thread
                latest = SIGNAL_LATENCY if timeout is None or timeout > SIGNAL_LATENCY else timeout
                engine.turn(latest, self.pause)
            if self.closing:
                self.shut()
            if engine.outbox:
                if not engine.ready or not more or engine.arrived >= MOST_BYTES_A_BATCH:
                    break
                # What stands behind a request that has finished may be ready to finish, too.
                more -= 1
                timeout = 0
                continue
            if engine.backend.fell_short:
                break  # with nothing: whoever sent has to see to the rest, and must not wait for anybody else
            if lent:
                recycled = recycle_lent(engine, self.lent_writes, lent)
                lent = 0
                timeout = None
            if recycled:
                engine.backend.recycle_unused()
            if deadline is not None:
                timeout = deadline - monotonic()
                if timeout <= 0:
                    break
        if lent:
            recycle_lent(engine, self.lent_writes, lent)
        if self.closed:
            self.shut()
        batch = engine.outbox
        if self.closed and not batch:
            raise WatcherClosedError("the watcher is closed and all its results have been delivered")
        self.delivery = batch
        engine.outbox = []
        engine.backend.lend()
        if batch:
            self.completions += len(batch)
            self.batches += 1
        self.visits += 1
        if self.nested:
            self.before_nesting()
        self.lead.release()
        return batch

    def pause(self, timeout: float | None) -> None:
        """Wait for the backend, unless something was submitted in the meantime."""
        self.needs_wakeup = [True]
        # copy() takes the inbox's lock, as an append does: whoever appended before it is seen here, and whoever appends
        # after it sees `needs_wakeup`. What the consumer appends for want of the lead may have been admitted before,
        # with nothing to show for it but `wanted`, which it sets first.
        self.engine.backend.wait(0 if self.inbox.copy() or self.wanted else timeout)
        self.needs_wakeup = AWAKE

    def take_lead(self) -> None:
        """Ask the watcher thread for the lead and wait for it.

        Whatever the timeout of wait_io(): that is for I/O, and the thread lets go after the turn under way.
        """
        self.wanted = threading.get_ident()
        self.inbox.append(Close(None))
        if self.needs_wakeup:
            self.wake()
        while not self.lead.acquire(timeout=SIGNAL_LATENCY):
            pass  # it is another lock, should a handler have forked: this is the child then
        self.wanted = 0

    def relinquish(self) -> None:
        """An exception comes out of a call: let go of the locks, if this thread has them."""
        thread = threading.get_ident()
        if self.wanted == thread:
            self.wanted = 0
        self.visits += 1
        try:
            if self.lead.acquire(False) and self.engine.interrupted:
                self.engine.backend.recover()  # errno is this thread's own, unless it was the watcher thread's turn
        finally:
            release_all(self.delegation)
            release_all(self.lead)
            if self.nested:
                # What made the descriptor readable may be taken, and the alarm set but not told of: begin anew.
                self.engine.backend.wake()
                self.end_tick()
            self.inside.discard(thread)
            if self.consumer == thread:
                self.consumer = 0

    # --- nested in another event loop -----------------------------------------------------------------------

    def nest(self) -> None:
        """From now on another event loop is the consumer, and waits on the backend's descriptor."""
        if self.listens:
            return
        if self.is_inside():
            raise RuntimeError("fileno() was called from within another call, by a signal handler or a finalizer")
        self.nested = True
        self.end_tick()
        self.call(self.listen)

    def listen(self) -> None:
        if not self.lead.acquire(False):
            self.take_lead()
        if self.closed:
            raise WatcherClosedError("the watcher was closed meanwhile")
        self.engine.turn(0, self.pause)  # a ring listens for wake-ups only once it has been entered
        self.before_nesting()
        self.engine.backend.wake()
        self.listens = True

    def before_nesting(self) -> None:
        """See to it that the descriptor turns readable when there is something to do, see Watcher.fileno()."""
        engine = self.engine
        self.needs_wakeup = [True]
        backend = engine.backend
        if engine.ready or backend.arrivals or backend.completed or backend.unfinished() or self.inbox.copy():
            backend.wake()
        engine.interrupted = True  # by heappop(), which runs bytecode: see Deadlines.replace()
        when = engine.deadlines.earliest()
        engine.interrupted = False
        if when is not None and (self.alarm is None or when < self.alarm):
            self.alarm = when
            self.end_tick()

    # --- the watcher thread ---------------------------------------------------------------------------------

    def run(self) -> None:
        # What the program blocks, to fetch it by sigwait(3) or signalfd(2), must not find this thread open. Until here
        # it has the mask of the thread that makes the watcher, which waits in begin() for what follows.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _SYNCHRONOUS)
        thread = threading.get_ident()
        self.inside.add(thread)
        try:
            with self.opening:
                is_open = bool(self.backend_name) or (self.failure is None and self.open())
            if is_open and self.follows:
                self.lead_when_needed()
        finally:
            self.inside.discard(thread)  # the number may be another thread's next
            if self.follows and self.shut_by_thread.locked():
                self.shut_by_thread.release()

    def open(self) -> bool:
        try:
            backend = self.open_backend(self.engine)
            self.backend_name = backend.name
            self.engine.backend = backend
        except Exception as error:  # noqa: BLE001  # handed on, not swallowed
            self.failure = error  # for begin()
            return False
        finally:
            self.opened.release()
        return True

    def lead_when_needed(self) -> None:
        """Do the work whenever the consumer does not; return when the watcher is closed."""
        while self.wait_for_lead():
            try:
                while not (self.wanted or self.closing or self.nested):
                    self.engine.turn(None, self.pause)
                if self.closing:
                    self.shut()
            except Exception as error:  # noqa: BLE001  # handed on, not swallowed
                self.failure = error  # for the consumer, whatever it is
            finally:
                self.lead.release()
            if self.closing:
                return

    def wait_for_lead(self) -> bool:
        """Return as the leader when the consumer stays away; False when the watcher is closed."""
        idle = 0
        while not self.closing:
            if self.nested:
                self.watch_the_clock()
                continue
            seen = self.visits
            self.next_tick.acquire(timeout=GRACE)
            if self.visits != seen or self.failure is not None:
                idle = 0
            elif self.lead.acquire(False):
                return True
            elif idle < IDLE_TICKS:
                idle += 1
            else:
                self.lead.acquire()
                self.lead.release()
                idle = 0
        self.lead.acquire()
        if self.engine.backend is not CLOSED_BACKEND or self.engine.retired is not CLOSED_BACKEND:
            return True  # also where close() has been interrupted, and nobody calls it again
        self.lead.release()
        return False

    def watch_the_clock(self) -> None:
        """What is left to the watcher thread when nested: wake the other loop when a deadline passes."""
        alarm = self.alarm
        remaining = -1 if alarm is None else min(max(0.0, alarm - monotonic()), threading.TIMEOUT_MAX)
        if self.next_tick.acquire(timeout=remaining):
            return  # another deadline is the first now, or the watcher is closing
        if self.alarm == alarm:
            self.alarm = None
        self.engine.backend.wake()

    # --- the end --------------------------------------------------------------------------------------------

    def lead_and_shut(self) -> None:
        while not self.lead.acquire(timeout=SIGNAL_LATENCY):
            pass  # as in take_lead()
        self.shut()

    def shut(self) -> None:
        """Close everything, as the leader. Does nothing when that is done, and goes on where it was interrupted."""
        engine = self.engine
        if engine.backend is not CLOSED_BACKEND:
            if not self.closed:
                engine.turn(0, self.pause)
                close_everything(engine, self.pause)
                self.closed = True
            # Who submits from now on finds `needs_wakeup` and then `closed` set, and asks withdraw() whether it came
            # too late; who did before is in the inbox, and is answered with the error.
            self.needs_wakeup = [True]
            admit_the_late(engine)
        close_backend(engine)
        self.end_tick()

    def withdraw(self, request: OpResult) -> bool:
        """Take back a request that was submitted to a closed watcher; False when it has got its result already."""
        is_inside = self.is_inside()
        try:
            with self.lead:
                if self.engine.interrupted and self.closed and not is_inside:
                    self.shut()  # an interruption may have left the request with its result, but in the inbox still
                return self.closed and withdraw(self.engine, request)
        except BaseException:
            if not is_inside:
                release_all(self.lead)
            raise

    def abandon(self) -> None:
        """In the child after fork(2): this watcher was the parent's. Close the child's copies, touch nothing shared.

        Once: the numbers of its descriptors may be those of others by the second time.
        """
        if self.abandoned:
            return
        self.abandoned = self.closing = self.closed = True
        self.needs_wakeup = [True]
        self.lead = threading.RLock()  # a thread of the parent may have the one before, and never lets go of it
        self.delegation = self.engine.new_queues = threading.RLock()
        if self.opened.locked():
            self.opened.release()  # for begin(): the thread that it waits for does not run here
        self.consumer = 0
        self.inside = set()
        self.started = False  # the thread does not run here, and nobody is to wait for it
        self.failure = self.delivery = None
        abandon(self.engine)


def _taken_lock() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


def release_all(lock: threading.RLock) -> None:
    """However often this thread has it. CPython 3.14 runs signal handlers between the __enter__() of a `with` and its
    block: an exception of theirs leaves a lock held that nobody else will release.
    """
    try:
        while True:
            lock.release()
    except RuntimeError:
        pass  # not, or no longer, this thread's


def _is_ours(frame: FrameType) -> bool:
    name = str(frame.f_globals.get("__name__", ""))
    return name.startswith("gaio.") and name not in _CALLERS
