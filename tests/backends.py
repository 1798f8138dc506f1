"""Which backends the behaviour suite runs on, and which of them may not be skipped."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Literal

import pytest

import gaio

if sys.platform == "linux":
    from tests import simulated_kqueue

Name = Literal["auto", "epoll", "kqueue", "io_uring"]

CHOSEN = os.environ.get("GAIO_TEST_BACKEND")  # `python3 -m tests --backend NAME`
LIBRARY = os.environ.get("GAIO_KQUEUE_LIBRARY")  # a library that offers kqueue on Linux

_SYS_IO_URING_SETUP = 425  # io_uring_setup(2); the same number on every architecture but Alpha
_SIZE_OF_IO_URING_PARAMS = 120


def kernel_has_io_uring() -> bool:
    """Whether this kernel lets this process make a ring, asked without gaio."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    parameters = ctypes.create_string_buffer(_SIZE_OF_IO_URING_PARAMS)
    descriptor = libc.syscall(ctypes.c_long(_SYS_IO_URING_SETUP), ctypes.c_long(4), parameters)
    if descriptor < 0:
        return False
    os.close(descriptor)
    return True


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
