"""kqueue(2) simulated over epoll(7): a kernel for the kqueue backend on a system that has none.

It takes the place of a shared library where gaio binds one (gaio/platform/_libc.py), with the signatures and the
structures of a real system, and stands for the kernel: gaio's own code runs as it is.

What it does as the real ones do
    * knotes are keyed on (ident, filter), dropped when the number is closed, and checked again when they are
      about to be reported: an edge whose cause has been dealt with meanwhile is not reported;
    * with EV_CLEAR an event is reported once for each edge, and EV_EOF comes with bytes that are still unread;
    * changes are applied in order; one that fails is reported with EV_ERROR where there is room for events, and
      ends the call otherwise;
    * closing the kqueue wakes nobody.

What it does not: it tells no socket's error in fflags, which Linux would have to give away for that (SO_ERROR).

The events are written to memory, then the result is handed over, and only then are they counted as reported: an
exception between any two of its bytecodes can repeat an event and cannot lose one, as it cannot with a kernel.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import math
import os
import select
import termios
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from gaio.platform import _kqueue_abi, _libc
from gaio.platform._epoll import (
    EPOLLERR,
    EPOLLET,
    EPOLLHUP,
    EPOLLIN,
    EPOLLOUT,
    EPOLLPRI,
    EPOLLRDHUP,
    EVENT,
)

PATH = "a simulated kernel"  # as the value of GAIO_KQUEUE_LIBRARY

_TABLE = _kqueue_abi.ABIS  # gaio's own; install() puts one row of it in its place

# One for every queue, for the life of the process: see Queue.kick().
ALWAYS_READABLE = _libc.checked("eventfd")(1, os.O_CLOEXEC)

EV_ADD, EV_DELETE, EV_CLEAR, EV_ERROR, EV_EOF = 0x0001, 0x0002, 0x0020, 0x4000, 0x8000

_uintptr, _int, _size_t = ctypes.c_size_t, ctypes.c_int, ctypes.c_size_t
_classic_head = [
    ("ident", _uintptr),
    ("filter", ctypes.c_short),
    ("flags", ctypes.c_ushort),
    ("fflags", ctypes.c_uint),
]
_netbsd_fields = [
    ("ident", _uintptr),
    ("filter", ctypes.c_uint32),
    ("flags", ctypes.c_uint32),
    ("fflags", ctypes.c_uint32),
    ("data", ctypes.c_int64),
    ("udata", _uintptr),
]
_ext = [("ext", ctypes.c_uint64 * 4)]


class kevent_with_intptr(ctypes.Structure):
    _fields_ = [*_classic_head, ("data", ctypes.c_ssize_t), ("udata", _uintptr)]


class kevent_with_int64(ctypes.Structure):
    _fields_ = [*_classic_head, ("data", ctypes.c_int64), ("udata", _uintptr)]


class kevent_of_freebsd(ctypes.Structure):
    _fields_ = [*_classic_head, ("data", ctypes.c_int64), ("udata", _uintptr), *_ext]


class kevent_of_netbsd(ctypes.Structure):
    _fields_ = _netbsd_fields


class kevent_of_netbsd_11(ctypes.Structure):
    _fields_ = [*_netbsd_fields, *_ext]


class System(NamedTuple):
    """The signatures of one system, written down apart from gaio's own table."""

    symbol: str
    structure: Any
    count_type: Any
    read: int
    write: int


SYSTEMS = {
    "darwin": System("kevent", kevent_with_intptr, _int, -1, -2),
    "freebsd": System("kevent", kevent_of_freebsd, _int, -1, -2),
    "dragonfly": System("kevent", kevent_with_intptr, _int, -1, -2),
    "netbsd 11": System("__kevent100", kevent_of_netbsd_11, _size_t, 0, 1),
    "netbsd": System("__kevent50", kevent_of_netbsd, _size_t, 0, 1),
    "openbsd": System("kevent", kevent_with_int64, _int, -1, -2),
    "linux": System("kevent", kevent_with_intptr, _int, -1, -2),
}

# poll(2) and epoll(7) have the same numbers.
_READ = EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLHUP | EPOLLERR
_WRITE = EPOLLOUT | EPOLLHUP | EPOLLERR
_INTEREST = EPOLLIN | EPOLLPRI | EPOLLOUT | EPOLLRDHUP | EPOLLET
_EPOLL_CTL_ADD, _EPOLL_CTL_DEL, _EPOLL_CTL_MOD = 1, 2, 3
_MAX_EVENTS = 512

_libc_keeping_gil = ctypes.PyDLL(None, use_errno=True)
_libc_dropping_gil = ctypes.CDLL(None, use_errno=True)


def _nothing() -> None:
    pass


class Faults:
    """What the simulated kernel shall do out of the ordinary. Tests set these."""

    def __init__(self) -> None:
        self.spurious = False  # report every knote that is not ready too, each time something is reported
        self.interrupted_waits = 0  # so many waits fail with EINTR before they look
        self.interrupted_changes = 0  # so many changes fail with EINTR after they have been applied
        self.refused_writes: int | None = None  # the error of registering EVFILT_WRITE, which is done all the same
        self.change_error: int | None = None  # the error of registering anything, which is not done
        self.before_change: Callable[[], object] = _nothing  # what happens just before something is registered
        self.eof_error = 0  # fflags of every event with EV_EOF
        self.concealed_eof = False  # no EV_EOF while there are bytes to read
        self.more_flags = 0  # are set on every event


class Failure(Exception):
    """A system call fails with this errno."""

    def __init__(self, number: int) -> None:
        super().__init__(os.strerror(number))
        self.number = number


class Knote:
    def __init__(self, ident: int, kfilter: int) -> None:
        self.ident = ident
        self.filter = kfilter
        self.flags = 0
        self.udata = 0
        self.file = (0, 0)


def _file_of(fd: int) -> tuple[int, int]:
    try:
        status = os.fstat(fd)
    except OSError as error:
        raise Failure(errno.EBADF) from error
    return status.st_dev, status.st_ino


def bytes_to_read(fd: int) -> int:
    count = array.array("i", [0])
    try:
        fcntl.ioctl(fd, termios.FIONREAD, count)
    except OSError:
        return 1  # a listening socket, which counts connections
    return count[0]


class Queue:
    """One kqueue. Its descriptor is that of an epoll: so it can be polled, and is closed like any other."""

    def __init__(self, kernel: Kernel, fd: int) -> None:
        self.kernel = kernel
        self.fd = fd
        self.knotes: dict[tuple[int, int], Knote] = {}
        self.active: dict[Knote, None] = {}  # to be looked at by the next wait
        self.lock = threading.RLock()
        self._events = ctypes.create_string_buffer(EVENT.size * _MAX_EVENTS)
        self._counts: list[int] = []  # of epoll_wait(): put there by C code, and removed when it has been dealt with
        self._wait = _libc_dropping_gil["epoll_wait"]
        self._look = _libc_keeping_gil["epoll_wait"]
        self._wait.restype = self._look.restype = self._counts.append
        self._control(_EPOLL_CTL_ADD, ALWAYS_READABLE, EPOLLIN | EPOLLET)

    def _control(self, operation: int, fd: int, events: int) -> int:
        entry = EVENT.pack(events, fd)
        if _libc_keeping_gil.epoll_ctl(self.fd, operation, fd, entry) < 0:
            return ctypes.get_errno()
        return 0

    def kick(self) -> None:
        """Make whoever waits look again: modifying what is ready makes an edge."""
        self._control(_EPOLL_CTL_MOD, ALWAYS_READABLE, EPOLLIN | EPOLLET)

    # --- changes

    def change(self, ident: int, kfilter: int, flags: int, udata: int) -> None:
        system = self.kernel.system
        if kfilter not in (system.read, system.write):
            raise Failure(errno.EINVAL)
        self._forget_if_closed(ident)
        _file_of(ident)  # FreeBSD says EBADF of a closed number, others ENOENT
        if flags & EV_DELETE:
            self._delete(ident, kfilter)
        elif flags & EV_ADD:
            self._add(ident, kfilter, flags, udata)
        elif (ident, kfilter) not in self.knotes:
            raise Failure(errno.ENOENT)

    def _add(self, ident: int, kfilter: int, flags: int, udata: int) -> None:
        faults = self.kernel.faults
        faults.before_change()
        if faults.change_error is not None:
            raise Failure(faults.change_error)
        knote = self.knotes.get((ident, kfilter)) or Knote(ident, kfilter)
        knote.flags = flags & EV_CLEAR
        knote.udata = udata
        knote.file = _file_of(ident)
        self.knotes[ident, kfilter] = knote
        # Both make an event of what is ready already.
        error = self._control(_EPOLL_CTL_ADD, ident, _INTEREST)
        if error == errno.EEXIST:
            error = self._control(_EPOLL_CTL_MOD, ident, _INTEREST)
        if error:
            del self.knotes[ident, kfilter]
            raise Failure(error)
        if kfilter == self.kernel.system.write and faults.refused_writes is not None:
            raise Failure(faults.refused_writes)

    def _delete(self, ident: int, kfilter: int) -> None:
        if self.knotes.pop((ident, kfilter), None) is None:
            raise Failure(errno.ENOENT)
        others = (self.kernel.system.read, self.kernel.system.write)
        if not any((ident, other) in self.knotes for other in others):
            self._control(_EPOLL_CTL_DEL, ident, 0)

    def _forget_if_closed(self, ident: int) -> None:
        """Knotes go with the number. epoll does not tell, and goes on reporting what has a duplicate."""
        for kfilter in (self.kernel.system.read, self.kernel.system.write):
            knote = self.knotes.get((ident, kfilter))
            if knote is not None:
                try:
                    closed = _file_of(ident) != knote.file
                except Failure:
                    closed = True
                if closed:
                    del self.knotes[ident, kfilter]

    # --- events

    def wait(self, seconds: float | None, room: int) -> list[tuple[Knote, int, int, int]]:
        """The events that are there, waiting for the first: a knote, flags, fflags and data each."""
        end = None if seconds is None else time.monotonic() + seconds
        while True:
            with self.lock:
                self._take_edges()
                reports = self._reports()
            if reports or (end is not None and time.monotonic() >= end):
                # It may be that not all fit, or were asked of epoll: the rest is for the next call.
                if len(reports) > room:
                    self.kick()
                return reports[:room]
            timeout = -1 if end is None else max(0, math.ceil((end - time.monotonic()) * 1000))
            call = self._wait if timeout else self._look
            call(self.fd, ctypes.byref(self._events), _MAX_EVENTS, timeout)
            if self._counts[0] < 0:
                number = ctypes.get_errno()
                self._counts.clear()
                raise Failure(number)

    def _take_edges(self) -> None:
        if not self._counts:
            self._look(self.fd, ctypes.byref(self._events), _MAX_EVENTS, 0)
        if self._counts[0] > 0:
            system = self.kernel.system
            for events, ident in EVENT.iter_unpack(self._events.raw[: self._counts[0] * EVENT.size]):
                for kfilter, mask in ((system.read, _READ), (system.write, _WRITE)):
                    knote = self.knotes.get((ident, kfilter))
                    if knote is not None and events & mask:
                        self.active[knote] = None
        self._counts.clear()

    def _reports(self) -> list[tuple[Knote, int, int, int]]:
        reports = []
        for knote in list(self.active):
            self._forget_if_closed(knote.ident)
            report = None
            if self.knotes.get((knote.ident, knote.filter)) is knote:
                report = self._report(knote)
            if report is None:
                del self.active[knote]
            else:
                reports.append(report)
        if reports and self.kernel.faults.spurious:
            reports += [(knote, 0, 0, 0) for knote in self.knotes.values() if knote not in self.active]
        return reports

    def _report(self, knote: Knote) -> tuple[Knote, int, int, int] | None:
        """What the filter says now; None when there is nothing to tell."""
        faults = self.kernel.faults
        poll = select.poll()
        reads = knote.filter == self.kernel.system.read
        poll.register(knote.ident, _READ if reads else _WRITE)
        ready = dict(poll.poll(0)).get(knote.ident, 0)
        if not ready:
            return None
        flags = fflags = 0
        data = 1
        at_end = EPOLLRDHUP | EPOLLHUP if reads else EPOLLHUP | EPOLLERR
        if reads:
            # FIONREAD stops at an urgent mark, where a kqueue counts on.
            data = bytes_to_read(knote.ident) + bool(ready & EPOLLPRI)
        if ready & at_end and not (reads and data and faults.concealed_eof):
            flags, fflags = EV_EOF, faults.eof_error
        return knote, flags, fflags, data

    def reported(self, reports: list[tuple[Knote, int, int, int]]) -> None:
        for knote, _, _, _ in reports:
            if knote.flags & EV_CLEAR:
                self.active.pop(knote, None)


def _address(pointer: Any) -> int:
    """The address in an argument that ctypes takes for a pointer."""
    if pointer is None:
        return 0
    if isinstance(pointer, bytes):
        return ctypes.cast(ctypes.c_char_p(pointer), ctypes.c_void_p).value or 0
    if isinstance(pointer, ctypes.c_void_p):
        return pointer.value or 0
    return ctypes.addressof(getattr(pointer, "_obj", pointer))  # what byref() made, or an array


class Kernel:
    """The functions of the library: kqueue() and kevent()."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.faults = Faults()
        self.queues: dict[int, Queue] = {}

    def functions(self) -> dict[str, Callable[..., Any]]:
        return {"kqueue": self.kqueue, self.system.symbol: self.kevent}

    def kqueue(self) -> tuple[int, Callable[[], None]]:
        fd = _libc_keeping_gil.epoll_create1(0)
        if fd < 0:
            raise Failure(ctypes.get_errno())
        self.queues[fd] = Queue(self, fd)
        return fd, _nothing

    def kevent(
        self, kq: int, changelist: Any, nchanges: Any, eventlist: Any, nevents: Any, timeout: Any
    ) -> tuple[int, Callable[[], None]]:
        system, faults = self.system, self.faults
        queue = self.queues.get(kq)
        if queue is None:
            raise Failure(errno.EBADF)
        structure = system.structure
        room = self._count(nevents)
        events = (structure * room).from_address(_address(eventlist)) if room else ()
        changes = self._count(nchanges)
        failed = []
        for entry in (structure * changes).from_address(_address(changelist)) if changes else ():
            try:
                with queue.lock:
                    queue.change(entry.ident, entry.filter, entry.flags, entry.udata)
            except Failure as failure:
                if not room:
                    raise
                failed.append((entry, failure.number))
        if changes and faults.interrupted_changes:
            faults.interrupted_changes -= 1
            raise Failure(errno.EINTR)
        for event, (entry, number) in zip(events, failed, strict=False):
            ctypes.memmove(ctypes.addressof(event), ctypes.addressof(entry), ctypes.sizeof(structure))
            event.flags, event.data = EV_ERROR, number
        if failed or not room:
            return min(len(failed), room), _nothing
        if faults.interrupted_waits:
            faults.interrupted_waits -= 1
            raise Failure(errno.EINTR)
        reports = queue.wait(self._seconds(timeout), room)
        for event, (knote, flags, fflags, data) in zip(events, reports, strict=False):
            event.ident, event.filter, event.udata = knote.ident, knote.filter, knote.udata
            event.flags = knote.flags | flags | faults.more_flags
            event.fflags, event.data = fflags, data
        return len(reports), lambda: queue.reported(reports)

    def _count(self, count: Any) -> int:
        if isinstance(count, int):
            return count
        assert isinstance(count, self.system.count_type), f"{count!r} where {self.system.count_type} is taken"
        return int(count.value)

    def _seconds(self, timeout: Any) -> float | None:
        address = _address(timeout)
        if not address:
            return None
        tv_sec, tv_nsec = (ctypes.c_int64 * 2).from_address(address)
        if tv_sec < 0 or not 0 <= tv_nsec < 1_000_000_000:
            raise Failure(errno.EINVAL)
        return float(tv_sec + tv_nsec / 1_000_000_000)


class Function:
    """Stands for a function that ctypes has found in a shared library: callable, with a type of its result."""

    argtypes: Any = None
    restype: Any = ctypes.c_int
    errcheck: Any = None

    def __init__(self, name: str, function: Callable[..., tuple[int, Callable[[], None]]]) -> None:
        self.__name__ = name
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        assert self.argtypes is None or len(arguments) == len(self.argtypes)
        try:
            value, done = self._function(*arguments)
        except Failure as failure:
            ctypes.set_errno(failure.number)
            value, done = -1, _nothing
        result = value if self.restype is ctypes.c_int else self.restype(value)
        done()
        return result if self.errcheck is None else self.errcheck(result, self, arguments)


class Functions:
    """Stands for a library that ctypes has loaded. A new object each time, as ctypes makes them."""

    def __init__(self, functions: dict[str, Callable[..., Any]]) -> None:
        self._functions = functions

    def __getitem__(self, name: str) -> Function:
        if name not in self._functions:
            raise AttributeError(f"undefined symbol: {name}")
        return Function(name, self._functions[name])


class Library:
    """Stands for gaio.platform._libc.Library."""

    def __init__(self, kernel: Kernel) -> None:
        self.keeping_gil = self.dropping_gil = Functions(kernel.functions())


def install(system: str = "freebsd", replace: Callable[[Any, str, Any], None] = setattr) -> Kernel:
    """Let gaio find this kernel where it looks for a library, as one of that system. `replace` may be undone later."""
    kernel = Kernel(SYSTEMS[system])
    real = _libc.Library
    replace(_libc, "Library", lambda path: Library(kernel) if path == PATH else real(path))
    abi = _TABLE[system]._replace(library="GAIO_KQUEUE_LIBRARY", so_nosigpipe=0)
    replace(_kqueue_abi, "ABIS", {"linux": abi})
    return kernel
