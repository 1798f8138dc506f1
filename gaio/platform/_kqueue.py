"""kqueue(2), edge-triggered: the readiness backend of macOS and the BSDs; of Linux where a library offers it.

Facts about kqueue
    * A registration (knote) is keyed on the pair (descriptor number, filter), so reads and writes are
      registered apart. It goes when that number is closed, even while a duplicate stays open. Events carry a
      token that is never used again, not the number, so that none is taken for that of a later descriptor.
    * EV_CLEAR makes edges. EV_EOF comes with bytes that are still unread, and is told once, like any edge.
      Reading on finds the end, after the bytes.
    * The error of a socket stands in fflags with EV_EOF. recv(2) finds it too, unless somebody has taken it
      before: a write, or a library that asked for it with SO_ERROR to put it there.
    * A library over epoll(7) may conceal the end behind bytes that came with it. Reading on finds it.
    * `data` of a read event counts the bytes that are there. A read that returned fewer has stopped at an
      urgent mark, with more behind it and no edge to come. macOS counts up to the mark and sets EV_OOBAND.
    * EVFILT_WRITE with EV_CLEAR reports every acknowledgement that makes room, asked or not. So it is registered
      when a write has found no room for the first time, which it seldom does.
    * Registering is refused with EPIPE when the other side has gone: reading or writing finds that without any
      event. Some releases of macOS (10.10, 10.11) say EPIPE although they have registered it.
    * kevent(2) that fails with EINTR has applied its changes.
    * Closing a kqueue need not wake a kevent(2) that waits on it. The core wakes first, and closes after.
    * send(2) of macOS (xnu 11417) and NetBSD does not heed MSG_DONTWAIT where there is no room, and that of OpenBSD did
      not once: on a blocking socket it waits, here with the interpreter lock held. So sockets get O_NONBLOCK, on every
      system; read(2), write(2) and accept(2) have no such flag anyway.
    * Everything can be registered, regular files too; those would never wait, which epoll says aloud (EPERM).
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
from collections.abc import Callable, Mapping
from time import monotonic

from gaio.platform import FILE, LISTENER, SELECTOR, _libc
from gaio.platform._kqueue_abi import EV_ADD, EV_CLEAR, EV_DELETE, EV_EOF, EV_ERROR, EV_OOBAND, NO_TIME, Kqueue, system
from gaio.platform._message_attempts import READY, READY_UNTIL_EAGAIN
from gaio.platform._readiness import LONGEST_WAIT, ReadinessBackend

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from typing import Any

    from gaio.platform import Descriptor
    from gaio.swap import SwapArena

UNTIL_EAGAIN = EV_EOF | EV_ERROR | EV_OOBAND

MAX_EVENTS = 1024
_WAKE = 0  # the token of the wake-up; those of descriptors begin with 2

# What to do about these errors of a change: nothing, see the facts above.
_REGISTERED = (errno.EINTR, errno.EPIPE)
_NOT_REGISTERED = (errno.EINTR, errno.ENOENT, errno.EBADF)
# What systems say, where epoll says EPERM, of a descriptor that has no readiness.
_CANNOT_BE_POLLED = (errno.EPERM, errno.EINVAL, errno.ENODEV, errno.ENXIO, errno.EOPNOTSUPP, errno.ENOTSUP)


class SelfPipe:
    """Waking by a pipe(2) to ourselves. (EVFILT_USER is not in every system, nor does it fire in every one.)

    Closed with the last reference, for the reason that `Kqueue` gives.
    """

    def __init__(self, kqueue: Kqueue) -> None:
        self._results: list[int] = []
        self._write = _libc.collecting("write", self._results)
        self._reading, self._writing = ends = os.pipe()  # both with close-on-exec
        self._owners = [_libc.owner_of(end) for end in ends]
        for end in ends:
            os.set_blocking(end, False)
        entry = kqueue.entry(self._reading, kqueue.abi.EVFILT_READ, EV_ADD | EV_CLEAR, udata=_WAKE)
        kqueue.change(entry, tolerated=_REGISTERED)

    def ring(self) -> None:
        # EAGAIN means that the pipe is full of wake-ups already: the result says nothing.
        self._write(self._writing, b"\0", 1)
        self._results.clear()

    def silence(self) -> None:
        """Empty the pipe: once it were full, no write would make an edge any more."""
        try:
            while os.read(self._reading, 4096):
                pass
        except BlockingIOError:
            pass  # empty

    def abandon(self) -> None:
        """In a child after fork(2), where the frame of a thread that is no more may hold the last reference."""
        ends, self._reading, self._writing = (self._reading, self._writing), -1, -1
        for end, owner in zip(ends, self._owners, strict=True):
            if owner.closed:  # by the fork: CPython 3.12 takes every select.kqueue for one, which a child has not got
                os.close(end)
            else:
                owner.close()


class KqueueBackend(ReadinessBackend):
    """See the contract in gaio/platform/__init__.py."""

    name = "kqueue"

    def __init__(self, arena: SwapArena, descriptors: Mapping[int, Descriptor]) -> None:
        abi, library = system()
        self._kqueue = Kqueue(abi, library)
        super().__init__(arena, descriptors, self._kqueue.structure.size * MAX_EVENTS)
        self._wakeup = SelfPipe(self._kqueue)
        self._kevent_wait = _libc.collecting(abi.kevent, self._counts, library, waits=True)
        self._kevent_look = _libc.collecting(abi.kevent, self._counts, library)
        self._setsockopt = _libc.checked("setsockopt")
        self._no_changes = abi.count_type(0)
        self._max_events = abi.count_type(MAX_EVENTS)
        self._timespec = (ctypes.c_int64 * 2)()
        self._timespec_pointer = ctypes.c_void_p(ctypes.addressof(self._timespec))

    def register(self, descriptor: Descriptor) -> None:
        fd, kqueue, abi = descriptor.fd, self._kqueue, self._kqueue.abi
        if descriptor.kind >= FILE:
            if stat.S_IFMT(os.fstat(fd).st_mode) in (stat.S_IFREG, stat.S_IFDIR):
                raise PermissionError(errno.EPERM, "a regular file or a directory is never waited for")
        elif abi.so_nosigpipe:
            self._suppress_sigpipe(fd)
        if descriptor.kind == LISTENER:
            # Tried at once: one that does not listen, which macOS and OpenBSD do not tell, never turns readable.
            descriptor.reads.ready = READY
        try:
            entry = kqueue.entry(fd, abi.EVFILT_READ, EV_ADD | EV_CLEAR, udata=descriptor.token)
            kqueue.change(entry, tolerated=(errno.EINTR,))
        except OSError as error:
            if error.errno in _CANNOT_BE_POLLED:
                raise PermissionError(errno.EPERM, f"kqueue cannot watch it: {error}") from error
            if error.errno != errno.EPIPE:
                raise
            descriptor.reads.ready = READY_UNTIL_EAGAIN  # there need not be any event: an attempt finds out
        if descriptor.kind != SELECTOR:  # ENOTTY, and it never blocks
            os.set_blocking(fd, False)  # last: what is refused stays as it was

    def _suppress_sigpipe(self, fd: int) -> None:
        option = self._kqueue.abi.so_nosigpipe
        try:
            self._setsockopt(fd, socket.SOL_SOCKET, option, ctypes.byref(ctypes.c_int(1)), 4)
        except OSError as error:
            if error.errno != errno.EINVAL:  # what macOS says of a connection that has been reset
                raise

    def unregister(self, descriptor: Descriptor) -> None:
        kqueue, abi, writes = self._kqueue, self._kqueue.abi, descriptor.writes
        filters = (abi.EVFILT_READ, abi.EVFILT_WRITE) if writes and writes.entry else (abi.EVFILT_READ,)
        for kfilter in filters:
            entry = kqueue.entry(descriptor.fd, kfilter, EV_DELETE, udata=_WAKE)
            kqueue.change(entry, tolerated=_NOT_REGISTERED)

    def start(self, requests: list[Any]) -> None:
        super().start(requests)
        for request in requests:
            queue = request._queue
            if queue.outbound and queue.waiting is request and not queue.entry:
                self._await_room(request, queue)

    def _await_room(self, request: Any, queue: Any) -> None:
        """From now on an edge tells when there is room to write again; there may be some already."""
        descriptor, kqueue = queue.descriptor, self._kqueue
        kfilter = kqueue.abi.EVFILT_WRITE
        entry = kqueue.entry(queue.fd, kfilter, EV_ADD | EV_CLEAR, udata=descriptor.token)
        try:
            kqueue.change(entry, tolerated=(errno.EINTR,))
        except OSError as error:
            if error.errno == errno.EPIPE:
                self._try_write(request, queue)
            else:
                self._complete(request, queue, -(error.errno or errno.EIO))
                return
        queue.entry = entry

    def wait(self, timeout: float | None) -> None:
        if self._backing_off or self._unfinished:
            timeout = self.retry(timeout)
        kevent: Callable[..., None] = self._kevent_wait
        time_pointer = None
        if timeout == 0:
            kevent, time_pointer = self._kevent_look, NO_TIME
        elif timeout is not None:
            nanoseconds = int(min(timeout, LONGEST_WAIT) * 1_000_000_000)
            self._timespec[0], self._timespec[1] = divmod(nanoseconds, 1_000_000_000)
            time_pointer = self._timespec_pointer
        kevent(self._kqueue.fd, None, self._no_changes, self._events_pointer, self._max_events, time_pointer)
        if self._counts[0] < 0:
            self._wait_failed("kevent")
        else:
            self._take_events()

    def _take_events(self) -> None:
        descriptors = self._descriptors
        structure = self._kqueue.structure
        evfilt_read = self._kqueue.abi.EVFILT_READ
        always = self._kqueue.abi.conceals_eof
        entries = structure.iter_unpack(self._events[: self._counts[0] * structure.size])
        for _, kfilter, flags, fflags, data, token in entries:
            descriptor = descriptors.get(token)
            if descriptor is None:
                # The wake-up, or a descriptor that was freed after the kernel had reported it.
                if token == _WAKE:
                    self._wakeup.silence()
            elif kfilter == evfilt_read:
                queue = descriptor.reads
                request = queue.waiting
                if flags & EV_EOF and fflags:
                    self.failed(descriptor, -fflags)
                else:
                    # Nobody waits, or for more than one count: then nobody compares it, see the facts about `data`.
                    unknown = always or request is None or request.more
                    self.readable(descriptor, flags & UNTIL_EAGAIN or unknown)
                    if request is not None and queue.waiting is None and 0 <= request._result < data:
                        queue.ready = READY_UNTIL_EAGAIN
            elif flags & EV_EOF and fflags:
                self.failed(descriptor, -fflags)
                self.writable(descriptor)
            else:
                self.writable(descriptor)
        self._counts.clear()

    def fileno(self) -> int:
        return self._kqueue.fd

    def wake(self) -> None:
        self._wakeup.ring()

    def close(self) -> None:
        """Nothing to do: the kqueue and the pipe go with this object."""

    def abandon(self) -> None:
        self._kqueue.disown()
        self._wakeup.abandon()

    def check_layout(self) -> None:
        """`OSError` when the kernel does not speak as this file understands it.

        Two events in one array: the second is where it belongs only if the size of the structure is right.
        """
        kqueue, evfilt_write = self._kqueue, self._kqueue.abi.EVFILT_WRITE
        ends = socket.socketpair()
        with ends[0], ends[1]:
            expected = [(end.fileno(), evfilt_write, token) for token, end in enumerate(ends, 1)]
            for ident, kfilter, token in expected:
                kqueue.change(kqueue.entry(ident, kfilter, EV_ADD, udata=token), tolerated=_REGISTERED)
            seen: set[tuple[int, int, int]] = set()
            give_up = monotonic() + 1
            while not seen.issuperset(expected):
                if monotonic() > give_up:
                    raise OSError(f"{kqueue.abi.kevent}() reports events in a form that is not known")
                seen.update(kqueue.look())
            for ident, kfilter, _ in expected:
                kqueue.change(kqueue.entry(ident, kfilter, EV_DELETE, udata=_WAKE), tolerated=_NOT_REGISTERED)

    def describe(self) -> str:
        return "edge-triggered, pipe wake-up"


def open_backend(arena: SwapArena, descriptors: Mapping[int, Descriptor]) -> KqueueBackend:
    """A kqueue that has been tried out; `OSError` where there can be none."""
    backend = KqueueBackend(arena, descriptors)
    backend.check_layout()
    return backend
