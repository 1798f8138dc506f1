"""What a socket says of itself, asked by its number.

Not through a second socket.socket for the same number: that would own the number, and close it if an exception such as
KeyboardInterrupt struck before it was told to let go.

Facts about sockets after the end of their connection
    On NetBSD, OpenBSD and DragonFly, a reset takes the addresses of a TCP socket along, the local one too: from then
    on, getsockname(2) and getpeername(2) fail with EINVAL or with what ended the connection. Linux, FreeBSD and macOS
    keep the local one.

Facts about TCP_NODELAY
    What is accepted has it where its listener has it, so it takes no call for each client. Linux copies the whole
    socket, sk_clone(). The others copy the flag, TF_NODELAY: FreeBSD and DragonFly in tcp_syncache.c, macOS, NetBSD and
    OpenBSD in tcp_input.c. Whether somebody has set it to 0, or nobody has, no system tells.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import sys

from gaio.platform import _libc, _sockaddr

_getsockopt = _libc.checked("getsockopt")
_getsockname = _libc.checked("getsockname")
_getpeername = _libc.checked("getpeername")
_setsockopt = _libc.checked("setsockopt")

_SIZE_OF_ADDRESS = 128  # struct sockaddr_storage, <sys/socket.h>


def option(fd: int, name: int) -> int:
    """An integer option of the level SOL_SOCKET."""
    value, length = ctypes.c_int(), ctypes.c_uint32(ctypes.sizeof(ctypes.c_int))
    _getsockopt(fd, socket.SOL_SOCKET, name, ctypes.addressof(value), ctypes.addressof(length))
    return value.value


def listens(fd: int) -> bool | None:
    """Whether it is a listening socket; None where the system does not tell."""
    try:
        return bool(option(fd, socket.SO_ACCEPTCONN))
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:  # macOS and OpenBSD, which only know the name
            return None
        raise


def may_listen(fd: int) -> bool:
    """Whether a stream socket is without a peer and has a port, which listen(2) chooses where bind(2) has not."""
    address = local_address(fd)
    if address is None or peer(fd) is not None:
        return False
    family, port = address
    return port != 0 or family not in (socket.AF_INET, socket.AF_INET6)


def is_tcp(fd: int) -> bool:
    """Whether a stream socket is one of TCP, and not of SCTP or MPTCP, which have the same families."""
    if hasattr(socket, "SO_PROTOCOL"):
        return option(fd, socket.SO_PROTOCOL) == socket.IPPROTO_TCP
    address = local_address(fd)
    return address is None or address[0] in (socket.AF_INET, socket.AF_INET6)


def send_small_ones_at_once(fd: int) -> None:
    """Set TCP_NODELAY, so that a small write does not wait until the peer has acknowledged the one before, tcp(7)."""
    yes = ctypes.c_int(1)
    try:
        _setsockopt(fd, socket.IPPROTO_TCP, socket.TCP_NODELAY, ctypes.addressof(yes), ctypes.sizeof(yes))
    except OSError:
        pass  # whatever it is: all works without it, only later


def local_address(fd: int) -> tuple[int, int] | None:
    """Family and port of the address it is bound to; None when the end of its connection has taken that along.

    The port means something for AF_INET and AF_INET6 only.
    """
    name = local_name(fd)
    if name is None:
        return None
    # struct sockaddr begins with a uint16_t sa_family; on the BSDs with a uint8_t sa_len and a uint8_t sa_family.
    family = int.from_bytes(name[:2], sys.byteorder) if sys.platform.startswith("linux") else name[1]
    return family, int.from_bytes(name[2:4], "big")


def local_name(fd: int) -> bytes | None:
    """The same as `struct sockaddr`. Of a Unix socket that is not bound it has no name."""
    address, length = ctypes.create_string_buffer(_SIZE_OF_ADDRESS), ctypes.c_uint32(_SIZE_OF_ADDRESS)
    try:
        _getsockname(fd, ctypes.addressof(address), ctypes.addressof(length))
    except OSError as error:
        if error.errno in _libc.CONNECTION_HAS_ENDED:
            return None
        raise
    return address.raw[: length.value]


def can_receive(fd: int) -> bool:
    """Whether a datagram socket may get anything: it has a peer, or an address that somebody may send to."""
    if option(fd, socket.SO_TYPE) != socket.SOCK_DGRAM or peer(fd) is not None:
        return True
    name = local_name(fd)
    address = None if name is None else _sockaddr.unpack(name)
    if isinstance(address, tuple) and isinstance(address[0], str):  # host, port, …
        return bool(address[1])
    return address != ""  # a Unix socket without a name


def peer(fd: int) -> bytes | None:
    """The `struct sockaddr` of the peer; None when it is not connected now. Of a Unix socket it may have no name."""
    address, length = ctypes.create_string_buffer(_SIZE_OF_ADDRESS), ctypes.c_uint32(_SIZE_OF_ADDRESS)
    try:
        _getpeername(fd, ctypes.addressof(address), ctypes.addressof(length))
    except OSError as error:
        if error.errno == errno.ENOTCONN or error.errno in _libc.CONNECTION_HAS_ENDED:
            return None
        raise
    return address.raw[: length.value]
