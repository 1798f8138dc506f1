"""TLS for the connections of a watcher, as clients and as servers: plain bytes for the caller, encrypted on the wire.

A `TLSWatcher` stands in front of the `Watcher` that it is: it calls the public methods that it has inherited.
Connections for which no TLS was started pass through. tls_session.py has what it does for one that speaks TLS.

Who does what
    An SSLObject is for one thread at a time: the consumer. A call that submits checks its arguments, puts a request
    into a queue of the session, and has the consumer look at it, by post() if that may be waiting. So no lock is
    needed, with an interpreter lock or without, and a signal handler may submit in the middle of anything.
    wait_io() decrypts what has come, and encrypts what has been submitted: all of a connection together, but no more
    than is soon on its way. What stands behind that stays as it is, in the caller's memory. Only a small write of the
    consumer itself, with nothing before it, is encrypted at once.
"""

from __future__ import annotations

import ssl
import threading
import weakref
from threading import get_ident
from time import monotonic

from gaio.delegation import CLOSED
from gaio.errors import UnsupportedConnError, WatcherClosedError
from gaio.memory import Vector, memory_for_write, pin_for_read
from gaio.result import CONNECT, READ, SHUTDOWN, STOPPED, WRITE, OpResult
from gaio.tls_session import DONE, ONCE, Flight, Request, Session
from gaio.watcher import Watcher, _vet

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Sequence
    from socket import socket
    from typing import Any

    from typing_extensions import Buffer

    from gaio.types import BackendName, HasFileno, Stats

__all__ = ("TLSWatcher",)


class TLSWatcher(Watcher):
    """A `Watcher` some of whose connections speak TLS: those for which `start_server()` or `start_client()` was called.

    Their requests and results are those of plain connections, so one loop serves both. The bytes are plain. What goes
    wrong in TLS is an `ssl.SSLError` in the result: of a handshake that fails, in every result from then on. The end of
    the stream is an `EOFError` when the peer has said so (close_notify), and an `ssl.SSLEOFError` when it was cut off.

    TLS is done in `wait_io()`, by the consumer. The arguments are those of `Watcher`.
    """

    __slots__ = (
        *("_results", "_sessions", "_waiting", "_told", "_batch", "_beneath", "_at", "_expired", "_inside"),
        *("_outside", "_is_nested", "_over", "_ending"),
    )

    def __init__(self, *, swap_size: int = 65536, backend: BackendName | None = None) -> None:
        self._results: dict[OpResult, None] = {}  # what wait_io() will return
        self._sessions: dict[int, Session] = {}  # id of conn -> session
        self._waiting: list[Session] = []  # they may be able to go on; appended to by any thread
        self._told = False  # the consumer will look at that without being told again
        self._batch: list[OpResult] | None = None  # on its way to the caller
        self._beneath: list[list[OpResult]] = []  # the batch of the watcher beneath, if there is one
        self._at = 0  # how many of it have been dealt with
        self._expired: list[Request | Session] = []
        self._inside = 0  # the thread that is in wait_io()
        self._outside = 0  # the consumer, while it is not in wait_io() and sure to call it
        self._is_nested = False
        self._over = False  # wait_io() has said that the watcher is closed
        self._ending = threading.RLock()
        super().__init__(swap_size=swap_size, backend=backend)

    # --- the handshake ----------------------------------------------------------------------------------------

    def start_server(self, conn: HasFileno, context: ssl.SSLContext, *, timeout: float | None = 60.0) -> None:
        """Begin the handshake as a server; from now on all that is read from conn and written to it is plain text.

        The first TLS of a connection is this call, and nothing of it may be pending then; but it may have spoken
        without TLS before (STARTTLS). Requests may be submitted at once: they wait for the handshake. `timeout` is in
        seconds, for the whole handshake: then each pending request has a `DeadlineError`. This is no request, and has
        no result of its own: see `handshake()`. Any thread.

        Raises what `Watcher.read()` raises, `UnsupportedConnError` for a connection that speaks TLS already, and
        `TypeError`, `ValueError` or `ssl.SSLError` for a context that cannot be used so.
        """
        self._begin(conn, context, True, None, timeout)

    def start_client(
        self, conn: HasFileno, context: ssl.SSLContext, *, server_hostname: str | None, timeout: float | None = 60.0
    ) -> None:
        """The same as a client. `server_hostname` is told to the server (SNI, RFC 6066), and its certificate must be
        for that name, unless `context.check_hostname` is off; None then, if there is no name.

        It may follow `connect()` at once, and waits for that.
        """
        self._begin(conn, context, False, server_hostname, timeout)

    def handshake(self, conn: HasFileno, *, context: Any = None, timeout: float | None = None) -> None:
        """Ask to be told when the handshake is done: a CONNECT result, which has the error if it has failed.

        It stands in the queue of writes. Nobody has to ask. `context`, `timeout`, threads and errors as in `read()`;
        `UnsupportedConnError` for a plain connection.
        """
        session = self._session(conn)
        if session is None:
            raise UnsupportedConnError(f"no TLS was started for conn: call start_client() or start_server(): {conn!r}")
        self._enqueue(session, session.writes, Request(CONNECT, conn, session, context), timeout)

    def ssl_object(self, conn: HasFileno) -> ssl.SSLObject | None:
        """What tells of the TLS of a connection: `getpeercert()`, `selected_alpn_protocol()`, `version()`, `cipher()`.

        It is for questions only: never read from it or write to it. None for a plain connection. Any thread.
        """
        session = self._session(conn)
        return None if session is None else session.tls

    def _begin(
        self, conn: HasFileno, context: ssl.SSLContext, server: bool, hostname: str | None, timeout: float | None
    ) -> None:
        _vet(timeout)
        if not isinstance(context, ssl.SSLContext):
            raise TypeError(f"context must be an ssl.SSLContext, not {type(context).__name__}")
        if context.check_hostname and not server and not hostname:  # wrap_bio() would check no name at all then
            raise ValueError("check_hostname is on, so server_hostname must be the name of the server")
        if self._session(conn) is not None:
            raise UnsupportedConnError(f"conn speaks TLS already: {conn!r}")
        key, sessions = id(conn), self._sessions
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_side=server, server_hostname=hostname)
        try:
            conn_or_none = weakref.ref(conn, lambda _: sessions.pop(key, None))
        except TypeError:
            raise UnsupportedConnError(f"conn must be a connection such as a socket, not {conn!r}") from None
        session = Session(conn_or_none, self._results, self._waiting.append, incoming, outgoing, tls)
        sessions[key] = session
        try:
            session.reading = ONCE
            Watcher.read(self, conn, context=session)  # delegates it
        except BaseException:
            sessions.pop(key, None)
            raise
        if timeout is not None:
            session.timer = Watcher.after(self, timeout, context=session)
        self._tell(session)

    # --- submit -----------------------------------------------------------------------------------------------

    def read(
        self, conn: HasFileno, buf: Buffer | None = None, *, context: Any = None, timeout: float | None = None
    ) -> None:
        session = self._session(conn)
        if session is None:
            Watcher.read(self, conn, buf, context=context, timeout=timeout)
            return
        memory, length = (None, 0) if buf is None else pin_for_read(buf)
        self._enqueue(session, session.reads, Request(READ, conn, session, context, buf, memory, length), timeout)

    def read_full(
        self, conn: HasFileno, buf: Buffer, *, context: Any = None, timeout: float | None = None
    ) -> None:
        session = self._session(conn)
        if session is None:
            Watcher.read_full(self, conn, buf, context=context, timeout=timeout)
            return
        memory, length = pin_for_read(buf, "read_full")
        request = Request(READ, conn, session, context, buf, memory, length)
        request._goal = length
        self._enqueue(session, session.reads, request, timeout)

    def read_start(self, conn: HasFileno, *, context: Any = None, timeout: float | None = None) -> None:
        session = self._session(conn)
        if session is None:
            Watcher.read_start(self, conn, context=context, timeout=timeout)
            return
        _vet(timeout)
        request = Request(READ, conn, session, context)
        request.more, request.idle = True, timeout
        self._enqueue(session, session.reads, request, None)

    def read_stop(self, conn: HasFileno) -> None:
        session = self._session(conn)
        if session is None:
            Watcher.read_stop(self, conn)
            return
        for request in session.reads.copy():
            if request.more:
                request._goal = STOPPED
        session.stopping = True
        self._tell(session)

    def write(
        self,
        conn: HasFileno,
        buf: Buffer | Sequence[Buffer],
        *,
        context: Any = None,
        timeout: float | None = None,
        address: Any = None,
    ) -> None:
        session = self._sessions.get(id(conn))
        if session is None or session.conn() is not conn or address is not None:
            Watcher.write(self, conn, buf, context=context, timeout=timeout, address=address)
            return
        if (
            (type(buf) is memoryview or type(buf) is bytes)
            and timeout is None
            and self._outside == get_ident()
            and session.write_at_once(self, conn, buf, context)
        ):
            return
        if type(buf) is bytes and buf:
            memory: Any = buf
            length = len(buf)
        else:
            memory, length = memory_for_write(buf)
            if type(memory) is Vector:
                memory = b"".join(buf)  # type: ignore[arg-type]  # a sequence, or it would be no Vector
        self._enqueue(session, session.writes, Request(WRITE, conn, session, context, buf, memory, length), timeout)

    def unsent(self, conn: HasFileno) -> int:
        session = self._session(conn)
        beneath = Watcher.unsent(self, conn)
        if session is None:
            return beneath
        waiting = (request for request in session.writes.copy() if request._queue is not None)
        return beneath + sum(request._length - request._offset for request in waiting)

    def shutdown(self, conn: HasFileno, *, context: Any = None) -> None:
        session = self._session(conn)
        if session is None:
            Watcher.shutdown(self, conn, context=context)
            return
        self._enqueue(session, session.writes, Request(SHUTDOWN, conn, session, context), None)

    def stats(self) -> Stats:
        """The same; of TLS `pending` counts the requests that wait here, and what is under way beneath for them."""
        stats = Watcher.stats(self)
        waiting = sum(len(session.reads) + len(session.writes) for session in list(self._sessions.values()))
        return stats._replace(pending=stats.pending + waiting)

    def detach(self, conn: HasFileno) -> socket:
        if self._session(conn) is not None:
            raise UnsupportedConnError("conn speaks TLS, which a plain socket could not go on with: free() it")
        return Watcher.detach(self, conn)

    def free(self, conn: HasFileno) -> None:
        session = self._session(conn)
        Watcher.free(self, conn)
        if session is not None:
            session.freed = True
            self._tell(session)
            self._sessions.pop(id(conn), None)

    def _session(self, conn: HasFileno) -> Session | None:
        session = self._sessions.get(id(conn))
        return session if session is not None and session.conn() is conn else None

    def _enqueue(self, session: Session, queue: deque[Request], request: Request, timeout: float | None) -> None:
        _vet(timeout)
        if self.closed:
            raise WatcherClosedError(CLOSED)
        queue.append(request)
        try:
            if timeout is not None:
                request.timer = Watcher.after(self, timeout, context=request)
                request.until = monotonic() + timeout
        except WatcherClosedError:
            pass  # closed meanwhile: it is answered with the others
        self._tell(session)
        if self._over:
            with self._ending:
                if request in queue:  # nobody will fetch its result
                    queue.remove(request)
                    raise WatcherClosedError(CLOSED)

    def _tell(self, session: Session) -> None:
        """Have the consumer look at it. The list has a lock of its own, so one of both sees what the other has done."""
        self._waiting.append(session)
        if self._outside != get_ident() and not self._told:
            self._told = True
            try:
                Watcher.post(self, DONE)
            except WatcherClosedError:
                pass  # the consumer will look, as wait_io() has to say so

    # --- harvest ----------------------------------------------------------------------------------------------

    def wait_io(self, timeout: float | None = None) -> list[OpResult]:
        thread = get_ident()
        if self._inside == thread:
            raise RuntimeError("wait_io() was called from within another call, by a signal handler or a finalizer")
        begun, left = monotonic(), timeout
        try:
            self._inside = thread
            self._outside = 0
            if self._batch is not None:
                self._results.update(dict.fromkeys(self._batch))
                self._batch = None
            self._settle()
            while True:
                self._wait_beneath(0 if self._results else left)
                nothing_came = not any(self._beneath)
                self._settle()
                if self._results or nothing_came or left == 0:
                    break
                if timeout is not None:
                    left = max(0.0, timeout - (monotonic() - begun))
            outside = 0 if self._is_nested else thread
            batch = self._batch = list(self._results)
            self._results.clear()
            # No signal handler runs between these stores and the caller: see Watcher.wait_io().
            self._outside = outside
            self._inside = 0
            self._batch = None
            return batch
        except BaseException:
            self._inside = 0
            raise

    def _wait_beneath(self, timeout: float | None) -> None:
        """Fetch a batch: by C code, so that no interruption can lose it."""
        self._at = 0
        try:
            self._beneath.extend(map(Watcher.wait_io, (self,), (timeout,)))
        except WatcherClosedError:
            self._end()
            if not self._results:
                raise

    def fileno(self) -> int:
        self._is_nested = True
        self._outside = 0
        return Watcher.fileno(self)

    def _settle(self) -> None:
        """Deal with what is there: a batch, or the rest of one; then deadlines; then who may be able to go on."""
        batch = self._beneath[0] if self._beneath else []
        while self._at < len(batch):
            result = batch[self._at]
            mine = result.context
            kind = type(mine)
            if kind is Session:
                if result.operation is READ:
                    mine.arrived(result)
                elif result.operation is WRITE:
                    mine.written_at_once(result)
                elif result.error is None:  # TIMER
                    self._expired.append(mine)
            elif kind is Flight:
                mine.session.landed(mine, result.error)
            elif kind is Request and result.operation is SHUTDOWN:
                mine.session.finish(mine, result.error)
            elif kind is Request:
                if result.error is None:  # TIMER
                    self._expired.append(mine)
            elif mine is not DONE:
                self._results[result] = None
            self._at += 1
        self._beneath.clear()
        while self._waiting or self._expired:
            for late in self._expired.copy():
                late.expired()
            self._expired.clear()
            self._told = False
            looked_at = self._waiting.copy()
            for session in looked_at:
                session.go_on(self)
            del self._waiting[: len(looked_at)]

    def _end(self) -> None:
        """The watcher beneath is closed: answer what has never been submitted there."""
        with self._ending:
            self._over = True
            for session in [*self._sessions.values(), *self._waiting]:
                session.fail(WatcherClosedError("the watcher was closed"))
            self._sessions.clear()
