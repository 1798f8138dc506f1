"""The memory that io_uring(7) shares with this process, and io_uring_enter(2).

    submission queue (SQ)   push() writes entries (SQEs); one store of the tail makes the batch the kernel's
    completion queue (CQ)   its entries (CQEs) are read where they are, and stay there until the head is stored

Facts about io_uring that shaped this file
    * A request belongs to the thread that submitted it: its completion is worked out in that thread, and when
      the thread exits the kernel cancels it. The leader changes from thread to thread, so SINGLE_ISSUER and
      DEFER_TASKRUN are out.
    * The kernel keeps what the CQ cannot hold, and adds it at the next enter (IORING_FEAT_NODROP, Linux 5.5).

Facts about interruption
    A batch is the kernel's with the store of the SQ tail and not before. `batch` tells what it was until then.

Facts about memory order
    The kernel may add CQEs at any time from another CPU. On x86 loads are not reordered with loads, nor a store
    with earlier loads. Elsewhere a lock is taken and released twice between reading the tail and reading entries, and
    between reading entries and storing the head: a release followed by an acquire orders everything before with
    everything after, which stands for the acquire and the release that ctypes does not have. The SQ needs nothing:
    the kernel reads it inside our own io_uring_enter().
"""

from __future__ import annotations

import ctypes
import errno
import math
import platform as machine
import sys
import threading
from functools import partial

from gaio.platform import _libc
from gaio.platform._io_uring import abi
from gaio.platform._io_uring.abi import CQE, SQE

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from typing import Any

# Entries of the submission and of the completion queue, and how many rings of this process get so many. From 1,000
# connections on the large ones are some 10 % faster (benchmarks/NOTES.md). But Linux charges a ring's memory to
# RLIMIT_MEMLOCK (before 5.12, and since 6.14), which all processes of a user share: of the usual 8 MiB these take 136,
# 40 and 16 KiB. So a process with many rings has small ones, and so does one for which no more is left.
GEOMETRIES = ((1024, 4096, 4), (256, 1024, 64), (64, 256, sys.maxsize))
ENTRIES, CQ_ENTRIES, _ = GEOMETRIES[0]

MASK32 = 0xFFFFFFFF  # places in the queues are counted modulo 2**32

_WANTED = abi.IORING_SETUP_CLAMP | abi.IORING_SETUP_CQSIZE | abi.IORING_SETUP_SUBMIT_ALL | abi.IORING_SETUP_COOP_TASKRUN
_NEEDED = abi.IORING_FEAT_SINGLE_MMAP | abi.IORING_FEAT_NODROP | abi.IORING_FEAT_SUBMIT_STABLE
_NEEDED |= abi.IORING_FEAT_FAST_POLL | abi.IORING_FEAT_EXT_ARG

# Errors of io_uring_enter(2) that say "later", each for its reason: EINTR a signal came; ETIME the timeout passed;
# EAGAIN and EBUSY the kernel is short of memory or of room for completions, which reaping makes.
_LATER = (errno.EINTR, errno.ETIME, errno.EAGAIN, errno.EBUSY)

# The seventh argument of syscall(2) goes by the stack, where libffi does not extend a C int: so it is a full word.
_ARGUMENT_SIZE = ctypes.c_size_t(ctypes.sizeof(abi.io_uring_getevents_arg))


class Ring:
    """One ring. Words of 32 bits are read and written whole; `k` marks those that the kernel writes."""

    weakly_ordered = machine.machine() not in ("x86_64", "AMD64", "i386", "i686")

    def __init__(self) -> None:
        self.to_close: list[int] = []
        # What the entries being written stand for: requests, and calls that undo what tells of any other entry.
        self.batch: list[Any] = []
        self._mapped: list[tuple[int, int]] = []  # address and length of what munmap(2) has to take back
        self._returned: list[int] = []
        self._enter_now = _libc.collecting("syscall", self._returned)
        self._enter_and_wait = _libc.collecting("syscall", self._returned, waits=True)
        self._timeout = abi.kernel_timespec()
        self._argument = abi.io_uring_getevents_arg(ts=ctypes.addressof(self._timeout))
        self._argument_pointer = ctypes.c_void_p(ctypes.addressof(self._argument))

    def open(self, entries: int, cq_entries: int) -> None:
        """`OSError` where that cannot be; close() takes back what there is by then."""
        io_uring_setup = _libc.system_call(abi.SYS_io_uring_setup, "io_uring_setup")
        # Stepping down: without an index array from Linux 6.6 on, else with one.
        for flags in (_WANTED | abi.IORING_SETUP_NO_SQARRAY, _WANTED):
            params = abi.io_uring_params(flags=flags, cq_entries=cq_entries)
            try:
                self.to_close.append(io_uring_setup(entries, ctypes.addressof(params)))
                break
            except OSError as error:
                if error.errno != errno.EINVAL or not flags & abi.IORING_SETUP_NO_SQARRAY:
                    raise
        self.fd = self.to_close[0]
        if params.features & _NEEDED != _NEEDED:
            raise OSError(errno.ENOSYS, f"the kernel's io_uring lacks features: it has {params.features:#x}")

        self.features = params.features

        sq, cq = params.sq_off, params.cq_off
        self.index_array = not params.flags & abi.IORING_SETUP_NO_SQARRAY
        size = max(cq.cqes + params.cq_entries * CQE.size, self.index_array * (sq.array + params.sq_entries * 4))
        ring = self.map(size, self.fd, abi.IORING_OFF_SQ_RING)
        self._sqes = self.map(params.sq_entries * SQE.size, self.fd, abi.IORING_OFF_SQES)
        words = ring[: len(ring) // 4 * 4].cast("I")
        self.ksq_head, self.sq_tail_word, self.ksq_flags, self.cq_head_word, self.kcq_tail = (
            words[offset // 4 : offset // 4 + 1] for offset in (sq.head, sq.tail, sq.flags, cq.head, cq.tail)
        )
        self.kcqes = (ctypes.c_char * (params.cq_entries * CQE.size)).from_buffer(ring, cq.cqes)  # slices are copies
        self.sq_entries = params.sq_entries
        self._sq_mask = params.sq_entries - 1
        self.cq_mask = params.cq_entries - 1
        if self.index_array:
            for index in range(params.sq_entries):  # the identity, once and for all
                words[sq.array // 4 + index] = index
        self.sq_tail = self.sq_tail_word[0]

    def map(self, length: int, fd: int = -1, offset: int = 0) -> memoryview:
        """Map a part of the ring, or memory that it will be told of. It goes with the ring."""
        address = _libc.map_shared(length, fd, offset)
        self._mapped.append((address, length))
        return memoryview((ctypes.c_char * length).from_address(address)).cast("B")

    # --- submission -----------------------------------------------------------------------------------------

    def room(self) -> int:
        """For how many entries there is room in the SQ."""
        room: int = self.sq_entries - ((self.sq_tail - self.ksq_head[0]) & MASK32)
        return room

    def push(self, entries: list[bytes]) -> None:
        """Write these entries, for which there is room, and make them the kernel's."""
        tail = self.sq_tail
        start = (tail & self._sq_mask) * SQE.size
        data = b"".join(entries)
        beyond = start + len(data) - len(self._sqes)
        if beyond > 0:
            self._sqes[start:] = data[:-beyond]
            self._sqes[:beyond] = data[-beyond:]
        else:
            self._sqes[start : start + len(data)] = data
        tail = (tail + len(data) // SQE.size) & MASK32
        self.sq_tail_word[0] = tail  # from here on the batch is the kernel's
        self.batch = []
        self.sq_tail = tail

    def recover(self) -> None:
        """After an interruption: undo what tells of entries that never became the kernel's."""
        self._returned.clear()
        tail = self.sq_tail_word[0]
        if tail == self.sq_tail:
            for item in self.batch:
                if type(item) is partial:
                    item()
                else:
                    item._queue.waiting = None
        self.batch = []
        self.sq_tail = tail

    def enter(self, min_complete: int = 0, flags: int = 0, argument: Any = None) -> None:
        """Have the kernel take what the SQ holds and complete what it can, waiting for `min_complete` completions.

        Only a call that may wait drops the GIL.
        """
        call = self._enter_and_wait if min_complete else self._enter_now
        flags |= abi.IORING_ENTER_GETEVENTS
        to_submit = (self.sq_tail - self.ksq_head[0]) & MASK32
        call(abi.SYS_io_uring_enter, self.fd, to_submit, min_complete, flags, argument, _ARGUMENT_SIZE)
        # The number submitted says nothing that the ring's head does not.
        number = ctypes.get_errno() if self._returned[0] < 0 else 0
        self._returned.clear()
        if number and number not in _LATER:
            raise _libc.failed("io_uring_enter", number)

    def enter_and_wait(self, timeout: float | None) -> None:
        """Wait for the next completion, at most so many seconds (None: for as long as it takes)."""
        if timeout is None:
            self.enter(1)
            return
        whole = math.floor(timeout)
        self._timeout.tv_sec = min(whole, 0x7FFFFFFF)
        self._timeout.tv_nsec = min(math.ceil((timeout - whole) * 1e9), 999_999_999)
        self.enter(1, abi.IORING_ENTER_EXT_ARG, self._argument_pointer)

    # --- completion: the hot loop is IoUringBackend._reap() --------------------------------------------------

    def keep_order(self) -> None:
        """Where `weakly_ordered`: see the facts about memory order."""
        order = threading.Lock()  # a new one: interrupted here, it stays locked
        order.acquire()
        order.release()
        order.acquire()
        order.release()

    # --- the end --------------------------------------------------------------------------------------------

    def close(self) -> None:
        _libc.close_all(self.to_close)
        _libc.unmap_all(self._mapped)

    def abandon(self) -> None:
        """In a child after fork(2), which has none of the mappings (MADV_DONTFORK): they are left alone.

        When a signal handler has forked in the middle of a call, that goes on in the child, and finds nothing to go on
        with.
        """
        _libc.close_all(self.to_close)
        vars(self).clear()
