"""The Watcher: what a caller holds. The methods stand in the order of a request's life.

    caller --> read/write --> [delegation.py, once a connection] --> submit --> [leader.py] --> wait_io --> caller
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import weakref
from ctypes import get_errno, set_errno
from functools import partial
from threading import get_ident
from time import monotonic

from gaio import platform, process
from gaio.deadlines import Deadline
from gaio.delegation import CLOSED, Delegation, tell
from gaio.errors import BackendUnavailableError, InvalidCPUError, WatcherClosedError
from gaio.finishing import FinishResult, StopReading
from gaio.leader import FORKING, Leader
from gaio.memory import COPY_LIMIT, Addressed, Lent, copied_for_write, memory_for_write, pin_for_read
from gaio.platform import DATAGRAM, SEQPACKET, _libc
from gaio.platform._affinity import set_thread_affinity
from gaio.platform._libc import BESIDE_GREENLETS, MAX_RW_COUNT
from gaio.result import ACCEPT, CONNECT, FINISH, READ, SHUTDOWN, UNDER_WAY, WRITE, AcceptResult, Operation, OpResult
from gaio.swap import SwapArena
from gaio.timers import PostResult, Timer, TimerResult
from gaio.writes import unsent

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType
    from typing import Any

    from typing_extensions import Buffer, Self

    from gaio.connection import Connection, RequestQueue
    from gaio.engine import Engine
    from gaio.types import Backend, BackendName, ConnectionInfo, HasFileno, Stats

_SWAP_SIZE = 65536  # bytes, unless told otherwise

# threading.get_ident is of this type, unless greenlets have replaced threads. (Debuggers replace what starts threads.)
_BUILTIN: object = type(len)


def backends() -> list[Backend]:
    """What this machine offers, best first, and then what it does not.

    Each backend is opened as a watcher would open it now. Nothing stays open.
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
    """A proactor. It takes read and write requests from any thread. It performs them in the thread that waits in
    `wait_io()`, or in its own when nobody waits. It hands the finished ones back in batches.

    `swap_size` is the most bytes that one read without a buffer returns. The memory that such reads share grows in this
    unit (docs/tuning.md). `backend` names the kernel interface. None means the environment variable `GAIO_BACKEND`, or
    else "auto", the best one that works here.

    "auto" takes the next backend when the best one cannot be opened, for want of memory, descriptors or permission. It
    says so to the logger "gaio" at debug level. Nothing else takes the place of a backend that was asked for.

    Raises `TypeError` or `ValueError` when `swap_size` is no number of bytes from 1 to 2,147,479,552 (what one read(2)
    moves at most), `ValueError` for an unknown backend, `BackendUnavailableError` when the backend that was asked for
    cannot run here, `OSError` when the kernel has no descriptors left, and `RuntimeError` when no thread can be
    started, or when gevent or eventlet have replaced threads.

    A watcher that is dropped without `close()` is closed when it is collected, at the latest when the interpreter
    exits.
    """

    __slots__ = ("_leader", "_delegation", "_inbox", "_connections", "__weakref__")

    # Whether a thread of its own does the work when the consumer stays away. A class without it has to call
    # process.finalize() in its __del__(): weakref.finalize() would hold all that is the context of a request, and with
    # that the watcher.
    _follows = True

    def __init__(self, *, swap_size: int = _SWAP_SIZE, backend: BackendName | None = None) -> None:
        if not _is_int(swap_size):
            raise TypeError(f"swap_size must be a number of bytes, not {swap_size!r}")
        if not 1 <= swap_size <= MAX_RW_COUNT:
            raise ValueError(f"swap_size must be from 1 to {MAX_RW_COUNT} bytes, not {swap_size}")
        if type(threading.get_ident) is not _BUILTIN:
            raise RuntimeError(
                f"threads have been replaced by greenlets, and a watcher needs a thread of its own: {BESIDE_GREENLETS}"
            )
        import gaio.inspection  # noqa: F401  # for stats(): there may be no descriptor left to read it with by then

        kind: type[Leader] = Leader
        if sys.flags.dev_mode or platform.FREE_THREADED:
            from gaio.lending import DevelopmentLeader, FreeThreadedLeader

            kind = DevelopmentLeader if sys.flags.dev_mode else FreeThreadedLeader
        leader = self._leader = kind(partial(_open_backend, backend, swap_size), self._follows)
        self._delegation = Delegation(leader)
        self._inbox = leader.inbox
        self._connections = leader.engine.connections
        process.register(leader)
        if self._follows:  # else there is __del__(): see there
            weakref.finalize(self, process.finalize, leader).atexit = False
        try:
            leader.begin()
        except BaseException:  # the backend's; or RuntimeError, where no thread can be started
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
        closed before, and `OSError` when delegation fails (EMFILE, of what is no socket). Nothing is submitted then.
        Everything else, the end of the stream (`EOFError`) included, arrives as `OpResult.error`.

        Of a datagram socket it brings one datagram, and `OpResult.address` tells who sent it. What has no room in the
        buffer is lost: `error` is then an `OSError` of EMSGSIZE, and `size` and `buffer` have the beginning. A socket
        that can get none, for it has no address yet, is refused (`UnsupportedConnError`).
        """
        connection = self._connections.get(id(conn))
        if connection is None or (connection.conn is not conn and connection.conn() is not conn):
            # First, so that nothing is delegated for a request that will be refused.
            if buf is not None:
                pin_for_read(buf)
            _vet(timeout)
            connection = self._delegation.connection(conn, READ)
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
        request.more = False
        request._queue = connection.reads
        request._next = None
        request._goal = 0
        request._offset = 0
        request._deadline = None if timeout is None else _deadline(timeout, request)
        self._inbox.append(request)
        if self._leader.needs_wakeup:
            self._wake(request)

    def read_full(
        self, conn: HasFileno, buf: Buffer, *, context: Any = None, timeout: float | None = None
    ) -> None:
        """Read until the buffer is full. Otherwise like `read()`.

        When the stream ends, fails or times out before, the result has the error. `size` tells how many bytes of the
        buffer were filled.
        """
        memory, length = pin_for_read(buf, "read_full")
        _vet(timeout)
        connection = self._delegation.connection(conn, READ)
        self._submit(OpResult(), READ, conn, connection, connection.reads, buf, memory, length, context, timeout)

    def read_start(self, conn: HasFileno, *, context: Any = None, timeout: float | None = None) -> None:
        """Read what arrives, again and again: each arrival is a READ result of its own, with `more` True.

        The last one has `more` False. Its `error` says why it is the last: `EOFError` at the end of the stream, None
        after `read_stop()`, or what else ends a `read()`. `buffer` is a read-only view of the swap arena, valid until
        the next `wait_io()`; of a datagram it is yours for good. What waits undelivered is bounded by that arena, by
        16,384 results and by 32 MiB. When the consumer stays away, the kernel's buffers fill, and then the peer has to
        wait. A datagram that has no room ends nothing: its `error` is EMSGSIZE, and its `more` True.

        `timeout` is in seconds without a byte. After that it ends with a `DeadlineError`. A read that is submitted
        behind it waits for its end. `context`, threads and errors as in `read()`.
        """
        self._start(conn, READ, OpResult(), context, timeout)

    def read_stop(self, conn: HasFileno) -> None:
        """Have `read_start()` end: what had arrived is delivered, then the last result, with no error and `size` 0.

        What comes later stays in the kernel, for the next `read()` or for `detach()`. One that still waits behind other
        reads ends at once. Does nothing where nothing repeats, or where conn has been freed. Any thread. Raises
        `UnsupportedConnError` for an object that was never submitted.
        """
        self._delegation.stop(conn)

    def write(
        self,
        conn: HasFileno,
        buf: Buffer | Sequence[Buffer],
        *,
        context: Any = None,
        timeout: float | None = None,
        address: Any = None,
    ) -> None:
        """Write all of `buf`: bytes, any contiguous buffer, or a sequence of them as one vectored write.

        A buffer of up to 4 KiB, and a sequence of up to 64 KiB in all or 512 bytes a part, are copied at once. `bytes`
        are shared. A view of the swap arena may be passed as it is: it is copied in time, if need be. A larger mutable
        buffer belongs to the watcher until the result is delivered, and must not be changed meanwhile.

        Writes of one connection complete in the order they were submitted, each when all its bytes are in the kernel's
        send buffer. Small ones of a stream that wait leave in one call. On an error `size` tells how many bytes had
        gone out.

        `address` is for datagram sockets: where this one goes, `(host, port)` for IPv4 and IPv6 and a path for Unix
        sockets, as sendto(2) does it. All of `buf` is copied at once then. One that is no address of the socket's
        family raises `TypeError` or `ValueError`, and any address on another kind of socket `UnsupportedConnError`.

        `context`, `timeout`, threads and errors as in `read()`.
        """
        if address is not None:
            self._write_to(conn, buf, context, timeout, address)
            return
        connection = self._connections.get(id(conn))
        if connection is None or (connection.conn is not conn and connection.conn() is not conn):
            memory_for_write(buf)
            _vet(timeout)
            connection = self._delegation.connection(conn, WRITE)
        queue = connection.writes or self._delegation.writes(connection)
        request = OpResult()
        if type(buf) is bytes and 0 < (length := len(buf)) <= MAX_RW_COUNT:
            request._memory = buf
            request._length = request._goal = length
        elif type(buf) is memoryview and 0 < (length := buf.nbytes) <= COPY_LIMIT and buf.c_contiguous:
            request._memory = buf.tobytes()
            request._length = request._goal = length
        else:
            one_message = connection.kind in (DATAGRAM, SEQPACKET)
            request._memory, length = memory_for_write(buf, self._leader.engine.backend.swap, one_message)
            request._length = request._goal = length
            if type(request._memory) is Lent:
                self._leader.lent_writes.append(request)  # before it is in the inbox, see gaio/writes.py
        request.operation = WRITE
        request.conn = conn
        request._connection = connection
        request.context = context
        request.buffer = buf
        request.size = 0
        request.error = None
        request.more = False
        request._queue = queue
        request._next = None
        request._offset = 0
        request._deadline = None if timeout is None else _deadline(timeout, request)
        self._inbox.append(request)
        if self._leader.needs_wakeup:
            self._wake(request)

    def _write_to(self, conn: HasFileno, buf: Any, context: Any, timeout: float | None, address: Any) -> None:
        """See write()."""
        data = copied_for_write(buf)
        _vet(timeout)
        connection, name, by_time = self._delegation.destination(conn, address)
        queue = self._delegation.writes(connection)
        memory = Addressed(data, name, by_time)
        self._submit(OpResult(), WRITE, conn, connection, queue, buf, memory, len(data), context, timeout)

    def unsent(self, conn: HasFileno) -> int:
        """How many bytes of what was submitted to be written the kernel has not taken yet.

        It shows a server that a peer reads slowly, before the memory is full: see `read_stop()`. It takes a look at
        each request, of any connection, that was submitted since the last `wait_io()`. 0 for what has been freed. Any
        thread. Raises `UnsupportedConnError` for an object that was never submitted.
        """
        connection = self._delegation.known_or_freed(conn)
        writes = None if connection is None else connection.writes
        return 0 if writes is None else unsent(self._leader.engine, writes)

    def accept(self, listener: HasFileno, *, context: Any = None, timeout: float | None = None) -> None:
        """Take the next connection from a listening socket, which the first request delegates.

        The result's `accepted` is a plain `socket.socket` that is not delegated. It has the timeout that every new
        socket has (`socket.setdefaulttimeout()`, none by default), and TCP_NODELAY where it is one of TCP: that is set
        on the listener, which passes it on. Set its options, shake hands, and submit it when it is ready. `address`
        tells who that is. It is yours to close. A result that is dropped before anybody looked at `accepted` closes it.

        Accepts of one listener complete in order. When the process has no descriptors left (EMFILE), the error arrives
        after a tenth of a second, so that a loop that accepts again and again does not spin. The connection stays in
        the backlog (macOS drops it).

        `context`, `timeout`, threads and errors as in `read()`.
        """
        _vet(timeout)
        connection = self._delegation.connection(listener, ACCEPT)
        self._submit(AcceptResult(), ACCEPT, listener, connection, connection.reads, None, None, 0, context, timeout)

    def accept_start(self, listener: HasFileno, *, context: Any = None) -> None:
        """Accept connections, again and again: each is an ACCEPT result of its own, with `more` True.

        When the process has no descriptors left (EMFILE), a result says so in `error`, with `more` True, and it goes on
        after a tenth of a second. An error of the listener itself ends it, as `accept_stop()` does. What is accepted is
        delivered; 16,384 undelivered results are the most. `accepted`, `context`, threads and errors as in `accept()`.
        """
        self._start(listener, ACCEPT, AcceptResult(), context, None)

    def accept_stop(self, listener: HasFileno) -> None:
        """Have `accept_start()` end, as `read_stop()` does: what comes later stays in the backlog."""
        self._delegation.stop(listener)

    def connect(
        self, conn: HasFileno, address: Any, *, context: Any = None, timeout: float | None = None
    ) -> None:
        """Connect a socket that is not connected yet: `(host, port)` for IPv4 and IPv6, a path for Unix sockets.

        The host must be an IP address, because looking a name up would block. Requests submitted meanwhile wait for the
        connection. When it is refused or unreachable, the error is in the result. The socket may then be connected
        again, though some systems want a fresh one. After a deadline the kernel goes on all the same, and another
        attempt fails with EALREADY: take a fresh socket. When the backlog of a Unix socket is full, io_uring waits for
        room and the other backends fail with EAGAIN, connect(2). A TCP socket has TCP_NODELAY set.

        Raises `UnsupportedConnError` when it is connected or connecting already, `TypeError` or `ValueError` for what
        is no address of its family; otherwise as `read()`.
        """
        _vet(timeout)
        begun: list[int] = []
        try:
            delegation = self._delegation
            connection, memory = delegation.one_at_a_time(delegation.begin_connecting, (conn, address, begun))
            queue = delegation.writes(connection)
            self._submit(OpResult(), CONNECT, conn, connection, queue, None, memory, 0, context, timeout)
        except BaseException:
            self._leader.engine.connecting.difference_update(begun)  # else it would count as connecting for ever
            raise

    def shutdown(self, conn: HasFileno, *, context: Any = None) -> None:
        """End the outgoing direction when every write before is done: the peer reads to the end and then sees it.

        Reads go on. Writes submitted later fail with EPIPE. See shutdown(2), SHUT_WR. There is no timeout: that of the
        writes before is enough. `context`, threads and errors as in `read()`; what is no socket raises
        `UnsupportedConnError`.
        """
        connection = self._delegation.connection(conn, SHUTDOWN)
        queue = self._delegation.writes(connection)
        self._submit(OpResult(), SHUTDOWN, conn, connection, queue, None, None, 0, context, None)

    def detach(self, conn: HasFileno) -> socket.socket:
        """Take a connection back from the watcher: returns a fresh socket for it, with no byte lost.

        It has the timeout that every new socket has, as that of `accept()`. Any thread; where another one is in
        `wait_io()`, it waits for that one's turn to end. Raises `RuntimeError` while requests of it are pending (wait
        for them, or `free()` it) and from within another call of this thread, as a signal handler may be;
        `UnsupportedConnError` when it is no socket or was never delegated here; `ConnClosedError` when it has been
        freed or detached; `WatcherClosedError` when the watcher is closed meanwhile.

        After an exception such as KeyboardInterrupt the connection may be on its way back already, and is closed then.
        """
        item = self._delegation.hand_back(conn)
        sock = _libc.blank_socket()
        try:
            _libc.take_over(sock, item.owner[0])
            return sock  # no signal handler runs between the call before and the caller, see wait_io()
        except BaseException:
            sock.close()
            item.owner.clear()
            raise

    def free(self, conn: HasFileno) -> None:
        """Give the connection up: requests still pending complete with `ConnClosedError`, then it is closed.

        An object that was never delegated is simply closed; one that was freed before is left alone. Any thread.
        It does not wait for that, and is safe in a signal handler. Raises `UnsupportedConnError` for what is no
        connection at all.
        """
        self._delegation.free(conn)

    def finish(self, conn: HasFileno, *, context: Any = None, timeout: float | None = None) -> None:
        """End a connection in order: what was submitted to be written goes out, then FIN, then what the peer still
        sends is read and dropped until its end, then the descriptor is closed. That is one FINISH result, and the
        connection is gone with it, whatever the error.

        So no reset destroys what the peer has not read yet (RFC 9112, section 9.6). Pending reads complete with
        `ConnClosedError` at once, and every later request for conn is refused with it. `free()` ends it early. What has
        no FIN, as a pipe or a datagram socket, is closed when all is written.

        `timeout` is in seconds from now on: a peer that has not ended by then is cut off with a `DeadlineError`.
        Without one it may keep the connection for ever. `context`, threads and errors as in `read()`.
        """
        _vet(timeout)
        connection = self._delegation.connection(conn, FINISH)
        queue = self._delegation.writes(connection)
        self._inbox.append(StopReading(connection))
        self._submit(FinishResult(), FINISH, conn, connection, queue, None, None, 0, context, timeout)
        self._delegation.is_finishing(conn, connection)

    def post(self, context: Any = None) -> None:
        """Hand `context` to the consumer: a POST result, at once and without I/O. It ends a `wait_io()` that waits.

        Any thread and any signal handler; it does not block. What one thread posts comes in that order. Nothing bounds
        how much may wait to be delivered. Raises `WatcherClosedError`; what was posted before `close()` still comes,
        without an error.
        """
        result = PostResult(context)
        self._inbox.append(result)
        if self._leader.needs_wakeup:
            self._wake(result)

    def after(self, seconds: float, *, context: Any = None) -> Timer:
        """A TIMER result when so many seconds have passed, by time.monotonic(); 0 is with the next batch.

        The `Timer` that is returned can cancel it. `close()` ends it before with `WatcherClosedError`. Any thread and
        any signal handler; it does not block. Raises `TypeError` or `ValueError` for what is no finite number of
        seconds from 0 on, and `WatcherClosedError`.
        """
        request = TimerResult(context)
        request._deadline = _deadline(seconds, request, "seconds")
        self._inbox.append(request)
        if self._leader.needs_wakeup:
            self._wake(request)
        timer = Timer()
        timer._request = request
        timer._forget = partial(tell, self._leader)
        return timer

    def _start(
        self, conn: HasFileno, operation: Operation, request: OpResult, context: Any, timeout: float | None
    ) -> None:
        """Submit a request that repeats."""
        _vet(timeout)
        try:
            connection = self._delegation.connection(conn, operation, repeats=True)
            self._submit(request, operation, conn, connection, connection.reads, None, None, 0, context, timeout, True)
        except BaseException:
            self._delegation.reclaim(conn)
            raise

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
        more: bool = False,
    ) -> None:
        """Fill a request in and submit it. read() and write() do so themselves, because this call would be felt."""
        request.operation = operation
        request.conn = conn
        request._connection = connection
        request.context = context
        request.buffer = buffer
        request.size = 0
        request.error = UNDER_WAY if operation > WRITE else None
        request.more = more
        request._queue = queue
        request._next = None
        request._memory = memory
        request._length = request._goal = length
        request._offset = 0
        request._deadline = None if timeout is None else _deadline(timeout, request)
        self._inbox.append(request)
        if self._leader.needs_wakeup:
            self._wake(request)

    def _wake(self, request: OpResult) -> None:
        leader = self._leader
        leader.wake()
        if leader.closed and (leader.abandoned or leader.withdraw(request)):
            raise WatcherClosedError(CLOSED)

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
        leader = self._leader
        if FORKING:
            leader.look_around()
        if timeout is not None:
            timeout = _seconds(timeout)
        thread = get_ident()
        if (thread == leader.consumer or thread in leader.inside) and leader.is_inside():
            raise RuntimeError("wait_io() was called from within another call, by a signal handler or a finalizer")
        errno_before = get_errno()  # this may be a signal handler, between another watcher's call and its look at errno
        try:
            batch = leader.collect(timeout, thread)
            set_errno(errno_before)
            # CPython runs signal handlers at calls and at backward jumps only, so none runs from this store to the
            # caller. Either the batch is still here for the next call, or the caller has it. (CPython 3.10 runs them
            # behind a call as well, in the caller, where nothing can be done about it here.)
            leader.delivery = None
            leader.consumer = 0
            return batch
        except BaseException as error:
            leader.relinquish()
            set_errno(errno_before)
            if leader.abandoned and isinstance(error, Exception):  # a signal handler has forked while this waited
                raise WatcherClosedError(CLOSED) from None
            raise

    def __iter__(self) -> Iterator[OpResult]:
        """Yield results one by one until the watcher is closed and all have been delivered.

        They are those of one `wait_io()` after another, in the one thread that is the consumer. Who leaves the loop
        early leaves behind what else was in that batch: to stop in between and go on later, call `wait_io()`.
        """
        while True:
            try:
                batch = iter(self.wait_io())  # it lets go of its list at the end, and the next wait may be long
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
        leader = self._leader
        leader.look_around()
        if not leader.closed:
            leader.ask_to_close()
        if leader.is_inside():
            return
        if not leader.follows:
            leader.join()  # where __init__() was interrupted, it may be opening the backend still
        leader.call(leader.lead_and_shut)
        leader.join()

    def fileno(self) -> int:
        """A descriptor that polls as readable when `wait_io(0)` has something to do or to give.

        So a watcher nests in another event loop: watch it for reading there, and call `wait_io(0)` when it is
        readable. From the first call on, that loop is the consumer: the watcher thread does no I/O any more, and only
        sees to it that deadlines make the descriptor readable. Do not read from it, nor close it.

        Raises `WatcherClosedError` when the watcher is closed, and `RuntimeError` from within another call of this
        thread.
        """
        leader = self._leader
        leader.look_around()
        backend = leader.engine.backend  # before `closing` is read: if it is a closed watcher's, that is set
        if leader.closing:
            raise WatcherClosedError(CLOSED)
        leader.nest()
        return backend.fileno()

    @property
    def closed(self) -> bool:
        """Whether `close()` was called, or the process was forked since the watcher was made."""
        leader = self._leader
        leader.look_around()
        return leader.closing

    @property
    def backend(self) -> str:
        """The name of the backend in use."""
        return self._leader.backend_name

    def stats(self) -> Stats:
        """Counters, for monitoring. Any thread, also after `close()`. Takes time in proportion to the connections and
        what is pending.
        """
        from gaio import inspection

        return inspection.stats(self._leader)

    def connections(self) -> list[ConnectionInfo]:
        """Who is delegated, and waits for what: for debugging, oldest first.

        A connection with no request of either kind is one that somebody forgot, as after a read that was not submitted
        again. Any thread; it takes time in proportion to the connections and what is pending. Empty after `close()`.
        """
        from gaio import inspection

        return inspection.connections(self._leader)

    def set_affinity(self, cpu: int) -> None:
        """Bind the watcher thread to one CPU. A consumer binds itself, with `os.sched_setaffinity(0, {cpu})`.

        Any thread. Raises `InvalidCPUError` for a CPU this process may not use, `WatcherClosedError` when the watcher
        is closed, `OSError` where the system cannot do it.
        """
        if not _is_int(cpu):
            raise InvalidCPUError(f"cpu must be the number of a CPU, not {cpu!r}")
        if self.closed:
            raise WatcherClosedError(CLOSED)
        native_id = self._leader.thread.native_id
        assert native_id is not None  # the thread has been started
        try:
            set_thread_affinity(native_id, cpu)
        except ValueError as error:
            raise InvalidCPUError(str(error)) from error
        except ProcessLookupError:
            raise WatcherClosedError(CLOSED) from None  # its thread has ended meanwhile

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, et: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None, /
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self._connections)} connections"
        return f"<gaio.Watcher {self.backend} {state}>"


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _seconds(timeout: float, name: str = "timeout") -> float:
    if isinstance(timeout, float) or _is_int(timeout):
        if 0 <= timeout <= sys.float_info.max:
            return float(timeout)
        or_none = ": None waits for ever" if name == "timeout" else ""
        raise ValueError(f"{name} must be a finite number of seconds, 0 or more, not {timeout!r}{or_none}")
    raise TypeError(f"{name} must be a number of seconds{' or None' if name == 'timeout' else ''}, not {timeout!r}")


def _vet(timeout: float | None) -> None:
    if timeout is not None:
        _seconds(timeout)


def _deadline(timeout: float, request: OpResult, name: str = "timeout") -> Deadline:
    seconds = _seconds(timeout, name)
    return Deadline(monotonic() + seconds, request, seconds)


def asked_for(backend: str | None) -> tuple[str, str]:
    """The name of the backend to take, and who asks for it; `ValueError` for one that there is not."""
    asked_by = "backend="
    if backend is None:
        asked_by = "GAIO_BACKEND="
        backend = os.environ.get("GAIO_BACKEND") or "auto"
    if backend not in (*platform.KNOWN, "auto"):
        raise ValueError(f"{asked_by}{backend!r}: the backends are {', '.join(platform.KNOWN)} and auto")
    return asked_by, backend


def _open_backend(asked: str | None, swap_size: int, engine: Engine) -> platform.Backend:
    """The backend that was asked for, or the best that can be opened; raises where there is none."""
    asked_by, asked = asked_for(asked)
    arena = SwapArena(swap_size)
    reasons: list[str] = []
    number = None
    for name in platform.best_first() if asked == "auto" else (asked,):
        try:
            opened = platform.create(name, arena, engine.descriptors)
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
    """To the logger `gaio`, at debug level.

    logging is not imported for that: who wants to hear has imported it, and there may be no descriptor left to do so.
    """
    get_logger = getattr(sys.modules.get("logging"), "getLogger", None)
    if get_logger is not None:
        get_logger("gaio").debug(message)
