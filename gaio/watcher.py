"""The Watcher: what a caller holds. The methods stand in the order of a request's life.

    caller --> read/write --> delegate (once a connection) --> submit --> [gaio/loop.py] --> wait_io --> caller
"""

from __future__ import annotations

import atexit
import errno
import itertools
import os
import socket
import sys
import threading
import weakref
from ctypes import get_errno, set_errno
from functools import partial
from time import monotonic

from gaio import platform
from gaio.connection import (
    Connection,
    RequestQueue,
    check_connected,
    check_file,
    check_kind,
    descriptor_of,
    family_to_connect,
    flush_now,
    kind_of,
    peer_of,
    reference_of,
)
from gaio.deadlines import Deadline
from gaio.errors import (
    BackendUnavailableError,
    ConnClosedError,
    InvalidCPUError,
    UnsupportedConnError,
    WatcherClosedError,
)
from gaio.loop import SIGNAL_LATENCY, DevelopmentLoop, FreeThreadedLoop, HandBack, Loop, Release, release_all
from gaio.memory import COPY_LIMIT, SocketAddress, memory_for_write, pin_for_read
from gaio.platform import DATAGRAM, FILE, SEQPACKET, _libc, _sockaddr
from gaio.platform._affinity import set_thread_affinity
from gaio.platform._libc import MAX_RW_COUNT
from gaio.result import ACCEPT, CONNECT, READ, SHUTDOWN, UNDER_WAY, WRITE, AcceptResult, Operation, OpResult
from gaio.swap import SwapArena

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType
    from typing import Any, TypeVar

    from typing_extensions import Buffer, Self

    from gaio.types import Backend, BackendName, HasFileno, Stats

    _Argument = TypeVar("_Argument")
    _Outcome = TypeVar("_Outcome")

_SWAP_SIZE = 65536  # bytes, unless told otherwise

# What threading.get_ident is, unless greenlets have replaced threads. What starts threads, debuggers replace as well.
_BUILTIN: object = type(len)


def backends() -> list[Backend]:
    """What this machine offers, best first, and after that what it does not.

    Each backend is opened as a watcher would open it now; nothing stays open.
    """
    found = [_tried_out(name) for name in platform.best_first()]
    return sorted(found, key=lambda backend: not backend.available)


def _tried_out(name: str) -> Backend:
    from gaio.types import Backend

    try:
        backend = platform.create(name, SwapArena(_SWAP_SIZE), {})
    except OSError as error:
        return Backend(name, False, platform.why_not(name, error))
    try:
        return Backend(name, True, backend.describe())
    finally:
        backend.close()


class Watcher:
    """A proactor: takes read and write requests from any thread, performs them in the thread that
    waits in `wait_io()` (or in its own when nobody waits), and hands the finished ones back in batches.

    `swap_size` is the most bytes that one read without a buffer returns, and the unit in which the memory that such
    reads share grows (docs/tuning.md). `backend` names the kernel interface; None means the environment variable
    `GAIO_BACKEND`, or else "auto", the best one that works here.

    Raises `TypeError` or `ValueError` for a `swap_size` that is no number of bytes from 1 to 2,147,479,552 (what one
    read(2) moves at most), `ValueError` for an unknown backend, `BackendUnavailableError` when the backend that was
    asked for cannot run here (there is no falling back), `OSError` when the kernel has no descriptors left, and
    `RuntimeError` when no thread can be started, or when gevent or eventlet have replaced threads. "auto" takes the
    next backend when the best one cannot be opened, for want of memory, descriptors or permission, and says so to the
    logger "gaio" at debug level.

    A watcher that is dropped without `close()` is closed when it is collected, at the latest when the interpreter
    exits.
    """

    __slots__ = ("_loop", "_inbox", "_connections", "_tokens", "_forget", "__weakref__")

    def __init__(self, *, swap_size: int = _SWAP_SIZE, backend: BackendName | None = None) -> None:
        if not _is_int(swap_size):
            raise TypeError(f"swap_size must be a number of bytes, not {swap_size!r}")
        if not 1 <= swap_size <= MAX_RW_COUNT:
            raise ValueError(f"swap_size must be from 1 to {MAX_RW_COUNT} bytes, not {swap_size}")
        if type(threading.get_ident) is not _BUILTIN:
            raise RuntimeError(
                "threads have been replaced by greenlets, and a watcher needs a thread of its own: call "
                "gevent.monkey.patch_all(thread=False, select=False), or eventlet.monkey_patch(thread=False, "
                "select=False, socket=False), or use gaio in a process without them"
            )
        import gaio.types  # noqa: F401  # for stats(), which may be called when no descriptor is left to read it with

        kind = DevelopmentLoop if sys.flags.dev_mode else FreeThreadedLoop if platform.FREE_THREADED else Loop
        loop = self._loop = kind(partial(_open_backend, backend), swap_size)
        self._inbox = loop.inbox
        self._connections = loop.connections
        self._tokens = itertools.count(2, 2)  # even, see gaio.platform.Queue
        self._forget = loop.forget  # one bound method for all finalizers, not one for each
        _register(loop)
        weakref.finalize(self, loop.finalize).atexit = False
        try:
            loop.begin()
        except BaseException:  # of the backend; or RuntimeError: threads are forbidden, or there is no memory for one
            self.close()
            raise

    # --- submit ---------------------------------------------------------------------------------------------

    def read(
        self, conn: HasFileno, buf: Buffer | None = None, *, context: Any = None, timeout: float | None = None
    ) -> None:
        """Read what arrives next: at least one byte, at most the buffer.

        With a buffer, the bytes land in it; it belongs to the watcher until the result is delivered, and cannot
        be resized meanwhile. Without one, no memory is taken while the request waits, and the result's
        `buffer` is a view of the swap arena, valid until the next `wait_io()`.

        The first request for an object delegates it: see the README. Reads of one connection complete in the
        order they were submitted. `timeout` is in seconds; when it passes first, the result's error is a
        `DeadlineError`, which does not wait for the results of reads submitted before. `context` is handed back
        unchanged. Any thread may call this; it does not block.

        Raises `UnsupportedConnError`, `WatcherClosedError`, `EmptyBufferError`, `TypeError`, `BufferError` or (a
        timeout below 0 or without end) `ValueError` for wrong arguments, `ConnClosedError` when conn was freed or
        closed before, and `OSError` when delegation fails (EMFILE). Nothing is submitted then. Everything else, the end
        of the stream (`EOFError`) included, arrives as `OpResult.error`.
        """
        connection = self._connections.get(id(conn))
        if connection is None or connection.conn() is not conn:
            # Nothing is delegated for a request that will be refused.
            if buf is not None:
                pin_for_read(buf)
            _vet(timeout)
            connection = self._delegate(conn, READ)
        request = OpResult()
        if buf is None:
            request._memory = None
            request._length = 0
        else:
            request._memory, request._length = pin_for_read(buf)
        request.operation = READ
        request.conn = conn
        request._connection = connection
        request.context = context
        request.buffer = buf
        request.size = 0
        request.error = None
        request._queue = connection.reads
        request._next = None
        request._goal = 0
        request._offset = 0
        request._deadline = None if timeout is None else _deadline(timeout, request)
        self._inbox.append(request)
        if self._loop.sleeping:
            self._rouse(request)

    def read_full(
        self, conn: HasFileno, buf: Buffer, *, context: Any = None, timeout: float | None = None
    ) -> None:
        """Read until the buffer is full. Otherwise like `read()`.

        Should the stream end, fail or time out before, the result has the error, and `size` tells how many bytes of
        the buffer were filled.
        """
        memory, length = pin_for_read(buf, "read_full")
        _vet(timeout)
        connection = self._connection(conn, READ)
        self._submit(OpResult(), READ, conn, connection, connection.reads, buf, memory, length, context, timeout)

    def write(
        self,
        conn: HasFileno,
        buf: Buffer | Sequence[Buffer],
        *,
        context: Any = None,
        timeout: float | None = None,
    ) -> None:
        """Write all of `buf`: bytes, any contiguous buffer, or a sequence of them as one vectored write.

        A buffer of up to 4 KiB, a sequence of up to 64 KiB in all or 512 bytes a part, and a memoryview of the swap
        arena are copied at once; `bytes` are shared; a larger mutable buffer belongs to the watcher until the result is
        delivered, and must not be changed meanwhile.
        Writes of one connection complete in the order they were submitted, each when all its bytes are in the
        kernel's send buffer. On an error `size` tells how many bytes had gone out.

        `context`, `timeout`, threads and errors as in `read()`.
        """
        connection = self._connections.get(id(conn))
        if connection is None or connection.conn() is not conn:
            memory_for_write(buf)
            _vet(timeout)
            connection = self._delegate(conn, WRITE)
        queue = connection.writes or self._open_writes(connection)
        request = OpResult()
        if type(buf) is bytes and 0 < (length := len(buf)) <= MAX_RW_COUNT:
            request._memory = buf
            request._length = request._goal = length
        elif type(buf) is memoryview and 0 < (length := buf.nbytes) <= COPY_LIMIT and buf.c_contiguous:
            request._memory = buf.tobytes()
            request._length = request._goal = length
        else:
            one_message = connection.kind in (DATAGRAM, SEQPACKET)
            request._memory, length = memory_for_write(buf, self._loop.copies, one_message)
            request._length = request._goal = length
        request.operation = WRITE
        request.conn = conn
        request._connection = connection
        request.context = context
        request.buffer = buf
        request.size = 0
        request.error = None
        request._queue = queue
        request._next = None
        request._offset = 0
        request._deadline = None if timeout is None else _deadline(timeout, request)
        self._inbox.append(request)
        if self._loop.sleeping:
            self._rouse(request)

    def accept(self, listener: HasFileno, *, context: Any = None, timeout: float | None = None) -> None:
        """Take the next connection from a listening socket, which the first request delegates.

        The result's `accepted` is a plain `socket.socket` that is not delegated, with the timeout that every new socket
        has (`socket.setdefaulttimeout()`, none by default): set its options, shake hands, and submit it when it is
        ready. It is yours to close; a result that is dropped without `accepted` being looked at closes it. Accepts of
        one listener complete in order. When the process has no descriptors left (EMFILE), the error arrives after a
        tenth of a second, so that a loop that accepts again and again does not spin, and the connection stays in the
        backlog (macOS drops it).

        `context`, `timeout`, threads and errors as in `read()`.
        """
        _vet(timeout)
        connection = self._connection(listener, ACCEPT)
        self._submit(AcceptResult(), ACCEPT, listener, connection, connection.reads, None, None, 0, context, timeout)

    def connect(
        self, conn: HasFileno, address: Any, *, context: Any = None, timeout: float | None = None
    ) -> None:
        """Connect a socket that is not connected yet: `(host, port)` for IPv4 and IPv6, a path for Unix sockets.

        The host must be an IP address, because looking a name up would block. Requests submitted meanwhile wait
        for it. Refused or unreachable: the error is in the result, and the socket may be connected again, though some
        systems want a fresh one. After a deadline the kernel goes on all the same, so that another attempt fails with
        EALREADY: take a fresh socket. Where the backlog of a Unix socket is full, io_uring waits for room and the other
        backends fail with EAGAIN, connect(2).

        Raises `UnsupportedConnError` when it is connected or connecting already, `TypeError` or `ValueError` for what
        is no address of its family; otherwise as `read()`.
        """
        _vet(timeout)
        begun: list[int] = []
        try:
            connection, memory = self._one_at_a_time(self._begin_connecting, (conn, address, begun))
            queue = connection.writes or self._open_writes(connection)
            self._submit(OpResult(), CONNECT, conn, connection, queue, None, memory, 0, context, timeout)
        except BaseException:
            self._loop.connecting.difference_update(begun)  # or it would count as connecting for ever
            raise

    def _begin_connecting(self, request: tuple[HasFileno, Any, list[int]]) -> tuple[Connection, SocketAddress]:
        conn, address, begun = request
        connecting = self._loop.connecting
        connection = self._known(conn)
        if connection is not None and connection.token in connecting:
            raise UnsupportedConnError("conn is connecting already: wait for the result")
        fd = connection.fd if connection is not None else descriptor_of(conn)
        kind = connection.kind if connection is not None else kind_of(fd, CONNECT)
        check_kind(kind, CONNECT)
        memory = SocketAddress(_sockaddr.pack(family_to_connect(fd, kind), address))
        if connection is None:  # and nothing was delegated for a request that is refused
            connection = self._take_descriptor((conn, CONNECT))
            if connection.token in connecting:  # by a signal handler
                raise UnsupportedConnError("conn is connecting already: wait for the result")
        connection.peer = memory.data
        begun.append(connection.token)
        connecting.add(connection.token)
        return connection, memory

    def shutdown(self, conn: HasFileno, *, context: Any = None) -> None:
        """End the outgoing direction when every write before is done: the peer reads to the end and then sees it.

        Reads go on. Writes submitted later fail with EPIPE. See shutdown(2), SHUT_WR. There is no timeout: that of the
        writes before is enough. `context`, threads and errors as in `read()`; what is no socket raises
        `UnsupportedConnError`.
        """
        connection = self._connection(conn, SHUTDOWN)
        queue = connection.writes or self._open_writes(connection)
        self._submit(OpResult(), SHUTDOWN, conn, connection, queue, None, None, 0, context, None)

    def detach(self, conn: HasFileno) -> socket.socket:
        """Take a connection back from the watcher: returns a fresh socket for it, with no byte lost.

        It has the timeout that every new socket has, as that of `accept()`. Any thread; where another one is in
        `wait_io()`, it waits for that one's turn to end. Raises `RuntimeError` while requests of it are pending (wait
        for them, or `free()` it) and from within another call of this thread, as a signal handler may be;
        `UnsupportedConnError` when it is no socket or was never delegated here; `ConnClosedError` when it has been
        freed or detached; `WatcherClosedError` when the watcher is closed meanwhile.

        After an exception such as KeyboardInterrupt the connection may be on its way back already: then `detach()`
        returns it when it is called again, `free()` closes it, and there is nothing else to do with it.
        """
        loop = self._loop
        loop.look_around()
        item = loop.parted_with(conn)
        if item is None or not item.done:
            connection = self._known(conn) if item is None else item.connection
            if connection is None:
                if loop.closed:
                    raise WatcherClosedError("the watcher is closed, and its connections with it")
                descriptor_of(conn)  # raises what there is to say of one that is closed
                raise UnsupportedConnError(f"conn was never submitted to this watcher: {conn!r}")
            if connection.kind == FILE:
                raise UnsupportedConnError("conn is no socket: only sockets can be handed back")
            loop.hand_back(connection)
        parted, key = loop.parted, id(conn)
        item = parted.get(key)
        try:
            if item is None:
                raise KeyError(key)
            self._one_at_a_time(_make_socket, item)  # should there be two threads
            sock = item.sock
            self._leave_to_collector(conn, item.connection)
            # Of several threads, one succeeds in this. From here to the caller no signal handler runs, see wait_io():
            # so the socket is either still there for the next call, or the caller has it.
            del parted[key]
            return sock
        except BaseException as error:
            if item is not None and parted.get(key) is item:  # nobody may call again
                self._reclaim_when_collected(conn, item.connection)
                raise
            if item is not None and item.dropped:
                item.sock.close()
            if not isinstance(error, Exception):
                raise
            if loop.closing:
                raise WatcherClosedError("the watcher was closed meanwhile") from None
            raise ConnClosedError(f"conn was detached by another thread, or freed meanwhile: {conn!r}") from None

    def free(self, conn: HasFileno) -> None:
        """Give the connection up: requests still pending complete with `ConnClosedError`, then it is closed.

        An object that was never delegated is simply closed; one that was freed before is left alone. Any thread.
        It does not wait for that, and is safe in a signal handler. Raises `UnsupportedConnError` for what is no
        connection at all.
        """
        self._loop.look_around()
        connection = self._known(conn)
        if connection is None:
            item = self._loop.parted_with(conn)
            if item is not None and item.done:
                self._loop.drop_parted(id(conn))
                self._leave_to_collector(conn, item.connection)
                return
            connection = self._one_at_a_time(self._close_undelegated, conn) if item is None else item.connection
            if connection is None:
                return
        self._inbox.append(Release(connection))
        if self._loop.sleeping:
            self._loop.rouse()
        # Not before: cut short up to here, free() can be called again.
        self._loop.table_of(connection).pop(connection.key, None)
        self._leave_to_collector(conn, connection)

    def _submit(
        self,
        request: OpResult,
        operation: Operation,
        conn: HasFileno,
        connection: Connection,
        queue: RequestQueue,
        buffer: Any,
        memory: Any,
        length: int,
        context: Any,
        timeout: float | None,
    ) -> None:
        request.operation = operation
        request.conn = conn
        request._connection = connection
        request.context = context
        request.buffer = buffer
        request.size = 0
        request.error = None if operation is READ else UNDER_WAY
        request._queue = queue
        request._next = None
        request._memory = memory
        request._length = request._goal = length
        request._offset = 0
        request._deadline = None if timeout is None else _deadline(timeout, request)
        self._inbox.append(request)
        if self._loop.sleeping:
            self._rouse(request)

    def _rouse(self, request: OpResult) -> None:
        loop = self._loop
        loop.rouse()
        if loop.closed and (loop.abandoned or loop.withdraw(request)):
            raise WatcherClosedError(_CLOSED)

    # --- delegation -----------------------------------------------------------------------------------------

    def _known(self, conn: HasFileno) -> Connection | None:
        connection = self._connections.get(id(conn)) or self._loop.listeners.get(id(conn))
        return connection if connection is not None and connection.conn() is conn else None

    def _connection(self, conn: HasFileno, operation: Operation) -> Connection:
        connection = self._known(conn)
        if connection is None:
            return self._delegate(conn, operation)
        check_kind(connection.kind, operation)
        return connection

    def _delegate(self, conn: HasFileno, operation: Operation) -> Connection:
        """Delegate an object that is not known yet, for a first request of this kind."""
        known = self._known(conn)
        if known is not None:  # a listener, which the fast paths do not look for
            check_kind(known.kind, operation)
        return self._one_at_a_time(self._take_descriptor, (conn, operation))

    def _open_writes(self, connection: Connection) -> RequestQueue:
        return self._one_at_a_time(Connection.open_writes, connection)

    def _one_at_a_time(self, step: Callable[[_Argument], _Outcome], argument: _Argument) -> _Outcome:
        """Do a step of delegation: no other thread does one meanwhile, nor does anyone close the watcher."""
        loop = self._loop
        loop.look_around()
        thread = threading.get_ident()
        outermost = thread not in loop.inside
        try:
            loop.inside.add(thread)
            with loop.delegation:
                outcome = step(argument)
            if outermost:
                loop.inside.discard(thread)
        except BaseException as error:
            if outermost:
                release_all(loop.delegation)
                loop.inside.discard(thread)
            loop.unless_abandoned(error)
            raise
        return outcome

    def _take_descriptor(self, request: tuple[HasFileno, Operation]) -> Connection:
        """Take the caller's descriptor over, unless another thread was faster."""
        conn, operation = request
        if self._loop.closing:
            raise WatcherClosedError(_CLOSED)
        connection = self._known(conn)
        if connection is None:
            try:
                connection = self._duplicate(conn, operation)
            except Exception as error:
                connection = self._known(conn)
                if connection is None:
                    if getattr(error, "errno", None) == errno.EBADF:
                        descriptor_of(conn)  # raises ConnClosedError when another thread has closed it meanwhile
                    raise
                # A signal handler has submitted for it in the middle of this, and so taken it over: all is well.
        check_kind(connection.kind, operation)
        return connection

    def _duplicate(self, conn: HasFileno, operation: Operation) -> Connection:
        """Duplicate the caller's descriptor, register the duplicate, close the original."""
        loop = self._loop
        fd = descriptor_of(conn)
        kind = kind_of(fd, operation)
        check_kind(kind, operation)
        if operation is not CONNECT:
            check_connected(fd, kind)
        check_file(conn, fd)
        flush_now(conn, fd)
        duplicates: list[int] = []
        connection = None
        token = next(self._tokens)
        try:
            # By C code into a list, so that an interruption cannot lose it. os.dup() sets close-on-exec.
            duplicates.extend(map(os.dup, (fd,)))
            if descriptor_of(conn) != fd:  # the duplicate may be of a stranger by now
                raise ConnClosedError(f"conn was closed and opened again while it was submitted: {conn!r}")
            connection = _connection_for(conn, duplicates[0], kind, token)
            connection.peer = peer_of(duplicates[0], kind)
            # Known before the kernel knows it: an edge may be reported before registration has returned.
            loop.descriptors[token] = connection
            try:
                loop.backend.register(connection)
            except (OSError, WatcherClosedError) as error:
                loop.descriptors.pop(token, None)
                if getattr(error, "errno", None) == errno.EPERM:  # of epoll_ctl(2)
                    raise UnsupportedConnError(
                        f"conn cannot be polled, as regular files cannot, nor need be: use it without gaio: {conn!r}"
                    ) from error
                raise
            duplicates.clear()  # it is the connection's now
            stale = self._connections.get(id(conn)) or loop.listeners.get(id(conn))
            if stale is not None and stale.conn() is None:
                loop.forget(stale)  # its object died, and an interruption kept its finalizer from saying so
            # From here on a signal handler finds it; before, it may have taken the descriptor over itself.
            known = loop.table_of(connection).setdefault(connection.key, connection)
            if known is not connection:
                loop.give_up(connection)
                return known
            conn.close()
            self._reclaim_when_collected(conn, connection)
        except BaseException:
            if token in loop.descriptors:
                # Perhaps the kernel knows it already, and epoll would keep it while the original is open.
                loop.give_up(loop.descriptors[token])
            elif connection is None or connection.fd >= 0:  # else this is a child after fork(2), where it is closed
                _libc.close_all(duplicates)
            raise
        return connection

    def _reclaim_when_collected(self, conn: HasFileno, connection: Connection) -> None:
        connection.finalizer = weakref.finalize(conn, self._forget, connection)
        connection.finalizer.atexit = False
        connection.conn = reference_of(connection.finalizer, conn)

    def _leave_to_collector(self, conn: HasFileno, connection: Connection) -> None:
        """Nothing is left to reclaim, and without a finalizer no Python code runs when conn is collected: a Ctrl-C that
        strikes there would be swallowed, as the interpreter does with whatever a finalizer raises.
        """
        if connection.finalizer is not None:
            connection.finalizer.detach()
            connection.conn = weakref.ref(conn)  # the one before would call the finalizer even so

    def _close_undelegated(self, conn: HasFileno) -> Connection | None:
        """Close what is the caller's still. While another thread delegates it, its number must stay its own."""
        connection = self._known(conn)
        if connection is not None:
            return connection  # that thread was faster
        if getattr(conn, "fileno", None) is None or getattr(conn, "close", None) is None:
            descriptor_of(conn)  # raises, saying what a connection is
        conn.close()
        return None

    # --- harvest --------------------------------------------------------------------------------------------

    def wait_io(self, timeout: float | None = None) -> list[OpResult]:
        """Wait for finished requests and return them, in the order they finished; [] when `timeout` passes.

        `timeout` is in seconds: None waits as long as it takes, 0 only looks. While it waits, the calling thread does
        the watcher's work. Swap buffers of the batch before become invalid; under `python -X dev` they are released, so
        that use raises `ValueError`. Only one thread may be the consumer.

        An exception that comes out of here, KeyboardInterrupt first of all, loses nothing: the next call goes on. After
        `close()` it returns what is left, and then raises `WatcherClosedError`. Raises `TypeError` or `ValueError` for
        what is no timeout, `RuntimeError` from within another call of this thread, and the `OSError` of a kernel that
        refuses to wait (epoll_wait(2), kevent(2), io_uring_enter(2)).
        """
        loop = self._loop
        loop.look_around()
        if timeout is not None:
            timeout = _seconds(timeout)
        if loop.is_inside():
            raise RuntimeError("wait_io() was called from within another call, by a signal handler or a finalizer")
        errno_before = get_errno()  # a signal handler may be between a call of another watcher and the look at this
        try:
            batch = loop.harvest(timeout)
            set_errno(errno_before)
            if loop.abandoned:  # a handler has forked, and this is the child: the batch is the parent's
                raise WatcherClosedError(_CLOSED)
            # From this store to the caller the interpreter runs no signal handler: CPython does so at calls and at
            # backward jumps only. So the batch is either still here for the next call, or the caller has it.
            loop.delivery = None
            loop.consumer = 0
            return batch
        except BaseException as error:
            loop.step_aside()
            set_errno(errno_before)
            loop.unless_abandoned(error)
            raise

    def __iter__(self) -> Iterator[OpResult]:
        """Yield results one by one until the watcher is closed and all have been delivered.

        They are those of one `wait_io()` after another, in the one thread that is the consumer. Who leaves the loop
        early leaves behind what else was in that batch: to stop in between and go on later, call `wait_io()`.
        """
        while True:
            try:
                batch = iter(self.wait_io())  # which lets go of its list at the end: the next wait may be long
            except WatcherClosedError:
                return
            yield from batch

    # --- life -----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the watcher: pending requests complete with `WatcherClosedError`, connections are closed.

        The results can still be fetched with `wait_io()`. Any thread, any number of times; a consumer that
        waits meanwhile gets them at once. Called by a signal handler that interrupted another call
        of this thread, it takes effect when that goes on.
        """
        loop = self._loop
        loop.look_around()
        if not loop.closed:
            loop.ask_to_close()
        if loop.is_inside():
            return
        thread = threading.get_ident()
        errno_before = get_errno()  # as in wait_io()
        try:
            loop.inside.add(thread)
            while not loop.watch.acquire(timeout=SIGNAL_LATENCY):
                pass  # as in take_over()
            loop.shut()
            loop.watch.release()
            loop.inside.discard(thread)
        except BaseException as error:
            loop.step_aside()
            if not (loop.abandoned and isinstance(error, Exception)):  # else a handler has forked, and this is closed
                raise
        finally:
            set_errno(errno_before)
        loop.see_thread_out()

    def fileno(self) -> int:
        """A descriptor that polls as readable when `wait_io(0)` has something to do or to give.

        So a watcher nests in another event loop: watch it for reading there, and call `wait_io(0)` when it is
        readable. From the first call on, that loop is the consumer: the watcher thread does no I/O any more, and only
        sees to it that deadlines make the descriptor readable. Do not read from it, nor close it.

        Raises `WatcherClosedError` when the watcher is closed, and `RuntimeError` from within another call of this
        thread.
        """
        loop = self._loop
        loop.look_around()
        backend = loop.backend  # first: when it is that of a closed loop, `closing` says so
        if loop.closing:
            raise WatcherClosedError(_CLOSED)
        loop.nest()
        return backend.fileno()

    @property
    def closed(self) -> bool:
        """Whether `close()` was called, or the process was forked since the watcher was made."""
        loop = self._loop
        loop.look_around()
        return loop.closing

    @property
    def backend(self) -> str:
        """The name of the backend in use."""
        return self._loop.backend_name

    def stats(self) -> Stats:
        """Counters, for monitoring. Any thread, also after `close()`. Takes time in proportion to the connections and
        what is pending.
        """
        from gaio.types import Stats

        loop = self._loop
        # A set: the turn under way, or one that was cut short, has requests in two places.
        pending = {id(item) for item in loop.inbox.copy() if isinstance(item, OpResult)}
        for connection in list(loop.descriptors.values()):
            for queue in connection.queues():
                request = queue.head
                while request is not None:
                    pending.add(id(request))
                    request = request._next
        return Stats(
            conns=len(self._connections) + len(loop.listeners),
            pending=len(pending),
            completions=loop.completions,
            batches=loop.batches,
            wakeups=loop.wakeups,
            gc_found=loop.gc_found,
            gc_closed=loop.gc_closed(),
        )

    def set_affinity(self, cpu: int) -> None:
        """Bind the watcher thread to one CPU. A consumer binds itself, with `os.sched_setaffinity(0, {cpu})`.

        Any thread. Raises `InvalidCPUError` for a CPU this process may not use, `WatcherClosedError` when the watcher
        is closed, `OSError` where the system cannot do it.
        """
        if not _is_int(cpu):
            raise InvalidCPUError(f"cpu must be the number of a CPU, not {cpu!r}")
        if self.closed:
            raise WatcherClosedError(_CLOSED)
        native_id = self._loop.thread.native_id
        assert native_id is not None  # the thread has been started
        try:
            set_thread_affinity(native_id, cpu)
        except ValueError as error:
            raise InvalidCPUError(str(error)) from error
        except ProcessLookupError:
            raise WatcherClosedError(_CLOSED) from None  # and its thread has ended meanwhile

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, et: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None, /
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self._connections)} connections"
        return f"<gaio.Watcher {self.backend} {state}>"


def _make_socket(item: HandBack) -> None:
    _libc.take_over(item.sock, item.owner[0])


_CLOSED = "the watcher is closed: make a new one to submit more requests"


def _connection_for(conn: HasFileno, fd: int, kind: int, token: int) -> Connection:
    try:
        return Connection(conn, fd, kind, token)
    except TypeError as error:  # of weakref.ref()
        raise UnsupportedConnError(
            "conn must be weak-referenceable, so that it can be reclaimed when you drop it: name '__weakref__' among "
            f"the __slots__ of its class: {conn!r}"
        ) from error


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _seconds(timeout: float) -> float:
    if isinstance(timeout, float) or _is_int(timeout):
        if 0 <= timeout <= sys.float_info.max:
            return float(timeout)
        raise ValueError(f"timeout must be a finite number of seconds, 0 or more, not {timeout!r}: None waits for ever")
    raise TypeError(f"timeout must be a number of seconds or None, not {timeout!r}")


def _vet(timeout: float | None) -> None:
    if timeout is not None:
        _seconds(timeout)


def _deadline(timeout: float, request: OpResult) -> Deadline:
    return Deadline(monotonic() + _seconds(timeout), request)


def _open_backend(
    asked: str | None, arena: SwapArena, descriptors: Mapping[int, Connection]
) -> platform.Backend:
    """The backend that was asked for, or the best that can be opened; raises where there is none."""
    asked_by = "backend="
    if asked is None:
        asked_by = "GAIO_BACKEND="
        asked = os.environ.get("GAIO_BACKEND") or "auto"
    if asked not in (*platform.KNOWN, "auto"):
        raise ValueError(f"{asked_by}{asked!r}: the backends are {', '.join(platform.KNOWN)} and auto")
    reasons: list[str] = []
    number = None
    for name in platform.best_first() if asked == "auto" else (asked,):
        try:
            opened = platform.create(name, arena, descriptors)
        except OSError as error:
            reasons.append(f"{name}: {platform.why_not(name, error)}")
            number = error.errno if number is None or error.errno in platform.NO_DESCRIPTORS else number
        else:
            if reasons:
                _log(f"{name} is used, for the better backends cannot be opened: {'; '.join(reasons)}")
            return opened
    if number in platform.NO_DESCRIPTORS:
        raise OSError(number, "; ".join(reasons))
    refusal = BackendUnavailableError(
        f"no backend works here: {'; '.join(reasons) or sys.platform + ' has none'}"
        if asked == "auto"
        else f"{asked_by}{reasons[0]}"
    )
    refusal.errno = number
    raise refusal


def _log(message: str) -> None:
    """To the logger `gaio`, at debug level. logging is not imported for that: who wants to hear has done so, and there
    may be no descriptor to import it with.
    """
    get_logger = getattr(sys.modules.get("logging"), "getLogger", None)
    if get_logger is not None:
        get_logger("gaio").debug(message)


# Any thread adds to it, and a loop that is collected leaves it, in a single set operation each; to go through it, it is
# copied in one, too. Not a WeakSet, whose operations are many: another thread could add to it in the middle of them.
_loops: set[weakref.ref[Loop]] = set()


def _register(loop: Loop) -> None:
    """See to it that this loop ends with the interpreter, and that a child process leaves it alone: its kernel objects
    are the parent's.
    """
    if not hasattr(_register, "done"):
        os.register_at_fork(after_in_child=_abandon_all)
        atexit.register(_close_all)
        # Once, and not when gaio is imported. Two threads may both do it: to do these twice is to do them once.
        _register.done = True  # type: ignore[attr-defined]  # functions take any attribute
    _loops.add(weakref.ref(loop, _loops.discard))


def _all_loops() -> Iterator[Loop]:
    return filter(None, [reference() for reference in _loops.copy()])


def _close_all() -> None:
    for loop in _all_loops():
        if not loop.closed:
            loop.ask_to_close()
        loop.see_thread_out()


def _abandon_all() -> None:
    for loop in _all_loops():
        loop.abandon()
