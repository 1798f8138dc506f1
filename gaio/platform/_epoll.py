"""epoll(7), edge-triggered: the readiness backend of Linux.

Facts about epoll
    * It keys on the pair (descriptor number, open file description): a registration outlives close(2) while a
      duplicate is open elsewhere. So a number is taken out (EPOLL_CTL_DEL) before it is closed, and events carry
      a token that is never used again, not the number.
    * With EPOLLET an eventfd(2) reports every write to it, read or not: the wake-up needs no draining.
    * epoll_ctl(2) may be called while another thread is in epoll_wait(2).
    * Regular files and directories cannot be polled: EPERM.
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
import platform
import struct
from collections.abc import Mapping

from gaio.platform import _libc
from gaio.platform._eventfd import Wakeup
from gaio.platform._readiness import LONGEST_WAIT, ReadinessBackend

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:

    from gaio.platform import Descriptor
    from gaio.swap import SwapArena

# epoll_ctl(2), <sys/epoll.h>
EPOLL_CTL_ADD = 1
EPOLL_CTL_DEL = 2
EPOLLIN = 0x001
EPOLLPRI = 0x002
EPOLLOUT = 0x004
EPOLLERR = 0x008
EPOLLHUP = 0x010
EPOLLRDHUP = 0x2000
EPOLLET = 1 << 31
EPOLL_CLOEXEC = os.O_CLOEXEC  # epoll_create1(2)

INTEREST = EPOLLIN | EPOLLPRI | EPOLLOUT | EPOLLRDHUP | EPOLLET
READ_EDGE = EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLHUP | EPOLLERR
WRITE_EDGE = EPOLLOUT | EPOLLHUP | EPOLLERR
UNTIL_EAGAIN = EPOLLPRI | EPOLLRDHUP | EPOLLHUP | EPOLLERR

# struct epoll_event { uint32_t events; uint64_t data; }, packed on x86-64 only (<bits/epoll.h>): 12 bytes there,
# 16 with a hole after `events` everywhere else.
_PACKED = ("x86_64", "AMD64", "i386", "i486", "i586", "i686")


def event_format(machine: str) -> str:
    """`struct epoll_event` of that kind of machine, as the module struct writes it."""
    return "=IQ" if machine in _PACKED else "=I4xQ"


EVENT = struct.Struct(event_format(platform.machine()))

# Not more: with thousands of ready descriptors, a socket is read and answered while the processor still has it in its
# cache. Nor fewer: each batch has a cost of its own. (benchmarks/NOTES.md)
MAX_EVENTS = 256
_WAKE = 0  # the eventfd's token; those of descriptors begin with 2

# What to do about an error of EPOLL_CTL_DEL: nothing, the descriptor is not registered, which was the aim.
_NOT_REGISTERED = (errno.ENOENT, errno.EBADF)


class InterestList:
    """What an epoll waits for: epoll_create1(2) and epoll_ctl(2)."""

    def __init__(self, to_close: list[int]) -> None:
        """The caller closes it: its descriptor is appended to that list."""
        self.to_close = to_close
        self._epoll_ctl = _libc.checked("epoll_ctl")
        to_close.append(_libc.checked("epoll_create1")(EPOLL_CLOEXEC))
        self.fd = to_close[-1]

    def add(self, fd: int, events: int, token: int) -> None:
        event = (ctypes.c_char * EVENT.size).from_buffer_copy(EVENT.pack(events, token))
        self._epoll_ctl(self.fd, EPOLL_CTL_ADD, fd, ctypes.addressof(event))

    def remove(self, fd: int) -> None:
        try:
            self._epoll_ctl(self.fd, EPOLL_CTL_DEL, fd, None)
        except OSError as error:
            if error.errno not in _NOT_REGISTERED:
                raise


class EpollBackend(ReadinessBackend):
    """See the contract in gaio/platform/__init__.py."""

    name = "epoll"
    many_messages = True

    def __init__(self, arena: SwapArena, descriptors: Mapping[int, Descriptor]) -> None:
        super().__init__(arena, descriptors, EVENT.size * MAX_EVENTS)
        self._epoll_wait = _libc.collecting("epoll_wait", self._counts, waits=True)
        self._epoll_look = _libc.collecting("epoll_wait", self._counts)
        self._interest = InterestList([])
        try:
            self._wakeup = Wakeup()
            self._interest.add(self._wakeup.fd, EPOLLIN | EPOLLET, _WAKE)
        except OSError:
            self.close()
            raise

    def register(self, descriptor: Descriptor) -> None:
        self._interest.add(descriptor.fd, INTEREST, descriptor.token)

    def unregister(self, descriptor: Descriptor) -> None:
        self._interest.remove(descriptor.fd)

    def wait(self, timeout: float | None) -> None:
        if self._backing_off or self._unfinished:
            timeout = self.retry(timeout)
        if timeout == 0:
            self._epoll_look(self._interest.fd, self._events_pointer, MAX_EVENTS, 0)
        else:
            # Rounded up to whole milliseconds, or a wait for the last half of one would spin.
            milliseconds = -1 if timeout is None else math.ceil(min(timeout, LONGEST_WAIT) * 1000)
            self._epoll_wait(self._interest.fd, self._events_pointer, MAX_EVENTS, milliseconds)
        if self._counts[0] < 0:
            self._wait_failed("epoll_wait")
        else:
            self._take_events()

    def _take_events(self) -> None:
        descriptors = self._descriptors
        for events, token in EVENT.iter_unpack(self._events[: self._counts[0] * EVENT.size]):
            descriptor = descriptors.get(token)
            if descriptor is None:
                continue  # the wake-up, or a descriptor that was freed after the kernel had reported it
            if events & READ_EDGE:
                self.readable(descriptor, events & UNTIL_EAGAIN)
            if events & WRITE_EDGE:
                self.writable(descriptor)
        self._counts.clear()

    def fileno(self) -> int:
        return self._interest.fd

    def wake(self) -> None:
        self._wakeup.ring()

    def close(self) -> None:
        _libc.close_all(self._interest.to_close)

    def abandon(self) -> None:
        self.close()  # closing the child's copies takes nothing out of the parent's epoll
        # The number may be another's by the time that a call goes on which a signal handler forked in.
        self._interest.fd = -1
        self._wakeup.abandon()

    def describe(self) -> str:
        return "edge-triggered, eventfd wake-up"


open_backend = EpollBackend
