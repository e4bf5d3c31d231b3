"""Ranges: hand out and take back pieces of one or more regions of the arena.

*Pure.* Used by the node (pieces are extents) and by every session (pieces are objects inside its extents).

1. Every region is tiled exactly by live ranges, free ranges, and at its end the *fresh* tail that was never handed out.
2. No two free ranges of one region touch; free ranges never span regions, so that a region can be given back whole.
3. Warm memory first: the fresh tail is used only when no free range fits. Among free ranges the smallest that fits is
   taken, and among equals the one freed last.
4. ``allocate`` returns None only if no gap of any region is large enough.
5. Ranges start on cache lines, large ones on pages unless that would need more room than there is.

Finding a range is a binary search over the distinct sizes. Source: dlmalloc's bins and wilderness (Lea, "A Memory
Allocator").
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator

from meshray import config


def align(size_bytes: int) -> int:
    """Return ``size_bytes`` rounded up to ALIGN_BYTES, at least one unit."""
    return max(-(-size_bytes // config.ALIGN_BYTES), 1) * config.ALIGN_BYTES


def _placed(start: int, size: int, need: int, step: int) -> int:
    """Return the first multiple of ``step`` where ``need`` bytes fit between ``start`` and its end, else ``start``."""
    paged = -(-start // step) * step
    return paged if paged + need <= start + size else start


class _Region:
    __slots__ = ("end", "fresh", "idle", "start", "used_bytes")

    def __init__(self, start: int, end: int, fresh: int) -> None:
        self.start = start
        self.end = end
        self.fresh = fresh
        """Where the tail begins that was never handed out."""
        self.used_bytes = 0
        self.idle = False
        """Nothing was allocated here since ``surplus`` last looked."""


class Ranges:
    """An allocator over regions that come and go. Not thread-safe."""

    def __init__(self) -> None:
        self._regions: dict[int, _Region] = {}
        self._starts: list[int] = []
        self._live: dict[int, int] = {}
        self._free: dict[int, int] = {}
        self._free_ends: dict[int, int] = {}
        self._by_size: dict[int, dict[int, None]] = {}
        """Size -> starts of the free ranges of that size, the one freed last at the end."""
        self._sizes: list[int] = []
        self._tails: dict[int, _Region] = {}
        """Regions whose fresh tail is not used up."""
        self.capacity_bytes = 0
        self.used_bytes = 0

    # --- regions -------------------------------------------------------------------------------------------------

    def add(self, offset: int, size_bytes: int, *, warm_bytes: int = 0) -> None:
        """Add the region at ``offset``; its first ``warm_bytes`` were touched before."""
        region = _Region(offset, offset + size_bytes, offset + min(warm_bytes, size_bytes))
        self._regions[offset] = region
        insort(self._starts, offset)
        self.capacity_bytes += size_bytes
        if region.fresh > offset:
            self._put(offset, region.fresh - offset)
        if region.fresh < region.end:
            self._tails[offset] = region

    def remove(self, offset: int) -> None:
        """Take away the region at ``offset``, in which nothing may be live."""
        region = self._regions.pop(offset)
        assert region.used_bytes == 0, f"region at {offset} still holds {region.used_bytes} bytes"
        self._starts.pop(bisect_left(self._starts, offset))
        self._tails.pop(offset, None)
        if region.fresh > offset:
            self._take(offset)
        self.capacity_bytes -= region.end - region.start

    def surplus(self, keep_bytes: int, *, everything: bool = False) -> list[int]:
        """Remove and return the regions that hold nothing and did so at the last call already (second chance), beyond
        ``keep_bytes``; with ``everything``, all that hold nothing."""
        gone = []
        for region in list(self._regions.values()):
            if region.used_bytes:
                continue
            size_bytes = region.end - region.start
            if not everything and size_bytes <= keep_bytes:
                keep_bytes -= size_bytes
            elif everything or region.idle:
                self.remove(region.start)
                gone.append(region.start)
            else:
                region.idle = True
        return gone

    def tails(self) -> Iterator[tuple[int, int, int]]:
        """Yield (start, fresh, end) of every region with a fresh tail."""
        for region in self._tails.values():
            yield region.start, region.fresh, region.end

    # --- ranges --------------------------------------------------------------------------------------------------

    def allocate(self, size_bytes: int) -> int | None:
        """Return the offset of a range of at least ``size_bytes``, or None if no gap is large enough."""
        need = align(size_bytes)
        step = config.ALIGN_BYTES if need < config.PAGED_BYTES else config.PAGE_BYTES
        index = bisect_left(self._sizes, need)
        if index == len(self._sizes):
            return self._allocate_fresh(need, step)
        start = next(reversed(self._by_size[self._sizes[index]]))
        if _placed(start, self._free[start], need, step) % step:
            roomy = bisect_left(self._sizes, need + step)
            if roomy < len(self._sizes):
                start = next(reversed(self._by_size[self._sizes[roomy]]))
        return self._cut(self._region_of(start), start, self._take(start), need, step)

    def has_room(self, size_bytes: int) -> bool:
        """Whether ``allocate`` would return a range."""
        need = align(size_bytes)
        if self._sizes and self._sizes[-1] >= need:
            return True
        return any(region.end - max(self._free_ends.get(region.fresh, region.fresh), region.start) >= need
                   for region in self._tails.values())

    def _cut(self, region: _Region, start: int, size: int, need: int, step: int) -> int:
        """Make ``need`` bytes of the gap live and the rest of it free."""
        offset = _placed(start, size, need, step)
        if offset > start:
            self._put(start, offset - start)
        if offset + need < start + size:
            self._put(offset + need, start + size - offset - need)
        self._use(region, offset, need)
        return offset

    def _allocate_fresh(self, need: int, step: int) -> int | None:
        for region in self._tails.values():
            start = self._free_ends.get(region.fresh, region.fresh)
            if start < region.start:
                start = region.fresh
            if region.end - start < need:
                continue
            if start < region.fresh:
                self._take(start)
            region.fresh = _placed(start, region.end - start, need, step) + need
            if region.fresh == region.end:
                del self._tails[region.start]
            return self._cut(region, start, region.fresh - start, need, step)
        return None

    def free(self, offset: int) -> int:
        """Take back the live range at ``offset`` and return its size; KeyError if there is none."""
        size = freed = self._live.pop(offset)
        region = self._region_of(offset)
        region.used_bytes -= size
        self.used_bytes -= size
        before = self._free_ends.get(offset, -1)
        after = offset + size
        if after < region.end and after in self._free:
            size += self._take(after)
        if before >= region.start:
            size += self._take(before)
            offset = before
        self._put(offset, size)
        return freed

    def carve(self, offset: int, pieces: Iterable[tuple[int, int]]) -> None:
        """Replace the live range at ``offset`` by the live ``pieces`` (offset, bytes) inside it; free the rest."""
        cursor = offset
        end = offset + self._live.pop(offset)
        gaps = []
        for start, size_bytes in sorted(pieces):
            assert cursor <= start and start + align(size_bytes) <= end, "pieces overlap or leave their range"
            if start > cursor:
                gaps.append((cursor, start - cursor))
            self._live[start] = align(size_bytes)
            cursor = start + align(size_bytes)
        if cursor < end:
            gaps.append((cursor, end - cursor))
        self._live.update(gaps)
        for start, _ in gaps:
            self.free(start)

    def size_of(self, offset: int) -> int | None:
        """Return the size of the live range that starts at ``offset``, or None."""
        return self._live.get(offset)

    @property
    def free_bytes(self) -> int:
        """Bytes that are not live."""
        return self.capacity_bytes - self.used_bytes

    # --- bookkeeping ---------------------------------------------------------------------------------------------

    def _region_of(self, offset: int) -> _Region:
        return self._regions[self._starts[bisect_right(self._starts, offset) - 1]]

    def _use(self, region: _Region, start: int, size: int) -> None:
        self._live[start] = size
        region.used_bytes += size
        region.idle = False
        self.used_bytes += size

    def _put(self, start: int, size: int) -> None:
        self._free[start] = size
        self._free_ends[start + size] = start
        same = self._by_size.get(size)
        if same is None:
            self._by_size[size] = {start: None}
            insort(self._sizes, size)
        else:
            same[start] = None

    def _take(self, start: int) -> int:
        size = self._free.pop(start)
        del self._free_ends[start + size]
        same = self._by_size[size]
        del same[start]
        if not same:
            del self._by_size[size]
            self._sizes.pop(bisect_left(self._sizes, size))
        return size

    def check(self) -> None:
        """Assert the invariants of the module header."""
        pieces = [(start, size, True) for start, size in self._live.items()]
        pieces += [(start, size, False) for start, size in self._free.items()]
        pieces.sort()
        assert self._starts == sorted(self._regions)
        assert self._sizes == sorted(self._by_size)
        assert self._free == {start: size for size, starts in self._by_size.items() for start in starts}
        assert self._free_ends == {start + size: start for start, size in self._free.items()}
        assert self.used_bytes == sum(self._live.values())
        assert set(self._tails) == {start for start, region in self._regions.items() if region.fresh < region.end}
        for start in self._starts:
            region = self._regions[start]
            inside = [piece for piece in pieces if region.start <= piece[0] < region.end]
            cursor, was_live = region.start, True
            for offset, size, live in inside:
                assert offset == cursor, f"gap or overlap at {cursor}"
                assert live or was_live, f"free ranges touch at {offset}"
                cursor, was_live = offset + size, live
            assert cursor == region.fresh, f"region at {start} is tiled up to {cursor}, fresh from {region.fresh}"
            assert region.used_bytes == sum(size for _, size, live in inside if live)
