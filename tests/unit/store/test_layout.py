"""Values laid out in a range come back as they were; anything else is a typed error."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshray import config
from meshray.store.layout import MalformedObject, parse, plan


def written(data: bytes, buffers: list[bytes]) -> bytearray:
    layout = plan(len(data), [len(buffer) for buffer in buffers])
    target = bytearray(layout.size_bytes)
    for offset, piece in layout.pieces(data, buffers):
        target[offset : offset + len(piece)] = piece
    return target


@given(st.binary(max_size=200), st.lists(st.binary(max_size=200), max_size=6))
def test_round_trip(data: bytes, buffers: list[bytes]) -> None:
    target = written(data, buffers)
    assert parse(memoryview(target)) == (data, buffers)


def test_buffers_start_on_cache_lines() -> None:
    layout = plan(13, [1, 100, 0, 5])
    assert all(offset % config.ALIGN_BYTES == 0 for offset in layout.buffer_offsets)


def test_large_buffers_start_on_pages() -> None:
    large = config.PAGED_BYTES
    layout = plan(13, [1, large, large + 1, 5])
    assert [offset % config.PAGE_BYTES == 0 for offset in layout.buffer_offsets] == [False, True, True, False]
    data, buffers = b"d" * 13, [b"1", bytes(large), b"x" * (large + 1), b"12345"]
    assert parse(memoryview(written(data, buffers))) == (data, buffers)


def test_nothing_is_copied() -> None:
    target = written(b"data", [b"buffer"])
    _, buffers = parse(memoryview(target))
    target[-1:] = b"R"
    assert bytes(buffers[0]) == b"buffeR"


@settings(max_examples=300)
@given(st.binary(max_size=120), st.integers(0, 300), st.integers(0, 255))
def test_a_damaged_range_is_a_typed_error_or_some_value(data: bytes, at: int, byte: int) -> None:
    target = written(data, [data, b"x"])
    target[at % 40] = byte
    for view in (memoryview(target), memoryview(target)[: at % len(target)]):
        try:
            found, buffers = parse(view)
        except MalformedObject:
            continue
        assert sum(map(len, (found, *buffers))) <= len(view)


@given(st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=4), st.integers(1, 1000))
def test_a_range_cut_short_is_malformed(buffers: list[bytes], cut: int) -> None:
    target = written(b"data", buffers)
    with pytest.raises(MalformedObject):
        parse(memoryview(target)[: max(len(target) - cut, 0)])


@pytest.mark.parametrize("garbage", [b"", b"MOB1", b"\0" * 64, b"MOB1" + b"\xff" * 60])
def test_garbage_is_named(garbage: bytes) -> None:
    with pytest.raises(MalformedObject, match="object"):
        parse(memoryview(garbage))
