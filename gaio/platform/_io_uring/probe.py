"""Whether io_uring works here, by trying it out; and opening a ring for a watcher."""

from __future__ import annotations

import errno
import functools
import os
import socket
from collections.abc import Mapping
from time import monotonic, sleep

from gaio.platform import CANCELLED, SOCKET
from gaio.platform._io_uring.backend import IoUringBackend
from gaio.platform._io_uring.operations import UNKNOWN
from gaio.platform._io_uring.ring import GEOMETRIES, Ring
from gaio.platform._io_uring.submission import last_closed, open_rings

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from typing import Any

    from gaio.platform import Descriptor
    from gaio.swap import SwapArena

# In seconds: the kernel gives a closed ring's memory back in the background, 80 ms later and more where it is busy.
GIVEN_BACK_BY_THEN = 1.0


def open_backend(arena: SwapArena, descriptors: Mapping[int, Descriptor]) -> IoUringBackend:
    """A ring for a watcher; `OSError` where there can be none, which `why_not()` explains.

    Whether io_uring works here is tried out, never told by version: containers and hardened kernels refuse it with
    EPERM or ENOSYS as a matter of course.
    """
    begun = monotonic()
    while True:
        for entries, cq_entries, count in GEOMETRIES:
            if len(open_rings) >= count:
                continue
            try:
                _try_out(os.getpid())
                return IoUringBackend(arena, descriptors, entries, cq_entries)
            except OSError as error:
                if error.errno != errno.ENOMEM:
                    raise
                refusal = str(error.strerror)  # not the error: its traceback would keep what was opened
        now = monotonic()
        if now > last_closed[0] + GIVEN_BACK_BY_THEN or now > begun + GIVEN_BACK_BY_THEN:
            raise OSError(errno.ENOMEM, refusal)
        sleep(0.001)


class _Trial:
    """A stand-in for the core's descriptor, queue and request at once."""

    kind, outbound, writes, waiting, ready, entry, token = SOCKET, False, None, None, UNKNOWN, b"", 2
    more, _memory, _offset, _length, _result = False, None, 0, 0, 0
    buffer: Any = None

    def __init__(self, fd: int) -> None:
        self.fd = fd
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
            return backend.buffers.incremental
        finally:
            backend.close()


def is_behind() -> bool:
    """Whether it works here, but `auto` should take epoll: where that is faster with few connections or thousands.

    That was measured (benchmarks/NOTES.md). io_uring needs buffers that are consumed by bytes, or thousands of messages
    find none; and it was measured on processors that keep the order of loads and stores alone.
    """
    if Ring.weakly_ordered:
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
    errno.ENOMEM: "raise RLIMIT_MEMLOCK (ulimit -l), of which a ring takes 136 KiB, 16 at least, and which all "
    "processes of the user share",
}


def advice(error: OSError) -> str | None:
    """What can be done about it, where one of io_uring's own calls was refused."""
    return _ADVICE.get(error.errno or 0) if "io_uring" in str(error) else None
