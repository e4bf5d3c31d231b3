"""Ranges against a model that remembers every byte."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshray import config
from meshray.store.allocator import Ranges, align

UNIT = config.ALIGN_BYTES
REGIONS = [(0, 40, 0), (40, 24, 10), (100, 16, 16)]
"""(start, length, warm) in units; the first two touch, so coalescing across them would show."""

steps = st.lists(
    st.one_of(
        st.tuples(st.just("allocate"), st.integers(1, 30)),
        st.tuples(st.just("free"), st.integers(0, 30)),
        st.tuples(st.just("carve"), st.integers(0, 30)),
    ),
    max_size=80,
)


def regions() -> Ranges:
    ranges = Ranges()
    for start, length, warm in REGIONS:
        ranges.add(start * UNIT, length * UNIT, warm_bytes=warm * UNIT)
    return ranges


def has_gap(used: set[int], length: int) -> bool:
    for start, size, _ in REGIONS:
        run = 0
        for unit in range(start, start + size):
            run = 0 if unit in used else run + 1
            if run >= length:
                return True
    return False


@settings(max_examples=300, deadline=None)
@given(steps)
def test_ranges_never_overlap_and_are_refused_only_without_a_gap(script: list[tuple[str, int]]) -> None:
    ranges = regions()
    live: dict[int, int] = {}
    for verb, number in script:
        used = {unit for start, size in live.items() for unit in range(start, start + size)}
        if verb == "allocate":
            offset = ranges.allocate(number * UNIT - 7)
            if offset is None:
                assert not has_gap(used, number)
            else:
                start = offset // UNIT
                assert not used & set(range(start, start + number))
                assert any(s <= start and start + number <= s + size for s, size, _ in REGIONS)
                live[start] = number
        elif live:
            start = sorted(live)[number % len(live)]
            size = live.pop(start)
            if verb == "free" or size < 3:
                assert ranges.free(start * UNIT) == size * UNIT
            else:
                ranges.carve(start * UNIT, [((start + 1) * UNIT, UNIT)])
                live[start + 1] = 1
        ranges.check()
        assert ranges.used_bytes == sum(live.values()) * UNIT
    for start in live:
        ranges.free(start * UNIT)
    ranges.check()
    assert sorted(ranges.surplus(0, everything=True)) == [start * UNIT for start, _, _ in REGIONS]
    assert ranges.capacity_bytes == 0


def test_the_range_freed_last_is_taken_first() -> None:
    ranges = Ranges()
    ranges.add(0, 1000 * UNIT)
    offsets = [ranges.allocate(10 * UNIT) for _ in range(9)]
    for index in (2, 6, 4):
        ranges.free(offsets[index])
    assert ranges.allocate(10 * UNIT) == offsets[4]


def test_fresh_memory_is_used_only_when_no_warm_range_fits() -> None:
    ranges = Ranges()
    ranges.add(0, 100 * UNIT)
    ranges.add(200 * UNIT, 50 * UNIT, warm_bytes=50 * UNIT)
    assert ranges.allocate(20 * UNIT) == 200 * UNIT
    assert ranges.allocate(40 * UNIT) == 0


def test_large_ranges_start_on_pages_unless_there_is_no_room() -> None:
    page, large = config.PAGE_BYTES, config.PAGED_BYTES
    ranges = Ranges()
    ranges.add(0, 4 * large)
    small = ranges.allocate(UNIT)
    first, second = ranges.allocate(large), ranges.allocate(large + UNIT)
    assert (small, first) == (0, page) and second is not None and second % page == 0
    ranges.free(first)
    assert ranges.allocate(large - page) == UNIT
    ranges.check()
    tight = Ranges()
    tight.add(UNIT, large)
    assert tight.allocate(large) == UNIT
    tight.check()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 2 * config.PAGED_BYTES)), max_size=60))
def test_small_and_large_ranges_mix(script: list[tuple[bool, int]]) -> None:
    ranges = Ranges()
    ranges.add(UNIT, 6 * config.PAGED_BYTES)
    live: list[int] = []
    for give, number in script:
        if give and live:
            ranges.free(live.pop(number % len(live)))
        else:
            offset = ranges.allocate(number)
            assert offset is not None or ranges.used_bytes > 0
            live += [] if offset is None else [offset]
        ranges.check()


def test_a_free_range_grows_into_the_fresh_tail_behind_it() -> None:
    ranges = Ranges()
    ranges.add(0, 30 * UNIT)
    ranges.free(ranges.allocate(10 * UNIT) or 0)
    assert ranges.allocate(30 * UNIT) == 0
    ranges.check()


def test_ranges_of_touching_regions_are_never_joined() -> None:
    ranges = Ranges()
    ranges.add(0, 10 * UNIT)
    ranges.add(10 * UNIT, 10 * UNIT)
    offsets = [ranges.allocate(10 * UNIT) for _ in range(2)]
    assert offsets == [0, 10 * UNIT]
    for offset in (0, 10 * UNIT):
        ranges.free(offset)
        ranges.check()
    assert ranges.allocate(11 * UNIT) is None
    ranges.add(20 * UNIT, 15 * UNIT)
    assert ranges.allocate(12 * UNIT) == 20 * UNIT
    ranges.check()


def test_a_region_goes_at_the_second_look_unless_it_was_used_between() -> None:
    ranges = Ranges()
    ranges.add(0, 10 * UNIT)
    assert ranges.surplus(0) == []
    ranges.free(ranges.allocate(UNIT) or 0)
    assert ranges.surplus(0) == []
    assert ranges.surplus(0) == [0]


def test_freeing_twice_is_refused() -> None:
    ranges = regions()
    offset = ranges.allocate(UNIT)
    assert offset is not None
    ranges.free(offset)
    with pytest.raises(KeyError):
        ranges.free(offset)


def test_sizes_are_rounded_up_to_cache_lines() -> None:
    assert [align(size) for size in (0, 1, UNIT, UNIT + 1)] == [UNIT, UNIT, UNIT, 2 * UNIT]
