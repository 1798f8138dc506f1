"""fileno(): a watcher inside another event loop, which waits for it and then calls wait_io(0)."""

from __future__ import annotations

import asyncio
import gc
import selectors
import socket
import threading
from collections.abc import Callable
from functools import partial

import pytest

import gaio
from tests.accounting import AccountedWatcher, MakeWatcher
from tests.backends import Name
from tests.nest import Nest
from tests.peers import Pairs, pattern, receive_exactly, receive_until_eof
from tests.waiting import LIMIT, Background, TimeLimit, wait_until


@pytest.fixture
def nest(watcher: AccountedWatcher) -> Nest:
    return Nest(watcher)


def test_the_descriptor_stays_the_same(watcher: AccountedWatcher) -> None:
    assert watcher.watcher.fileno() == watcher.watcher.fileno()


def test_not_after_close(make_watcher: MakeWatcher) -> None:
    watcher = make_watcher()
    watcher.watcher.close()
    with pytest.raises(gaio.WatcherClosedError):
        watcher.watcher.fileno()


def test_not_readable_while_there_is_nothing_to_do(nest: Nest, pairs: Pairs) -> None:
    """With a request pending, with one finished, with none."""
    conn, peer = pairs.tcp()
    read = nest.watcher.read(conn)
    nest.settle()
    assert nest.look(0.05) is None
    peer.sendall(b"x")
    nest.finish(read)
    nest.settle()
    assert nest.look(0.05) is None


@pytest.mark.slow
def test_not_readable_by_and_by_either(nest: Nest, pairs: Pairs) -> None:
    """The watcher thread, which looks after deadlines, leaves the other loop alone where there is none."""
    nest.watcher.read(pairs.tcp()[0])
    nest.settle()
    assert nest.look(1.2) is None


def test_reads_and_writes(nest: Nest, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    for number in range(100):
        read = nest.watcher.read(conn)
        peer.sendall(b"%03d" % number)
        nest.finish(read)
        nest.finish(nest.watcher.write(conn, read.data))
        assert receive_exactly(peer, 3) == b"%03d" % number


def test_what_is_there_already_makes_it_readable(nest: Nest, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    peer.sendall(b"early")
    read = nest.watcher.read(conn)
    nest.finish(read)
    assert read.data == b"early"


def test_a_large_write_goes_on_as_the_peer_reads(nest: Nest, pairs: Pairs) -> None:
    conn, peer = pairs.tcp(buffers=8192)
    payload = pattern(2 << 20)
    write, end = nest.watcher.write(conn, payload), nest.watcher.shutdown(conn)
    receiving = Background(lambda: receive_until_eof(peer))
    nest.finish(write, end)
    assert receiving.result() == payload


def test_accept_and_connect(nest: Nest, pairs: Pairs) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    for _ in range(10):
        conn = socket.socket()
        accept, connect = nest.watcher.accept(listener), nest.watcher.connect(conn, address)
        nest.finish(accept, connect)
        assert connect.error is None
        accepted = accept.accepted
        read, write = nest.watcher.read(accepted), nest.watcher.write(conn, b"hello")
        nest.finish(read, write)
        assert read.data == b"hello"
        nest.watcher.free(conn)
        nest.watcher.free(accepted)
    nest.watcher.free(listener)


def test_many_connections_with_a_small_arena(make_watcher: MakeWatcher, pairs: Pairs) -> None:
    """Reads that find no memory left are started again, without anybody asking."""
    nest = Nest(make_watcher(4096))
    ends = [pairs.tcp() for _ in range(50)]
    reads = [nest.watcher.read(conn) for conn, _ in ends]
    for number, (_, peer) in enumerate(ends):
        peer.sendall(pattern(1000, number % 4))
    nest.finish(*reads)
    left = [
        nest.watcher.read_full(conn, bytearray(1000 - read.size))
        for (conn, _), read in zip(ends, reads, strict=True)
        if read.size < 1000
    ]
    nest.finish(*left)
    assert not any(request.error for request in [*reads, *left])


class TestDeadlines:
    def test_they_make_it_readable(self, nest: Nest, pairs: Pairs) -> None:
        read = nest.watcher.read(pairs.tcp()[0], timeout=0.05)
        nest.finish(read)
        assert isinstance(read.error, gaio.DeadlineError)
        nest.settle()

    def test_an_earlier_one_comes_earlier(self, nest: Nest, pairs: Pairs) -> None:
        conn, peer = pairs.tcp()
        late = nest.watcher.read(conn, timeout=3600)
        nest.settle()
        early = nest.watcher.read(pairs.tcp()[0], timeout=0.05)
        assert nest.finish(early) == [early]
        assert isinstance(early.error, gaio.DeadlineError)
        nest.watcher.free(conn)
        assert nest.finish(late) == [late]
        assert isinstance(late.error, gaio.ConnClosedError)
        assert receive_until_eof(peer) == b""

    def test_a_later_one_is_kept_too(self, nest: Nest, pairs: Pairs) -> None:
        reads = [nest.watcher.read(pairs.tcp()[0], timeout=0.02 * number) for number in range(10)]
        # In this order where each is looked at in time; a machine that is held up finds several passed at once.
        assert set(nest.finish(*reads)) == set(reads)
        assert all(isinstance(read.error, gaio.DeadlineError) for read in reads)
        nest.settle()

    def test_one_that_was_set_before_nesting(self, watcher: AccountedWatcher, pairs: Pairs) -> None:
        read = watcher.read(pairs.tcp()[0], timeout=1)
        watcher.wait(0)  # to nothing, unless this machine is held up for that second
        nest = Nest(watcher)
        nest.finish(read)
        assert isinstance(read.error, gaio.DeadlineError)

    def test_one_after_a_geological_age_keeps_none_from_being_kept(self, nest: Nest, pairs: Pairs) -> None:
        """Beyond what locks can wait for, which ended the watcher thread."""
        nest.watcher.read(pairs.tcp()[0], timeout=1e12)
        nest.settle()
        read = nest.watcher.read(pairs.tcp()[0], timeout=0.05)
        nest.finish(read)
        assert isinstance(read.error, gaio.DeadlineError)

    def test_one_that_nobody_needs_any_more(self, nest: Nest, pairs: Pairs) -> None:
        """The watcher thread may wake the loop once for it, for nothing."""
        conn, peer = pairs.tcp()
        read = nest.watcher.read(conn, timeout=0.1)
        peer.sendall(b"x")
        nest.finish(read)
        results = nest.look(0.3)
        assert results in (None, [])
        nest.settle()


class TestUsedOtherwiseBefore:
    def test_results_that_wait_make_it_readable(self, watcher: AccountedWatcher, pairs: Pairs) -> None:
        """The watcher thread had finished them when nobody fetched results."""
        conn, peer = pairs.tcp()
        read = watcher.read(conn)
        peer.sendall(b"before")
        wait_until(lambda: watcher.watcher.stats().pending == 0, "the watcher thread to read")
        nest = Nest(watcher)
        nest.finish(read)
        assert read.data == b"before"

    def test_requests_that_are_pending_go_on(self, watcher: AccountedWatcher, pairs: Pairs) -> None:
        conn, peer = pairs.tcp()
        for _ in range(3):
            first = watcher.read(conn)
            peer.sendall(b"x")
            watcher.finish(first)
        read = watcher.read(conn)
        assert watcher.wait(0.05) == []
        nest = Nest(watcher)
        peer.sendall(b"after")
        nest.finish(read)
        assert read.data == b"after"

    def test_waiting_in_wait_io_is_still_possible(self, nest: Nest, pairs: Pairs) -> None:
        conn, peer = pairs.tcp()
        for _ in range(3):
            read = nest.watcher.read(conn)
            sending = Background(lambda: peer.sendall(b"x"))
            nest.watcher.finish(read)
            sending.result()
            read = nest.watcher.read(conn)
            peer.sendall(b"y")
            nest.finish(read)
            assert read.data == b"y"


class TestOtherThreads:
    def test_submissions_wake_the_loop(self, nest: Nest, pairs: Pairs) -> None:
        ends = [pairs.unix() for _ in range(8)]
        start = threading.Barrier(9)

        def submit(conn: socket.socket) -> None:
            start.wait()
            for number in range(50):
                nest.watcher.write(conn, b"%02d" % number)

        nest.settle()
        threads = [Background(partial(submit, conn)) for conn, _ in ends]
        start.wait()
        limit = TimeLimit()
        done = 0
        while done < 400:
            results = nest.look(limit.left("writes"))
            assert results is not None
            done += len(results)
        for thread in threads:
            thread.result()
        expected = b"".join(b"%02d" % number for number in range(50))
        assert [receive_exactly(peer, 100) for _, peer in ends] == [expected] * 8

    def test_free_wakes_the_loop(self, nest: Nest, pairs: Pairs) -> None:
        conn, peer = pairs.tcp()
        read = nest.watcher.read(conn)
        nest.settle()
        Background(lambda: nest.watcher.free(conn)).result()
        nest.finish(read)
        assert isinstance(read.error, gaio.ConnClosedError)
        assert peer.recv(1) == b""

    def test_the_collector_wakes_the_loop(self, nest: Nest, pairs: Pairs) -> None:
        conn, peer = pairs.tcp()
        nest.finish(nest.watcher.write(conn, b"x"))
        nest.settle()
        del conn
        gc.collect()
        assert nest.look(LIMIT) == []
        assert receive_until_eof(peer) == b"x"

    def test_detach(self, nest: Nest, pairs: Pairs) -> None:
        conn, peer = pairs.tcp()
        nest.finish(nest.watcher.write(conn, b"x"))
        sock = Background(lambda: nest.watcher.watcher.detach(conn)).result()
        pairs.also_close(sock)
        sock.sendall(b"y")
        assert receive_exactly(peer, 2) == b"xy"

    def test_submissions_wake_it_though_the_thread_that_nested_it_has_ended(
        self, watcher: AccountedWatcher, pairs: Pairs
    ) -> None:
        """What a thread has asked of io_uring ends with it, the way to wake it included."""
        conn, _ = pairs.tcp()
        nest = Background(lambda: Nest(watcher)).result()
        for _ in range(3):
            write = Background(lambda: watcher.write(conn, b"x")).result()
            nest.finish(write)

    def test_after_a_detach_submissions_still_wake_the_loop(self, nest: Nest, pairs: Pairs) -> None:
        """It does a turn itself, and takes the wake-up with it."""
        (conn, _), (other, _) = pairs.tcp(), pairs.tcp()
        nest.finish(nest.watcher.write(conn, b"x"), nest.watcher.write(other, b"x"))
        nest.settle()
        pairs.also_close(Background(lambda: nest.watcher.watcher.detach(conn)).result())
        nest.finish(nest.watcher.write(other, b"y"))

    def test_what_a_detach_finishes_makes_it_readable(self, nest: Nest, pairs: Pairs) -> None:
        (conn, _), (other, peer) = pairs.tcp(), pairs.tcp()
        nest.finish(nest.watcher.write(conn, b"x"))
        read = nest.watcher.read(other)
        nest.settle()
        peer.sendall(b"x")
        pairs.also_close(Background(lambda: nest.watcher.watcher.detach(conn)).result())
        nest.finish(read)

    def test_close_from_another_thread(self, make_watcher: MakeWatcher, pairs: Pairs) -> None:
        watcher = make_watcher()
        Nest(watcher).settle()
        read = watcher.read(pairs.tcp()[0])
        Background(watcher.watcher.close).result()
        watcher.finish(read)
        assert isinstance(read.error, gaio.WatcherClosedError)


def echo(watcher: gaio.Watcher, results: list[gaio.OpResult]) -> None:
    """A whole server in what another loop calls."""
    for result in results:
        if result.error is not None:
            watcher.free(result.conn)
        elif result.operation is gaio.ACCEPT:
            watcher.read(result.accepted)
            watcher.accept(result.conn)
        elif result.operation is gaio.READ:
            watcher.write(result.conn, result.buffer)
        else:
            watcher.read(result.conn)


def start_echo(watcher: gaio.Watcher) -> tuple[str, int]:
    listener = socket.create_server(("127.0.0.1", 0))
    host, port = listener.getsockname()
    watcher.accept(listener)
    return host, port


def be_clients(address: tuple[str, int]) -> None:
    socks = [socket.create_connection(address, timeout=LIMIT) for _ in range(20)]
    for number, sock in enumerate(socks):
        sock.sendall(pattern(50_000, number % 4))
        sock.shutdown(socket.SHUT_WR)
    for number, sock in enumerate(socks):
        assert receive_until_eof(sock) == pattern(50_000, number % 4)
        sock.close()


def test_in_asyncio(backend: Name) -> None:
    """Beside tasks of its own, which run all the while."""

    async def main(watcher: gaio.Watcher) -> int:
        loop = asyncio.get_running_loop()
        loop.add_reader(watcher.fileno(), lambda: echo(watcher, watcher.wait_io(0)))
        clients = loop.run_in_executor(None, be_clients, start_echo(watcher))
        rounds = 0
        while not clients.done():
            await asyncio.sleep(0)
            rounds += 1
        await clients
        loop.remove_reader(watcher.fileno())
        return rounds

    with gaio.Watcher(backend=backend) as watcher:
        assert asyncio.run(main(watcher))


def test_in_asyncio_that_sleeps(backend: Name) -> None:
    """Nothing but the watcher's descriptor wakes the loop."""

    async def main(watcher: gaio.Watcher) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(watcher.fileno(), lambda: echo(watcher, watcher.wait_io(0)))
        await asyncio.wait_for(loop.run_in_executor(None, be_clients, start_echo(watcher)), LIMIT)
        loop.remove_reader(watcher.fileno())

    with gaio.Watcher(backend=backend) as watcher:
        asyncio.run(main(watcher))


def test_in_trio(backend: Name) -> None:
    trio = pytest.importorskip("trio")

    async def main(watcher: gaio.Watcher) -> None:
        token = trio.lowlevel.current_trio_token()
        address = start_echo(watcher)
        with trio.CancelScope() as scope:

            def clients() -> None:
                try:
                    be_clients(address)
                finally:
                    token.run_sync_soon(scope.cancel)

            running = Background(clients)
            while True:
                await trio.lowlevel.wait_readable(watcher.fileno())
                echo(watcher, watcher.wait_io(0))
        running.result()

    with gaio.Watcher(backend=backend) as watcher:
        trio.run(main, watcher)


@pytest.mark.parametrize(
    "make_selector",
    [
        getattr(selectors, name)
        for name in ("SelectSelector", "PollSelector", "EpollSelector", "KqueueSelector")
        if hasattr(selectors, name)
    ],
    ids=lambda cls: cls.__name__,
)
def test_in_every_kind_of_selector(
    backend: Name, pairs: Pairs, make_selector: Callable[[], selectors.BaseSelector]
) -> None:
    done, say_done = pairs.unix()
    pairs.also_close(done)
    with gaio.Watcher(backend=backend) as watcher, make_selector() as selector:
        selector.register(watcher, selectors.EVENT_READ)  # it has a fileno(), which is all that a selector wants
        selector.register(done, selectors.EVENT_READ)
        address = start_echo(watcher)

        def clients() -> None:
            try:
                be_clients(address)
            finally:
                say_done.close()

        running = Background(clients)
        limit = TimeLimit()
        ready: set[object] = set()
        while done not in ready:
            ready = {key.fileobj for key, _ in selector.select(limit.left("clients"))}
            if watcher in ready:
                echo(watcher, watcher.wait_io(0))
        running.result()
