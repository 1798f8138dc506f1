"""write() of a sequence: its parts leave as one, in order, as if they had been joined."""

from __future__ import annotations

import array
import os
import random
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pytest

import gaio
from tests.accounting import AccountedWatcher
from tests.peers import Pairs, pattern, receive_exactly
from tests.waiting import Background

if TYPE_CHECKING:
    from typing_extensions import Buffer

MIB = 1 << 20


@pytest.mark.parametrize("sequence", [list, tuple])
def test_parts_of_every_kind_leave_in_order(
    watcher: AccountedWatcher, pairs: Pairs, sequence: Callable[[list[Buffer]], Sequence[Buffer]]
) -> None:
    conn, peer = pairs.tcp()
    parts = sequence(
        [b"bytes,", bytearray(b"bytearray,"), memoryview(b"--view,--")[2:7], b"", array.array("B", b"array")]
    )
    write = watcher.write(conn, parts)
    watcher.finish(write)
    expected = b"bytes,bytearray,view,array"
    assert write.size == len(expected)
    assert receive_exactly(peer, len(expected)) == expected
    assert write.result is not None
    assert write.result.buffer is parts


@pytest.mark.parametrize("part_size", [1, 20, 700])
def test_more_parts_than_one_call_takes(watcher: AccountedWatcher, pairs: Pairs, part_size: int) -> None:
    """writev(2) takes IOV_MAX buffers, 1024 on Linux; a caller need not know."""
    conn, peer = pairs.tcp()
    count = 5 * os.sysconf("SC_IOV_MAX") + 7
    expected = pattern(count * part_size)
    parts = [expected[start : start + part_size] for start in range(0, len(expected), part_size)]
    receiving = Background(lambda: receive_exactly(peer, len(expected)))
    write = watcher.write(conn, parts)
    watcher.finish(write)
    assert write.size == len(expected)
    assert receiving.result() == expected


@pytest.mark.scenario(7, 20)
def test_large_parts_go_on_in_the_middle(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """The kernel takes a part of a part; the rest follows, empty parts and all."""
    conn, peer = pairs.tcp(buffers=8192)
    chooser = random.Random(1)
    parts = [pattern(chooser.choice([0, 1, 100, 30_000, 300_000]), seed) for seed in range(60)]
    expected = b"".join(parts)
    receiving = Background(lambda: receive_exactly(peer, len(expected)))
    write = watcher.write(conn, parts)
    watcher.finish(write)
    assert write.size == len(expected)
    assert receiving.result() == expected


def test_a_deadline_tells_the_progress_over_all_parts(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp(buffers=8192)
    parts = [pattern(100_003, seed) for seed in range(100)]
    write = watcher.write(conn, parts, timeout=0.1)
    watcher.finish(write)
    assert isinstance(write.error, gaio.DeadlineError)
    assert 0 < write.size < 100 * 100_003
    watcher.free(conn)
    assert receive_exactly(peer, write.size) == b"".join(parts)[: write.size]
    assert peer.recv(1) == b""


def test_vectored_and_plain_writes_keep_their_order(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    writes = [
        watcher.write(conn, b"%d;" % number if number % 2 else [b"%d" % number, b";"])
        for number in range(200)
    ]
    assert watcher.finish(*writes) == writes
    expected = b"".join(b"%d;" % number for number in range(200))
    assert receive_exactly(peer, len(expected)) == expected


def test_a_sequence_may_change_once_it_was_submitted(watcher: AccountedWatcher, pairs: Pairs) -> None:
    """What is sent is what the sequence held at that moment."""
    conn, peer = pairs.tcp(buffers=8192)
    blocker = watcher.write(conn, bytes(MIB))
    parts = [b"as ", b"submitted"]
    write = watcher.write(conn, parts)
    parts.clear()
    receiving = Background(lambda: receive_exactly(peer, MIB + 12))
    watcher.finish(blocker, write)
    assert receiving.result()[MIB:] == b"as submitted"


def test_one_record_for_more_parts_than_one_call_takes(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.unix(socket.SOCK_SEQPACKET)
    parts = [pattern(40, seed) for seed in range(2000)]
    write = watcher.write(conn, parts)
    watcher.finish(write)
    assert write.size == 80_000
    assert peer.recv(100_000) == b"".join(parts)


def test_one_datagram_for_one_vectored_write(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.unix(socket.SOCK_DGRAM)
    watcher.finish(watcher.write(conn, [b"head", b"", b"body"]))
    assert peer.recv(100) == b"headbody"
