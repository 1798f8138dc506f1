"""gaio/swap.py: what a batch shows does not change before the next one is fetched, and nothing is lost."""

from __future__ import annotations

import ctypes

from hypothesis import given, settings
from hypothesis import strategies as st

from gaio.platform import SwapMemory
from gaio.swap import SwapArena

# A read of so many bytes (None: one that keeps message boundaries and wants a whole segment), or the end of a batch.
READ = st.tuples(st.just("read"), st.integers(1, 40), st.booleans())
DELIVER = st.just(("deliver", 0, False))


@settings(max_examples=300, deadline=None)
@given(
    size=st.integers(1, 64),
    limit=st.integers(1, 400),
    steps=st.lists(st.one_of(READ, READ, READ, DELIVER), max_size=60),
)
def test_views_stay_intact_until_the_next_batch_is_fetched(
    size: int, limit: int, steps: list[tuple[str, int, bool]]
) -> None:
    arena = SwapArena(size, limit)
    written: list[tuple[memoryview, bytes]] = []  # of the batch being written
    delivered: list[tuple[memoryview, bytes]] = []  # what the caller has in hand
    stamp = 0
    for kind, length, whole in steps:
        if kind == "deliver":
            arena.recycle()  # as wait_io() does first: the batch before is the caller's no longer
            delivered = []
            arena.lend()
            delivered, written = written, []
        else:
            segment = arena.room(whole)
            room = segment.size - segment.used
            assert room >= 1, "a read without room never ends"
            assert room == size or not whole, "a message would be cut off"
            moved = min(length, room)
            stamp = (stamp + 1) % 256
            view = segment.memory[segment.used : segment.used + moved]
            ctypes.memmove(segment.address + segment.used, bytes([stamp]) * moved, moved)
            if segment.batch >= 0:
                segment.used += moved
            else:
                view = memoryview(bytes(view))
            written.append((view, bytes([stamp]) * moved))
        for view, content in (*written, *delivered):
            assert view == content


@settings(max_examples=100, deadline=None)
@given(size=st.integers(16, 4096), limit=st.integers(1, 9999), lengths=st.lists(st.integers(1, 4096), max_size=50))
def test_what_the_arena_cannot_hold_goes_through_a_spare_segment(size: int, limit: int, lengths: list[int]) -> None:
    arena = SwapArena(size, limit)
    for length in lengths:
        segment = arena.room()
        assert (segment.batch < 0) == (type(segment.memory[0:1].obj) is not SwapMemory)
        if segment.batch < 0:
            assert segment is arena.room()
        else:
            segment.used += min(length, segment.size - segment.used)
    assert sum(segment.size for segment in arena.segments) <= max(limit, 2 * size)


def test_memory_that_was_given_back_is_used_again() -> None:
    arena = SwapArena(64)
    for _ in range(100):
        segment = arena.room()
        assert segment.batch >= 0, "batch after batch fits into the arena when each is given back"
        segment.used += 60
        arena.recycle()
        arena.lend()
    assert len(arena.segments) == 2, "one in delivery and one being written"


def test_the_arena_grows_to_what_the_largest_batch_takes_and_no_further() -> None:
    arena = SwapArena(64)
    for _ in range(100):
        for _ in range(20):
            segment = arena.room()
            assert segment.batch >= 0
            segment.used = segment.size
        arena.recycle()
        arena.lend()
    assert len(arena.segments) == 2 * 20
