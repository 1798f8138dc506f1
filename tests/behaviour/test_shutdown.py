"""shutdown(): the outgoing direction ends when every write before it is done; the other one goes on."""

from __future__ import annotations

import socket

import pytest

import gaio
from tests.accounting import AccountedWatcher, MakeWatcher
from tests.peers import Pairs, pattern, receive_exactly, receive_until_eof, reset
from tests.waiting import Background


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_the_peer_reads_everything_and_then_the_end(
    watcher: AccountedWatcher, pairs: Pairs, kind: str
) -> None:
    conn, peer = pairs.tcp() if kind == "tcp" else pairs.unix()
    payload = pattern(4 << 20)
    parts = [payload[start : start + 300_000] for start in range(0, len(payload), 300_000)]
    receiving = Background(lambda: receive_until_eof(peer))
    writes = [watcher.write(conn, part) for part in parts]
    end = watcher.shutdown(conn)
    assert watcher.finish(end) == [*writes, end]
    assert end.error is None
    assert not any(write.error for write in writes)
    assert receiving.result() == payload


def test_it_needs_no_room(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """A write was cut off because the peer does not read; the end of it all must not wait for the peer, too."""
    conn, peer = pairs.tcp()
    cut_off, end = watcher.write(conn, pattern(16 << 20), timeout=0), watcher.shutdown(conn)
    late = watcher.write(conn, b"?")
    watcher.finish(cut_off, end, late)
    assert isinstance(cut_off.error, gaio.DeadlineError)
    assert end.error is None
    assert isinstance(late.error, BrokenPipeError)
    assert receive_until_eof(peer) == pattern(16 << 20)[: cut_off.size]


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_write_after_it_fails_also_where_there_is_no_room(
    watcher: AccountedWatcher, pairs: Pairs, kind: str
) -> None:
    """A Unix socket whose peer does not read is never reported as writable again, for it cannot be."""
    conn, _ = pairs.tcp() if kind == "tcp" else pairs.unix()
    cut_off = watcher.write(conn, pattern(16 << 20), timeout=0.05)
    watcher.finish(cut_off)
    assert isinstance(cut_off.error, gaio.DeadlineError)
    end = watcher.shutdown(conn)
    watcher.finish(end)
    late = watcher.write(conn, b"?")
    watcher.finish(late)
    assert end.error is None
    assert isinstance(late.error, BrokenPipeError)


def test_reading_goes_on(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """With a read that was pending, and with one submitted afterwards."""
    conn, peer = pairs.tcp()
    pending, end = watcher.read(conn), watcher.shutdown(conn)
    watcher.finish(end)
    assert peer.recv(1) == b""
    peer.sendall(b"first")
    watcher.finish(pending)
    later = watcher.read(conn)
    peer.sendall(b"second")
    watcher.finish(later)
    assert (pending.data, later.data) == (b"first", b"second")
    peer.close()
    last = watcher.read(conn)
    watcher.finish(last)
    assert isinstance(last.error, EOFError)


def test_as_the_first_request(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    end = watcher.shutdown(conn)
    assert conn.fileno() == -1, "the request delegates the connection"
    watcher.finish(end)
    assert peer.recv(1) == b""


def test_writes_submitted_later_fail(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    before, end, after = watcher.write(conn, b"before"), watcher.shutdown(conn), watcher.write(conn, b"after")
    watcher.finish(before, end, after)
    assert (before.error, end.error) == (None, None)
    assert isinstance(after.error, BrokenPipeError)
    assert after.size == 0
    assert receive_until_eof(peer) == b"before"


def test_twice(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    ends = [watcher.shutdown(conn), watcher.shutdown(conn)]
    watcher.finish(*ends)
    assert [end.error for end in ends] == [None, None]
    assert peer.recv(1) == b""


def test_both_sides_end_in_turn(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """A proxy's work: what ends here ends there."""
    left, left_peer = pairs.tcp()
    right, right_peer = pairs.tcp()
    reads = {left: watcher.read(left), right: watcher.read(right)}
    left_peer.sendall(b"request")
    watcher.finish(reads[left])
    watcher.finish(watcher.write(right, reads[left].data))
    reads[left] = watcher.read(left)
    left_peer.shutdown(socket.SHUT_WR)
    watcher.finish(reads[left])
    assert isinstance(reads[left].error, EOFError)
    watcher.finish(watcher.shutdown(right))
    assert receive_until_eof(right_peer) == b"request"
    right_peer.sendall(b"answer")
    watcher.finish(reads[right])
    watcher.finish(watcher.write(left, reads[right].data))
    assert receive_exactly(left_peer, 6) == b"answer"


def test_after_a_reset(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """There is nothing left to end, and the result says so, or that it has ended."""
    conn, peer = pairs.tcp()
    watcher.finish(watcher.write(conn, b"x"))
    reset(peer)
    read = watcher.read(conn)
    watcher.finish(read)
    assert isinstance(read.error, ConnectionResetError)
    end = watcher.shutdown(conn)
    watcher.finish(end)
    assert end.error is None or isinstance(end.error, OSError)


def test_it_waits_behind_a_write_that_is_stuck(make_watcher: MakeWatcher, pairs: Pairs) -> None:
    """free() and close() cut it off there."""
    watcher = make_watcher()
    freed, closed = pairs.tcp(buffers=8192)[0], pairs.tcp(buffers=8192)[0]
    for conn in (freed, closed):
        watcher.write(conn, pattern(16 << 20))
    first, second = watcher.shutdown(freed), watcher.shutdown(closed)
    assert watcher.wait(0) == []
    watcher.free(freed)
    watcher.finish(first)
    assert isinstance(first.error, gaio.ConnClosedError)
    watcher.close_and_check()
    assert isinstance(second.error, gaio.WatcherClosedError)


def test_a_write_that_times_out_does_not_hold_it_up(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp(buffers=8192)
    payload = pattern(16 << 20)
    write, end = watcher.write(conn, payload, timeout=0.1), watcher.shutdown(conn)
    watcher.finish(write, end)
    assert isinstance(write.error, gaio.DeadlineError)
    assert end.error is None
    assert receive_until_eof(peer) == payload[: write.size]


class TestWrongUse:
    def test_after_free(self, watcher: AccountedWatcher, pairs: Pairs) -> None:
        conn, _ = pairs.tcp()
        watcher.finish(watcher.write(conn, b"x"))
        watcher.free(conn)
        with pytest.raises(gaio.ConnClosedError, match=r"freed|closed"):
            watcher.shutdown(conn)
        assert watcher.wait(0) == []

    def test_what_is_no_socket(self, watcher: AccountedWatcher, pairs: Pairs) -> None:
        """A pipe, not delegated and delegated: its write goes on."""
        conn, peer = pairs.pipe_to_write()
        with pytest.raises(gaio.UnsupportedConnError, match="socket"):
            watcher.shutdown(conn)
        write = watcher.write(conn, b"still open")
        with pytest.raises(gaio.UnsupportedConnError, match="socket"):
            watcher.shutdown(conn)
        watcher.finish(write)
        assert peer.read(10) == b"still open"

    @pytest.mark.parametrize("wrong", [None, 7, object()], ids=["None", "a number", "an object"])
    def test_what_is_no_connection(self, watcher: AccountedWatcher, wrong: object) -> None:
        with pytest.raises(gaio.UnsupportedConnError):
            watcher.shutdown(wrong)  # type: ignore[arg-type]  # wrong on purpose

    def test_a_socket_that_is_not_connected(self, watcher: AccountedWatcher) -> None:
        with socket.socket() as sock:
            with pytest.raises(gaio.UnsupportedConnError, match="connect"):
                watcher.shutdown(sock)
            assert sock.fileno() != -1

    def test_after_close(self, make_watcher: MakeWatcher, pairs: Pairs) -> None:
        watcher = make_watcher()
        conn, _ = pairs.tcp()
        pairs.also_close(conn)
        watcher.watcher.close()
        with pytest.raises(gaio.WatcherClosedError):
            watcher.shutdown(conn)
        assert conn.fileno() != -1
