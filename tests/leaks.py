"""What a process holds: its descriptors and its threads."""

from __future__ import annotations

import os
import sys
import threading
from typing import NamedTuple

_FOLDER = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"


class Resources(NamedTuple):
    descriptors: dict[int, str]
    threads: dict[int | None, str]

    def since(self, before: Resources) -> list[str]:
        """What was opened or started since then and is still there, and what was closed that was there."""
        opened = self.descriptors.items() - before.descriptors.items()
        closed = before.descriptors.items() - self.descriptors.items()
        started = self.threads.items() - before.threads.items()
        return [
            *(f"descriptor {number} is still open: {target}" for number, target in sorted(opened)),
            *(
                f"descriptor {number} was not the test's, but was closed: {target}"
                for number, target in sorted(closed)
            ),
            *(f"thread is still running: {name}" for _, name in started),
        ]


def _target(number: int) -> str | None:
    """What a descriptor refers to, or None when it is closed, as the one that listed the folder is by now."""
    try:
        if sys.platform == "linux":
            return os.readlink(f"{_FOLDER}/{number}")
        status = os.fstat(number)
    except OSError:
        return None
    return f"device {status.st_dev} inode {status.st_ino} mode {status.st_mode:o}"


def in_use() -> Resources:
    targets = {int(name): _target(int(name)) for name in os.listdir(_FOLDER)}
    return Resources(
        {number: target for number, target in targets.items() if target is not None},
        {thread.ident: thread.name for thread in threading.enumerate()},
    )


def kernel_threads() -> set[str]:
    """Those of io_uring's that work for this process; elsewhere there is no such thing."""
    if sys.platform != "linux":
        return set()
    names = set()
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/comm") as file:
                name = file.read()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        if name.startswith("iou-wrk"):
            names.add(task)
    return names
