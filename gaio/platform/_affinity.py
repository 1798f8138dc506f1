"""Binding a thread to one CPU, by the system calls of those systems that have one."""

from __future__ import annotations

import ctypes
import errno
import os
import sys

from gaio.platform import _libc

# cpuset_setaffinity(2) of FreeBSD, <sys/cpuset.h>
CPU_LEVEL_WHICH = 3
CPU_WHICH_TID = 1
# The sizes of cpuset_t in bytes, since FreeBSD 14 and before: the kernel says ERANGE to the one that is not its own.
CPUSET_SIZES = (128, 32)

_WHY_NOT = {
    "darwin": "macOS lets no program choose the CPU of a thread",
    "openbsd": "OpenBSD lets no program choose the CPU of a thread",
    "netbsd": "NetBSD keeps it to the superuser: run the process under schedctl(8), which binds all of its threads",
}


def set_thread_affinity(native_id: int, cpu: int) -> None:
    """Bind the thread of that native id to one CPU, and it alone.

    `ValueError` when this process cannot run on it, `OSError` where the system does not let a program do this.
    """
    if cpu < 0:
        raise ValueError(f"CPUs are counted from 0: there is no CPU {cpu}")
    if sys.platform.startswith("linux"):
        try:
            os.sched_setaffinity(native_id, {cpu})  # sched_setaffinity(2): of a thread's id it binds that thread
        except OverflowError as error:
            raise ValueError(f"no system has a CPU {cpu}") from error
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise ValueError(f"this process cannot run on CPU {cpu}: see os.sched_getaffinity(0)") from error
    elif sys.platform.startswith("freebsd"):
        _cpuset_setaffinity(native_id, cpu)
    else:
        name = sys.platform.rstrip("0123456789")
        raise OSError(errno.ENOTSUP, _WHY_NOT.get(name, f"gaio cannot bind threads to a CPU on {sys.platform}"))


def _cpuset_setaffinity(native_id: int, cpu: int) -> None:
    setaffinity = _libc.checked("cpuset_setaffinity")
    bits = 8 * ctypes.sizeof(ctypes.c_ulong)
    for size in CPUSET_SIZES:
        cpuset = (ctypes.c_ulong * (8 * size // bits))()
        if cpu >= 8 * size:
            continue
        cpuset[cpu // bits] = 1 << (cpu % bits)
        try:
            setaffinity(CPU_LEVEL_WHICH, CPU_WHICH_TID, native_id, size, ctypes.byref(cpuset))
            return
        except OSError as error:
            if error.errno in (errno.EDEADLK, errno.EINVAL):
                raise ValueError(f"this process cannot run on CPU {cpu}: see cpuset(1)") from error
            if error.errno != errno.ERANGE:
                raise
    raise ValueError(f"this system has no CPU {cpu}")
