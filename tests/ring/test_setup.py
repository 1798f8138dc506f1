"""A kernel that refuses io_uring, at each step of setting a ring up: why is told, and nothing stays open.

Containers and hardened kernels do refuse it, so this is a matter of course and not of luck.
"""

from __future__ import annotations

import errno
import itertools
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import gaio
from gaio.platform import _io_uring, _libc
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
    "io_uring_setup": ("syscall", is_call(_io_uring.SYS_io_uring_setup)),
    "io_uring_register": ("syscall", is_call(_io_uring.SYS_io_uring_register)),
    "io_uring_enter": ("syscall", enters_ring),
    "mmap": ("mmap", lambda *_: True),
    "madvise": ("madvise", lambda *_: True),
    "eventfd": ("eventfd", lambda *_: True),
}
ERRORS = ("EPERM", "EACCES", "ENOSYS", "EINVAL", "ENOMEM", "EBADF", "EFAULT", "EOPNOTSUPP")
# What the reason must tell beyond the error's own text, so that a reader knows what to do.
ADVICE = {"EPERM": "seccomp", "ENOSYS": "built without", "EINVAL": "5.19", "ENOMEM": "RLIMIT_MEMLOCK"}


@pytest.fixture
def libc(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyLibc]:
    """The outcome of probing is remembered for the life of a process: forgotten before the test and after it."""
    _io_uring._probe_once.cache_clear()
    yield FaultyLibc(monkeypatch)
    _io_uring._probe_once.cache_clear()


def offer() -> gaio.Backend:
    (found,) = (found for found in gaio.backends() if found.name == "io_uring")
    return found


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
    for part in (step, ADVICE.get(error, "")):
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
    libc.fail("syscall", errno.EPERM, times=None, when=is_call(_io_uring.SYS_io_uring_setup))
    monkeypatch.setenv("GAIO_BACKEND", "io_uring")
    with pytest.raises(gaio.BackendUnavailableError, match=r"GAIO_BACKEND.*seccomp"):
        gaio.Watcher()


def test_running_out_of_descriptors_once_does_not_rule_it_out_for_good(libc: FaultyLibc, backend: Name) -> None:
    """The outcome of trying is remembered, but not that of a moment without descriptors or memory."""
    for error in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        _io_uring._probe_once.cache_clear()
        # Twice: when it is asked which is the best, and when it is asked why not.
        libc.fail("syscall", error, times=2, when=is_call(_io_uring.SYS_io_uring_setup))
        found = offer()
        assert not found.available
        assert os.strerror(error) in found.reason
        with gaio.Watcher(backend=backend) as watcher:
            assert watcher.backend == "io_uring"


@pytest.mark.parametrize("error", ["EMFILE", "ENFILE"])
def test_no_descriptors_is_an_error_of_its_own(libc: FaultyLibc, backend: Name, error: str) -> None:
    """It does not say that the backend cannot run here: a caller may close something and try again."""
    libc.fail("syscall", getattr(errno, error), when=is_call(_io_uring.SYS_io_uring_setup))
    with pytest.raises(OSError) as caught:
        gaio.Watcher(backend=backend)
    assert caught.value.errno == getattr(errno, error)
    assert not isinstance(caught.value, gaio.BackendUnavailableError)


def test_every_backend_refused(libc: FaultyLibc) -> None:
    """Then even `auto` raises, with the reason of each."""
    libc.fail("syscall", errno.EPERM, times=None, when=is_call(_io_uring.SYS_io_uring_setup))
    libc.fail("epoll_create1", errno.ENOSYS, times=None)
    libc.fail("kqueue", errno.ENOSYS, times=None)
    with pytest.raises(gaio.BackendUnavailableError, match=r"epoll: .*implemented.*io_uring: .*seccomp"):
        gaio.Watcher()


def test_an_older_kernel_gets_an_index_array(libc: FaultyLibc) -> None:
    """Linux before 6.6 does not know NO_SQARRAY, and says EINVAL."""
    asked: list[int] = []

    def knows_no_sqarray(number: int, *arguments: Any) -> bool:
        if number != _io_uring.SYS_io_uring_setup:
            return False
        flags = _io_uring.io_uring_params.from_address(arguments[1]).flags
        asked.append(flags)
        return bool(flags & _io_uring.IORING_SETUP_NO_SQARRAY)

    libc.fail("syscall", errno.EINVAL, times=None, when=knows_no_sqarray)
    assert offer().available, offer().reason
    assert "NO_SQARRAY" not in offer().reason
    assert [bool(flags & _io_uring.IORING_SETUP_NO_SQARRAY) for flags in asked[:2]] == [True, False]


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
        if number != _io_uring.SYS_io_uring_setup:
            return call

        def setup(entries: int, address: int) -> int:
            ring = call(entries, address)
            _io_uring.io_uring_params.from_address(address).features &= ~_io_uring.IORING_FEAT_NODROP
            return ring

        return setup

    monkeypatch.setattr(_libc, "system_call", system_call)
    before = leaks.in_use()
    found = offer()
    assert not found.available
    assert "features" in found.reason
    assert leaks.in_use().since(before) == []


@pytest.mark.parametrize("error", ["EMFILE", "ENOMEM"])
@pytest.mark.parametrize("step", [step for step in STEPS if step != "io_uring_enter"])  # that comes later
def test_a_watcher_that_cannot_be_made_leaves_nothing(
    libc: FaultyLibc, backend: Name, step: str, error: str
) -> None:
    """The probe has passed; the descriptors or the memory ran out later."""
    assert offer().available
    name, when = STEPS[step]
    libc.fail(name, getattr(errno, error), when=when)
    before = leaks.in_use()
    with pytest.raises(OSError) as caught:
        gaio.Watcher(backend=backend)
    assert caught.value.errno == getattr(errno, error)
    assert leaks.in_use().since(before) == []
    with gaio.Watcher(backend=backend) as watcher:
        assert watcher.backend == "io_uring", "it is made as soon as there is room again"


def test_a_process_that_was_stopped_while_it_probed(libc: FaultyLibc, monkeypatch: pytest.MonkeyPatch) -> None:
    """For longer than the probe has patience, between any two of its looks at the clock: it works all the same."""
    clock = itertools.count(0, 10)
    monkeypatch.setattr(_io_uring, "monotonic", lambda: next(clock))
    assert offer().available
