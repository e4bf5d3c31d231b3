"""The arena's directory: who leases which extent, and which object lies where.

*Pure.* Runs in the node process.

1. Every byte of the arena is free, in an extent leased to one session, or in a range of the node's own (an object whose
   maker is gone, a copy pulled from another node, an object that came back from disk).
2. What is sealed belongs to the node: a range that is freed or taken goes back to who may allocate there, to the
   session that leases the extent (RangesFreed), else to the arena.
3. The object behind an id is the one sealed last: a task that ran again names the same object.
4. A free may overtake the seal notice (they come from different processes); it is then remembered for a while.
5. A request for an extent is answered once: granted, or refused with the numbers after EXTENT_WAIT_NS in which no room
   was made; what can never fit is refused at once.
6. A lease outlives its process by EXTENT_LINGER_NS: seal notices that it sent before it died still count.
7. What a part of the node or the disk thread uses (``busy``, ``held``), in memory or on disk, is not reused before they
   are done.

::

    range:  free -> leased -> sealed -> freed or evicted -> leased again (or free, if the lessee is gone)

``spill`` decides what leaves memory when room is short. Source: DESIGN s6.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from meshray import config
from meshray.machine import Received, Tick, Undeliverable
from meshray.messages.objects import (
    ExtentGranted,
    ObjectsFreed,
    ObjectsSealed,
    RequestExtent,
    ReturnExtents,
    Sealed,
    WithdrawRequest,
)
from meshray.messages.tasks import Location
from meshray.store.allocator import align
from meshray.store.events import DropChunks, SessionGone
from meshray.store.records import Board, Entry, Extent, NoReaders
from meshray.store.room import Room


class ArenaDirectory:
    """The node's book of its arena."""

    def __init__(self, capacity_bytes: int, node: str, board: Board | None = None) -> None:
        """Keep an arena of ``capacity_bytes`` for the node named ``node``; ``board`` knows who reads in place."""
        self.capacity_bytes = capacity_bytes
        self.node = node
        self.board: Board = board or NoReaders()
        self.disk_error = ""
        """Why the disk did not take the last object; empty if it did."""
        self.room = Room(capacity_bytes, self._numbers)
        self._objects: dict[bytes, Entry] = {}
        self.primaries: dict[bytes, Entry] = {}
        """Objects in memory that are nobody's copies, the one used last at the end."""
        self.replicas: dict[bytes, Entry] = {}
        """Copies in memory of objects of other nodes, in the same order."""
        self._leaving: list[Entry] = []
        """Freed, but still in use by the node."""
        self._early: dict[bytes, None] = {}
        """Objects that were freed before they were sealed."""
        self._early_order: deque[tuple[int, bytes]] = deque()
        self._dropped: list[bytes] = []
        self._resident_bytes = 0
        self._spilled_bytes = 0
        self._ignored = 0
        """Notices that made no sense, from peers that misbehave."""

    # --- the machine ---------------------------------------------------------------------------------------------

    def handle(self, event: Any, now_ns: int) -> list[Any]:
        """Take one event, return its effects in order."""
        effects: list[Any] = []
        match event:
            case Received(route, RequestExtent() as request):
                effects += self.room.request(route, request, now_ns)
            case Received(route, WithdrawRequest(cookie)):
                self.room.withdraw(route, cookie)
            case Received(route, ReturnExtents(offsets)):
                self._ignored += self.room.take_back(route, offsets)
            case Received(route, ObjectsSealed(objects)):
                for sealed in objects:
                    self._seal(route, sealed)
            case Received(route, ObjectsFreed(objects)):
                for object_ in objects:
                    self._free(object_, now_ns)
            case SessionGone(_, route):
                self.room.session_gone(route, now_ns)
            case Undeliverable(route, ExtentGranted(offset=offset)):
                self.room.take_back(route, [offset])
            case Tick():
                self._forget_early(now_ns)
                for extent in [extent for extent in self.room.lingering if extent.ends_ns <= now_ns]:
                    self.room.dissolve(extent)
        return effects + self.news() + self.room.serve_waiting(now_ns)

    def news(self) -> list[Any]:
        """Return what sessions and the disk must hear of ranges and chunks that were let go since the last time."""
        effects = self.room.news()
        if self._dropped:
            effects.append(DropChunks(b"".join(self._dropped)))
            self._dropped.clear()
        return effects

    def deadline_ns(self) -> int | None:
        """When a waiting request must be refused, an early free be forgotten, or a dead process's lease end."""
        if not (self.room.waiting or self._early_order or self.room.lingering):
            return None
        deadlines = [waiting.deadline_ns for waiting in self.room.waiting]
        if self._early_order:
            deadlines.append(self._early_order[0][0])
        if self.room.lingering:
            deadlines.append(self.room.lingering[0].ends_ns)
        return min(deadlines, default=None)

    # --- objects -------------------------------------------------------------------------------------------------

    def _seal(self, route: bytes, sealed: Sealed) -> None:
        known = self._objects.get(sealed.object)
        if known is not None and (known.offset, known.size_bytes) == (sealed.offset, sealed.size_bytes):
            return
        extent = self.room.extent_at(sealed.offset)
        if extent is None or extent.route != route or not self._fits(extent, sealed):
            self._ignored += 1
            return
        if known is not None:
            self._remove(known)
        if sealed.object in self._early:
            del self._early[sealed.object]
            self.room.give_back(extent, sealed.offset, sealed.size_bytes)
            return
        entry = Entry(sealed, extent)
        extent.add(entry)
        self._take_in(entry)

    def _fits(self, extent: Extent, sealed: Sealed) -> bool:
        end = sealed.offset + align(sealed.size_bytes)
        if sealed.size_bytes <= 0 or sealed.offset % config.ALIGN_BYTES or end > extent.offset + extent.size_bytes:
            return False
        return not extent.overlaps(sealed.offset, end)

    def _take_in(self, entry: Entry) -> None:
        self._objects[entry.object] = entry
        (self.replicas if entry.replica else self.primaries)[entry.object] = entry
        self._resident_bytes += entry.size_bytes

    def _free(self, object_: bytes, now_ns: int) -> None:
        entry = self._objects.get(object_)
        if entry is not None:
            self._remove(entry)
        elif object_ not in self._early:
            self._early[object_] = None
            self._early_order.append((now_ns + config.EARLY_FREE_NS, object_))
            self._forget_early(now_ns)

    def _forget_early(self, now_ns: int) -> None:
        order = self._early_order
        while order and (order[0][0] <= now_ns or len(order) > config.EARLY_FREES_MAX):
            self._early.pop(order.popleft()[1], None)

    def _remove(self, entry: Entry) -> None:
        del self._objects[entry.object]
        self.primaries.pop(entry.object, None)
        self.replicas.pop(entry.object, None)
        if entry.offset < 0:
            self._spilled_bytes -= entry.size_bytes
        if entry.busy or entry.held:
            entry.freed = True
            self._leaving.append(entry)
        else:
            self._let_go(entry)

    def _let_go(self, entry: Entry) -> None:
        if entry.offset >= 0:
            self._vacate(entry)
        self.drop_chunks([entry])

    def _vacate(self, entry: Entry) -> None:
        self._resident_bytes -= entry.size_bytes
        self.room.vacate(entry)

    def _numbers(self) -> tuple[int, int, str]:
        look = self.board.look()
        pinned_bytes = sum(entry.size_bytes for entries in (self.primaries, self.replicas)
                           for entry in entries.values() if entry.held or look(entry.offset)[1])
        return pinned_bytes, self._spilled_bytes, self.disk_error

    # --- for who moves objects -----------------------------------------------------------------------------------

    def find(self, object_: bytes) -> Entry | None:
        """Return what is known of an object, in memory or on disk."""
        return self._objects.get(object_)

    def evict(self, entry: Entry) -> None:
        """Take the memory of an object that nobody uses: a copy is forgotten, a primary is on disk."""
        assert not entry.busy and not entry.held and (entry.replica or entry.digests)
        if entry.replica:
            self._remove(entry)
            return
        del self.primaries[entry.object]
        self._vacate(entry)
        self._spilled_bytes += entry.size_bytes

    def settle(self, entry: Entry, offset: int) -> None:
        """An object is back from disk, in a range that was reserved."""
        entry.offset = offset
        self._spilled_bytes -= entry.size_bytes
        self._take_in(entry)

    def done_with(self, entry: Entry) -> None:
        """The disk thread or a part of the node uses ``entry`` no more: what was freed meanwhile goes now."""
        if entry.freed and not entry.busy and not entry.held:
            self._leaving.remove(entry)
            self._let_go(entry)

    def drop_chunks(self, entries: Iterable[Entry]) -> None:
        """Let go of the chunks that these objects have on disk."""
        for entry in entries:
            if entry.digests:
                self._dropped.append(entry.digests)
                entry.digests = b""

    def hold(self, object_: bytes) -> Entry | None:
        """Keep an object's memory, or its chunks if it is on disk, for a part of the node that reads it; None if it is
        neither. Undone by ``unhold`` with what was returned."""
        entry = self._objects.get(object_)
        if entry is None:
            return None
        entry.held += 1
        return entry

    def unhold(self, entry: Entry) -> None:
        """The reader is done."""
        entry.held -= 1
        self.done_with(entry)

    # --- for the puller ------------------------------------------------------------------------------------------

    def reserve(self, size_bytes: int) -> int | None:
        """Return the offset of a range of the node's own, or None if there is no room."""
        return self.room.reserve(size_bytes)

    def unreserve(self, offset: int) -> None:
        """Free a range that ``reserve`` returned and nobody took."""
        self.room.ranges.free(offset)

    def want_surplus(self) -> list[Any]:
        """Return what asks sessions for extents that hold nothing. What did not fit is being made room for."""
        return self.room.want_surplus()

    def adopt(self, sealed: Sealed) -> bool:
        """Seal a copy in a reserved range; False (and the range is free) if it was freed or sealed meanwhile."""
        if sealed.object in self._objects or sealed.object in self._early:
            self._early.pop(sealed.object, None)
            self.unreserve(sealed.offset)
            return False
        entry = Entry(sealed, None, replica=True)
        entry.promised_uses = self.board.uses(entry.offset)
        self._take_in(entry)
        return True

    # --- questions -----------------------------------------------------------------------------------------------

    def lookup(self, object_: bytes) -> Location | None:
        """Return where a sealed object lies in memory here, or None."""
        entry = self._objects.get(object_)
        if entry is None or entry.offset < 0:
            return None
        return Location(self.node, entry.offset, entry.size_bytes, self.board.generation(entry.offset))

    def owners(self) -> set[str]:
        """Return the owners of the sealed objects."""
        return {stored.owner for stored in self._objects.values()}

    def objects_of(self, owner: str) -> list[bytes]:
        """Return the sealed objects that this process owns."""
        return [entry.object for entry in self._objects.values() if entry.owner == owner]

    def describe(self, limit: int) -> list[dict[str, Any]]:
        """Return rows for ``list objects``, at most ``limit``."""
        return [{"object": entry.object.hex(), "size_bytes": entry.size_bytes, "node": self.node,
                 "offset": entry.offset, "owner": entry.owner,
                 "state": "spilled" if entry.offset < 0 else "replica" if entry.replica else "in memory",
                 "lessee": entry.extent.route.decode(errors="replace") if entry.extent else ""}
                for entry in list(self._objects.values())[:limit]]

    def statistics(self) -> dict[str, int]:
        """Return counters and sizes for ``status`` and tests."""
        resident = len(self.primaries) + len(self.replicas)
        return {
            "capacity_bytes": self.capacity_bytes, "used_bytes": self.room.ranges.used_bytes,
            "free_bytes": self.room.ranges.free_bytes, "extents": len(self.room.extents), "sealed": resident,
            "sealed_bytes": self._resident_bytes, "replicas": len(self.replicas),
            "spilled": len(self._objects) - resident, "spilled_bytes": self._spilled_bytes,
            "waiting": len(self.room.waiting), "refusals": self.room.refusals, "early_frees": len(self._early),
            "ignored": self._ignored,
        }  # fmt: skip

    def check(self) -> None:
        """Assert the invariants of the module header."""
        self.room.check()
        known = [*self._objects.values(), *self._leaving]
        resident = [entry for entry in known if entry.offset >= 0]
        assert self._resident_bytes == sum(entry.size_bytes for entry in resident)
        assert self._spilled_bytes == sum(entry.size_bytes for entry in self._objects.values() if entry.offset < 0)
        assert not self._dropped
        assert set(self._early) <= {object_ for _, object_ in self._early_order}
        assert {**self.primaries, **self.replicas} == {
            entry.object: entry for entry in self._objects.values() if entry.offset >= 0}
        assert all(entry.freed and (entry.busy or entry.held) for entry in self._leaving)
        for entry in resident:
            if entry.extent is None:
                assert self.room.ranges.size_of(entry.offset) == align(entry.size_bytes), "a range of the node's own"
            else:
                assert entry.extent.objects[entry.offset] is entry
        for entry in self._objects.values():
            assert entry.offset >= 0 or (entry.digests and not entry.replica), "what is not in memory is on disk"
