"""One connection that speaks TLS: an SSLObject between what the caller has submitted and what the watcher beneath does.

    write --> writes --> SSLObject --> outgoing BIO --> Watcher.write, a flight at a time
    read  <-- reads  <-- SSLObject <-- incoming BIO <-- Watcher.read_start

Only the consumer calls these methods, so no lock is needed: see gaio/tls.py. Any thread appends to the two queues.

An exception such as KeyboardInterrupt may come between any two bytecodes. What was begun is begun again then, and so
nothing that is done twice may make a difference. Cryptography cannot be done twice: `busy` tells that it was under way,
and that connection fails, with a result for each request.
"""

from __future__ import annotations

import ctypes
import errno
import os
import ssl
from collections import deque
from time import monotonic

from gaio.errors import ConnClosedError, DeadlineError, WatcherClosedError
from gaio.memory import PinnedApart
from gaio.result import READ, SHUTDOWN, STOPPED, WRITE, Operation, OpResult
from gaio.watcher import Watcher

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable
    from typing import Any, Final

    from gaio.timers import Timer

RECORD: Final = 16384  # bytes: the most that a record holds, RFC 8446, 5.1
FLIGHT: Final = 131072  # bytes: when so many are encrypted they leave
FLIGHTS: Final = 2  # of a connection at once: one is on its way while the next one is encrypted

DONE: Final = object()  # the context of a result that is of no use any more

# What of the connection is being read beneath: nothing; what comes next; what comes, again and again.
NOT, ONCE, AGAIN = range(3)


class Request(OpResult):
    """A request of the caller's, in a queue of its session, and once it is finished its result.

    `_queue` is the session until then. `_offset` counts the bytes that have been encrypted, or filled in.
    """

    __slots__ = ("session", "timer", "until", "idle")

    def __init__(
        self, operation: Operation, conn: Any, session: Session, context: Any,
        buffer: Any = None, memory: Any = None, length: int = 0,
    ) -> None:  # fmt: skip
        self.operation = operation
        self.conn = conn
        self.context = context
        self.buffer = buffer
        self.size = self._offset = self._goal = 0
        self.error = None
        self.more = False
        self._connection = "by TLS"
        self._queue = self.session = session
        self._memory = memory
        self._length = length
        self.timer: Timer | None = None  # that ends it
        self.until: float | None = None  # not before that
        self.idle: float | None = None  # of read_start(): its timeout

    def expired(self) -> None:
        self.session.finish(self, DeadlineError("timed out; `size` tells how many bytes had moved"))
        self.session.look_at(self.session)


class Flight:
    """Encrypted bytes that are being written, and how far each request comes with them."""

    __slots__ = ("session", "reached")

    def __init__(self, session: Session, reached: dict[Request, int]) -> None:
        self.session = session
        self.reached = reached


class Session:
    """It holds neither its watcher nor its conn, so that they can be collected. `results` is the watcher's, and is what
    wait_io() will return; `look_at` has the watcher call go_on() of a session soon.
    """

    __slots__ = (
        *("conn", "results", "look_at", "tls", "incoming", "outgoing", "reads", "writes", "plain", "flights"),
        *("reached", "at_once", "timer", "reading", "stream", "greeted", "busy", "freed", "stopping", "stuck"),
        *("has_ended", "failure", "cannot_read", "cannot_write"),
    )

    def __init__(
        self, conn: weakref.ref[Any], results: dict[OpResult, None], look_at: Callable[[Session], None],
        incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, tls: ssl.SSLObject,
    ) -> None:  # fmt: skip
        self.conn = conn
        self.results = results
        self.look_at = look_at
        self.incoming, self.outgoing, self.tls = incoming, outgoing, tls
        self.reads: deque[Request] = deque()
        self.writes: deque[Request] = deque()  # of WRITE, CONNECT and SHUTDOWN
        self.plain = memoryview(b"")  # what came while nobody read
        self.flights: dict[Flight, None] = {}
        self.reached: dict[Request, int] = {}  # of the next flight
        self.at_once: tuple[Any, int, Any] | None = None  # what write_at_once() has on its way: buffer, length, context
        self.timer: Timer | None = None  # of the handshake
        self.reading = NOT
        self.stream: Request | None = None  # the head of `reads`, when each arrival is for that
        self.greeted = False  # the handshake is done
        self.busy = False  # in the middle of what cannot be done again
        self.freed = False
        self.stopping = False  # a request in `reads` is to end
        self.stuck = False  # writing must wait for what the peer says in a renegotiation (TLS 1.2)
        self.has_ended = False  # we have said close_notify
        self.failure: Exception | None = None  # of the handshake: it is told when the alert has left
        self.cannot_read: Exception | None = None
        self.cannot_write: Exception | None = None

    # --- what comes from beneath ------------------------------------------------------------------------------

    def arrived(self, result: OpResult) -> None:
        """A read beneath has brought something, or has ended."""
        if self.busy:
            self.fail(_interrupted())
        self.busy = True
        stream, data = self.stream, b""
        if result.error is not None or not result.size:
            self.read_ended(result.error)
        elif self.cannot_read is None:  # else it stands behind a close_notify
            self.incoming.write(result.buffer)
            if self.greeted:
                data = self.decrypt(result.size)
        if data and stream is not None:
            result.buffer = memoryview(data)
            result.size = len(data)
            result.context = stream.context  # from now on it is the caller's result, also when this is done again
            self.results[result] = None
        else:
            self.plain = memoryview(bytes(self.plain) + data) if data else self.plain
            result.context = DONE
        if stream is None or self.cannot_read is not None or self.outgoing.pending:
            self.look_at(self)
        if not result.more:
            self.reading = NOT
            self.stream = None
            self.look_at(self)
        self.busy = False

    def read_ended(self, error: Exception | None) -> None:
        """By read_stop(), a timeout, at the end of the stream, or by an error."""
        if error is None or isinstance(error, DeadlineError):
            if self.stream is not None:  # else the timer of that request tells
                self.finish(self.stream, error)
        elif self.cannot_read is None and isinstance(error, EOFError):
            self.incoming.write_eof()
            if self.greeted:
                self.plain = memoryview(bytes(self.plain) + self.decrypt(RECORD + 1))
        else:
            self.cannot_read = self.cannot_read or error
            self.failure = self.failure or (None if self.greeted else error)

    def decrypt(self, size: int) -> bytes:
        """All that has come. One record that is shorter than `size`, as a rule: it is faster where that is known."""
        parts = []
        try:
            part = self.tls.read(size)
            if 0 < len(part) < size and not self.incoming.pending:  # OpenSSL takes no more from there than it needs
                return part
            while part:
                parts.append(part)
                part = self.tls.read(RECORD)
            raise ssl.SSLZeroReturnError
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:  # close_notify
            self.cannot_read = EOFError("the peer has closed its side: there is nothing more to read")
        except ssl.SSLError as error:
            self.cannot_read = error
            if not isinstance(error, ssl.SSLEOFError):
                self.cannot_write = self.cannot_write or error
        return b"".join(parts)

    def written_at_once(self, result: OpResult) -> None:
        if result.error is not None:
            self.cannot_write = self.cannot_write or result.error
        if self.writes:
            self.look_at(self)
        if self.at_once is not None:
            result.buffer, length, context = self.at_once
            result.size = length if result.error is None else 0
            result.context = context  # from now on it is the caller's result, also when this is done again
            self.results[result] = None
            self.at_once = None

    def landed(self, flight: Flight, error: Exception | None) -> None:
        """A flight has been written, or has failed."""
        if error is not None:
            self.cannot_write = self.cannot_write or error
            self.failure = self.failure or (None if self.greeted else error)
        self.flights.pop(flight, None)
        if self.writes or self.failure is not None:
            self.look_at(self)
        for request, offset in flight.reached.items():
            if error is None and request._queue is not None:
                request.size = offset
            if error is not None or offset == request._length:
                self.finish(request, error)

    def expired(self) -> None:
        if not self.greeted:
            self.fail(DeadlineError("timed out in the handshake"))

    # --- one step ---------------------------------------------------------------------------------------------

    def go_on(self, watcher: Watcher) -> None:
        """Do what can be done now: shake hands, write, deliver, read. In vain it does nothing."""
        conn = self.conn()
        if conn is None:
            return  # collected, as nothing was pending
        if self.busy:
            self.fail(_interrupted())
        self.busy = True
        try:
            if self.freed:
                raise ConnClosedError("free() was called for this connection")
            if not self.greeted:
                self.shake_hands(watcher, conn)
            if self.greeted or self.cannot_write is not None:
                self.write(watcher, conn)
            if self.stopping:
                self.stop(watcher, conn)
            self.deliver()
            self.read(watcher, conn)
        except ConnClosedError as error:  # another thread may have freed it
            self.fail(error)
        except WatcherClosedError:
            pass  # wait_io() will answer all that is left
        self.busy = False

    def shake_hands(self, watcher: Watcher, conn: Any) -> None:
        if self.failure is None:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:
                self.failure = error
            else:
                self.greeted = True
                if self.timer is not None:
                    self.timer.cancel()
                self.plain = memoryview(self.decrypt(RECORD + 1))  # what came right behind it
            self.send(watcher, conn)
        if self.failure is not None and not self.flights:
            self.fail(self.failure)

    def write(self, watcher: Watcher, conn: Any) -> None:
        """Encrypt what has been submitted, as long as it is soon on its way."""
        writes = self.writes
        self.stuck = False
        while writes and (len(self.flights) < FLIGHTS or self.cannot_write is not None):
            request = writes[0]
            if self.cannot_write is not None:
                self.finish(request, self.cannot_write)
            elif request._queue is None:
                pass  # it has timed out
            elif request.operation is SHUTDOWN and self.say_end():
                self.send(watcher, conn)
                Watcher.shutdown(watcher, conn, context=request)
            elif request.operation is SHUTDOWN or (request.operation is WRITE and not self.encrypt(request)):
                self.stuck = self.cannot_write is None
                if self.stuck:
                    break
                continue
            else:
                self.reached[request] = request._offset
                if self.outgoing.pending >= FLIGHT:
                    self.send(watcher, conn)
                if request._offset < request._length:
                    continue
            writes.popleft()
        self.send(watcher, conn)

    def encrypt(self, request: Request) -> bool:
        """A record of it; whether that was possible."""
        memory, offset = request._memory, request._offset
        if type(memory) is not bytes:
            memory = ctypes.string_at(memory.address + offset, min(RECORD, request._length - offset))
        elif request._length > RECORD:
            memory = memory[offset : offset + RECORD]
        try:
            if self.has_ended:
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
            request._offset += self.tls.write(memory)
        except ssl.SSLWantReadError:
            return False
        except OSError as error:  # an SSLError as a rule
            self.cannot_write = error
            return False
        return True

    def write_at_once(self, watcher: Watcher, conn: Any, buffer: memoryview | bytes, context: Any) -> bool:
        """The short way of a small write, when nothing waits; whether it has gone."""
        length = buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)
        if (
            not (self.greeted and 0 < length <= RECORD)
            or self.at_once is not None
            or self.flights
            or self.busy
            or self.writes
            or self.has_ended
            or self.freed
            or self.cannot_write is not None
            or (type(buffer) is memoryview and not buffer.c_contiguous)
        ):
            return False
        self.busy = True
        try:
            self.tls.write(buffer)
        except ssl.SSLError:  # it wants to read, or will say so again
            self.busy = False
            return False
        self.at_once = buffer, length, context
        try:
            Watcher.write(watcher, conn, self.outgoing.read(), context=self)
        except (ConnClosedError, WatcherClosedError):
            self.at_once = None
            self.busy = False
            raise
        self.busy = False
        return True

    def say_end(self) -> bool:
        """close_notify; whether it could be said, if ever it can."""
        try:
            self.tls.unwrap()
        except ssl.SSLError as error:  # it wants that of the peer as well, or there is no TLS any more
            if error.reason == "SHUTDOWN_WHILE_IN_INIT":
                return False
        self.has_ended = True
        return True

    def send(self, watcher: Watcher, conn: Any) -> None:
        """Have what is encrypted written."""
        data = self.outgoing.read()
        if data:
            flight = Flight(self, self.reached)
            self.flights[flight] = None
            self.reached = {}
            Watcher.write(watcher, conn, data, context=flight)
        elif self.reached:
            for request in self.reached:
                self.finish(request, None)
            self.reached = {}

    def stop(self, watcher: Watcher, conn: Any) -> None:
        """End what read_stop() was called for."""
        self.stopping = False
        for request in self.reads.copy():
            if request._goal != STOPPED or request._queue is None:
                pass
            elif request is self.stream:
                Watcher.read_stop(watcher, conn)  # what has arrived comes before
            else:
                self.finish(request, None)

    def deliver(self) -> None:
        """Give what came while nobody read to those who read, or the end."""
        reads = self.reads
        while reads and (self.plain or self.cannot_read is not None or reads[0]._queue is None):
            request, plain = reads[0], self.plain
            if request._queue is None:
                pass  # it has timed out, or was stopped
            elif not plain:
                self.finish(request, self.cannot_read)
            elif request.more:
                arrival = Request(READ, request.conn, self, request.context, plain)
                arrival.size, arrival.more, arrival._queue = len(plain), True, None
                self.results[arrival] = None
                self.plain = plain[:0]
                continue
            elif not request._length:
                request.buffer, request.size = plain, len(plain)
                self.plain = plain[:0]
                self.finish(request, None)
            else:
                count = min(len(plain), request._length - request._offset)
                ctypes.memmove(request._memory.address + request._offset, bytes(plain[:count]), count)
                request.size = request._offset = request._offset + count
                self.plain = plain[count:]
                if request._offset < request._goal:
                    continue
                self.finish(request, None)
            reads.popleft()

    def read(self, watcher: Watcher, conn: Any) -> None:
        """Have that read which somebody waits for, and nothing else."""
        if self.cannot_read is not None:
            if self.reading == AGAIN:
                Watcher.read_stop(watcher, conn)
        elif self.reading != NOT or self.failure is not None:
            pass
        elif not self.greeted:
            self.reading = ONCE
            Watcher.read(watcher, conn, context=self)
        elif self.reads and self.reads[0].more:
            self.reading = AGAIN
            self.stream = self.reads[0]
            Watcher.read_start(watcher, conn, context=self, timeout=self.stream.idle)
        elif self.reads or (self.stuck and not self.plain):
            self.reading = ONCE
            until = self.reads[0].until if self.reads else None
            Watcher.read(
                watcher, conn, context=self, timeout=None if until is None else max(0.0, until - monotonic())
            )

    # --- results ----------------------------------------------------------------------------------------------

    def fail(self, error: Exception) -> None:
        """Answer all that is pending."""
        self.cannot_read = self.cannot_read or error
        self.cannot_write = self.cannot_write or error
        self.stream = None
        if self.timer is not None:
            self.timer.cancel()
        for requests in (*(flight.reached for flight in self.flights), self.reached):
            for request in requests:
                self.finish(request, self.cannot_write)
        for queue, why in ((self.writes, self.cannot_write), (self.reads, self.cannot_read)):
            while queue:
                self.finish(queue[0], why)
                queue.popleft()

    def finish(self, request: Request, error: Exception | None) -> None:
        """Its result, if it has none yet."""
        if request._queue is None:
            return
        request.error = error
        request.more = False
        if type(request._memory) is PinnedApart:
            request._memory.release()
        request._memory = None
        if request.timer is not None:
            request.timer.cancel()
        self.results[request] = None
        request._queue = None


def _interrupted() -> ssl.SSLError:
    return ssl.SSLError("an exception such as KeyboardInterrupt came in the middle of TLS: bytes are lost")
