"""Any thread submits and frees; one harvests."""

from __future__ import annotations

import random
import socket
import threading
from functools import partial

import pytest

import gaio
from tests import storm
from tests.accounting import AccountedWatcher, Request
from tests.peers import Closable, Pairs, receive_exactly, receive_until_eof
from tests.waiting import LIMIT, Background, wait_until

THREADS = 8


def test_eight_threads_submit_on_connections_of_their_own(watcher: AccountedWatcher, pairs: Pairs) -> None:
    rounds = 300
    ends = [pairs.tcp() for _ in range(THREADS)]
    barrier = threading.Barrier(THREADS)

    def submit(index: int) -> list[Request]:
        barrier.wait()
        return [watcher.write(ends[index][0], b"%d:%03d " % (index, number)) for number in range(rounds)]

    threads = [Background(partial(submit, index)) for index in range(THREADS)]
    requests = [request for thread in threads for request in thread.result()]
    watcher.finish(*requests)
    for index, (_, peer) in enumerate(ends):
        expected = b"".join(b"%d:%03d " % (index, number) for number in range(rounds))
        assert receive_exactly(peer, len(expected)) == expected


@pytest.mark.scenario(15, 24)
def test_eight_threads_submit_while_the_consumer_harvests(watcher: AccountedWatcher, pairs: Pairs) -> None:
    rounds = 300
    ends = [pairs.tcp() for _ in range(THREADS)]

    def exchange(index: int) -> None:
        conn, peer = ends[index]
        for number in range(rounds):
            message = b"%d:%03d" % (index, number)
            watcher.read_full(conn, bytearray(len(message)))
            watcher.write(conn, message)
            assert receive_exactly(peer, len(message)) == message
            peer.sendall(message)

    threads = [Background(partial(exchange, index)) for index in range(THREADS)]
    received: dict[int, bytes] = {id(conn): b"" for conn, _ in ends}
    finished = 0
    while finished < 2 * THREADS * rounds:
        batch = watcher.wait(60)
        assert batch, "nothing finished for a minute"
        finished += len(batch)
        for request in batch:
            assert request.result is not None
            assert request.error is None
            if request.operation is gaio.READ:
                received[id(request.result.conn)] += request.buffer
    for thread in threads:
        thread.result()
    for index, (conn, _) in enumerate(ends):
        assert received[id(conn)] == b"".join(b"%d:%03d" % (index, number) for number in range(rounds))


@pytest.mark.scenario(15, 24)
def test_eight_threads_submit_on_one_connection(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """The writes of each thread keep their order, and no write is torn apart by another."""
    rounds = 200
    conn, peer = pairs.tcp()
    barrier = threading.Barrier(THREADS)

    def submit(index: int) -> None:
        barrier.wait()
        for number in range(rounds):
            watcher.write(conn, b"%d:%05d;" % (index, number))

    threads = [Background(partial(submit, index)) for index in range(THREADS)]
    received = receive_exactly(peer, 8 * THREADS * rounds)
    for thread in threads:
        thread.result()
    watcher.finish_all()
    messages = received.split(b";")[:-1]
    for index in range(THREADS):
        mine = [message for message in messages if message.startswith(b"%d:" % index)]
        assert mine == [b"%d:%05d" % (index, number) for number in range(rounds)]


@pytest.mark.scenario(15, 24)
def test_one_connection_is_adopted_once_though_eight_threads_hand_it_over(
    watcher: AccountedWatcher, pairs: Pairs
) -> None:
    for _ in range(50):
        conn, peer = pairs.unix()
        barrier = threading.Barrier(THREADS)

        def submit(conn: Closable = conn, barrier: threading.Barrier = barrier) -> Request:
            barrier.wait()
            return watcher.write(conn, b"x")

        threads = [Background(submit) for _ in range(THREADS)]
        watcher.finish(*(thread.result() for thread in threads))
        assert receive_exactly(peer, THREADS) == b"x" * THREADS
        watcher.free(conn)
        assert receive_until_eof(peer) == b""


@pytest.mark.scenario(15, 24)
def test_submitting_and_freeing_race(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """Each request is refused where it was submitted, or comes back; the peer always sees the end."""
    for _ in range(50):
        conn, peer = pairs.unix()
        barrier = threading.Barrier(THREADS + 1)

        def submit(conn: Closable = conn, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            for _ in range(random.randrange(1, 20)):
                try:
                    watcher.read(conn)
                    watcher.write(conn, b"x")
                except gaio.GaioError:
                    return

        threads = [Background(submit) for _ in range(THREADS)]
        barrier.wait()
        watcher.free(conn)
        for thread in threads:
            thread.result()
        watcher.free(conn)
        watcher.finish_all()
        assert set(receive_until_eof(peer)) <= set(b"x")


@pytest.mark.scenario(15, 24)
def test_a_consumer_about_to_sleep_overlooks_no_request(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """The submitter looks whether it sleeps while it falls asleep; threads change after every few bytecodes.

    The read wakes it, and while it begins that, with nothing to show for it, the write comes. Nobody else submits: that
    would wake the consumer soon, and what it has overlooked would be seen then.
    """
    rounds = 1500
    conn, peer = pairs.unix()
    waiting, waiting_peer = pairs.unix()
    finished = threading.Semaphore(0)

    def submit() -> None:
        for _ in range(rounds):
            watcher.read(waiting)
            watcher.write(conn, b"x")
            assert finished.acquire(timeout=LIMIT)
            waiting_peer.send(b"y")
            assert finished.acquire(timeout=LIMIT)

    with storm.raging("switches"):
        submitting = Background(submit)
        receiving = Background(partial(receive_exactly, peer, rounds))
        count = 0
        while count < 2 * rounds:
            batch = watcher.wait(LIMIT)
            assert batch, f"nothing happened any more after {count} results: {watcher.watcher.stats()}"
            count += len(batch)
            finished.release(len(batch))
    submitting.result()
    assert receiving.result() == b"x" * rounds


def test_the_consumer_may_change_from_thread_to_thread(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    for number in range(20):
        read = watcher.read(conn)
        if number % 2:
            assert watcher.wait(0) == []  # begun in this thread
        peer.sendall(b"x")
        harvesting = Background(partial(watcher.finish, read))
        assert harvesting.result() == [read]
        assert read.data == b"x"


@pytest.mark.scenario(17)
def test_a_request_outlives_the_thread_that_submitted_it(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """The kernel may cancel what a thread began when that thread ends; the caller must not notice."""
    conn, peer = pairs.tcp()

    def submit_and_begin() -> Request:
        read = watcher.read(conn)
        assert watcher.wait(0) == []
        return read

    read = Background(submit_and_begin).result()
    peer.sendall(b"x")
    watcher.finish(read)
    assert read.data == b"x"


@pytest.mark.parametrize("operation", ["read", "write", "free"])
def test_submitting_never_blocks(watcher: AccountedWatcher, pairs: Pairs, operation: str) -> None:
    """Even when nothing can move: the peer neither reads nor writes."""
    conn, _ = pairs.tcp(buffers=8192)
    for _ in range(100):
        if operation == "read":
            watcher.read(conn)
        else:
            watcher.write(conn, bytes(1 << 20))
    if operation == "free":
        watcher.free(conn)
        watcher.finish_all()
    else:
        assert watcher.pending >= 99


def test_a_request_of_the_wrong_kind_races_the_delegation(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """Another thread delegates the connection just then: accept() is refused all the same."""
    inside, go_on = threading.Event(), threading.Event()

    class Slow(socket.socket):
        def fileno(self) -> int:
            if threading.current_thread() is not threading.main_thread() and not inside.is_set():
                inside.set()
                assert go_on.wait(LIMIT)
            return super().fileno()

    plain, peer = pairs.tcp()
    conn = Slow(fileno=plain.detach())
    writing = Background(lambda: watcher.write(conn, b"x"))
    assert inside.wait(LIMIT)

    def accept() -> None:
        with pytest.raises(gaio.UnsupportedConnError, match="does not listen"):
            watcher.watcher.accept(conn)

    accepting = Background(accept)
    leader = watcher.watcher._leader
    wait_until(lambda: len(leader.inside) >= 3, "the second thread to wait for the first, beside the watcher's own")
    go_on.set()
    accepting.result()
    watcher.finish(writing.result())
    assert receive_exactly(peer, 1) == b"x"
