"""Room in the arena: which range is free, which is leased to whom, and who waits.

*Pure.* Part of ``directory``, in the node process.

1. Every byte is free, in an extent leased to one session, or in a range of the node's own.
2. Who waits is served in the order of arrival while objects are leaving memory, else whoever fits first; nobody waits
   longer than EXTENT_WAIT_NS without anybody having made room.
3. Sessions hear of ranges inside their extents that were freed (RangesFreed) before they are asked for surplus.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable
from typing import Any

from meshray import config
from meshray.machine import Send
from meshray.messages.objects import ExtentGranted, ExtentRefused, RangesFreed, RequestExtent, SurplusWanted
from meshray.store.allocator import Ranges, align
from meshray.store.events import RangeRefused, RangeReserved
from meshray.store.records import Entry, Extent, Waiting

Numbers = Callable[[], tuple[int, int, str]]
"""Returns the bytes that are pinned, the bytes on disk, and what the disk's trouble is."""


class Room:
    """The arena's ranges."""

    def __init__(self, capacity_bytes: int, numbers: Numbers) -> None:
        """``numbers`` tells what a refusal needs besides the sizes that are known here."""
        self.capacity_bytes = capacity_bytes
        self.ranges = Ranges()
        self.ranges.add(0, capacity_bytes)
        self.extents: dict[int, Extent] = {}
        self.lingering: list[Extent] = []
        """Extents of processes that ended, oldest first."""
        self.waiting: list[Waiting] = []
        self.making_room = False
        """Objects are leaving memory, or ranges are on their way back, so who came first is served first."""
        self.unreserved_bytes = 0
        """Size of the last range of the node's own for which there was no room and which is not waited for here."""
        share = capacity_bytes // config.EXTENTS_SHARE_MIN // config.MIB * config.MIB
        self._usual_bytes = max(min(config.EXTENT_BYTES, share), config.MIB)
        self._touched_bytes = 0
        """Everything below was leased before; what lies above is fresh memory."""
        self._starts: list[int] = []
        self._given_back: dict[bytes, list[tuple[int, int]]] = {}
        self._numbers = numbers
        self.refusals = 0
        """Requests that could never be served, or waited in vain."""

    # --- asking --------------------------------------------------------------------------------------------------

    def request(self, route: bytes, request: RequestExtent, now_ns: int) -> list[Any]:
        """A session needs an extent. A question that is repeated is answered once."""
        if any(waiting.route == route and waiting.cookie == request.cookie for waiting in self.waiting):
            return []
        return self._wait_for(Waiting(route, request.cookie, align(request.size_bytes),
                                      now_ns + config.EXTENT_WAIT_NS))

    def reserve_later(self, object_: bytes, size_bytes: int, now_ns: int) -> list[Any]:
        """Reserve a range of the node's own; answered by RangeReserved, now or later, or RangeRefused."""
        return self._wait_for(Waiting(b"", 0, align(size_bytes), now_ns + config.EXTENT_WAIT_NS, object_=object_))

    def _wait_for(self, waiting: Waiting) -> list[Any]:
        if waiting.need_bytes > align(self.capacity_bytes):
            return [self._refuse(waiting)]
        granted = None if self.making_room and self.waiting else self._grant(waiting)
        if granted is not None:
            return [granted]
        self.waiting.append(waiting)
        pending = [] if waiting.object else [self._refuse(waiting, pending=True)]
        return [*pending, *self.want_surplus()]

    def withdraw(self, route: bytes, cookie: int) -> None:
        """A session needs no answer any more."""
        self.waiting = [waiting for waiting in self.waiting if (waiting.route, waiting.cookie) != (route, cookie)]

    def forget_waiting(self, object_: bytes) -> None:
        """Nobody wants this object's range any more."""
        self.waiting = [waiting for waiting in self.waiting if waiting.object != object_]

    def _grant(self, waiting: Waiting) -> Any:
        if waiting.object:
            reserved = self._own_range(waiting.need_bytes)
            return None if reserved is None else RangeReserved(waiting.object, reserved)
        whole = -(-waiting.need_bytes // config.MIB) * config.MIB
        for size_bytes in (max(whole, self._usual_bytes), whole, waiting.need_bytes):
            offset = self.ranges.allocate(size_bytes)
            if offset is not None:
                break
        else:
            return None
        populated_bytes = min(max(self._touched_bytes - offset, 0), size_bytes)
        self._touched_bytes = max(self._touched_bytes, offset + size_bytes)
        self.extents[offset] = Extent(offset, size_bytes, waiting.route)
        insort(self._starts, offset)
        return Send(waiting.route, ExtentGranted(waiting.cookie, offset, size_bytes, populated_bytes))

    def _refuse(self, waiting: Waiting, *, pending: bool = False) -> Any:
        ranges = self.ranges
        self.refusals += not pending
        refused = ExtentRefused(waiting.cookie, waiting.need_bytes, ranges.free_bytes, ranges.used_bytes,
                                self.capacity_bytes, pending, *(() if pending else self._numbers()))
        return RangeRefused(waiting.object, refused) if waiting.object else Send(waiting.route, refused)

    def serve_waiting(self, now_ns: int) -> list[Any]:
        """Return the answers to those who wait and can have room now, or have waited long enough."""
        effects: list[Any] = []
        for waiting in list(self.waiting):
            answer = self._grant(waiting)
            if answer is None and waiting.deadline_ns <= now_ns:
                answer = self._refuse(waiting)
            if answer is not None:
                self.waiting.remove(waiting)
                effects.append(answer)
            elif self.making_room:
                break
        return effects

    def short_bytes(self) -> int:
        """Return the bytes that the first who waits for room needs; 0 if nobody waits."""
        return self.waiting[0].need_bytes if self.waiting else self.unreserved_bytes

    def be_patient(self, now_ns: int) -> None:
        """Room was made: whoever still waits does so anew."""
        for waiting in self.waiting:
            waiting.deadline_ns = now_ns + config.EXTENT_WAIT_NS

    def want_surplus(self) -> list[Any]:
        """Return what asks every session that leases extents for those that hold nothing."""
        routes = dict.fromkeys(extent.route for extent in self.extents.values() if not extent.ends_ns)
        return [Send(route, SurplusWanted()) for route in routes]

    def take_back(self, route: bytes, offsets: list[int]) -> int:
        """A session returns extents; return how many of them it does not lease."""
        strange = 0
        for offset in offsets:
            extent = self.extents.get(offset)
            if extent is None or extent.route != route:
                strange += 1
            else:
                self.dissolve(extent)
        return strange

    def dissolve(self, extent: Extent) -> None:
        """End a lease: what is sealed inside becomes the node's own, the rest is free."""
        for entry in extent.objects.values():
            entry.extent = None
        self.ranges.carve(extent.offset, [(entry.offset, entry.size_bytes) for entry in extent.objects.values()])
        del self.extents[extent.offset]
        if extent.ends_ns:
            self.lingering.remove(extent)
        self._starts.pop(bisect_left(self._starts, extent.offset))

    def session_gone(self, route: bytes, now_ns: int) -> None:
        """A session has ended: its leases linger."""
        self.waiting = [waiting for waiting in self.waiting if waiting.object or waiting.route != route]
        for extent in self.extents.values():
            if extent.route == route and not extent.ends_ns:
                extent.ends_ns = now_ns + config.EXTENT_LINGER_NS
                self.lingering.append(extent)

    # --- ranges --------------------------------------------------------------------------------------------------

    def extent_at(self, offset: int) -> Extent | None:
        """Return the last extent that starts at or before ``offset``."""
        index = bisect_right(self._starts, offset) - 1
        return self.extents[self._starts[index]] if index >= 0 else None

    def reserve(self, size_bytes: int) -> int | None:
        """Return the offset of a range of the node's own, or None if there is no room."""
        offset = self._own_range(size_bytes)
        if offset is None:
            self.unreserved_bytes = align(size_bytes)
        return offset

    def _own_range(self, size_bytes: int) -> int | None:
        offset = self.ranges.allocate(size_bytes)
        if offset is not None:
            self._touched_bytes = max(self._touched_bytes, offset + align(size_bytes))
        return offset

    def vacate(self, entry: Entry) -> None:
        """The range of an object is free again."""
        offset, extent = entry.offset, entry.extent
        entry.offset, entry.extent = -1, None
        if extent is None:
            self.ranges.free(offset)
        else:
            extent.remove(offset)
            self.give_back(extent, offset, entry.size_bytes)

    def give_back(self, extent: Extent, offset: int, size_bytes: int) -> None:
        """The lessee may use this range again."""
        if not extent.ends_ns:
            self._given_back.setdefault(extent.route, []).append((offset, size_bytes))

    def news(self) -> list[Any]:
        """Return what sessions must hear of ranges that were freed since the last time."""
        effects: list[Any] = [Send(route, RangesFreed(ranges)) for route, ranges in self._given_back.items()]
        if self.waiting:
            effects += [Send(route, SurplusWanted()) for route in self._given_back]
        self._given_back.clear()
        return effects

    def check(self) -> None:
        """Assert the invariants of the module header, and that extents and their objects agree."""
        self.ranges.check()
        assert self._starts == sorted(self.extents)
        assert not self._given_back
        for extent in self.extents.values():
            assert self.ranges.size_of(extent.offset) == align(extent.size_bytes)
            assert extent.starts == sorted(extent.objects)
            cursor = extent.offset
            for start in extent.starts:
                entry = extent.objects[start]
                assert entry.extent is extent and entry.offset == start
                assert start >= cursor, f"sealed objects overlap at {start}"
                cursor = start + align(entry.size_bytes)
            assert cursor <= extent.offset + extent.size_bytes
