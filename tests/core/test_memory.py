"""gaio/memory.py: addresses of what the kernel reads and fills."""

from __future__ import annotations

import ctypes
import sys
from collections import UserList, deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaio import memory
from gaio.memory import COPY_LIMIT, LENT_FROM, Lent, Vector, iovec, memory_for_write, pin_for_read
from gaio.platform import SwapMemory

PARTS = st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=20)


@settings(max_examples=200, deadline=None)
@given(parts=PARTS, data=st.data())
def test_a_vector_shows_what_is_left_after_any_number_of_bytes(parts: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(parts)
    vector = Vector([memoryview(part if index % 2 else bytearray(part)) for index, part in enumerate(parts)])
    offset = 0
    while offset < len(whole):
        for _ in range(2):  # done twice, as after an interruption
            address, count = vector.after(offset)
            entries = (iovec * count).from_address(address)
            assert b"".join(ctypes.string_at(entry.iov_base, entry.iov_len) for entry in entries) == whole[offset:]
        few = data.draw(st.integers(1, count))
        assert vector.within(offset, few) == sum(entry.iov_len for entry in entries[:few])
        offset += data.draw(st.integers(1, len(whole) - offset))


@pytest.mark.parametrize("one_message", [False, True])
def test_more_than_one_call_can_write_is_not_joined(monkeypatch: pytest.MonkeyPatch, one_message: bool) -> None:
    """Such a length would not fit where it is stored: memory that is `bytes` is taken to be short enough."""
    monkeypatch.setattr(memory, "MAX_RW_COUNT", 4096)
    parts = [b"part"] * 1025
    assert isinstance(memory_for_write(parts[:-1], None, one_message)[0], bytes)
    assert isinstance(memory_for_write(parts, None, one_message)[0], Vector)


def test_a_pinned_buffer_cannot_be_resized_until_it_is_let_go() -> None:
    buffer = bytearray(b"0123456789")
    pinned, length = pin_for_read(buffer)
    assert (length, ctypes.string_at(pinned.address, length)) == (10, b"0123456789")
    with pytest.raises(BufferError):
        buffer.append(0)
    del pinned
    buffer.append(0)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="PEP 688 is of Python 3.12")
def test_an_object_that_gives_another_buffer_each_time_is_asked_once() -> None:
    """Were the address of one and the length of another, the kernel would write where nobody has memory."""

    class Moody:
        def __init__(self) -> None:
            self.given: list[bytearray] = []

        def __buffer__(self, flags: int) -> memoryview:
            self.given.append(bytearray(1 << (4 + len(self.given))))
            return memoryview(self.given[-1])

    moody = Moody()
    pinned, length = pin_for_read(moody)
    ctypes.memset(pinned.address, 1, 1)
    (buffer,) = (buffer for buffer in moody.given if buffer[0])
    assert length == len(buffer)


@pytest.mark.parametrize("count", [2000, 100_000])
def test_many_small_parts_are_joined(count: int) -> None:
    """What it takes to leave one where it is would be many times its size."""
    parts = [b"part", bytearray(b"of it")] * count
    memory, length = memory_for_write(parts)
    assert (memory, length) == (b"partof it" * count, 9 * count)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_large_buffer_is_written_from_where_it_is(kind: type) -> None:
    data = bytes(range(256)) * (COPY_LIMIT // 128)
    memory, length = memory_for_write(kind(data))
    assert length == len(data)
    assert not isinstance(memory, (bytes, Vector))
    assert ctypes.string_at(memory.address, length) == data


@pytest.mark.parametrize("kind", [list, tuple, deque, UserList])
def test_every_kind_of_sequence_is_one_vectored_write(kind: type) -> None:
    memory, length = memory_for_write(kind([b"one", bytearray(b"two")]))
    assert (memory, length) == (b"onetwo", 6)


def test_a_sequence_of_what_is_no_buffer() -> None:
    with pytest.raises(TypeError, match="not int"):
        memory_for_write(range(3))


def swap_memory(data: bytes) -> memoryview:
    storage = memoryview(SwapMemory(-1, len(data)))
    storage[:] = data
    return storage


def test_a_view_of_swap_memory_is_copied() -> None:
    storage = swap_memory(bytes(range(256)) * (COPY_LIMIT // 128))
    memory, _ = memory_for_write(storage[1:])
    assert memory == bytes(storage[1:])
    parts, length = memory_for_write([storage] * 20)
    before = bytes(storage) * 20
    storage[:] = bytes(len(storage))
    assert isinstance(parts, Vector)
    address, count = parts.after(0)
    entries = (iovec * count).from_address(address)
    assert length == len(before)
    assert b"".join(ctypes.string_at(entry.iov_base, entry.iov_len) for entry in entries) == before


def test_a_large_view_of_the_watchers_own_swap_memory_is_lent() -> None:
    storage = SwapMemory(-1, 2 * LENT_FROM)
    storage[:] = bytes(range(256)) * (2 * LENT_FROM // 256)
    view = memoryview(storage).toreadonly()[7 : 7 + LENT_FROM]
    memory, length = memory_for_write(view, storage)
    assert isinstance(memory, Lent)
    assert ctypes.string_at(memory.address, length) == view
    copy = memory.copy(length)
    expected = bytes(view)
    storage[:] = bytes(len(storage))
    assert copy == expected


@pytest.mark.parametrize("length", [LENT_FROM - 1, COPY_LIMIT + 1, 1])
def test_a_smaller_view_is_copied(length: int) -> None:
    storage = SwapMemory(-1, LENT_FROM)
    memory, _ = memory_for_write(memoryview(storage)[:length], storage)
    assert memory == bytes(length)


def test_a_view_that_another_watcher_lent_is_copied() -> None:
    storage = SwapMemory(-1, LENT_FROM)
    memory, _ = memory_for_write(memoryview(storage), SwapMemory(-1, LENT_FROM))
    assert memory == bytes(LENT_FROM)
