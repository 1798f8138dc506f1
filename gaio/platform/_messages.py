"""Receiving messages: recvmsg(2) and recvmmsg(2), which tell who sent one, and whether it was cut off.

For every backend, those of io_uring too: a ring can only poll for a message. To receive one, it would need a `msghdr`
and room for the largest message for each request that waits, or provided buffers of that size. Here all requests have
one room in common, which is used when there is something to receive, and each result gets a copy of its own bytes.

Facts about messages
    * What the buffer has no room for is lost. MSG_TRUNC tells so, on every system.
    * recvmmsg(2) takes a third of the time that as many calls of recvmsg(2) do, from ctypes. It is Linux's; those of
      the BSDs are loops in libc or count in other types. It ends with fewer messages than it was asked for when there
      are no more, or at an error, which the next call tells.
    * recvmmsg(2) takes the end of a SOCK_SEQPACKET socket for any number of messages without bytes.
    * A Unix socket that has sent but was never bound has no name: the length of its address is 0.

Facts about interruption
    What a call returned, and what it wrote here, holds until the next call. found() and fill() change nothing, so they
    may be done again.
"""

from __future__ import annotations

import ctypes
import mmap
import socket
import struct
import sys

from gaio.memory import iovec
from gaio.platform import DATAGRAM, TRUNCATED, _libc
from gaio.platform._libc import MAX_RW_COUNT, msghdr

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from typing import Any

MOST = 16  # messages of one call
_MOST_ROOM = 16 << 20  # bytes for these. It is address space, and takes memory where it has been written

_NAME_SIZE = 128  # struct sockaddr_storage, <sys/socket.h>
_FLAGS = int(socket.MSG_DONTWAIT)
_MSG_TRUNC = int(socket.MSG_TRUNC)  # of the enumeration, `&` is a call of Python code
_HAS_RECVMMSG = sys.platform.startswith("linux")


class mmsghdr(ctypes.Structure):
    """`struct mmsghdr` of recvmmsg(2), which begins with what recvmsg(2) takes."""

    _fields_ = [("msg_hdr", msghdr), ("msg_len", ctypes.c_uint)]


_HEADER_SIZE = ctypes.sizeof(mmsghdr)


def _format(*fields: tuple[int, str]) -> struct.Struct:
    """What reads the fields at these places of an mmsghdr, passing over the rest."""
    layout, end = "@", 0
    for place, code in fields:
        layout += f"{place - end}x{code}"
        end = place + struct.calcsize(code)
    return struct.Struct(f"{layout}{_HEADER_SIZE - end}x")


_FOUND = _format((msghdr.msg_namelen.offset, "I"), (msghdr.msg_flags.offset, "i"), (mmsghdr.msg_len.offset, "I"))


class Messages:
    """Room for the messages of one call, and what it says of them."""

    def __init__(self, size: int, returned: list[int], together: bool = _HAS_RECVMMSG) -> None:
        """`size` is the most bytes of a message for which the caller has brought no buffer. What a call returns is
        appended to `returned`. `together`: whether one call may receive many.
        """
        most = self.most = max(1, min(MOST, _MOST_ROOM // size)) if together else 1
        self.asked = 1  # so many messages, by the last call
        self._size = size
        self._room = mmap.mmap(-1, most * size, mmap.MAP_PRIVATE)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._room))
        self._names: Any = (ctypes.c_char * (most * _NAME_SIZE))()
        names = ctypes.addressof(self._names)
        self._iovecs = (iovec * most)()
        storage = bytearray(most * _HEADER_SIZE)
        headers = (mmsghdr * most).from_buffer(storage)
        for place, (header, part) in enumerate(zip(headers, self._iovecs, strict=True)):
            part.iov_base, part.iov_len = self._address + place * size, size
            header.msg_hdr.msg_name, header.msg_hdr.msg_namelen = names + place * _NAME_SIZE, _NAME_SIZE
            header.msg_hdr.msg_iov, header.msg_hdr.msg_iovlen = ctypes.addressof(part), 1
        self._pointed_to = (self._address, size)
        self._pointer = ctypes.c_void_p(ctypes.addressof(headers))
        self._headers = memoryview(storage)
        # Of the first header. As objects of their own they take a third of the time that fields of a structure take.
        self._namelen = ctypes.c_uint.from_buffer(storage, msghdr.msg_namelen.offset)
        self._flags = ctypes.c_int.from_buffer(storage, msghdr.msg_flags.offset)
        self._fresh = bytes(storage)  # they are written anew before each call, which changes them
        self._recvmsg = _libc.collecting("recvmsg", returned)
        self._no_limit = ctypes.c_void_p()
        self._recvmmsg = _libc.collecting("recvmmsg", returned) if most > 1 else None

    def receive(self, request: Any, fd: int) -> None:
        """Receive the next message, for a request that does not repeat."""
        memory, offset = request._memory, request._offset
        if memory is None:
            self._point(self._address, self._size)
        else:
            self._point(memory.address + offset, min(request._length - offset, MAX_RW_COUNT))
        self._namelen.value = _NAME_SIZE
        self.asked = 1
        self._recvmsg(fd, self._pointer, _FLAGS)

    def receive_some(self, fd: int, kind: int) -> None:
        """Receive up to `most` messages, for a request that repeats."""
        self._point(self._address, self._size)
        if self._recvmmsg is None or kind != DATAGRAM:
            self._namelen.value = _NAME_SIZE
            self.asked = 1
            self._recvmsg(fd, self._pointer, _FLAGS)
        else:
            self._headers[:] = self._fresh
            self.asked = self.most
            self._recvmmsg(fd, self._pointer, self.most, _FLAGS, self._no_limit)

    def _point(self, address: int, length: int) -> None:
        """Where the first message goes."""
        if self._pointed_to != (address, length):
            first = self._iovecs[0]
            first.iov_base, first.iov_len = address, length
            self._pointed_to = (address, length)

    def fill(self, request: Any, returned: int) -> int:
        """Give the request what receive() has brought; the result."""
        request._sender = self._names[: self._namelen.value]
        if request._memory is None and returned:
            request.buffer = memoryview(self._room[:returned])
            request._length = returned  # not the arena's: the view is the caller's for good
        return TRUNCATED - returned if self._flags.value & _MSG_TRUNC else returned

    def found(self, returned: int) -> list[tuple[memoryview, bytes, bool]]:
        """What receive_some() has brought, as arrivals: bytes, sender, whether it was cut off."""
        room, names, size = self._room, self._names, self._size
        if self.asked == 1:
            name, cut_off = names[: self._namelen.value], self._flags.value & _MSG_TRUNC
            return [(memoryview(room[:returned]), name, bool(cut_off))]
        messages = []
        start = place = 0
        for namelen, flags, length in _FOUND.iter_unpack(self._headers[: returned * _HEADER_SIZE]):
            name, cut_off = names[place : place + namelen], flags & _MSG_TRUNC
            messages.append((memoryview(room[start : start + length]), name, bool(cut_off)))
            start += size
            place += _NAME_SIZE
        return messages
