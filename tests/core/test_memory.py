"""gaio/memory.py: addresses of what the kernel reads and fills."""

from __future__ import annotations

import ctypes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaio.memory import COPY_LIMIT, Vector, iovec, memory_for_write, pin_for_read

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


def test_a_pinned_buffer_cannot_be_resized_until_it_is_let_go() -> None:
    buffer = bytearray(b"0123456789")
    pinned, length = pin_for_read(buffer)
    assert (length, ctypes.string_at(pinned.address, length)) == (10, b"0123456789")
    with pytest.raises(BufferError):
        buffer.append(0)
    del pinned
    buffer.append(0)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_large_buffer_is_written_from_where_it_is(kind: type) -> None:
    data = bytes(range(256)) * (COPY_LIMIT // 128)
    memory, length = memory_for_write(kind(data))
    assert length == len(data)
    assert not isinstance(memory, (bytes, Vector))
    assert ctypes.string_at(memory.address, length) == data


def test_a_view_of_storage_that_is_lent_is_copied() -> None:
    storage = bytearray(range(256)) * (COPY_LIMIT // 128)
    memory, _ = memory_for_write(memoryview(storage)[1:], [storage])
    assert memory == bytes(storage[1:])
    parts, length = memory_for_write([memoryview(storage)] * 20, [storage])
    before = bytes(storage) * 20
    storage[:] = bytes(len(storage))
    assert isinstance(parts, Vector)
    address, count = parts.after(0)
    entries = (iovec * count).from_address(address)
    assert length == len(before)
    assert b"".join(ctypes.string_at(entry.iov_base, entry.iov_len) for entry in entries) == before
