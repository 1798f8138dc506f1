"""struct epoll_event: <linux/eventpoll.h> packs it on x86-64, so that it is 12 bytes there and 16 elsewhere."""

from __future__ import annotations

import platform
import select
import struct
import sys
from pathlib import Path

import pytest

from gaio.platform import _epoll
from tests.layout.fields import Field, of_c, of_format

NAMES = ("events", "data")
SIZE = {"x86_64": 12, "i686": 12, "i586": 12, "aarch64": 16, "armv7l": 16, "riscv64": 16, "ppc64le": 16, "s390x": 16}


@pytest.mark.parametrize("machine", SIZE)
def test_fields(machine: str) -> None:
    layout = _epoll.event_format(machine)
    assert struct.calcsize(layout) == SIZE[machine]
    assert of_format(layout, NAMES) == {"events": Field(0, 4), "data": Field(SIZE[machine] - 8, 8)}


def test_constants() -> None:
    assert (_epoll.EPOLL_CTL_ADD, _epoll.EPOLL_CTL_DEL) == (1, 2)
    assert (_epoll.EPOLLIN, _epoll.EPOLLPRI, _epoll.EPOLLOUT) == (0x1, 0x2, 0x4)
    assert (_epoll.EPOLLERR, _epoll.EPOLLHUP, _epoll.EPOLLRDHUP) == (0x8, 0x10, 0x2000)
    assert _epoll.EPOLLET == 0x80000000


@pytest.mark.skipif(sys.platform != "linux", reason="epoll is Linux's")
class TestHere:
    def test_the_compiler_agrees(self, tmp_path: Path) -> None:
        size, fields = of_c(["sys/epoll.h"], "struct epoll_event", NAMES, tmp_path)
        assert size == _epoll.EVENT.size
        assert fields == of_format(_epoll.event_format(platform.machine()), NAMES)

    def test_the_standard_library_agrees(self) -> None:
        for name in ("EPOLLIN", "EPOLLPRI", "EPOLLOUT", "EPOLLERR", "EPOLLHUP", "EPOLLRDHUP", "EPOLLET"):
            assert getattr(_epoll, name) == getattr(select, name), name
        assert getattr(select, "EPOLL_CLOEXEC") == _epoll.EPOLL_CLOEXEC  # noqa: B009 - not on every platform
