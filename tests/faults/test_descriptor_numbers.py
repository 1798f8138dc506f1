"""A descriptor's number says nothing about whose it is: it may be a stranger's a moment after it was closed."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import threading
from functools import partial

import pytest

import gaio
from tests import storm
from tests.accounting import AccountedWatcher, MakeWatcher
from tests.backends import Name
from tests.peers import Pairs
from tests.waiting import LIMIT, Background, wait_until


@pytest.mark.scenario(8)
@pytest.mark.slow
def test_a_freed_number_that_is_used_again_is_never_touched(make_watcher: MakeWatcher, pairs: Pairs) -> None:
    """One thread opens sockets all the time, and finds in each what was sent to it, while connections come and go.

    Both ends of a pair are sent a token, which is received later: bytes of a connection in there, a missing token or
    EBADF would mean that somebody used a number that was no longer theirs. They are sockets because of any other file
    the kernel would say ENOTSOCK, and nothing would be amiss.
    """
    watcher = make_watcher()
    stop = threading.Event()

    def open_sockets() -> int:
        rounds = 0
        held: list[tuple[tuple[socket.socket, socket.socket], bytes]] = []
        while not stop.is_set() or held:
            if not stop.is_set() and len(held) < 20:
                ends = socket.socketpair()
                token = b"stranger %d" % rounds
                for end in ends:
                    end.setblocking(False)
                    end.send(token)
                held.append((ends, token))
                rounds += 1
            else:
                ends, token = held.pop(random.randrange(len(held)))
                for end in ends:
                    assert end.recv(1000) == token
                for end in ends:
                    end.close()
        return rounds

    opening = Background(open_sockets)
    with storm.raging("switches"):  # or hardly ever one is opened in the moment after another was closed
        for _ in range(2000):
            conn, peer = pairs.unix()
            read = watcher.read(conn)
            write = watcher.write(conn, b"of the connection")
            if random.random() < 0.5:
                watcher.wait(0)
            if random.random() < 0.5:
                peer.close()
            watcher.free(conn)
            watcher.free(conn)
            watcher.finish(read, write)
            peer.close()
    stop.set()
    assert opening.result() > 100


@pytest.mark.scenario(9)
def test_the_original_object_closed_again_and_again(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """The object no longer has a number: closing it, or collecting it, closes no stranger's descriptor."""
    for _ in range(100):
        conn, peer = pairs.unix()
        read = watcher.read(conn)
        stranger = os.dup(peer.fileno())
        conn.close()
        conn.close()
        assert conn.detach() == -1
        os.fstat(stranger)
        peer.send(b"x")
        watcher.finish(read)
        assert read.data == b"x"
        del conn, read
        os.fstat(stranger)
        os.close(stranger)


@pytest.mark.scenario(8)
def test_nothing_is_inherited_by_a_child_program(make_watcher: MakeWatcher, pairs: Pairs) -> None:
    """Not even when it is started with close_fds=False: neither connections nor what a watcher needs for itself."""
    ask = "import os\nfor name in os.listdir('/proc/self/fd'):\n    print(name)"
    if sys.platform != "linux":
        pytest.skip("needs /proc")

    def inherited() -> set[str]:
        command = [sys.executable, "-S", "-E", "-c", ask]
        done = subprocess.run(command, close_fds=False, capture_output=True, text=True, timeout=30, check=True)
        return set(done.stdout.split())

    before = inherited()
    watcher = make_watcher()
    for _ in range(5):
        conn, _peer = pairs.tcp()
        watcher.finish(watcher.write(conn, b"x"))
        watcher.read(conn)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        watcher.watcher.accept(listener)
        with socket.create_connection(address):
            (result,) = watcher.watcher.wait_io(30)
            assert inherited() == before
            detached = result.accepted
            assert detached is not None
            with detached:
                assert inherited() == before
            watcher.watcher.free(listener)


@pytest.mark.scenario(26)
def test_the_mode_of_a_description_that_others_share_stays(
    make_watcher: MakeWatcher, pairs: Pairs, backend: Name
) -> None:
    """O_NONBLOCK belongs to the open file description: another holder of it still blocks as it did before.

    But on kqueue: there MSG_DONTWAIT does not do on every system.
    """
    watcher = make_watcher()
    for blocking in (True, False):
        for make in (pairs.tcp, pairs.unix):
            conn, peer = make()
            conn.setblocking(blocking)
            shared = socket.socket(fileno=os.dup(conn.fileno()))
            pairs.also_close(shared)
            read, write = watcher.read(conn), watcher.write(conn, [b"x", bytearray(100_000)], timeout=0)
            peer.send(b"x")
            watcher.finish(read, write)
            assert os.get_blocking(shared.fileno()) is (blocking and backend != "kqueue")
            watcher.free(conn)
            watcher.wait(0)
            assert os.get_blocking(shared.fileno()) is (blocking and backend != "kqueue")


@pytest.mark.scenario(10)
def test_freeing_from_within_the_batch_that_ends_it(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """As a server does: free() for each of several results of one connection that came in one batch."""
    for _ in range(100):
        conn, peer = pairs.tcp()
        reads = [watcher.read(conn) for _ in range(5)]
        peer.send(b"x")
        peer.close()
        for read in watcher.finish(*reads):
            assert read.result is not None
            watcher.free(read.result.conn)
        assert watcher.wait(0) == []
    assert watcher.watcher.stats()[:2] == (0, 0)


@pytest.mark.scenario(13)
def test_a_watcher_is_collected_with_requests_pending_while_a_peer_floods(backend: Name, pairs: Pairs) -> None:
    """The memory of its requests goes with it, but not before the kernel has let go of it."""
    for _ in range(20):
        watcher = gaio.Watcher(backend=backend)
        conn, peer = pairs.tcp(buffers=8192)
        peer.setblocking(False)
        buffer = bytearray(1 << 20)
        watcher.read_full(conn, buffer)
        watcher.read(conn)
        watcher.write(conn, bytes(1 << 20))
        assert watcher.wait_io(0) == []
        try:
            while peer.send(b"flood" * 1000):
                pass
        except (BlockingIOError, ConnectionError):
            pass
        del watcher
        snapshot = bytes(buffer)
        peer.close()
        assert buffer == snapshot
        buffer.clear()


class HandedOverSlowly:
    """A connection whose number is asked for at leisure, so that something can happen right after."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.asked, self.go_on = threading.Event(), threading.Event()

    def fileno(self) -> int:
        number = self.sock.fileno()
        if not self.asked.is_set():
            self.asked.set()
            assert self.go_on.wait(LIMIT)
        return number

    def close(self) -> None:
        self.sock.close()


@pytest.mark.scenario(8, 15)
def test_free_while_another_thread_hands_the_connection_over(make_watcher: MakeWatcher, pairs: Pairs) -> None:
    """The number was read, then closed by free(), then duplicated: EBADF, or a stranger's if it was opened again."""
    watcher = make_watcher()
    leader = watcher.watcher._leader
    for _ in range(5):
        sock, peer = pairs.unix()
        conn = HandedOverSlowly(sock)
        submitting = Background(partial(watcher.write, conn, b"x"))
        assert conn.asked.wait(LIMIT)
        freeing = Background(partial(watcher.free, conn))
        wait_until(lambda: len(leader.inside) >= 3, "the second thread to wait for the first, beside the watcher's own")
        conn.go_on.set()
        write = submitting.result()
        freeing.result()
        watcher.finish(write)
        assert peer.recv(10) == (b"x" if write.error is None else b"")


@pytest.mark.scenario(8)
def test_the_number_becomes_a_stranger_s_while_it_is_handed_over(make_watcher: MakeWatcher, pairs: Pairs) -> None:
    """The caller closes the object itself, and opens something else: that is refused, and the other left alone."""
    watcher = make_watcher()
    sock, _ = pairs.unix()
    stranger, stranger_peer = pairs.unix()
    pairs.also_close(stranger)
    conn = HandedOverSlowly(sock)
    submitting = Background(partial(watcher.write, conn, b"misdirected"))
    assert conn.asked.wait(LIMIT)
    number = sock.fileno()
    sock.close()
    os.dup2(stranger.fileno(), number)
    conn.go_on.set()
    with pytest.raises(gaio.ConnClosedError):
        submitting.result()
    os.close(number)
    stranger.send(b"only this")
    assert stranger_peer.recv(100) == b"only this"
