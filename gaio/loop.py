"""The watch: what carries requests from the inbox through the backend to the outbox, and who does it.

    any thread            whoever has the watch                                     the consumer
    submit --> inbox --> admit: each to its connection's queue --> backend.start
                              next of that queue <-- finish <-- backend.wait --> outbox --> wait_io()

States, and who may change them
    watch       the lock of everything but `inbox`, what follows here with a rule of its own, and the few attributes
                that Loop.__init__() says are shared. One thread has it at a time: the consumer inside wait_io(),
                else the watcher thread. It is an RLock, so that a thread can tell, and give up, what it holds after
                an exception has hit it between any two bytecodes.
    inbox       any thread appends; the holder copies and then deletes. Protected by the list's own lock (the GIL,
                or on a free-threaded build the lock of each list), which also orders `sleeping`, see below.
    sleeping    the holder is about to block, or the loop is closed: who submits must call rouse().
                The holder sets it and looks into the inbox once more before it blocks; a submitter appends and
                then looks at it. Both look-and-append go through the inbox's lock, so one of the two sees the other.
                A list, filled anew before each wait, and emptied by who has woken the holder: one who is held up
                just then empties that list, and not the one of a later wait.
    wanted      the thread of the consumer that is waiting for the watch, else 0: the watcher thread lets go after
                the turn under way.
    visits      calls of wait_io() that ended. The watcher thread takes over when it stands still.
    cut_short   a turn has begun and not ended. When the next one begins so, recover() comes first.
    delivery    the batch that wait_io() is returning. Not None at the next call: it never got out, and goes again.
    closing     set once by close(); whoever has the watch then runs shut(). `closed` when that is done.

What keeps a turn safe from KeyboardInterrupt
    At every bytecode, each accepted request is in the inbox, in a queue, in the outbox or in `delivery`; what the
    kernel has given is in memory (gaio/platform/__init__.py). A request leaves one place only after it is in the
    next. So the worst that an interruption can leave is a request in two places, and recover() puts that right
    by looking at all of them. It costs a walk over every connection, and happens only then.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from ctypes import get_errno, set_errno
from time import monotonic

from gaio import platform
from gaio.connection import NO_MORE, ClosedConnection, Connection, RequestQueue
from gaio.deadlines import Deadline, Deadlines
from gaio.errors import (
    ConnClosedError,
    DeadlineError,
    GaioError,
    WatcherClosedError,
)
from gaio.memory import Copies, PinnedApart, Vector
from gaio.platform import CANCELLED, DATAGRAM, LISTENER, _libc
from gaio.result import ACCEPT, CONNECT, UNDER_WAY, WRITE, AcceptResult, OpResult
from gaio.swap import SwapArena

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType
    from typing import Any

# The watcher thread takes the watch when the consumer has been away for so long, in seconds. A longer grace
# delays the writes and deadlines of a consumer that computes; a shorter one makes the thread compete with a consumer
# that is merely busy.
GRACE = 0.010
# With results in hand, wait_io() takes so many turns more for the requests that stood behind them: a hundred writes
# queued on one connection are not a hundred batches, and a flood of them does not keep the consumer waiting.
MORE_TURNS = 16
# After so many ticks with the consumer inside wait_io() all the time, the thread sleeps until it comes out.
IDLE_TICKS = 100

# No wait of the consumer is longer, in seconds. A signal that comes between the interpreter's last look at signals and
# the system call does not interrupt that call, and its handler, so Ctrl-C, would run after the next result only; as in
# CPython's own select.select(). epoll_pwait(2) and io_uring_enter(2) could close that gap, with the signal mask of the
# thread changed around every wait; kevent(2) could not. signal.set_wakeup_fd() is the application's.
SIGNAL_LATENCY = 1.0

# For how long the collection of a watcher that was not closed may hold up the thread that drops it, in seconds.
PATIENCE = 1.0

AWAKE: list[bool] = []  # see `sleeping` above; stays empty

# How long an accept that ran out of descriptors is held back before its error is delivered, in seconds.
REST = 0.1

# Results that mean "not yet", so that the request is started again.
_START_AGAIN = (-errno.EINTR, -errno.EAGAIN, CANCELLED)
# accept(2): errors of a connection that has gone before it was accepted; the next one may be well.
_LOST_IN_THE_BACKLOG = (
    -errno.EAGAIN,
    -errno.ECONNABORTED,
    -errno.EPROTO,
    -errno.ENETDOWN,
    -errno.ENETUNREACH,
    -errno.EHOSTDOWN,
    -errno.EHOSTUNREACH,
    -errno.ENOPROTOOPT,
    -errno.EOPNOTSUPP,
)
# accept(2): the process or the system has no descriptor or memory left. The connection stays in the backlog.
_OUT_OF_DESCRIPTORS = (-errno.EMFILE, -errno.ENFILE, -errno.ENOBUFS, -errno.ENOMEM)


# signal(7): what a fault of this very thread raises. Blocked, it would kill the process without a word of faulthandler.
_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}


class Release:
    """An item of the inbox that is no request: give this connection up; with None, only look up."""

    __slots__ = ("connection", "forgotten")

    _queue = None  # what tells it from a request

    def __init__(self, connection: Connection | None, forgotten: bool = False) -> None:
        self.connection = connection
        self.forgotten = forgotten  # the collector asked for it, not the caller


class HandBack(Release):
    """An item of the inbox: part with this connection without closing it."""

    __slots__ = ("done", "error", "owner", "sock", "dropped")

    connection: Connection

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.done = False
        self.error: Exception | None = None
        self.owner: list[Any] = []  # of the descriptor, once the loop has parted with it
        self.sock = _libc.blank_socket()  # what is made of it then
        self.dropped = False  # it was closed, and is for nobody to have


class Loop:
    """Everything of a watcher but the handle that its user holds, so that the handle can be collected."""

    def __init__(
        self, open_backend: Callable[[SwapArena, dict[int, Connection]], platform.Backend], swap_size: int
    ) -> None:
        """See begin() for when `open_backend` is called."""
        # Shared with submitters; a single dictionary or set operation at a time, each atomic in itself.
        self.connections: dict[int, Connection] = {}  # id(conn) -> its connection, while it takes requests
        self.listeners: dict[int, Connection] = {}  # the same for listening sockets, which only accept
        self.connecting: set[int] = set()  # tokens of the connections with a connect() under way
        self.descriptors: dict[int, Connection] = {}  # token -> connection, from delegation until it is closed
        self.parted: dict[int, HandBack] = {}  # id(conn) -> what detach() makes a socket of, until it returns that
        self.inbox: list[Any] = []
        self.sleeping: list[bool] = AWAKE
        self.wakeups = 0  # counted by whoever wakes, with no lock: two at the same moment may count as one
        self.wanted = 0
        self.closing = False
        self.closed = False
        self.process = os.getpid()
        self.abandoned = False  # this is a child process, and the loop its parent's
        self.nested = False  # another event loop waits for the backend's descriptor, see Watcher.fileno()
        self.listens = False  # that has been arranged to the end, and not cut short
        self.alarm: float | None = None  # the next deadline, for the watcher thread when nested
        self.failure: Exception | None = None  # what a turn in the watcher thread raised, until wait_io() raises it

        self.watch = threading.RLock()
        self.delegation = threading.RLock()  # one delegation at a time; re-entrant for signal handlers that submit
        self.doorbell = threading.Lock()  # held; released to end a tick of the watcher thread early
        self.doorbell.acquire()
        # The thread inside wait_io(), and those in the middle of something else: a signal handler or a finalizer that
        # runs in one of them may submit, but must not begin what waits for a lock that the thread itself holds.
        # Entered before the lock is taken and left after it is let go.
        self.consumer = 0
        self.inside: set[int] = set()
        self.joining: set[int] = set()  # those that wait for the watcher thread to end
        # From here on, only for whoever has the watch.
        self.outbox: list[OpResult] = []
        self.delivery: list[OpResult] | None = None
        self.ready: list[OpResult] = []  # heads of queues, to be started
        self.partial: list[OpResult] = []  # came back with work left, to be started again
        # Given up, not closed yet -> its number among those that the collector found, 0 if the caller freed it.
        self.leaving: dict[Connection, int] = {}
        self.resting: dict[OpResult, None] = {}  # accepts that ran out of descriptors, held back for a moment
        self.dying: list[int] = []  # the descriptor being closed
        self.deadlines: Deadlines = Deadlines()
        self.cut_short = False
        self.retired: platform.Backend = CLOSED_BACKEND  # the backend while it is being closed
        self.visits = 0
        self.completions = self.batches = self.gc_found = 0
        self.delivered = (0, 0)  # completions and batches before the one in `delivery`

        self.arena = SwapArena(swap_size)
        self.copies = Copies(swap_size)
        self.open_backend = open_backend
        self.backend_name = ""
        self.backend: platform.Backend = CLOSED_BACKEND
        self.opened = threading.Lock()  # held; released when the watcher thread has opened the backend, or could not
        self.opened.acquire()
        self.shut_by_thread = threading.Lock()  # held; released when that thread is about to end
        self.shut_by_thread.acquire()
        self.thread = threading.Thread(target=self.run, name="gaio-watcher", daemon=True)
        self.started = False

    def begin(self) -> None:
        """Start the watcher thread and wait until it has opened the backend; raises what kept it from that.

        It is done there because no signal handler runs there: Ctrl-C would strike between a system call that opens a
        descriptor and the store that keeps it. When it strikes here, close() or the finalizer tells the thread to end,
        which closes what it has opened.
        """
        self.thread.start()
        self.started = True
        self.opened.acquire()  # a lock and not an Event: that is Python code, which could be left locked for ever
        if self.failure is not None:
            try:
                raise self.failure
            finally:
                self.failure = None  # its traceback leads here: a cycle would keep what it holds open

    # --- from any thread ------------------------------------------------------------------------------------

    def gc_closed(self) -> int:
        """How many of the connections that the collector found are closed: all but those that are leaving."""
        found = self.gc_found
        return found - sum(1 for number in list(self.leaving.values()) if 0 < number <= found)

    def table_of(self, connection: Connection) -> dict[int, Connection]:
        return self.listeners if connection.kind == LISTENER else self.connections

    def look_around(self) -> None:
        """Before anything of the kernel is touched: whether this is a child process by now.

        Handlers of os.register_at_fork() run in the order of their registration, and so that of the application may run
        before gaio's. Some programs fork by C code, which runs none at all.
        """
        if os.getpid() != self.process:
            self.abandon()

    def rouse(self) -> None:
        """After an append to the inbox that found `sleeping` set."""
        self.look_around()
        sleeping = self.sleeping
        if self.closed:  # looked at later: the list that a closed loop has must never be emptied
            return  # the caller sees to what it appended: withdraw()
        self.backend.wake()
        sleeping.clear()
        self.wakeups += 1

    def forget(self, connection: Connection) -> None:
        """The finalizer of a caller's object that was collected: any thread, between any two bytecodes."""
        self.table_of(connection).pop(connection.key, None)
        if not self.closed:
            self.inbox.append(Release(connection, forgotten=True))
            if self.sleeping:
                self.rouse()

    def ask_to_close(self) -> None:
        """Have whoever has the watch, or gets it next, shut the loop."""
        self.look_around()
        if self.abandoned:
            return
        self.closing = True
        self.inbox.append(Release(None))
        self.backend.wake()
        self.ring_doorbell()

    def ring_doorbell(self) -> None:
        try:
            self.doorbell.release()
        except RuntimeError:
            pass  # it rings already

    def finalize(self) -> None:
        """The handle was collected: have the watcher thread close everything, and wait until it has.

        From then on the buffers are the caller's again. The collector may run where this thread holds a lock that the
        other one needs, say for its end: so this does not wait for that, nor for ever.
        """
        if not self.closed:
            self.ask_to_close()
        if self.started and threading.get_ident() != self.thread.ident:
            self.shut_by_thread.acquire(timeout=PATIENCE)

    def see_thread_out(self) -> None:
        """Wait for the watcher thread, which ends when the loop is closed; it may be this one, or never have run.

        Not when start() was interrupted: it waits for the thread by an Event, which it may have left locked for ever.
        Nor in a signal handler that has interrupted this: before Python 3.13, join() takes a lock that is not
        re-entrant.
        """
        thread = threading.get_ident()
        if not self.started or thread == self.thread.ident or (thread in self.joining and self.is_joining()):
            return
        self.joining.add(thread)
        try:
            self.thread.join()
        finally:
            self.joining.discard(thread)

    def is_joining(self) -> bool:
        """Whether see_thread_out() was called from within itself; `joining` alone may be left by an interruption."""
        frame = sys._getframe(2)  # the caller of that one, which asks
        while frame.f_back is not None:
            if frame.f_code is Loop.see_thread_out.__code__ and frame.f_locals["self"] is self:
                return True
            frame = frame.f_back
        return False

    def give_up(self, connection: Connection) -> None:
        """A delegation failed after the backend was told of it: undone by whoever has the watch, as a free() is."""
        table = self.table_of(connection)
        if table.get(connection.key) is connection:
            del table[connection.key]
        self.inbox.append(Release(connection))
        if self.sleeping:
            self.rouse()

    def hand_back(self, connection: Connection) -> None:
        """Part with a connection that has nothing pending, for detach() to return what is in `parted` then."""
        item = HandBack(connection)
        thread = threading.get_ident()
        if self.is_inside():
            raise RuntimeError("detach() was called from within another call, by a signal handler or a finalizer")
        self.inbox.append(item)
        if self.sleeping:
            self.rouse()
        errno_before = get_errno()  # as in wait_io()
        try:
            self.inside.add(thread)
            # Whoever has the watch does it; when nobody has, this thread does.
            while not item.done and not self.closed:
                if self.watch.acquire(timeout=GRACE):
                    if not self.closed:
                        self.turn(0)
                        if self.nested:
                            self.backend.wake()  # what the turn has taken or left: the other loop must look after it
                    self.watch.release()
            self.inside.discard(thread)
        except BaseException as error:
            self.step_aside()
            self.unless_abandoned(error)
            raise
        finally:
            set_errno(errno_before)
        if item.error is not None:
            try:
                raise item.error
            finally:
                item.error = None  # a cycle, as in begin(): a dropped conn would wait for the collector
        if not item.done:
            raise WatcherClosedError("the watcher was closed meanwhile")

    def parted_with(self, conn: object) -> HandBack | None:
        """What a detach() that was interrupted has left of this connection."""
        item = self.parted.get(id(conn))
        return item if item is not None and item.connection.conn() is conn else None

    def drop_parted(self, key: int) -> None:
        """Close what detach() would have returned, unless another thread takes it first."""
        item = self.parted.pop(key, None)
        if item is not None:
            item.dropped = True
            item.sock.close()
            item.owner.clear()

    def nest(self) -> None:
        """From now on another event loop is the consumer, and waits on the backend's descriptor."""
        if self.listens:
            return
        thread = threading.get_ident()
        if self.is_inside():
            raise RuntimeError("fileno() was called from within another call, by a signal handler or a finalizer")
        self.nested = True
        self.ring_doorbell()
        errno_before = get_errno()  # as in wait_io()
        try:
            self.inside.add(thread)
            if not self.watch.acquire(False):
                self.take_over()
            if self.closed:
                raise WatcherClosedError("the watcher was closed meanwhile")
            self.turn(0)  # a ring listens for wake-ups only once it has been entered
            self.before_nesting()
            self.backend.wake()
            self.listens = True
            self.watch.release()
            self.inside.discard(thread)
        except BaseException as error:
            self.step_aside()
            self.unless_abandoned(error)
            raise
        finally:
            set_errno(errno_before)

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
        # No other call is under way: an exception struck again while step_aside() dealt with one.
        self.step_aside()
        return False

    # --- the consumer ---------------------------------------------------------------------------------------

    def harvest(self, timeout: float | None) -> list[OpResult]:
        """Take the watch, work until there are results or `timeout` seconds have passed, and give it back.

        The batch stays in `delivery` until wait_io() is about to return it.
        """
        deadline = None if timeout is None else monotonic() + timeout
        self.consumer = threading.get_ident()
        if not self.watch.acquire(False):
            self.take_over()
        if self.failure is not None:
            failure, self.failure = self.failure, None
            try:
                raise failure
            finally:
                del failure  # a cycle, as in begin()
        undelivered = self.delivery
        if undelivered is None:
            self.backend.recycle()
            self.delivered = (self.completions, self.batches)
        else:
            self.completions, self.batches = self.delivered
            if undelivered and not (self.outbox and self.outbox[0] is undelivered[0]):
                self.outbox[:0] = undelivered
            self.delivery = None
        if self.outbox:
            timeout = 0
        more = MORE_TURNS
        while not self.closed:
            if not self.closing:  # else the wake-up for it may have been taken by a turn of another thread
                self.turn(SIGNAL_LATENCY if timeout is None else min(timeout, SIGNAL_LATENCY))
            if self.closing:
                self.shut()
            if self.outbox:
                if not self.ready or not more:
                    break
                # What stands behind a request that has finished may be ready to finish, too.
                more -= 1
                timeout = 0
                continue
            self.backend.recycle_unused()
            if deadline is not None:
                timeout = deadline - monotonic()
                if timeout <= 0:
                    break
        if self.closed:
            self.shut()
        batch = self.outbox
        if self.closed and not batch:
            raise WatcherClosedError("the watcher is closed and all its results have been delivered")
        self.delivery = batch
        self.outbox = []
        self.backend.lend()
        if batch:
            self.completions += len(batch)
            self.batches += 1
        self.visits += 1
        if self.nested:
            self.before_nesting()
        self.watch.release()
        return batch

    def before_nesting(self) -> None:
        """See to it that the descriptor turns readable when there is something to do, see Watcher.fileno()."""
        self.sleeping = [True]
        if self.ready or self.inbox.copy():
            self.backend.wake()
        self.cut_short = True  # by heappop(), which runs bytecode: see Deadlines.replace()
        when = self.deadlines.earliest()
        self.cut_short = False
        if when is not None and (self.alarm is None or when < self.alarm):
            self.alarm = when
            self.ring_doorbell()

    def take_over(self) -> None:
        """Ask the watcher thread for the watch and wait for it.

        Whatever the timeout of wait_io(): that is for I/O, and the thread lets go after the turn under way.
        """
        self.wanted = threading.get_ident()
        self.inbox.append(Release(None))
        if self.sleeping:
            self.rouse()
        while not self.watch.acquire(timeout=SIGNAL_LATENCY):
            pass  # it is another lock, should a handler have forked: this is the child then
        self.wanted = 0

    def step_aside(self) -> None:
        """An exception comes out of wait_io() or close(): let go of the watch, if this thread has it."""
        thread = threading.get_ident()
        if self.wanted == thread:
            self.wanted = 0
        self.visits += 1
        try:
            if self.watch.acquire(False) and self.cut_short:
                self.backend.recover()  # errno is this thread's own
        finally:
            release_all(self.delegation)
            release_all(self.watch)
            if self.nested:
                # What made the descriptor readable may be taken, and the alarm set but not told of: begin anew.
                self.backend.wake()
                self.ring_doorbell()
            self.inside.discard(thread)
            if self.consumer == thread:
                self.consumer = 0

    # --- the watcher thread ---------------------------------------------------------------------------------

    def run(self) -> None:
        # What the program blocks, to fetch it by sigwait(3) or signalfd(2), must not find this thread open. Until here
        # it has the mask of the thread that makes the watcher, which waits in begin() for what follows.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _FAULTS)
        thread = threading.get_ident()
        self.inside.add(thread)
        try:
            if self.open():
                self.stand_in()
        finally:
            self.inside.discard(thread)  # the number may be another thread's next
            self.shut_by_thread.release()

    def open(self) -> bool:
        try:
            backend = self.open_backend(self.arena, self.descriptors)
            self.backend_name = backend.name
            self.backend = backend
        except Exception as error:  # noqa: BLE001  # handed on, not swallowed
            self.failure = error  # for begin()
            return False
        finally:
            self.opened.release()
        return True

    def stand_in(self) -> None:
        """Do the work whenever the consumer does not; return when the loop is closed."""
        while self.stand_by():
            try:
                while not (self.wanted or self.closing or self.nested):
                    self.turn(None)
                if self.closing:
                    self.shut()
            except Exception as error:  # noqa: BLE001  # handed on, not swallowed
                self.failure = error  # for the consumer, whatever it is
            finally:
                self.watch.release()
            if self.closing:
                return

    def stand_by(self) -> bool:
        """Return with the watch when the consumer stays away from it; False when the loop is closed."""
        idle = 0
        while not self.closing:
            if self.nested:
                self.watch_the_clock()
                continue
            seen = self.visits
            self.doorbell.acquire(timeout=GRACE)
            if self.visits != seen or self.failure is not None:
                idle = 0
            elif self.watch.acquire(False):
                return True
            elif idle < IDLE_TICKS:
                idle += 1
            else:
                self.watch.acquire()
                self.watch.release()
                idle = 0
        self.watch.acquire()
        if self.backend is not CLOSED_BACKEND or self.retired is not CLOSED_BACKEND:
            return True  # also where close() has been cut short, and nobody calls it again
        self.watch.release()
        return False

    def watch_the_clock(self) -> None:
        """What is left to the watcher thread when nested: wake the other loop when a deadline passes."""
        alarm = self.alarm
        remaining = -1 if alarm is None else min(max(0.0, alarm - monotonic()), threading.TIMEOUT_MAX)
        if self.doorbell.acquire(timeout=remaining):
            return  # another deadline is the first now, or the loop is closing
        if self.alarm == alarm:
            self.alarm = None
        self.backend.wake()

    # --- a turn ---------------------------------------------------------------------------------------------

    def turn(self, timeout: float | None) -> None:
        """Admit, start, wait up to `timeout` seconds for completions, finish."""
        if self.cut_short:
            self.recover()
        self.cut_short = True
        backend = self.backend
        completed = backend.completed
        finished = len(self.outbox)

        inbox = self.inbox
        if inbox:
            self.admit(inbox[:])
        if self.ready:
            backend.start(self.ready)
            self.ready.clear()
        if self.deadlines.entries:
            timeout = self.expire(timeout)
        if self.leaving:
            self.dismiss()  # what has nothing under way need not wait for the kernel

        # What was cut off before it was started is in the outbox already.
        if completed or timeout == 0 or len(self.outbox) != finished:
            backend.wait(0)
        else:
            self.sleeping = [True]
            # copy() takes the inbox's lock, as an append does: whoever appended before it is seen here,
            # and whoever appends after it sees `sleeping`. What the consumer appends for want of the watch may have
            # been admitted above already, with nothing to show for it but `wanted`, which it sets before.
            backend.wait(0 if inbox.copy() or self.wanted else timeout)
            self.sleeping = AWAKE

        if completed:
            self.finish(completed)
            completed.clear()
            if self.partial:
                for request in self.partial:
                    request._offset = request.size
                self.ready.extend(self.partial)
                self.partial.clear()
        if self.leaving:
            self.dismiss()
        self.cut_short = False

    def admit(self, items: list[Any]) -> None:
        """Put each request into its queue; those that come first there are ready to start."""
        ready = self.ready
        for request in items:
            queue = request._queue
            if queue is None:
                self.release(request)
                continue
            tail = queue.tail
            if tail is None:
                queue.head = request
                queue.tail = request
                ready.append(request)
            elif tail is NO_MORE:
                request.error = overtaken_error(queue.descriptor)
                if request.operation is CONNECT:
                    self.connecting.discard(queue.descriptor.token)
                if request._deadline is not None:
                    request._deadline.request = None  # not called off, for the heap has not got it
                self.outbox.append(request)
                request._queue = request._memory = None
                continue
            else:
                tail._next = request
                queue.tail = request
            if request._deadline is not None:
                request._deadline.before = tail
                self.deadlines.add(request._deadline)
        del self.inbox[: len(items)]

    def finish(self, completed: list[OpResult]) -> None:
        """Make results of what came back, and let the next of each queue follow."""
        outbox = self.outbox
        ready = self.ready
        for request in completed:
            queue = request._queue
            result = request._result
            if result > 0 and request.error is None:
                request.size = size = request._offset + result
                if size < request._goal:
                    self.partial.append(request)
                    continue
            elif not self.judge(request, queue, result):
                if request not in self.resting:
                    self.partial.append(request)
                continue
            # First in the outbox, then out of the queue: see recover().
            outbox.append(request)
            following = request._next
            queue.head = following
            if following is None:
                queue.tail = None
            else:
                if following._deadline is not None:
                    following._deadline.before = None
                if queue.descriptor.overtaken is None:
                    ready.append(following)
                else:
                    completed.append(overtaken(following))  # which this loop comes to, by and by
            request._queue = request._next = request._memory = None
            if request._deadline is not None:
                self.deadlines.call_off(request._deadline)

    def judge(self, request: OpResult, queue: RequestQueue, result: int) -> bool:
        """Whether a request that did not simply succeed is finished; sets its `size` and `error` if so.

        An `error` that is set already is why it was cancelled. It holds only if the request did not finish first.
        """
        if request.operation > WRITE:
            return self.judge_other(request, queue, result)
        size = request._offset
        if result > 0:
            request.size = size + result
            if request.size >= request._goal:
                request.error = None
                return True
            return request.error is not None
        request.size = size
        if result < 0:
            if result in _START_AGAIN:
                return request.error is not None
            request.error = OSError(-result, os.strerror(-result))
            return True
        if queue.outbound:
            return request.error is not None  # write(2) may move nothing without saying why: try again
        if queue.descriptor.kind == DATAGRAM:
            if request._goal:
                return request.error is not None  # an empty datagram adds nothing to read_full()
            request.error = None
            if request._memory is None:
                request.buffer = memoryview(b"")
            return True
        request.error = EOFError("the peer has closed its side: there is nothing more to read")
        return True

    def judge_other(self, request: OpResult, queue: RequestQueue, result: int) -> bool:
        """The same for requests that move no bytes; their `error` is UNDER_WAY until something cancels them."""
        accepts = request.operation is ACCEPT
        if result >= 0:
            if isinstance(request, AcceptResult):
                request.own(result)
            request.error = None
        elif result in (CANCELLED, -errno.EINTR) or (accepts and result in _LOST_IN_THE_BACKLOG):
            if request.error is UNDER_WAY:
                return False
        else:
            overtaken = request.error is not UNDER_WAY
            request.error = OSError(-result, os.strerror(-result))
            if accepts and result in _OUT_OF_DESCRIPTORS and not overtaken:
                self.rest(request)
                return False
        if request.operation is CONNECT:
            self.connecting.discard(queue.descriptor.token)
        return True

    def rest(self, request: OpResult) -> None:
        """Hold an accept that failed back for a moment, so that a loop around it does not spin."""
        until = monotonic() + REST
        if request._deadline is not None:
            until = min(until, request._deadline.when)
            self.deadlines.call_off(request._deadline)
        request._deadline = Deadline(until, request)
        self.deadlines.add(request._deadline)
        self.resting[request] = None

    # --- what cuts requests off -----------------------------------------------------------------------------

    def expire(self, timeout: float | None) -> float | None:
        """Cut off what is past its deadline, and shorten `timeout` to the next one."""
        now = monotonic()
        deadlines = self.deadlines
        while True:
            request = deadlines.expired(now)
            if request is None:
                break
            if request in self.resting:
                self.cut_off(request, request.error)
            else:
                self.cut_off(request, DeadlineError("timed out; `size` tells how many bytes had moved"))
            if request._deadline is not None:
                deadlines.call_off(request._deadline)
        when = deadlines.earliest()
        if when is None:
            return timeout
        remaining = max(0.0, when - now)
        return remaining if timeout is None else min(timeout, remaining)

    def cut_off(self, request: OpResult, error: Exception | None) -> None:
        """Have the request end with this error, unless it finishes first. What is no head must have a deadline."""
        queue = request._queue
        if queue is None:
            return  # it has finished
        if queue.head is request:
            request.error = error
            if request in self.resting:
                # Off the list first: should this be cut short in between, it is simply started again.
                del self.resting[request]
                request._result = CANCELLED
                self.backend.completed.append(request)
            else:
                self.backend.cancel(request)
            return
        # Behind the head nothing has been started: it can go at once.
        deadline = request._deadline
        assert deadline is not None
        before: Any = deadline.before
        request.error = error
        if request.operation is CONNECT:
            self.connecting.discard(queue.descriptor.token)
        self.outbox.append(request)
        self.deadlines.call_off(deadline)  # not before: cut short here, recover() sees it in the outbox
        following = before._next = request._next
        if following is None:
            queue.tail = before
        elif following._deadline is not None:
            following._deadline.before = before
        request._queue = request._next = request._memory = None

    def turn_down(self, queue: RequestQueue) -> None:
        """Cut off everything in a queue whose connection has been given up, and let nothing more into it."""
        if self.ready:
            self.backend.start(self.ready)  # only what has been started can be cancelled
            self.ready.clear()
        if queue.head is None:
            queue.tail = NO_MORE
        else:
            self.cut_off(queue.head, overtaken_error(queue.descriptor))  # finish() sees to those behind it, in order

    def release(self, item: Release, reason: type[GaioError] = ConnClosedError) -> None:
        """Give a connection up: its requests end with `reason`, then its descriptor is closed."""
        connection = item.connection
        if type(item) is HandBack:
            self.part_with(item)
            return
        if connection is None:
            return
        if connection.fd < 0:
            parted = self.parted.get(connection.key)
            if parted is not None and parted.connection is connection:
                self.drop_parted(connection.key)  # detach() was interrupted and not called again
            return
        # The number is kept with the connection, so that this can be cut short and done again without counting twice.
        number = self.leaving.setdefault(connection, self.gc_found + 1 if item.forgotten else 0)
        self.gc_found = max(self.gc_found, number)
        with self.delegation:  # no queue of writes is being added meanwhile
            connection.overtaken = connection.overtaken or reason
            queues = connection.queues()
        for queue in queues:
            self.turn_down(queue)

    def part_with(self, item: HandBack) -> None:
        if item.done:
            return  # this was cut short after its end
        connection: Any = item.connection
        key = connection.key
        if not item.owner:  # else this was cut short, and goes on
            parted = self.parted.get(key)
            if parted is not None and parted.connection is connection:
                item.done = True  # by an item before, whose detach() was interrupted
                return
            if connection.overtaken is WatcherClosedError:
                item.error = overtaken_error(connection)
            elif connection.overtaken is not None:
                item.error = ConnClosedError("conn has been freed or detached meanwhile")
            elif any(queue.head is not None for queue in connection.queues()):
                item.error = RuntimeError("requests are pending: detach() when their results have come, or free()")
            if item.error is not None:
                item.done = True
                return
            item.owner.extend(map(_libc.socket_owner_of, (connection.fd,)))
        if connection.fd >= 0:
            self.backend.unregister(connection)
        connection.fd = -1
        with self.delegation:
            connection.overtaken = ConnClosedError
            for queue in connection.queues():
                queue.tail = NO_MORE
        # The finalizer stays: it has the descriptor closed if detach() was interrupted and is not called again.
        self.parted[key] = item
        self.table_of(connection).pop(key, None)
        self.descriptors.pop(connection.token, None)
        connection.let_go_of_queues()
        item.done = True

    def dismiss(self) -> None:
        """Close the descriptors of connections that were given up and have nothing under way any more."""
        for connection in list(self.leaving):
            queues = connection.queues()
            for queue in queues:
                if queue.head is None:
                    queue.tail = NO_MORE  # finish() has left it open
            if any(queue.head is not None for queue in queues):
                continue  # the kernel may still write into its buffers
            if connection.fd >= 0:
                self.backend.unregister(connection)
                self.dying[:] = (connection.fd,)
                connection.fd = -1
            _libc.close_all(self.dying)
            self.descriptors.pop(connection.token, None)
            connection.let_go_of_queues()
            if connection.finalizer is not None:
                connection.finalizer.detach()
            table = self.table_of(connection)
            if table.get(connection.key) is connection:
                table.pop(connection.key, None)  # free() was interrupted before it did so, or has done it just now
            del self.leaving[connection]

    def shut(self) -> None:
        """End everything: each request gets its result, each descriptor is closed. Whoever has the watch.

        Does nothing when that is done, and goes on where an interruption cut it short.
        """
        if self.backend is CLOSED_BACKEND:
            self.retired.close()
            self.retired = CLOSED_BACKEND
            return
        if not self.closed:
            self.turn(0)
            self.cut_short = True  # until the end of these steps, which like those of a turn may be interrupted
            with self.delegation:  # whoever delegates after this sees `closing`
                connections = list(self.descriptors.values())
            for connection in connections:
                self.release(Release(connection), WatcherClosedError)
            self.dismiss()
            self.cut_short = False
            while self.descriptors:
                self.turn(None)
            self.connections.clear()
            self.listeners.clear()
            for key in list(self.parted):
                self.drop_parted(key)
            self.closed = True
        elif self.cut_short:
            self.recover()
        # Who submits from now on finds `sleeping` and then `closed` set, and asks withdraw() whether it came too
        # late; who did before is in the inbox, and admit() answers each with the error.
        self.sleeping = [True]
        self.cut_short = True
        self.admit(self.inbox.copy())
        self.cut_short = False
        # Out of reach before it is closed: to recover() a ring that is no longer mapped would be fatal.
        self.retired = self.backend
        self.backend = CLOSED_BACKEND
        self.retired.close()
        self.retired = CLOSED_BACKEND
        self.ring_doorbell()

    def withdraw(self, request: OpResult) -> bool:
        """Take back a request that was submitted to a closed loop; False when it has got its result already."""
        is_inside = self.is_inside()
        try:
            with self.watch:
                if self.cut_short and self.closed and not is_inside:
                    self.shut()  # an interruption may have left the request with its result, but in the inbox still
                if self.closed and request in self.inbox:
                    self.inbox.remove(request)
                    if request._deadline is not None:
                        request._deadline.request = None
                    return True
        except BaseException:
            if not is_inside:
                release_all(self.watch)
            raise
        return False

    def abandon(self) -> None:
        """In the child after fork(2): this loop was the parent's. Close the child's copies, touch nothing shared.

        Once: the numbers of its descriptors may be those of others by the second time.
        """
        if self.abandoned:
            return
        self.abandoned = self.closing = self.closed = True
        self.sleeping = [True]
        # What this thread holds, in a call that the handler of a signal has interrupted to fork, it will let go of.
        self.watch = _unless_held_by_another(self.watch)
        self.delegation = _unless_held_by_another(self.delegation)
        if self.opened.locked():
            self.opened.release()  # for begin(): the thread it waits for does not run here
        self.consumer = 0
        self.inside = set()
        self.joining = set()
        self.started = False  # the thread does not run here, and nobody is to wait for it
        self.failure = self.delivery = None
        # Another thread of the parent may have been in the middle of closing one, or of parting with one.
        fds = {*self.dying, *(connection.fd for connection in self.descriptors.values() if connection.fd >= 0)}
        for item in self.inbox:
            if isinstance(item, HandBack) and item.owner:
                fds.discard(item.owner[0].fileno())
                item.owner.clear()
        # Emptied and not replaced: what the handler has interrupted goes on with these lists, and with these numbers,
        # which may be those of the child's own descriptors by then.
        self.dying.clear()
        self.inbox.clear()
        self.outbox.clear()
        for connection in self.descriptors.values():
            connection.overtaken = WatcherClosedError
            connection.fd = -1
            for queue in connection.queues():
                queue.fd = -1
        _libc.close_all(list(fds))
        for key in list(self.parted):
            self.drop_parted(key)
        self.connections.clear()
        self.listeners.clear()
        self.descriptors.clear()
        self.cut_short = False  # another thread of the parent was in a turn
        for backend in (self.backend, self.retired):
            backend.abandon()
        self.backend = self.retired = CLOSED_BACKEND

    def unless_abandoned(self, error: BaseException) -> None:
        """An exception comes out of a call: `WatcherClosedError` instead, when that is in a child because a handler of
        a signal has forked in the middle of it.
        """
        if self.abandoned and isinstance(error, Exception):
            raise WatcherClosedError("the watcher is the parent process's: make a new one here") from None

    # --- after an interruption ------------------------------------------------------------------------------

    def recover(self) -> None:
        """Put right what a turn left that was cut short: requests that are in two places, steps half done."""
        backend = self.backend
        self.sleeping = AWAKE
        held = backend.recover()
        finished = {id(request) for request in self.outbox}
        for request in self.outbox:
            if request._deadline is not None:
                self.deadlines.call_off(request._deadline)
        backend.completed[:] = [request for request in backend.completed if id(request) not in finished]
        for request in backend.completed:
            if request.operation > WRITE and request.error is None:
                request.error = UNDER_WAY  # it was being judged, and finish() takes None for a read's or a write's
        started = {id(request) for request in (*held, *backend.completed, *self.resting)}

        for connection in self.leaving:
            if self.dying and self.dying[0] == connection.fd:
                connection.fd = -1
        _libc.close_all(self.dying)

        self.partial.clear()
        self.ready.clear()
        queued: set[int] = set()
        deadlines: list[Deadline] = []
        for connection in list(self.descriptors.values()):
            # A connect() first: a read behind it must find that it is under way.
            for queue in reversed(connection.queues()):
                requests = [request for request in _chain(queue.head) if id(request) not in finished]
                queued.update(map(id, requests))
                deadlines += [request._deadline for request in requests if request._deadline is not None]
                relink(queue, requests)
                if requests and id(requests[0]) not in started:
                    requests[0]._offset = requests[0].size
                    if connection.overtaken is None:
                        self.ready.append(requests[0])
                    else:
                        backend.completed.append(overtaken(requests[0]))
        self.deadlines.replace(deadlines)  # that of a request that was being admitted may be missing
        for request in self.outbox:
            request._queue = request._next = request._memory = None
        # What was admitted is the inbox's beginning. Only a deletion is safe while others append.
        admitted = 0
        for index, item in enumerate(self.inbox.copy(), 1):
            if id(item) in queued or id(item) in finished:
                admitted = index
        del self.inbox[:admitted]


class FreeThreadedLoop(Loop):
    """For builds without an interpreter lock. What a thread has made is freed there by that thread alone, which may be
    at any time later, and counts of exports are not atomic (CPython issue 127716). So nothing that a caller has in hand
    is left to be freed.
    """

    def __init__(
        self, open_backend: Callable[[SwapArena, dict[int, Connection]], platform.Backend], swap_size: int
    ) -> None:
        super().__init__(open_backend, swap_size)
        # The swap views of the batch in the caller's hands. Freed by the thread that did the reading, while another one
        # slices a part of it that it has kept, a view would spoil the count of that part.
        self.lent: list[memoryview] = []
        self.pins: dict[OpResult, PinnedApart | Vector] = {}  # what is pinned for each request until it is delivered

    def admit(self, items: list[Any]) -> None:
        for item in items:
            if item._queue is not None and isinstance(item._memory, (PinnedApart, Vector)):
                self.pins[item] = item._memory
        super().admit(items)

    def harvest(self, timeout: float | None) -> list[OpResult]:
        if self.delivery is None:  # else the batch never reached the caller, and goes again
            self.take_back()
        batch = super().harvest(timeout)
        self.lent += [result.buffer for result in batch if result.is_swap_buffer]
        if self.pins:
            for result in batch:
                pin = self.pins.get(result)
                if pin is not None:
                    pin.release()
                    del self.pins[result]
        return batch

    def abandon(self) -> None:
        super().abandon()
        self.pins.clear()

    def take_back(self) -> None:
        self.lent.clear()


class DevelopmentLoop(FreeThreadedLoop):
    """For `python -X dev`: releases the swap views of a batch when their memory is lent anew, so that use raises."""

    def take_back(self) -> None:
        for view in self.lent:
            try:
                view.release()
            except BufferError:
                pass  # the caller has exported it in turn, say to a ctypes object: that is still in use
        super().take_back()


class _ClosedBackend:
    """What a closed loop has for a backend: the real one goes when no thread is in the middle of waking it.

    A call that is under way in a child after fork(2) may go on with it, see abandon().
    """

    completed: list[Any] = []  # noqa: RUF012  # stays empty

    def register(self, _: Connection) -> None:
        raise WatcherClosedError("the watcher was closed meanwhile")

    def recover(self) -> list[OpResult]:
        return []

    def start(self, requests: list[OpResult]) -> None: ...
    def cancel(self, request: OpResult) -> None: ...
    def wait(self, timeout: float | None) -> None: ...
    def wake(self) -> None: ...
    def lend(self) -> None: ...
    def recycle(self) -> None: ...
    def recycle_unused(self) -> None: ...
    def close(self) -> None: ...
    def abandon(self) -> None: ...


CLOSED_BACKEND: Any = _ClosedBackend()

_OVERTAKEN: dict[type[GaioError], str] = {
    ConnClosedError: "free() was called for this connection",
    WatcherClosedError: "the watcher was closed",
}


def overtaken_error(connection: Connection | ClosedConnection) -> GaioError:
    reason = connection.overtaken
    assert reason is not None
    return reason(_OVERTAKEN[reason])


def overtaken(request: OpResult) -> OpResult:
    """That request, which has not been started, as if its connection had been given up while it was under way."""
    request.error = overtaken_error(request._queue.descriptor)
    request._result = CANCELLED
    return request


def _unless_held_by_another(lock: threading.RLock) -> threading.RLock:
    """After fork(2): a new one instead of a lock that a thread of the parent has, for that one never lets go."""
    if lock.acquire(False):
        lock.release()
        return lock
    return threading.RLock()


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
    return str(frame.f_globals.get("__name__", "")).startswith("gaio.")


def _chain(request: OpResult | None) -> Iterable[OpResult]:
    while request is not None:
        yield request
        request = request._next


def relink(queue: RequestQueue, requests: list[OpResult]) -> None:
    before = None
    for request, following in zip(requests, [*requests[1:], None], strict=False):  # of none, nothing follows
        request._next = following
        if request._deadline is not None:
            request._deadline.before = before
        before = request
    queue.head = requests[0] if requests else None
    queue.tail = requests[-1] if requests else NO_MORE if queue.descriptor.overtaken else None
