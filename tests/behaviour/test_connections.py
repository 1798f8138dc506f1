"""connections(): who is delegated, and waits for what."""

from __future__ import annotations

import gc
import os
import socket
import sys
import tempfile
import threading

import pytest

import gaio
from tests.accounting import AccountedWatcher
from tests.peers import Closable, Pairs
from tests.waiting import wait_until


def info_of(watcher: AccountedWatcher, conn: Closable) -> gaio.ConnectionInfo:
    (info,) = [info for info in watcher.watcher.connections() if info.conn is conn]
    return info


def test_a_new_watcher_has_none(watcher: AccountedWatcher) -> None:
    assert watcher.watcher.connections() == []


def test_what_is_pending_is_counted_before_and_after_a_turn(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, _ = pairs.tcp()
    reads = [watcher.read(conn) for _ in range(3)]
    info = info_of(watcher, conn)
    assert (info.reads, info.writes, info.unsent) == (3, 0, 0)
    watcher.wait(0)
    assert info_of(watcher, conn) == info
    assert all(read.result is None for read in reads)


def test_a_forgotten_read_shows(watcher: AccountedWatcher, pairs: Pairs) -> None:
    (forgotten, peer), (reading, _) = pairs.tcp(), pairs.tcp()
    read = watcher.read(forgotten)
    watcher.read(reading)
    peer.send(b"x")
    watcher.finish(read)
    assert [info.conn for info in watcher.watcher.connections() if not info.reads and not info.writes] == [forgotten]


def test_unsent_bytes_show(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, _ = pairs.unix()
    size = 8 << 20
    watcher.write(conn, bytes(size))
    watcher.wait(0)
    info = info_of(watcher, conn)
    assert info.writes == 1
    assert info.unsent == watcher.watcher.unsent(conn) > 0


def test_writes_behind_others_count(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, _ = pairs.unix()
    watcher.write(conn, bytes(8 << 20))
    watcher.wait(0)
    before = info_of(watcher, conn)
    for _ in range(3):
        watcher.write(conn, b"abc")
    info = info_of(watcher, conn)
    assert (info.writes, info.unsent) == (before.writes + 3, before.unsent + 9)
    watcher.wait(0)
    assert info_of(watcher, conn) == info


def test_what_repeats_counts_as_one(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    read = watcher.read_start(conn)
    for _ in range(3):
        peer.send(b"x")
        before = len(read.messages)
        watcher.harvest_until(lambda: len(read.messages) > before, "a byte")  # noqa: B023  # called at once
        assert info_of(watcher, conn).reads == 1


def test_oldest_first_each_with_its_peer(watcher: AccountedWatcher, pairs: Pairs) -> None:
    (first, to_first), (second, to_second) = pairs.tcp(), pairs.tcp()
    watcher.read(second)
    watcher.read(first)
    infos = watcher.watcher.connections()
    assert [info.conn for info in infos] == [second, first]
    assert [info.peer for info in infos] == [to_second.getsockname(), to_first.getsockname()]
    assert infos[0].number < infos[1].number
    peer = ":".join(map(str, infos[0].peer))
    watcher.free(second)
    (ended,) = watcher.wait(None)
    assert f"#{infos[0].number} to {peer}" in repr(ended.result)


def test_peers_of_every_family(watcher: AccountedWatcher, pairs: Pairs) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        conn = socket.create_connection(listener.getsockname()[:2])
        accepted, address = listener.accept()
        with conn, accepted:
            watcher.read(accepted)
            assert info_of(watcher, accepted).peer == address
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as unix_listener:
        unix_listener.bind(os.path.join(folder, "s"))
        unix_listener.listen()
        with socket.socket(socket.AF_UNIX) as named:
            named.connect(unix_listener.getsockname())
            address = named.getpeername()
            watcher.read(named)
            assert info_of(watcher, named).peer == address
    unnamed, _ = pairs.unix()
    address = unnamed.getpeername()
    watcher.read(unnamed)
    assert info_of(watcher, unnamed).peer == address
    pipe, _ = pairs.pipe_to_read()
    watcher.read(pipe)
    assert info_of(watcher, pipe).peer is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="abstract addresses, unix(7)")
def test_a_peer_with_an_abstract_address(watcher: AccountedWatcher) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as conn:
        listener.bind("")  # autobind, unix(7): the kernel chooses
        listener.listen()
        conn.connect(listener.getsockname())
        watcher.read(conn)
        assert info_of(watcher, conn).peer == listener.getsockname()


def test_a_listener_is_among_them(watcher: AccountedWatcher) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        watcher.accept_start(listener)
        info = info_of(watcher, listener)
        assert (info.reads, info.writes, info.peer) == (1, 0, None)


def test_what_has_been_collected_is_gone(watcher: AccountedWatcher, pairs: Pairs) -> None:
    kept, _ = pairs.tcp()
    dropped, peer = socket.socketpair()
    watcher.read(kept)
    with peer:
        watcher.finish(watcher.write(dropped, b"x"))
        assert info_of(watcher, dropped).writes == 0
        del dropped
        wait_until(lambda: gc.collect() >= 0 and len(watcher.watcher.connections()) == 1, "the other to be collected")
        assert [info.conn for info in watcher.watcher.connections()] == [kept]


def test_what_is_freed_or_closed_is_gone(watcher: AccountedWatcher, pairs: Pairs) -> None:
    (conn, _), (other, peer) = pairs.tcp(), pairs.tcp()
    read = watcher.read(conn)
    watcher.write(other, b"x")
    watcher.free(conn)
    assert [info.conn for info in watcher.watcher.connections()] == [other]
    watcher.finish(read)
    watcher.close_and_check()
    assert watcher.watcher.connections() == []
    peer.close()


def test_from_another_thread_while_there_is_traffic(watcher: AccountedWatcher, pairs: Pairs) -> None:
    ends = [pairs.tcp() for _ in range(20)]
    enough = threading.Event()
    seen: list[int] = []
    wrong: list[gaio.ConnectionInfo] = []

    def look() -> None:
        while not enough.is_set():
            infos = watcher.watcher.connections()
            seen.append(len(infos))
            # Each write is of one byte, and has it to go as long as it is pending.
            wrong.extend(info for info in infos if info.reads > 1 or not 0 <= info.unsent <= info.writes <= 1)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(50):
            reads = [watcher.read(conn) for conn, _ in ends]
            for _, peer in ends:
                peer.send(b"x")
            watcher.finish(*reads)
            watcher.finish(*(watcher.write(conn, b"y") for conn, _ in ends))
    finally:
        enough.set()
        thread.join()
    assert seen
    assert max(seen) <= 20
    assert wrong == []
