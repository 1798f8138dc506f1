"""connect(): a socket that is not connected yet becomes a connection."""

from __future__ import annotations

import contextlib
import errno
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import gaio
from tests import backends
from tests.accounting import AccountedWatcher, MakeWatcher
from tests.faulty_libc import FaultyLibc
from tests.peers import Pairs, loopback, pattern, receive_exactly, receive_until_eof
from tests.waiting import LIMIT, Background, wait_until

FAMILIES = {"IPv4": socket.AF_INET, "IPv6": socket.AF_INET6}
needs_abstract = pytest.mark.skipif(
    sys.platform != "linux", reason="abstract addresses are of Linux, unix(7)"
)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.settimeout(LIMIT)
        yield sock


@pytest.fixture
def conn() -> Iterator[socket.socket]:
    with socket.socket() as sock:
        yield sock


def accept(listener: socket.socket, pairs: Pairs) -> socket.socket:
    peer, _ = listener.accept()
    peer.settimeout(LIMIT)
    pairs.also_close(peer)
    return peer


def check_both_ways(watcher: AccountedWatcher, conn: socket.socket, peer: socket.socket) -> None:
    read, write = watcher.read(conn), watcher.write(conn, b"ping")
    assert receive_exactly(peer, 4) == b"ping"
    peer.sendall(b"pong")
    watcher.finish(read, write)
    assert (read.data, write.error) == (b"pong", None)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_tcp(watcher: AccountedWatcher, pairs: Pairs, family: socket.AddressFamily) -> None:
    host = loopback(family)
    with socket.create_server((host, 0), family=family) as listener, socket.socket(family) as conn:
        connect = watcher.connect(conn, (host, listener.getsockname()[1]))
        assert conn.fileno() == -1, "the request delegates the socket"
        watcher.finish(connect)
        assert connect.error is None
        check_both_ways(watcher, conn, accept(listener, pairs))


def test_ipv6_with_flow_and_scope(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """The four parts that getsockname() and getaddrinfo() give."""
    with (
        socket.create_server((loopback(socket.AF_INET6), 0), family=socket.AF_INET6) as listener,
        socket.socket(socket.AF_INET6) as conn,
    ):
        assert len(listener.getsockname()) == 4
        connect = watcher.connect(conn, listener.getsockname())
        watcher.finish(connect)
        assert connect.error is None
        check_both_ways(watcher, conn, accept(listener, pairs))


@pytest.mark.parametrize("kind", [str, bytes, Path], ids=lambda kind: kind.__name__)
def test_unix(watcher: AccountedWatcher, pairs: Pairs, tmp_path: Path, kind: type) -> None:
    path = tmp_path / "socket"
    address = str(path).encode() if kind is bytes else kind(path)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as conn:
        listener.bind(str(path))
        listener.listen()
        connect = watcher.connect(conn, address)
        watcher.finish(connect)
        assert connect.error is None
        check_both_ways(watcher, conn, accept(listener, pairs))


@needs_abstract
@pytest.mark.parametrize("address", [b"\0gaio-test-%d", "\0gaio-test-%d", b"\0gaio\0test\0%d"], ids=ascii)
def test_unix_abstract(watcher: AccountedWatcher, pairs: Pairs, address: Any) -> None:
    address %= id(watcher)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as conn:
        listener.bind(address)
        listener.listen()
        connect = watcher.connect(conn, address)
        watcher.finish(connect)
        assert connect.error is None
        check_both_ways(watcher, conn, accept(listener, pairs))


def test_a_datagram_socket(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """It may even be connected again, to another peer."""
    conn = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for text in (b"to the first", b"to the second"):
        peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        peer.settimeout(LIMIT)
        pairs.also_close(peer)
        peer.bind(("127.0.0.1", 0))
        connect, write = watcher.connect(conn, peer.getsockname()), watcher.write(conn, text)
        watcher.finish(connect, write)
        assert (connect.error, write.error) == (None, None)
        assert peer.recv(100) == text


def test_requests_submitted_at_once_wait_for_it(
    watcher: AccountedWatcher, pairs: Pairs, listener: socket.socket
) -> None:
    for number in range(50):
        conn = socket.socket()
        connect = watcher.connect(conn, listener.getsockname())
        read = watcher.read(conn)
        write = watcher.write(conn, b"%02d" % number)
        end = watcher.shutdown(conn)
        watcher.finish(connect, write, end)
        assert (connect.error, write.error, end.error) == (None, None, None)
        peer = accept(listener, pairs)
        assert receive_until_eof(peer) == b"%02d" % number
        peer.sendall(b"answer")
        watcher.finish(read)
        assert read.data == b"answer"


def test_a_peer_that_speaks_first(watcher: AccountedWatcher, pairs: Pairs, listener: socket.socket) -> None:
    """A read submitted before the connection is established gets what comes first."""

    def greet() -> None:
        for number in range(50):
            accept(listener, pairs).sendall(b"%02d" % number)

    greeting = Background(greet)
    for number in range(50):
        conn = socket.socket()
        read_into = bytearray(2)
        connect, read = watcher.connect(conn, listener.getsockname()), watcher.read_full(conn, read_into)
        watcher.finish(connect, read)
        assert (connect.error, read.error) == (None, None)
        assert read_into == b"%02d" % number
    greeting.result()


def test_many_at_once(watcher: AccountedWatcher, pairs: Pairs, listener: socket.socket) -> None:
    accepting = Background(lambda: [accept(listener, pairs) for _ in range(100)])
    conns = [socket.socket() for _ in range(100)]
    connects = [watcher.connect(conn, listener.getsockname()) for conn in conns]
    writes = [watcher.write(conn, b"%03d" % number) for number, conn in enumerate(conns)]
    watcher.finish(*connects, *writes)
    assert not any(request.error for request in [*connects, *writes])
    assert sorted(receive_exactly(peer, 3) for peer in accepting.result()) == [
        b"%03d" % number for number in range(100)
    ]


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """Bound, and does not listen: were its port free, somebody else could get it, or a socket connect to itself."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(LIMIT)
        yield sock


class TestFailure:
    def test_refused(self, watcher: AccountedWatcher, conn: socket.socket, silent: socket.socket) -> None:
        connect = watcher.connect(conn, silent.getsockname())
        watcher.finish(connect)
        assert isinstance(connect.error, ConnectionRefusedError)
        watcher.free(conn)

    def test_requests_behind_it_fail_too(
        self, watcher: AccountedWatcher, conn: socket.socket, silent: socket.socket
    ) -> None:
        connect = watcher.connect(conn, silent.getsockname())
        read, write = watcher.read(conn), watcher.write(conn, b"x")
        watcher.finish(connect, read, write)
        assert isinstance(connect.error, ConnectionRefusedError)
        assert isinstance(write.error, OSError)
        assert isinstance(read.error, (OSError, EOFError))
        assert (read.size, write.size) == (0, 0)

    def test_unix_path_that_is_not_there(self, watcher: AccountedWatcher, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as conn:
            connect = watcher.connect(conn, tmp_path / "nobody")
            watcher.finish(connect)
            assert isinstance(connect.error, FileNotFoundError)

    def test_unix_path_where_nobody_listens(self, watcher: AccountedWatcher, tmp_path: Path) -> None:
        path = str(tmp_path / "socket")
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(path)
        with socket.socket(socket.AF_UNIX) as conn:
            connect = watcher.connect(conn, path)
            watcher.finish(connect)
            assert isinstance(connect.error, ConnectionRefusedError)

    @pytest.mark.skipif(sys.platform != "linux", reason="other systems want a fresh socket")
    def test_a_refused_socket_may_try_again(
        self, watcher: AccountedWatcher, pairs: Pairs, conn: socket.socket, silent: socket.socket
    ) -> None:
        address = silent.getsockname()
        for _ in range(3):
            connect = watcher.connect(conn, address)
            watcher.finish(connect)
            assert isinstance(connect.error, ConnectionRefusedError)
        silent.listen()
        connect = watcher.connect(conn, address)
        watcher.finish(connect)
        assert connect.error is None
        check_both_ways(watcher, conn, accept(silent, pairs))

    @pytest.mark.skipif(sys.platform != "linux", reason="needs a backlog that drops what it has no room for")
    def test_a_deadline_passes(self, watcher: AccountedWatcher, pairs: Pairs) -> None:
        """Nobody answers: the listener's backlog is full."""
        with crowded(pairs) as address, socket.socket() as conn:
            connect = watcher.connect(conn, address, timeout=0.05)
            write = watcher.write(conn, b"x", timeout=0.05)
            watcher.finish(connect, write)
            assert isinstance(connect.error, gaio.DeadlineError)
            assert write.error is not None
            assert write.size == 0
            watcher.free(conn)

    @pytest.mark.skipif(sys.platform != "linux", reason="needs a backlog that drops what it has no room for")
    def test_free_and_close_cut_it_off(self, make_watcher: MakeWatcher, pairs: Pairs) -> None:
        with crowded(pairs) as address, socket.socket() as freed, socket.socket() as closed:
            watcher = make_watcher()
            requests = [watcher.connect(freed, address), watcher.write(freed, b"x"), watcher.read(freed)]
            others = [watcher.connect(closed, address), watcher.write(closed, b"x")]
            assert watcher.wait(0) == []
            watcher.free(freed)
            watcher.finish(*requests)
            assert all(isinstance(request.error, gaio.ConnClosedError) for request in requests)
            watcher.close_and_check()
            assert all(isinstance(request.error, gaio.WatcherClosedError) for request in others)


    @pytest.mark.skipif(sys.platform != "linux", reason="needs a backlog that drops what it has no room for")
    def test_another_address_while_the_first_is_under_way(
        self, watcher: AccountedWatcher, pairs: Pairs, silent: socket.socket
    ) -> None:
        """The kernel goes on with the first one, and may reach it: that is no success of the second."""
        silent.listen()
        with crowded(pairs) as address, socket.socket() as conn:
            first = watcher.connect(conn, address, timeout=0.05)
            watcher.finish(first)
            assert isinstance(first.error, gaio.DeadlineError)
            second = watcher.connect(conn, silent.getsockname(), timeout=5)
            watcher.finish(second)
            assert isinstance(second.error, OSError)
            assert second.error.errno == errno.EALREADY
            watcher.free(conn)

    def test_it_is_told_and_not_a_read_that_waits_behind_it(
        self, watcher: AccountedWatcher, silent: socket.socket
    ) -> None:
        """The consumer hears of the socket before it hears of the requests, since it waits in the kernel."""
        for _ in range(10):
            with socket.socket() as conn:
                waiting = Background(lambda: watcher.wait(30))
                wait_until(lambda: watcher.watcher._leader.needs_wakeup, "the consumer to sleep in the kernel")
                connect = watcher.connect(conn, silent.getsockname())
                with contextlib.suppress(gaio.UnsupportedConnError):  # it may have failed so soon
                    watcher.read(conn)
                waiting.result()
                watcher.finish_all()
                assert isinstance(connect.error, ConnectionRefusedError)
                watcher.free(conn)


@pytest.mark.scenario(16, on="epoll, kqueue")
@pytest.mark.parametrize("backend", backends.telling_readiness(), indirect=True)
def test_it_finds_its_socket_connected(libc: FaultyLibc, make_watcher: MakeWatcher, silent: socket.socket) -> None:
    """By one that was cut off before, and to wherever that was: no success of this one."""
    libc.fail("connect", errno.EISCONN)
    watcher = make_watcher()
    with socket.socket() as conn:
        connect = watcher.connect(conn, silent.getsockname())
        watcher.finish(connect)
        assert isinstance(connect.error, OSError)
        assert connect.error.errno == errno.EISCONN


@pytest.mark.usefixtures("hears_signals")
def test_a_signal_handler_connects_while_the_consumer_waits(
    watcher: AccountedWatcher, pairs: Pairs, silent: socket.socket
) -> None:
    """It finds that its socket has no peer yet, which is no error of the wait that the signal has interrupted."""
    silent.listen()
    connects = []
    with socket.socket() as conn:

        def connect_now(number: int, frame: FrameType | None) -> None:
            connects.append(watcher.connect(conn, silent.getsockname()))

        before = signal.signal(signal.SIGALRM, connect_now)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            assert watcher.wait(30) == connects
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert connects[0].error is None
        check_both_ways(watcher, conn, accept(silent, pairs))


@contextlib.contextmanager
def crowded(pairs: Pairs) -> Iterator[tuple[str, int]]:
    """The address of a listener with a backlog that is full, so that nobody answers there. listen(2)"""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        while True:
            waiting = socket.socket()
            pairs.also_close(waiting)
            waiting.settimeout(0.3)
            try:
                waiting.connect(listener.getsockname())
            except TimeoutError:
                try:
                    waiting.getpeername()
                except OSError as error:
                    if error.errno != errno.ENOTCONN:
                        raise
                    break
                # Connected after all: the time had passed for this process alone, and there may be more room.
        host, port = listener.getsockname()
        yield host, port


class TestWrongUse:
    @pytest.mark.parametrize(
        "address",
        [
            ("localhost", 80),
            ("127.0.0.1", -1),
            ("127.0.0.1", 65536),
            ("127.0.0.1", "80"),
            ("::1", 80),
            ("127.0.0.1",),
            ("127.0.0.1", 80, 0),
            (2130706433, 80),
            "127.0.0.1",
            80,
            None,
        ],
        ids=repr,
    )
    def test_wrong_addresses(self, watcher: AccountedWatcher, conn: socket.socket, address: Any) -> None:
        with pytest.raises((ValueError, TypeError), match=r"host|port|address"):
            watcher.connect(conn, address)
        assert conn.fileno() != -1, "delegated, though it was refused"
        assert watcher.watcher.stats().conns == 0

    @pytest.mark.parametrize(
        "address",
        [
            ("::1", 80, -1),
            ("::1", 80, 1 << 20),
            ("::1", 80, "0"),
            ("::1", 80, 0, -1),
            ("::1", 80, 0, 1 << 32),
            ("::1", 80, 0, None),
            ("fe80::1%no-such-interface", 80),
            (f"fe80::1%{1 << 32}", 80),
            ("fe80::1%\u00b2", 80),
        ],
        ids=ascii,
    )
    def test_wrong_addresses_of_ipv6(self, watcher: AccountedWatcher, address: Any) -> None:
        loopback(socket.AF_INET6)  # or there may be no such sockets
        with socket.socket(socket.AF_INET6) as conn:
            with pytest.raises(ValueError, match=r"flow information|scope|interface"):
                watcher.connect(conn, address)
            assert conn.fileno() != -1, "delegated, though it was refused"

    def test_an_address_of_the_other_family(self, watcher: AccountedWatcher) -> None:
        """Those that getsockname() and getaddrinfo() make, too; the message says which family is which."""
        loopback(socket.AF_INET6)  # or there may be no such sockets
        of_each: dict[str, list[tuple[Any, ...]]] = {
            "AF_INET": [("127.0.0.1", 80)],
            "AF_INET6": [("::1", 80), ("::1", 80, 0, 0), ("fe80::1%lo", 80), ("::ffff:127.0.0.1", 80, 0, 0)],
        }
        for mine, theirs in (("AF_INET", "AF_INET6"), ("AF_INET6", "AF_INET")):
            for address in of_each[theirs]:
                with socket.socket(getattr(socket, mine)) as conn:
                    with pytest.raises(ValueError) as caught:
                        watcher.watcher.connect(conn, address)
                    assert conn.fileno() != -1
                message = str(caught.value)
                assert f"the socket is one of socket.{mine}, " in message
                assert f"{address[0]!r} is an address of socket.{theirs}: " in message
                assert message.endswith(f"make the socket with socket.{theirs}")

    def test_an_address_of_another_kind(self, watcher: AccountedWatcher, conn: socket.socket) -> None:
        with pytest.raises(TypeError, match=r"a path is for a socket of socket\.AF_UNIX"):
            watcher.watcher.connect(conn, "/run/service")
        with (
            socket.socket(socket.AF_UNIX) as other,
            pytest.raises(TypeError, match=r"that is for a socket of socket\.AF_INET or socket\.AF_INET6"),
        ):
            watcher.watcher.connect(other, ("127.0.0.1", 80))

    @pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
    def test_what_is_said_of_a_name_works(self, watcher: AccountedWatcher, family: socket.AddressFamily) -> None:
        host = loopback(family)
        with socket.create_server((host, 0), family=family) as listener, socket.socket(family) as conn:
            port = listener.getsockname()[1]
            name = "localhost"
            with pytest.raises(ValueError, match="look names up first") as caught:
                watcher.watcher.connect(conn, (name, port))
            advice = str(caught.value).rpartition(": ")[2]
            assert advice == f"socket.getaddrinfo({name!r}, {port}, socket.{family.name})"
            try:
                found = eval(advice)
            except socket.gaierror as error:
                pytest.skip(f"no such address of {name} here: {error}")
            if found[0][4][0] == host:
                watcher.finish(watcher.connect(conn, found[0][4]))
            watcher.free(conn)

    @pytest.mark.parametrize("host", ["", "[::1]", "127.0.0.1:80", "http://localhost/", "a\0b"], ids=repr)
    def test_what_cannot_be_looked_up(
        self, watcher: AccountedWatcher, conn: socket.socket, host: str
    ) -> None:
        with pytest.raises(ValueError, match=r"the host must be an IP address, not .*: such as '127\.0\.0\.1'"):
            watcher.watcher.connect(conn, (host, 80))

    @pytest.mark.skipif(sys.platform != "linux", reason="netlink(7)")
    def test_a_family_that_is_not_known(self, watcher: AccountedWatcher) -> None:
        """The message says to connect it without gaio; that works."""
        if sys.platform != "linux":
            return  # the type checker looks for that here
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_USERSOCK) as conn:
            with pytest.raises(ValueError, match="connect this one with its own connect"):
                watcher.watcher.connect(conn, (0, 0))
            conn.connect((0, 0))
            read = watcher.read(conn)
            watcher.free(conn)
            watcher.finish(read)
            assert isinstance(read.error, gaio.ConnClosedError)

    @pytest.mark.parametrize("address", ["", b"", "x" * 200, b"a" * 108, ("path", 1), None, 7], ids=repr)
    def test_wrong_addresses_of_unix_sockets(self, watcher: AccountedWatcher, address: Any) -> None:
        with socket.socket(socket.AF_UNIX) as conn:
            with pytest.raises((ValueError, TypeError), match="path"):
                watcher.connect(conn, address)
            assert conn.fileno() != -1

    def test_a_path_with_a_null_byte_inside(self, watcher: AccountedWatcher, tmp_path: Path) -> None:
        """The kernel would take the part before it for the path."""
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as conn:
            listener.bind(str(tmp_path / "socket"))
            listener.listen()
            with pytest.raises(ValueError, match="null"):
                watcher.connect(conn, f"{tmp_path}/socket\0more")
            assert conn.fileno() != -1

    def test_a_connected_socket(
        self, watcher: AccountedWatcher, pairs: Pairs, listener: socket.socket
    ) -> None:
        """One that is not delegated, which is left alone, and one that is."""
        conn, peer = pairs.tcp()
        with pytest.raises(gaio.UnsupportedConnError, match="connected already"):
            watcher.connect(conn, listener.getsockname())
        conn.sendall(b"untouched")
        assert receive_exactly(peer, 9) == b"untouched"
        read = watcher.read(conn)
        with pytest.raises(gaio.UnsupportedConnError, match="connected already"):
            watcher.connect(conn, listener.getsockname())
        peer.sendall(b"x")
        watcher.finish(read)
        assert read.data == b"x"

    def test_connect_twice(
        self, watcher: AccountedWatcher, pairs: Pairs, listener: socket.socket, conn: socket.socket
    ) -> None:
        connect = watcher.connect(conn, listener.getsockname())
        with pytest.raises(gaio.UnsupportedConnError, match=r"connecting|connected"):
            watcher.connect(conn, listener.getsockname())
        watcher.finish(connect)
        with pytest.raises(gaio.UnsupportedConnError, match="connected already"):
            watcher.connect(conn, listener.getsockname())
        check_both_ways(watcher, conn, accept(listener, pairs))

    def test_connect_twice_from_eight_threads(
        self, watcher: AccountedWatcher, pairs: Pairs, listener: socket.socket, conn: socket.socket
    ) -> None:
        """One of them gets its way."""
        barrier = threading.Barrier(8)

        def submit() -> bool:
            barrier.wait()
            try:
                watcher.connect(conn, listener.getsockname())
            except gaio.UnsupportedConnError:
                return False
            return True

        threads = [Background(submit) for _ in range(8)]
        assert sum(thread.result() for thread in threads) == 1
        watcher.finish_all()
        check_both_ways(watcher, conn, accept(listener, pairs))

    def test_what_is_no_socket(self, watcher: AccountedWatcher, pairs: Pairs) -> None:
        reading, _ = pairs.pipe_to_read()
        pairs.also_close(reading)
        with pytest.raises(gaio.UnsupportedConnError, match="socket"):
            watcher.connect(reading, ("127.0.0.1", 80))
        assert not reading.closed
        for wrong in (None, 7, object()):
            with pytest.raises(gaio.UnsupportedConnError):
                watcher.connect(wrong, ("127.0.0.1", 80))  # type: ignore[arg-type]  # wrong on purpose

    @pytest.mark.usefixtures("told_who_listens")
    def test_a_listener(self, watcher: AccountedWatcher, listener: socket.socket) -> None:
        with pytest.raises(gaio.UnsupportedConnError, match="listening"):
            watcher.connect(listener, listener.getsockname())
        assert listener.fileno() != -1

    def test_requests_before_it(self, watcher: AccountedWatcher, conn: socket.socket) -> None:
        for submit in (watcher.read, watcher.shutdown):
            with pytest.raises(gaio.UnsupportedConnError, match="connect"):
                submit(conn)
        assert conn.fileno() != -1

    def test_after_free(
        self, watcher: AccountedWatcher, pairs: Pairs, listener: socket.socket, conn: socket.socket
    ) -> None:
        watcher.finish(watcher.connect(conn, listener.getsockname()))
        peer = accept(listener, pairs)
        watcher.free(conn)
        with pytest.raises(gaio.ConnClosedError, match=r"freed|closed"):
            watcher.connect(conn, listener.getsockname())
        assert peer.recv(1) == b""


def test_a_blocking_socket_stays_usable_for_large_writes(
    watcher: AccountedWatcher, pairs: Pairs, listener: socket.socket, conn: socket.socket
) -> None:
    payload = pattern(4 << 20)
    connect, write = watcher.connect(conn, listener.getsockname()), watcher.write(conn, payload)
    peer = accept(listener, pairs)
    receiving = Background(lambda: receive_exactly(peer, len(payload)))
    watcher.finish(connect, write)
    assert (connect.error, write.error) == (None, None)
    assert receiving.result() == payload


def test_an_unreachable_address_is_told(watcher: AccountedWatcher, conn: socket.socket) -> None:
    """Wherever this is tested: what connect(2) itself says of a broadcast address."""
    connect = watcher.connect(conn, ("255.255.255.255", 80))
    watcher.finish(connect)
    assert isinstance(connect.error, OSError)
    assert connect.error.errno in (errno.ENETUNREACH, errno.EACCES, errno.EHOSTUNREACH)
