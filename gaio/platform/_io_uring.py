"""io_uring(7): requests go to the kernel in batches and come back finished.

    start()  writes submission queue entries (SQEs), one store of the tail makes the batch the kernel's
    wait()   one io_uring_enter(2) submits them and waits; completion queue entries (CQEs) are read from memory

Facts about io_uring that shaped this file
    * A request belongs to the thread that submitted it: its completion is worked out in that thread, and when
      the thread exits the kernel cancels it. The watch changes threads, so SINGLE_ISSUER and DEFER_TASKRUN are
      out, and -ECANCELED that nobody asked for means "start again" (the core does).
    * Closing a descriptor cancels nothing: a receive that is pending still writes into its buffer
      (io_uring_cancelation.7). So a request ends by its own CQE only, and the core closes after that.
    * `user_data` names a queue and not a request: a queue has one request in flight, and the next one starts only
      when the CQE has come and, if it was cancelled, that of the cancellation too. So neither a CQE nor a
      cancellation that comes late can hit a later request. The numbers of closed descriptors' queues are never used
      again.
    * A buffer of the provided ring is consumed when bytes are received and named in the CQE; sockets consume in
      the order in which they complete. From Linux 6.12 on (IOU_PBUF_RING_INC) a message takes as much of the buffer
      as it has bytes, and the next one begins behind it; before that it took the whole buffer. How far they have
      been consumed is counted here and not read from IORING_CQE_F_BUF_MORE: kernels disagree on that flag where
      nothing was received. Before Linux 6.2 the CQE of a receive that fails may come before those of earlier ones, and
      before 6.12 it may name a buffer, which nothing has been written to: see recycle_unused().
    * A file may be read by a kernel worker that takes its buffer at the start, so files do without: they are polled,
      and then read into memory of their own.
    * A request that waits in the ring and is woken 128 times in vain is handed to a kernel thread, which blocks in it,
      and which a cancellation at the wrong moment does not reach (seen on Linux 6.18). A peer can do that: by urgent
      data (MSG_OOB), which wakes a receive that does not get to see it; and a send that finds no room is woken for ever
      by a peer that has shut down its side, as a poll is then ready whatever was asked for. Worse, such a thread
      consumes all that is left of a provided buffer before a byte has come, so what others receive is looked for in
      the wrong place. So no byte is waited for in the ring: sends and receives are MSG_DONTWAIT. A receive is linked to
      a poll, and a write that finds no room is told of it by an epoll(7), which the ring polls. What is left of the
      trap: a socket that polls as failed for ever, for an error queue that nobody fetches (SO_TIMESTAMPING,
      IP_RECVERR), costs processor time while a request of it is pending, and before Linux 6.12 a whole buffer each
      time, until recycle_unused(). So does a write that is refused though its descriptor polls as writable: one to an
      eventfd with room for smaller numbers only.
    * An accept that waits in the ring installs the new descriptor when a client comes, not when the CQE is reaped: a
      child that is forked in between has it as well, with nobody to close it.
    * What the CQ cannot hold the kernel keeps, and hands over at the next enter (IORING_FEAT_NODROP, Linux 5.5).

Facts about interruption
    A batch is the kernel's with the store of the SQ tail and not before; CQEs stay in the ring until `_reaped` has
    been stored, and working through them twice is harmless: a queue that waits for nothing takes no result.

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
import functools
import math
import mmap
import os
import platform as machine
import select
import socket
import struct
import sys
import threading
from collections.abc import Callable, Mapping
from functools import partial
from time import monotonic, sleep

from gaio.memory import SocketAddress, Vector, is_connecting
from gaio.platform import CANCELLED, DATAGRAM, FILE, LISTENER, SOCKET, SwapMemory, _libc
from gaio.platform._eventfd import Wakeup
from gaio.platform._libc import IOV_MAX, MAX_RW_COUNT, address_of, msghdr
from gaio.platform._writability import Writability

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from typing import Any

    from gaio.platform import Descriptor
    from gaio.swap import SwapArena

# System calls: the same numbers on nearly every architecture (io_uring came after they were unified, Linux 5.1). Not on
# alpha; nor on MIPS and x32, which add to them, so that these are ENOSYS there and epoll serves.
SYS_io_uring_setup = 425
SYS_io_uring_enter = 426
SYS_io_uring_register = 427

# <linux/io_uring.h>: io_uring_setup(2)
IORING_SETUP_CQSIZE = 1 << 3
IORING_SETUP_CLAMP = 1 << 4
IORING_SETUP_SUBMIT_ALL = 1 << 7  # 5.18: an entry that fails does not stop the batch
IORING_SETUP_COOP_TASKRUN = 1 << 8  # 5.19: do not interrupt the thread to complete, we come to the kernel anyway
IORING_SETUP_NO_SQARRAY = 1 << 16  # 6.6: entries are taken in order, without an index array
IORING_FEAT_SINGLE_MMAP = 1 << 0
IORING_FEAT_NODROP = 1 << 1
IORING_FEAT_SUBMIT_STABLE = 1 << 2
IORING_FEAT_FAST_POLL = 1 << 5
IORING_FEAT_EXT_ARG = 1 << 8
IORING_OFF_SQ_RING = 0
IORING_OFF_SQES = 0x10000000
# io_uring_enter(2)
IORING_ENTER_GETEVENTS = 1 << 0
IORING_ENTER_EXT_ARG = 1 << 3
IORING_SQ_CQ_OVERFLOW = 1 << 1  # in the SQ ring's flags
# io_uring_register(2)
IORING_REGISTER_PBUF_RING = 22  # 5.19
IOU_PBUF_RING_INC = 1 << 1  # 6.12: consume buffers by bytes
# operations, and the flags of their entries
IORING_OP_POLL_ADD = 6
IORING_OP_SENDMSG = 9
IORING_OP_ACCEPT = 13
IORING_OP_ASYNC_CANCEL = 14
IORING_OP_CONNECT = 16
IORING_OP_READ = 22
IORING_OP_WRITE = 23
IORING_OP_SEND = 26
IORING_OP_RECV = 27
IORING_OP_WRITEV = 2
IOSQE_IO_LINK = 1 << 2  # the next entry starts when this one has succeeded
IOSQE_BUFFER_SELECT = 1 << 5
IOSQE_CQE_SKIP_SUCCESS = 1 << 6  # 5.17: a CQE only if it fails, and then none of what is linked to it
IORING_POLL_ADD_MULTI = 1 << 0
# CQE flags
IORING_CQE_F_BUFFER = 1 << 0  # the upper half of the flags names the buffer
IORING_CQE_F_MORE = 1 << 1
IORING_CQE_F_SOCK_NONEMPTY = 1 << 2  # 5.19: there was more to receive
IORING_CQE_BUFFER_SHIFT = 16


def _u32(*names: str) -> list[tuple[str, type[ctypes.c_uint32]]]:
    return [(name, ctypes.c_uint32) for name in names]


class io_sqring_offsets(ctypes.Structure):
    _fields_ = [
        *_u32("head", "tail", "ring_mask", "ring_entries", "flags", "dropped", "array", "resv1"),
        ("user_addr", ctypes.c_uint64),
    ]


class io_cqring_offsets(ctypes.Structure):
    _fields_ = [
        *_u32("head", "tail", "ring_mask", "ring_entries", "overflow", "cqes", "flags", "resv1"),
        ("user_addr", ctypes.c_uint64),
    ]


class io_uring_params(ctypes.Structure):
    _fields_ = [
        *_u32("sq_entries", "cq_entries", "flags", "sq_thread_cpu", "sq_thread_idle", "features", "wq_fd"),
        ("resv", ctypes.c_uint32 * 3),
        ("sq_off", io_sqring_offsets),
        ("cq_off", io_cqring_offsets),
    ]


class io_uring_buf_reg(ctypes.Structure):
    _fields_ = [
        ("ring_addr", ctypes.c_uint64),
        ("ring_entries", ctypes.c_uint32),
        ("bgid", ctypes.c_uint16),
        ("flags", ctypes.c_uint16),
        ("resv", ctypes.c_uint64 * 3),
    ]


class kernel_timespec(ctypes.Structure):
    """`struct __kernel_timespec`"""

    _fields_ = [("tv_sec", ctypes.c_int64), ("tv_nsec", ctypes.c_int64)]


class io_uring_getevents_arg(ctypes.Structure):
    _fields_ = [
        ("sigmask", ctypes.c_uint64),
        ("sigmask_sz", ctypes.c_uint32),
        ("min_wait_usec", ctypes.c_uint32),
        ("ts", ctypes.c_uint64),
    ]


# struct io_uring_sqe, 64 bytes: opcode, flags and ioprio in one word | fd | off | addr | len | the operation's
# flags | user_data | buf_group | nothing that is used here.
SQE = struct.Struct("=IiQQIIQH22x")
# struct io_uring_cqe, 16 bytes: user_data | res | flags
CQE = struct.Struct("=QiI")
# struct io_uring_buf: addr | len | bid; two bytes more, which in the first entry are the ring's tail
BUF = struct.Struct("=QIH")
BUF_SIZE = 16
BUF_RING_TAIL = 14

_SHIFT = (0, 8, 16) if sys.byteorder == "little" else (24, 16, 0)


def _operation(opcode: int, flags: int = 0, ioprio: int = 0) -> int:
    """The first word of an SQE: u8 opcode, u8 flags, u16 ioprio."""
    return opcode << _SHIFT[0] | flags << _SHIFT[1] | ioprio << _SHIFT[2]


_RECV = _operation(IORING_OP_RECV)
_RECV_SWAP = _operation(IORING_OP_RECV, IOSQE_BUFFER_SELECT)
_SEND = _operation(IORING_OP_SEND)
_SENDMSG = _operation(IORING_OP_SENDMSG)
_READ = _operation(IORING_OP_READ)
_WRITE = _operation(IORING_OP_WRITE)
_WRITEV = _operation(IORING_OP_WRITEV)
_ACCEPT = _operation(IORING_OP_ACCEPT)
_CONNECT = _operation(IORING_OP_CONNECT)
_POLL_ADD = _operation(IORING_OP_POLL_ADD)
_POLL_THEN_NEXT = _operation(IORING_OP_POLL_ADD, IOSQE_IO_LINK | IOSQE_CQE_SKIP_SUCCESS)
_ASYNC_CANCEL = _operation(IORING_OP_ASYNC_CANCEL)

_SOCK_CLOEXEC = os.O_CLOEXEC  # accept4(2): the same value on Linux
_POLLIN = select.POLLIN if sys.byteorder == "little" else select.POLLIN << 16  # poll32_events: its halves are swapped
_CURRENT_POSITION = 0xFFFFFFFFFFFFFFFF  # `off` of read and write: a pipe or terminal has no other
_SEND_FLAGS = socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT

# user_data: the token of the queue (`Queue.token`). Beyond those:
_CANCELLATION = 1 << 62  # of the queue named by the rest
_WAKE = 0  # tokens begin with 2
_WRITABLE = 1

# Queue.ready
UNKNOWN = 0  # inbound only: with that, `entry` is taken for the receive that it is
NOT_EMPTY = 1  # the last receive left bytes behind: receive without waiting for readiness first. Outbound: send
POLL = 2  # the descriptor said EAGAIN: poll it, or wait for room to write
POLLED = 3  # it has been polled: go ahead

# Entries of the submission and of the completion queue. Linux charges a ring's memory to RLIMIT_MEMLOCK (before 5.12,
# and since 6.14), which all processes of a user share: the usual 8 MiB hold 200 of these rings, or 500 of the small
# ones. Larger queues are no faster (benchmarks/NOTES.md): a batch goes to the kernel in pieces, and what the CQ has no
# room for the kernel keeps elsewhere.
ENTRIES, CQ_ENTRIES = 256, 1024
FEW_ENTRIES, FEW_CQ_ENTRIES = 64, 256
# In seconds: the kernel gives a closed ring's memory back in the background, 80 ms later and more where it is busy.
GIVEN_BACK_BY_THEN = 1.0
# So many completions are taken at a time, for the reasons that MAX_EVENTS of epoll has; the rest stays in the CQ.
MAX_COMPLETIONS = 256
BUFFER_GROUP = 0

# Errors of io_uring_enter(2) that say "later", each for its reason: EINTR a signal came; ETIME the timeout passed;
# EAGAIN and EBUSY the kernel is short of memory or of room for completions, which reaping makes.
_LATER = (errno.EINTR, errno.ETIME, errno.EAGAIN, errno.EBUSY)

# The seventh argument of syscall(2) goes by the stack, where libffi does not extend a C int: so it is a full word.
_ARGUMENT_SIZE = ctypes.c_size_t(ctypes.sizeof(io_uring_getevents_arg))

_WEAKLY_ORDERED = machine.machine() not in ("x86_64", "AMD64", "i386", "i686")
_MASK32 = 0xFFFFFFFF


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


class IoUringBackend:
    """See the contract in gaio/platform/__init__.py."""

    name = "io_uring"

    def __init__(
        self,
        arena: SwapArena,
        descriptors: Mapping[int, Descriptor],
        entries: int = ENTRIES,  # two at least: a read takes as many
        cq_entries: int = CQ_ENTRIES,
    ) -> None:
        self.completed: list[Any] = []
        self._descriptors = descriptors
        self._open: list[int] = []
        self._mapped: list[tuple[int, int]] = []  # address and length of what munmap(2) has to take back
        self._returned: list[int] = []
        self._batch: list[Any] = []  # requests whose entries are written but not yet the kernel's
        # Requests held here -> whether for want of a swap buffer; else until the next wait(), or for the end of a
        # cancellation or of a connect().
        self._parked: dict[Any, bool] = {}
        self._unpark = False  # something has changed for those
        self._cancelling: set[int] = set()  # queue tokens with a cancellation under way
        self._cancelled: set[int] = set()  # those whose request the kernel has found, until it comes back
        self._file_started_by: dict[int, threading.Thread] = {}  # queue token -> who gave the kernel its last request
        self._shutting_down: Any = None  # the request whose shutdown(2) is under way
        self._missed: list[Any] = []  # requests that a cancellation did not find
        self._last_tries: dict[Any, None] = {}  # parked ones that are being cancelled
        self._messages: list[Any] = []  # msghdr structures that the kernel has not read yet
        self._wake_armed = False
        self._woken = False  # a wake-up has been taken out of the ring, for the wait() under way or the next one
        self._blocked: dict[int, Any] = {}  # by descriptor, the write that waits for room
        self._writability_armed = False
        self._some_writable = False  # one of those descriptors is, or was

        self.setup_flags = 0
        self.features = 0
        try:
            self._set_up(entries, cq_entries)
            self._swap_size = arena.size
            self._provide_buffers()
            self._shutdown = _libc.collecting("shutdown", self._returned)
            self._enter_now = _libc.collecting("syscall", self._returned)
            self._enter_and_wait = _libc.collecting("syscall", self._returned, waits=True)
            self._timeout = kernel_timespec()
            self._argument = io_uring_getevents_arg(ts=ctypes.addressof(self._timeout))
            self._argument_pointer = ctypes.c_void_p(ctypes.addressof(self._argument))
            self._wakeup = Wakeup()
            self._writability = Writability(self._open)
            self._enter(self._enter_now, 0)  # a filter may refuse this call alone
        except BaseException:
            self._let_go()
            raise

    def _set_up(self, entries: int, cq_entries: int) -> None:
        io_uring_setup = _libc.system_call(SYS_io_uring_setup, "io_uring_setup")
        wanted = IORING_SETUP_CLAMP | IORING_SETUP_CQSIZE | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN
        # Stepping down: without an index array from Linux 6.6 on, else with one.
        for flags in (wanted | IORING_SETUP_NO_SQARRAY, wanted):
            params = io_uring_params(flags=flags, cq_entries=cq_entries)
            try:
                self._open.append(io_uring_setup(entries, ctypes.addressof(params)))
                break
            except OSError as error:
                if error.errno != errno.EINVAL or not flags & IORING_SETUP_NO_SQARRAY:
                    raise
        self._ring = self._open[0]
        self.setup_flags = params.flags
        self.features = params.features
        needed = (
            IORING_FEAT_SINGLE_MMAP
            | IORING_FEAT_NODROP
            | IORING_FEAT_SUBMIT_STABLE
            | IORING_FEAT_FAST_POLL
            | IORING_FEAT_EXT_ARG
        )
        if params.features & needed != needed:
            raise OSError(errno.ENOSYS, f"the kernel's io_uring lacks features: it has {params.features:#x}")

        sq, cq = params.sq_off, params.cq_off
        size = max(
            cq.cqes + params.cq_entries * CQE.size,
            0 if self.setup_flags & IORING_SETUP_NO_SQARRAY else sq.array + params.sq_entries * 4,
        )
        ring = self._map(size, IORING_OFF_SQ_RING)
        self._sqes = self._map(params.sq_entries * SQE.size, IORING_OFF_SQES)
        # Words of 32 bits, each read and written whole; `k` marks those the kernel writes.
        words = ring[: len(ring) // 4 * 4].cast("I")
        self._ksq_head = words[sq.head // 4 : sq.head // 4 + 1]
        self._sq_tail_word = words[sq.tail // 4 : sq.tail // 4 + 1]
        self._ksq_flags = words[sq.flags // 4 : sq.flags // 4 + 1]
        self._cq_head_word = words[cq.head // 4 : cq.head // 4 + 1]
        self._kcq_tail = words[cq.tail // 4 : cq.tail // 4 + 1]
        self._kcqes = ring[cq.cqes : cq.cqes + params.cq_entries * CQE.size]
        self._sq_entries = params.sq_entries
        self._sq_mask = params.sq_entries - 1
        self._cq_entries = params.cq_entries
        self._cq_mask = params.cq_entries - 1
        if not self.setup_flags & IORING_SETUP_NO_SQARRAY:
            for index in range(params.sq_entries):  # the identity, once and for all
                words[sq.array // 4 + index] = index
        self._sq_tail = self._sq_tail_word[0]
        # CQ head; provided buffers consumed until there, and bytes of the one that is being consumed
        self._reaped = (self._cq_head_word[0], 0, 0)

    def _map(self, length: int, offset: int) -> memoryview:
        """Map a part of the ring, shared with the kernel and not with children of fork(2)."""
        address = _libc.map_shared(self._ring, length, offset)
        self._mapped.append((address, length))
        return memoryview((ctypes.c_char * length).from_address(address)).cast("B")

    def _provide_buffers(self) -> None:
        try:
            self._register_buffers(*buffer_geometry(self._swap_size, True), IOU_PBUF_RING_INC)
        except OSError as error:
            if error.errno != errno.EINVAL:  # which says that the kernel does not know the flag
                raise
            self._register_buffers(*buffer_geometry(self._swap_size, False), 0)

    def _register_buffers(self, size: int, at_first: int, most: int, flags: int) -> None:
        self.incremental = flags & IOU_PBUF_RING_INC != 0
        self._buffer_size = size
        self._buffer_mask = most - 1
        self._consumed_at_least = 0 if self.incremental else size
        self._swap_read_size = min(size, self._swap_size)
        # Not a multiple of 4096 apart, or the first lines of all buffers would compete for the same few
        # lines of the processor's cache.
        self._buffer_stride = size + 64
        # Private: a child after fork(2) keeps what it had in hand.
        self._storage = SwapMemory(-1, self._buffer_stride * most, mmap.MAP_PRIVATE)
        self._buffers = self._storage.views(0, len(self._storage))
        self._buffers_at = self._storage.address
        self._ring_memory = mmap.mmap(-1, max(most * BUF_SIZE, mmap.PAGESIZE))
        _libc.not_for_children(self._ring_memory)
        self._buffer_tail = memoryview(self._ring_memory)[BUF_RING_TAIL : BUF_RING_TAIL + 2].cast("H")
        self._buffer_in = [0] * most  # which buffer each entry of the ring holds
        self._lent = 0  # provided buffers consumed up to the batch in the caller's hands
        self._too_few_buffers = False
        for index in range(at_first):
            self._write_buffer_entry(index, index)
        registration = io_uring_buf_reg(
            ring_addr=ctypes.addressof(ctypes.c_char.from_buffer(self._ring_memory)),
            ring_entries=most,
            bgid=BUFFER_GROUP,
            flags=flags,
        )
        io_uring_register = _libc.system_call(SYS_io_uring_register, "io_uring_register")
        io_uring_register(self._ring, IORING_REGISTER_PBUF_RING, ctypes.addressof(registration), 1)
        self._provided = (at_first, at_first)  # the ring's tail, and how many buffers there are
        self._buffer_tail[0] = at_first

    def _write_buffer_entry(self, index: int, number: int) -> None:
        index &= self._buffer_mask
        self._buffer_in[index] = number
        address = self._buffers_at + number * self._buffer_stride
        BUF.pack_into(self._ring_memory, index * BUF_SIZE, address, self._buffer_size, number)

    # --- descriptors ----------------------------------------------------------------------------------------

    def register(self, descriptor: Descriptor) -> None:
        if descriptor.kind == FILE:
            if sys.platform == "linux":  # as it always is here; the type checker has to be told
                with _libc.epoll() as poller:
                    poller.register(descriptor.fd)  # EPERM for what cannot be polled, as regular files
            os.set_blocking(descriptor.fd, False)  # or a kernel worker would sit in read(2) for as long as it takes

    def unregister(self, descriptor: Descriptor) -> None:
        self._writability.leave_alone(descriptor.fd)  # the ring knows descriptors only through requests
        for token in (descriptor.token, descriptor.token + 1):
            self._cancelled.discard(token)
            self._file_started_by.pop(token, None)

    # --- requests -------------------------------------------------------------------------------------------

    def start(self, requests: list[Any]) -> None:
        # A read may take two entries, see _when_readable().
        if 2 * len(requests) <= self._sq_entries - ((self._sq_tail - self._ksq_head[0]) & _MASK32):
            self._submit(requests)
            return
        at_once = self._sq_entries // 2
        for index in range(0, len(requests), at_once):
            self._make_room()
            self._submit(requests[index : index + at_once])

    def _make_room(self) -> None:
        """Have the kernel take what the SQ holds."""
        while self._ksq_head[0] != self._sq_tail:
            self._enter(self._enter_now, 0)
            self._reap()

    def _submit(self, requests: list[Any]) -> None:
        """Write the entries of requests for which there is room, and make them the kernel's."""
        self._batch = requests
        entries: list[bytes] = []
        append = entries.append
        pack = SQE.pack
        uncommon = self._parked or self._cancelling or self._cancelled
        for request in requests:
            queue = request._queue
            memory = request._memory
            # The two common cases come first: a swap read, whose entry is always the same, and a whole bytes object.
            if memory is None and queue.entry and not (queue.ready or uncommon):
                append(queue.entry)
            elif type(memory) is bytes and queue.entry and not (request._offset or queue.ready >= POLL or uncommon):
                append(pack(_SEND, queue.fd, 0, address_of(memory), request._length, _SEND_FLAGS, queue.token, 0))
            else:
                if queue.token in self._cancelling or (not queue.outbound and is_connecting(queue.descriptor)):
                    self._parked[request] = False
                    continue
                self._parked.pop(request, None)
                self._cancelled.discard(queue.token)
                kind = queue.descriptor.kind
                if queue.outbound and memory is None:
                    self._shut_down(request)
                    continue
                if queue.outbound and _lacks_room(request, queue, kind):
                    self._wait_until_writable(request, queue)
                    continue
                if queue.ready >= POLL or kind == FILE or (memory is None and kind >= DATAGRAM):
                    append(self._entry_with_poll(request, queue, kind))
                else:
                    append(self._entry(request, queue))
            queue.waiting = request
        self._write_entries(entries)

    def _shut_down(self, request: Any) -> None:
        """shutdown(2) does not block. The ring would have a kernel thread do it, and fail where there can be none."""
        self._shutting_down = request
        self._shutdown(request._queue.fd, socket.SHUT_WR)
        self._finish_shutdown()

    def _finish_shutdown(self) -> None:
        """Also from recover(), in the thread whose errno it is: a second attempt may fail where this one did not."""
        request = self._shutting_down
        if request is not None and self._returned:
            request._result = -ctypes.get_errno() if self._returned[0] < 0 else 0
            if not (self.completed and self.completed[-1] is request):
                self.completed.append(request)
            request._queue.ready = NOT_EMPTY  # a write after it needs no room, to fail, and may never be told of any
            self._returned.clear()
        self._shutting_down = None

    def _write_entries(self, entries: list[bytes]) -> None:
        tail = self._sq_tail
        start = (tail & self._sq_mask) * SQE.size
        data = b"".join(entries)
        beyond = start + len(data) - len(self._sqes)
        if beyond > 0:
            self._sqes[start:] = data[:-beyond]
            self._sqes[:beyond] = data[-beyond:]
        else:
            self._sqes[start : start + len(data)] = data
        tail = (tail + len(data) // SQE.size) & _MASK32
        self._sq_tail_word[0] = tail  # from here on the batch is the kernel's
        self._batch = []
        self._sq_tail = tail

    def _entry(self, request: Any, queue: Any) -> bytes:
        """The entry of a request on a socket."""
        memory = request._memory
        if memory is None:
            if queue.descriptor.kind == LISTENER:
                return SQE.pack(_ACCEPT, queue.fd, 0, 0, 0, _SOCK_CLOEXEC, queue.token, 0)
            size = self._swap_read_size
            entry = SQE.pack(_RECV_SWAP, queue.fd, 0, 0, size, socket.MSG_DONTWAIT, queue.token, BUFFER_GROUP)
            if queue.ready:
                return entry
            entry = _when_readable(queue, entry)
            if queue.descriptor.kind <= SOCKET:
                queue.entry = entry
            return entry
        if type(memory) is SocketAddress:
            queue.ready = POLLED  # so that _hold() sees its completion
            data = memory.data
            return SQE.pack(_CONNECT, queue.fd, len(data), address_of(data), 0, 0, queue.token, 0)
        offset = request._offset
        if type(memory) is Vector:
            address, count = memory.after(offset)
            message = msghdr(msg_iov=address, msg_iovlen=min(count, IOV_MAX))
            self._messages.append(message)
            return SQE.pack(_SENDMSG, queue.fd, 0, ctypes.addressof(message), 1, _SEND_FLAGS, queue.token, 0)
        address = (address_of(memory) if type(memory) is bytes else memory.address) + offset
        length = min(request._length - offset, MAX_RW_COUNT)
        if queue.outbound:
            entry = SQE.pack(_SEND, queue.fd, 0, address, length, _SEND_FLAGS, queue.token, 0)
            if queue.ready < POLL:
                queue.entry = entry  # not for its bytes: the common case may be assumed from now on
            return entry
        entry = SQE.pack(_RECV, queue.fd, 0, address, length, socket.MSG_DONTWAIT, queue.token, 0)
        return entry if queue.ready else _when_readable(queue, entry)

    def _entry_with_poll(self, request: Any, queue: Any, kind: int) -> bytes:
        """The entry of what is not linked to its poll, or is polled again for having completed with -EAGAIN.

        For writes see _wait_until_writable(). A swap read of what keeps message boundaries needs room for the largest
        message, but no memory while it waits; nor does one of a file, which the ring may wait for though it has
        O_NONBLOCK set (seen on Linux 6.18, with pipes).
        """
        memory = request._memory
        message = memory is None and not queue.outbound and kind != LISTENER
        go_ahead = queue.ready == POLLED or (kind == FILE and queue.ready == NOT_EMPTY)
        if not queue.outbound and (queue.ready == POLL or (message and not go_ahead)):
            queue.ready = POLL
            return SQE.pack(_POLL_ADD, queue.fd, 0, 0, 0, _POLLIN, queue.token, 0)
        if message and kind >= DATAGRAM:
            request._length = self._swap_size  # first: memory of no length would take an empty message
            memory = request._memory = OwnMemory(self._swap_size)
        if kind != FILE:
            return self._entry(request, queue)
        offset = request._offset
        if type(memory) is Vector:
            address, length = memory.after(offset)
            operation, length = _WRITEV, min(length, IOV_MAX)
        else:
            address = (address_of(memory) if type(memory) is bytes else memory.address) + offset
            length = min(request._length - offset, MAX_RW_COUNT)
            operation = _WRITE if queue.outbound else _READ
        self._file_started_by[queue.token] = threading.current_thread()
        return SQE.pack(operation, queue.fd, _CURRENT_POSITION, address, length, 0, queue.token, 0)

    def cancel(self, request: Any) -> None:
        queue = request._queue
        if queue.waiting is not request:
            if request in self._parked or self._blocked.get(queue.fd) is request:  # the kernel does not have it
                self._try_once_more(request, queue)
            return
        if queue.token in self._cancelling:
            return
        if (self._sq_tail - self._ksq_head[0]) & _MASK32 >= self._sq_entries:
            self._make_room()
            self.cancel(request)  # it may have come back meanwhile
            return
        # Before the next line: recover() undoes that.
        self._batch = [_NoRequest(partial(self._cancelling.discard, queue.token))]
        self._cancelling.add(queue.token)
        self._write_entries([SQE.pack(_ASYNC_CANCEL, -1, 0, queue.token, 0, 0, _CANCELLATION | queue.token, 0)])

    def _try_once_more(self, request: Any, queue: Any) -> None:
        """Start a request that waits here and is being cancelled: what is there already counts as arrived in time.

        Nobody cancels it again, so that goes with it, see wait(); most come back with -EAGAIN before.
        """
        memory = request._memory
        moves_bytes = memory is not None or not (queue.outbound or queue.descriptor.kind == LISTENER)
        if not moves_bytes or type(memory) is SocketAddress or is_connecting(queue.descriptor):
            request._result = CANCELLED
            if not (self.completed and self.completed[-1] is request):
                self.completed.append(request)
            self._parked.pop(request, None)
            return
        self._last_tries[request] = None  # first: cut short after this, it is cancelled all the same
        if self._parked.get(request):
            request._length = self._swap_read_size  # as for a message, see _entry_with_poll()
            request._memory = OwnMemory(self._swap_read_size)
        queue.ready = POLLED
        self._parked[request] = False
        if queue.outbound:
            self._blocked.pop(queue.fd, None)
        self._unpark = True

    # --- writes that wait for room --------------------------------------------------------------------------

    def _wait_until_writable(self, request: Any, queue: Any) -> None:
        queue.ready = POLL
        self._blocked[queue.fd] = request
        try:
            self._writability.watch(queue.fd)
        except OSError as error:
            request._result = -(error.errno or errno.EIO)
            self.completed.append(request)
            del self._blocked[queue.fd]

    def _go_on_writing(self) -> None:
        self._some_writable = False
        writable = self._writability.look()
        requests = []
        for fd in writable:
            request = self._blocked.pop(fd, None)  # from here on with neither, until it is started: see recover()
            if request is not None:
                request._queue.ready = POLLED
                requests.append(request)
        self.start(requests)
        for fd in writable:
            self._writability.leave_alone(fd)

    # --- the kernel -----------------------------------------------------------------------------------------

    def wait(self, timeout: float | None) -> None:
        if self._parked and (self._unpark or self._buffers_are_left()):
            self._unpark = False
            self.start(self._startable())
        if self._last_tries:
            # Behind their entries, of which the kernel may wait for one of a file.
            self._missed += [request for request in self._last_tries if request not in self._parked]
            self._last_tries = {request: None for request in self._last_tries if request in self._parked}
        self._arm()
        # To make room in the SQ is to reap. What has been started just now may take no buffer, see _buffers_are_left().
        if self.completed or self._woken or (self._parked and (self._unpark or self._buffers_are_left())):
            timeout = 0
        if timeout == 0 or self._ksq_head[0] != self._sq_tail:
            # Sends complete at once as a rule: looking without dropping the GIL keeps the batch together.
            self._enter(self._enter_now, 0)
            if not self._reap() and timeout != 0:
                self._enter_blocking(timeout)
                self._reap()
        elif not self._reap():
            self._enter_blocking(timeout)
            self._reap()
        while self._ksq_flags[0] & IORING_SQ_CQ_OVERFLOW and len(self.completed) < MAX_COMPLETIONS:
            self._enter(self._enter_now, 0)
            self._reap()
        if self._some_writable:
            self._go_on_writing()
            self._enter(self._enter_now, 0)
            self._reap()
        self._woken = False
        # Now and not with the next wait, and what that answers at once is left to be reaped: a loop that this is nested
        # in sees no other sign.
        if self._arm():
            self._enter(self._enter_now, 0)
        if self._messages and self._ksq_head[0] == self._sq_tail:
            self._messages.clear()  # IORING_FEAT_SUBMIT_STABLE: read when the entry was taken

    def _buffers_are_left(self) -> bool:
        """Whether reads are parked for want of a swap buffer though there are some.

        Those that were started to take them have found nothing to receive: a peer can arrange that by urgent data,
        for which a socket polls as readable. No result comes of these, so no recycle() that the rest could wait for.
        """
        return self._reaped[1] < self._provided[0] and any(self._parked.values())

    def _startable(self) -> list[Any]:
        """The parked requests to start: of those that want a swap buffer, no more than there can be.

        With thousands of them, most would only come back for want of one, again and again.
        """
        requests = []
        buffers = self._provided[1] * self._buffer_size // self._swap_read_size
        for request, lacks_buffer in self._parked.items():
            if lacks_buffer:
                if not buffers:
                    self._too_few_buffers = True
                    continue  # the next recycle() is for these
                buffers -= 1
            requests.append(request)
        return requests

    def _enter_blocking(self, timeout: float | None) -> None:
        if timeout is None:
            self._enter(self._enter_and_wait, 1)
            return
        whole = math.floor(timeout)
        self._timeout.tv_sec = min(whole, 0x7FFFFFFF)
        self._timeout.tv_nsec = min(math.ceil((timeout - whole) * 1e9), 999_999_999)
        self._enter(self._enter_and_wait, 1, IORING_ENTER_EXT_ARG, self._argument_pointer)

    def _enter(self, call: Any, min_complete: int, flags: int = 0, argument: Any = None) -> None:
        flags |= IORING_ENTER_GETEVENTS
        to_submit = (self._sq_tail - self._ksq_head[0]) & _MASK32
        call(SYS_io_uring_enter, self._ring, to_submit, min_complete, flags, argument, _ARGUMENT_SIZE)
        # The number submitted says nothing that the ring's head does not.
        number = ctypes.get_errno() if self._returned[0] < 0 else 0
        self._returned.clear()
        if number and number not in _LATER:
            raise OSError(number, f"io_uring_enter: {os.strerror(number)}")

    def _arm(self) -> bool:
        """Have the ring tell of everything that is to be told of; whether there was anything to arrange."""
        tail = self._sq_tail
        if not self._wake_armed:
            # Multishot: the eventfd is never read, each write to it makes a CQE.
            self._poll(self._wakeup.fd, IORING_POLL_ADD_MULTI, _WAKE, "_wake_armed")
        if self._blocked and not self._writability_armed:
            self._poll(self._writability.fd, 0, _WRITABLE, "_writability_armed")
        if self._missed:
            for request in self._missed:
                if request._queue is not None:
                    self.cancel(request)
            self._missed.clear()
        return self._sq_tail != tail

    def _poll(self, fd: int, flags: int, token: int, armed: str) -> None:
        """Have the ring poll a descriptor of our own; `armed` is the attribute that says so."""
        if (self._sq_tail - self._ksq_head[0]) & _MASK32 >= self._sq_entries:
            self._make_room()
        self._batch = [_NoRequest(partial(setattr, self, armed, False))]  # before the next line: recover() undoes that
        setattr(self, armed, True)
        self._write_entries([SQE.pack(_POLL_ADD, fd, 0, 0, flags, _POLLIN, token, 0)])

    def _reap(self) -> bool:
        """Work through CQEs, at most MAX_COMPLETIONS; whether there were any."""
        head, consumed, position = self._reaped
        tail = self._kcq_tail[0]
        if head == tail:
            return False
        if _WEAKLY_ORDERED:
            self._keep_order()
        count = (tail - head) & _MASK32
        if count > MAX_COMPLETIONS:
            count = MAX_COMPLETIONS
            tail = (head + count) & _MASK32
        first = (head & self._cq_mask) * CQE.size
        span: Any = self._kcqes[first : first + count * CQE.size]
        if len(span) < count * CQE.size:
            span = bytes(span) + bytes(self._kcqes[: count * CQE.size - len(span)])
        descriptors = self._descriptors
        completed = self.completed
        buffers, stride, mask = self._buffers, self._buffer_stride, self._buffer_mask
        size, at_least, buffer_in = self._buffer_size, self._consumed_at_least, self._buffer_in
        for token, result, flags in CQE.iter_unpack(span):
            descriptor = descriptors.get(token & -2)
            if descriptor is None:
                self._special(token, result, flags)
                continue
            queue: Any = descriptor.writes if token & 1 else descriptor.reads
            request = queue.waiting
            if flags & IORING_CQE_F_BUFFER:
                number = flags >> IORING_CQE_BUFFER_SHIFT
                if number != buffer_in[consumed & mask]:
                    if not at_least:
                        raise RuntimeError("the kernel handed out swap buffers out of order: use GAIO_BACKEND=epoll")
                    buffer_in[consumed & mask] = number
                start = number * stride + position
                position += result if result > at_least else at_least
                if position == size:
                    consumed += 1
                    position = 0
                if request is None:
                    continue  # dealt with before an interruption
                request.buffer = buffers[start : start + result] if result > 0 else None
                queue.ready = NOT_EMPTY if flags & IORING_CQE_F_SOCK_NONEMPTY else UNKNOWN
            elif request is None or (
                (result < 0 or queue.ready >= POLL or type(request._memory) is OwnMemory)
                and self._hold(request, queue, result)
            ):
                continue
            elif not token & 1:
                queue.ready = NOT_EMPTY if flags & IORING_CQE_F_SOCK_NONEMPTY else UNKNOWN
            request._result = result
            completed.append(request)
            queue.waiting = None
        if _WEAKLY_ORDERED:
            self._keep_order()
        self._reaped = (tail, consumed, position)
        self._cq_head_word[0] = tail
        return True

    def _hold(self, request: Any, queue: Any, result: int) -> bool:
        """Whether an uncommon completion is dealt with here: it is no result yet, so that the request stays here to be
        started again, or the request was cancelled.

        What tells which it is, `ready` and `_memory`, changes last: cut short before, this is done again.
        """
        lacks_buffer = result == -errno.ENOBUFS and request._memory is None and queue.descriptor.kind != LISTENER
        if lacks_buffer or (queue.ready == POLL and result >= 0 and not queue.outbound):
            cancelled = queue.token in self._cancelling
            if cancelled:
                self._last_tries[request] = None  # nobody else would cancel it where it is started again
            self._parked[request] = lacks_buffer  # until buffers are given back
            self._too_few_buffers = self._too_few_buffers or lacks_buffer
            self._unpark = self._unpark or not lacks_buffer
            queue.waiting = None
            if cancelled:
                self._try_once_more(request, queue)
            else:
                queue.ready = UNKNOWN if lacks_buffer else POLLED  # if this is not reached, it is polled once more
            return True
        cancelled = result == -errno.ECANCELED and self._is_cancelled(queue)
        if result == -errno.EAGAIN and (queue.outbound or queue.descriptor.kind > SOCKET):
            queue.ready = POLL
        else:
            queue.ready = NOT_EMPTY if queue.outbound else UNKNOWN
        memory = request._memory
        if type(memory) is SocketAddress:
            self._unpark = True  # reads wait for it
        elif type(memory) is OwnMemory:
            if result > 0:
                request.buffer = memory.view(result)
            request._length = max(0, result)  # not 0: the view is the caller's for good
            request._memory = None
        if cancelled:
            request._result = CANCELLED
            self.completed.append(request)
            queue.waiting = None
            self._cancelled.discard(queue.token)
        return cancelled

    def _is_cancelled(self, queue: Any) -> bool:
        """Whether -ECANCELED is the ring's own word, and not what the descriptor says, as a timerfd(2) does whose clock
        was set (TFD_TIMER_CANCEL_ON_SET).

        Of sockets it is the ring's: none is known that says so itself. Of a file the ring says so of a poll, of a
        request that was cancelled, and of one that waits there when the thread that started it exits.
        """
        if queue.descriptor.kind != FILE or queue.ready == POLL:
            return True
        token = queue.token
        return token in self._cancelling or token in self._cancelled or not self._file_started_by[token].is_alive()

    def _special(self, token: int, result: int, flags: int) -> None:
        """The completion of something that is no request."""
        if token & _CANCELLATION:
            token ^= _CANCELLATION
            if result == -errno.ENOENT:
                # It has finished, or just then it was between two attempts, where the kernel does not look.
                descriptor: Any = self._descriptors.get(token & -2)
                queue = None if descriptor is None else descriptor.writes if token & 1 else descriptor.reads
                if queue is not None and queue.waiting is not None:
                    self._missed.append(queue.waiting)
            elif token & -2 in self._descriptors:
                self._cancelled.add(token)  # the request's own completion may come after this one
            self._cancelling.discard(token)
            self._unpark = True
        elif token == _WRITABLE:
            self._writability_armed = False
            self._some_writable = True
        elif token == _WAKE:
            self._woken = True
            if not flags & IORING_CQE_F_MORE:
                self._wake_armed = False  # its thread has exited, or the kernel gave up on it

    def _keep_order(self) -> None:
        order = threading.Lock()  # a new one: cut short here, it stays locked
        order.acquire()
        order.release()
        order.acquire()
        order.release()

    # --- the rest of the contract ---------------------------------------------------------------------------

    def lend(self) -> None:
        self._lent = self._reaped[1]
        # What wants a buffer waits for recycle(), and what the kernel was too short of memory to take for another
        # enter: a loop that this is nested in must come back for that. Of the end of a cancellation or of a connect()
        # the ring tells it.
        held_up = self._parked and (self._unpark or any(self._parked.values()))
        if held_up or self._ksq_head[0] != self._sq_tail:
            self.wake()

    def recycle(self) -> None:
        tail, count = self._provided
        before, tail = tail, self._lent + count
        for index in range(before, tail):
            self._write_buffer_entry(index, self._buffer_in[(index - count) & self._buffer_mask])
        if self._too_few_buffers:
            # Before the new ones overwrite entries that the loop above reads: cut short, it must not be done again.
            self._provided = (tail, count)
            for number in range(count, min(2 * count, self._buffer_mask + 1)):
                self._write_buffer_entry(tail, number)
                tail, count = tail + 1, count + 1
        if tail != before:
            if _WEAKLY_ORDERED:
                self._keep_order()
            self._provided = (tail, count)
        self._buffer_tail[0] = tail & 0xFFFF  # always: the last time may have been cut short before this
        self._too_few_buffers = False
        if self._parked:
            self._unpark = True

    def recycle_unused(self) -> None:
        if self._lent != self._reaped[1]:
            self._lent = self._reaped[1]
            self.recycle()

    def recover(self) -> list[Any]:
        self._finish_shutdown()
        self._returned.clear()
        tail = self._sq_tail_word[0]
        if tail == self._sq_tail:
            for request in self._batch:  # their entries never became the kernel's
                request._queue.waiting = None
        self._batch = []
        self._sq_tail = tail
        for request in self.completed:
            self._parked.pop(request, None)  # it was being cancelled
            if request._queue is not None:  # else the core has finished it already
                request._queue.waiting = None
        self._cq_head_word[0] = self._reaped[0]  # cut short in between, the kernel would count these as new for ever
        self._reap()
        self._unpark = True
        self._blocked.clear()  # they will be started again
        held = list(self._parked)
        for descriptor in list(self._descriptors.values()):
            for queue in (descriptor.reads, descriptor.writes):
                if queue is not None and queue.waiting is not None:
                    held.append(queue.waiting)
        return held

    def fileno(self) -> int:
        return self._ring

    def wake(self) -> None:
        self._wakeup.ring()

    def describe(self) -> str:
        """The kernel features in use."""
        return (
            "COOP_TASKRUN, "
            + ("incremental " if self.incremental else "")
            + "provided-buffer ring"
            + (", NO_SQARRAY" if self.setup_flags & IORING_SETUP_NO_SQARRAY else "")
            + (f", {self._sq_entries} entries: memory is short" if self._sq_entries == FEW_ENTRIES else "")
        )

    def close(self) -> None:
        _last_closed[0] = monotonic()
        self._let_go()

    def _let_go(self) -> None:
        _libc.close_all(self._open)
        _libc.unmap_all(self._mapped)

    def abandon(self) -> None:
        # The mappings do not exist in a child (MADV_DONTFORK), so it cannot reap what is the parent's. But when a
        # signal handler forks in the middle of a turn, that goes on in the child: it reads zeros, and writes nothing.
        self._ring = -1
        _libc.close_all(self._open)
        self._wakeup.abandon()
        words = (self._ksq_head, self._sq_tail_word, self._ksq_flags, self._cq_head_word, self._kcq_tail)
        for view in (*words, self._kcqes, self._sqes, self._buffer_tail):
            view.release()
        _left_to_children.append(self._ring_memory)  # its munmap(2) could hit what the child has mapped there since
        own = ctypes.addressof(ctypes.c_char.from_buffer(self._ring_memory)), len(self._ring_memory)
        for address, length in (own, *self._mapped):
            _libc.map_zeros(address, length)
        self._mapped.clear()


def _when_readable(queue: Any, entry: bytes) -> bytes:
    """That entry with a poll before it: one CQE comes of the two, that of the poll only if it fails."""
    return SQE.pack(_POLL_THEN_NEXT, queue.fd, 0, 0, 0, _POLLIN, queue.token, 0) + entry


def _lacks_room(request: Any, queue: Any, kind: int) -> bool:
    """Whether a write has to wait until there is room: one was refused, or this one came back short."""
    if type(request._memory) is SocketAddress:
        return False  # what was short of room was the peer before, of a datagram socket
    return queue.ready == POLL or (request._offset > 0 and kind <= SOCKET and queue.ready != POLLED)


class _NoRequest:
    """Stands in `_batch` for an entry that is no request's, so that recover() takes back what tells of it, should it
    never become the kernel's.
    """

    __slots__ = ("_undo",)

    def __init__(self, undo: Callable[[], object]) -> None:
        self._undo = undo

    @property
    def _queue(self) -> _NoRequest:  # not a reference to itself: what it leads to would stay until the collector runs
        return self

    @property
    def waiting(self) -> None:
        return None

    @waiting.setter
    def waiting(self, _: None) -> None:
        self._undo()


class OwnMemory:
    """Memory for one swap read of a file or of a message.

    Mapped and not allocated, which would be to fill it with zeros: it takes no more memory than bytes come. And these
    are copied from it, for a view would keep all of it.
    """

    __slots__ = ("address", "_storage")

    def __init__(self, size: int) -> None:
        self._storage = mmap.mmap(-1, size, mmap.MAP_PRIVATE)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._storage))

    def view(self, size: int) -> memoryview:
        return memoryview(bytearray(memoryview(self._storage)[:size]))


_left_to_children: list[mmap.mmap] = []
_last_closed = [-math.inf]  # when a ring of this process was closed, by the monotonic clock


def open_backend(arena: SwapArena, descriptors: Mapping[int, Descriptor]) -> IoUringBackend:
    """A ring for a watcher; `OSError` where there can be none, which `why_not()` explains.

    Whether io_uring works here is tried out, never told by version: containers and hardened kernels refuse it with
    EPERM or ENOSYS as a matter of course.
    """
    _try_out(os.getpid())
    while True:
        for entries, cq_entries in ((ENTRIES, CQ_ENTRIES), (FEW_ENTRIES, FEW_CQ_ENTRIES)):
            try:
                return IoUringBackend(arena, descriptors, entries, cq_entries)
            except OSError as error:
                if error.errno != errno.ENOMEM:
                    raise
                refusal = str(error.strerror)  # not the error: its traceback would keep what was opened
        if monotonic() > _last_closed[0] + GIVEN_BACK_BY_THEN:
            raise OSError(errno.ENOMEM, refusal)
        sleep(0.001)


class _Trial:
    """A stand-in for the core's descriptor, queue and request at once."""

    kind = SOCKET
    writes = None
    outbound = False
    ready = UNKNOWN
    entry = b""
    _memory = None
    _offset = 0
    _length = 0
    _result = 0
    buffer: Any = None

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.token = 2
        self.waiting: Any = None
        self.descriptor = self.reads = self._queue = self


def _wait_for(backend: IoUringBackend) -> None:
    """Until the request of the trial has come back, but not for ever; `OSError` then, which is not remembered."""
    deadline = monotonic() + 1
    backend.wait(0.1)
    while not backend.completed:
        if monotonic() > deadline:
            raise OSError(errno.ETIMEDOUT, "a receive did not come back within a second")
        backend.wait(0.1)


@functools.lru_cache(maxsize=1)
def _try_out(_process: int) -> bool:
    """A receive that finishes and one that is cancelled; returns whether buffers are consumed by bytes.

    `OSError` where that does not work, which is not remembered: memory may be short for the moment only.
    """
    from gaio.swap import SwapArena

    ours, theirs = socket.socketpair()
    with ours, theirs:
        trial = _Trial(ours.fileno())
        backend = IoUringBackend(SwapArena(64), {2: trial}, entries=4, cq_entries=8)
        try:
            backend.start([trial])
            theirs.send(b"?")
            _wait_for(backend)
            if trial._result != 1 or bytes(trial.buffer) != b"?":
                raise OSError(errno.ENOSYS, f"a receive into a provided buffer returned {trial._result}")
            backend.completed.clear()
            backend.start([trial])
            backend.cancel(trial)
            _wait_for(backend)
            if trial._result != CANCELLED:
                raise OSError(errno.ENOSYS, f"a cancelled receive returned {trial._result}")
            return backend.incremental
        finally:
            backend.close()


def is_behind() -> bool:
    """Whether it works here, but `auto` should take epoll: where that is faster with few connections or thousands.

    That was measured (benchmarks/NOTES.md). io_uring needs buffers that are consumed by bytes, or thousands of messages
    find none; and it was measured on processors that keep the order of loads and stores alone.
    """
    if _WEAKLY_ORDERED:
        return True
    try:
        return not _try_out(os.getpid())
    except OSError:
        return False  # open_backend() will say so


_ADVICE = {
    errno.EPERM: "forbidden here, by kernel.io_uring_disabled or the container's seccomp filter",
    errno.EACCES: "forbidden here, by a seccomp filter or a security module",
    errno.ENOSYS: "the kernel was built without it, or a filter hides it",
    errno.EINVAL: "Linux 5.19 or later is needed, for COOP_TASKRUN and provided-buffer rings",
    errno.ENOMEM: "raise RLIMIT_MEMLOCK (ulimit -l), of which a ring takes 40 KiB, 16 at least, and which all "
    "processes of the user share; or RLIMIT_AS (ulimit -v), where that is set",
}


def why_not(error: OSError) -> str:
    """What kept a ring from being opened, and what can be done about it."""
    advice = _ADVICE.get(error.errno or 0)
    return str(error) if advice is None else f"{error}: {advice}"
