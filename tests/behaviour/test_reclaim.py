"""What nobody refers to any more is closed: connections, and whole watchers."""

from __future__ import annotations

import gc
import threading

import pytest

import gaio
from tests.accounting import AccountedWatcher
from tests.backends import Name
from tests.peers import Pairs, receive_exactly
from tests.waiting import Background, wait_until


def use_and_forget(watcher: AccountedWatcher, pairs: Pairs, count: int) -> list[bytes]:
    """Write once on each of so many new connections, then drop every reference to them."""
    ends = [pairs.tcp() for _ in range(count)]
    watcher.finish(*(watcher.write(conn, b"once") for conn, _ in ends))
    return [receive_exactly(peer, 4) for _, peer in ends]


@pytest.mark.scenario(13)
def test_200_forgotten_connections_are_closed(watcher: AccountedWatcher, pairs: Pairs) -> None:
    assert use_and_forget(watcher, pairs, 200) == [b"once"] * 200
    gc.collect()
    assert [peer.recv(1) for peer in pairs.sockets()] == [b""] * 200
    wait_until(lambda: watcher.watcher.stats().gc_closed == 200, "gc_closed to reach 200")
    stats = watcher.watcher.stats()
    assert (stats.gc_found, stats.gc_closed, stats.conns) == (200, 200, 0)


def test_forgotten_connections_are_closed_while_the_consumer_waits(
    watcher: AccountedWatcher, pairs: Pairs
) -> None:
    use_and_forget(watcher, pairs, 20)
    gc.collect()
    conn, peer = pairs.tcp()
    read = watcher.read(conn)
    assert [other.recv(1) for other in pairs.sockets() if other is not peer] == [b""] * 20
    peer.sendall(b"x")
    watcher.finish(read)


def test_a_batch_that_was_gone_through_keeps_nothing_alive(backend: Name, pairs: Pairs) -> None:
    """`for result in watcher` waits for the next one then, which may be long."""

    def consume(watcher: gaio.Watcher) -> None:
        for result in watcher:
            del result

    with gaio.Watcher(backend=backend) as watcher:
        for _ in range(3):
            conn, peer = pairs.tcp()
            peer.sendall(b"x")
            watcher.read(conn)
        del conn
        consumer = Background(lambda: consume(watcher))
        assert [peer.recv(1) for peer in pairs.sockets()] == [b""] * 3
    consumer.result()


def test_a_connection_that_was_closed_leaves_nothing_to_the_collector(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """Nor does one that was detached: where the collector is off, memory would grow with each of them."""

    def serve() -> None:
        (conn, _), (other, _) = pairs.tcp(), pairs.tcp()
        watcher.finish(watcher.write(conn, b"x"), watcher.read(conn, timeout=0), watcher.write(other, b"x"))
        watcher.free(conn)
        pairs.also_close(watcher.watcher.detach(other))
        watcher.wait(0)

    def there() -> int:
        return sum(type(item).__module__ == "gaio.connection" for item in gc.get_objects())

    gc.disable()
    try:
        serve()
        before = there()
        for _ in range(5):
            serve()
        assert there() == before
    finally:
        gc.enable()


@pytest.mark.scenario(13)
def test_a_pending_request_keeps_its_connection(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """The caller may forget a connection it waits for: the result brings it back."""

    def submit() -> None:
        conn, _ = pairs.tcp()
        watcher.read(conn)

    submit()
    gc.collect()
    assert watcher.wait(0.05) == []
    (peer,) = pairs.sockets()
    peer.sendall(b"still there")
    (read,) = watcher.finish_all()
    assert read.data == b"still there"
    assert read.result is not None
    conn = read.result.conn
    watcher.finish(watcher.write(conn, b"indeed"))
    assert receive_exactly(peer, 6) == b"indeed"


@pytest.mark.scenario(13)
def test_a_forgotten_connection_first_finishes_its_writes(watcher: AccountedWatcher, pairs: Pairs) -> None:
    def submit() -> None:
        conn, _ = pairs.tcp()
        for number in range(100):
            watcher.write(conn, b"%02d" % number)

    submit()
    watcher.finish_all()
    gc.collect()
    (peer,) = pairs.sockets()
    assert receive_exactly(peer, 200) == b"".join(b"%02d" % number for number in range(100))
    assert peer.recv(1) == b""


@pytest.mark.scenario(13)
def test_a_connection_in_a_reference_cycle_is_closed(watcher: AccountedWatcher, pairs: Pairs) -> None:
    class Session:
        def __init__(self) -> None:
            self.conn, self.peer = pairs.tcp()
            self.me = self

    peer = Session().peer
    (session,) = (found for found in gc.get_objects() if isinstance(found, Session))
    watcher.finish(watcher.write(session.conn, b"x"))
    assert receive_exactly(peer, 1) == b"x"
    del session
    gc.collect()
    assert peer.recv(1) == b""


def test_freed_connections_are_not_counted_as_forgotten(watcher: AccountedWatcher, pairs: Pairs) -> None:
    def use() -> None:
        conn, _ = pairs.tcp()
        watcher.finish(watcher.write(conn, b"x"))
        watcher.free(conn)

    use()
    gc.collect()
    (peer,) = pairs.sockets()
    assert peer.recv(2) == b"x"
    assert peer.recv(1) == b""
    assert watcher.watcher.stats().gc_found == 0


# It is the caller's fault, and a watcher may say so.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
class TestForgottenWatcher:
    def test_it_goes_away_with_its_thread_and_its_connections(self, backend: Name, pairs: Pairs) -> None:
        threads = threading.active_count()
        conn, peer = pairs.tcp()
        watcher = gaio.Watcher(backend=backend)
        watcher.write(conn, b"x")
        assert len(watcher.wait_io(60)) == 1
        assert receive_exactly(peer, 1) == b"x"
        del watcher
        gc.collect()
        assert peer.recv(1) == b""
        wait_until(lambda: threading.active_count() == threads, "the thread of the watcher to end")

    def test_while_a_lock_is_held_that_its_thread_needs(self, backend: Name) -> None:
        """The collector may run anywhere, as in threading.enumerate(): it holds a lock that every thread ends with."""
        threads = threading.active_count()
        watchers = [gaio.Watcher(backend=backend)]
        with threading._active_limbo_lock:  # type: ignore[attr-defined]  # private: there is no other way into it
            watchers.clear()
            gc.collect()
        wait_until(lambda: threading.active_count() == threads, "the thread of the watcher to end")

    @pytest.mark.scenario(13)
    def test_it_goes_away_with_requests_pending(self, backend: Name, pairs: Pairs) -> None:
        threads = threading.active_count()
        conn, peer = pairs.tcp(buffers=8192)
        buffer = bytearray(10)
        watcher = gaio.Watcher(backend=backend)
        watcher.read(conn, buffer, timeout=3600)
        watcher.write(conn, bytes(1 << 20))
        assert watcher.wait_io(0) == []
        del watcher
        gc.collect()
        while peer.recv(65536):
            pass
        wait_until(lambda: threading.active_count() == threads, "the thread of the watcher to end")
        gc.collect()
        buffer.append(1)  # nothing holds the buffer any more

    def test_its_buffers_are_the_callers_again_at_once(self, backend: Name, pairs: Pairs) -> None:
        threads = threading.active_count()
        buffers = [bytearray(10) for _ in range(20)]
        watcher = gaio.Watcher(backend=backend)
        for buffer in buffers:
            watcher.read(pairs.unix()[0], buffer)
        assert watcher.wait_io(0) == []
        del watcher
        for buffer in buffers:
            buffer.append(1)  # BufferError while it is pinned
        wait_until(lambda: threading.active_count() == threads, "the thread of the watcher to end")

    def test_many_of_them(self, backend: Name, pairs: Pairs) -> None:
        for _ in range(50):
            conn, peer = pairs.unix()
            gaio.Watcher(backend=backend).read(conn)
            del conn
            gc.collect()
            assert peer.recv(1) == b""
