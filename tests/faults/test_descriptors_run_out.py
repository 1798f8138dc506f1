"""EMFILE: what needs a descriptor fails cleanly where the caller stands, and works again when there is one."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from tests import backends, child
from tests.accounting import MakeWatcher
from tests.backends import Name
from tests.faulty_libc import FaultyLibc
from tests.peers import Pairs
from tests.waiting import LIMIT

pytestmark = pytest.mark.scenario(3)

EPOLL_CTL_ADD = 1  # <sys/epoll.h>

# In a process of its own, whose limit can be lowered.
BEGINNING = """
import errno, os, resource, socket, sys
import gaio

def in_use():
    # not from /proc/self/fd, which needs a descriptor itself
    found = set()
    for number in range(64):
        try:
            found.add((number, os.fstat(number).st_ino))
        except OSError:
            pass
    return found

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
gaio.Watcher(backend={backend!r}).close()  # what is imported when it is needed is imported by now
null = os.open("/dev/null", os.O_RDONLY)

def take_all(but=0):
    taken = []
    try:
        while True:
            taken.append(os.dup(null))
    except OSError as error:
        assert error.errno == errno.EMFILE
    give_back(taken, but)
    return taken

def give_back(taken, count):
    for _ in range(count):
        os.close(taken.pop())

def check_refused(call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        assert error.errno == errno.EMFILE, error
        return True
    return False
"""
ENDING = """
print("good")
"""


def run(backend: Name, code: str) -> None:
    assert child.output_of(BEGINNING.format(backend=backend) + code.format(backend=backend) + ENDING) == "good"


def test_making_a_watcher(backend: Name) -> None:
    """With no descriptor, with one, with two …: it is refused with EMFILE or it works, and leaves nothing behind."""
    run(
        backend,
        """
refused = made = 0
for free in range(12):
    taken = take_all(but=free)
    before = in_use()
    try:
        watcher = gaio.Watcher(backend={backend!r})
    except OSError as error:
        assert error.errno == errno.EMFILE, error
        refused += 1
    else:
        watcher.close()
        made += 1
        del watcher
    assert not in_use() - before, in_use() - before
    give_back(taken, len(taken))
assert refused >= 2 and made >= 5, (refused, made)
""",
    )


def test_asking_for_the_backends(backend: Name) -> None:
    run(
        backend,
        """
taken = take_all()
found = {{offer.name: offer for offer in gaio.backends()}}
give_back(taken, len(taken))
assert {{offer.name: offer for offer in gaio.backends()}}[{backend!r}].available
""",
    )


def test_handing_a_socket_over_needs_none(backend: Name) -> None:
    run(
        backend,
        """
watcher = gaio.Watcher(backend={backend!r})
calls = {{
    "read": lambda conn: watcher.read(conn),
    "read_full": lambda conn: watcher.read_full(conn, bytearray(4)),
    "write": lambda conn: watcher.write(conn, b"ping"),
}}
for name, call in calls.items():
    conn, peer = socket.socketpair()
    taken = take_all()
    before = in_use()
    call(conn)
    peer.send(b"pong")
    (result,) = watcher.wait_io(30)
    assert result.error is None and result.size == 4, result
    assert in_use() == before
    watcher.free(conn)
    watcher.wait_io(0)
    assert len(before - in_use()) == 1, "it is closed"
    give_back(taken, len(taken))
    peer.close()
watcher.close()
""",
    )


def test_handing_anything_else_over(backend: Name) -> None:
    """The submitting call raises; the object is still the caller's, and can be handed over later."""
    run(
        backend,
        """
class Wrapper:
    def __init__(self, sock):
        self.sock = sock
    def fileno(self):
        return self.sock.fileno()
    def close(self):
        self.sock.close()

watcher = gaio.Watcher(backend={backend!r})
calls = {{
    "read": lambda conn: watcher.read(conn),
    "read_full": lambda conn: watcher.read_full(conn, bytearray(4)),
    "write": lambda conn: watcher.write(conn, b"ping"),
}}
for name, call in calls.items():
    sock, peer = socket.socketpair()
    conn = Wrapper(sock)
    taken = take_all()
    before = in_use()
    for _ in range(100):
        assert check_refused(call, conn)
    assert not in_use() - before, in_use() - before
    assert watcher.stats().conns == watcher.stats().pending == 0
    peer.send(b"pong")
    assert sock.recv(4) == b"pong", "it still belongs to the caller"
    give_back(taken, 1)
    peer.send(b"pong")
    call(conn)
    (result,) = watcher.wait_io(30)
    assert result.error is None and result.size == 4, result
    watcher.free(conn)
    watcher.wait_io(0)
    give_back(taken, len(taken))
    peer.close()
watcher.close()
""",
    )


@pytest.mark.scenario(3, on="epoll")
@pytest.mark.parametrize("backend", ["epoll"], indirect=True)
def test_a_registration_that_fails_takes_nothing(libc: FaultyLibc, make_watcher: MakeWatcher, pairs: Pairs) -> None:
    """ENOSPC of epoll_ctl(2), max_user_watches: the socket is as it was, and is handed over the next time."""
    watcher = make_watcher()
    conn, peer = pairs.tcp()
    conn.settimeout(LIMIT)
    number = conn.fileno()
    libc.fail("epoll_ctl", errno.ENOSPC, times=3, when=lambda _epoll, operation, *_: operation == EPOLL_CTL_ADD)
    for submit in (watcher.read, watcher.read_start, lambda conn: watcher.write(conn, b"x")):
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            submit(conn)
    assert (conn.fileno(), conn.gettimeout()) == (number, LIMIT)
    assert watcher.watcher.stats().conns == 0
    peer.sendall(b"as it was")
    assert conn.recv(100) == b"as it was"
    read = watcher.read(conn)
    peer.sendall(b"taken over")
    watcher.finish(read)
    assert read.data == b"taken over"


def test_a_server_serves_all_that_it_could_accept(backend: Name) -> None:
    """accept_start() takes the very last descriptor, and each of its clients is served all the same."""
    run(
        backend,
        """
watcher = gaio.Watcher(backend={backend!r})
listener = socket.create_server(("127.0.0.1", 0), backlog=40)
address = listener.getsockname()
watcher.accept_start(listener)
clients = [socket.socket() for _ in range(30)]
for client in clients:
    client.setblocking(False)
    try:
        client.connect(address)
    except BlockingIOError:
        pass
served, refused = 0, 0
known = []
while not refused or served < len(known):
    for result in watcher.wait_io(30):
        if result.operation is gaio.ACCEPT and result.error is None:
            conn = result.accepted
            watcher.read_start(conn)
            known.append(conn)
            client = next(client for client in clients if client.getsockname() == result.address)
            client.send(b"hello")
        elif result.operation is gaio.ACCEPT:
            assert result.error.errno == errno.EMFILE and result.more, result
            refused += 1
        else:
            assert bytes(result.buffer) == b"hello", result
            served += 1
assert check_refused(os.dup, null), "a descriptor was left"
assert 10 < len(known) < 30, len(known)
for conn in known:
    watcher.free(conn)
left = 30 - len(known)
while left:
    left -= sum(result.operation is gaio.ACCEPT and result.error is None for result in watcher.wait_io(30))
watcher.close()
for client in clients:
    client.close()
""",
    )


def test_the_connections_there_are_go_on(backend: Name) -> None:
    """Nothing of a turn needs a descriptor, freeing and closing included."""
    run(
        backend,
        """
watcher = gaio.Watcher(backend={backend!r})
ends = [socket.socketpair() for _ in range(4)]
for conn, peer in ends:
    watcher.write(conn, b"begin")
finished = []
while len(finished) < 4:
    finished += watcher.wait_io(30)
taken = take_all()
for _ in range(50):
    for conn, peer in ends:
        assert peer.recv(100)
        peer.send(b"ping")
        watcher.read(conn, timeout=60)
        watcher.write(conn, b"pong")
    finished = []
    while len(finished) < 8:
        finished += watcher.wait_io(30)
    assert all(result.error is None for result in finished)
watcher.read(ends[0][0], timeout=0)
assert isinstance(watcher.wait_io(30)[0].error, gaio.DeadlineError)
watcher.read(ends[0][0])
watcher.free(ends[0][0])
assert isinstance(watcher.wait_io(30)[0].error, gaio.ConnClosedError)
assert os.dup(null) >= 0, "its descriptor is free again"
watcher.close()
for _, peer in ends:
    peer.close()
""",
    )


def test_a_server_that_accepts(backend: Name) -> None:
    """The accept fails after a moment and not in a storm; the client in the backlog is served when there is room."""
    run(
        backend,
        """
watcher = gaio.Watcher(backend={backend!r})
listener = socket.create_server(("127.0.0.1", 0))
address = listener.getsockname()
watcher.accept(listener)
assert watcher.wait_io(0) == []
client = socket.socket()
taken = take_all()
client.connect(address)
failures = 0
for _ in range(3):
    (result,) = watcher.wait_io(30)
    assert result.accepted is None and result.error.errno == errno.EMFILE, result
    failures += 1
    watcher.accept(listener)
give_back(taken, 4)
while True:
    (result,) = watcher.wait_io(30)
    if result.error is None:
        break
    assert result.error.errno == errno.EMFILE
    watcher.accept(listener)
accepted = result.accepted
client.sendall(b"still there?")
watcher.read(accepted)
(result,) = watcher.wait_io(30)
assert bytes(result.buffer) == b"still there?"
watcher.close()
client.close()
""",
    )


@pytest.mark.scenario(3, on="epoll, kqueue")
@pytest.mark.parametrize("backend", backends.telling_readiness(), indirect=True)
def test_a_server_that_accepts_where_the_system_has_no_more(libc: FaultyLibc, make_watcher: MakeWatcher) -> None:
    """ENFILE, which is the other processes' fault: told of as EMFILE is, and the client is served in the end."""
    watcher = make_watcher().watcher
    for name in ("accept4", "accept"):
        libc.fail(name, errno.ENFILE, times=None)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        client.connect(listener.getsockname())
        for _ in range(3):
            watcher.accept(listener)
            (result,) = watcher.wait_io(LIMIT)
            assert isinstance(result.error, OSError)
            assert result.error.errno == errno.ENFILE
            assert result.accepted is None
        libc.recover()
        watcher.accept(listener)
        (result,) = watcher.wait_io(LIMIT)
        assert result.accepted is not None
        with result.accepted as accepted:
            client.sendall(b"still there?")
            assert accepted.recv(100) == b"still there?"
        watcher.free(listener)


def test_detaching_needs_none(backend: Name) -> None:
    run(
        backend,
        """
watcher = gaio.Watcher(backend={backend!r})
conn, peer = socket.socketpair()
watcher.write(conn, b"x")
watcher.wait_io(30)
taken = take_all()
detached = watcher.detach(conn)
detached.send(b"y")
assert peer.recv(2) == b"xy"
watcher.close()
detached.close()
peer.close()
""",
    )


def test_statistics_need_no_descriptor(backend: Name) -> None:
    """A server that has run out of them can still tell how it is."""
    run(
        backend,
        """
watcher = gaio.Watcher(backend={backend!r})
taken = take_all()
assert watcher.stats().conns == 0
give_back(taken, len(taken))
watcher.close()
""",
    )
