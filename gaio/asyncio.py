"""An event loop for asyncio whose stream transports, of TCP and Unix sockets, stand on a Watcher.

    asyncio.run(main(), loop_factory=gaio.asyncio.new_event_loop)   # Python 3.12
    gaio.asyncio.run(main())                                        # any

Everything else is the selector loop of the standard library: TLS, subprocesses, signals, datagrams, pipes,
add_reader(), sock_recv() and its like, executors. docs/asyncio.md tells what is faster, and what is not.

How it works
    The loop waits in `Watcher.wait_io()`, see gaio/selector.py. Each result is handed to its transport, a whole batch
    in one callback of the loop: another thread that computes takes the interpreter lock away once a batch, and not
    with each system call.
    A transport reads by `read_start()`. It sends by itself; what the kernel does not take is for `Watcher.write()`.
    A loop makes its watcher with its first transport, and the watcher has no thread.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import socket
import sys
import warnings
from asyncio import constants, sslproto, trsock
from asyncio.base_events import _set_nodelay  # type: ignore[attr-defined]  # private, and so not known to typeshed
from asyncio.log import logger
from asyncio.transports import _FlowControlMixin
from contextvars import Context

from gaio.errors import UnsupportedConnError
from gaio.platform._libc import SEND_FLAGS, send
from gaio.result import READ
from gaio.selector import WatcherSelector, context_or_copy, fill

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable
    from typing import Any, TypeVar

    from gaio.result import OpResult
    from gaio.types import BackendName
    from gaio.watcher import Watcher

    _T = TypeVar("_T")

__all__ = ("EventLoop", "new_event_loop", "run")

_CANNOT_WRITE = "Fatal write error on socket transport"
_SOON_LIMIT = 65536  # bytes: more than these leave at once, see gaio/selector.py

# Server._attach() and _detach() are told the transport from Python 3.13 on, for close_clients().
_SERVER_KNOWS_CLIENTS = sys.version_info >= (3, 13)


def new_event_loop() -> EventLoop:
    """A new event loop, for whatever takes a factory of these."""
    return EventLoop()


def run(main: Coroutine[Any, Any, _T], *, debug: bool | None = None) -> _T:
    """asyncio.run() on such a loop, for any version of Python. It returns and raises what that does."""
    if sys.version_info >= (3, 11):
        with asyncio.Runner(debug=debug, loop_factory=new_event_loop) as runner:
            return runner.run(main)
    policy, ours = asyncio.get_event_loop_policy(), asyncio.DefaultEventLoopPolicy()
    ours._loop_factory = new_event_loop  # the attribute that its new_event_loop() calls
    asyncio.set_event_loop_policy(ours)
    try:
        return asyncio.run(main, debug=debug)
    finally:
        asyncio.set_event_loop_policy(policy)


class EventLoop(asyncio.SelectorEventLoop):
    """The selector event loop of asyncio, with stream transports of its own.

    `backend` names the kernel interface, as that of a `Watcher`. Raises `ValueError` for an unknown one. The watcher is
    opened with the first transport, and so is whatever that raises raised there. As every loop of asyncio it belongs to
    the thread that runs it.
    """

    def __init__(self, *, backend: BackendName | None = None) -> None:
        self._waits = WatcherSelector(self, backend)
        super().__init__(self._waits)

    @property
    def watcher(self) -> Watcher | None:
        """What this loop waits in, for its `backend` and `stats()`: None before the first connection."""
        return self._waits.watcher

    def run_forever(self) -> None:
        try:
            super().run_forever()
        finally:
            self._waits.settle()

    def close(self) -> None:
        if not (self.is_running() or self.is_closed()):  # else the call below raises, or does nothing
            self._waits.end()
        super().close()

    # The next two are what asyncio calls for the transport of a connected socket, without TLS and with it. They have no
    # public name. tests/asyncio_loop/test_private_hooks.py looks after all that is private here.

    def _make_socket_transport(self, sock: Any, protocol: Any, waiter: Any = None, **options: Any) -> Any:
        standard: Any = super()
        standard._ensure_fd_no_transport(sock)
        try:
            return _StreamTransport(self, sock, protocol, waiter, **options)
        except UnsupportedConnError:  # what is no stream, or no socket at all
            return standard._make_socket_transport(sock, protocol, waiter, **options)

    def _make_ssl_transport(
        self, rawsock: Any, protocol: Any, sslcontext: Any, waiter: Any = None, *,
        extra: Any = None, server: Any = None, context: Context | None = None, **options: Any,
    ) -> Any:
        standard: Any = super()
        standard._ensure_fd_no_transport(rawsock)
        ssl_protocol: Any = sslproto.SSLProtocol(self, protocol, sslcontext, waiter, **options)
        _StreamTransport(self, rawsock, ssl_protocol, None, extra, server, context)
        return ssl_protocol._app_transport


class _StreamTransport(_FlowControlMixin):
    """The transport of one connected stream socket."""

    __slots__ = (
        *("_waits", "_sock", "_sock_fd", "_protocol", "_server", "_context", "_reading", "_reads_in", "_plain"),
        *("_paused", "_held", "_end", "_unsent", "_writes_in", "_eof", "_empty_waiter", "_closing", "_conn_lost"),
        *("__weakref__", "__dict__"),  # programs set attributes of their own
    )
    if TYPE_CHECKING:  # of the classes above, and not known to the type checker
        _loop: Any
        _extra: dict[str, Any]
        _low_water: int
        _high_water: int
        _protocol_paused: bool

        def _maybe_pause_protocol(self) -> None: ...
        def _maybe_resume_protocol(self) -> None: ...

    # What loop.start_tls() and loop.sendfile() ask, who also take `_sock`, `_sock_fd` and the empty waiter.
    _start_tls_compatible = True
    _sendfile_compatible = constants._SendfileMode.TRY_NATIVE

    def __init__(
        self, loop: Any, sock: socket.socket, protocol: Any, waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None, server: Any = None, context: Context | None = None,
    ) -> None:
        self._sock: Any = None  # for __del__(), should the next call raise
        loop._waits.begin()._delegation.share(sock)
        super().__init__(extra, loop)
        self._waits: Any = loop._waits
        self._extra["socket"] = trsock.TransportSocket(sock)
        self._waits.add_names(sock, self._extra)
        self._sock, self._sock_fd = sock, sock.fileno()
        self._protocol = protocol
        self._server = server
        self._context = context  # from Python 3.15 on: that of all callbacks
        self._reading = False  # a read_start() has not ended yet
        self._reads_in: Any = None  # the context in which the protocol is told what has been read
        self._plain = False  # its data_received() may be called without further ado
        self._paused = False
        self._held: list[bytes] | None = None  # what arrived when reading was paused, and
        self._end: Exception | None = None  # what ended it then
        self._unsent = 0  # bytes of what the watcher has been given to write
        self._writes_in: Any = None  # the context of what follows that
        self._eof = False
        self._empty_waiter: asyncio.Future[None] | None = None
        self._closing = False
        self._conn_lost = 0  # more than 0: connection_lost() has been scheduled
        if server is not None:
            server._attach(*(self,) * _SERVER_KNOWS_CLIENTS)
        loop._transports[self._sock_fd] = self
        _set_nodelay(sock)
        loop.call_soon(protocol.connection_made, self, context=context)
        loop.call_soon(self._begin_reading, context=context)
        if waiter is not None:
            loop.call_soon(_set_result, waiter, context=context)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol
        self._choose()

    def get_protocol(self) -> Any:
        return self._protocol

    def __repr__(self) -> str:
        text = "closed " if self._sock is None else "closing " if self._closing else ""
        text += f"fd={self._sock_fd}"
        if self._loop is not None and not self._loop.is_closed():
            size = self.get_write_buffer_size()
            text += f" read={'polling' if self._reading else 'idle'} "
            text += f"write=<{'polling' if size else 'idle'}, bufsize={size}>"
        return f"<{type(self).__name__} {text}>"

    # --- reading --------------------------------------------------------------------------------------------------

    def _begin_reading(self) -> None:
        if not self.is_reading():
            return
        self._reads_in = context_or_copy(self._context)
        self._choose()
        if not self._reading:
            self._reading = True
            self._waits.watcher.read_start(self._sock, context=self)

    def _choose(self) -> None:
        held = self._held is not None or self._end is not None
        self._plain = self.is_reading() and not (held or isinstance(self._protocol, asyncio.BufferedProtocol))

    def is_reading(self) -> bool:
        return not (self._closing or self._paused)

    def pause_reading(self) -> None:
        if self.is_reading():
            self._paused = True
            self._stop_reading(for_good=False)
            if self._loop.get_debug():
                logger.debug("%r pauses reading", self)

    def _stop_reading(self, for_good: bool) -> None:
        self._closing = for_good
        self._plain = False
        watcher = self._waits.open_watcher()
        if self._reading and watcher is not None:
            watcher.read_stop(self._sock)

    def resume_reading(self) -> None:
        if self._closing or not self._paused:
            return
        self._paused = False
        if self._held is not None or self._end is not None:
            self._reads_in = context_or_copy(self._context)
            self._go_on_reading_soon()
        else:
            self._begin_reading()
        if self._loop.get_debug():
            logger.debug("%r resumes reading", self)

    def _go_on_reading_soon(self) -> None:
        self._loop.call_soon(self._go_on_reading, context=self._reads_in)

    def _go_on_reading(self) -> None:
        """The next step of delivering what was held back, as if each had taken a system call of its own."""
        if not self.is_reading():
            return
        if self._held or self._end is not None:
            try:
                if self._held:
                    self._deliver(self._held.pop(0))
                elif self._end is not None:
                    self._ended(self._end)
                    self._held = self._end = None
            finally:  # KeyboardInterrupt may come out of it
                self._go_on_reading_soon()
        elif self._held is not None:
            self._held = None
            self._begin_reading()

    def _arrived(self, view: memoryview) -> None:
        """The same of bytes that cannot be given to data_received() at once."""
        if self._paused or self._held is not None:
            self._held = [*(self._held or ()), bytes(view)]
        elif not self._closing:
            try:
                self._reads_in.run(self._deliver, view)
            finally:
                if self._held:
                    self._go_on_reading_soon()

    def _deliver(self, data: Any) -> None:
        protocol = self._protocol
        if not isinstance(protocol, asyncio.BufferedProtocol):
            self._tell("data_received", bytes(data))
            return
        failed = "Fatal error: protocol.get_buffer() call failed."
        try:
            buffer: Any = protocol.get_buffer(-1)
            if not len(buffer):
                raise RuntimeError("get_buffer() returned an empty buffer")
            failed = "Fatal read error on socket transport"
            size = fill(buffer, data)
            data = data[size:]
            failed = "Fatal error: protocol.buffer_updated() call failed."
            protocol.buffer_updated(size)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001
            self._fatal_error(error, failed)
        finally:
            if data:  # for the next turn: before it comes what the protocol has called soon
                self._held = [bytes(data), *(self._held or ())]
                self._plain = False

    def _tell(self, call: str, *arguments: Any) -> Any:
        try:
            return getattr(self._protocol, call)(*arguments)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001
            self._fatal_error(error, f"Fatal error: protocol.{call}() call failed.")

    def _finished(self, result: OpResult) -> None:
        """A request of it has ended: a write, or read_start()."""
        if result.operation is not READ:
            self._writes_in.run(self._written, result)
            return
        self._reading = False
        if self._closing:
            return
        if result.error is None:  # it was stopped
            if self._held is None:
                self._reads_in.run(self._begin_reading)
            return
        self._end = result.error
        self._plain = False
        if not self._paused:
            # In the next turn of the loop: before it comes what waits for the bytes that were in the same batch, such
            # as a task that is to answer.
            self._go_on_reading_soon()

    def _ended(self, error: Exception) -> None:
        if type(error) is not EOFError:
            self._fatal_error(error, "Fatal read error on socket transport")
            return
        if self._loop.get_debug():
            logger.debug("%r received EOF", self)
        if not self._tell("eof_received"):
            self.close()

    # --- writing --------------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if type(data) is not bytes:
            if not isinstance(data, (bytes, bytearray, memoryview)):
                raise TypeError(f"data argument must be a bytes-like object, not {type(data).__name__!r}")
            data = bytes(data)
        if self._eof:
            raise RuntimeError("Cannot call write() after write_eof()")
        if self._empty_waiter is not None:
            raise RuntimeError("unable to write; sendfile is in progress")
        if not data:
            return
        if self._conn_lost:
            if self._conn_lost >= constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES:
                logger.warning("socket.send() raised exception.")
            self._conn_lost += 1
        elif self._unsent:
            self._queue(data)
        elif not self._waits.sends_together:
            self._send(data)
        elif len(data) <= _SOON_LIMIT and self not in self._waits.leaving:
            self._waits.leaving[self] = data
        else:
            self._send(self._waits.leaving.pop(self, b"") + data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def _send(self, data: bytes) -> None:
        # With the interpreter lock held: to let go of it for each message is to wait 5 ms for it where another thread
        # computes. A C int has the length: what is cut off is left for _sent().
        sent = send(self._sock_fd, data, len(data) & 0x7FFFFFFF, SEND_FLAGS)
        if sent != len(data):
            self._sent(data, sent if sent >= 0 else -ctypes.get_errno())

    def _sent(self, data: bytes, outcome: int) -> None:
        """So many bytes have left, or none for that -errno."""
        if outcome < 0 and -outcome not in (errno.EAGAIN, errno.EINTR):
            self._fatal_error(OSError(-outcome, os.strerror(-outcome)), _CANNOT_WRITE)
        elif outcome < len(data):
            self._queue(memoryview(data)[max(0, outcome) :])

    def _flush(self) -> None:
        """Send what was to leave with the end of this turn of the loop."""
        data = self._waits.leaving.pop(self, None)
        if data is not None and self._waits.open_watcher() is not None:  # else the parent of this child sends it
            self._send(data)

    def _queue(self, data: bytes | memoryview) -> None:
        """Have the watcher write what the kernel does not take now."""
        if not self._unsent:
            self._writes_in = context_or_copy(self._context)
        # In two parts: the result of the first tells that what is left has fallen to the low mark.
        high = max(0, len(data) - self._low_water)
        for part in (data[:high], data[high:]) if high and self._low_water else (data,):
            self._waits.watcher.write(self._sock, part, context=self)
        self._unsent += len(data)
        if self._unsent > self._high_water and not self._protocol_paused:  # else not asked: that takes time
            self._maybe_pause_protocol()

    def _written(self, result: OpResult) -> None:
        if self._conn_lost:
            return
        if result.error is not None:
            self._unsent = 0
            self._fatal_error(result.error, _CANNOT_WRITE)
            if self._empty_waiter is not None:
                self._empty_waiter.set_exception(result.error)
            return
        self._unsent -= result.size
        self._maybe_resume_protocol()  # which may write more
        if self._unsent:
            return
        if self._empty_waiter is not None:
            self._empty_waiter.set_result(None)
        if self._closing:
            self._conn_lost = 1
            self._call_connection_lost(None)
        elif self._eof:
            self._sock.shutdown(socket.SHUT_WR)

    def get_write_buffer_size(self) -> int:
        if self._conn_lost:
            return 0
        self._flush()
        return int(self._waits.watcher.unsent(self._sock)) if self._unsent else 0

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if self._closing or self._eof:
            return
        self._flush()
        self._eof = True
        if not self._unsent:
            self._sock.shutdown(socket.SHUT_WR)

    def _make_empty_waiter(self) -> Any:
        if self._empty_waiter is not None:
            raise RuntimeError("Empty waiter is already set")
        self._flush()
        self._empty_waiter = waiter = self._loop.create_future()
        if not self._unsent:
            waiter.set_result(None)
        return waiter

    def _reset_empty_waiter(self) -> None:
        self._empty_waiter = None

    # --- the end --------------------------------------------------------------------------------------------------

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._flush()
        if not self._closing:
            self._stop_reading(for_good=True)
            if not self._unsent:
                self._lose(None)

    def abort(self) -> None:
        self._flush()
        self._force_close(None)

    def _force_close(self, error: BaseException | None) -> None:
        if not self._conn_lost:
            self._waits.leaving.pop(self, None)
            self._unsent = 0
            if not self._closing:
                self._stop_reading(for_good=True)
            self._lose(error)

    def _lose(self, error: BaseException | None) -> None:
        self._conn_lost += 1
        self._loop.call_soon(self._call_connection_lost, error, context=self._context)

    def _fatal_error(self, error: BaseException, message: str) -> None:
        if isinstance(error, OSError):
            if self._loop.get_debug():
                logger.debug("%r: %s", self, message, exc_info=error)
        else:
            report = {"message": message, "exception": error, "transport": self, "protocol": self._protocol}
            self._loop.call_exception_handler(report)
        self._force_close(error)

    def _call_connection_lost(self, error: BaseException | None) -> None:
        try:
            self._protocol.connection_lost(error)
        finally:
            self._free()
            self._protocol = self._loop = None
            server, self._server = self._server, None
            if server is not None:
                server._detach(*(self,) * _SERVER_KNOWS_CLIENTS)
            if self._empty_waiter is not None:
                self._empty_waiter.set_exception(ConnectionError("Connection is closed by peer"))

    def _free(self) -> None:
        """Have the socket closed."""
        sock, self._sock = self._sock, None
        self._waits.free(sock)

    def __del__(self, _warn: Any = warnings.warn) -> None:
        if self._sock is not None:
            _warn(f"unclosed transport {self!r}", ResourceWarning, source=self)
            self._free()
            if self._server is not None and _SERVER_KNOWS_CLIENTS:
                self._server._detach(self)


def _set_result(waiter: asyncio.Future[None]) -> None:
    if not waiter.cancelled():
        waiter.set_result(None)
