"""Binding a thread to one CPU, where the standard library can: on Linux."""

from __future__ import annotations

import errno
import os
import sys


def set_thread_affinity(native_id: int, cpu: int) -> None:
    """Bind the thread of that native id to one CPU, and it alone.

    `ValueError` when this process cannot run on it, `OSError` where the system does not let a program do this.
    """
    if not sys.platform.startswith("linux"):
        raise OSError(errno.ENOTSUP, f"gaio cannot bind threads to a CPU on {sys.platform}")
    if cpu < 0:
        raise ValueError(f"CPUs are counted from 0: there is no CPU {cpu}")
    try:
        os.sched_setaffinity(native_id, {cpu})  # sched_setaffinity(2): of a thread's id it binds that thread
    except OverflowError as error:
        raise ValueError(f"no system has a CPU {cpu}") from error
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise ValueError(f"this process cannot run on CPU {cpu}: see os.sched_getaffinity(0)") from error
