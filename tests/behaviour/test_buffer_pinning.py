"""A buffer belongs to its request until that is finished: it cannot move, and it cannot go away."""

from __future__ import annotations

import array
import ctypes
import gc
import mmap
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

import gaio
from tests.accounting import AccountedWatcher
from tests.peers import Pairs, pattern, receive_exactly, receive_until_eof
from tests.waiting import Background

if TYPE_CHECKING:
    from typing_extensions import Buffer

MIB = 1 << 20


def assert_pinned(buffer: bytearray) -> None:
    with pytest.raises(BufferError):
        buffer.append(0)


@pytest.mark.scenario(14)
def test_a_pending_read_pins_its_buffer(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    begun, queued = bytearray(10), bytearray(10)
    reads = [watcher.read_full(conn, begun), watcher.read(conn, queued)]
    assert_pinned(begun)
    assert watcher.wait(0) == []
    assert_pinned(begun)
    assert_pinned(queued)
    peer.sendall(pattern(20))
    watcher.finish(*reads)
    begun.append(1)
    queued.append(1)
    assert begun[:10] + queued[: reads[1].size] == pattern(20)[: 10 + reads[1].size]


@pytest.mark.scenario(14)
def test_a_pending_write_pins_a_large_buffer(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp(buffers=8192)
    begun, queued, part = (bytearray(pattern(MIB, seed)) for seed in range(3))
    writes = [watcher.write(conn, begun), watcher.write(conn, queued), watcher.write(conn, [b"", part])]
    assert watcher.wait(0) == []
    for buffer in (begun, queued, part):
        assert_pinned(buffer)
    receiving = Background(lambda: receive_exactly(peer, 3 * MIB))
    watcher.finish(*writes)
    assert receiving.result() == b"".join(pattern(MIB, seed) for seed in range(3))
    for buffer in (begun, queued, part):
        buffer.append(1)


@pytest.mark.parametrize("size", [1, 100, 4096, 5000, 65536, 70_000])
@pytest.mark.parametrize("vectored", [False, True])
def test_a_small_buffer_is_copied_or_pinned(
    watcher: AccountedWatcher, pairs: Pairs, size: int, *, vectored: bool
) -> None:
    """It may be used again at once, or it refuses to be resized; what is sent is what was submitted."""
    conn, peer = pairs.tcp(buffers=8192)
    blocker = watcher.write(conn, bytes(MIB))
    buffer = bytearray(pattern(size))
    write = watcher.write(conn, [b"", buffer] if vectored else buffer)
    try:
        buffer.clear()
    except BufferError:
        pass
    receiving = Background(lambda: receive_exactly(peer, MIB + size))
    watcher.finish(blocker, write)
    assert receiving.result()[MIB:] == pattern(size)


@pytest.mark.parametrize("ending", ["deadline", "free", "end of the stream", "close"])
@pytest.mark.scenario(14)
def test_a_failed_request_lets_go_of_its_buffer(watcher: AccountedWatcher, pairs: Pairs, ending: str) -> None:
    conn, peer = pairs.tcp(buffers=8192)
    into, out = bytearray(10), bytearray(MIB)
    timeout = 1 if ending == "deadline" else None
    read = watcher.read_full(conn, into, timeout=timeout)
    requests = [read]
    if ending != "end of the stream":
        requests.append(watcher.write(conn, out, timeout=timeout))
    assert watcher.wait(0) == []
    assert_pinned(into)
    if ending == "free":
        watcher.free(conn)
    elif ending == "end of the stream":
        peer.close()
    elif ending == "close":
        watcher.close_and_check()
    watcher.finish(*requests)
    assert all(request.error is not None for request in requests)
    into.append(1)
    out.append(1)


@pytest.mark.scenario(14)
def test_a_buffer_nobody_else_refers_to_stays_alive(watcher: AccountedWatcher, pairs: Pairs) -> None:
    conn, peer = pairs.tcp()
    watcher.read_full(conn, bytearray(1000))
    watcher.write(conn, b"".join([pattern(500), pattern(500, seed=1)]))
    gc.collect()
    assert receive_exactly(peer, 1000) == pattern(500) + pattern(500, seed=1)
    peer.sendall(pattern(1000, seed=2))
    (read,) = [request for request in watcher.finish_all() if request.operation is gaio.READ]
    assert read.buffer == pattern(1000, seed=2)


@pytest.mark.parametrize("kind", ["bytearray", "memoryview", "slice", "array", "ctypes", "mmap", "cast"])
def test_every_contiguous_buffer_serves(watcher: AccountedWatcher, pairs: Pairs, kind: str) -> None:
    conn, peer = pairs.tcp()
    around = bytearray(64)
    kinds: dict[str, Callable[[], Buffer]] = {
        "bytearray": lambda: bytearray(32),
        "memoryview": lambda: memoryview(bytearray(32)),
        "slice": lambda: memoryview(around)[16:48],
        "array": lambda: array.array("I", [0] * 8),
        "ctypes": ctypes.c_double * 4,
        "mmap": lambda: mmap.mmap(-1, 32),
        "cast": lambda: memoryview(bytearray(32)).cast("H", (4, 4)),
    }
    buffer = kinds[kind]()
    payload = pattern(32)
    read = watcher.read_full(conn, buffer)
    peer.sendall(payload)
    watcher.finish(read)
    assert bytes(memoryview(buffer).cast("B")) == payload
    if kind == "slice":
        assert around == bytes(16) + payload + bytes(16), "bytes outside the slice were touched"
    write = watcher.write(conn, buffer)
    watcher.finish(write)
    assert write.size == 32
    assert receive_exactly(peer, 32) == payload
    watcher.free(conn)
    assert receive_until_eof(peer) == b""


@pytest.mark.parametrize("kind", ["bytes", "read-only memoryview"])
def test_read_only_buffers_can_be_written_out(watcher: AccountedWatcher, pairs: Pairs, kind: str) -> None:
    conn, peer = pairs.tcp()
    watcher.finish(watcher.write(conn, b"const" if kind == "bytes" else memoryview(b"const")))
    assert receive_exactly(peer, 5) == b"const"
