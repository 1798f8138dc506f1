"""A kernel that refuses io_uring, at each step of setting a ring up: why is told, and nothing stays open.

Containers and hardened kernels do refuse it, so this is a matter of course and not of luck.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import gaio
from gaio.platform import _libc
from gaio.platform._io_uring import abi, probe, ring
from tests import leaks
from tests.backends import Name
from tests.faulty_libc import Condition, FaultyLibc, enters_ring, is_call
from tests.ring.conftest import refuse_incremental_buffers

pytestmark = [
    pytest.mark.scenario(3, on="io_uring"),
    pytest.mark.usefixtures("backend"),
    pytest.mark.skipif(sys.platform != "linux", reason="io_uring is Linux's"),
]


# step -> function and which of its calls
STEPS: dict[str, tuple[str, Condition]] = {
    "io_uring_setup": ("syscall", is_call(abi.SYS_io_uring_setup)),
    "io_uring_register": ("syscall", is_call(abi.SYS_io_uring_register)),
    "io_uring_enter": ("syscall", enters_ring),
    "mmap": ("mmap", lambda *_: True),
    "madvise": ("madvise", lambda *_: True),
    "eventfd": ("eventfd", lambda *_: True),
}
ERRORS = ("EPERM", "EACCES", "ENOSYS", "EINVAL", "ENOMEM", "EBADF", "EFAULT", "EOPNOTSUPP")
# What the reason must tell beyond the error's own text, so that a reader knows what to do.
ADVICE = {
    "EPERM": "seccomp",
    "EACCES": "seccomp",
    "ENOSYS": "built without",
    "EINVAL": "5.19",
    "ENOMEM": "RLIMIT_MEMLOCK",
}
# The same of the other calls, which are not io_uring's.
GENERAL_ADVICE = {"EPERM": "seccomp", "EACCES": "seccomp", "ENOMEM": "RLIMIT_AS"}


@pytest.fixture
def libc(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyLibc]:
    """The outcome of probing is remembered for the life of a process: forgotten before the test and after it."""
    probe._try_out.cache_clear()
    yield FaultyLibc(monkeypatch)
    probe._try_out.cache_clear()


@pytest.fixture
def nothing_closed_lately(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that is short is so for good: none of it is about to be given back by rings that were closed."""
    monkeypatch.setattr(probe, "GIVEN_BACK_BY_THEN", 0.0)


def offer() -> gaio.Backend:
    (found,) = (found for found in gaio.backends() if found.name == "io_uring")
    return found


@pytest.mark.usefixtures("nothing_closed_lately")
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("step", STEPS)
def test_the_reason_is_told(libc: FaultyLibc, step: str, error: str) -> None:
    name, when = STEPS[step]
    number = getattr(errno, error)
    libc.fail(name, number, times=None, when=when)
    before = leaks.in_use()
    found = offer()
    assert libc.struck, "the step is not taken, so nothing was tested"
    assert leaks.in_use().since(before) == []
    assert not found.available
    advice = ADVICE if step.startswith("io_uring") else GENERAL_ADVICE
    for part in (step, advice.get(error, "")):
        assert part in found.reason, found.reason
    with pytest.raises(gaio.BackendUnavailableError) as caught:
        gaio.Watcher(backend="io_uring")
    assert found.reason in str(caught.value)
    libc.recover()


@pytest.mark.parametrize("step", [step for step in STEPS if step != "eventfd"])  # which epoll needs as well
def test_auto_quietly_takes_another(libc: FaultyLibc, step: str, capfd: pytest.CaptureFixture[str]) -> None:
    name, when = STEPS[step]
    libc.fail(name, errno.EPERM, times=None, when=when)
    with gaio.Watcher() as watcher:
        assert watcher.backend == "epoll"
    assert capfd.readouterr() == ("", "")


def test_a_forced_ring_is_never_replaced(libc: FaultyLibc, monkeypatch: pytest.MonkeyPatch) -> None:
    libc.fail("syscall", errno.EPERM, times=None, when=is_call(abi.SYS_io_uring_setup))
    monkeypatch.setenv("GAIO_BACKEND", "io_uring")
    with pytest.raises(gaio.BackendUnavailableError, match=r"GAIO_BACKEND.*seccomp"):
        gaio.Watcher()


@pytest.mark.usefixtures("nothing_closed_lately")
@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_running_out_once_does_not_rule_it_out_for_good(libc: FaultyLibc, backend: Name, error: int) -> None:
    """The outcome of trying is remembered, but not that of a moment without descriptors or memory."""
    libc.fail("syscall", error, times=None, when=is_call(abi.SYS_io_uring_setup))
    found = offer()
    assert not found.available
    assert os.strerror(error) in found.reason
    libc.recover()
    with gaio.Watcher(backend=backend) as watcher:
        assert watcher.backend == "io_uring"


@pytest.mark.parametrize("error", ["EMFILE", "ENFILE"])
def test_no_descriptors_is_an_error_of_its_own(libc: FaultyLibc, backend: Name, error: str) -> None:
    """It does not say that the backend cannot run here: a caller may close something and try again."""
    libc.fail("syscall", getattr(errno, error), when=is_call(abi.SYS_io_uring_setup))
    with pytest.raises(OSError) as caught:
        gaio.Watcher(backend=backend)
    assert caught.value.errno == getattr(errno, error)
    assert not isinstance(caught.value, gaio.BackendUnavailableError)


def test_every_backend_refused(libc: FaultyLibc) -> None:
    """Then even `auto` raises, with the reason of each."""
    libc.fail("syscall", errno.EPERM, times=None, when=is_call(abi.SYS_io_uring_setup))
    libc.fail("epoll_create1", errno.ENOSYS, times=None)
    libc.fail("kqueue", errno.ENOSYS, times=None)
    with pytest.raises(gaio.BackendUnavailableError, match=r"io_uring: .*seccomp.*epoll: .*epoll_create1"):
        gaio.Watcher()


def test_an_older_kernel_gets_an_index_array(libc: FaultyLibc) -> None:
    """Linux before 6.6 does not know NO_SQARRAY, and says EINVAL."""
    asked: list[int] = []

    def knows_no_sqarray(number: int, *arguments: Any) -> bool:
        if number != abi.SYS_io_uring_setup:
            return False
        flags = abi.io_uring_params.from_address(arguments[1]).flags
        asked.append(flags)
        return bool(flags & abi.IORING_SETUP_NO_SQARRAY)

    libc.fail("syscall", errno.EINVAL, times=None, when=knows_no_sqarray)
    assert offer().available, offer().reason
    assert "NO_SQARRAY" not in offer().reason
    assert [bool(flags & abi.IORING_SETUP_NO_SQARRAY) for flags in asked[:2]] == [True, False]


def test_what_has_no_meaning_yet_is_zero(libc: FaultyLibc) -> None:
    """In the registration of buffers: a later kernel reads more of it (`min_left`), and zero is what it was before."""
    sent: list[bytes] = []

    def look(number: int, *arguments: int) -> bool:
        if number == abi.SYS_io_uring_register:
            sent.append(ctypes.string_at(arguments[2], ctypes.sizeof(abi.io_uring_buf_reg)))
        return False  # the call itself is made as always

    libc.fail("syscall", errno.EINVAL, times=None, when=look)
    assert offer().available, offer().reason
    assert sent
    behind_flags = abi.io_uring_buf_reg.flags.offset + abi.io_uring_buf_reg.flags.size
    assert {registration[behind_flags:] for registration in sent} == {bytes(24)}


def test_an_older_kernel_consumes_whole_buffers(libc: FaultyLibc) -> None:
    refuse_incremental_buffers(libc)
    assert offer().available, offer().reason
    assert "provided-buffer ring" in offer().reason
    assert "incremental" not in offer().reason
    with gaio.Watcher() as watcher:
        assert watcher.backend == "epoll", "with whole buffers io_uring is behind it"


def test_a_kernel_without_the_features_is_refused(libc: FaultyLibc, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ring opens, but says that it drops completions: that is no basis."""
    real = _libc.system_call

    def system_call(number: int, name: str) -> Any:
        call = real(number, name)
        if number != abi.SYS_io_uring_setup:
            return call

        def setup(entries: int, address: int) -> int:
            ring = call(entries, address)
            abi.io_uring_params.from_address(address).features &= ~abi.IORING_FEAT_NODROP
            return ring

        return setup

    monkeypatch.setattr(_libc, "system_call", system_call)
    before = leaks.in_use()
    found = offer()
    assert not found.available
    assert "features" in found.reason
    assert leaks.in_use().since(before) == []


@pytest.mark.usefixtures("nothing_closed_lately")
@pytest.mark.parametrize("error", ["EMFILE", "ENOMEM"])
@pytest.mark.parametrize("step", STEPS)
def test_a_watcher_that_cannot_be_made_leaves_nothing(
    libc: FaultyLibc, backend: Name, step: str, error: str
) -> None:
    """It was offered; the descriptors or the memory ran out later."""
    assert offer().available
    name, when = STEPS[step]
    libc.fail(name, getattr(errno, error), times=None, when=when)
    before = leaks.in_use()
    with pytest.raises(OSError) as caught:
        gaio.Watcher(backend=backend)
    assert caught.value.errno == getattr(errno, error)
    assert leaks.in_use().since(before) == []
    libc.recover()
    with gaio.Watcher(backend=backend) as watcher:
        assert watcher.backend == "io_uring", "it is made as soon as there is room again"


@pytest.mark.usefixtures("nothing_closed_lately")
@pytest.mark.parametrize("step", ["io_uring_setup", "io_uring_register", "io_uring_enter", "mmap"])
@pytest.mark.parametrize("error", ["EPERM", "EACCES", "ENOMEM", "EMFILE"])
def test_auto_goes_on_to_the_next(
    libc: FaultyLibc, step: str, error: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It was offered, and worked; it says why it does not now."""
    with gaio.Watcher() as watcher:
        assert watcher.backend == best()
    name, when = STEPS[step]
    libc.fail(name, getattr(errno, error), times=None, when=when)
    with caplog.at_level(logging.DEBUG, "gaio"), gaio.Watcher() as watcher:
        assert watcher.backend == "epoll"
    if best() == "epoll":
        return  # io_uring is not even tried
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("gaio", logging.DEBUG)
    for part in ("epoll", "io_uring", step, os.strerror(getattr(errno, error))):
        assert part in record.getMessage()
    assert not offer().available
    assert step in offer().reason


def best() -> str:
    return "epoll" if probe.is_behind() else "io_uring"


def test_where_memory_is_short_the_ring_is_smaller(libc: FaultyLibc, backend: Name) -> None:
    asked: list[int] = []
    smallest = ring.GEOMETRIES[-1][0]

    def is_large(number: int, *arguments: Any) -> bool:
        if number != abi.SYS_io_uring_setup:
            return False
        asked.append(arguments[0])
        return bool(arguments[0] > smallest)

    libc.fail("syscall", errno.ENOMEM, times=None, when=is_large)
    assert offer().available
    assert f"{smallest} entries" in offer().reason
    with gaio.Watcher(backend=backend) as watcher:
        assert watcher.backend == "io_uring"
    assert {entries for entries, *_ in ring.GEOMETRIES} <= set(asked)


def test_a_process_with_many_rings_has_small_ones(backend: Name, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "GEOMETRIES", ((1024, 4096, 1), (256, 1024, 2), (64, 256, sys.maxsize)))
    with contextlib.ExitStack() as stack:
        for entries in (1024, 256, 64, 64):
            watcher = stack.enter_context(gaio.Watcher(backend=backend))
            assert watcher._leader.engine.backend.describe().endswith(f" {entries} entries")
    assert offer().reason.endswith(" 1024 entries"), "those that are closed do not count"


def test_memory_that_is_being_given_back_is_waited_for(libc: FaultyLibc, backend: Name) -> None:
    """A closed ring's memory comes back later; a watcher that is made meanwhile gets its ring all the same."""
    gaio.Watcher(backend=backend).close()
    libc.fail("syscall", errno.ENOMEM, times=9, when=is_call(abi.SYS_io_uring_setup))
    with gaio.Watcher(backend=backend) as watcher:
        assert watcher.backend == "io_uring"
    assert libc.struck == 9


def test_a_process_that_was_stopped_while_it_probed(libc: FaultyLibc, monkeypatch: pytest.MonkeyPatch) -> None:
    """For longer than the probe has patience, between any two of its looks at the clock: it works all the same."""
    clock = itertools.count(0, 10)
    monkeypatch.setattr(probe, "monotonic", lambda: next(clock))
    assert offer().available
