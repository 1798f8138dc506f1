"""Which backends the behaviour suite runs on, and which of them may not be skipped."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import sys
from typing import Literal

import pytest

import gaio

if sys.platform == "linux":
    from tests import simulated_kqueue

Name = Literal["auto", "epoll", "kqueue", "io_uring"]

CHOSEN = os.environ.get("GAIO_TEST_BACKEND")  # `python3 -m tests --backend NAME`
LIBRARY = os.environ.get("GAIO_KQUEUE_LIBRARY")  # a library that offers kqueue on Linux

# io_uring_setup(2) and so on: the same numbers on nearly every architecture.
_SETUP, _ENTER, _REGISTER = 425, 426, 427
_PARAMS = struct.Struct("=IIIIII96x")  # io_uring_params: sq_entries, cq_entries, flags, cpu, idle, features
_FLAGS = 1 << 3 | 1 << 4 | 1 << 7 | 1 << 8  # CQSIZE, CLAMP, SUBMIT_ALL, COOP_TASKRUN: Linux 5.19
_FEATURES = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 5 | 1 << 8  # SINGLE_MMAP, NODROP, SUBMIT_STABLE, FAST_POLL, EXT_ARG
_BUF_REG = struct.Struct("=QIHH24x")  # io_uring_buf_reg: ring_addr, ring_entries, bgid, flags
_REGISTER_PBUF_RING = 22


def kernel_has_io_uring() -> bool:
    """Whether this kernel gives this process what the backend is made of, asked without gaio.

    Any ring is not enough: Linux 5.1 to 5.18 have rings that lack these, and a filter may let only some calls through.
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)

    def call(number: int, *arguments: int | ctypes.Array[ctypes.c_char] | None) -> int:
        words = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
        returned: int = libc.syscall(ctypes.c_long(number), *words)
        return returned

    params = ctypes.create_string_buffer(_PARAMS.pack(0, 8, _FLAGS, 0, 0, 0), _PARAMS.size)
    ring = call(_SETUP, 4, params)
    if ring < 0:
        return False
    try:
        *_, features = _PARAMS.unpack(params.raw)
        entries = mmap.mmap(-1, mmap.PAGESIZE)
        registration = _BUF_REG.pack(ctypes.addressof(ctypes.c_char.from_buffer(entries)), 4, 0, 0)
        buffers = ctypes.create_string_buffer(registration, _BUF_REG.size)
        return (
            features & _FEATURES == _FEATURES
            and call(_REGISTER, ring, _REGISTER_PBUF_RING, buffers, 1) == 0
            and call(_ENTER, ring, 0, 0, 0, None, 0) == 0
        )
    finally:
        os.close(ring)


def offered() -> dict[str, gaio.Backend]:
    return {backend.name: backend for backend in gaio.backends()}


def is_simulated(name: str) -> bool:
    """Whether the tests must bring their own kernel for this backend: see tests/simulated_kqueue.py."""
    return name == "kqueue" and sys.platform == "linux" and not LIBRARY


def simulate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a kqueue on Linux, in this process and in the interpreters that tests/child.py starts."""
    if sys.platform == "linux":
        monkeypatch.setenv("GAIO_KQUEUE_LIBRARY", simulated_kqueue.PATH)
        simulated_kqueue.install(replace=monkeypatch.setattr)


def required() -> set[str]:
    """The backends that must work on this machine: skipping one of them would hide a failure.

    One on a simulated kernel must work too, but works in the tests that ask for it only.
    """
    if CHOSEN is not None:
        return set() if is_simulated(CHOSEN) else {CHOSEN}
    if sys.platform == "linux":
        return {"epoll", "io_uring"} if "io_uring" in offered() and kernel_has_io_uring() else {"epoll"}
    return {"kqueue"}


def known() -> list[str]:
    """The backends that gaio names on this system, and those that it must name."""
    return sorted({*offered(), *required()})


def under_test() -> list[str]:
    """The backends of the suite: all that work here, and all that must, on a simulated kernel if need be."""
    if CHOSEN is not None:
        return [CHOSEN]
    must = required()
    return [name for name in known() if name in must or offered()[name].available or is_simulated(name)]


def telling_readiness() -> list[str]:
    """Those of them that make the calls which move bytes themselves, so that a fault can be put into such a call."""
    return [name for name in under_test() if name != "io_uring"]


def on_a_real_kernel() -> list[str]:
    """Those of them that need no simulation here."""
    return [name for name in under_test() if not is_simulated(name)]
