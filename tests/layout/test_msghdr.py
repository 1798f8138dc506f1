"""struct msghdr of sendmsg(2) on 64-bit systems: POSIX has ints where Linux has size_t."""

from __future__ import annotations

import ctypes
from pathlib import Path

from gaio.platform import _libc
from tests.layout.fields import Field, of_c

LINUX = {
    "msg_name": Field(0, 8),
    "msg_namelen": Field(8, 4),
    "msg_iov": Field(16, 8),
    "msg_iovlen": Field(24, 8),
    "msg_control": Field(32, 8),
    "msg_controllen": Field(40, 8),
    "msg_flags": Field(48, 4),
}
BSD = {
    "msg_name": Field(0, 8),
    "msg_namelen": Field(8, 4),
    "msg_iov": Field(16, 8),
    "msg_iovlen": Field(24, 4),
    "msg_control": Field(32, 8),
    "msg_controllen": Field(40, 4),
    "msg_flags": Field(44, 4),
}


def of_ctypes(structure: type[ctypes.Structure]) -> dict[str, Field]:
    descriptors = {name: getattr(structure, name) for name, *_ in structure._fields_}
    return {name: Field(descriptor.offset, descriptor.size) for name, descriptor in descriptors.items()}


def test_linux() -> None:
    assert ctypes.sizeof(_libc.linux_msghdr) == 56
    assert of_ctypes(_libc.linux_msghdr) == LINUX


def test_macos_and_the_bsds() -> None:
    assert ctypes.sizeof(_libc.bsd_msghdr) == 48
    assert of_ctypes(_libc.bsd_msghdr) == BSD


def test_the_compiler_agrees(tmp_path: Path) -> None:
    """musl has the ints of POSIX on Linux too, with padding that makes them the kernel's size_t."""
    size, fields = of_c(["sys/socket.h"], "struct msghdr", list(LINUX), tmp_path)
    ours = of_ctypes(_libc.msghdr)
    assert size == ctypes.sizeof(_libc.msghdr)
    assert {name: field.offset for name, field in fields.items()} == {
        name: field.offset for name, field in ours.items()
    }
    assert all(fields[name].size <= ours[name].size for name in ours)
