"""detach(): a connection goes back to its owner as a fresh socket, and no byte is lost on the way."""

from __future__ import annotations

import errno
import gc
import os
import socket
import threading

import pytest

import gaio
from tests import leaks
from tests.accounting import AccountedWatcher, MakeWatcher
from tests.peers import Closable, Pairs, pattern, receive_exactly, receive_until_eof
from tests.waiting import LIMIT, Background


def taken_back(watcher: AccountedWatcher, conn: Closable, pairs: Pairs) -> socket.socket:
    """The fresh socket, to be closed with the pairs."""
    sock = watcher.watcher.detach(conn)
    pairs.also_close(sock)
    return sock


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_it_is_a_plain_blocking_socket(watcher: AccountedWatcher, pairs: Pairs, kind: str) -> None:
    conn, peer = pairs.tcp() if kind == "tcp" else pairs.unix()
    family, name = conn.family, conn.getsockname()
    watcher.finish(watcher.write(conn, b"delegated"))
    sock = taken_back(watcher, conn, pairs)
    assert type(sock) is socket.socket
    assert sock is not conn
    assert (sock.family, sock.type, sock.getsockname()) == (family, socket.SOCK_STREAM, name)
    assert sock.getblocking()
    assert not os.get_inheritable(sock.fileno())
    assert conn.fileno() == -1
    assert receive_exactly(peer, 9) == b"delegated"
    sock.settimeout(LIMIT)
    sock.sendall(b"ping")
    assert receive_exactly(peer, 4) == b"ping"
    peer.sendall(b"pong")
    assert receive_exactly(sock, 4) == b"pong"
    assert watcher.watcher.stats().conns == 0


def test_no_byte_is_lost(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """What had come and was not asked for, and what had gone out and was not read, in both directions."""
    conn, peer = pairs.tcp()
    incoming, outgoing = pattern(100_000, 1), pattern(100_000, 2)
    read = watcher.read_full(conn, bytearray(1000))
    sending = Background(lambda: peer.sendall(incoming))
    watcher.finish(read, watcher.write(conn, outgoing))
    sock = taken_back(watcher, conn, pairs)
    sock.settimeout(LIMIT)
    assert bytes(read.buffer) == incoming[:1000]
    assert receive_exactly(sock, len(incoming) - 1000) == incoming[1000:]
    sending.result()
    sock.sendall(b"the end")
    sock.shutdown(socket.SHUT_WR)
    assert receive_until_eof(peer) == outgoing + b"the end"


def test_options_survive(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, _ = pairs.tcp()
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    watcher.finish(watcher.write(conn, b"x"))
    assert taken_back(watcher, conn, pairs).getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_over_and_over(watcher: AccountedWatcher, make_watcher: MakeWatcher, pairs: Pairs) -> None:
    """Delegated again, to this watcher and to another one."""
    conn, peer = pairs.tcp()
    other = make_watcher()
    for number in range(20):
        owner = (watcher, other)[number % 2]
        read = owner.read(conn)
        peer.sendall(b"%02d" % number)
        owner.finish(read, owner.write(conn, b"%02d" % number))
        assert read.data == b"%02d" % number
        assert receive_exactly(peer, 2) == read.data
        conn = taken_back(owner, conn, pairs)


def test_it_costs_no_descriptor(watcher: AccountedWatcher, pairs: Pairs) -> None:
    ends = [pairs.tcp() for _ in range(20)]
    before = len(leaks.in_use().descriptors)
    for conn, _ in ends:
        watcher.finish(watcher.write(conn, b"x"))
        taken_back(watcher, conn, pairs)
    assert len(leaks.in_use().descriptors) == before


def test_a_connection_made_by_connect(watcher: AccountedWatcher, pairs: Pairs) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        conn = socket.socket()
        watcher.finish(watcher.connect(conn, listener.getsockname()))
        peer, _ = listener.accept()
        pairs.also_close(peer)
        sock = taken_back(watcher, conn, pairs)
        assert sock.getblocking()
        sock.sendall(b"x")
        assert peer.recv(1) == b"x"


def test_a_listener(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """It goes on listening, with the connections in its backlog."""
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    accept = watcher.accept(listener, timeout=0)
    watcher.finish(accept)
    assert isinstance(accept.error, gaio.DeadlineError)
    with socket.create_connection(address, timeout=LIMIT) as client:
        sock = taken_back(watcher, listener, pairs)
        accepted, name = sock.accept()
        pairs.also_close(accepted)
        assert name == client.getsockname()


def test_refused_while_requests_are_pending(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp(buffers=8192)
    read = watcher.read(conn)
    with pytest.raises(RuntimeError, match="pending"):
        watcher.watcher.detach(conn)
    peer.sendall(b"still heard")
    watcher.finish(read)
    assert read.data == b"still heard"

    payload = pattern(1 << 20)
    write = watcher.write(conn, payload)
    with pytest.raises(RuntimeError, match="pending"):
        watcher.watcher.detach(conn)
    receiving = Background(lambda: receive_exactly(peer, len(payload)))
    watcher.finish(write)
    assert receiving.result() == payload
    sock = taken_back(watcher, conn, pairs)
    peer.sendall(b"x")
    assert sock.recv(1) == b"x"


def test_a_refusal_holds_nothing(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """The connection can be dropped, and is closed at once, without the collector."""
    conn, peer = pairs.tcp()
    read = watcher.read(conn)
    try:
        watcher.watcher.detach(conn)
    except RuntimeError as error:
        assert "pending" in str(error)  # noqa: PT017  # what pytest.raises() returns would hold the frames
    peer.sendall(b"x")
    watcher.finish(read)
    gc.disable()
    try:
        del conn, read
        watcher.wait(0)
        assert receive_until_eof(peer) == b""
    finally:
        gc.enable()


def test_one_that_fails_is_closed(watcher: AccountedWatcher, pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    """No socket can be made of the descriptor. It does not keep others waiting."""
    conn, peer = pairs.tcp()
    other, other_peer = pairs.tcp()
    watcher.finish(watcher.write(conn, b"x"))
    read = watcher.read(other)

    class Refused(socket.SocketType):
        def __init__(self, *_arguments: object) -> None:
            raise OSError(errno.EINVAL, "getsockname")

    with monkeypatch.context() as patch:
        patch.setattr(socket, "SocketType", Refused)
        with pytest.raises(OSError, match="getsockname"):
            watcher.watcher.detach(conn)
        other_peer.sendall(b"goes on")
        watcher.finish(read)
        assert read.data == b"goes on"
    with pytest.raises(gaio.ConnClosedError):
        watcher.watcher.detach(conn)
    assert receive_until_eof(peer) == b"x"


def test_results_that_are_not_fetched_yet_do_not_matter(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """The request has finished; its result stays as it is."""
    conn, peer = pairs.tcp()
    other, other_peer = pairs.tcp()
    reads = [watcher.read(conn), watcher.read(other)]
    peer.sendall(b"one")
    other_peer.sendall(b"two")
    finished = watcher.finish(reads[0])
    sock = taken_back(watcher, conn, pairs)
    assert finished[0].data in (b"one", b"two")
    watcher.finish(*reads)
    peer.sendall(b"three")
    assert sock.recv(10) == b"three"


def test_what_held_the_connection_may_go(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """The object that was its name is collected; the socket that came back is not touched."""
    conn, peer = pairs.tcp()
    watcher.finish(watcher.write(conn, b"x"))
    sock = taken_back(watcher, conn, pairs)
    del conn
    gc.collect()
    assert watcher.wait(0) == []
    assert watcher.watcher.stats().gc_found == 0
    sock.sendall(b"y")
    assert receive_exactly(peer, 2) == b"xy"


def test_from_another_thread_while_the_consumer_waits(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conns = [pairs.tcp() for _ in range(20)]
    idle, idle_peer = pairs.tcp()
    watcher.finish(*(watcher.write(conn, b"x") for conn, _ in conns))
    read = watcher.read(idle)

    def take_back() -> list[socket.socket]:
        socks = [taken_back(watcher, conn, pairs) for conn, _ in conns]
        idle_peer.sendall(b"done")
        return socks

    taking = Background(take_back)
    watcher.finish(read)
    for sock, (_, peer) in zip(taking.result(), conns, strict=True):
        sock.sendall(b"y")
        assert receive_exactly(peer, 2) == b"xy"


def test_one_of_eight_threads_gets_it(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    watcher.finish(watcher.write(conn, b"x"))
    barrier = threading.Barrier(8)

    def take_back() -> socket.socket | None:
        barrier.wait()
        try:
            return taken_back(watcher, conn, pairs)
        except gaio.ConnClosedError:
            return None

    socks = [sock for sock in [thread.result() for thread in [Background(take_back) for _ in range(8)]] if sock]
    assert len(socks) == 1
    socks[0].sendall(b"y")
    assert receive_exactly(peer, 2) == b"xy"


class TestWrongUse:
    def test_what_is_not_delegated(self, watcher: AccountedWatcher, make_watcher: MakeWatcher, pairs: Pairs) -> None:
        conn, peer = pairs.tcp()
        with pytest.raises(gaio.UnsupportedConnError, match="never submitted"):
            watcher.watcher.detach(conn)
        other = make_watcher()
        read = other.read(conn)
        with pytest.raises(gaio.ConnClosedError, match="another watcher"):
            watcher.watcher.detach(conn)
        peer.sendall(b"x")
        other.finish(read)
        assert read.data == b"x"

    def test_after_free(self, watcher: AccountedWatcher, pairs: Pairs) -> None:
        conn, peer = pairs.tcp()
        watcher.finish(watcher.write(conn, b"x"))
        watcher.free(conn)
        with pytest.raises(gaio.ConnClosedError, match="freed"):
            watcher.watcher.detach(conn)
        assert receive_until_eof(peer) == b"x"

    def test_twice(self, watcher: AccountedWatcher, pairs: Pairs) -> None:
        conn, _ = pairs.tcp()
        watcher.finish(watcher.write(conn, b"x"))
        taken_back(watcher, conn, pairs)
        with pytest.raises(gaio.ConnClosedError):
            watcher.watcher.detach(conn)
        for submit in (watcher.read, watcher.shutdown):
            with pytest.raises(gaio.ConnClosedError):
                submit(conn)
        watcher.free(conn)  # there is nothing to free any more

    def test_what_is_no_socket(self, watcher: AccountedWatcher, pairs: Pairs) -> None:
        conn, peer = pairs.pipe_to_write()
        watcher.finish(watcher.write(conn, b"x"))
        with pytest.raises(gaio.UnsupportedConnError, match="socket"):
            watcher.watcher.detach(conn)
        watcher.finish(watcher.write(conn, b"y"))
        assert peer.read(2) == b"xy"

    @pytest.mark.parametrize("wrong", [None, 7, object()], ids=["None", "a number", "an object"])
    def test_what_is_no_connection(self, watcher: AccountedWatcher, wrong: object) -> None:
        with pytest.raises(gaio.UnsupportedConnError):
            watcher.watcher.detach(wrong)  # type: ignore[arg-type]  # wrong on purpose

    def test_after_close(self, make_watcher: MakeWatcher, pairs: Pairs) -> None:
        watcher = make_watcher()
        conn, peer = pairs.tcp()
        watcher.finish(watcher.write(conn, b"x"))
        watcher.watcher.close()
        with pytest.raises(gaio.WatcherClosedError):
            watcher.watcher.detach(conn)
        assert receive_until_eof(peer) == b"x"
