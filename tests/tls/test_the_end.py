"""free() and close() at any time, threads that submit meanwhile, waiting elsewhere, connections that are forgotten."""

from __future__ import annotations

import gc
import selectors
import signal
import socket
import threading
import weakref

import pytest

import gaio
from gaio.tls import TLSWatcher
from tests.accounting import AccountedWatcher
from tests.backends import Name
from tests.peers import Pairs, receive_exactly, receive_until_eof
from tests.tls.conftest import Connect, Contexts
from tests.waiting import Background, TimeLimit, wait_until

MIB = 1 << 20


@pytest.mark.parametrize("end", ["free", "close"])
@pytest.mark.parametrize("when", ["shaking hands", "busy"])
def test_each_request_has_its_result(
    end: str,
    when: str,
    as_server: Connect,
    watcher: AccountedWatcher,
    tls: TLSWatcher,
    contexts: Contexts,
    pairs: Pairs,
) -> None:
    if when == "busy":
        conn, _ = as_server()
    else:
        conn, _ = pairs.tcp()
        tls.start_server(conn, contexts.server)
    requests = [
        watcher.read(conn),
        watcher.read_full(conn, bytearray(10)),
        watcher.read_start(conn),
        watcher.write(conn, bytes(32 * MIB)),
        watcher.write(conn, b"small", timeout=100),
        watcher.shutdown(conn),
    ]
    watcher.wait(0)
    if end == "free":
        tls.free(conn)
        tls.free(conn)
        watcher.finish(*requests)
        with pytest.raises(gaio.ConnClosedError):
            tls.write(conn, b"x")
        assert tls.unsent(conn) == 0
        expected: type[Exception] = gaio.ConnClosedError
    else:
        watcher.close_and_check()
        with pytest.raises(gaio.WatcherClosedError):
            tls.write(conn, b"x")
        expected = gaio.WatcherClosedError
    assert [type(request.error) for request in requests] == [expected] * len(requests)


def test_threads_submit_while_it_is_closed(backend: Name, contexts: Contexts, pairs: Pairs) -> None:
    """Each call is accepted, and has its result, or raises."""
    for _ in range(10):
        tls = TLSWatcher(backend=backend)
        conns = [pairs.tcp()[0] for _ in range(4)]
        for conn in conns:
            tls.start_server(conn, contexts.server)
        accepted: list[list[int]] = [[] for _ in conns]
        began = threading.Barrier(len(conns) + 1)

        def submit(
            number: int, conns: list[socket.socket] = conns, accepted: list[list[int]] = accepted,
            tls: TLSWatcher = tls, began: threading.Barrier = began,
        ) -> None:  # fmt: skip
            began.wait()
            for serial in range(100_000):
                try:
                    tls.write(conns[number], b"x", context=(number, serial))
                except gaio.WatcherClosedError:
                    return
                accepted[number].append(serial)

        threads = [threading.Thread(target=submit, args=(number,)) for number in range(len(conns))]
        for thread in threads:
            thread.start()
        began.wait()
        closing = threading.Timer(0.005, tls.close)
        closing.start()
        found: list[tuple[int, int]] = []
        for result in tls:
            assert isinstance(result.error, gaio.WatcherClosedError)
            found.append(result.context)
        for thread in (closing, *threads):
            thread.join()
        assert sorted(found) == [(number, serial) for number, serials in enumerate(accepted) for serial in serials]


def test_a_thread_frees_what_another_one_serves(as_server: Connect, watcher: AccountedWatcher, tls: TLSWatcher) -> None:
    for _ in range(20):
        conn, peer = as_server()
        read = watcher.read_start(conn)
        writes = [watcher.write(conn, bytes(100_000)) for _ in range(5)]
        freeing = threading.Thread(target=tls.free, args=(conn,))
        freeing.start()
        watcher.finish(read, *writes)
        freeing.join()
        assert isinstance(read.error, gaio.ConnClosedError)
        assert {type(write.error) for write in writes} <= {type(None), gaio.ConnClosedError}
        peer.close()


def test_waiting_in_another_loop(as_server: Connect, tls: TLSWatcher) -> None:
    """fileno() tells of what is submitted, by this thread and others, and of deadlines."""
    conn, peer = as_server()
    with selectors.DefaultSelector() as selector:
        selector.register(tls.fileno(), selectors.EVENT_READ)
        limit = TimeLimit()

        def until(operation: gaio.Operation) -> gaio.OpResult:
            while True:
                assert selector.select(limit.left(operation.name))
                for result in tls.wait_io(0):
                    if result.operation is operation:
                        return result

        tls.write(conn, b"hello")
        assert until(gaio.WRITE).error is None
        assert receive_exactly(peer, 5) == b"hello"
        thread = threading.Thread(target=tls.write, args=(conn, bytes(100_000)))
        thread.start()
        receiving = Background(lambda: receive_exactly(peer, 100_000))
        assert until(gaio.WRITE).error is None
        assert receiving.result() == bytes(100_000)
        thread.join()
        tls.read(conn, timeout=0.01)
        assert isinstance(until(gaio.READ).error, gaio.DeadlineError)
        tls.read_start(conn)
        peer.sendall(b"x")
        assert bytes(until(gaio.READ).buffer) == b"x"


def test_a_signal_handler_writes(as_server: Connect, tls: TLSWatcher, hears_signals: None) -> None:
    """While the consumer waits without end: the handler wakes it."""
    conn, peer = as_server()
    before = signal.signal(signal.SIGALRM, lambda *_: tls.write(conn, b"from a handler"))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        (result,) = tls.wait_io()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert (result.operation, result.error) == (gaio.WRITE, None)
    assert receive_exactly(peer, 14) == b"from a handler"


def test_waiting_within_waiting_is_refused(as_server: Connect, tls: TLSWatcher, hears_signals: None) -> None:
    as_server()
    refused: list[Exception] = []

    def handler(*_: object) -> None:
        try:
            tls.wait_io(0)
        except RuntimeError as error:
            refused.append(error)
        tls.post()

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        assert [result.operation for result in tls.wait_io()] == [gaio.POST]
    finally:
        signal.signal(signal.SIGALRM, before)
    assert len(refused) == 1


def test_a_connection_that_is_forgotten_is_closed(
    as_server: Connect, watcher: AccountedWatcher, tls: TLSWatcher
) -> None:
    conn, peer = as_server()
    read = watcher.read(conn)
    peer.sendall(b"x")
    watcher.finish(read)
    gone = weakref.ref(conn)
    del conn, read
    gc.collect()
    assert gone() is None
    closed = Background(lambda: peer.recv(1))
    wait_until(lambda: closed.done() or watcher.wait(0.001), "the end of the connection")
    assert closed.result() == b""  # SSLSocket tells a stream that is cut off only where it is asked to


def test_a_watcher_that_is_forgotten_is_closed(backend: Name, contexts: Contexts, pairs: Pairs) -> None:
    tls = TLSWatcher(backend=backend)
    conn, peer = pairs.tcp()
    tls.start_server(conn, contexts.server)
    tls.read_start(conn)
    gone = weakref.ref(tls)
    del tls
    gc.collect()
    assert gone() is None
    assert receive_until_eof(peer) == b""
