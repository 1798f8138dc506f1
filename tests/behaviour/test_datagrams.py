"""Datagrams: who has sent one, where one goes, and what is said of one that had no room."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gaio
from tests.accounting import AccountedWatcher, MakeWatcher, Repeating, is_cut_off
from tests.peers import Pairs, fill, pattern
from tests.waiting import wait_until

FAMILIES = [pytest.param(family, id=family.name) for family in (socket.AF_INET, socket.AF_INET6)]


def receive(watcher: AccountedWatcher, read: Repeating, count: int) -> None:
    """Harvest until so many messages have come in all."""
    watcher.harvest_until(lambda: len(read.messages) == count, f"{count} messages")


@pytest.mark.parametrize("family", [*FAMILIES, pytest.param(socket.AF_UNIX, id="AF_UNIX")])
class TestEveryFamily:
    def test_a_read_tells_who_sent_it(self, watcher: AccountedWatcher, pairs: Pairs, family: int) -> None:
        conn, address = pairs.bound(family)
        (one, to_one), (two, to_two) = pairs.bound(family), pairs.bound(family)
        buffer = bytearray(100)
        first, second = watcher.read(conn), watcher.read(conn, buffer)
        one.sendto(b"from one", address)
        two.sendto(b"from two", address)
        watcher.finish(first, second)
        assert (first.data, first.address, first.error) == (b"from one", to_one, None)
        assert (bytes(buffer[: second.size]), second.address, second.error) == (b"from two", to_two, None)

    def test_so_does_each_arrival(self, watcher: AccountedWatcher, pairs: Pairs, family: int) -> None:
        conn, address = pairs.bound(family)
        senders = [pairs.bound(family) for _ in range(3)]
        read = watcher.read_start(conn)
        expected = []
        for number in range(60):
            sender, from_there = senders[number % 3]
            sender.sendto(b"" if number == 30 else pattern(number * 7, number), address)
            expected.append((b"" if number == 30 else pattern(number * 7, number), from_there))
            if number % 8 == 7:  # a Unix socket has room for ten
                receive(watcher, read, number + 1)
        receive(watcher, read, 60)
        watcher.read_stop(conn)
        watcher.finish(read)
        assert list(zip(read.messages, read.addresses, strict=True)) == expected
        assert read.address is None, "the last one has not been sent by anybody"

    def test_a_write_goes_to_an_address(self, watcher: AccountedWatcher, pairs: Pairs, family: int) -> None:
        conn, address = pairs.bound(family)
        (one, to_one), (two, to_two) = pairs.bound(family), pairs.bound(family)
        writes = [
            watcher.write(conn, b"to one", address=to_one),
            watcher.write(conn, bytearray(b"to two"), address=to_two),
            watcher.write(conn, [b"in ", memoryview(b"several "), b"parts"], address=to_one),
        ]
        watcher.finish(*writes)
        assert [(write.size, write.error) for write in writes] == [(6, None), (6, None), (16, None)]
        assert one.recvfrom(100) == (b"to one", address)
        assert one.recvfrom(100) == (b"in several parts", address)
        assert two.recvfrom(100) == (b"to two", address)

    def test_what_was_read_is_answered(self, watcher: AccountedWatcher, pairs: Pairs, family: int) -> None:
        """The address of a result is one that write() takes, and a view of the arena is something to send."""
        conn, address = pairs.bound(family)
        peer, _ = pairs.bound(family)
        read = watcher.read(conn)
        peer.sendto(b"hello", address)
        watcher.finish(read)
        assert read.result is not None
        watcher.finish(watcher.write(conn, read.result.buffer, address=read.address))
        assert peer.recvfrom(100) == (b"hello", address)

    @pytest.mark.parametrize("repeats", [False, True], ids=["read", "read_start"])
    def test_what_has_no_room_is_told(
        self, make_watcher: MakeWatcher, pairs: Pairs, family: int, repeats: bool
    ) -> None:
        watcher = make_watcher(100)
        conn, address = pairs.bound(family)
        peer, from_there = pairs.bound(family)
        sent = [pattern(size) for size in (99, 100, 101, 5000, 1)]
        if repeats:
            on = watcher.read_start(conn)
            for message in sent:
                peer.sendto(message, address)
            receive(watcher, on, 5)
            assert on.messages == [message[:100] for message in sent]
            assert on.cut_off == [message[:100] for message in sent if len(message) > 100]
            assert on.addresses == [from_there] * 5
            return
        reads = [watcher.read(conn) for _ in sent]
        for message in sent:
            peer.sendto(message, address)
        watcher.finish(*reads)
        assert [read.data for read in reads] == [message[:100] for message in sent]
        assert [is_cut_off(read.error) for read in reads] == [False, False, True, True, False]
        assert [read.address for read in reads] == [from_there] * 5

    def test_what_has_no_room_in_a_buffer_is_told(
        self, watcher: AccountedWatcher, pairs: Pairs, family: int
    ) -> None:
        conn, address = pairs.bound(family)
        peer, from_there = pairs.bound(family)
        buffer = bytearray(4)
        read = watcher.read(conn, buffer)
        peer.sendto(b"hello", address)
        watcher.finish(read)
        assert (bytes(buffer), read.size, read.address) == (b"hell", 4, from_there)
        assert is_cut_off(read.error)
        full = watcher.read_full(conn, buffer)
        for message in (b"abc", b"de"):
            peer.sendto(message, address)
        watcher.finish(full)
        assert (bytes(buffer), full.size) == (b"abcd", 4)
        assert is_cut_off(full.error), "a byte was lost, though the buffer is full"

    def test_nobody_can_send_to_what_is_not_bound(
        self, watcher: AccountedWatcher, pairs: Pairs, family: int
    ) -> None:
        """A read would wait for ever."""
        conn = pairs.unbound(family)
        for submit in (watcher.read, watcher.read_start, lambda it: watcher.read_full(it, bytearray(9))):
            with pytest.raises(gaio.UnsupportedConnError, match=r"conn is not bound.*bind\(\) or connect\(\) it"):
                submit(conn)
        assert conn.fileno() >= 0, "it is the caller's still"
        assert watcher.watcher.stats().conns == 0

    def test_one_that_is_connected_is_read(self, watcher: AccountedWatcher, pairs: Pairs, family: int) -> None:
        conn, address = pairs.bound(family)
        peer, from_there = pairs.bound(family)
        conn.connect(from_there)
        read = watcher.read(conn)
        peer.sendto(b"x", address)
        watcher.finish(read, watcher.write(conn, b"y"))
        assert (read.data, read.address) == (b"x", from_there)
        assert peer.recvfrom(9) == (b"y", address)

    def test_empty_datagrams_have_senders(self, watcher: AccountedWatcher, pairs: Pairs, family: int) -> None:
        conn, address = pairs.bound(family)
        peer, from_there = pairs.bound(family)
        read, into = watcher.read(conn), watcher.read(conn, bytearray(5))
        for _ in range(2):
            peer.sendto(b"", address)
        watcher.finish(read, into)
        for request in (read, into):
            assert (request.size, request.error, request.address) == (0, None, from_there)


@pytest.mark.parametrize("family", FAMILIES)
def test_who_has_sent_may_read(watcher: AccountedWatcher, pairs: Pairs, family: int) -> None:
    """The kernel binds an IP socket that sends; the read may be submitted before it has."""
    conn, (peer, to_peer) = pairs.unbound(family), pairs.bound(family)
    write, read = watcher.write(conn, b"question", address=to_peer), watcher.read(conn)
    watcher.finish(write)
    data, from_there = peer.recvfrom(100)
    peer.sendto(data + b"?", from_there)
    watcher.finish(read)
    assert (read.data, read.address) == (b"question?", to_peer)


def test_a_unix_socket_without_a_name_has_no_address(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, address = pairs.bound(socket.AF_UNIX)
    nobody = pairs.unbound(socket.AF_UNIX)
    read = watcher.read(conn)
    nobody.sendto(b"x", address)
    watcher.finish(read)
    assert (read.data, read.address) == (b"x", None)


@pytest.mark.skipif(sys.platform != "linux", reason="abstract names of unix(7) are Linux's")
def test_abstract_names_are_bytes(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, address = pairs.bound(socket.AF_UNIX)
    peer = pairs.unbound(socket.AF_UNIX)
    name = b"\0gaio-%d" % os.getpid()
    peer.bind(name)
    read = watcher.read(conn)
    peer.sendto(b"x", address)
    watcher.finish(read)
    assert read.address == name
    watcher.finish(watcher.write(conn, b"y", address=name))
    assert peer.recvfrom(9) == (b"y", address)


@pytest.mark.skipif(not os.path.exists("/proc/net/if_inet6"), reason="it tells the addresses of interfaces")
def test_a_link_local_address_keeps_its_scope(watcher: AccountedWatcher, pairs: Pairs) -> None:
    links = [line.split() for line in Path("/proc/net/if_inet6").read_text("ascii").splitlines()]
    links = [fields for fields in links if fields[3] == "20"]
    if not links:
        pytest.skip("no interface has a link-local address")
    host = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(links[0][0]))
    scope = int(links[0][1], 16)
    conn, peer = pairs.unbound(socket.AF_INET6), pairs.unbound(socket.AF_INET6)
    for end in (conn, peer):
        end.bind((host, 0, 0, scope))
    address, from_there = conn.getsockname(), peer.getsockname()
    read = watcher.read(conn)
    peer.sendto(b"x", address)
    watcher.finish(read)
    assert read.address == from_there
    assert read.address[3] == scope
    watcher.finish(watcher.write(conn, b"y", address=(f"{host}%{links[0][5]}", from_there[1])))
    assert peer.recvfrom(9) == (b"y", address)


@pytest.mark.parametrize("make", [deque, list, tuple])
def test_parts_are_one_datagram(
    watcher: AccountedWatcher, pairs: Pairs, make: Callable[[list[bytes]], Any]
) -> None:
    (conn, _), (peer, to_peer) = pairs.bound(), pairs.bound()
    parts = [pattern(1, seed) for seed in range(2000)]
    request = gaio.WRITE
    watcher.watcher.write(conn, make(parts), address=to_peer, context=None)
    (result,) = watcher.watcher.wait_io()
    assert (result.operation, result.size, result.error) == (request, 2000, None)
    assert peer.recv(9000) == b"".join(parts)


def test_what_was_passed_may_be_used_again(watcher: AccountedWatcher, pairs: Pairs) -> None:
    (conn, _), (peer, to_peer) = pairs.bound(), pairs.bound()
    buffer = bytearray(pattern(30_000))
    write = watcher.write(conn, buffer, address=to_peer)
    buffer[:] = bytes(30_000)
    buffer.append(0)  # it is not exported either
    watcher.finish_all()
    assert peer.recv(65536) == pattern(30_000)
    assert write.error is None


class TestRefused:
    """What is wrong is raised by the call, and nothing is submitted."""

    def test_an_address_on_a_stream(self, watcher: AccountedWatcher, pairs: Pairs) -> None:
        conn, _ = pairs.tcp()
        with pytest.raises(gaio.UnsupportedConnError, match=r"no datagram socket: write\(\) to it without an address"):
            watcher.write(conn, b"x", address=("127.0.0.1", 1))
        assert conn.fileno() >= 0
        watcher.finish(watcher.write(conn, b"x"))
        with pytest.raises(gaio.UnsupportedConnError, match="no datagram socket"):
            watcher.write(conn, b"x", address=("127.0.0.1", 1))

    def test_on_a_listener_a_file_and_what_is_none(self, watcher: AccountedWatcher, pairs: Pairs) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(gaio.UnsupportedConnError):
            watcher.write(listener, b"x", address=("127.0.0.1", 1))
        pipe, _ = pairs.pipe_to_write()
        with pipe, pytest.raises(gaio.UnsupportedConnError, match="no datagram socket"):
            watcher.write(pipe, b"x", address=("127.0.0.1", 1))
        nothing: Any = 5
        with pytest.raises(gaio.UnsupportedConnError):
            watcher.write(nothing, b"x", address=("127.0.0.1", 1))

    @pytest.mark.parametrize(
        ("family", "address", "error", "message"),
        [
            (socket.AF_INET, "path", TypeError, "a path is for a socket of socket.AF_UNIX"),
            (socket.AF_INET, ("::1", 1), ValueError, "make the socket with socket.AF_INET6"),
            (socket.AF_INET6, ("127.0.0.1", 1), ValueError, "make the socket with socket.AF_INET"),
            (socket.AF_INET, ("127.0.0.1", 1, 0, 0), TypeError, r"a tuple \(host, port\)"),
            (socket.AF_INET, ("localhost", 1), ValueError, "socket.getaddrinfo"),
            (socket.AF_INET, ("127.0.0.1", 65536), ValueError, "from 0 to 65535"),
            (socket.AF_INET, 17, TypeError, "must be a tuple"),
            (socket.AF_INET6, ("fe80::1%nothing", 1), ValueError, "no interface has the name"),
            (socket.AF_UNIX, ("127.0.0.1", 1), TypeError, "must be a path"),
            (socket.AF_UNIX, "x" * 200, ValueError, "from 1 to"),
        ],
    )
    def test_no_address_of_its_family(
        self, watcher: AccountedWatcher, pairs: Pairs, family: int, address: Any, error: Any, message: str
    ) -> None:
        conn, _ = pairs.bound(family)
        with pytest.raises(error, match=message):
            watcher.write(conn, b"x", address=address)
        assert conn.fileno() >= 0, "nothing was delegated either"
        watcher.read(conn)
        with pytest.raises(error, match=message):
            watcher.write(conn, b"x", address=address)

    @pytest.mark.skipif(sys.platform != "linux", reason="netlink(7)")
    def test_a_family_that_is_not_known(self, watcher: AccountedWatcher, pairs: Pairs) -> None:
        if sys.platform != "linux":
            return  # the type checker looks for that here
        conn = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_USERSOCK)
        pairs.also_close(conn)
        with pytest.raises(ValueError, match=r"write\(\) knows addresses of IPv4, IPv6 and Unix sockets"):
            watcher.write(conn, b"x", address=(0, 0))

    def test_what_is_no_buffer_or_has_no_bytes(self, watcher: AccountedWatcher, pairs: Pairs) -> None:
        (conn, _), (_, to_peer) = pairs.bound(), pairs.bound()
        wrong: Any
        for wrong in ("text", 5, None, ["text"]):
            with pytest.raises(TypeError, match=r"write\(\) needs a buffer"):
                watcher.watcher.write(conn, wrong, address=to_peer)
        for wrong in (b"", [], [b"", bytearray()]):
            with pytest.raises(gaio.EmptyBufferError):
                watcher.watcher.write(conn, wrong, address=to_peer)
        with pytest.raises(BufferError):
            watcher.watcher.write(conn, memoryview(bytes(9))[::2], address=to_peer)
        with pytest.raises(ValueError, match="timeout"):
            watcher.write(conn, b"x", address=to_peer, timeout=-1)
        assert conn.fileno() >= 0


class TestWhatTheKernelSays:
    """Failed I/O is in the result, and the socket goes on."""

    def test_too_large_to_send(self, watcher: AccountedWatcher, pairs: Pairs) -> None:
        (conn, _), (peer, to_peer) = pairs.bound(), pairs.bound()
        write, after = watcher.write(conn, bytes(65_536), address=to_peer), watcher.write(conn, b"x", address=to_peer)
        watcher.finish(write, after)
        assert isinstance(write.error, OSError)
        assert write.error.errno == errno.EMSGSIZE
        assert (write.size, after.error, peer.recv(9)) == (0, None, b"x")

    def test_no_way_there(self, watcher: AccountedWatcher, pairs: Pairs) -> None:
        """ENETUNREACH as a rule; port 0 is wrong anywhere."""
        (conn, _), (peer, to_peer) = pairs.bound(), pairs.bound()
        write, after = watcher.write(conn, b"x", address=("127.0.0.1", 0)), watcher.write(conn, b"x", address=to_peer)
        watcher.finish(write, after)
        assert isinstance(write.error, OSError)
        assert (after.error, peer.recv(9)) == (None, b"x")

    def test_without_an_address(self, watcher: AccountedWatcher, pairs: Pairs) -> None:
        conn, _ = pairs.bound()
        write = watcher.write(conn, b"x")
        watcher.finish(write)
        assert isinstance(write.error, OSError)
        assert write.error.errno in (errno.EDESTADDRREQ, errno.ENOTCONN)

    def test_nobody_is_there(self, watcher: AccountedWatcher, pairs: Pairs) -> None:
        """A Unix socket tells at once."""
        conn, _ = pairs.bound(socket.AF_UNIX)
        write = watcher.write(conn, b"x", address="nobody")
        watcher.finish(write)
        assert isinstance(write.error, FileNotFoundError)

    def test_another_address_than_the_peers(self, watcher: AccountedWatcher, pairs: Pairs) -> None:
        """Linux sends it; the others say EISCONN."""
        (conn, _), (_, to_peer), (other, to_other) = pairs.bound(), pairs.bound(), pairs.bound()
        conn.connect(to_peer)
        write = watcher.write(conn, b"x", address=to_other)
        watcher.finish(write)
        if write.error is None:
            assert other.recv(9) == b"x"
        else:
            assert isinstance(write.error, OSError)
            assert write.error.errno == errno.EISCONN

    def test_a_refusal_ends_what_repeats(self, watcher: AccountedWatcher, pairs: Pairs) -> None:
        """Reported by ICMP, to a socket that is connected. The kernel tells it first, so what had come before may come
        when it is begun anew.
        """
        (conn, address), (peer, to_peer) = pairs.bound(), pairs.bound()
        conn.connect(to_peer)
        read = watcher.read_start(conn)
        peer.sendto(b"bye", address)
        peer.close()
        watcher.finish(watcher.write(conn, b"anybody?"), read)
        assert isinstance(read.error, ConnectionRefusedError)
        again, late = watcher.read_start(conn), pairs.unbound()
        late.bind(to_peer)
        late.sendto(b"back", address)
        receive(watcher, again, 2 - len(read.messages))
        assert read.messages + again.messages == [b"bye", b"back"]
        assert {*read.addresses, *again.addresses} == {to_peer}


@pytest.mark.scenario(6)
@pytest.mark.parametrize("ends_by", ["deadline", "free", "close", "room"])
def test_a_receiver_that_is_full(make_watcher: MakeWatcher, pairs: Pairs, ends_by: str) -> None:
    """A Unix socket that is not connected polls as writable all the while, and nothing tells when there is room."""
    watcher = make_watcher()
    (conn, _), (peer, to_peer) = pairs.bound(socket.AF_UNIX), pairs.bound(socket.AF_UNIX)
    filled = fill(pairs.unbound(socket.AF_UNIX), to_peer)
    write = watcher.write(conn, b"y", address=to_peer, timeout=0.05 if ends_by == "deadline" else None)
    if ends_by != "deadline":
        assert watcher.wait(0) == []
        assert watcher.wait(0.05) == []
    if ends_by == "free":
        watcher.free(conn)
    elif ends_by == "close":
        watcher.watcher.close()
    elif ends_by == "room":
        assert {peer.recv(9) for _ in range(filled)} == {b"x"}
    watcher.finish(write)
    expected = {"deadline": gaio.DeadlineError, "free": gaio.ConnClosedError, "close": gaio.WatcherClosedError}
    if ends_by == "room":
        assert (write.error, peer.recv(9)) == (None, b"y")
    else:
        assert (type(write.error), write.size) == (expected[ends_by], 0)


def test_what_comes_keeps_it_going(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """The timeout of read_start() is for a time without a datagram: an empty one counts."""
    (conn, address), (peer, _) = pairs.bound(), pairs.bound()
    read = watcher.read_start(conn, timeout=0.2)
    for number in range(5):
        peer.sendto(b"", address)
        receive(watcher, read, number + 1)
    watcher.finish(read)
    assert isinstance(read.error, gaio.DeadlineError)
    assert read.messages == [b""] * 5


@pytest.mark.usefixtures("thread_acts_when_told")
def test_a_crowd_of_peers(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """A server of one socket: each gets its own answer."""
    conn, address = pairs.bound()
    read = watcher.read_start(conn)
    clients = [pairs.bound() for _ in range(200)]
    answered = 0
    for number, (client, _) in enumerate(clients):
        client.sendto(b"%d" % number, address)
        if number % 50 == 49:
            receive(watcher, read, number + 1)
            for place in range(answered, number + 1):
                watcher.write(conn, read.messages[place] + b"!", address=read.addresses[place])
            answered = number + 1
    watcher.read_stop(conn)
    watcher.finish_all()
    assert [client.recvfrom(9) for client, _ in clients] == [(b"%d!" % number, address) for number in range(200)]


def test_a_flood_leaves_others_their_turn(watcher: AccountedWatcher, pairs: Pairs) -> None:
    (conn, address), (calm, to_calm), (peer, _) = pairs.bound(), pairs.bound(), pairs.bound()
    flood, read = watcher.read_start(conn), watcher.read_start(calm)
    watcher.wait(0)
    for number in range(100):
        peer.sendto(b"%d" % number, address)
    peer.sendto(b"calm", to_calm)
    watcher.harvest_until(lambda: read.messages, "the one of the other socket")
    receive(watcher, flood, 100)
    assert flood.messages == [b"%d" % number for number in range(100)]


def test_views_of_messages_are_for_good(watcher: AccountedWatcher, pairs: Pairs) -> None:
    (conn, address), (peer, _) = pairs.bound(), pairs.bound()
    watcher.watcher.read_start(conn)
    kept = []
    for number in range(50):
        peer.sendto(b"%d" % number, address)
        (result,) = watcher.watcher.wait_io()
        assert not result.is_swap_buffer
        kept.append(result.buffer)
    assert [bytes(view) for view in kept] == [b"%d" % number for number in range(50)]
    watcher.watcher.close()
    with pytest.raises(gaio.WatcherClosedError):
        while True:
            watcher.watcher.wait_io()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has Unix sockets that keep records and have an end")
@pytest.mark.parametrize("repeats", [False, True], ids=["read", "read_start"])
def test_a_record_that_has_no_room_is_told(make_watcher: MakeWatcher, pairs: Pairs, repeats: bool) -> None:
    watcher = make_watcher(100)
    conn, peer = pairs.unix(socket.SOCK_SEQPACKET)
    for size in (100, 200):
        peer.send(pattern(size))
    peer.close()
    if repeats:
        on = watcher.read_start(conn)
        watcher.finish(on)
        assert (on.messages, on.cut_off) == ([pattern(100)] * 2, [pattern(200)[:100]])
        assert isinstance(on.error, EOFError)
        return
    reads = [watcher.read(conn) for _ in range(3)]
    watcher.finish(*reads)
    assert [(read.size, is_cut_off(read.error)) for read in reads] == [(100, False), (100, True), (0, False)]
    assert isinstance(reads[2].error, EOFError)


def test_results_of_streams_have_no_address(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    read = watcher.read(conn)
    peer.sendall(b"x")
    watcher.finish(read, write := watcher.write(conn, b"y"))
    assert (read.address, write.address) == (None, None)


def test_the_thread_receives_for_who_stays_away(watcher: AccountedWatcher, pairs: Pairs) -> None:
    (conn, address), (peer, from_there) = pairs.bound(), pairs.bound()
    read = watcher.read(conn)
    peer.sendto(b"x", address)
    wait_until(lambda: not watcher.watcher.stats().pending, "the watcher thread to read it")
    watcher.finish(read)
    assert read.address == from_there
