"""The swap arena: memory for reads that brought no buffer, lent for one batch and then used again.

This is that of epoll and kqueue; over io_uring the kernel picks the memory, see gaio/platform/_io_uring/buffers.py. A
view that is written back is copied or lent by memory_for_write() in gaio/memory.py, and recycle_lent() in
gaio/writes.py sees to it before its memory is used again.

    batch 7  being written    bytes land here, one read behind the other
    batch 6  in delivery      the views that the last wait_io() returned point here
    the rest  free

`lend()` closes the batch being written when it is delivered; `recycle()` frees what was delivered before,
at the next `wait_io()`. A segment carries the number of the batch it was last written in, and is free when that
batch has been given back. So an exception between any two bytecodes leaves the arena as it was, as it shall be, or
with a segment that is out of use for one batch.

The segments stand in a circle and are taken in turn. When the next one is not free yet another is put in before it,
up to a limit: so there are as many as the largest batches take. Beyond the limit a single read gets a spare segment,
from which its bytes are copied at once: it never stalls, nor gets a crumb of a buffer, and takes no more memory than
there are bytes. One that repeats waits for the next `recycle()` instead.
"""

from __future__ import annotations

import ctypes
import mmap

from gaio.platform import SwapMemory, SwapViews

SEGMENTS = 256
LIMIT = 64 << 20  # bytes of all segments together; of address space, which takes memory where it has been written


class Segment:
    """One stretch of memory."""

    __slots__ = ("memory", "address", "size", "used", "batch")

    def __init__(self, memory: memoryview | SwapViews, address: int, size: int) -> None:
        self.memory = memory
        self.address = address
        self.size = size
        self.used = 0
        self.batch = -1


class SwapArena:
    """Room for swap reads. Not thread-safe: it belongs to the leader."""

    def __init__(self, size: int, limit: int = LIMIT) -> None:
        """`size` is the bytes of one segment, and so the largest read without a buffer."""
        self.size = size
        self._most = max(2, min(SEGMENTS, limit // size))  # one in delivery, one being written, and more
        # Private: a child after fork(2) keeps what it had in hand.
        self.storage = SwapMemory(-1, size * self._most, mmap.MAP_PRIVATE)
        self._address = self.storage.address
        self.writing = 0  # the batch being written
        self._recycled = -1  # batches up to this one are free
        # A segment with less room than this counts as full: small messages fill it to the last sixteenth,
        # and a bulk transfer is not cut into crumbs at its end.
        self._enough = max(1, size // 16)
        self.segments = [self._segment(0)]
        self._current = self.segments[0]
        self._place = 0  # of the current segment in the circle
        self._spare: Segment | None = None  # of no batch

    def room(self, whole: bool = False) -> Segment:
        """The segment for the next read, which may use it from `used` to its end.

        What is read into one of no batch (-1) is to be copied before the next call, and its `used` stays 0. `whole`
        asks for one that is empty: a pipe or a terminal may keep boundaries, and cut off what does not fit.
        """
        segment = self._current
        needed = segment.size if whole else self._enough
        if segment.batch == self.writing and segment.size - segment.used >= needed:
            return segment
        return self._next()

    def _segment(self, start: int) -> Segment:
        return Segment(self.storage.views(start, start + self.size), self._address + start, self.size)

    def _next(self) -> Segment:
        segments = self.segments
        place = (self._place + 1) % len(segments)
        segment = segments[place]
        if segment.batch > self._recycled:
            count = len(segments)
            if count == self._most:
                if self._spare is None:
                    memory = memoryview(mmap.mmap(-1, self.size, mmap.MAP_PRIVATE))  # nobody else gets to see it
                    self._spare = Segment(memory, ctypes.addressof(ctypes.c_char.from_buffer(memory)), self.size)
                return self._spare
            segment = self._segment(count * self.size)
            segments.insert(place, segment)
        segment.used = 0
        segment.batch = self.writing
        self._place = place
        self._current = segment
        return segment

    def lend(self) -> None:
        """What was written so far is being delivered: write no more behind it."""
        self.writing += 1

    def recycle(self) -> None:
        """Everything handed over may be written again."""
        self._recycled = self.writing - 1
