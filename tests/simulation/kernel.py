"""What the simulated kernel does with a request that was started: the attempts, each of which the seed decides."""

from __future__ import annotations

import ctypes
import errno
import socket
from typing import TYPE_CHECKING, Any

from gaio.memory import Vector, iovec
from gaio.platform import CANCELLED, DATAGRAM, FILE, SOCKET, TRUNCATED, _sockaddr
from gaio.result import ACCEPT, CONNECT, READ, SHUTDOWN, WRITE, Operation
from tests.simulation.model import OUT_OF_DESCRIPTORS, Chance, Link, Record, Violation

if TYPE_CHECKING:
    from tests.simulation.world import World

# What each call may say beside success, from its man page; CANCELLED: the kernel cancels unasked.
_EVERY = ("EINTR", "ECANCELED", "EIO", "EBADF", "ENOMEM", "EINVAL")
_ERRORS: dict[Operation, tuple[str, ...]] = {
    READ: (*_EVERY, "EAGAIN", "ENOBUFS", "ECONNRESET", "ETIMEDOUT", "EHOSTUNREACH", "ENOTCONN", "ECONNREFUSED"),
    WRITE: (*_EVERY, "EAGAIN", "ENOBUFS", "EPIPE", "ECONNRESET", "EMSGSIZE", "ENETDOWN", "EDESTADDRREQ", "EPERM"),
    ACCEPT: (
        *_EVERY,
        *("EAGAIN", "ECONNABORTED", "EPROTO", "ENETDOWN", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH", "ENOPROTOOPT"),
        *("EOPNOTSUPP", "EMFILE", "EMFILE", "ENFILE", "ENOBUFS", "EPERM"),
    ),
    CONNECT: (*_EVERY, "EAGAIN", "ECONNREFUSED", "ETIMEDOUT", "ENETUNREACH", "EALREADY", "EISCONN", "EADDRINUSE"),
    SHUTDOWN: (*_EVERY, "ENOTCONN", "ENOBUFS"),
}
ERRORS = {
    operation: (CANCELLED, CANCELLED, *(-getattr(errno, name) for name in names))
    for operation, names in _ERRORS.items()
}
SWAP_READ = 300  # the most bytes that a read without a buffer gets


class Flight:
    """A request that was started and has not come back."""

    __slots__ = ("request", "record", "joined", "cancelling", "parked", "answer", "view", "taken", "memory")

    def __init__(self, request: Any) -> None:
        self.request = request
        self.record: Record = request.context
        self.joined: list[Record] = []  # writes that leave with it
        self.cancelling = False
        self.parked = False  # until a buffer is given back
        self.answer: int | None = None
        self.view: memoryview | None = None
        self.taken: list[bytearray] = []  # swap memory, also where it was for nothing
        self.memory: Any = None  # of a write, while the kernel itself has its address


class OwnMemory(bytearray):
    """No swap memory: of a read that was cancelled, and for which there was no buffer."""

    __slots__ = ()


class Kernel:
    """See above. Of a request that repeats, what comes is appended to `arrivals` at once."""

    def __init__(self, world: World, chance: Chance) -> None:
        self.arrivals: list[tuple[Any, Any]] = []
        self.full = False
        self.world = world
        self.chance = chance
        self.holds = chance.happens(0.5)  # as io_uring does
        self.at_once = chance.one_of((0.0, 0.3, 0.9))  # how often a request is tried when it is started
        self.later = chance.one_of((0.3, 0.8, 1.0))  # how often in each wait
        self.comes_back = chance.one_of((0.4, 0.9, 1.0))  # how often what is answered comes back with a wait
        self.whole = chance.one_of((0.1, 0.6, 1.0))  # how often as many bytes move as can
        self.fails = chance.one_of((0.0, 0.03, 0.15))
        self.prompt = False  # everything is answered at once and nothing fails
        # Swap memory: free buffers, those that have come back since the last lend(), and those given back, which are
        # kept because writes may be begun from them.
        self.free = chance.one_of((1, 2, 1000))
        self.taken: list[bytearray] = []
        self.given_back: list[bytearray] = []
        self.strikes = 0  # KeyboardInterrupt when this is counted down to 0

    def strike(self) -> None:
        if self.strikes:
            self.strikes -= 1
            if not self.strikes:
                self.world.interrupted()

    def answer(self, flight: Flight, number: int) -> None:
        record, now = flight.record, self.world.clock
        flight.answer = number
        self.world.note("answer", record, number)
        if record.operation is not WRITE or number <= 0:
            record.answer(number, now)
            return
        for written in (record, *flight.joined):
            part = min(number, written.goal - written.moved)
            if part:
                written.answer(part, now)
                number -= part
        if number:
            raise Violation(f"{record} was written beyond its end")

    def end(self, flight: Flight) -> None:
        """It is cancelled: with its result, if what it needs is there by now."""
        flight.parked = False
        flight.cancelling = True
        self.attempt(flight)
        if flight.answer is None:
            says_eagain = flight.record.operation <= ACCEPT and self.chance.happens(0.3)
            self.answer(flight, -errno.EAGAIN if says_eagain else CANCELLED)

    def attempt(self, flight: Flight) -> None:
        """One attempt, or several of what repeats: it is answered, or goes on waiting."""
        if flight.parked:
            return
        record = flight.record
        operation = record.operation
        if record.repeats:
            self._bring(flight)
        elif not self.prompt and self.chance.happens(self.fails):
            self._fail(flight)
        elif operation is READ:
            self._read(flight, record.link)
        elif operation is WRITE:
            self._write(flight, record.link)
        elif operation is ACCEPT:
            if record.link.backlog:
                record.link.backlog -= 1
                self.answer(flight, self.world.new_descriptor())
        elif operation is SHUTDOWN or self.prompt or self.chance.happens(0.5):
            self.answer(flight, 0)

    def _fail(self, flight: Flight) -> None:
        operation = flight.record.operation
        if flight.record.repeats and operation is ACCEPT and self.chance.happens(0.4):
            self.answer(flight, self.chance.one_of(OUT_OF_DESCRIPTORS))
            return
        if flight.request._memory is None and operation is READ and self.free and self.chance.happens(0.3):
            self._take_buffer(flight.taken, b"")  # for nothing
        self.answer(flight, self.chance.one_of(ERRORS[operation]))

    def _bring(self, flight: Flight) -> None:
        """What has arrived for a request that repeats, or some of it, and perhaps its end right behind that."""
        chance, record = self.chance, flight.record
        for _ in range(100 if self.prompt else chance.between(1, 3)):
            if self.full and not (flight.cancelling and chance.happens(0.5)):
                return
            if not self.prompt and chance.happens(self.fails):
                self._fail(flight)
                return
            if record.operation is ACCEPT:
                if not record.link.backlog:
                    return
                record.link.backlog -= 1
                fd = self.world.new_descriptor()
                self._arrive(flight, fd, fd)
            else:
                data = self._there(record.link, SWAP_READ)
                if data is None:
                    return
                if not data and record.link.kind != DATAGRAM:
                    self.answer(flight, 0)
                    return
                view = self._swap_view(flight, data, self.taken)
                if view is None:
                    return
                shown: Any = view
                if record.link.keeps_boundaries():
                    sender, is_cut_off = record.link.next_sender(), len(record.link.messages[0]) > len(data)
                    record.senders.append((sender, is_cut_off))
                    shown = view, _sockaddr.pack(socket.AF_INET, sender), is_cut_off
                self._consume(record.link, data)
                self._arrive(flight, data, shown)
            self.strike()

    def _arrive(self, flight: Flight, what: bytes | int, shown: Any) -> None:
        self.world.note("arrival", flight.record, f"of {len(what)} bytes" if isinstance(what, bytes) else what)
        flight.record.arrive(what, self.world.clock)
        self.arrivals.append((flight.request, shown))

    def _read(self, flight: Flight, link: Link) -> None:
        request = flight.request
        memory = request._memory
        data = self._there(link, SWAP_READ if memory is None else request._length - request._offset)
        if data is None:
            return
        if data:
            if memory is None:
                flight.view = self._swap_view(flight, data, flight.taken)
                if flight.view is None:
                    return
                if type(flight.view.obj) is OwnMemory:
                    request._length = len(data)
            else:
                ctypes.memmove(memory.address + request._offset, data, len(data))
        is_cut_off = bool(link.messages) and len(link.messages[0]) > len(data)
        if link.messages:
            flight.record.sender = link.next_sender()
            request._sender = _sockaddr.pack(socket.AF_INET, flight.record.sender)
        self._consume(link, data)
        self.answer(flight, TRUNCATED - len(data) if is_cut_off else len(data))

    def _there(self, link: Link, left: int) -> bytes | None:
        """What a read gets, with room for so many bytes; None while there is nothing, not even the end."""
        if not link.has_something_to_read():
            return None
        if link.keeps_boundaries():
            return link.messages[0][:left] if link.messages else b""  # what is longer is cut off
        size = min(left, link.sent - link.taken)
        if size and not (self.prompt or self.chance.happens(self.whole)):
            size = self.chance.between(1, size)
        return link.stretch(link.taken, size)

    def _consume(self, link: Link, data: bytes) -> None:
        if link.messages:
            del link.messages[0]
        else:
            link.taken += len(data)
        link.given += data

    def _swap_view(self, flight: Flight, data: bytes, taken: list[bytearray]) -> memoryview | None:
        """These bytes in swap memory; None while there is none."""
        if not data:
            return memoryview(b"")
        if self.free:
            return memoryview(self._take_buffer(taken, data)).toreadonly()
        if flight.cancelling:
            return memoryview(OwnMemory(data))  # nothing waits for a buffer that is cancelled
        flight.parked = True
        return None

    def _take_buffer(self, taken: list[bytearray], data: bytes) -> bytearray:
        self.free -= 1
        memory = bytearray(data)
        taken.append(memory)
        return memory

    def free_buffers(self, buffers: list[bytearray]) -> None:
        for memory in buffers:
            memory[:] = bytes(len(memory))  # they are written again from now on
        self.given_back += buffers
        self.free += len(buffers)

    def _write(self, flight: Flight, link: Link) -> None:
        request, chance = flight.request, self.chance
        memory = request._memory if flight.memory is None else flight.memory
        flight.memory = None
        left = request._length - request._offset
        if not link.room:
            return  # it is tried anew when there is room, and not held by the kernel until then
        if link.keeps_boundaries():
            size = left
        else:
            size = min(left, link.room)
            if not (self.prompt or chance.happens(self.whole)):
                size = chance.between(0 if link.kind == FILE else 1, size)
        link.received += _bytes_of(memory, request._offset, size)
        link.room = max(0, link.room - size)
        self.answer(flight, size)

    def joined(self, request: Any, record: Record) -> list[Record]:
        """The writes that were joined to this one, which is being started."""
        link = record.link
        left = request._length - record.goal
        if left < 0 or (left and (link.kind > SOCKET or type(request._memory) is not bytes)):
            raise Violation(f"{record} is started with {request._length} bytes")
        pending = self.world.unfinished(link) if left else [record]
        behind = pending[pending.index(record) + 1 :]
        joined = []
        for other in behind:
            if not left:
                break
            if other.operation is not WRITE or other.when is not None or other.moved:
                raise Violation(f"{other} is joined to {record}")
            joined.append(other)
            left -= other.goal
        if left or (joined and request._memory[: request._length] != b"".join(item.data for item in (record, *joined))):
            raise Violation(f"{record} is started with other bytes than were submitted")
        return joined


def _bytes_of(memory: Any, offset: int, size: int) -> bytes:
    """So many bytes from where the attempt begins, as the kernel would read them."""
    if type(memory) is bytes:
        return memory[offset : offset + size]
    if type(memory) is not Vector:
        return ctypes.string_at(memory.address + offset, size)
    address, count = memory.after(offset)
    parts = (iovec * count).from_address(address)
    return b"".join(ctypes.string_at(part.iov_base, part.iov_len) for part in parts)[:size]
