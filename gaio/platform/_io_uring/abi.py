"""The binary interface of io_uring(7): numbers and layouts, spelled as <linux/io_uring.h> spells them."""

from __future__ import annotations

import ctypes
import select
import struct
import sys

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
IORING_FEAT_REG_REG_RING = 1 << 13  # 6.3
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
IORING_OP_TIMEOUT = 11
IORING_OP_ACCEPT = 13
IORING_OP_ASYNC_CANCEL = 14
IORING_OP_CONNECT = 16
IORING_OP_SEND = 26
IORING_OP_RECV = 27
IOSQE_IO_LINK = 1 << 2  # the next entry starts when this one has succeeded
IOSQE_BUFFER_SELECT = 1 << 5
IOSQE_CQE_SKIP_SUCCESS = 1 << 6  # 5.17: a CQE only if it fails, and then none of what is linked to it
IORING_POLL_ADD_MULTI = 1 << 0
IORING_RECV_MULTISHOT = 1 << 1  # 6.0, in ioprio
# CQE flags
IORING_CQE_F_BUFFER = 1 << 0  # the upper half of the flags names the buffer
IORING_CQE_F_MORE = 1 << 1
IORING_CQE_F_SOCK_NONEMPTY = 1 << 2  # 5.19: there was more to receive
IORING_CQE_BUFFER_SHIFT = 16


_u16, _u32, _u64, _s64 = ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int64


def _words(*names: str) -> list[tuple[str, type[ctypes.c_uint32]]]:
    return [(name, _u32) for name in names]


class io_sqring_offsets(ctypes.Structure):
    _fields_ = [
        *_words("head", "tail", "ring_mask", "ring_entries", "flags", "dropped", "array", "resv1"),
        ("user_addr", _u64),
    ]


class io_cqring_offsets(ctypes.Structure):
    _fields_ = [
        *_words("head", "tail", "ring_mask", "ring_entries", "overflow", "cqes", "flags", "resv1"),
        ("user_addr", _u64),
    ]


class io_uring_params(ctypes.Structure):
    _fields_ = [
        *_words("sq_entries", "cq_entries", "flags", "sq_thread_cpu", "sq_thread_idle", "features", "wq_fd"),
        ("resv", _u32 * 3),
        ("sq_off", io_sqring_offsets),
        ("cq_off", io_cqring_offsets),
    ]


class io_uring_buf_reg(ctypes.Structure):
    _fields_ = [("ring_addr", _u64), ("ring_entries", _u32), ("bgid", _u16), ("flags", _u16), ("resv", _u64 * 3)]


class kernel_timespec(ctypes.Structure):
    """`struct __kernel_timespec`"""

    _fields_ = [("tv_sec", _s64), ("tv_nsec", _s64)]


class io_uring_getevents_arg(ctypes.Structure):
    _fields_ = [("sigmask", _u64), ("sigmask_sz", _u32), ("min_wait_usec", _u32), ("ts", _u64)]


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
POLLIN = select.POLLIN if sys.byteorder == "little" else select.POLLIN << 16  # poll32_events: its halves are swapped


def first_word(opcode: int, flags: int = 0, ioprio: int = 0) -> int:
    """The first word of an SQE: u8 opcode, u8 flags, u16 ioprio."""
    return opcode << _SHIFT[0] | flags << _SHIFT[1] | ioprio << _SHIFT[2]
