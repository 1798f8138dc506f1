"""A signal handler that uses the watcher, run between any two opcodes of what it interrupts.

Handlers of SIGTERM close watchers, handlers of SIGHUP submit: Python runs them in the main thread, in the middle of
whatever that thread does in gaio just then.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from functools import partial

import pytest

import gaio
from tests import backends
from tests.accounting import Request
from tests.interruption.opcodes import Opcode, Strike, at_opcodes
from tests.interruption.scenarios import SCENARIOS, Scenario
from tests.interruption.world import World
from tests.peers import receive_until_eof

pytestmark = pytest.mark.usefixtures("thread_acts_when_told")

INTERRUPTED = {
    "read_into_the_swap_arena",
    "deadline_of_reads",
    "free_with_requests_pending",
    "close_with_requests_pending",
    "forgotten_connections",
    "delegate_in_a_read",
    "delegate_in_a_write",
    "delegate_in_a_read_that_repeats",
    "duplicate_in_a_read",
    "take_the_lead",
    "submit_to_the_thread",
}
# In these, wait_io() does not wait for results that the handler has been given already.
INTERRUPTED_BY_WAIT_IO = {"read_full_in_pieces", "close_with_requests_pending", "forgotten_connections"}
# In these, the kernel says what went wrong.
INTERRUPTED_WITH_AN_ERROR = {"read_a_reset", "write_to_a_peer_that_has_gone", "connect_in_vain"}


class Handler:
    """What a handler does, and what must have come of it in the end."""

    interrupts = INTERRUPTED

    def __init__(self, world: World) -> None:
        self.world = world
        self.request: Request | None = None

    def run(self) -> None:
        raise NotImplementedError

    def check(self) -> None:
        """After `run()`."""


class WritesToAKnownConnection(Handler):
    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.conn, self.peer = world.pairs.unix()
        world.watcher.finish(world.watcher.write(self.conn, b"known"))

    def run(self) -> None:
        with contextlib.suppress(gaio.WatcherClosedError):
            self.request = self.world.watcher.write(self.conn, b" and more")

    def check(self) -> None:
        if self.request is not None:
            self.world.watcher.finish(self.request)
            assert self.peer.recv(100) == b"known and more"[: 5 + self.request.size]


class DelegatesAConnection(Handler):
    def run(self) -> None:
        self.conn, self.peer = self.world.pairs.unix()
        with contextlib.suppress(gaio.WatcherClosedError):
            self.request = self.world.watcher.write(self.conn, b"welcome")

    def check(self) -> None:
        if self.request is not None:
            self.world.watcher.finish(self.request)
            assert receive_until_eof(self.peer) == b"welcome" if self.request.error else self.peer.recv(100)


class FreesAConnection(Handler):
    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.conn, self.peer = world.pairs.unix()
        self.request = world.watcher.read(self.conn)

    def run(self) -> None:
        self.world.watcher.free(self.conn)

    def check(self) -> None:
        assert self.request is not None
        self.world.watcher.finish(self.request)
        assert isinstance(self.request.error, (gaio.ConnClosedError, gaio.WatcherClosedError))
        if not self.world.watcher.watcher.closed:
            self.world.watcher.wait(0)
        assert receive_until_eof(self.peer) == b""


class CallsWaitIo(Handler):
    """Which is refused in the middle of another wait_io(), and harmless elsewhere."""

    interrupts = INTERRUPTED_BY_WAIT_IO

    def run(self) -> None:
        with contextlib.suppress(RuntimeError):
            self.world.watcher.wait(0)


class UsesAnotherWatcher(Handler):
    """What the kernel refuses to the other one meanwhile is not taken for an answer to what was interrupted."""

    interrupts = INTERRUPTED_WITH_AN_ERROR

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.other = gaio.Watcher(backend=world.backend)
        world.pairs.also_close(self.other)
        self.conn, self.peer = world.pairs.unix()

    def run(self) -> None:
        self.other.write(self.conn, bytes(1 << 20))  # more than there is room for: EAGAIN
        assert self.other.wait_io(0) == []
        self.other.close()


class ClosesTheWatcher(Handler):
    def run(self) -> None:
        self.world.watcher.watcher.close()


def play(scenario: Scenario, handler: type[Handler], backend: backends.Name, at: Opcode) -> Strike:
    """The scenario with a signal before that opcode."""
    strike: Strike | None = None
    try:
        with World(backend, scenario.swap_size) as world:
            handled = handler(world)
            steps = scenario.play(world)
            act = next(steps)
            strike = Strike(at, handled.run)
            with contextlib.suppress(gaio.WatcherClosedError), strike:
                act()
            if handler is not ClosesTheWatcher:
                for _ in steps:
                    pass
            if strike.place is not None:
                handled.check()
    except BaseException as error:
        raise AssertionError(f"signal at {at}, {strike.place if strike else 'none'}") from error
    return strike


@pytest.mark.slow
@pytest.mark.parametrize(
    ("handler", "first", "scenario"),
    [
        pytest.param(handler, first, scenario, id=f"{handler.__name__} in {scenario.name}")
        for first, handler in enumerate(Handler.__subclasses__(), 1)
        for scenario in SCENARIOS
        if scenario.name in handler.interrupts
    ],
)
def test_handler_at_every_fifth_opcode(
    scenario: Scenario, handler: type[Handler], first: int, backend: backends.Name
) -> None:
    """Each handler begins with another opcode, so that every opcode has its turn."""
    at_opcodes(partial(play, scenario, handler, backend), first=first, step=5)


@pytest.mark.slow
def test_a_handler_submits_for_what_is_being_delegated(backend: backends.Name) -> None:
    """As one that writes to every connection there is: it becomes one connection, whoever delegates it."""
    at_opcodes(partial(_submit_in_a_submission, backend))


def _submit_in_a_submission(backend: backends.Name, at: Opcode) -> Strike:
    with World(backend, 4096) as world:
        conn, peer = world.pairs.unix()
        requests: list[Request] = []
        strike = Strike(at, lambda: requests.append(world.watcher.write(conn, b"by the handler")))
        with strike:
            requests.append(world.watcher.read(conn))
        peer.send(b"read")
        world.watcher.finish(*requests)
        assert [request.error for request in requests] == [None] * len(requests), strike.place
        assert world.watcher.watcher.stats().conns == 1
        world.watcher.free(conn)
        world.watcher.wait(0)
        sent = b"" if strike.place is None else b"by the handler"
        assert receive_until_eof(peer) == sent, strike.place
    return strike


@pytest.mark.slow
def test_a_handler_closes_what_is_being_delegated(backend: backends.Name) -> None:
    """The object itself, and a stranger gets its number: the call says so, or the connection is the watcher's."""
    at_opcodes(partial(_close_in_a_submission, backend))


def _close_in_a_submission(backend: backends.Name, at: Opcode) -> Strike:
    with World(backend, 4096) as world:
        conn, peer = world.pairs.unix()
        strangers: list[socket.socket] = []

        def close() -> None:
            conn.close()
            strangers.extend(socket.socketpair())

        strike = Strike(at, close)
        request = None
        with strike:
            try:
                request = world.watcher.write(conn, b"of the connection")
            except gaio.ConnClosedError:
                assert strike.place is not None
        if request is not None:
            world.watcher.finish(request)
            assert peer.recv(100) == b"of the connection", strike.place
        world.watcher.free(conn)
        assert world.receive_until_closed(peer) == b""
        world.pairs.also_close(*strangers)
        if strangers:
            stranger, other = strangers
            read = world.watcher.read(stranger)  # its number is not known to the kernel as that of the other
            assert world.watcher.wait(0) == []
            other.send(b"unharmed")
            world.watcher.finish(read)
            assert read.data == b"unharmed", strike.place
    return strike


def test_a_handler_closes_the_watcher_that_is_being_closed(
    backend: backends.Name, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While close() waits for the watcher thread: until Python 3.13, two join() in one thread might do so for ever."""
    join = threading.Thread.join
    joined: list[threading.Thread] = []

    def interrupted(thread: threading.Thread, timeout: float | None = None) -> None:
        joined.append(thread)
        if len(joined) == 1:
            watcher.close()
        join(thread, timeout)

    watcher = gaio.Watcher(backend=backend)
    monkeypatch.setattr(threading.Thread, "join", interrupted)
    watcher.close()
    assert len(joined) == 1
