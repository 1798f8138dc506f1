"""struct msghdr of sendmsg(2) on 64-bit systems, where POSIX has ints and Linux has size_t; mmsghdr; addresses."""

from __future__ import annotations

import ctypes
import socket
import sys
from pathlib import Path

import pytest

from gaio.platform import _libc, _messages, _sockaddr
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


@pytest.mark.skipif(sys.platform != "linux", reason="recvmmsg(2)")
def test_many_messages(tmp_path: Path) -> None:
    assert ctypes.sizeof(_messages.mmsghdr) == 64
    ours = of_ctypes(_messages.mmsghdr)
    assert ours == {"msg_hdr": Field(0, 56), "msg_len": Field(56, 4)}
    size, fields = of_c(["sys/socket.h"], "struct mmsghdr", list(ours), tmp_path)
    assert (size, fields) == (64, ours)


def test_what_is_read_of_one() -> None:
    """The places of msg_namelen, msg_flags and msg_len."""
    header = _messages.mmsghdr(msg_len=3)
    header.msg_hdr.msg_namelen, header.msg_hdr.msg_flags = 1, 2
    assert _messages._FOUND.unpack(bytes(header)) == (1, 2, 3)


def test_an_address_is_read_as_it_was_written() -> None:
    for family, address in (
        (socket.AF_INET, ("127.0.0.1", 53)),
        (socket.AF_INET6, ("fe80::1", 53, 7, 2)),
        (socket.AF_UNIX, "/a/path"),
    ):
        assert _sockaddr.unpack(_sockaddr.pack(family, address)) == address
    assert _sockaddr.unpack(b"") is None


@pytest.mark.skipif(sys.platform != "linux", reason="literals of its struct sockaddr")
def test_addresses_of_linux() -> None:
    """Those of getsockname(2), which the socket module decodes as well."""

    def family(number: int) -> bytes:
        return int.to_bytes(number, 2, sys.byteorder)

    scope = int.to_bytes(2, 4, sys.byteorder)
    assert _sockaddr.unpack(family(2) + b"\0\x35\x7f\0\0\1" + bytes(8)) == ("127.0.0.1", 53)
    assert _sockaddr.unpack(family(10) + b"\0\x35\0\0\0\7" + bytes(15) + b"\1" + scope) == ("::1", 53, 7, 2)
    assert _sockaddr.unpack(family(1)) == ""
    assert _sockaddr.unpack(family(1) + b"a/path\0rest") == "a/path"
    assert _sockaddr.unpack(family(1) + b"\0abstract\0") == b"\0abstract\0"
    assert _sockaddr.unpack(family(16) + b"\0\0" + int.to_bytes(9, 4, sys.byteorder) + scope) == (9, 2)
    assert _sockaddr.unpack(family(99) + b"what it is") == (99, b"what it is")
