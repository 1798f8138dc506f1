"""Connections, their peers and requests as the simulation knows them, and what the result of a request must be."""

from __future__ import annotations

import errno
import os
import random
from typing import Any

from gaio.connection import Connection
from gaio.errors import ConnClosedError, DeadlineError, WatcherClosedError
from gaio.platform import CANCELLED, DATAGRAM, FREE_THREADED, SEQPACKET, TRUNCATED
from gaio.result import ACCEPT, READ, WRITE, Operation, OpResult
from gaio.timers import Timer

PATTERN = bytes((i * 2654435761 >> 13) & 0xFF for i in range(1 << 13))

# What a request comes to by what the backend has answered so far; else an errno.
PENDING = "pending"
DONE = "done"
END = "end of the stream"

# Written anew here, and not taken from gaio/outcome.py, which is what they test.
NOT_YET = (-errno.EINTR, -errno.EAGAIN, CANCELLED)
NOT_YET_OF_NO_BYTES = (-errno.EINTR, CANCELLED)
LOST_IN_THE_BACKLOG = tuple(
    -getattr(errno, name)
    for name in (
        "EAGAIN",
        "ECONNABORTED",
        "EPROTO",
        "ENETDOWN",
        "ENETUNREACH",
        "EHOSTDOWN",
        "EHOSTUNREACH",
        "ENOPROTOOPT",
        "EOPNOTSUPP",
    )
)
OUT_OF_DESCRIPTORS = (-errno.EMFILE, -errno.ENFILE, -errno.ENOBUFS, -errno.ENOMEM)
BACK_OFF_SECONDS = 0.1


class Violation(AssertionError):
    """Something that must never be."""


class Chance:
    """The seed's decisions. Of `random` it uses only what yields the same numbers on every version of Python."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed).random

    def below(self, limit: int) -> int:
        return int(self.random() * limit)

    def between(self, least: int, most: int) -> int:
        return least + int(self.random() * (most - least + 1))

    def happens(self, probability: float) -> bool:
        return self.random() < probability

    def one_of(self, choices: Any) -> Any:
        return choices[int(self.random() * len(choices))]

    def shuffle(self, items: list[Any]) -> None:
        for last in range(len(items) - 1, 0, -1):
            other = int(self.random() * (last + 1))
            items[last], items[other] = items[other], items[last]


class Conn:
    """The caller's object."""

    __slots__ = ("link", "number", "__weakref__")

    def __init__(self, link: Link, number: int) -> None:
        self.link = link
        self.number = number

    def fileno(self) -> int:
        """Of the socket whose duplicates all connections have: asked for its family when it is to connect."""
        return self.number

    def close(self) -> None:
        """Nothing: that socket is used again."""


class Link:
    """A connection: the kernel's end of it, its peer, and what of it is pending."""

    def __init__(self, index: int, kind: int, number: int) -> None:
        self.index = index
        self.kind = kind
        self.conn: Conn | None = Conn(self, number)  # None when the caller has dropped it
        self.connection: Connection | None = None  # once it is delegated
        self.freed = False  # or dropped
        self.freed_first = False  # by free(), before close() was called
        self.detached = False  # or that was begun
        # The kernel's.
        self.fd = -1
        self.sent = 0  # bytes, by the peer
        self.messages: list[bytes] = []  # by the peer, where boundaries are kept
        self.senders = 0  # of those that reads have got: each is another
        self.ended = False  # the peer sends no more
        self.taken = 0  # bytes of a stream that reads have got
        self.given = bytearray()  # what reads have got, one behind the other
        self.room = 0  # bytes that writes may still move
        self.received = bytearray()  # what writes have moved
        self.backlog = 0  # connections to accept
        # The caller's.
        self.reads: list[Record] = []  # pending, in the order of submission
        self.writes: list[Record] = []
        self.read = 0  # bytes that results have accounted for
        self.submitted = 0  # bytes to be written
        self.written = bytearray()  # what results have accounted for

    def __str__(self) -> str:
        return f"conn {self.index}"

    @property
    def given_up(self) -> bool:
        return self.freed or self.detached

    def keeps_boundaries(self) -> bool:
        return self.kind in (DATAGRAM, SEQPACKET)

    def stretch(self, start: int, size: int) -> bytes:
        """What the peer sends from that byte on, in a stream."""
        begin = (start + self.index * 977) % (len(PATTERN) // 2)
        while begin + size > len(PATTERN):
            return (PATTERN * (size // len(PATTERN) + 2))[begin : begin + size]
        return PATTERN[begin : begin + size]

    def next_sender(self) -> tuple[str, int]:
        """The address of who has sent the next message."""
        self.senders = self.senders % 0xFFFF + 1
        return "127.0.0.1", self.senders

    def has_something_to_read(self) -> bool:
        return bool(self.messages) or self.sent > self.taken or self.ended

    def pending(self) -> list[Record]:
        return [*self.reads, *self.writes]


class Note:
    """What was posted, or is to come after a while."""

    __slots__ = ("number", "when", "timer", "cancelled", "__weakref__")

    def __init__(self, number: int, when: float | None) -> None:
        self.number = number
        self.when = when  # None of what was posted
        self.timer: Timer | None = None
        self.cancelled = False

    def __str__(self) -> str:
        return f"#{self.number} {'POST' if self.when is None else f'TIMER for {self.when}'}"


class Record:
    """A request that was submitted, and its result's `context`: when it is collected, so is the request."""

    __slots__ = (
        "number",
        "operation",
        "link",
        "goal",
        "data",
        "buffer",
        "when",
        "answers",
        "moved",
        "verdict",
        "answered_at",
        "finished",
        "repeats",
        "timeout",
        "earliest",
        "arrivals",
        "sender",
        "senders",
        "may_stop",
        "must_stop",
        "held_until",
        "__weakref__",
    )

    def __init__(self, number: int, operation: Operation, link: Link) -> None:
        self.number = number
        self.operation = operation
        self.link = link
        self.goal = 0  # bytes; 0 for a plain read
        self.data = b""  # to be written
        self.buffer: bytearray | None = None  # to be filled
        self.when: float | None = None  # its deadline, at the latest
        self.answers: list[int] = []  # of the backend
        self.moved = 0
        self.sender: tuple[str, int] | None = None  # of the last message
        self.verdict: str | int = PENDING
        self.answered_at = 0.0
        self.finished = False
        # Of one that repeats:
        self.repeats = False
        self.timeout: float | None = None  # seconds without an arrival
        self.earliest: float | None = None  # its deadline, unless something arrives
        self.arrivals: list[bytes | int] = []  # bytes, a descriptor or -errno, for which there is no result yet
        self.senders: list[tuple[tuple[str, int], bool]] = []  # of messages that came, and whether they were cut off
        self.may_stop = False  # it may be what a stop was for
        self.must_stop = False  # it is
        self.held_until = 0.0  # it ran out of descriptors: not started before

    def __str__(self) -> str:
        return f"#{self.number} {self.operation.name}{' (repeats)' if self.repeats else ''} of {self.link}"

    def answer(self, number: int, now: float) -> None:
        """The backend has answered this: what that makes of the request."""
        self.answers.append(number)
        self.answered_at = now
        self.verdict = self._verdict(number)

    def arrive(self, what: bytes | int, now: float) -> None:
        """The backend brings this, which is to be a result of its own."""
        self.arrivals.append(what)
        self.put_off(now)
        self.earliest = self.when

    def put_off(self, now: float) -> None:
        """An arrival counts from now on, should the turn that it came in be interrupted."""
        if self.timeout is not None:
            self.when = now + self.timeout

    def _verdict(self, number: int) -> str | int:
        if self.repeats and self.operation is ACCEPT and number in OUT_OF_DESCRIPTORS:
            if self.must_stop:
                return -number
            self.arrivals.append(number)
            self.held_until = self.answered_at + BACK_OFF_SECONDS - 1e-6
            return PENDING
        if self.operation > WRITE:
            if number >= 0:
                return DONE
            lost = self.operation is ACCEPT and number in LOST_IN_THE_BACKLOG
            return PENDING if lost or number in NOT_YET_OF_NO_BYTES else -number
        if number > 0:
            self.moved += number
            return DONE if self.moved >= self.goal else PENDING
        if number < TRUNCATED:
            self.moved += TRUNCATED - number
            return errno.EMSGSIZE
        if number < 0:
            return PENDING if number in NOT_YET else -number
        if self.operation is WRITE:
            return PENDING
        if self.link.kind == DATAGRAM:
            return PENDING if self.goal else DONE
        return END

    def check(self, result: OpResult, now: float, closing: bool, disturbed: bool) -> None:
        """Raise a Violation unless this is what the request's result must be.

        `closing`: the watcher is. `disturbed`: a turn has been interrupted, so that an accept may not be held back.
        """
        error = result.error
        link = self.link
        cut_off = (
            (type(error) is DeadlineError and self.earliest is not None and self.earliest <= now)
            or (type(error) is ConnClosedError and link.given_up)
            or (type(error) is WatcherClosedError and closing and not link.freed_first)
        )
        verdict = self.verdict
        held_back = (
            self.operation is ACCEPT and not self.repeats and type(verdict) is int and -verdict in OUT_OF_DESCRIPTORS
        )
        if verdict == DONE:
            right = error is None
        elif verdict == END:
            right = type(error) is EOFError
        elif verdict == PENDING:
            right = cut_off or self._ends_without_a_verdict(error, closing)
        else:
            right = isinstance(error, OSError) and error.errno == verdict and not cut_off
            right = right or (held_back and cut_off and type(error) is not DeadlineError)
        if not right:
            raise Violation(f"{self} ended with {error!r}, but the backend's answers {self.answers} make it {verdict}")
        if self.link.given_up or isinstance(error, WatcherClosedError):
            # Interrupted, an accept may be closed before it is told what it ran out of, which is of no use any more.
            self.arrivals = [what for what in self.arrivals if what not in OUT_OF_DESCRIPTORS]
        if self.arrivals:
            raise Violation(f"{self} ended, and {self.arrivals} has arrived for it")
        if held_back and not (cut_off or disturbed or closing or link.given_up):
            in_time = self.when is not None and self.when <= now
            if not in_time and now < self.answered_at + BACK_OFF_SECONDS - 1e-6:
                raise Violation(f"{self} was not held back")
        if result.size != self.moved:
            raise Violation(f"{self}: size is {result.size}, but {self.moved} bytes moved")
        if link.conn is not None and result.conn is not link.conn:
            raise Violation(f"{self}: another conn")
        if result.address != self.sender:
            raise Violation(f"{self}: the address is {result.address}, and {self.sender} has sent it")
        if result._queue is not None or result._memory is not None or result._next is not None:
            raise Violation(f"{self}: it holds on to what a pending request holds")
        if self.repeats and result.buffer is not None:
            raise Violation(f"{self} ended with a buffer")
        if self.operation is READ and not self.repeats:
            self._check_bytes_read(result)
        elif self.operation is WRITE:
            link.written += self.data[: result.size]
        elif self.operation is ACCEPT:
            self._check_accepted(result, self.answers[-1] if verdict == DONE else None)

    def _ends_without_a_verdict(self, error: Exception | None, closing: bool) -> bool:
        """Whether one that repeats, and for which the backend had nothing to say, may end with this."""
        if error is None:
            return self.may_stop
        if self.arrivals and isinstance(error, OSError) and self.arrivals[-1] == -(error.errno or 0):
            # It ran out of descriptors when it was to end already.
            self.arrivals.pop()
            return self.may_stop or closing or self.link.given_up
        return False

    def check_arrival(self, result: OpResult) -> None:
        """Raise a Violation unless this is what the next result must be, of one that repeats and goes on."""
        if not self.repeats or not self.arrivals:
            raise Violation(f"{self} has a result, with error {result.error!r}, and nothing has arrived for it")
        what = self.arrivals.pop(0)
        error = result.error
        number = error.errno if isinstance(error, OSError) else None if error is None else -1
        expected = -what if type(what) is int and what < 0 else None
        if type(what) is bytes and self.link.keeps_boundaries():
            sender, is_cut_off = self.senders.pop(0)
            expected = errno.EMSGSIZE if is_cut_off else None
            if result.address != sender:
                raise Violation(f"{self}: the address is {result.address}, and {sender} has sent it")
        elif result.address is not None:
            raise Violation(f"{self}: the address is {result.address}")
        if number != expected:
            raise Violation(f"{self}: {what!r} has arrived, and the error is {error!r}")
        if result.operation is not self.operation or (self.link.conn is not None and result.conn is not self.link.conn):
            raise Violation(f"{self}: the result is of another request")
        if result.size != (len(what) if type(what) is bytes else 0):
            raise Violation(f"{self}: size is {result.size}, but {what!r} has arrived")
        if self.operation is READ:
            self._check_bytes_read(result)
        else:
            self._check_accepted(result, what if type(what) is int and what >= 0 else None)

    def _check_accepted(self, result: OpResult, descriptor: int | None) -> None:
        owned = getattr(result, "_accepted")  # noqa: B009  # only an AcceptResult has it
        if [owner.fileno() for owner in owned] != ([] if descriptor is None else [descriptor]):
            raise Violation(f"{self}: accepted another descriptor than the backend gave")
        if descriptor is not None and not is_open(descriptor):
            raise Violation(f"{self}: what it accepted has been closed")
        if (self.number + (descriptor or 0)) % 2:  # the others are dropped with the result
            accepted = result.accepted
            if (accepted is not None) != bool(owned):
                raise Violation(f"{self}: accepted is {accepted}")
            if accepted is not None:
                accepted.close()

    def _check_bytes_read(self, result: OpResult) -> None:
        link = self.link
        size = result.size
        arrived = link.given[link.read : link.read + size]
        link.read += size
        if self.buffer is None:
            view = result.buffer
            if (0 if view is None else len(view)) != size or (size and view != arrived):
                raise Violation(f"{self}: the bytes are not those that came")
            if view is None and result.error is None:
                raise Violation(f"{self}: succeeded without a buffer")
            return
        if result.buffer is not self.buffer:
            raise Violation(f"{self}: another buffer")
        if self.buffer[:size] != arrived:
            raise Violation(f"{self}: the bytes are not those that came")
        if any(self.buffer[size:]):
            raise Violation(f"{self}: bytes behind its size")
        if not FREE_THREADED:  # there the leader ends the export, see gaio/lending.py
            self.buffer.append(0)  # BufferError while it is pinned


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
