"""The kernel interfaces gaio can stand on, behind one contract. Nothing in this package knows the core.

The contract
============

A backend carries out requests on descriptors. The core hands it three kinds of objects, described below as
protocols, and owns them; a backend touches nothing in them but what is named here. The core never lets a
backend see more than one inbound and one outbound request of a descriptor at a time, and gives the next one only
after the last has come back: order, partial progress, deadlines and errors are the core's business.

Swap memory, which is written again when its batch has been given back, is a SwapMemory: by that a view of it is known.

One result language: `request._result` is a number n >= 0 as the system call returned it, or -errno, or CANCELLED, or
TRUNCATED - n, for n bytes of a message that was cut off.
What a backend has to say of its own is never said by an errno: any of them may be what a descriptor reports.

    descriptors             token -> Descriptor of all that are registered; the core's table, which a backend reads.
    register(descriptor)    begin to watch it. Any thread; may raise OSError (EPERM: it cannot be polled).
    unregister(descriptor)  stop watching it, before the core closes its number. Nothing of it is in flight. Any thread,
                            where register() was interrupted and `descriptors` has lost it.
    start(requests)         begin these requests, in batch; some may be in `completed` when this returns.
    sends_together          whether it has send_all() and all_sent(), for who wants no request for each message.
    send_all(sends)         begin to send(2) each of these, on descriptors that have no outbound request. What it was
                            given before is done when this returns.
    all_sent()              whether that has been done, after a wait(): `sends.outcomes` has what did not go out whole.
    fell_short              set by the backend: there is some of that. wait() does not block then, nor does the core,
                            until all_sent() has said so.
    cancel(request)         bring it back soon: with its result, if what it needs is there by now; else with
                            CANCELLED or -EAGAIN. Of one that repeats, what is there is an arrival, and then it comes
                            back. A kernel may cancel unasked: then too it is CANCELLED.
    wait(timeout)           append to `completed` what has finished, and to `arrivals` what has arrived, waiting up to
                            timeout seconds for the first (None = until there is something or wake() is called,
                            0 = only look). May return with nothing.
    completed               the list of requests that have come back; the core empties it.
    arrivals                pairs of a request that repeats (`more`) and what has arrived for it: a view, of swap memory
                            or of a copy; or the descriptor of an accepted connection; or of a message a tuple: view,
                            sender as a struct sockaddr, whether it was cut off. The request stays with the backend.
                            It comes back, to `completed`, with the end of the stream, an error, or as after
                            cancel(). The core empties this first: arrivals stand before the end. It adds to this the
                            error of an accept that came back and is to go on.
    full                    set by the core: too much waits to be delivered. What repeats brings no more until the next
                            recycle().
    wake()                  make the wait() under way, or the next one, return. Any thread.
    swap                    the swap memory, of which the callers' views are.
    all_taken()             whether the kernel is done with the memory of every write that was started and has not come
                            back, so that it may be replaced; called after wait(0).
    lend()                  swap memory written so far is being delivered to the caller.
    recycle()               swap memory delivered before may be written again.
    recycle_unused()        since the last recycle() nothing has completed that the caller will see: swap memory
                            taken since then, for nothing, may be written again.
    fileno()                a descriptor that polls as readable when wait(0) would find something, and after wake().
    unfinished()            whether wait(0) has something to do that the descriptor does not tell.
    recover()               after an exception cut any of these calls short: finish what the kernel had answered
                            already, and return the requests that the kernel still holds. Everything else that has
                            not completed is to be forgotten: it is started again, or ended. What cancel() has
                            returned for is never forgotten, for nobody cancels it again. No arrival may be lost, nor
                            come twice. Called twice: in the thread that was interrupted, whose errno still tells, and
                            before the next turn.
    close()                 let go of everything. Nothing is in flight.
    abandon()               in the child after fork(2): the same without touching what the parent shares.
    describe()              which kernel features it uses, in a few words.

All of it but register(), wake(), fileno() and `swap` is for the leader, one thread at a time, though not always the
same one. Any of these calls may be interrupted between two bytecodes by an exception such as KeyboardInterrupt:
what the kernel has given must be in memory before then, and doing a step again must do no harm.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import mmap
import os
import sys

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Protocol

    from gaio.swap import SwapArena

# Descriptor.kind: how its bytes move, and what a short read says about it.
STREAM = 0  # a TCP socket: a read that comes back short has emptied it
SOCKET = 1  # any other stream socket
# A read of these two gets one message, and loses what its buffer has no room for. Who has sent it goes into `_sender`.
DATAGRAM = 2  # no bytes is a message, not the end
SEQPACKET = 3
FILE = 4  # a pipe, terminal, eventfd …: read(2) and write(2) instead of recv(2) and send(2)
LISTENER = 5  # a listening socket: its inbound requests accept(2), and return the descriptor; it must not block
SELECTOR = 6  # an epoll or a kqueue: a read of it moves nothing, and ends with 1 when it is readable

# Request._result: it came back with nothing done. Beyond every errno, of which Linux has no more than 4095 (MAX_ERRNO).
CANCELLED = -(1 << 16)
# Less n: a message came of which n bytes found room, and the rest is lost.
TRUNCATED = -(1 << 17)


# Whether this is a build without an interpreter lock. Not sys._is_gil_enabled(): that may be True for a moment only,
# while an extension module is being imported.
FREE_THREADED = "t" in getattr(sys, "abiflags", "")


class SwapMemory(mmap.mmap):
    """What the views of reads without a buffer show, of whichever watcher; see the contract.

    Whoever gives its address to the kernel holds it by a reference. A view would not do, see `SwapViews`.
    """

    @property
    def address(self) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(self))

    def views(self, start: int, end: int) -> memoryview | SwapViews:
        """What to slice for the views of this part that callers get: read-only, for they may be on their way out."""
        return SwapViews(self, start) if FREE_THREADED else memoryview(self).toreadonly()[start:end]


class SwapViews:
    """Stands in for a memoryview of swap memory where there is no interpreter lock: each slice has a count of its own.

    The slices of one memoryview, and the slices of those, are counted together, and without atomics (CPython issue
    127716). Threads that slice at the same time, each its own result, would spoil that count; when it comes to 0 too
    early, all of these views are void, and the reference to the memory that they had in common is gone.
    """

    __slots__ = ("_storage", "_start")

    def __init__(self, storage: SwapMemory, start: int) -> None:
        self._storage = storage
        self._start = start

    def __getitem__(self, part: slice) -> memoryview:
        return memoryview(self._storage).toreadonly()[self._start + part.start : self._start + part.stop]


if TYPE_CHECKING:

    class Request(Protocol):
        """What a backend sees of a request."""

        buffer: Any  # a swap read: set by the backend to the view of what arrived
        more: bool  # a swap read or an accept that repeats: what comes for it are arrivals
        _queue: Any  # the Queue it stands at the head of
        # See gaio/memory.py; None = a swap read, an accept, or outbound: shutdown(2) for writing. For a swap read a
        # backend may put its own there, and the length of that into `_length`, until it comes back.
        _memory: Any
        _length: int  # of that memory; set to the bytes moved by a swap read that found no room in the arena
        _offset: int  # begin so many bytes into the memory
        _result: int  # set by the backend
        _sender: bytes  # of a message: set by the backend to the struct sockaddr of who sent it

    class Sends(Protocol):
        """Messages that leave together, without a request for each."""

        messages: list[tuple[int, bytes]]  # descriptor and data
        outcomes: dict[int, int]  # place in that -> bytes that went out, or -errno; what is not in here went out whole
        begun: int  # the backend's own: the kernel has so many of them

    class Queue(Protocol):
        """One direction of a descriptor. `ready`, `waiting` and `entry` are the backend's own."""

        fd: int
        token: int  # the descriptor's, plus one if outbound
        outbound: bool
        descriptor: Any
        ready: int
        waiting: Any
        entry: bytes

    class Descriptor(Protocol):
        """One registered descriptor. `token` is even, unique for the life of the backend and never used again."""

        fd: int
        token: int
        kind: int
        reads: Any  # a Queue
        writes: Any  # a Queue, None until the first write

    class Backend(Protocol):
        """The contract in types; the module docstring says what each means."""

        name: str
        completed: list[Any]
        arrivals: list[tuple[Any, Any]]
        full: bool
        sends_together: bool
        fell_short: bool
        swap: SwapMemory

        def register(self, descriptor: Descriptor) -> None: ...
        def unregister(self, descriptor: Descriptor) -> None: ...
        def start(self, requests: list[Any]) -> None: ...
        def cancel(self, request: Any) -> None: ...
        def wait(self, timeout: float | None) -> None: ...
        def wake(self) -> None: ...
        def fileno(self) -> int: ...
        def unfinished(self) -> bool: ...
        def all_taken(self) -> bool: ...
        def lend(self) -> None: ...
        def recycle(self) -> None: ...
        def recycle_unused(self) -> None: ...
        def recover(self) -> list[Any]: ...
        def close(self) -> None: ...
        def abandon(self) -> None: ...
        def describe(self) -> str: ...


# Every backend there is. The module of each is named after it and offers open_backend().
KNOWN = ("epoll", "io_uring", "kqueue")


def names() -> tuple[str, ...]:
    """The backends that gaio has for this kind of system."""
    if sys.platform.startswith("linux"):
        return ("epoll", "io_uring", "kqueue")
    if sys.platform.startswith(("darwin", "freebsd", "dragonfly", "netbsd", "openbsd")):
        return ("kqueue",)
    return ()


def best_first() -> tuple[str, ...]:
    """The same in the order in which `auto` tries them. One that cannot be opened keeps its place."""
    found = names()
    try:
        if "io_uring" not in found or _module("io_uring").is_behind():
            return found
    except (OSError, AttributeError):
        pass  # it cannot even be imported: create() says why
    return ("io_uring", "epoll", "kqueue")


# open(2): the process, or the system, has no descriptors left just now, which says nothing about the kernel.
NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


def create(name: str, arena: SwapArena, descriptors: Mapping[int, Descriptor]) -> Backend:
    """Open the backend of that name; `OSError` where that cannot be, see `why_not()`."""
    if name not in names():
        raise OSError(f"{sys.platform} does not have it")
    try:
        backend: Backend = _module(name).open_backend(arena, descriptors)
    except AttributeError as error:
        raise OSError(errno.ENOSYS, f"libc lacks it: {error}") from error
    except MemoryError as error:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from error
    return backend


# What can be done about an error of any call, where the backend has no better advice.
_ADVICE = {
    errno.EPERM: "refused, as by a seccomp filter",
    errno.EACCES: "refused, as by a seccomp filter or a security module",
    errno.ENOMEM: "there is no memory, or no more address space: raise RLIMIT_AS (ulimit -v), where that is set",
}


def why_not(name: str, error: OSError) -> str:
    """What to tell of a backend that could not be opened, with advice where there is any."""
    module = sys.modules.get(f"gaio.platform._{name}")  # not imported for this: there may be no descriptor for that
    special = getattr(module, "advice", lambda _: None)(error)
    advice = special or _ADVICE.get(error.errno or 0)
    reason = error.strerror or str(error)
    return reason if advice is None else f"{reason}: {advice}"


def _module(name: str) -> Any:
    # Only the one that is used is imported: binding functions that this libc lacks fails.
    return importlib.import_module(f"gaio.platform._{name}")
