"""Ctrl-C in the moment in which a lock has been taken, before the block that releases it has begun.

CPython 3.14 runs signal handlers there, between the __enter__() of a `with` and its block, and no other version does.
"""

from __future__ import annotations

import ctypes
import functools
import signal
from collections import deque
from typing import Any

import pytest

import gaio
from tests.backends import Name
from tests.peers import Pairs
from tests.waiting import Background


class StruckLock:
    """A lock; a SIGINT comes once within its __enter__(), by C code, as one from outside may."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self.armed = True

    @property
    def __enter__(self) -> Any:  # it takes the lock by C code, and so is no method
        if not self.armed:
            return self._lock.__enter__
        self.armed = False
        send = functools.partial(ctypes.PyDLL(None)["raise"], int(signal.SIGINT))
        steps = (self._lock.acquire, send)
        return functools.partial(deque, map(functools.partial.__call__, map(functools.partial, steps)), 0)

    def __exit__(self, *error: object) -> None:
        self._lock.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lock, name)


def test_the_lock_of_delegation(backend: Name, pairs: Pairs) -> None:
    """Another thread can submit afterwards."""
    (conn, peer), (other, other_peer) = pairs.tcp(), pairs.tcp()
    with gaio.Watcher(backend=backend) as watcher:
        lock = StruckLock(watcher._leader.delegation)
        watcher._leader.delegation = lock  # type: ignore[assignment]  # stands in for it
        with pytest.raises(KeyboardInterrupt):
            watcher.write(conn, b"x")
        assert not lock.armed
        Background(lambda: watcher.write(other, b"y")).result()
        assert other_peer.recv(1) == b"y"
        watcher.write(conn, b"x")
        assert peer.recv(1) == b"x"
