"""Socket addresses as the kernel has them: `struct sockaddr_in`, `sockaddr_in6` and `sockaddr_un`."""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from typing import Any

# The BSDs and macOS begin a sockaddr with its length in one byte and the family in another; Linux has the family
# in two bytes.
_HAS_LENGTH = not sys.platform.startswith("linux")
_UNIX_PATH = 104 if _HAS_LENGTH else 108  # sizeof(sun_path), <sys/un.h>


AF_UNIX = getattr(socket, "AF_UNIX", None)  # not everywhere

_AF_NETLINK = getattr(socket, "AF_NETLINK", None)

# Families by the names that a caller uses.
_NAMES = {
    getattr(socket, name): f"socket.{name}" for name in ("AF_INET", "AF_INET6", "AF_UNIX") if hasattr(socket, name)
}


def _head(family: int, length: int) -> bytes:
    return struct.pack("=BB", length, family) if _HAS_LENGTH else struct.pack("=H", family)


def pack(family: int, address: Any, call: str = "connect") -> bytes:
    """The address as bytes. `TypeError` or `ValueError`, saying what to do, when it is none of this family."""
    if family == AF_UNIX:
        return _pack_unix(family, address)
    if family not in (socket.AF_INET, socket.AF_INET6):
        raise ValueError(
            f"{call}() knows addresses of IPv4, IPv6 and Unix sockets, not of address family {family}: connect this "
            "one with its own connect(), and submit it then"
        )
    parts = 2 if family == socket.AF_INET else 4
    if not isinstance(address, tuple) or not 2 <= len(address) <= 4 or not isinstance(address[0], str):
        raise TypeError(
            f"the address must be a tuple (host, port), the host an IP address as a str, not {address!r}"
            + (": a path is for a socket of socket.AF_UNIX" if isinstance(address, (str, bytes, os.PathLike)) else "")
        )
    host, port = address[:2]
    packed = _packed(family, host)
    if packed is None:
        _check_family(family, host)
    if len(address) > parts:
        raise TypeError(f"the address must be a tuple (host, port), not {address!r}")
    flow, scope = (*address[2:], 0, 0)[:2]
    _check("port", port, 0xFFFF)
    if family == socket.AF_INET6 and "%" in host:
        host, _, interface = host.partition("%")
        scope = int(interface) if interface.isdecimal() else _interface_number(interface)
        packed = _packed(family, host)
    _check("flow information", flow, 0xFFFFF)  # RFC 8200, section 6: a flow label has 20 bits
    _check("scope", scope, 0xFFFFFFFF)
    if packed is None:
        raise ValueError(f"the host must be an IP address, not {host!r}: {_hint(family, host, port)}")
    if family == socket.AF_INET:
        return _head(family, 16) + struct.pack("!H4s8x", port, packed)
    return _head(family, 28) + struct.pack("!HI16s", port, flow, packed) + struct.pack("=I", scope)


# getsockopt(2) of Linux, <asm-generic/socket.h>: the peer's address, also of a connection that has been reset. When
# asked for more bytes than the address has it says EINVAL.
_SO_PEERNAME = 28
_SIZES = (28, 16)  # struct sockaddr_in6, struct sockaddr_in


def of_peer(sock: socket.SocketType) -> Any:
    """Who is at the other end, as the socket module writes it; None where the system does not tell any more."""
    try:
        return sock.getpeername()
    except OSError:
        pass  # ENOTCONN or EINVAL: it has been reset; or else the family is one that CPython does not know
    for size in _SIZES if sys.platform.startswith("linux") else ():
        try:
            return unpack(sock.getsockopt(socket.SOL_SOCKET, _SO_PEERNAME, size))
        except OSError as error:
            if error.errno != errno.EINVAL:
                break
    return None


def _family(address: bytes) -> int:
    return address[1] if _HAS_LENGTH else int.from_bytes(address[:2], sys.byteorder)


def without_padding(address: bytes) -> bytes:
    """All that text() needs: half of a `struct sockaddr_in` is padding."""
    return address[:8] if _family(address) == socket.AF_INET else address


def text(address: bytes) -> str:
    """The address as a person writes it; empty where it has none, or is of a family that is not known here."""
    family = _family(address)
    if family == socket.AF_INET and len(address) >= 8:
        return f"{socket.inet_ntop(family, address[4:8])}:{int.from_bytes(address[2:4], 'big')}"
    if family == socket.AF_INET6 and len(address) >= 24:
        return f"[{socket.inet_ntop(family, address[8:24])}]:{int.from_bytes(address[2:4], 'big')}"
    path = address[2:]
    if family == AF_UNIX and path:
        return repr(os.fsdecode(path if path.startswith(b"\0") else path.partition(b"\0")[0]))
    return ""


def unpack(address: bytes) -> Any:
    """The address as the socket module writes it. None where there is none. Of a family that is not known here: its
    number and the bytes behind that.
    """
    if not address:
        return None
    family = _family(address)
    port = int.from_bytes(address[2:4], "big")
    if family == socket.AF_INET:
        return socket.inet_ntop(family, address[4:8]), port
    if family == socket.AF_INET6:
        flow, scope = int.from_bytes(address[4:8], "big"), int.from_bytes(address[24:28], sys.byteorder)
        return socket.inet_ntop(family, address[8:24]), port, flow, scope
    path = address[2:]
    if family == _AF_NETLINK:
        return struct.unpack("=II", address[4:12])
    if family != AF_UNIX:
        return family, path
    if path.startswith(b"\0") and not _HAS_LENGTH:
        return path  # abstract, unix(7): all of it is the name
    return os.fsdecode(path.partition(b"\0")[0])


def _packed(family: int, host: str) -> bytes | None:
    """The host as bytes; None when it is no IP address of the family."""
    try:
        return socket.inet_pton(family, host)
    except (OSError, ValueError):  # the latter for null bytes and the like
        return None


def _check_family(family: int, host: str) -> None:
    other = socket.AF_INET6 if family == socket.AF_INET else socket.AF_INET
    if _packed(other, host.partition("%")[0]) is not None:
        raise ValueError(
            f"the socket is one of {_NAMES[family]}, and {host!r} is an address of {_NAMES[other]}: make the socket "
            f"with {_NAMES[other]}"
        )


def _hint(family: int, host: str, port: int) -> str:
    if not host or not host.isprintable() or any(mark in host for mark in ":[]/"):
        return f"such as {'127.0.0.1' if family == socket.AF_INET else '::1'!r}"
    return f"look names up first, because that may block: socket.getaddrinfo({host!r}, {port}, {_NAMES[family]})"


def _check(what: str, number: Any, most: int) -> None:
    if not isinstance(number, int) or not 0 <= number <= most:
        raise ValueError(f"the {what} of the address must be a number from 0 to {most}, not {number!r}")


def _interface_number(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError:
        raise ValueError(
            f"no interface has the name {name!r}, which stands after the % of the host: see socket.if_nameindex()"
        ) from None


def _pack_unix(family: int, address: Any) -> bytes:
    if not isinstance(address, (str, bytes, os.PathLike)):
        raise TypeError(
            f"the address of a Unix socket must be a path, not {address!r}"
            + (": that is for a socket of socket.AF_INET or socket.AF_INET6" if isinstance(address, tuple) else "")
        )
    path = os.fsencode(address)
    abstract = path.startswith(b"\0")  # unix(7): Linux only, no file behind it
    if not path or len(path) + (not abstract) > _UNIX_PATH:
        raise ValueError(f"the path of a Unix socket must have from 1 to {_UNIX_PATH - 1} bytes, not {len(path)}")
    if not abstract:
        if b"\0" in path:
            raise ValueError(f"the path of a Unix socket must have no null byte inside: {address!r}")
        path += b"\0"
    return _head(family, 2 + len(path)) + path
