"""The memory of requests: addresses that the kernel may use while a request is pending.

A request's memory is one of
    None          a read without a buffer: the backend takes room from the swap arena when bytes come
    bytes         a write of up to MAX_RW_COUNT bytes: immutable, so holding the object keeps its address good
    Pinned        a caller's buffer, exported so that it can be neither resized nor freed meanwhile; PinnedReadOnly
                  where ctypes does not export it, PinnedApart where there is no interpreter lock
    Lent          a large view of the watcher's own swap memory, until that is recycled
    Vector        many of those, one vectored write
    Addressed     a datagram, and where it goes
and of requests that move no bytes: a SocketAddress to connect to, None to shut down or to accept.

Ownership: the request holds its memory from the moment it is submitted until its result is made. That is
what keeps the address valid, so nothing may drop a request that the kernel still holds.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from collections.abc import Callable, Sequence

from gaio.errors import EmptyBufferError
from gaio.platform import FREE_THREADED, SwapMemory
from gaio.platform._libc import IOV_MAX, MAX_RW_COUNT

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from typing import Any

    from gaio.platform import Descriptor

# A write of up to so many bytes is copied when it is submitted. A copy costs less than an export, and the caller may
# use the buffer again at once. For the same reason a vectored write is joined if it has no more than JOIN_LIMIT bytes,
# or no more than JOIN_PART for each part.
COPY_LIMIT = 4096
JOIN_LIMIT = 65536
JOIN_PART = 512

# From so many bytes on a swap view is written where it is. Below, a copy costs less than to look up its address and to
# keep account of it (benchmarks/NOTES.md).
LENT_FROM = 8192

NOTHING_TO_WRITE = "there is nothing to write: pass at least one byte"

_PyBUF_SIMPLE = 0


class _Py_buffer(ctypes.Structure):
    """`Py_buffer` of CPython's buffer protocol. Its layout is part of the stable ABI (since Python 3.11)."""

    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


_PyObject_GetBuffer = ctypes.pythonapi.PyObject_GetBuffer
_PyObject_GetBuffer.argtypes = (ctypes.py_object, ctypes.POINTER(_Py_buffer), ctypes.c_int)
_PyObject_GetBuffer.restype = ctypes.c_int
_PyBuffer_Release = ctypes.pythonapi.PyBuffer_Release
_PyBuffer_Release.argtypes = (ctypes.POINTER(_Py_buffer),)
_PyBuffer_Release.restype = None


def _address_by_export(view: memoryview) -> int:
    """Where its first byte is. This exports the view itself, and makes no further view."""
    export = _Py_buffer()
    try:
        _PyObject_GetBuffer(view, export, _PyBUF_SIMPLE)
        return export.buf or 0
    finally:
        _PyBuffer_Release(export)  # does nothing when there was no export


def _place_of_address() -> int | None:
    """How far into a memoryview object CPython keeps that address, or None: found by looking, on this very build."""
    memory = memoryview(bytearray(64))
    views = [memory[start:] for start in (0, 1, 40)]
    addresses = [_address_by_export(view) for view in views]
    for place in range(2 * ctypes.sizeof(ctypes.c_void_p), memoryview.__basicsize__, ctypes.sizeof(ctypes.c_void_p)):
        if [ctypes.c_void_p.from_address(id(view) + place).value for view in views] == addresses:
            return place
    return None


_ADDRESS_AT = _place_of_address()


def _address_of_view(view: memoryview) -> int:
    """What _address_by_export() tells, in a third of the time."""
    if _ADDRESS_AT is None:
        return _address_by_export(view)
    return ctypes.c_void_p.from_address(id(view) + _ADDRESS_AT).value or 0


class Pinned(ctypes.c_char):
    """A buffer with a fixed address. It is exported, so its owner refuses to resize it. `from_buffer()` makes it.

    A single character stands for the whole buffer. With an array type, ctypes would make and keep a class for every
    length there is.
    """

    __slots__ = ()

    address = property(ctypes.addressof)


class PinnedReadOnly:
    """The same for read-only memory, which ctypes does not export."""

    __slots__ = ("address", "_view")

    def __init__(self, view: memoryview) -> None:
        """Pin what the view shows. Nobody else may have the view, because releasing it would unpin."""
        self._view = view
        self.address = _address_of_view(view)


class PinnedApart:
    """The same for either kind, where there is no interpreter lock.

    There, views that are made of one another are counted together. That count goes wrong when several threads make and
    drop views at the same time (CPython issue 127716). So this asks the owner of the memory for another export, which
    is counted apart from the caller's view.

    `release()` ends that export. Without it, memory that one thread has pinned and another one unpins would stay pinned
    until the first thread runs again.
    """

    __slots__ = ("address", "_view")

    def __init__(self, buffer: Any) -> None:
        if type(buffer) is memoryview:
            self.address = _address_of_view(buffer)
            self._view = _exported_anew(buffer, self.address)
        else:
            self._view = memoryview(buffer)
            self.address = _address_of_view(self._view)

    def release(self) -> None:
        self._view.release()


def _exported_anew(view: memoryview, address: int) -> memoryview:
    try:
        whole = memoryview(view.obj)
        start = _address_of_view(whole)
        if start <= address and address + view.nbytes <= start + whole.nbytes:
            return whole
    except (TypeError, ValueError, BufferError):
        pass
    return memoryview(view)  # the owner is not known, or gives something else each time (PEP 688)


def _view_itself(buffer: Any) -> memoryview:
    return buffer if type(buffer) is memoryview else memoryview(buffer)


_view_to_pin: Callable[[Any], memoryview] = _view_itself if FREE_THREADED else memoryview
_pin: Callable[[Any], Pinned | PinnedApart] = PinnedApart if FREE_THREADED else Pinned.from_buffer
_pin_read_only: Callable[[memoryview], PinnedReadOnly | PinnedApart] = PinnedApart if FREE_THREADED else PinnedReadOnly


class Lent:
    """A swap view that is written where it is. Before its memory is recycled the rest is copied: recycle_lent()."""

    __slots__ = ("address",)

    def __init__(self, view: memoryview) -> None:
        self.address = _address_of_view(view)

    def copy(self, length: int) -> bytes:
        return ctypes.string_at(self.address, length)


class SocketAddress:
    """Where a connect() goes. No bytes move through this memory, but the kernel reads it."""

    __slots__ = ("data", "begun")

    def __init__(self, data: bytes) -> None:
        self.data = data  # struct sockaddr
        self.begun = False  # for the backend: the first attempt has been made


class Addressed:
    """A datagram that goes to an address: sendto(2). Always a copy, for none is large."""

    __slots__ = ("data", "name", "by_time")

    def __init__(self, data: bytes, name: bytes, by_time: bool) -> None:
        self.data = data
        self.name = name  # struct sockaddr
        # Whether the kernel does not tell when there is room. A Unix socket that is not connected polls as writable,
        # also while the queue of the receiver is full: sendto(2) says EAGAIN, until some time.
        self.by_time = by_time


def is_connecting(descriptor: Descriptor) -> bool:
    """Whether the backend has a connect() of it under way."""
    writes = descriptor.writes
    return writes is not None and writes.waiting is not None and type(writes.waiting._memory) is SocketAddress


class iovec(ctypes.Structure):
    """`struct iovec` of readv(2)."""

    _fields_ = [("iov_base", ctypes.c_void_p), ("iov_len", ctypes.c_size_t)]


class Vector:
    """Buffers that are written one after the other: the `iovec` array of writev(2)."""

    __slots__ = ("_pins", "_ends", "_lengths", "_iovecs")

    def __init__(self, parts: Sequence[memoryview]) -> None:
        self._pins = [_pin_read_only(part) if part.readonly else _pin(part) for part in parts]
        self._lengths = [part.nbytes for part in parts]
        self._ends: list[int] = []
        end = 0
        for length in self._lengths:
            end += length
            self._ends.append(end)
        self._iovecs = (iovec * len(parts))()
        for entry, pinned, length in zip(self._iovecs, self._pins, self._lengths, strict=True):
            entry.iov_base = pinned.address
            entry.iov_len = length

    def release(self) -> None:
        """See PinnedApart."""
        for pin in self._pins:
            if type(pin) is PinnedApart:
                pin.release()

    def within(self, offset: int, count: int) -> int:
        """When `offset` bytes have moved: how many bytes the next `count` entries have."""
        last = min(bisect_right(self._ends, offset) + count, len(self._ends)) - 1
        return self._ends[last] - offset

    def after(self, offset: int) -> tuple[int, int]:
        """When `offset` bytes have moved: address and count of the entries that are left."""
        index = bisect_right(self._ends, offset)
        start = self._ends[index] - self._lengths[index]
        entry = self._iovecs[index]
        entry.iov_base = self._pins[index].address + (offset - start)
        entry.iov_len = self._lengths[index] - (offset - start)
        return ctypes.addressof(self._iovecs) + index * ctypes.sizeof(iovec), len(self._pins) - index


def _byte_view(buffer: Any) -> memoryview:
    """A view of what write() is to write."""
    try:
        view = _view_to_pin(buffer)
    except TypeError:
        hint = "encode it first" if isinstance(buffer, str) else "pass bytes, a bytearray or a memoryview"
        raise TypeError(f"write() needs a buffer of bytes, not {type(buffer).__name__}: {hint}") from None
    if not view.c_contiguous:
        raise BufferError("write() needs a contiguous buffer: pass bytes(view) instead of a strided view")
    return view


def pin_for_read(buffer: Any, operation: str = "read") -> tuple[Pinned | PinnedApart, int]:
    """Pin the caller's buffer that a read is to fill, and tell its length in bytes.

    `TypeError` when it is no buffer, `BufferError` when it is read-only or not contiguous,
    `EmptyBufferError` when it has no room.
    """
    try:
        if type(buffer) is bytearray:
            return _pin(buffer), len(buffer)
        if not FREE_THREADED:
            view = memoryview(buffer)  # asked once, because an object may give another buffer each time (PEP 688)
            return Pinned.from_buffer(view), view.nbytes
    except (TypeError, ValueError, BufferError):
        pass  # what ctypes says does not help: find out what is wrong, and say what to do
    or_none = ", or no buffer" if operation == "read" else ""
    try:
        view = _view_to_pin(buffer)
    except TypeError:
        is_size = isinstance(buffer, int) and 1 < buffer <= MAX_RW_COUNT  # as recv() takes one
        hint = f"pass bytearray({buffer})" if is_size else "pass a bytearray"
        raise TypeError(
            f"{operation}() needs a buffer to fill, not {type(buffer).__name__}: {hint}{or_none}"
        ) from None
    if view.readonly:
        raise BufferError(f"{operation}() needs a writable buffer: pass a bytearray{or_none}")
    if not view.c_contiguous:
        raise BufferError(f"{operation}() needs a contiguous buffer: pass bytearray({view.nbytes}){or_none}")
    if not view.nbytes:
        raise EmptyBufferError(f"the buffer has no room: pass one of at least one byte{or_none}")
    return _pin(view if FREE_THREADED else view.cast("B")), view.nbytes


def memory_for_write(
    buffer: Any, own: SwapMemory | None = None, one_message: bool = False
) -> tuple[bytes | Pinned | PinnedReadOnly | PinnedApart | Lent | Vector, int]:
    """What the kernel shall write for `buffer` (one buffer, or a sequence of them), and its length in bytes.

    Views of swap memory are copied, because that memory will be written again before the write is done. Large ones of
    the watcher's `own` are not: the leader sees to these. With `one_message` a sequence is for one call of sendmsg(2),
    whatever its length.
    `TypeError` when it is no buffer, `BufferError` when it is not contiguous, `EmptyBufferError` when there
    are no bytes in it.
    """
    if isinstance(buffer, (list, tuple)):
        return _gather(buffer, one_message)
    try:
        view = buffer if type(buffer) is memoryview and buffer.c_contiguous else _byte_view(buffer)
    except TypeError:
        if isinstance(buffer, Sequence) and not isinstance(buffer, str):  # a deque, say; buffers may be sequences, too
            return _gather(buffer, one_message)
        raise
    length = view.nbytes
    if not length:
        raise EmptyBufferError(NOTHING_TO_WRITE)
    if length <= COPY_LIMIT:
        return view.tobytes(), length
    if type(view.obj) is SwapMemory:
        return Lent(view) if view.obj is own and length >= LENT_FROM else view.tobytes(), length
    return (_pin_read_only(_view_to_pin(view)) if view.readonly else _pin(view)), length


def copied_for_write(buffer: Any) -> bytes:
    """All of it, for a datagram that goes to an address. The errors of memory_for_write()."""
    if type(buffer) is bytes and buffer:
        return buffer
    is_sequence = isinstance(buffer, (list, tuple))
    try:
        parts = buffer if is_sequence else (_byte_view(buffer),)
    except TypeError:
        if not isinstance(buffer, Sequence) or isinstance(buffer, str):
            raise
        parts = buffer
    data = b"".join([_byte_view(part) for part in parts])
    if not data:
        raise EmptyBufferError(NOTHING_TO_WRITE)
    return data


def _gather(parts: Sequence[Any], one_message: bool) -> tuple[bytes | Vector, int]:
    views = [view for view in (_byte_view(part) for part in parts) if view.nbytes]
    length = sum(view.nbytes for view in views)
    if not length:
        raise EmptyBufferError(NOTHING_TO_WRITE)
    joined = length <= max(JOIN_LIMIT, len(views) * JOIN_PART) or (one_message and len(views) > IOV_MAX)
    if joined and length <= MAX_RW_COUNT:
        return b"".join(views), length
    return Vector([memoryview(view.tobytes()) if type(view.obj) is SwapMemory else view for view in views]), length
