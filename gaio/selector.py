"""A selector that waits in a watcher: what the event loop of gaio/asyncio.py waits with.

A selector tells of descriptors, and an event loop calls what it has for each. Here the results of the watcher are one
descriptor more, and what is called for that is `dispatch()`. The selector's own descriptor, with all that the loop
polls besides, is one that the watcher polls.
"""

from __future__ import annotations

import selectors
import socket
from asyncio import events
from contextvars import Context, copy_context
from itertools import islice
from operator import length_hint

from gaio import platform, process
from gaio.closing import Sends
from gaio.errors import WatcherClosedError
from gaio.watcher import Watcher, asked_for

TYPE_CHECKING = False  # see gaio/types.py
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from gaio.result import OpResult
    from gaio.types import BackendName

    Event = tuple[selectors.SelectorKey, int]

# Where the backend can send many messages with one call, what transports are given to write leaves with the end of the
# turn of the loop: when a turn has brought so many results, and in those behind it in which tasks go on that had waited
# for these. With fewer, an answer leaves at once, and is under way while the next one is made (benchmarks/NOTES.md).
_MANY = 16


class LoopWatcher(Watcher):
    """Without a thread: while a loop is busy elsewhere nothing is served, as with the standard library."""

    __slots__ = ()

    _follows = False

    def __del__(self) -> None:
        leader = getattr(self, "_leader", None)  # none where the arguments were refused
        if leader is not None and not leader.closed:  # it is, where the interpreter has taken modules away by now
            process.finalize(leader)


class WatcherSelector(selectors.DefaultSelector):
    """Until `begin()` the selector of the standard library that it is."""

    def __init__(self, loop: Any, backend: BackendName | None) -> None:
        super().__init__()
        asked_for(backend)
        platform.best_first()  # which imports what the first connection would have to wait for
        self.watcher: Watcher | None = None
        # What is to leave with the end of this turn of the loop, if anything is: transport -> its bytes.
        self.sends_together = False
        self.leaving: dict[Any, bytes] = {}
        # What is leaving just now. After an exception out of wait_io() nobody knows yet what of it has left.
        self._left: list[tuple[list[tuple[Any, bytes]], Sends]] = []
        self._loop = loop
        self._asked: BackendName | None = backend
        self._results: Iterator[OpResult] = iter(())  # for dispatch(); after an exception it may not be at its end
        self._readable = True  # as far as is known, there is something that select() of the standard library tells
        self._sockname: Any = None

    def begin(self) -> Watcher:
        """The watcher to wait in from now on, for a transport."""
        watcher = self.open_watcher()
        if watcher is None:
            watcher = LoopWatcher(backend=self._asked)
            watcher._delegation.share(self)
            self._dispatch = self._event()
            self._readable = True
            self.watcher = watcher
        return watcher

    def open_watcher(self) -> Watcher | None:
        """None when the loop is closed, or when this is a child of fork(2)."""
        watcher = self.watcher
        return None if watcher is None or watcher.closed else watcher

    def free(self, sock: socket.socket) -> None:
        """Have the socket of a transport closed."""
        watcher = self.open_watcher()
        if watcher is None:
            sock.close()
        else:
            watcher.free(sock)

    def end(self) -> None:
        self.sends_together = False
        watcher, self.watcher = self.watcher, None
        if watcher is not None:
            watcher.close()

    def select(self, timeout: float | None = None) -> list[Event]:
        watcher = self.watcher
        if watcher is None:
            return super().select(timeout)
        found: list[Event] = []
        if self._readable:
            found = super().select(0)
            if found:
                timeout = 0
            else:
                self._readable = False
                try:
                    watcher.read(self, context=self)
                except WatcherClosedError:
                    timeout = 0  # there may be results of it still
        if not length_hint(self._results):
            try:
                leaves = self.leaving or self._left
                batch = self._send_and_wait(watcher, timeout) if leaves else watcher.wait_io(timeout)
            except WatcherClosedError:  # this is a child of fork(2), or somebody has closed it
                self.watcher = None
                return super().select(timeout)
            if len(batch) >= _MANY:
                self.sends_together = watcher._leader.engine.backend.sends_together
            elif timeout != 0:
                self.sends_together = False
            if not batch:
                return found
            self._results = iter(batch)
            if self._loop.get_debug():  # a callback for each: the loop tells which of them was slow
                return found + [self._event(1, result) for result in batch]
        found.append(self._dispatch)
        return found

    def _event(self, *arguments: Any) -> Event:
        """As if a descriptor were readable for which the loop has to call dispatch()."""
        handle = events.Handle(self.dispatch, arguments, self._loop, Context())
        return selectors.SelectorKey(-1, -1, selectors.EVENT_READ, (handle, None)), selectors.EVENT_READ

    def dispatch(self, count: int | None = None, *_: OpResult) -> None:
        """Hand results to their transports: all there are, or in debug mode `count`."""
        for result in self._results if count is None else islice(self._results, count):
            transport = result.context
            if not result.more:
                transport._finished(result)
                continue
            if not transport._plain:
                transport._arrived(result.buffer)
                continue
            try:
                transport._reads_in.run(transport._protocol.data_received, bytes(result.buffer))
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:  # noqa: BLE001  # as asyncio does, which reports it and closes the transport
                message = "Fatal error: protocol.data_received() call failed."
                transport._reads_in.run(transport._fatal_error, error, message)

    def _finished(self, _: OpResult) -> None:
        """The read of the selector itself has ended: it is readable."""
        self._readable = True

    def _send_and_wait(self, watcher: Watcher, timeout: float | None) -> list[OpResult]:
        if self._left:
            timeout = 0  # what has been left by an exception comes first
        elif len(self.leaving) < _MANY:
            for transport in list(self.leaving):
                context_or_copy(transport._reads_in).run(transport._flush)
        else:
            leaving = list(self.leaving.items())
            sends = Sends([(transport._sock_fd, data) for transport, data in leaving])
            self._left.append((leaving, sends))
            self.leaving.clear()
            watcher._inbox.append(sends)
        batch = watcher.wait_io(timeout)
        backend: Any = watcher._leader.engine.backend  # asked anew: it may have been closed while this waited
        while self._left and not backend.all_sent():  # the kernel is short of memory, or there is very much
            batch = _copied(batch) + watcher.wait_io(0)
            backend = watcher._leader.engine.backend
        while self._left:
            leaving, sends = self._left[0]
            for place, outcome in sends.outcomes.items():
                transport, data = leaving[place]
                if not transport._conn_lost:
                    # In which its protocol is told of what comes: nearly that of who wrote.
                    context_or_copy(transport._reads_in).run(transport._sent, data, outcome)
            del self._left[0]
        return batch

    def settle(self) -> None:
        """The loop stops, and nobody may come by again: have sent what is to leave, and closed what is to be closed."""
        self.sends_together = False  # no turn ends, where the loop does not run
        watcher = self.open_watcher()
        if watcher is not None:
            left = _copied(list(self._results))
            self._results = iter(left + self._send_and_wait(watcher, 0))

    def add_names(self, sock: socket.socket, names: dict[str, Any]) -> None:
        """The addresses of a connection, for as long as they can be had. All connections of a server share a name."""
        for name, call in (("sockname", sock.getsockname), ("peername", sock.getpeername)):
            if name not in names:
                try:
                    names[name] = call()
                except OSError:
                    names[name] = None  # it has ended
        if names["sockname"] == self._sockname:
            names["sockname"] = self._sockname
        self._sockname = names["sockname"]


def context_or_copy(context: Context | None) -> Context:
    """This one, or where there is none a copy of that which runs. One that is empty counts as false."""
    return copy_context() if context is None else context


def _copied(results: list[OpResult]) -> list[OpResult]:
    """With bytes instead of views, which the next wait_io() makes invalid."""
    for result in results:
        if result.more:
            result.buffer = bytes(result.buffer)
    return results


def fill(buffer: Any, data: Any) -> int:
    """Copy as many bytes as there is room for; tells how many that are."""
    room, size = memoryview(buffer), len(data)
    if room.format == "B" and len(room) >= size:
        room[:size] = data
        return size
    room = room.cast("B")
    size = min(len(room), size)
    room[:size] = data[:size]
    return size
