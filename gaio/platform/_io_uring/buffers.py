"""The ring of provided buffers: memory for reads without a buffer, which the kernel picks when bytes come.

Facts about io_uring that shaped this file
    * A buffer of the provided ring is consumed when bytes are received and named in the CQE; sockets consume in
      the order in which they complete. From Linux 6.12 on (IOU_PBUF_RING_INC) a message takes as much of the buffer
      as it has bytes, and the next one begins behind it; before that it took the whole buffer. How far they have
      been consumed is counted here and not read from IORING_CQE_F_BUF_MORE: kernels disagree on that flag where
      nothing was received.
    * Before Linux 6.2 the CQE of a receive that fails may come before those of earlier ones, and before 6.12 it may
      name a buffer, which nothing has been written to: see recycle_unused() of the backend.
"""

from __future__ import annotations

import ctypes
import errno
import mmap

from gaio.platform import SwapMemory, _libc
from gaio.platform._io_uring import abi
from gaio.platform._io_uring.ring import Ring
from gaio.platform._libc import MAX_RW_COUNT

BUFFER_GROUP = 0


def buffer_geometry(swap_size: int, incremental: bool) -> tuple[int, int, int]:
    """Bytes of a provided buffer, how many the kernel gets at first, and the most; these are powers of two.

    A batch can have as many messages as there are connections, however small they are. Where each takes a whole
    buffer there are many of these, and a read is cut to a quarter of `swap_size`.
    """
    if not incremental:
        return max(1, swap_size // 4), 64, 1024
    size = min(max(4 * swap_size, 65536), MAX_RW_COUNT)  # a message is cut where a buffer ends: not too often
    most = 64
    while most > 4 and size * most > 1 << 30:  # bytes of address space
        most //= 2
    return size, 4, most


class ProvidedBuffers:
    """Places in the ring are counted without end; the buffer at a place is in the entry `place & mask`.

    How far the kernel has consumed them is counted by IoUringBackend._reap(), in one store with the place in the CQ.
    """

    def __init__(self, ring: Ring, swap_size: int) -> None:
        self._ring = ring
        try:
            self._register(*buffer_geometry(swap_size, True), abi.IOU_PBUF_RING_INC)
        except OSError as error:
            if error.errno != errno.EINVAL:  # which says that the kernel does not know the flag
                raise
            self._register(*buffer_geometry(swap_size, False), 0)
        self.read_size = min(self.size, swap_size)

    def _register(self, size: int, at_first: int, most: int, flags: int) -> None:
        self.incremental = flags & abi.IOU_PBUF_RING_INC != 0
        self.size = size
        self.mask = most - 1
        self.consumed_at_least = 0 if self.incremental else size
        # Not a multiple of 4096 apart, or the first lines of all buffers would compete for the same few
        # lines of the processor's cache.
        self.stride = size + 64
        # Private: a child after fork(2) keeps what it had in hand.
        self.storage = SwapMemory(-1, self.stride * most, mmap.MAP_PRIVATE)
        self.views = self.storage.views(0, len(self.storage))
        self._address = self.storage.address
        self._entries = self._ring.map(max(most * abi.BUF_SIZE, mmap.PAGESIZE))
        self._tail_word = self._entries[abi.BUF_RING_TAIL : abi.BUF_RING_TAIL + 2].cast("H")
        self.buffer_in = [0] * most  # which buffer each entry of the ring holds
        self.lent = 0  # consumed up to the batch in the caller's hands
        self.too_few = False  # a read that is made once has found none: there are more after the next recycle()
        for index in range(at_first):
            self._write_entry(index, index)
        registration = abi.io_uring_buf_reg(
            ring_addr=ctypes.addressof(ctypes.c_char.from_buffer(self._entries)),
            ring_entries=most,
            bgid=BUFFER_GROUP,
            flags=flags,
        )
        io_uring_register = _libc.system_call(abi.SYS_io_uring_register, "io_uring_register")
        io_uring_register(self._ring.fd, abi.IORING_REGISTER_PBUF_RING, ctypes.addressof(registration), 1)
        self.provided = (at_first, at_first)  # the ring's tail, and how many buffers there are
        self._tail_word[0] = at_first

    def _write_entry(self, place: int, number: int) -> None:
        index = place & self.mask
        self.buffer_in[index] = number
        abi.BUF.pack_into(self._entries, index * abi.BUF_SIZE, self._address + number * self.stride, self.size, number)

    def recycle(self) -> None:
        """Give what was lent back to the kernel, and more where there were too few."""
        before, count = self.provided
        tail = self.lent + count
        if tail == before and not self.too_few:
            self._tail_word[0] = tail & 0xFFFF  # the last time may have been interrupted before this
            return
        for place in range(before, tail):
            self._write_entry(place, self.buffer_in[(place - count) & self.mask])
        if self.too_few:
            # Before the new ones overwrite entries that the loop above reads: interrupted, it must not be done again.
            self.provided = (tail, count)
            for number in range(count, min(2 * count, self.mask + 1)):
                self._write_entry(tail, number)
                tail, count = tail + 1, count + 1
        if tail != before:
            if self._ring.weakly_ordered:
                self._ring.keep_order()
            self.provided = (tail, count)
        self._tail_word[0] = tail & 0xFFFF
        self.too_few = False
