"""What a socket says of itself, asked by its number.

Not through a second socket.socket for the same number: that would own the number, and close it if an exception such as
KeyboardInterrupt struck before it was told to let go.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import sys

from gaio.platform import _libc

_getsockopt = _libc.checked("getsockopt")
_getsockname = _libc.checked("getsockname")
_getpeername = _libc.checked("getpeername")

_SIZE_OF_ADDRESS = 128  # struct sockaddr_storage, <sys/socket.h>


def option(fd: int, name: int) -> int:
    """An integer option of the level SOL_SOCKET."""
    value, length = ctypes.c_int(), ctypes.c_uint32(ctypes.sizeof(ctypes.c_int))
    _getsockopt(fd, socket.SOL_SOCKET, name, ctypes.addressof(value), ctypes.addressof(length))
    return value.value


def family_and_port(fd: int) -> tuple[int, int]:
    """Of the address it is bound to; the port means something for AF_INET and AF_INET6 only."""
    address, length = ctypes.create_string_buffer(_SIZE_OF_ADDRESS), ctypes.c_uint32(_SIZE_OF_ADDRESS)
    _getsockname(fd, ctypes.addressof(address), ctypes.addressof(length))
    # struct sockaddr begins with a uint16_t sa_family; on the BSDs with a uint8_t sa_len and a uint8_t sa_family.
    family = int.from_bytes(address.raw[:2], sys.byteorder) if sys.platform.startswith("linux") else address.raw[1]
    return family, int.from_bytes(address.raw[2:4], "big")


def has_peer(fd: int) -> bool:
    """Whether it is connected now."""
    address, length = ctypes.create_string_buffer(_SIZE_OF_ADDRESS), ctypes.c_uint32(_SIZE_OF_ADDRESS)
    try:
        _getpeername(fd, ctypes.addressof(address), ctypes.addressof(length))
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.EINVAL):  # EINVAL: what macOS says after a reset
            return False
        raise
    return True
