"""struct kevent and kevent(2) of each system, from its <sys/event.h>, 64-bit."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import socket
import struct
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from gaio.platform import _kqueue_abi, _libc
from tests.layout.fields import Field, of_c, of_format, run_c

NAMES = ("ident", "filter", "flags", "fflags", "data", "udata")

CLASSIC = {
    "ident": Field(0, 8),
    "filter": Field(8, 2),
    "flags": Field(10, 2),
    "fflags": Field(12, 4),
    "data": Field(16, 8),
    "udata": Field(24, 8),
}
NETBSD = {
    "ident": Field(0, 8),
    "filter": Field(8, 4),
    "flags": Field(12, 4),
    "fflags": Field(16, 4),
    "data": Field(24, 8),
    "udata": Field(32, 8),
}


class Expected(NamedTuple):
    symbol: str
    size: int
    fields: dict[str, Field]
    size_of_count: int
    evfilt_read: int
    evfilt_write: int


EXPECTED = {
    "darwin": Expected("kevent", 32, CLASSIC, 4, -1, -2),
    "freebsd": Expected("kevent", 64, CLASSIC, 4, -1, -2),
    "dragonfly": Expected("kevent", 32, CLASSIC, 4, -1, -2),
    "netbsd 11": Expected("__kevent100", 72, NETBSD, 8, 0, 1),
    "netbsd": Expected("__kevent50", 40, NETBSD, 8, 0, 1),
    "openbsd": Expected("kevent", 32, CLASSIC, 4, -1, -2),
    "linux": Expected("kevent", 32, CLASSIC, 4, -1, -2),
}
FLAGS = {"EV_ADD": 0x1, "EV_DELETE": 0x2, "EV_CLEAR": 0x20, "EV_ERROR": 0x4000, "EV_EOF": 0x8000}


def test_every_system_is_checked() -> None:
    assert EXPECTED.keys() == _kqueue_abi.ABIS.keys()


@pytest.mark.parametrize("system", EXPECTED)
def test_the_structure(system: str) -> None:
    layout = _kqueue_abi.ABIS[system].struct_kevent
    assert struct.calcsize(layout) == EXPECTED[system].size
    assert of_format(layout, NAMES) == EXPECTED[system].fields


@pytest.mark.parametrize("system", EXPECTED)
def test_the_signature(system: str) -> None:
    abi, expected = _kqueue_abi.ABIS[system], EXPECTED[system]
    assert abi.kevent == expected.symbol
    assert ctypes.sizeof(abi.count_type) == expected.size_of_count
    kq, changelist, nchanges, eventlist, nevents, timeout = _libc._SETUP[abi.kevent]
    assert kq is ctypes.c_int
    assert changelist is eventlist is timeout is ctypes.c_void_p
    assert nchanges is nevents is abi.count_type


@pytest.mark.parametrize("system", EXPECTED)
def test_the_filters(system: str) -> None:
    abi, expected = _kqueue_abi.ABIS[system], EXPECTED[system]
    filters = (abi.EVFILT_READ, abi.EVFILT_WRITE)
    assert filters == (expected.evfilt_read, expected.evfilt_write)
    for kfilter in filters:
        entry = struct.pack(abi.struct_kevent, 0, kfilter, 0, 0, 0, 0)
        assert struct.unpack(abi.struct_kevent, entry)[1] == kfilter


def test_what_is_the_same_everywhere() -> None:
    assert {name: getattr(_kqueue_abi, name) for name in FLAGS} == FLAGS


def test_what_only_one_system_has() -> None:
    """<sys/socket.h> and <sys/event.h> of macOS."""
    assert {name for name, abi in _kqueue_abi.ABIS.items() if abi.so_nosigpipe} == {"darwin"}
    assert _kqueue_abi.ABIS["darwin"].so_nosigpipe == 0x1022
    assert _kqueue_abi.EV_OOBAND == 0x2000
    assert [name for name, abi in _kqueue_abi.ABIS.items() if abi.library] == ["linux"]


@pytest.mark.skipif(sys.platform == "linux", reason="Linux has no <sys/event.h> and no select.kqueue")
class TestHere:
    """The same, of the system that runs this."""

    def test_the_compiler_agrees(self, tmp_path: Path) -> None:
        abi, _ = _kqueue_abi.system()
        headers = ["sys/event.h", "sys/time.h"]
        size, fields = of_c(headers, "struct kevent", NAMES, tmp_path)
        assert size == struct.calcsize(abi.struct_kevent)
        assert fields == of_format(abi.struct_kevent, NAMES)
        names = ["EVFILT_READ", "EVFILT_WRITE", *FLAGS]
        statements = [f'printf("%lld\\n", (long long){name});' for name in names]
        printed = [int(line) for line in run_c(headers, statements, tmp_path).split()]
        ours = [abi.EVFILT_READ, abi.EVFILT_WRITE, *FLAGS.values()]
        assert printed == ours

    def test_the_standard_library_agrees(self) -> None:
        abi, _ = _kqueue_abi.system()
        there: Any = select  # its names depend on the platform
        assert abi.EVFILT_READ == there.KQ_FILTER_READ
        assert abi.EVFILT_WRITE == there.KQ_FILTER_WRITE
        for name, value in FLAGS.items():
            assert getattr(there, re.sub("^EV_", "KQ_EV_", name)) == value

    def test_an_event_registered_here_is_read_by_the_standard_library(self) -> None:
        """And the other way round: each end of struct kevent's way is taken by the other's understanding of it."""
        there: Any = select
        abi, library = _kqueue_abi.system()
        kqueue = _kqueue_abi.Kqueue(abi, library)
        stdlib = there.kqueue.fromfd(os.dup(kqueue.fd))
        ends = socket.socketpair()
        with ends[0], ends[1], contextlib.closing(stdlib):
            mine, theirs = ends[0].fileno(), ends[1].fileno()
            kqueue.change(kqueue.entry(mine, abi.EVFILT_WRITE, _kqueue_abi.EV_ADD, udata=1234567))
            stdlib.control([there.kevent(theirs, there.KQ_FILTER_WRITE, there.KQ_EV_ADD, udata=7654321)], 0, 0)
            events = stdlib.control(None, 8, 0)
            seen = {(event.ident, event.filter, event.udata) for event in events}
            assert seen == {(mine, abi.EVFILT_WRITE, 1234567), (theirs, abi.EVFILT_WRITE, 7654321)}
            assert set(kqueue.look()) == seen
