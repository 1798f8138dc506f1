"""Where the socket calls of the systems that have a kqueue differ from those of Linux, which the simulation leaves as
they are.
"""

from __future__ import annotations

import errno
import socket

import pytest

import gaio
from gaio.platform import _libc, _sockets
from tests.accounting import AccountedWatcher, MakeWatcher
from tests.faulty_libc import FaultyLibc
from tests.peers import Pairs, pattern, receive_exactly, reset
from tests.simulated_kqueue import Kernel
from tests.waiting import Background


@pytest.fixture(autouse=True)
def _bound_anew(libc: FaultyLibc, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was bound when it was imported is bound to the faulty library."""
    for name in ("getsockopt", "getsockname", "getpeername"):
        monkeypatch.setattr(_sockets, f"_{name}", _libc.checked(name))


class TestWhetherASocketListensIsNotTold:
    """macOS and OpenBSD: getsockopt(2) does not know SO_ACCEPTCONN."""

    @pytest.fixture(autouse=True)
    def _not_told(self, _bound_anew: None, libc: FaultyLibc) -> None:
        libc.fail(
            "getsockopt",
            errno.ENOPROTOOPT,
            times=None,
            when=lambda _fd, level, name, *_: (level, name) == (socket.SOL_SOCKET, socket.SO_ACCEPTCONN),
        )

    def test_everything_works(self, watcher: AccountedWatcher, pairs: Pairs) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
            address = listener.getsockname()
            accept, connect = watcher.accept(listener), watcher.connect(client, address)
            watcher.finish(accept, connect)
            assert accept.result is not None
            with accept.result.accepted as conn:
                watcher.finish(watcher.write(client, b"x"), read := watcher.read(conn))
                assert read.data == b"x"
            watcher.free(client)
            watcher.free(listener)
        for make in (pairs.unix, pairs.udp):
            conn, peer = make()
            peer.send(b"x")
            watcher.finish(read := watcher.read(conn))
            assert read.data == b"x"

    def test_accept_says_that_it_does_not_listen(self, watcher: AccountedWatcher) -> None:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            watcher.finish(accept := watcher.accept(bound))
            assert isinstance(accept.error, OSError)
            assert accept.error.errno == errno.EINVAL
            watcher.free(bound)

    def test_what_can_never_listen_is_refused(self, watcher: AccountedWatcher, pairs: Pairs) -> None:
        with socket.socket() as fresh:
            for conn in (fresh, *pairs.tcp(), *pairs.unix(), *pairs.udp()):
                with pytest.raises(gaio.UnsupportedConnError, match="does not listen"):
                    watcher.watcher.accept(conn)
                conn.close()

    def test_a_read_says_that_it_listens(self, watcher: AccountedWatcher) -> None:
        """As soon as there is something that is not for it to read."""
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
            watcher.finish(read := watcher.read(listener))
            assert isinstance(read.error, OSError)
            assert read.error.errno == errno.ENOTCONN
            watcher.free(listener)


@pytest.mark.parametrize("vectored", [False, True], ids=["send", "sendmsg"])
def test_a_peer_that_does_not_read_holds_up_nobody_where_a_send_overlooks_msg_dontwait(
    libc: FaultyLibc, kernel: Kernel, make_watcher: MakeWatcher, pairs: Pairs, *, vectored: bool
) -> None:
    """macOS and NetBSD: MSG_DONTWAIT does not keep a send on a blocking socket from waiting for room."""
    libc.overlook("send", socket.MSG_DONTWAIT, argument=3)
    libc.overlook("sendmsg", socket.MSG_DONTWAIT, argument=2)
    watcher = make_watcher()
    slow, slow_peer = pairs.tcp(buffers=8192)
    other, other_peer = pairs.tcp()
    message = pattern(1 << 20)
    blocked = watcher.write(slow, [message[:1000], message[1000:]] if vectored else message)
    timed = watcher.write(slow, b"x", timeout=0.01)
    read = watcher.read(other)
    other_peer.sendall(b"x")
    watcher.finish(read, timed)
    assert isinstance(timed.error, gaio.DeadlineError)
    receiving = Background(lambda: receive_exactly(slow_peer, len(message)))
    watcher.finish(blocked)
    assert receiving.result() == message


class TestAResetTakesTheAddressAlong:
    """NetBSD, OpenBSD, DragonFly: getsockname(2) of a TCP socket fails after a reset."""

    @pytest.fixture(params=[errno.EINVAL, errno.ECONNRESET], ids=["EINVAL", "ECONNRESET"])
    def error(self, request: pytest.FixtureRequest) -> int:
        return int(request.param)

    def forget_addresses(self, libc: FaultyLibc, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
        libc.fail("getsockname", error, times=None)
        libc.fail("getpeername", errno.EINVAL, times=None)
        initialize = _libc._initialize

        def as_there(sock: socket.socket, owner: _libc.SocketOwner, family: int) -> None:
            if family == -1:
                raise OSError(error, "getsockname(2), called by CPython, fails")
            initialize(sock, owner, family)

        monkeypatch.setattr(_libc, "_initialize", as_there)

    def test_a_client_that_is_gone_when_it_is_accepted(
        self, libc: FaultyLibc, watcher: AccountedWatcher, monkeypatch: pytest.MonkeyPatch, error: int
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = listener.getsockname()
            accept = watcher.accept(listener)
            reset(socket.create_connection(address))
            watcher.finish(accept)
            assert accept.result is not None
            self.forget_addresses(libc, monkeypatch, error)
            with accept.result.accepted as conn:
                assert conn.family == socket.AF_INET
                watcher.finish(read := watcher.read(conn))
                assert isinstance(read.error, ConnectionResetError)
                with watcher.watcher.detach(conn) as again:
                    assert again.family == socket.AF_INET
                    with pytest.raises(gaio.UnsupportedConnError, match="has ended"):
                        watcher.watcher.connect(again, ("127.0.0.1", 1))
            watcher.free(listener)

    def test_the_family_where_nobody_tells(
        self, libc: FaultyLibc, watcher: AccountedWatcher, pairs: Pairs, monkeypatch: pytest.MonkeyPatch, error: int
    ) -> None:
        """NetBSD has neither SO_DOMAIN nor SO_PROTOCOL."""
        monkeypatch.delattr(socket, "SO_DOMAIN")
        monkeypatch.delattr(socket, "SO_PROTOCOL")
        conn, peer = pairs.tcp()
        self.forget_addresses(libc, monkeypatch, error)
        peer.sendall(b"x")
        watcher.finish(read := watcher.read(conn))
        assert read.data == b"x"
        with watcher.watcher.detach(conn) as again:
            assert again.family == socket.AF_INET
