"""What each operation becomes on its way into the ring, and what its completion means on the way out.

One class for each operation: entry() is its way in, outcome() and `refused` are its way out. A new operation is one
class more, and a line in `Operations`. Requests are told apart by the type of their memory, by the kind of their
descriptor and by whether they repeat: a new one that has the same as another needs a type of memory of its own.

Two ways in and two ways out are so common that IoUringBackend takes them without a call to this file: a receive whose
entry is known and a send of a whole `bytes` object, see _submit(); a completion that is a result or an arrival as it
stands, see _reap().

Facts about io_uring that shaped this file
    * A file (a pipe, a terminal …) may be read by a kernel worker, and the ring may wait for one in spite of O_NONBLOCK
      (seen on Linux 6.18, with pipes). When the thread that started such a request exits, it ends with -ECANCELED,
      which a timerfd(2) whose clock was set says itself (TFD_TIMER_CANCEL_ON_SET). So the ring only polls files, and
      read(2) and write(2) are called here. Of sockets none is known that says -ECANCELED: it is the ring's own word.
    * A request that waits in the ring and is woken 128 times in vain is handed to a kernel thread, which blocks in it,
      and which a cancellation at the wrong moment does not reach (seen on Linux 6.18). Worse, such a thread consumes
      all that is left of a provided buffer before a byte has come, so what others receive is looked for in the wrong
      place. A peer can do that to a receive, by urgent data (MSG_OOB): that wakes it, and it does not get to see that.
      It can do so to a send that finds no room, by shutting down its side: a poll is then ready whatever was asked for.
    * So sends and receives that are made once are MSG_DONTWAIT. A receive is linked to a poll. A write that finds no
      room waits until an epoll(7), which the ring polls, says that there is some. A multishot receive does wait in the
      ring: 400 urgent bytes made no thread of it, and it takes no buffer before there are bytes (Linux 6.1, 6.18).
    * What is left of that trap costs processor time while a request is pending. One case is a socket that polls as
      failed for ever, for an error queue that nobody fetches (SO_TIMESTAMPING, IP_RECVERR); before Linux 6.12 that
      takes a whole buffer each time as well, until recycle_unused(). The other is a write that is refused though its
      descriptor polls as writable: one to an eventfd with room for smaller numbers only.
    * An accept that waits in the ring installs the new descriptor when a client comes, not when the CQE is reaped: a
      child that is forked in between has it as well, with nobody to close it.

Facts about interruption
    outcome() stores nothing. What tells how a completion is to be understood, `Queue.ready` and `Request._memory`,
    changes after all else, so that the same completion may be worked through again.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
from itertools import repeat

from gaio.memory import Addressed, SocketAddress, Vector
from gaio.platform import DATAGRAM, LISTENER, SEQPACKET, SOCKET, STREAM, _libc
from gaio.platform._io_uring import abi
from gaio.platform._io_uring.abi import POLLIN, SQE, first_word
from gaio.platform._io_uring.buffers import BUFFER_GROUP
from gaio.platform._libc import IOV_MAX, MAX_RW_COUNT, SEND_FLAGS, address_of, msghdr
from gaio.platform._messages import Messages

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from typing import Any

# Queue.ready
BULK = -8  # inbound only: much came the last time, or more than there were buffers for; up to -1: little since then
UNKNOWN = 0  # inbound only: with that, `entry` is taken for the receive that it is
NOT_EMPTY = 1  # the last receive left bytes behind: receive without waiting for readiness first. Outbound: send
POLL = 2  # the descriptor said EAGAIN: poll it, or wait for room to write
POLLED = 3  # it has been polled: go ahead
PAUSED = 4  # a multishot receive, cancelled by the backend for as long as too much is undelivered

# What a completion means.
RESULT = 0  # it is the request's result
GO_ON = 1  # what has completed is its poll, or it was refused as multishot: start it again, for its bytes this time
LACKS_BUFFER = 2  # start it again when provided buffers have been given back
WAS_CANCELLED = 3  # by us, or by the kernel itself

SMALL = 4096  # bytes. Of what comes in larger pieces, one receive at a time keeps the rest from being starved
ACCEPTS_A_TURN = 16  # of one listener; then others come first

SEND = first_word(abi.IORING_OP_SEND)
_POLL_ADD = first_word(abi.IORING_OP_POLL_ADD)
_POLL_THEN_NEXT = first_word(abi.IORING_OP_POLL_ADD, abi.IOSQE_IO_LINK | abi.IOSQE_CQE_SKIP_SUCCESS)


class Operation:
    """What most of them have in common. -EAGAIN is a result too: the core starts the request again."""

    moves_bytes = True
    refused = POLL  # Queue.ready after -EAGAIN; after any other result it is NOT_EMPTY (outbound) or UNKNOWN

    def __init__(self, size: int = 0) -> None:
        self.size = size  # of the memory that a read without a buffer is given

    def entry(self, request: Any, queue: Any) -> bytes | None:
        """The SQE, or two that are linked. Empty: it has completed without. None: it waits for room to write."""
        raise NotImplementedError

    def outcome(self, queue: Any, result: int) -> int:
        """What its completion means."""
        if result >= 0:
            return GO_ON if queue.ready == POLL and not queue.outbound else RESULT
        return WAS_CANCELLED if result == -errno.ECANCELED else RESULT


# --- receiving ----------------------------------------------------------------------------------------------


class Receive(Operation):
    """recv(2) of a stream socket into a provided buffer: a read without a buffer gets memory when its bytes come.

    In: linked to a poll, unless the last receive left bytes behind. Out: bytes are found by IoUringBackend._reap(),
    which counts how far the buffers have been consumed; without a buffer it is parked until some are given back.
    """

    refused = UNKNOWN
    _operation = first_word(abi.IORING_OP_RECV, abi.IOSQE_BUFFER_SELECT)

    def entry(self, _request: Any, queue: Any) -> bytes:
        flags, group = socket.MSG_DONTWAIT, BUFFER_GROUP
        entry = SQE.pack(self._operation, queue.fd, 0, 0, self.size, flags, queue.token, group)
        if queue.ready <= UNKNOWN:
            queue.entry = entry = _when_readable(queue) + entry  # always the same: taken as it is from now on
        return entry

    def outcome(self, queue: Any, result: int) -> int:
        return LACKS_BUFFER if result == -errno.ENOBUFS else super().outcome(queue, result)


class ReceiveRepeatedly(Receive):
    """The same until it is cancelled.

    In: multishot, which waits in the ring and receives what comes, for small messages of TCP. It takes all the buffers
    that a flood fills, so what comes in bulk is received as Receive does it, once a turn, as everything is where the
    kernel has no multishot receive (before Linux 6.0). Out: bytes are arrivals, see IoUringBackend._reap().
    """

    refused = BULK
    _multishot = first_word(abi.IORING_OP_RECV, abi.IOSQE_BUFFER_SELECT, abi.IORING_RECV_MULTISHOT)

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.has_multishot = True

    def entry(self, request: Any, queue: Any) -> bytes:
        if queue.ready == POLLED:
            self.has_multishot = False  # see outcome()
        elif queue.ready == UNKNOWN and self.has_multishot and queue.descriptor.kind == STREAM:
            queue.entry = b""  # which is for receives that do not repeat
            return SQE.pack(self._multishot, queue.fd, 0, 0, 0, 0, queue.token, BUFFER_GROUP)
        return super().entry(request, queue)

    def outcome(self, queue: Any, result: int) -> int:
        if result == -errno.EINVAL and queue.ready == UNKNOWN and queue.descriptor.kind == STREAM:
            return GO_ON  # perhaps because it is multishot
        if result == -errno.ECANCELED and queue.ready == PAUSED:
            return LACKS_BUFFER
        return super().outcome(queue, result)


class ReceiveInto(Operation):
    """recv(2) of a stream socket into the caller's buffer, or into memory of its own: see _try_once_more().

    In: linked to a poll, as Receive is. Out: any number is the result.
    """

    refused = UNKNOWN
    _operation = first_word(abi.IORING_OP_RECV)

    def entry(self, request: Any, queue: Any) -> bytes:
        address, length = _left(request)
        entry = SQE.pack(self._operation, queue.fd, 0, address, length, socket.MSG_DONTWAIT, queue.token, 0)
        return entry if queue.ready > UNKNOWN else _when_readable(queue) + entry


class ReceiveMessage(Operation):
    """recvmsg(2) of what keeps message boundaries, or recvmmsg(2), called here: see gaio/platform/_messages.py.

    In: a poll comes first, unless there was more than one call may bring. Out: when that has completed, the message is
    received.
    """

    def __init__(self, calls: SystemCalls) -> None:
        self._calls = calls

    def entry(self, request: Any, queue: Any) -> bytes:
        if queue.ready not in (POLLED, NOT_EMPTY):
            return _poll_alone(queue)
        return b"" if self._calls.receive(request, queue) else _poll_alone(queue)


class Poll(Operation):
    """Of an epoll(7), whether it is readable. In: a poll. Out: what it says is the result."""

    moves_bytes = False

    def entry(self, _request: Any, queue: Any) -> bytes:
        return poll_entry(queue.fd, queue.token)


class Accept(Operation):
    """accept4(2) of a listening socket, which does not block.

    In: at once, or a poll after -EAGAIN. Out: when the poll has completed, the accept is started. Any errno is the
    result; what EMFILE does to an accept is decided in gaio/outcome.py.
    """

    moves_bytes = False
    _operation = first_word(abi.IORING_OP_ACCEPT)
    _flags = os.O_CLOEXEC  # SOCK_CLOEXEC of accept4(2): the same value on Linux

    def entry(self, _request: Any, queue: Any) -> bytes:
        if queue.ready == POLL:
            return _poll_alone(queue)
        return SQE.pack(self._operation, queue.fd, 0, 0, 0, self._flags, queue.token, 0)


class AcceptRepeatedly(Operation):
    """accept4(2) until it is cancelled, called here: a multishot accept would go on accepting while nobody looks, and a
    child that is forked meanwhile would have those connections as well, with nobody to close them.

    In: until there is no more, or it is the turn of others; then a poll. Out: when that has completed, the next are
    accepted.
    """

    moves_bytes = False

    def __init__(self, calls: SystemCalls) -> None:
        self._calls = calls

    def entry(self, request: Any, queue: Any) -> bytes:
        if queue.ready == POLL:
            return _poll_alone(queue)
        return b"" if self._calls.accept(request, queue) else _poll_alone(queue)


# --- sending ------------------------------------------------------------------------------------------------


class Send(Operation):
    """send(2) of a socket, or sendmsg(2) of several buffers at once.

    In: at once, unless it has to wait for room to write: one was refused, or a stream took a part of this one. Out: any
    number is the result; after -EAGAIN the next attempt waits for room.
    """

    _sendmsg = first_word(abi.IORING_OP_SENDMSG)

    def __init__(self) -> None:
        self.messages: list[ctypes.Structure] = []  # that the kernel has not read yet

    def entry(self, request: Any, queue: Any) -> bytes | None:
        if queue.ready == POLL or (request._offset > 0 and queue.ready != POLLED and queue.descriptor.kind <= SOCKET):
            return None
        address, length = _left(request)
        if type(request._memory) is Vector:
            message = msghdr(msg_iov=address, msg_iovlen=length)
            self.messages.append(message)
            return SQE.pack(self._sendmsg, queue.fd, 0, ctypes.addressof(message), 1, SEND_FLAGS, queue.token, 0)
        entry = SQE.pack(SEND, queue.fd, 0, address, length, SEND_FLAGS, queue.token, 0)
        if queue.ready < POLL:
            queue.entry = b"!"  # the common case may be assumed from now on
        return entry


class SendTo(Operation):
    """sendto(2) of a datagram that has an address, called here.

    In: as Send, at once or when there is room. Out: where nothing tells of room, it is tried again after a while.
    """

    _timeout = first_word(abi.IORING_OP_TIMEOUT)

    def __init__(self, calls: SystemCalls) -> None:
        self._calls = calls
        self._while = abi.kernel_timespec(0, 10_000_000)

    def entry(self, request: Any, queue: Any) -> bytes | None:
        if queue.ready != POLL and self._calls.send_to(request, queue):
            return b""
        if not request._memory.by_time:
            return None
        queue.ready = POLL
        return SQE.pack(self._timeout, -1, 0, ctypes.addressof(self._while), 1, 0, queue.token, 0)

    def outcome(self, queue: Any, result: int) -> int:
        return GO_ON if result == -errno.ETIME else super().outcome(queue, result)


class SendUnlessShort:
    """send(2) without a request: of one that goes out whole there is no CQE, so what is not told of is done.

    MSG_WAITALL makes a short one count as failed, of which there is one. It does not wait, for MSG_DONTWAIT. Before
    Linux 6.1 such a failure may say -EAGAIN when a part has gone. There, and until 6.3, which a feature tells, each has
    a CQE.
    """

    def __init__(self, features: int) -> None:
        silent = bool(features & abi.IORING_FEAT_REG_REG_RING)
        self._operation = first_word(abi.IORING_OP_SEND, abi.IOSQE_CQE_SKIP_SUCCESS) if silent else SEND
        self._flags = SEND_FLAGS | socket.MSG_WAITALL if silent else SEND_FLAGS

    def entries(self, messages: list[tuple[int, bytes]], token: int) -> list[bytes]:
        pack, operation, flags = SQE.pack, self._operation, self._flags
        entries = []
        for fd, data in messages:
            length = min(len(data), MAX_RW_COUNT)
            entries.append(pack(operation, fd, 0, address_of(data), length, flags, token, 0))
            token += 1
        return entries


class Connect(Operation):
    """connect(2).

    In: it never waits for room; what was short of room was the peer before, of a datagram socket. Out: any number is
    the result. Reads of the descriptor, parked until then, are started.
    """

    moves_bytes = False
    _operation = first_word(abi.IORING_OP_CONNECT)

    def entry(self, request: Any, queue: Any) -> bytes:
        queue.ready = POLLED  # so that its completion is none of the common ones
        data = request._memory.data
        return SQE.pack(self._operation, queue.fd, len(data), address_of(data), 0, 0, queue.token, 0)


# --- system calls that are made at once -----------------------------------------------------------------------


class SystemCalls:
    """Calls that do not block, made while a request is on its way in: it needs no entry when they have completed it.

    What a call returned is in `_returned`, put there by C code, before the next bytecode.
    """

    def __init__(
        self, completed: list[Any], arrivals: list[tuple[Any, Any]], again: list[Any], swap_size: int
    ) -> None:
        """Of a request that repeats what the call returned is an arrival, and the request goes to `again`."""
        self._completed = completed
        self._arrivals = arrivals
        self._again = again
        self._arrived = 0  # how many there were before the call under way
        self._swap_size = swap_size
        self._room: mmap.mmap | None = None  # for reads of files without a buffer, whose bytes are copied from it
        self._request: Any = None  # the one whose call is under way
        self._returned: list[int] = []
        self._pointer = ctypes.c_void_p()
        self._shutdown = _libc.collecting("shutdown", self._returned)
        self._read = _libc.collecting("read", self._returned)
        self._write = _libc.collecting("write", self._returned)
        self._writev = _libc.collecting("writev", self._returned)
        self._accept = _libc.accepting(self._returned)
        self._messages: Messages | None = None  # made for the first of them
        self._sendto = _libc.collecting("sendto", self._returned)

    def shutdown(self, request: Any, queue: Any) -> bool:
        self._request = request
        self._shutdown(queue.fd, socket.SHUT_WR)
        return self.finish()

    def read(self, request: Any, queue: Any) -> bool:
        _libc.keep_from_blocking(queue.fd)
        if request._memory is None:
            room = self._room = self._room or mmap.mmap(-1, self._swap_size, mmap.MAP_PRIVATE)
            address, length = ctypes.addressof(ctypes.c_char.from_buffer(room)), self._swap_size
        else:
            address, length = _left(request)
        self._pointer.value = address
        self._arrived = len(self._arrivals)
        self._request = request
        self._read(queue.fd, self._pointer, length)
        return self.finish() and self._goes_on(request)

    def receive(self, request: Any, queue: Any) -> bool:
        """Of a message, or of some: whether the request is done with, or there are more."""
        messages = self._messages = self._messages or Messages(self._swap_size, self._returned)
        self._arrived = len(self._arrivals)
        self._request = request
        if request.more:
            messages.receive_some(queue.fd, queue.descriptor.kind)
        else:
            messages.receive(request, queue.fd)
        if not self.finish():
            return False
        if request.more and len(self._arrivals) - self._arrived == messages.asked:
            queue.ready = NOT_EMPTY
        return request in self._completed[-1:] or (queue.ready == NOT_EMPTY and self._goes_on(request))

    def send_to(self, request: Any, queue: Any) -> bool:
        datagram = request._memory
        self._request = request
        self._sendto(queue.fd, datagram.data, request._length, SEND_FLAGS, datagram.name, len(datagram.name))
        return self.finish()

    def accept(self, request: Any, queue: Any) -> bool:
        _libc.keep_from_blocking(queue.fd)
        for _ in range(ACCEPTS_A_TURN):
            self._arrived = len(self._arrivals)
            self._request = request
            self._accept(queue.fd)
            if not self.finish():
                return False
            if request in self._completed[-1:]:
                return True  # it has failed
        return self._goes_on(request)

    def _goes_on(self, request: Any) -> bool:
        """Whether the call has completed its request, which it has: one that repeats is to be started again."""
        if request.more and request not in self._completed[-1:]:
            self._again.append(request)
        return True

    def write(self, request: Any, queue: Any) -> bool:
        _libc.keep_from_blocking(queue.fd)
        self._pointer.value, length = _left(request)
        self._request = request
        write = self._writev if type(request._memory) is Vector else self._write
        write(queue.fd, self._pointer, length)
        return self.finish()

    def finish(self) -> bool:
        """Whether the call has completed its request; if not, the descriptor said EAGAIN.

        Also from recover(), in the thread whose errno it is: a second attempt may fail where this one did not.
        """
        request = self._request
        completes = False
        if request is not None and self._returned:
            result = self._returned[0] if self._returned[0] >= 0 else -ctypes.get_errno()
            completes = result != -errno.EAGAIN
            if completes:
                queue = request._queue
                kind = queue.descriptor.kind
                messages = None if queue.outbound or kind not in (DATAGRAM, SEQPACKET) else self._messages
                if request.more and (result > 0 or (not result and kind in (DATAGRAM, LISTENER))):
                    if len(self._arrivals) == self._arrived:
                        what: list[Any] = [result if kind == LISTENER else self._copied(result)]
                        if messages is not None:
                            what = [*messages.found(result)]
                        self._arrivals.extend(zip(repeat(request), what, strict=False))  # C code: all, or none
                else:
                    if messages is not None and result >= 0:
                        result = messages.fill(request, result)
                    elif result > 0 and request._memory is None:
                        request.buffer = self._copied(result)
                        request._length = result  # not the arena's: the view is the caller's for good
                    request._result = result
                    if request not in self._completed[-1:]:
                        self._completed.append(request)
                # After shutdown(2) a write needs no room, to fail, and may never be told of any.
                queue.ready = NOT_EMPTY if queue.outbound else UNKNOWN
            self._returned.clear()
        self._request = None
        return completes

    def _copied(self, size: int) -> memoryview:
        """What has been read into `_room`."""
        return memoryview((self._room or b"")[:size])


class Shutdown(Operation):
    """shutdown(2). The ring would have a kernel thread do it, and fail where there can be none."""

    moves_bytes = False

    def __init__(self, calls: SystemCalls) -> None:
        self._calls = calls

    def entry(self, request: Any, queue: Any) -> bytes:
        self._calls.shutdown(request, queue)
        return b""


class ReadFile(Operation):
    """read(2) of a pipe, a terminal …

    In: without a buffer a poll comes first, for most have to wait; else when there was nothing to read. Out: when the
    poll has completed, it is read.
    """

    def __init__(self, calls: SystemCalls) -> None:
        self._calls = calls

    def entry(self, request: Any, queue: Any) -> bytes:
        if queue.ready == POLL or (request._memory is None and queue.ready == UNKNOWN):
            return _poll_alone(queue)
        return b"" if self._calls.read(request, queue) else _poll_alone(queue)


class WriteFile(Operation):
    """write(2), or writev(2) of several buffers at once. In: as Send, at once or when there is room."""

    def __init__(self, calls: SystemCalls) -> None:
        self._calls = calls

    def entry(self, request: Any, queue: Any) -> bytes | None:
        if queue.ready == POLL:
            return None
        return b"" if self._calls.write(request, queue) else None


# --- which operation a request is ---------------------------------------------------------------------------


class Operations:
    """The operations of one backend, with what they have to remember."""

    def __init__(self, calls: SystemCalls, read_size: int) -> None:
        self.calls = calls
        self.receive, self.connect, self.shutdown = Receive(read_size), Connect(), Shutdown(calls)
        self.send = send = Send()
        self.send_to = SendTo(calls)
        into, message = ReceiveInto(), ReceiveMessage(calls)
        read, write = ReadFile(calls), WriteFile(calls)
        # by Descriptor.kind: STREAM, SOCKET, DATAGRAM, SEQPACKET, FILE, LISTENER, SELECTOR
        self._inbound: tuple[Operation, ...] = (into, into, message, message, read, Accept(), Poll())
        on = ReceiveRepeatedly(read_size)
        self._repeating: tuple[Operation, ...] = (on, on, message, message, read, AcceptRepeatedly(calls))
        self._outbound: tuple[Operation, ...] = (send, send, send, send, write, send)

    def of(self, request: Any, queue: Any) -> Operation:
        """The same on the way in and on the way out."""
        memory = request._memory
        kind: int = queue.descriptor.kind
        if request.more and type(memory) is not OwnMemory:  # else it is tried a last time
            return self._repeating[kind]
        if not queue.outbound:
            return self.receive if memory is None and kind <= SOCKET else self._inbound[kind]
        if memory is None:
            return self.shutdown
        if type(memory) is Addressed:
            return self.send_to
        return self.connect if type(memory) is SocketAddress else self._outbound[kind]


# --- memory -------------------------------------------------------------------------------------------------


def _left(request: Any) -> tuple[int, int]:
    """Address and length of its memory that is still to be filled or written; of a Vector those of its iovec array."""
    memory, offset = request._memory, request._offset
    if type(memory) is Vector:
        address, count = memory.after(offset)
        return address, min(count, IOV_MAX)
    start = address_of(memory) if type(memory) is bytes else memory.address
    return start + offset, min(request._length - offset, MAX_RW_COUNT)


class OwnMemory:
    """Memory for one swap read of a stream that is tried a last time.

    Mapped and not allocated, which would be to fill it with zeros: it takes no more memory than bytes come. And these
    are copied from it, for a view would keep all of it.
    """

    __slots__ = ("address", "_storage", "_view")

    def __init__(self, size: int) -> None:
        self._storage = mmap.mmap(-1, size, mmap.MAP_PRIVATE)
        self._view: memoryview | None = None
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._storage))

    def view(self, size: int) -> memoryview:
        """The same each time."""
        if self._view is None:
            self._view = memoryview(self._storage[:size])
        return self._view


def give_own_memory(request: Any, size: int) -> None:
    """On the way in."""
    request._length = size
    request._memory = OwnMemory(size)


def take_own_memory(request: Any, result: int) -> None:
    """On the way out."""
    memory = request._memory
    if type(memory) is OwnMemory:
        if result > 0:
            request.buffer = memory.view(result)
        request._length = max(0, result)  # not 0: the view is the caller's for good
        request._memory = None


def drop_own_memory(request: Any) -> None:
    """Of one that repeats, when its bytes have been shown."""
    request._memory = None
    request._length = 0


# --- polls --------------------------------------------------------------------------------------------------


def poll_entry(fd: int, token: int, flags: int = 0) -> bytes:
    return SQE.pack(_POLL_ADD, fd, 0, 0, flags, POLLIN, token, 0)


def _poll_alone(queue: Any) -> bytes:
    """It completes by itself, with GO_ON as its outcome."""
    queue.ready = POLL
    return poll_entry(queue.fd, queue.token)


def _when_readable(queue: Any) -> bytes:
    """A poll before the next entry: one CQE comes of the two, that of the poll only if it fails."""
    return SQE.pack(_POLL_THEN_NEXT, queue.fd, 0, 0, 0, POLLIN, queue.token, 0)
