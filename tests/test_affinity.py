"""Binding the watcher thread to a CPU, on systems that are not this one: their calls and their refusals."""

from __future__ import annotations

import ctypes
import errno
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import gaio
from gaio.platform import _affinity, _libc

CPU_LEVEL_WHICH, CPU_WHICH_TID = 3, 1  # <sys/cpuset.h>


class Cpuset:
    """cpuset_setaffinity(2) of a FreeBSD whose cpuset_t has so many bytes and which has so many CPUs."""

    argtypes: Any = None
    restype: Any = None
    errcheck: Any = None
    __name__ = "cpuset_setaffinity"

    def __init__(self, size: int, cpus: int) -> None:
        self.size = size
        self.cpus = cpus
        self.bound: dict[int, int] = {}

    def __getitem__(self, name: str) -> Callable[..., Any]:
        assert name == self.__name__
        return self

    def __call__(self, level: int, which: int, thread: int, size: int, mask: Any) -> Any:
        assert (level, which) == (CPU_LEVEL_WHICH, CPU_WHICH_TID)
        error = 0
        if size != self.size:
            error = errno.ERANGE
        else:
            wanted = int.from_bytes(ctypes.string_at(ctypes.addressof(mask._obj), size), sys.byteorder)
            assert wanted.bit_count() == 1
            if wanted >> self.cpus:
                error = errno.EDEADLK
            else:
                self.bound[thread] = wanted.bit_length() - 1
        ctypes.set_errno(error)
        return self.errcheck(-1 if error else 0, self, ())


@pytest.fixture(params=[32, 128], ids=["FreeBSD 13", "FreeBSD 14"])
def cpuset(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cpuset]:
    system = Cpuset(request.param, cpus=100)
    with monkeypatch.context() as patch:
        patch.setattr(_libc.LIBC, "keeping_gil", system)
        patch.setattr(sys, "platform", "freebsd14")
        yield system


@pytest.mark.skipif(sys.byteorder != "little", reason="the mask is looked at as one number")
@pytest.mark.parametrize("cpu", [0, 1, 63, 64, 99])
def test_freebsd_binds_the_thread(cpuset: Cpuset, cpu: int) -> None:
    _affinity.set_thread_affinity(100_123, cpu)
    assert cpuset.bound == {100_123: cpu}


@pytest.mark.parametrize("cpu", [-1, 100, 255, 256, 1023, 1024, 1 << 40])
def test_freebsd_refuses_a_cpu_that_is_not_there(cpuset: Cpuset, cpu: int) -> None:
    with pytest.raises(ValueError, match="CPU"):
        _affinity.set_thread_affinity(100_123, cpu)
    assert not cpuset.bound


@pytest.mark.parametrize(
    ("platform", "word"),
    [("darwin", "macOS"), ("openbsd7", "OpenBSD"), ("netbsd10", "superuser"), ("dragonfly6", "dragonfly6")],
)
def test_other_systems_say_why_not(monkeypatch: pytest.MonkeyPatch, platform: str, word: str) -> None:
    with gaio.Watcher() as watcher:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "platform", platform)
            with pytest.raises(OSError, match=word) as caught:
                watcher.set_affinity(0)
        assert caught.value.errno == errno.ENOTSUP
        assert not isinstance(caught.value, gaio.GaioError)
