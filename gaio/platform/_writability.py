"""Which descriptors can be written to: an epoll(7), for what io_uring(7) does not wait for well."""

from __future__ import annotations

import ctypes
import errno

from gaio.platform import _libc
from gaio.platform._epoll import EPOLLOUT, EVENT, MAX_EVENTS, InterestList


class Writability:
    """Level-triggered, so that an exception between any two bytecodes loses nothing: what was told is told again.

    It polls as readable while one of the descriptors can be written to, or has failed.
    """

    def __init__(self, to_close: list[int]) -> None:
        """The caller closes it: its descriptor is appended to that list."""
        self._watched: set[int] = set()
        events = bytearray(EVENT.size * MAX_EVENTS)
        self._events_pointer = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(events)))
        self._events = memoryview(events)  # keeps the array exported, so its address holds
        self._counts: list[int] = []
        self._epoll_wait = _libc.collecting("epoll_wait", self._counts)
        self._interest = InterestList(to_close)
        self.fd = self._interest.fd

    def watch(self, fd: int) -> None:
        """May raise OSError: ENOMEM, or ENOSPC beyond /proc/sys/fs/epoll/max_user_watches."""
        self._watched.add(fd)
        try:
            self._interest.add(fd, EPOLLOUT, fd)
        except OSError as error:
            if error.errno != errno.EEXIST:  # watched already, since its last write was called off
                raise

    def look(self) -> list[int]:
        """Those that can be written to, MAX_EVENTS at most; each is watched until it is left alone."""
        self._counts.clear()
        self._epoll_wait(self.fd, self._events_pointer, MAX_EVENTS, 0)
        count = self._counts[0]
        if count < 0:
            raise _libc.failed("epoll_wait", ctypes.get_errno())
        return [fd for _, fd in EVENT.iter_unpack(self._events[: count * EVENT.size])]

    def leave_alone(self, fd: int) -> None:
        """Also before it is closed: see the facts about epoll in _epoll.py."""
        if fd in self._watched:
            self._interest.remove(fd)
            self._watched.discard(fd)
