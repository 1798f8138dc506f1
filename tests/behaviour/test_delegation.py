"""A connection handed over belongs to the watcher: the original is closed, what it was set to remains."""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys

import pytest

import gaio
from tests import leaks
from tests.accounting import AccountedWatcher, MakeWatcher
from tests.peers import Pairs, receive_exactly, receive_until_eof


@pytest.mark.parametrize("operation", ["read", "read_full", "write"])
def test_the_first_request_takes_the_connection(
    watcher: AccountedWatcher, pairs: Pairs, operation: str
) -> None:
    conn, _ = pairs.tcp()
    if operation == "read":
        watcher.read(conn)
    elif operation == "read_full":
        watcher.read_full(conn, bytearray(1))
    else:
        watcher.write(conn, b"x")
    assert conn.fileno() == -1
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        conn.recv(1)
    assert watcher.watcher.stats().conns == 1


def test_it_costs_one_descriptor(watcher: AccountedWatcher, pairs: Pairs) -> None:
    ends = [pairs.tcp() for _ in range(20)]
    before = len(leaks.in_use().descriptors)
    for conn, _ in ends:
        watcher.read(conn)
        watcher.write(conn, b"x")
    assert len(leaks.in_use().descriptors) == before
    assert watcher.watcher.stats().conns == 20


def test_options_survive(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """SO_LINGER with a time of zero, set before, still turns the end into a reset afterwards."""
    conn, peer = pairs.tcp()
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    watcher.finish(watcher.write(conn, b"x"))
    assert receive_exactly(peer, 1) == b"x"
    watcher.free(conn)
    with pytest.raises(ConnectionResetError):
        peer.recv(1)


class OfAnother(socket.socket):
    """A socket whose class has a say in its end: so gaio duplicates its descriptor, and has it close the original."""

    def close(self) -> None:
        super().close()


def duplicated(pairs: Pairs) -> tuple[OfAnother, socket.socket]:
    conn, peer = pairs.tcp()
    return OfAnother(fileno=conn.detach()), peer


def test_a_socket_hands_over_the_descriptor_that_it_has(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """So none but that is needed, and whoever else looks at that number finds the same connection."""

    class MySocket(socket.socket):
        """Which leaves the end to socket.socket."""

    ends = [pairs.tcp(), pairs.unix(), pairs.udp()]
    mine, peer = pairs.tcp()
    ends.append((MySocket(fileno=mine.detach()), peer))
    for conn, _ in ends:
        number = conn.fileno()
        before = os.fstat(number)
        watcher.read(conn)
        assert conn.fileno() == -1
        assert "[closed]" in repr(conn)
        assert os.path.samestat(before, os.fstat(number))


def test_close_of_a_class_of_the_callers_is_called(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """With the descriptor still open, as it may have something to say."""
    numbers: list[int] = []

    class SaysSo(socket.socket):
        def close(self) -> None:
            numbers.append(self.fileno())
            super().close()

    sock, peer = pairs.tcp()
    number = sock.fileno()
    conn = SaysSo(fileno=sock.detach())
    watcher.finish(watcher.write(conn, b"x"))
    assert numbers == [number]
    assert conn.fileno() == -1
    assert receive_exactly(peer, 1) == b"x"


@pytest.mark.scenario(8)
def test_no_descriptor_is_inherited_by_a_child_program(watcher: AccountedWatcher, pairs: Pairs) -> None:
    before = leaks.in_use()
    conns: list[gaio.Conn] = [pairs.tcp()[0], duplicated(pairs)[0], pairs.pipe_to_read()[0]]
    others = [end.fileno() for end in pairs.sockets()]
    for conn in conns:
        os.set_inheritable(conn.fileno(), True)  # whatever the original was
        watcher.read(conn)
    own = leaks.in_use().descriptors.keys() - before.descriptors.keys() - set(others)
    assert len(own) >= len(conns)
    assert not any(os.get_inheritable(number) for number in own)


def test_the_descriptors_of_a_watcher_are_not_inherited(make_watcher: MakeWatcher) -> None:
    before = leaks.in_use()
    make_watcher()
    own = leaks.in_use().descriptors.keys() - before.descriptors.keys()
    assert own
    assert not any(os.get_inheritable(number) for number in own)


@pytest.mark.scenario(9)
def test_closing_the_original_afterwards_is_harmless(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    read = watcher.read(conn)
    conn.close()
    conn.detach()
    peer.sendall(b"x")
    watcher.finish(read, watcher.write(conn, b"y"))
    assert read.data == b"x"
    assert receive_exactly(peer, 1) == b"y"


@pytest.mark.scenario(8, 9)
def test_the_number_of_the_original_may_be_used_again(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """Where it was duplicated, whoever gets that number next is none of the watcher's business."""
    conn, peer = duplicated(pairs)
    number = conn.fileno()
    watcher.finish(watcher.write(conn, b"first,"))
    reading, writing = os.pipe()
    stranger = os.fdopen(reading, "rb", buffering=0), os.fdopen(writing, "wb", buffering=0)
    pairs.also_close(*stranger)
    assert number in (reading, writing), "the number was not used again, so nothing was tested"
    watcher.finish(watcher.write(conn, b"second"))
    assert receive_exactly(peer, 12) == b"first,second"
    conn.close()
    watcher.free(conn)
    assert receive_until_eof(peer) == b""
    stranger[1].write(b"unharmed")
    assert stranger[0].read(8) == b"unharmed"


def test_a_second_watcher_is_refused(make_watcher: MakeWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    first, second = make_watcher(), make_watcher()
    read = first.read(conn)
    with pytest.raises(gaio.ConnClosedError, match=r"closed|watcher"):
        second.write(conn, b"x")
    peer.sendall(b"x")
    first.finish(read)
    assert read.data == b"x"


def test_two_watchers_at_work(make_watcher: MakeWatcher, pairs: Pairs) -> None:
    first, second = make_watcher(), make_watcher()
    one, other = pairs.tcp()
    for number in range(100):
        message = b"%03d" % number
        read = second.read(other)
        first.finish(first.write(one, message))
        second.finish(read)
        assert read.data == message


@pytest.mark.scenario(26)
def test_the_blocking_mode_of_the_peer_is_untouched(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.unix()
    watcher.finish(watcher.write(conn, b"x"))
    assert os.get_blocking(peer.fileno()) == (peer.gettimeout() is None)


def test_the_watcher_thread_can_be_bound_to_a_cpu(watcher: AccountedWatcher) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux binds a thread to a CPU")
    mine = os.sched_getaffinity(0)
    cpu = max(mine)
    watcher.watcher.set_affinity(cpu)
    bound = [
        thread for thread in map(int, os.listdir("/proc/self/task")) if os.sched_getaffinity(thread) == {cpu}
    ]
    if len(mine) > 1:
        assert len(bound) == 1
        assert bound[0] != os.getpid(), "the calling thread must keep its own CPUs"
    assert os.sched_getaffinity(0) == mine
