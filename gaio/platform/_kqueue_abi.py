"""kqueue(2) and kevent(2) as each system has them: what differs stands in one table.

Facts about the structures
    * FreeBSD 12 and NetBSD 11 added ext[4] to struct kevent. FreeBSD kept the name of the function: the old
      one is an old version of the symbol, which only old binaries get. NetBSD has a symbol for each.
    * NetBSD counts its filters from 0 upwards, has 32 bits for filter and flags, and counts events in size_t.
    * The plain `kevent` of NetBSD is that of releases before 6, with another time_t.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from typing import Any, NamedTuple

from gaio.platform import _libc


class ABI(NamedTuple):
    """What differs between the systems that have kqueue(2)."""

    kevent: str  # the symbol of that function
    struct_kevent: str  # ident, filter, flags, fflags, data, udata as struct.Struct; ext[4] is padding to us
    count_type: Any  # of nchanges and nevents
    EVFILT_READ: int
    EVFILT_WRITE: int
    so_nosigpipe: int = 0  # setsockopt(2): no SIGPIPE from this socket, where send(2) has no MSG_NOSIGNAL
    library: str = ""  # the environment variable with the path of the library that has it, where libc has not
    conceals_eof: bool = False  # EV_EOF may be missing from an event that also told of bytes


# <sys/event.h> of each system, LP64. The first whose name, up to the space, begins sys.platform and whose
# symbol exists is the one.
ABIS = {
    "darwin": ABI("kevent", "@PhHInP", ctypes.c_int, -1, -2, so_nosigpipe=0x1022),
    "freebsd": ABI("kevent", "@PhHIqP32x", ctypes.c_int, -1, -2),
    "dragonfly": ABI("kevent", "@PhHInP", ctypes.c_int, -1, -2),
    "netbsd 11": ABI("__kevent100", "@PIIIqP32x", ctypes.c_size_t, 0, 1),
    "netbsd": ABI("__kevent50", "@PIIIqP", ctypes.c_size_t, 0, 1),
    "openbsd": ABI("kevent", "@PhHIqP", ctypes.c_int, -1, -2),
    "linux": ABI(
        "kevent", "@PhHInP", ctypes.c_int, -1, -2, library="GAIO_KQUEUE_LIBRARY", conceals_eof=True
    ),
}

# kqueue(2): the same everywhere
EV_ADD = 0x0001
EV_DELETE = 0x0002
EV_CLEAR = 0x0020
EV_OOBAND = 0x2000  # macOS only
EV_ERROR = 0x4000
EV_EOF = 0x8000

# struct timespec: both of its members have 64 bits on every LP64 system. Always zero, and good for any thread.
_TIMESPEC = (ctypes.c_int64 * 2)()
NO_TIME = ctypes.c_void_p(ctypes.addressof(_TIMESPEC))


def system() -> tuple[ABI, _libc.Library]:
    """How kqueue is reached on this system; `OSError` says why it is not."""
    if ctypes.sizeof(ctypes.c_void_p) != 8:
        raise OSError("only the structures of 64-bit systems are known")
    missing = []
    for name, abi in ABIS.items():
        if not sys.platform.startswith(name.partition(" ")[0]):
            continue
        path = os.environ.get(abi.library) if abi.library else None
        if abi.library and not path:
            raise OSError(f"{sys.platform} has it only in a library: set {abi.library} to the path of one")
        library = _libc.Library(path)
        try:
            for symbol in ("kqueue", abi.kevent):
                library.keeping_gil[symbol]
            return abi, library
        except AttributeError as error:
            missing.append(str(error))
    raise OSError("; ".join(missing) or f"{sys.platform} is not known to have it")


class Kqueue:
    """A kqueue(2), and changes to what is registered with it.

    It is closed when the last reference goes, not by close(): a thread that is about to wake a watcher while
    another one closes it must not trigger an event of a stranger who was given the number meanwhile.
    """

    def __init__(self, abi: ABI, library: _libc.Library) -> None:
        self.abi = abi
        self.library = library
        self.structure = struct.Struct(abi.struct_kevent)
        self._kevent = _libc.checked(abi.kevent, library)
        self.fd = _libc.checked("kqueue", library)()
        self._owner = _libc.owner_of(self.fd)
        os.set_inheritable(self.fd, False)

    def entry(self, ident: int, kfilter: int, flags: int, *, udata: int) -> bytes:
        return self.structure.pack(ident, kfilter, flags, 0, 0, udata)

    def change(self, entry: bytes, *, tolerated: tuple[int, ...] = ()) -> None:
        """Apply one change; `OSError` unless it succeeds or fails with an error that is tolerated.

        One a call, and without room for events: a thread that does not lead would fetch them.
        """
        try:
            self._kevent(self.fd, entry, 1, None, 0, NO_TIME)
        except OSError as error:
            if error.errno not in tolerated:
                raise

    def look(self) -> list[tuple[int, int, int]]:
        """Fetch a few events that are there now: ident, filter and udata of each."""
        room = 8
        events = ctypes.create_string_buffer(self.structure.size * room)
        try:
            count = self._kevent(self.fd, None, 0, events, room, NO_TIME)
        except InterruptedError:
            return []
        entries = self.structure.iter_unpack(events.raw[: count * self.structure.size])
        return [(ident, kfilter, udata) for ident, kfilter, _, _, _, udata in entries]

    def disown(self) -> None:
        """Never close nor use the number: in a child of fork(2), which has no such kqueue, it may be a stranger's."""
        self.fd = -1
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._owner))
