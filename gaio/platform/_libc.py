"""The only place where gaio reaches libc: every foreign function is bound here, by name.

Facts about calling C from CPython that shaped this file
    * `PyDLL` keeps the GIL during the call, `CDLL` drops it. Calls that cannot block keep it. Dropping it around each
      tiny call would let other threads in between two calls of a batch, and getting it back can take a whole switch
      interval (5 ms). Only calls that are meant to wait drop it.
    * An `argtypes` entry costs some 0.2 µs a call. Hot calls have none. They get plain ints (C int) and c_void_p
      objects, which ctypes passes as they are. libffi extends a C int to the full register, so lengths below 2**31
      arrive intact where the function takes size_t.
    * A signal handler may run, and raise, as soon as a call has returned and before its result is stored. So calls
      that move bytes do not return their result. C code appends it to a list (`collecting`).
    * ctypes saves errno for each thread (`use_errno`). What the interpreter does after the call cannot change it.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import select
import socket
import sys
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import repeat, starmap

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from typing import Any

BESIDE_GREENLETS = (
    "call gevent.monkey.patch_all(thread=False, select=False), or eventlet.monkey_patch(thread=False, select=False, "
    "socket=False), or use gaio in a process without them"
)
if sys.implementation.name != "cpython":
    # PyPy, for one. It has no PyDLL. It lets an exported buffer be resized. The address it gives for `bytes` is that of
    # a copy, so the kernel would write where nobody looks.
    raise ImportError(
        f"gaio needs CPython and cannot work on {sys.implementation.name}, which does not keep buffers where the "
        "kernel is told they are: run this on CPython, or use asyncio instead"
    )
if sys.platform.startswith("linux") and not hasattr(select, "epoll"):
    raise ImportError(
        "select.epoll has been taken away, as gevent and eventlet do: " + BESIDE_GREENLETS
    )

_int, _uint, _long, _void_p = ctypes.c_int, ctypes.c_uint, ctypes.c_long, ctypes.c_void_p
_size_t = ctypes.c_size_t


class Library:
    """A shared library, bound twice: for calls that keep the GIL and for calls that drop it."""

    def __init__(self, path: str | None) -> None:
        """`path` is None for libc; `OSError` when the library cannot be loaded."""
        self.keeping_gil = ctypes.PyDLL(path, use_errno=True)
        self.dropping_gil = ctypes.CDLL(path, use_errno=True)


LIBC = Library(None)

# name -> argument types of the calls that set things up. All of them return an int, -1 for an error.
_SETUP: dict[str, tuple[Any, ...]] = {
    # epoll_create1(2), epoll_ctl(2), eventfd(2)
    "epoll_create1": (_int,),
    "epoll_ctl": (_int, _int, _int, _void_p),
    "eventfd": (_uint, _int),
    # getsockopt(2), getsockname(2), getpeername(2)
    "getsockopt": (_int, _int, _int, _void_p, _void_p),
    "getsockname": (_int, _void_p, _void_p),
    "getpeername": (_int, _void_p, _void_p),
    # syscall(2): a number and up to six longs. The three calls of io_uring(7) have no function of their own.
    "syscall": (_long, _long, _long, _long, _long, _long, _long),
    # kqueue(2). On NetBSD the second call has the name of its version, and counts in size_t.
    "kqueue": (),
    "kevent": (_int, _void_p, _int, _void_p, _int, _void_p),
    "__kevent50": (_int, _void_p, _size_t, _void_p, _size_t, _void_p),
    "__kevent100": (_int, _void_p, _size_t, _void_p, _size_t, _void_p),
    # setsockopt(2)
    "setsockopt": (_int, _int, _int, _void_p, _uint),
    # madvise(2)
    "madvise": (_void_p, _size_t, _int),
}


def _msghdr(number: type, size: type) -> type[ctypes.Structure]:
    """`struct msghdr` of sendmsg(2), with the types of its number of buffers and of the size of `msg_control`."""
    fields = [
        ("msg_name", _void_p),
        ("msg_namelen", _uint),
        ("msg_iov", _void_p),
        ("msg_iovlen", number),
        ("msg_control", _void_p),
        ("msg_controllen", size),
        ("msg_flags", _int),
    ]
    return type("msghdr", (ctypes.Structure,), {"_fields_": fields})


linux_msghdr = _msghdr(_size_t, _size_t)
bsd_msghdr = _msghdr(_int, _uint)  # and of macOS: as POSIX has it
msghdr = linux_msghdr if sys.platform.startswith("linux") else bsd_msghdr

IOV_MAX = min(os.sysconf("SC_IOV_MAX"), 1024)

# The most bytes one read(2) or write(2) moves on Linux; it also keeps a length within a C int.
MAX_RW_COUNT = 0x7FFFF000


# A peer that has gone must not kill the process: SIGPIPE is suppressed per call, whatever the application has done with
# the signal. write(2) to a pipe has no such flag; there it matters that Python ignores SIGPIPE from the start.
SEND_FLAGS = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)

# For who needs no request: gaio/asyncio.py.
send = LIBC.keeping_gil["send"]


def failed(call: str, number: int) -> OSError:
    return OSError(number, f"{call}: {os.strerror(number)}")


def checked(name: str, library: Library = LIBC) -> Callable[..., int]:
    """A call that sets things up: fully typed, raises OSError; AttributeError where libc has no such function."""
    return partial(_call, _typed(name, library), name)


def system_call(number: int, name: str) -> Callable[..., int]:
    """The same of a system call that has no function of its own, by its number."""
    syscall = _typed("syscall", LIBC)
    return lambda *arguments: _call(syscall, name, number, *arguments, *(0,) * (6 - len(arguments)))


def _typed(name: str, library: Library) -> Callable[..., int]:
    function = library.keeping_gil[name]
    function.argtypes = _SETUP[name]
    function.restype = _long if name == "syscall" else _int
    return function


def _call(function: Callable[..., int], name: str, *arguments: object) -> int:
    """Raise what goes wrong, and leave errno alone.

    A signal handler may submit, and so delegate. It may have interrupted its thread between a hot call and the look at
    the errno of that call.
    """
    before = ctypes.get_errno()
    try:
        result = function(*arguments)
        if result < 0:
            raise failed(name, ctypes.get_errno())
        return result
    finally:
        ctypes.set_errno(before)


def collecting(
    name: str, results: list[int], library: Library = LIBC, *, waits: bool = False
) -> Callable[..., None]:
    """A hot call. C code appends its result to `results`: n, or -1 with the reason in `ctypes.get_errno()`.

    `waits` is for calls that are meant to block. They drop the GIL.
    """
    function = (library.dropping_gil if waits else library.keeping_gil)[name]
    # ctypes calls a restype that is callable, in C, with the int that the function returned. No bytecode runs between.
    function.restype = results.append
    return function


def accepting(results: list[int]) -> Callable[[int], None]:
    """accept(2) of a descriptor, with close-on-exec. macOS has no accept4(2): there it is set a moment later."""
    none = ctypes.c_void_p()
    if sys.platform == "darwin":
        accept = collecting("accept", results)

        def accept_then_set(fd: int) -> None:
            accept(fd, none, none)
            if results[0] >= 0:
                os.set_inheritable(results[0], False)

        return accept_then_set
    accept4 = collecting("accept4", results)
    # From the socket module, because SOCK_CLOEXEC equals O_CLOEXEC on Linux only.
    flags = getattr(socket, "SOCK_CLOEXEC", 0)
    return lambda fd: accept4(fd, none, none, flags)


def keep_from_blocking(fd: int) -> None:
    """Set O_NONBLOCK anew before each attempt on what has no MSG_DONTWAIT.

    All who share the file share that flag. A shell that gets its terminal back clears it, and so may another server on
    the same listener. The attempt would then wait with the interpreter lock held.
    """
    os.set_blocking(fd, False)


def close_all(fds: list[int]) -> None:
    """Close these descriptors and empty the list. Each is closed once, however often this is interrupted and redone.

    C code takes a number off the list and closes it, in one step. A second close(2) could hit a stranger who was given
    the number in between. EINTR is no reason to repeat it either: Linux has closed the descriptor by then.
    """
    while fds:
        try:
            deque(map(os.close, map(fds.pop, repeat(-1, len(fds)))), 0)
        except ConnectionResetError:
            pass  # close(2) of FreeBSD: the peer has gone before all was sent. The descriptor is closed all the same


# An object that closes the descriptor when the last reference to it goes. It does so in C and without a word, as only
# the poll objects of the standard library do. An exception such as KeyboardInterrupt can strike a __del__() in Python:
# it is lost then, and so is the descriptor.
# From CPython 3.12 on, an object of select.kqueue counts as closed in a child of fork(2), and never closes the number.
owner_of: Callable[[int], Any]
if sys.platform.startswith("linux"):
    epoll = select.epoll  # kept, for gevent.monkey.patch_all() takes it away
    owner_of = epoll.fromfd
else:
    owner_of = select.kqueue.fromfd


class SocketOwner(socket.SocketType):
    """The same for the descriptor of a socket, which can be taken over: see `take_over()`."""

    __slots__ = ()
    __del__ = socket.SocketType.close  # instead of the finalizer that warns


# As if for AF_UNIX. Nobody needs the family here, and asking for it can fail, see below. But getpeername() takes room
# for an address of it: so for the longest. What has come there, CPython tells by the family that it begins with.
socket_owner_of: Callable[[int], SocketOwner] = partial(SocketOwner, socket.AF_UNIX, 0, 0)


# What getsockname(2) and getpeername(2) may say on macOS and the BSDs when the connection has ended. They say EINVAL,
# because the addresses have gone with it. OpenBSD and DragonFly say the error by which it ended.
CONNECTION_HAS_ENDED = (
    errno.EINVAL, errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.ETIMEDOUT, errno.EHOSTUNREACH,
    errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN, errno.EPIPE,
)


def blank_socket() -> socket.socket:
    """A socket without a descriptor, for `take_over()`."""
    sock = socket.socket.__new__(socket.socket)
    sock._io_refs, sock._closed = 0, False  # type: ignore[attr-defined]  # private, hence unknown to typeshed
    return sock


def take_over(sock: socket.socket, owner: SocketOwner) -> None:
    """Give a blank socket the descriptor, and make it blocking. It needs no second one: there may be none left.

    After an interruption it can be called again, and goes on.
    """
    if owner.fileno() >= 0:
        try:
            _initialize(sock, owner, -1)
        except OSError as error:
            if error.errno not in CONNECTION_HAS_ENDED:
                raise
            # The address has gone, and with it all that the family is good for: a guess will do.
            _initialize(sock, owner, socket.AF_INET)
    if socket.getdefaulttimeout() is None:
        sock.setblocking(True)


def _initialize(sock: socket.socket, owner: SocketOwner, family: int) -> None:
    """What socket.socket.__init__() does, but in C code. For a family of -1, CPython asks getsockname(2).

    That method is Python code. An interruption would leave a descriptor with no owner, or with two. This fills one
    object and then empties the other, or it fails and leaves both as they were.
    """
    initialize = partial(socket.SocketType.__init__, sock, family, -1, -1)
    deque(zip(map(initialize, (owner.fileno(),)), map(SocketOwner.detach, (owner,)), strict=True), 0)


# In CPython an object's identity is its address. The bytes of a bytes object stand at its end, before a final zero.
# ctypes knows the address too, and takes ten times as long: it is asked once, to compare.
BYTES_AT = bytes.__basicsize__ - 1


def address_of(data: bytes) -> int:
    """Where the bytes are; good for as long as the object is held."""
    return id(data) + BYTES_AT


if any(address_of(it) != ctypes.cast(ctypes.c_char_p(it), ctypes.c_void_p).value for it in (b"", b"1", bytes(1000))):
    raise ImportError("this interpreter does not keep bytes where CPython does")


# mmap(2), madvise(2)
PROT_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
_MADV_DONTFORK = 10


def map_shared(length: int, fd: int, offset: int) -> int:
    """Map the memory of a kernel object, or with an `fd` of -1 memory that one will be told of. Returns the address.

    Children of fork(2) do not get it: it is the parent's, and copying it would change the pages that the kernel knows.
    """
    map_memory = LIBC.keeping_gil["mmap"]
    map_memory.argtypes = (_void_p, _size_t, _int, _int, _int, _long)
    map_memory.restype = _void_p
    flags = mmap.MAP_SHARED if fd >= 0 else mmap.MAP_SHARED | mmap.MAP_ANONYMOUS
    address = int(map_memory(None, length, PROT_READ_WRITE, flags, fd, offset) or 0)
    if address == _void_p(-1).value:
        raise failed("mmap", ctypes.get_errno())
    checked("madvise")(address, length, _MADV_DONTFORK)
    return address


def unmap_all(mapped: list[tuple[int, int]]) -> None:
    """munmap(2) these and empty the list, each once, as in `close_all`."""
    munmap = LIBC.keeping_gil["munmap"]
    munmap.argtypes = (_void_p, _size_t)
    deque(starmap(munmap, map(mapped.pop, repeat(-1, len(mapped)))), 0)
