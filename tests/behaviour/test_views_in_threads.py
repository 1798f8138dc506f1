"""Threads slice views, each its own, while others make, drop and pin some of the same memory.

Without an interpreter lock the counts of a memoryview are not safe (CPython issue 127716): what only one thread at a
time has in hand must share no count with anything that the watcher does meanwhile. With one, all this holds by itself.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial

import pytest

import gaio
from gaio import platform
from tests.accounting import AccountedWatcher
from tests.backends import Name
from tests.peers import Pairs, receive_exactly
from tests.waiting import LIMIT, Background, TimeLimit

THREADS = 4


def slice_densely(view: memoryview) -> None:
    for _ in range(20):
        for start in range(60):
            view[start : start + 4]


def test_each_thread_slices_the_view_of_its_own_result(backend: Name, pairs: Pairs) -> None:
    """The program of an echo with a pool of threads: nobody touches a view before or after its time."""
    messages = 300
    ends = [pairs.unix() for _ in range(8)]
    expected = {}
    for number, (ours, theirs) in enumerate(ends):
        for conn in (ours, theirs):
            expected[id(conn)] = bytes((number + index) % 256 for index in range(64))
    received = dict.fromkeys(expected, 0)

    def parse(result: gaio.OpResult) -> None:
        assert result.error is None
        message = expected[id(result.conn)]
        slice_densely(result.buffer)
        assert result.buffer == message
        received[id(result.conn)] += 1
        if received[id(result.conn)] < messages:
            watcher.read(result.conn)
            watcher.write(result.conn, result.buffer)

    limit = TimeLimit(2 * LIMIT)
    with closing(gaio.Watcher(backend=backend)) as watcher, ThreadPoolExecutor(THREADS) as pool:
        for ours, theirs in ends:
            watcher.read(ours)
            watcher.read(theirs)
            watcher.write(ours, expected[id(ours)])
        while min(received.values()) < messages - 1:
            batch = watcher.wait_io(limit.left("messages to go back and forth"))
            list(pool.map(parse, [result for result in batch if result.operation is gaio.READ]))
    assert all(count in (messages - 1, messages) for count in received.values())


def test_the_watcher_alone_frees_a_view_and_only_when_its_time_is_over(
    monkeypatch: pytest.MonkeyPatch, backend: Name, pairs: Pairs
) -> None:
    """Else it might be freed, by whichever thread has read it, while the caller's slices a part that it has kept.

    What is done where there is no interpreter lock works with one, too.
    """
    monkeypatch.setattr(platform, "FREE_THREADED", True)
    conn, peer = pairs.unix()
    with closing(gaio.Watcher(backend=backend)) as watcher:
        views = []
        for _ in range(2):
            watcher.read(conn)
            peer.sendall(b"x")
            view = watcher.wait_io(LIMIT)[0].buffer
            views.append(weakref.ref(view))
            part = view[:]
            assert gc.get_referents(view) == gc.get_referents(part), "these two are counted together"
            del view
        assert views[0]() is None
        assert views[1]() is not None
        assert gc.get_referents(views[1]()) == gc.get_referents(part)
        watcher.wait_io(0)
        assert views[1]() is None
        assert part == b"x"


@pytest.mark.parametrize(
    "as_written",
    [
        pytest.param(lambda view: view, id="a view"),
        pytest.param(memoryview.toreadonly, id="a read-only view"),
        pytest.param(lambda view: [view] * 20, id="a vector of views"),
    ],
)
def test_a_view_is_sliced_by_another_thread_while_writes_of_it_begin_and_end(
    backend: Name, pairs: Pairs, as_written: Callable[[memoryview], memoryview | list[memoryview]]
) -> None:
    rounds = 400
    conn, peer = pairs.tcp()
    data = bytes(range(256)) * 32
    view = memoryview(bytearray(data))
    buffer = as_written(view)
    shared = buffer[0] if isinstance(buffer, list) else buffer
    all_written: list[bool] = []

    def slice_it() -> None:
        while not all_written:
            slice_densely(shared)
            assert shared == data

    slicing = Background(slice_it)
    expected = data * (20 if isinstance(buffer, list) else 1)
    with closing(gaio.Watcher(backend=backend)) as watcher:  # the tests' own books would make views of it, too
        receiving = Background(lambda: [receive_exactly(peer, len(expected)) == expected for _ in range(rounds)])
        try:
            for _ in range(rounds):
                watcher.write(conn, buffer)
                assert [result.error for result in watcher.wait_io(LIMIT)] == [None]
        finally:
            all_written.append(True)
    slicing.result()
    assert all(receiving.result())


@pytest.mark.parametrize("operation", ["read", "write", "vectored write"])
def test_a_buffer_can_be_resized_when_its_result_is_there_whoever_submitted_it(
    watcher: AccountedWatcher, pairs: Pairs, operation: str
) -> None:
    """The thread that did is idle: nothing waits for it to run again."""
    conn, peer = pairs.tcp()
    with ThreadPoolExecutor(1) as pool:
        for _ in range(20):
            buffers = [bytearray(b"x" * 50_000) for _ in range(2)]
            if operation == "read":
                submitted = [pool.submit(watcher.read_full, conn, buffer).result() for buffer in buffers]
                peer.sendall(bytes(100_000))
                watcher.finish(*submitted)
            else:
                as_submitted = [buffers] if operation == "vectored write" else buffers
                submitted = [pool.submit(watcher.write, conn, buffer).result() for buffer in as_submitted]
                receiving = Background(partial(receive_exactly, peer, 100_000))
                watcher.finish(*submitted)
                assert receiving.result() == b"x" * 100_000
            for buffer in buffers:
                buffer.extend(b"more")
