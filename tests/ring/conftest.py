"""Watchers on a ring, of a geometry that the test chooses."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Iterator
from typing import Protocol

import pytest

from gaio.platform._io_uring import abi, probe
from gaio.platform._io_uring.ring import CQ_ENTRIES, ENTRIES
from tests import backends
from tests.accounting import AccountedWatcher, MakeWatcher
from tests.faulty_libc import FaultyLibc


@pytest.fixture(params=["io_uring"])
def backend(request: pytest.FixtureRequest) -> backends.Name:
    """The only backend here. Where it must work and does not, the tests fail; elsewhere they are skipped."""
    if "io_uring" not in backends.under_test():
        offer = backends.offered().get("io_uring")
        pytest.skip(offer.reason if offer and not offer.available else "another backend was chosen")
    assert backends.offered()["io_uring"].available, backends.offered()["io_uring"].reason
    return "io_uring"


class MakeRing(Protocol):
    """The fixture make_ring."""

    def __call__(
        self, entries: int = ..., cq_entries: int = ..., swap_size: int = ...
    ) -> AccountedWatcher: ...


@pytest.fixture
def make_ring(make_watcher: MakeWatcher, monkeypatch: pytest.MonkeyPatch) -> MakeRing:
    """Makes accounted watchers on rings with so many submission and completion queue entries."""

    def make(
        entries: int = ENTRIES, cq_entries: int = CQ_ENTRIES, swap_size: int = 65536
    ) -> AccountedWatcher:
        with monkeypatch.context() as patch:
            patch.setattr(probe, "GEOMETRIES", ((entries, cq_entries, sys.maxsize),))
            return make_watcher(swap_size)

    return make


@contextlib.contextmanager
def leading(watcher: AccountedWatcher) -> Iterator[None]:
    """Nobody else takes a turn meanwhile.

    The lead is asked for as wait_io() does: the watcher thread may have it, asleep in the kernel, and would sleep on.
    """
    leader = watcher.watcher._leader
    if not leader.lead.acquire(False):
        leader.take_lead()
    try:
        yield
    finally:
        leader.lead.release()


def refuse_incremental_buffers(libc: FaultyLibc) -> None:
    """Be a kernel before Linux 6.12, which does not know IOU_PBUF_RING_INC and says EINVAL."""

    def asks_for_it(number: int, *arguments: int) -> bool:
        if number != abi.SYS_io_uring_register:
            return False
        return bool(abi.io_uring_buf_reg.from_address(arguments[2]).flags & abi.IOU_PBUF_RING_INC)

    libc.fail("syscall", errno.EINVAL, times=None, when=asks_for_it)
