"""finish(): the orderly end of a connection."""

from __future__ import annotations

import gc
import os
import socket
import threading

import pytest

import gaio
from tests.accounting import AccountedWatcher
from tests.peers import Pairs, pattern, receive_until_eof, reset
from tests.waiting import wait_until


def drain_in_a_thread(peer: socket.socket, received: list[bytes]) -> threading.Thread:
    def drain() -> None:
        received.append(receive_until_eof(peer))
        peer.close()

    thread = threading.Thread(target=drain)
    thread.start()
    return thread


@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_what_is_queued_goes_out_then_fin_and_the_end_of_the_peer_ends_it(
    watcher: AccountedWatcher, pairs: Pairs, family: str
) -> None:
    conn, peer = getattr(pairs, family)()
    data = pattern(3 << 20)
    writes = [watcher.write(conn, data), watcher.write(conn, b"the end")]
    finish = watcher.finish_conn(conn)
    received: list[bytes] = []
    thread = drain_in_a_thread(peer, received)
    watcher.finish(*writes, finish)
    thread.join()
    assert received == [data + b"the end"]
    assert [write.error for write in writes] == [None, None]
    assert finish.error is None
    assert watcher.watcher.stats().conns == 0


def test_it_waits_for_the_end_of_the_peer(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    finish = watcher.finish_conn(conn)
    assert watcher.wait(0.02) == []
    assert peer.recv(10) == b""
    assert watcher.watcher.stats()[:2] == (1, 1)
    peer.close()
    assert watcher.finish(finish) == [finish]
    assert finish.error is None


def test_what_the_peer_still_sends_is_dropped_and_no_reset_comes(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """A close(2) with bytes unread would reset the connection, and the peer lose what it has not read yet."""
    conn, peer = pairs.tcp()
    watcher.write(conn, b"413 Content Too Large")
    finish = watcher.finish_conn(conn)
    sent = 0
    peer.setblocking(False)
    while sent < 4 << 20:
        try:
            sent += peer.send(bytes(65536))
        except BlockingIOError:
            watcher.wait(0.01)
    peer.setblocking(True)
    peer.shutdown(socket.SHUT_WR)
    watcher.finish(finish)
    assert finish.error is None
    assert receive_until_eof(peer) == b"413 Content Too Large"


def test_pending_reads_end_at_once(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    reads = [watcher.read(conn), watcher.read_full(conn, bytearray(10)), watcher.read(conn, timeout=1000)]
    watcher.wait(0)
    finish = watcher.finish_conn(conn)
    watcher.finish(*reads)
    assert all(isinstance(read.error, gaio.ConnClosedError) for read in reads)
    assert finish.result is None
    peer.close()
    watcher.finish(finish)
    assert finish.error is None


def test_with_a_stream_on(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    read = watcher.read_start(conn)
    peer.send(b"before")
    watcher.harvest_until(lambda: read.messages, "the bytes")
    finish = watcher.finish_conn(conn)
    watcher.finish(read)
    assert isinstance(read.error, gaio.ConnClosedError)
    peer.send(b"dropped")
    peer.close()
    watcher.finish(finish)
    assert finish.error is None
    assert read.messages == [b"before"]


def test_requests_that_come_later_are_refused(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    finish = watcher.finish_conn(conn)
    for submit in (watcher.read, watcher.read_start, watcher.shutdown, watcher.finish_conn, watcher.watcher.detach):
        with pytest.raises(gaio.ConnClosedError):
            submit(conn)
    with pytest.raises(gaio.ConnClosedError):
        watcher.write(conn, b"x")
    watcher.read_stop(conn)
    peer.close()
    watcher.finish(finish)


def test_a_connection_that_was_never_submitted(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    finish = watcher.finish_conn(conn)
    peer.close()
    watcher.finish(finish)
    assert finish.error is None


def test_a_peer_that_never_ends_is_cut_off_when_the_time_is_up(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    finish = watcher.finish_conn(conn, timeout=0.02)
    peer.send(b"and on and on")
    watcher.finish(finish)
    assert isinstance(finish.error, gaio.DeadlineError)
    wait_until(lambda: watcher.wait(0) == [] and watcher.watcher.stats().conns == 0, "the connection to be closed")
    assert peer.recv(10) == b""


def test_a_peer_that_never_reads_is_cut_off_when_the_time_is_up(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, _ = pairs.unix()
    writes = [watcher.write(conn, bytes(8 << 20)) for _ in range(2)]
    finish = watcher.finish_conn(conn, timeout=0.02)
    watcher.finish(finish, *writes)
    assert isinstance(finish.error, gaio.DeadlineError)
    assert all(isinstance(write.error, gaio.ConnClosedError) for write in writes)
    assert watcher.watcher.stats().conns == 0


@pytest.mark.parametrize("when", ["at once", "after FIN"])
def test_free_ends_it_early(watcher: AccountedWatcher, pairs: Pairs, when: str) -> None:
    conn, peer = pairs.tcp()
    finish = watcher.finish_conn(conn)
    if when == "after FIN":
        watcher.wait(0)
        assert peer.recv(1) == b""
    watcher.free(conn)
    watcher.finish(finish)
    assert isinstance(finish.error, gaio.ConnClosedError)
    assert watcher.watcher.stats().conns == 0


def test_a_peer_that_resets(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    finish = watcher.finish_conn(conn)
    watcher.wait(0)
    assert peer.recv(1) == b""
    reset(peer)
    watcher.finish(finish)
    assert isinstance(finish.error, OSError)
    assert watcher.watcher.stats().conns == 0


def test_a_peer_that_has_reset_before(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    read = watcher.read(conn)
    reset(peer)
    watcher.finish(read)
    finish = watcher.finish_conn(conn)
    watcher.finish(finish)
    assert isinstance(finish.error, OSError)
    assert watcher.watcher.stats().conns == 0


def test_close_ends_it(watcher: AccountedWatcher, pairs: Pairs) -> None:
    (first, to_first), (second, _) = pairs.tcp(), pairs.unix()
    draining = watcher.finish_conn(first)
    watcher.wait(0)
    assert to_first.recv(1) == b""
    write = watcher.write(second, bytes(8 << 20))
    behind = watcher.finish_conn(second)
    watcher.close_and_check()
    assert all(isinstance(request.error, gaio.WatcherClosedError) for request in (draining, behind, write))


def test_while_it_connects(watcher: AccountedWatcher) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        conn = socket.socket()
        connect = watcher.connect(conn, listener.getsockname())
        write = watcher.write(conn, b"hello")
        finish = watcher.finish_conn(conn)
        peer, _ = listener.accept()
        with peer:
            watcher.finish(connect, write)
            assert receive_until_eof(peer) == b"hello"
        watcher.finish(finish)
        assert finish.error is None


@pytest.mark.parametrize("kind", ["pipe", "udp"])
def test_what_has_no_fin_is_closed_when_all_is_written(watcher: AccountedWatcher, pairs: Pairs, kind: str) -> None:
    conn, peer = pairs.pipe_to_write() if kind == "pipe" else pairs.udp()
    write = watcher.write(conn, b"all")
    finish = watcher.finish_conn(conn)
    watcher.finish(write, finish)
    assert (write.error, finish.error) == (None, None)
    assert os.read(peer.fileno(), 10) == b"all"
    assert watcher.watcher.stats().conns == 0


def test_sequenced_packets(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.unix(socket.SOCK_SEQPACKET)
    write = watcher.write(conn, b"all")
    finish = watcher.finish_conn(conn)
    peer.send(b"dropped")
    assert peer.recv(10) == b"all"
    peer.close()
    watcher.finish(write, finish)
    assert finish.error is None


def test_a_listener_is_refused(watcher: AccountedWatcher) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(gaio.UnsupportedConnError):
        watcher.finish_conn(listener)


def test_unsent_and_connections_still_tell_of_it(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.unix()
    size = 8 << 20
    watcher.write(conn, bytes(size))
    watcher.wait(0)
    finish = watcher.finish_conn(conn)
    assert watcher.watcher.unsent(conn) > 0
    (info,) = watcher.watcher.connections()
    assert info.conn is conn
    assert info.writes == 2
    received: list[bytes] = []
    thread = drain_in_a_thread(peer, received)
    watcher.finish(finish)
    thread.join()
    assert len(received[0]) == size


def test_nobody_needs_to_hold_the_object(watcher: AccountedWatcher, pairs: Pairs) -> None:
    ours, peer = pairs.tcp()
    conn = socket.socket(fileno=os.dup(ours.fileno()))
    ours.close()
    watcher.watcher.finish(conn, context=None)
    del conn
    gc.collect()
    peer.close()
    (result,) = watcher.watcher.wait_io()
    assert (result.operation, result.error) == (gaio.FINISH, None)


def test_many_at_once(watcher: AccountedWatcher, pairs: Pairs) -> None:
    ends = [pairs.tcp() for _ in range(60)]
    finishes = []
    for number, (conn, peer) in enumerate(ends):
        watcher.read_start(conn)
        watcher.write(conn, b"bye")
        finishes.append(watcher.finish_conn(conn))
        if number % 3:
            peer.send(b"some more")
    for _, peer in ends:
        assert peer.recv(3, socket.MSG_WAITALL) == b"bye"
        peer.close()
        watcher.wait(0)
    watcher.finish_all()
    assert all(finish.result is not None for finish in finishes)
    assert watcher.watcher.stats().conns == 0
