"""The swap arena: memory for reads that brought no buffer, allocated once and lent for one batch.

    batch 7  being written    bytes land here, one read behind the other
    batch 6  in delivery      the views that the last wait_io() returned point here
    the rest  free

`hand_over()` closes the batch being written when it is delivered; `give_back()` frees what was delivered before,
at the next `wait_io()`. A segment carries the number of the batch it was last written in, and is free when that
batch has been given back. Those two numbers are all the state there is, each changed by a single store: so an
exception between any two bytecodes leaves the arena as it was or as it shall be.

When no segment has room, a read gets private memory of its own: never a stall, never a crumb of a buffer.
"""

from __future__ import annotations

import ctypes

SEGMENTS = 3  # one in delivery, one being written, one for what a batch writes beyond the first


class Segment:
    """One stretch of the arena."""

    __slots__ = ("memory", "address", "size", "used", "batch")

    def __init__(self, size: int) -> None:
        storage = bytearray(size)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(storage))  # the view below keeps it exported
        self.memory = memoryview(storage)
        self.size = size
        self.used = 0
        self.batch = -1


class SwapArena:
    """Room for swap reads. Not thread-safe: it belongs to whoever has the watch."""

    __slots__ = ("segments", "writing", "_given_back", "_enough")

    def __init__(self, size: int) -> None:
        """`size` is the bytes of one segment, and so the largest read without a buffer."""
        self.segments = [Segment(size) for _ in range(SEGMENTS)]
        self.writing = 0  # the batch being written
        self._given_back = -1  # batches up to this one are free
        # A segment with less room than this counts as full: small messages fill it to the last sixteenth,
        # and a bulk transfer is not cut into crumbs at its end.
        self._enough = max(1, size // 16)

    def room(self, whole: bool = False) -> Segment:
        """The segment for the next read, which may use it from `used` to its end.

        `whole` asks for one that is empty: what keeps message boundaries cuts off what does not fit.
        """
        for segment in self.segments:
            if segment.batch == self.writing:
                if segment.size - segment.used >= (segment.size if whole else self._enough):
                    return segment
            elif segment.batch <= self._given_back:
                segment.used = 0
                segment.batch = self.writing
                return segment
        return Segment(self.segments[0].size)

    def storage(self) -> list[object]:
        """The objects that own the memory: what a view of it has as `obj`."""
        return [segment.memory.obj for segment in self.segments]

    def hand_over(self) -> None:
        """What was written so far is being delivered: write no more behind it."""
        self.writing += 1

    def give_back(self) -> None:
        """Everything handed over may be written again."""
        self._given_back = self.writing - 1
