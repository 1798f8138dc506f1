"""Connections on a descriptor that the caller keeps, as the transports of gaio.asyncio have them; watchers that have no
thread.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import selectors
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import gaio
from gaio.selector import LoopWatcher
from tests import child
from tests.backends import Name
from tests.peers import HeldPairs, pattern, receive_exactly
from tests.waiting import Background, wait_until


@pytest.fixture
def watcher(backend: Name) -> Iterator[LoopWatcher]:
    with LoopWatcher(backend=backend) as made:
        yield made


def share(watcher: gaio.Watcher, conn: Any) -> None:
    watcher._delegation.share(conn)


def results(watcher: gaio.Watcher, count: int = 1) -> list[gaio.OpResult]:
    found: list[gaio.OpResult] = []
    while len(found) < count:
        batch = watcher.wait_io(20)
        assert batch, "nothing came"
        for result in batch:
            if result.buffer is not None:
                result.buffer = bytes(result.buffer)
        found += batch
    return found


class CountsClosing(socket.socket):
    closed = 0

    def close(self) -> None:
        self.closed += 1
        super().close()


def counting(sock: socket.socket) -> CountsClosing:
    return CountsClosing(sock.family, sock.type, sock.proto, sock.detach())


# --- shared connections -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [HeldPairs.tcp, HeldPairs.unix])
def test_it_reads_and_writes_and_needs_no_descriptor_more(
    watcher: LoopWatcher, held_pairs: HeldPairs, make: Callable[[HeldPairs], tuple[socket.socket, socket.socket]]
) -> None:
    conn, peer = make(held_pairs)
    before = set(os.listdir("/dev/fd"))
    number = conn.fileno()
    share(watcher, conn)
    watcher.read(conn)
    watcher.write(conn, b"out")
    peer.send(b"in")
    moved = {result.operation: result.size for result in results(watcher, 2)}
    assert moved == {gaio.READ: 2, gaio.WRITE: 3}
    assert receive_exactly(peer, 3) == b"out"
    assert conn.fileno() == number
    assert conn.getsockname() is not None
    assert set(os.listdir("/dev/fd")) == before


def test_free_closes_the_object_once_and_after_its_requests(watcher: LoopWatcher, held_pairs: HeldPairs) -> None:
    given, peer = held_pairs.unix()
    conn = counting(given)
    share(watcher, conn)
    watcher.read(conn)
    watcher.read_start(conn)
    assert watcher.wait_io(0) == []
    watcher.free(conn)
    watcher.free(conn)
    assert conn.fileno() >= 0
    watcher.read(conn)  # too late, and the result says so
    assert all(isinstance(result.error, gaio.ConnClosedError) for result in results(watcher, 3))
    assert watcher.wait_io(0) == []
    assert (conn.closed, conn.fileno()) == (1, -1)
    assert peer.recv(1) == b""
    with pytest.raises(gaio.ConnClosedError):
        watcher.read(conn)


def test_a_closed_watcher_leaves_it_open(watcher: LoopWatcher, held_pairs: HeldPairs) -> None:
    conn, peer = held_pairs.unix()
    share(watcher, conn)
    watcher.read(conn)
    watcher.close()
    (result,) = results(watcher)
    assert isinstance(result.error, gaio.WatcherClosedError)
    conn.sendall(b"still there")
    assert receive_exactly(peer, 11) == b"still there"


def test_freed_before_the_watcher_is_closed(watcher: LoopWatcher, held_pairs: HeldPairs) -> None:
    given, _ = held_pairs.unix()
    conn = counting(given)
    share(watcher, conn)
    watcher.free(conn)
    watcher.close()
    assert (conn.closed, conn.fileno()) == (1, -1)


def test_the_watcher_holds_it_until_then(watcher: LoopWatcher) -> None:
    conn, peer = socket.socketpair()
    with peer:
        share(watcher, conn)
        kept = weakref.ref(conn)
        watcher.read(conn, context="the first")
        del conn
        gc.collect()
        assert kept() is not None
        peer.send(b"x")
        (result,) = results(watcher)
        watcher.free(result.conn)
        del result
        watcher.wait_io(0)
        gc.collect()
        assert kept() is None


def test_shared_twice(watcher: LoopWatcher, held_pairs: HeldPairs) -> None:
    """As after an exception such as KeyboardInterrupt, of which nobody knows when it came."""
    given, peer = held_pairs.unix()
    conn = counting(given)
    share(watcher, conn)
    share(watcher, conn)
    assert watcher.stats().conns == 1
    watcher.read(conn)
    peer.send(b"x")
    results(watcher)
    watcher.free(conn)
    watcher.wait_io(0)
    assert (conn.closed, watcher.stats().conns) == (1, 0)


def test_one_that_cannot_be_registered_is_left_as_it_was(
    watcher: LoopWatcher, held_pairs: HeldPairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, peer = held_pairs.unix()
    with counting(given) as conn:

        def refuse(*_: object) -> None:
            raise OSError(errno.ENOSPC, "no watch is left")

        with monkeypatch.context() as patch:
            patch.setattr(watcher._leader.engine.backend, "register", refuse)
            with pytest.raises(OSError, match="no watch"):
                share(watcher, conn)
        assert watcher.wait_io(0) == []
        assert (conn.closed, watcher.stats().conns, len(watcher._leader.engine.descriptors)) == (0, 0, 0)
        share(watcher, conn)
        watcher.read(conn)
        peer.send(b"x")
        assert results(watcher)[0].error is None


def test_nothing_that_cannot_be_shared(watcher: LoopWatcher, held_pairs: HeldPairs) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(gaio.UnsupportedConnError):
        share(watcher, listener)
    with socket.socket() as fresh, pytest.raises(gaio.UnsupportedConnError):
        share(watcher, fresh)
    conn, _ = held_pairs.unix()
    watcher.read(conn)
    with pytest.raises(gaio.ConnClosedError):
        share(watcher, conn)
    assert watcher.stats().conns == 1
    watcher.close()
    other, _ = held_pairs.unix()
    with pytest.raises(gaio.WatcherClosedError):
        share(watcher, other)


def test_it_is_not_handed_back(watcher: LoopWatcher, held_pairs: HeldPairs) -> None:
    """Its object has the descriptor: two would close the same number."""
    conn, peer = held_pairs.unix()
    share(watcher, conn)
    with pytest.raises(gaio.UnsupportedConnError, match="hand back"):
        watcher.detach(conn)
    watcher.read(conn)
    peer.send(b"x")
    assert results(watcher)[0].error is None


def test_freed_by_another_thread_and_by_a_finalizer(watcher: LoopWatcher, held_pairs: HeldPairs) -> None:
    class Finalized:
        def __del__(self) -> None:
            watcher.free(conns[0])

    conns = [counting(held_pairs.unix()[0]) for _ in range(2)]
    for conn in conns:
        share(watcher, conn)
        watcher.read(conn)
    waiting = Background(lambda: results(watcher, 2))
    wait_until(lambda: watcher._leader.needs_wakeup, "the consumer to sleep in the kernel")
    one: Any = Finalized()
    one.cycle = one
    del one
    gc.collect()
    watcher.free(conns[1])
    assert all(isinstance(result.error, gaio.ConnClosedError) for result in waiting.result())
    assert [conn.closed for conn in conns] == [1, 1]


def test_a_stranger_with_its_number_is_left_alone(watcher: LoopWatcher, held_pairs: HeldPairs) -> None:
    """Over and over: what is shared is freed, and its number is given to the next one."""
    for number in range(20):
        conn, peer = socket.socketpair()
        with peer:
            share(watcher, conn)
            watcher.read(conn, timeout=3600)
            watcher.write(conn, b"%d" % number)
            peer.send(b"x")
            results(watcher, 2)
            watcher.free(conn)
            watcher.wait_io(0)
            assert conn.fileno() == -1
    assert watcher.stats().conns == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork() here")
def test_a_child_leaves_it_open_and_the_parent_goes_on(backend: Name) -> None:
    code = """
        import os, socket, gaio
        from gaio.selector import LoopWatcher
        watcher = LoopWatcher(backend={backend!r})
        conn, peer = socket.socketpair()
        watcher._delegation.share(conn)
        watcher.read(conn)
        assert watcher.wait_io(0) == []
        child = os.fork()
        if not child:
            assert watcher.closed
            assert conn.fileno() >= 0
            conn.send(b"of the child")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert peer.recv(100) == b"of the child"
        peer.send(b"for the parent")
        (result,) = watcher.wait_io(20)
        assert bytes(result.buffer) == b"for the parent"
        watcher.free(conn)
        watcher.close()
        peer.close()
    """
    assert child.output_of(code.format(backend=backend), "-W", "ignore::DeprecationWarning") == ""


# --- selectors ----------------------------------------------------------------------------------------------------


class Poller(selectors.DefaultSelector):
    """An epoll, or a kqueue where there is none."""

    def ready(self) -> int:
        return len(self.select(0))

    def watch(self, sock: socket.socket) -> None:
        self.register(sock, selectors.EVENT_READ)


@pytest.fixture
def poller() -> Iterator[Poller]:
    made = Poller()
    yield made
    made.close()


def test_a_read_of_a_selector_tells_that_it_is_readable(
    watcher: LoopWatcher, poller: Poller, held_pairs: HeldPairs
) -> None:
    ends = [held_pairs.unix() for _ in range(3)]
    share(watcher, poller)
    watcher.read(poller)
    assert watcher.wait_io(0) == []
    for conn, _ in ends:
        poller.watch(conn)
    assert watcher.wait_io(0) == []
    for turn in range(3):
        for _, peer in ends[turn:]:
            peer.send(b"x")
        (result,) = watcher.wait_io(20)
        assert (result.operation, result.size, result.error, result.buffer) == (gaio.READ, 1, None, None)
        assert poller.ready() == len(ends) - turn
        for conn, _ in ends[turn:]:
            conn.recv(1)
        assert poller.ready() == 0
        watcher.read(poller)
        if watcher.wait_io(0):  # in vain, which does no harm
            watcher.read(poller)
        assert watcher.wait_io(0) == []


def test_a_selector_that_is_readable_before(watcher: LoopWatcher, poller: Poller, held_pairs: HeldPairs) -> None:
    conn, peer = held_pairs.unix()
    poller.watch(conn)
    peer.send(b"x")
    share(watcher, poller)
    watcher.read(poller)
    assert watcher.wait_io(20)[0].size == 1


def test_a_selector_that_is_not_readable_is_not_said_to_be(
    watcher: LoopWatcher, poller: Poller, held_pairs: HeldPairs
) -> None:
    conn, _ = held_pairs.unix()
    poller.watch(conn)
    share(watcher, poller)
    watcher.read(poller, timeout=0.01)
    (result,) = watcher.wait_io(20)
    assert isinstance(result.error, gaio.DeadlineError)
    watcher.read(poller)
    assert watcher.wait_io(0) == []
    watcher.free(poller)
    (result,) = watcher.wait_io(20)
    assert isinstance(result.error, gaio.ConnClosedError)


def test_the_mode_of_a_selector_is_left_alone(watcher: LoopWatcher, poller: Poller) -> None:
    """A kqueue refuses O_NONBLOCK, with ENOTTY."""
    mode = fcntl.fcntl(poller.fileno(), fcntl.F_GETFL)
    share(watcher, poller)
    assert fcntl.fcntl(poller.fileno(), fcntl.F_GETFL) == mode


def test_a_selector_of_a_watcher_that_is_closed(watcher: LoopWatcher, poller: Poller, held_pairs: HeldPairs) -> None:
    share(watcher, poller)
    watcher.read(poller)
    assert watcher.wait_io(0) == []
    watcher.close()
    (result,) = watcher.wait_io(0)
    assert isinstance(result.error, gaio.WatcherClosedError)
    conn, peer = held_pairs.unix()
    poller.watch(conn)
    peer.send(b"x")
    assert poller.ready() == 1


# --- without a thread ---------------------------------------------------------------------------------------------


def watcher_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "gaio-watcher"]


def test_it_has_no_thread(backend: Name) -> None:
    before = len(watcher_threads())
    with LoopWatcher(backend=backend):
        assert len(watcher_threads()) == before


def test_no_thread_where_it_cannot_be_opened() -> None:
    before = len(watcher_threads())
    with pytest.raises(ValueError, match="the backends are"):
        LoopWatcher(backend="none")  # type: ignore[arg-type]  # that is what is tested
    with pytest.raises(TypeError):
        LoopWatcher(swap_size="x")  # type: ignore[arg-type]  # likewise
    assert len(watcher_threads()) == before


def test_dropped_it_is_closed_when_it_is_collected(
    backend: Name, held_pairs: HeldPairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its own requests refer to it."""
    monkeypatch.setattr("gaio.process.PATIENCE", 3600)
    conn, peer = held_pairs.unix()
    made = LoopWatcher(backend=backend)
    share(made, conn)
    made.read_start(conn, context=made)
    made.write(conn, pattern(1 << 20), context=made)
    assert made.wait_io(0) == []
    gone = weakref.ref(made)
    del made
    gc.collect()
    assert gone() is None
    wait_until(lambda: not watcher_threads(), "the thread that closes it to end")
    assert conn.fileno() >= 0
    assert peer.recv(1) == pattern(1 << 20)[:1]


def test_dropped_where_no_thread_can_be_started(
    backend: Name, held_pairs: HeldPairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    conn, _ = held_pairs.unix()
    made = LoopWatcher(backend=backend)
    share(made, conn)
    made.read(conn)
    made.wait_io(0)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    leader = made._leader
    monkeypatch.setattr(threading.Thread, "start", refuse)
    del made
    gc.collect()
    assert leader.closed


def test_closed_by_another_thread_while_its_owner_waits(watcher: LoopWatcher, held_pairs: HeldPairs) -> None:
    conn, _ = held_pairs.unix()
    share(watcher, conn)
    watcher.read(conn)
    waiting = Background(lambda: watcher.wait_io(None))
    wait_until(lambda: watcher._leader.needs_wakeup, "the consumer to sleep in the kernel")
    watcher.close()
    (result,) = waiting.result()
    assert isinstance(result.error, gaio.WatcherClosedError)
    assert conn.fileno() >= 0


ENDINGS = {
    "at the last line": "",
    "after the consumer began": "assert watcher.wait_io(0) == []",
    "while a daemon thread waits": "threading.Thread(target=lambda: list(watcher), daemon=True).start()",
    "after close": "watcher.close()",
    "as its own context": "watcher.read(conn, context=watcher)",
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
def test_open_when_the_interpreter_exits(backend: Name, ending: str) -> None:
    code = f"""
        import atexit, socket, threading
        from gaio.selector import LoopWatcher
        atexit.register(lambda: print(watcher.closed, watcher._leader.closed))
        watcher = LoopWatcher(backend={backend!r})
        conn, peer = socket.socketpair()
        watcher._delegation.share(conn)
        watcher.read_start(conn)
        {ending}
        kept = conn
    """
    assert child.output_of(code, "-W", "ignore::ResourceWarning") == "True True"


def test_a_loop_that_is_dropped_is_collected(backend: Name) -> None:
    """With a transport, whose requests refer to it. Such a loop closes itself and warns. With the standard library
    too that may come too late: its sockets may have been finalized before it.
    """
    code = f"""
        import asyncio, gc, os, socket, sys, threading, warnings, weakref
        import gaio.asyncio

        def run():
            loop = gaio.asyncio.EventLoop(backend={backend!r})
            loop.slow_callback_duration = 3600  # of which debug mode tells, on a machine that is busy
            conn, peer = socket.socketpair()
            conn.setblocking(False)
            loop.run_until_complete(loop.create_connection(asyncio.Protocol, sock=conn))
            assert loop.watcher is not None
            peer.close()
            return weakref.ref(loop)

        warnings.simplefilter("ignore")
        sys.unraisablehook = lambda _: None
        before = len(os.listdir("/dev/fd"))
        gone = run()
        gc.collect()
        gc.collect()
        assert gone() is None
        assert [thread.name for thread in threading.enumerate()] == ["MainThread"]
        assert len(os.listdir("/dev/fd")) == before
    """
    assert child.output_of(code) == ""
