"""The arena's directory: who leases which extent, and which object lies where.

*Pure.* Runs in the node process.

1. Every byte of the arena is free, in an extent leased to one session, or in a range of the node's own (an object whose
   maker is gone, or a copy pulled from another node).
2. A range that is freed goes back to who may allocate there: to the session that leases the extent (RangesFreed), else
   to the arena. If that session itself freed the object, it has taken the range back already and is not told.
3. The object behind an id is the one sealed last: a task that ran again names the same object.
4. A free may overtake the seal notice (they come from different processes); it is then remembered for a while.
5. A request for an extent is answered once: granted, or refused with the numbers after EXTENT_WAIT_NS; what can never
   fit is refused at once.
6. A lease outlives its process by EXTENT_LINGER_NS: seal notices that it sent before it died still count.

::

    range:  free -> leased -> sealed -> freed -> leased again (or free, if the lessee is gone)

Source: DESIGN s6.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from typing import Any

from meshray import config
from meshray.machine import Received, Send, Tick, Undeliverable
from meshray.messages.objects import (
    ExtentGranted,
    ExtentRefused,
    ObjectsFreed,
    ObjectsSealed,
    RangesFreed,
    RequestExtent,
    ReturnExtents,
    Sealed,
    SurplusWanted,
)
from meshray.messages.tasks import Location
from meshray.store.allocator import Ranges, align
from meshray.store.events import SessionGone


class _Extent:
    __slots__ = ("ends_ns", "objects", "offset", "route", "size_bytes", "starts")

    def __init__(self, offset: int, size_bytes: int, route: bytes) -> None:
        self.offset = offset
        self.size_bytes = size_bytes
        self.route = route
        self.objects: dict[int, _Stored] = {}
        """Sealed objects inside, by offset."""
        self.starts: list[int] = []
        self.ends_ns = 0
        """When the lease of a process that is gone ends; 0 while it lives."""

    def overlaps(self, offset: int, end: int) -> bool:
        """Whether a sealed object lies in the way of a new one."""
        index = bisect_left(self.starts, offset)
        if index < len(self.starts) and self.starts[index] < end:
            return True
        if not index:
            return False
        before = self.objects[self.starts[index - 1]]
        return before.offset + before.size_bytes > offset


class _Stored:
    __slots__ = ("extent", "object", "offset", "owner", "size_bytes")

    def __init__(self, sealed: Sealed, extent: _Extent | None) -> None:
        self.object = sealed.object
        self.offset = sealed.offset
        self.size_bytes = sealed.size_bytes
        self.owner = sealed.owner
        self.extent = extent
        """Where it lies; None: in a range of the node's own."""


class _Waiting:
    __slots__ = ("cookie", "deadline_ns", "need_bytes", "route")

    def __init__(self, route: bytes, cookie: int, need_bytes: int, deadline_ns: int) -> None:
        self.route = route
        self.cookie = cookie
        self.need_bytes = need_bytes
        self.deadline_ns = deadline_ns


class ArenaDirectory:
    """The node's book of its arena."""

    def __init__(self, capacity_bytes: int, node: str) -> None:
        """Keep an arena of ``capacity_bytes`` for the node named ``node``."""
        self.capacity_bytes = capacity_bytes
        self.node = node
        self._ranges = Ranges()
        self._ranges.add(0, capacity_bytes)
        share = capacity_bytes // config.EXTENTS_SHARE_MIN // config.MIB * config.MIB
        self._usual_bytes = max(min(config.EXTENT_BYTES, share), config.MIB)
        self._touched_bytes = 0
        """Everything below was leased before; what lies above is fresh memory."""
        self._extents: dict[int, _Extent] = {}
        self._extent_starts: list[int] = []
        self._lingering: list[_Extent] = []
        """Extents of processes that ended, oldest first."""
        self._objects: dict[bytes, _Stored] = {}
        self._waiting: list[_Waiting] = []
        self._early: dict[bytes, bytes] = {}
        """Objects that were freed before they were sealed -> who freed them."""
        self._early_order: deque[tuple[int, bytes]] = deque()
        self._given_back: dict[bytes, list[tuple[int, int]]] = {}
        self._sealed_bytes = 0
        self._ignored = 0
        """Notices that made no sense, from peers that misbehave."""

    # --- the machine ---------------------------------------------------------------------------------------------

    def handle(self, event: Any, now_ns: int) -> list[Any]:
        """Take one event, return its effects in order."""
        effects: list[Any] = []
        match event:
            case Received(route, RequestExtent() as request):
                effects += self._request(route, request, now_ns)
            case Received(route, ReturnExtents(offsets)):
                self._return(route, offsets)
            case Received(route, ObjectsSealed(objects)):
                for sealed in objects:
                    self._seal(route, sealed)
            case Received(route, ObjectsFreed(objects)):
                for object_ in objects:
                    self._free(route, object_, now_ns)
            case SessionGone(_, route):
                self._session_gone(route, now_ns)
            case Undeliverable(route, ExtentGranted(offset=offset)):
                self._return(route, [offset])
            case Tick():
                self._forget_early(now_ns)
                for extent in [extent for extent in self._lingering if extent.ends_ns <= now_ns]:
                    self._dissolve(extent)
        effects += [Send(route, RangesFreed(ranges)) for route, ranges in self._given_back.items()]
        self._given_back.clear()
        return effects + self._serve_waiting(now_ns)

    def deadline_ns(self) -> int | None:
        """When a waiting request must be refused, an early free be forgotten, or a dead process's lease end."""
        deadlines = [waiting.deadline_ns for waiting in self._waiting]
        if self._early_order:
            deadlines.append(self._early_order[0][0])
        if self._lingering:
            deadlines.append(self._lingering[0].ends_ns)
        return min(deadlines, default=None)

    # --- room ----------------------------------------------------------------------------------------------------

    def _request(self, route: bytes, request: RequestExtent, now_ns: int) -> list[Any]:
        if any(waiting.route == route and waiting.cookie == request.cookie for waiting in self._waiting):
            return []
        waiting = _Waiting(route, request.cookie, align(request.size_bytes), now_ns + config.EXTENT_WAIT_NS)
        if waiting.need_bytes > self.capacity_bytes:
            return [self._refuse(waiting)]
        granted = self._grant(waiting)
        if granted is not None:
            return [granted]
        self._waiting.append(waiting)
        return [self._refuse(waiting, pending=True), *self.want_surplus()]

    def _grant(self, waiting: _Waiting) -> Send | None:
        whole = -(-waiting.need_bytes // config.MIB) * config.MIB
        for size_bytes in (max(whole, self._usual_bytes), whole, waiting.need_bytes):
            offset = self._ranges.allocate(size_bytes)
            if offset is not None:
                break
        else:
            return None
        populated_bytes = min(max(self._touched_bytes - offset, 0), size_bytes)
        self._touched_bytes = max(self._touched_bytes, offset + size_bytes)
        self._extents[offset] = _Extent(offset, size_bytes, waiting.route)
        insort(self._extent_starts, offset)
        return Send(waiting.route, ExtentGranted(waiting.cookie, offset, size_bytes, populated_bytes))

    def _refuse(self, waiting: _Waiting, *, pending: bool = False) -> Send:
        ranges = self._ranges
        numbers = (waiting.need_bytes, ranges.free_bytes, ranges.used_bytes, self.capacity_bytes)
        return Send(waiting.route, ExtentRefused(waiting.cookie, *numbers, pending=pending))

    def _serve_waiting(self, now_ns: int) -> list[Any]:
        effects: list[Any] = []
        for waiting in list(self._waiting):
            answer = self._grant(waiting)
            if answer is None and waiting.deadline_ns <= now_ns:
                answer = self._refuse(waiting)
            if answer is not None:
                self._waiting.remove(waiting)
                effects.append(answer)
        return effects

    def want_surplus(self) -> list[Any]:
        """Return what asks every session that leases extents for those that hold nothing."""
        routes = dict.fromkeys(extent.route for extent in self._extents.values() if not extent.ends_ns)
        return [Send(route, SurplusWanted()) for route in routes]

    def _return(self, route: bytes, offsets: list[int]) -> None:
        for offset in offsets:
            extent = self._extents.get(offset)
            if extent is None or extent.route != route:
                self._ignored += 1
            else:
                self._dissolve(extent)

    def _dissolve(self, extent: _Extent) -> None:
        """End a lease: what is sealed inside becomes the node's own, the rest is free."""
        for stored in extent.objects.values():
            stored.extent = None
        self._ranges.carve(extent.offset, [(stored.offset, stored.size_bytes) for stored in extent.objects.values()])
        del self._extents[extent.offset]
        if extent.ends_ns:
            self._lingering.remove(extent)
        self._extent_starts.pop(bisect_left(self._extent_starts, extent.offset))

    def _session_gone(self, route: bytes, now_ns: int) -> None:
        self._waiting = [waiting for waiting in self._waiting if waiting.route != route]
        for extent in self._extents.values():
            if extent.route == route and not extent.ends_ns:
                extent.ends_ns = now_ns + config.EXTENT_LINGER_NS
                self._lingering.append(extent)

    # --- objects -------------------------------------------------------------------------------------------------

    def _seal(self, route: bytes, sealed: Sealed) -> None:
        known = self._objects.get(sealed.object)
        if known is not None and (known.offset, known.size_bytes) == (sealed.offset, sealed.size_bytes):
            return
        index = bisect_right(self._extent_starts, sealed.offset) - 1
        extent = self._extents[self._extent_starts[index]] if index >= 0 else None
        if extent is None or extent.route != route or not self._fits(extent, sealed):
            self._ignored += 1
            return
        if known is not None:
            self._reclaim(known)
        freed_by = self._early.pop(sealed.object, None)
        if freed_by is not None:
            if freed_by != route:
                self._give_back(extent, sealed.offset, sealed.size_bytes)
            return
        stored = _Stored(sealed, extent)
        extent.objects[sealed.offset] = stored
        insort(extent.starts, sealed.offset)
        self._objects[sealed.object] = stored
        self._sealed_bytes += sealed.size_bytes

    def _fits(self, extent: _Extent, sealed: Sealed) -> bool:
        end = sealed.offset + align(sealed.size_bytes)
        if sealed.size_bytes <= 0 or sealed.offset % config.ALIGN_BYTES or end > extent.offset + extent.size_bytes:
            return False
        return not extent.overlaps(sealed.offset, end)

    def _free(self, route: bytes, object_: bytes, now_ns: int) -> None:
        stored = self._objects.get(object_)
        if stored is not None:
            self._reclaim(stored, freed_by=route)
        elif object_ not in self._early:
            self._early[object_] = route
            self._early_order.append((now_ns + config.EARLY_FREE_NS, object_))
            self._forget_early(now_ns)

    def _forget_early(self, now_ns: int) -> None:
        order = self._early_order
        while order and (order[0][0] <= now_ns or len(order) > config.EARLY_FREES_MAX):
            self._early.pop(order.popleft()[1], None)

    def _reclaim(self, stored: _Stored, *, freed_by: bytes = b"") -> None:
        del self._objects[stored.object]
        self._sealed_bytes -= stored.size_bytes
        extent = stored.extent
        if extent is None:
            self._ranges.free(stored.offset)
            return
        del extent.objects[stored.offset]
        extent.starts.pop(bisect_left(extent.starts, stored.offset))
        if extent.route != freed_by:
            self._give_back(extent, stored.offset, stored.size_bytes)

    def _give_back(self, extent: _Extent, offset: int, size_bytes: int) -> None:
        if not extent.ends_ns:
            self._given_back.setdefault(extent.route, []).append((offset, size_bytes))

    # --- for the puller ------------------------------------------------------------------------------------------

    def reserve(self, size_bytes: int) -> int | None:
        """Return the offset of a range of the node's own, or None if there is no room."""
        offset = self._ranges.allocate(size_bytes)
        if offset is not None:
            self._touched_bytes = max(self._touched_bytes, offset + align(size_bytes))
        return offset

    def unreserve(self, offset: int) -> None:
        """Free a range that ``reserve`` returned and ``adopt`` did not take."""
        self._ranges.free(offset)

    def adopt(self, sealed: Sealed) -> bool:
        """Seal an object in a reserved range; False (and the range is free) if it was freed or sealed meanwhile."""
        if sealed.object in self._objects or self._early.pop(sealed.object, None) is not None:
            self.unreserve(sealed.offset)
            return False
        self._objects[sealed.object] = _Stored(sealed, None)
        self._sealed_bytes += sealed.size_bytes
        return True

    # --- questions -----------------------------------------------------------------------------------------------

    def lookup(self, object_: bytes) -> Location | None:
        """Return where a sealed object lies here, or None."""
        stored = self._objects.get(object_)
        return None if stored is None else Location(self.node, stored.offset, stored.size_bytes)

    def owners(self) -> set[str]:
        """Return the owners of the sealed objects."""
        return {stored.owner for stored in self._objects.values()}

    def objects_of(self, owner: str) -> list[bytes]:
        """Return the sealed objects that this process owns."""
        return [stored.object for stored in self._objects.values() if stored.owner == owner]

    def describe(self, limit: int) -> list[dict[str, Any]]:
        """Return rows for ``list objects``, at most ``limit``."""
        rows: list[dict[str, Any]] = []
        for stored in self._objects.values():
            if len(rows) >= limit:
                break
            rows.append({"object": stored.object.hex(), "size_bytes": stored.size_bytes, "node": self.node,
                         "offset": stored.offset, "owner": stored.owner,
                         "lessee": stored.extent.route.decode(errors="replace") if stored.extent else ""})  # fmt: skip
        return rows

    def statistics(self) -> dict[str, int]:
        """Return counters and sizes for ``status`` and tests."""
        return {
            "capacity_bytes": self.capacity_bytes, "used_bytes": self._ranges.used_bytes,
            "free_bytes": self._ranges.free_bytes, "extents": len(self._extents), "sealed": len(self._objects),
            "sealed_bytes": self._sealed_bytes, "waiting": len(self._waiting), "early_frees": len(self._early),
            "ignored": self._ignored,
        }  # fmt: skip

    def check(self) -> None:
        """Assert the invariants of the module header."""
        self._ranges.check()
        assert self._extent_starts == sorted(self._extents)
        assert self._sealed_bytes == sum(stored.size_bytes for stored in self._objects.values())
        assert not self._given_back
        assert set(self._early) <= {object_ for _, object_ in self._early_order}
        for extent in self._extents.values():
            assert self._ranges.size_of(extent.offset) == align(extent.size_bytes)
            assert extent.starts == sorted(extent.objects)
            cursor = extent.offset
            for start in extent.starts:
                stored = extent.objects[start]
                assert stored.extent is extent and self._objects[stored.object] is stored
                assert start >= cursor, f"sealed objects overlap at {start}"
                cursor = start + align(stored.size_bytes)
            assert cursor <= extent.offset + extent.size_bytes
        for stored in self._objects.values():
            if stored.extent is None:
                assert self._ranges.size_of(stored.offset) == align(stored.size_bytes), "a range of the node's own"
            else:
                assert stored.extent.objects[stored.offset] is stored
