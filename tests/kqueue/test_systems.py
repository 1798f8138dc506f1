"""One table says how each system spells kqueue; the code below it runs on every row of it."""

from __future__ import annotations

import ctypes
import socket

import pytest

import gaio
from gaio.platform import _kqueue_abi
from tests.accounting import AccountedWatcher, MakeWatcher
from tests.peers import Pairs, pattern, receive_exactly
from tests.simulated_kqueue import SYSTEMS, Kernel, install
from tests.waiting import Background


@pytest.fixture(params=SYSTEMS)
def kernel(request: pytest.FixtureRequest, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """The kernel of each system, with structures and numbers written down apart from gaio's."""
    return install(request.param, monkeypatch.setattr)


def test_an_echo(kernel: Kernel, watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp(buffers=8192)
    message = pattern(300_000)
    buffer = bytearray(len(message))
    sending = Background(lambda: peer.sendall(message))
    watcher.finish(watcher.read_full(conn, buffer))
    sending.result()
    receiving = Background(lambda: receive_exactly(peer, len(message)))
    watcher.finish(watcher.write(conn, buffer))
    assert receiving.result() == message


def test_the_end(kernel: Kernel, watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    reads = [watcher.read(conn), watcher.read(conn)]
    assert watcher.wait(0) == []
    peer.sendall(b"last words")
    peer.close()
    watcher.finish(*reads)
    assert reads[0].data == b"last words"
    assert isinstance(reads[1].error, EOFError)


def test_waking_and_waiting(kernel: Kernel, watcher: AccountedWatcher, pairs: Pairs) -> None:
    assert watcher.wait(0.01) == []
    conn, _ = pairs.unix()
    harvest = Background(lambda: watcher.wait(None))
    write = watcher.write(conn, b"x")
    assert harvest.result() == [write]
    late = watcher.read(conn, timeout=0.01)
    watcher.finish(late)
    assert isinstance(late.error, gaio.DeadlineError)


def test_sigpipe_is_suppressed_by_an_option_where_send_has_no_flag(
    kernel: Kernel, make_watcher: MakeWatcher, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An option that Linux has takes the place of SO_NOSIGPIPE. A pipe has none, and is left alone."""
    (abi,) = _kqueue_abi.ABIS.values()
    monkeypatch.setattr(_kqueue_abi, "ABIS", {"linux": abi._replace(so_nosigpipe=socket.SO_KEEPALIVE)})
    watcher = make_watcher()
    conn, _ = pairs.tcp()
    piped, _ = pairs.pipe_to_write()
    watcher.finish(watcher.write(conn, b"x"), watcher.write(piped, b"x"))
    sock = watcher.watcher.detach(conn)
    with sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_a_system_of_32_bits_is_refused(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    real = ctypes.sizeof
    monkeypatch.setattr(ctypes, "sizeof", lambda kind: 4 if kind is ctypes.c_void_p else real(kind))
    with pytest.raises(OSError, match="64-bit"):
        _kqueue_abi.system()
