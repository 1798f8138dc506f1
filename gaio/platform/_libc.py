"""The only place where gaio reaches libc: every foreign function is bound here, by name.

Facts about calling C from CPython that shaped this file
    * `PyDLL` keeps the GIL during the call, `CDLL` drops it. Calls that cannot block keep it: dropping it around
      each tiny call would let other threads in between any two of a batch, and getting it back can take
      a whole switch interval (5 ms). Only calls that are meant to wait drop it.
    * An `argtypes` entry costs some 0.2 µs a call. Hot calls have none: they are given plain ints (C int) and
      c_void_p objects only, which ctypes passes as they are. libffi extends a C int to the full register, so
      lengths below 2**31 arrive intact where the function takes size_t.
    * A signal handler may run, and raise, as soon as a call has returned, before its result is stored. So calls
      that move bytes do not return their result: C code appends it to a list (`collecting`).
    * errno is saved by ctypes per thread (`use_errno`), safe from whatever the interpreter does after the call.
"""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Callable
from typing import Any

_LIBC_KEEPING_GIL = ctypes.PyDLL(None, use_errno=True)
_LIBC_DROPPING_GIL = ctypes.CDLL(None, use_errno=True)

_int, _uint, _void_p = ctypes.c_int, ctypes.c_uint, ctypes.c_void_p

# name -> argument types of the calls that set things up: all return an int, -1 for an error.
_SETUP: dict[str, tuple[Any, ...]] = {
    # epoll_create1(2), epoll_ctl(2), eventfd(2)
    "epoll_create1": (_int,),
    "epoll_ctl": (_int, _int, _int, _void_p),
    "eventfd": (_uint, _int),
}

# The most bytes one read(2) or write(2) moves on Linux; it also keeps a length within a C int.
MAX_RW_COUNT = 0x7FFFF000


def _check(result: Any, function: Any, arguments: tuple[Any, ...]) -> Any:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function.__name__}: {os.strerror(number)}")
    return result


def checked(name: str) -> Callable[..., int]:
    """A call that sets things up: fully typed, raises OSError; AttributeError where libc has no such function."""
    function = _LIBC_KEEPING_GIL[name]
    function.argtypes = _SETUP[name]
    function.restype = _int
    function.errcheck = _check
    return function


def collecting(name: str, results: list[int], *, waits: bool = False) -> Callable[..., None]:
    """A hot call whose result C code appends to `results`: n, or -1 with the reason in `ctypes.get_errno()`.

    `waits` is for calls that are meant to block: they drop the GIL.
    """
    function = (_LIBC_DROPPING_GIL if waits else _LIBC_KEEPING_GIL)[name]
    # A callable as restype is called by ctypes, in C, with the function's int: no bytecode runs in between.
    function.restype = results.append
    return function


def close_all(fds: list[int]) -> None:
    """Close these descriptors and empty the list; each exactly once, however often this is cut short and redone.

    Taking a number off the list and closing it happens in C, in one step: close(2) done twice could hit a stranger
    who was given the number in between. It is never repeated for EINTR either: Linux has closed it by then.
    """
    try:
        deque(map(os.close, iter(fds.pop, None)), 0)
    except IndexError:
        pass  # from pop(): the list is empty
