"""Waking a thread that waits in the kernel, on Linux: an eventfd(2)."""

from __future__ import annotations

import os
import sys

from gaio.platform import _libc

# eventfd(2): the same values as open(2) has
EFD_CLOEXEC = os.O_CLOEXEC
EFD_NONBLOCK = os.O_NONBLOCK

_ONE = (1).to_bytes(8, sys.byteorder)  # what a write adds to the counter


class Wakeup:
    """An eventfd(2) that any thread may write to.

    It is closed when the last reference goes, not by close(): a thread that is about to wake a watcher while
    another one closes it must not write into a number that has been given to a stranger meanwhile.
    """

    def __init__(self) -> None:
        self._results: list[int] = []
        self._write = _libc.collecting("write", self._results)
        self.fd = _libc.checked("eventfd")(0, EFD_CLOEXEC | EFD_NONBLOCK)
        self._owner = _libc.owner_of(self.fd)

    def abandon(self) -> None:
        """In a child after fork(2), where the frame of a thread that is no more may hold the last reference."""
        self.fd = -1
        self._owner.close()

    def ring(self) -> None:
        # The counter cannot overflow in the life of a machine, and nothing else can fail: the result says nothing.
        self._write(self.fd, _ONE, 8)
        self._results.clear()
