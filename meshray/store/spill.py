"""Decides what leaves memory when room is short, and brings it back when somebody reads it.

*Pure (but for the board that it is given).* Runs in the node process.

1. Room is made only for who waits, in this order: copies of objects of other nodes are dropped; primaries go to disk,
   or are dropped if their chunks are there already; who waits goes on waiting; then it is refused with the numbers.
2. What is pinned, promised to a reader, or held by the node stays. Copies and primaries go in the order of their last
   use, as far as the board tells: one that was pinned since the last look gets a second chance.
3. An object is in memory until its chunks are on disk, and readers are not disturbed meanwhile. Then its location is
   revoked, and it goes if nobody reads it.
4. Restores of one object are joined. A reader that is told where an object lies finds it there for PROMISE_NS.
5. Every fetch ends in ObjectFetched or FetchFailed: within SEAL_WAIT_NS if the object is unknown, within EXTENT_WAIT_NS
   after the last time that room was made if there is none.
6. Producers leave room on disk for as much as the largest object that went there, so that restores, which need room in
   memory, can send others to disk when producers cannot any more: what was taken can always be read.
7. A disk that refuses (full, broken) is asked again every SPILL_RETRY_NS while somebody waits; what it refused stays in
   memory.

::

    in memory --spill--> in memory and on disk --evict--> on disk --restore--> in memory and on disk

Source: DESIGN s6; second chance as in CLOCK (Corbato 1968).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from meshray import config
from meshray.machine import Received, Send, Tick
from meshray.messages.objects import (
    ExtentRefused,
    FetchFailed,
    FetchObject,
    ObjectFetched,
    ObjectsFreed,
    ObjectsSealed,
    ReturnExtents,
)
from meshray.store.directory import ArenaDirectory
from meshray.store.events import (
    ObjectRestored,
    ObjectSpilled,
    RangeRefused,
    RangeReserved,
    RestoreObject,
    SessionGone,
    SpillObject,
)
from meshray.store.records import Entry


class _Restore:
    """One object on its way back."""

    __slots__ = ("entry", "offset", "waiters")

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.offset = -1
        self.waiters: dict[bytes, None] = {}


class _Expected:
    """An object that somebody reads and nobody has sealed yet."""

    __slots__ = ("deadline_ns", "waiters")

    def __init__(self, deadline_ns: int) -> None:
        self.deadline_ns = deadline_ns
        self.waiters: dict[bytes, None] = {}


class Spiller:
    """Moves objects between the arena and the disk of one node."""

    def __init__(self, directory: ArenaDirectory, *, to_disk: bool = True) -> None:
        """``to_disk`` False: primaries never leave memory."""
        self._directory = directory
        self._room = directory.room
        self._to_disk = to_disk
        self._batch_bytes = min(config.SPILL_BATCH_BYTES, directory.capacity_bytes // 8)
        self._spilling: dict[bytes, Entry] = {}
        """What the disk thread writes."""
        self._restores: dict[bytes, _Restore] = {}
        self._expected: dict[bytes, _Expected] = {}
        self._look_ns = 0
        """Nothing is looked for before: there was nothing, or what there was must come back from its lessee first."""
        self._retry_ns = 0
        """The disk refused, and is not asked again before."""
        self._surplus_ns = 0
        self._largest_bytes = 0
        """Size of the largest object that went to disk so far."""
        self._counts = {"spills": 0, "spill_failures": 0, "evictions": 0, "restores": 0}

    # --- the machine ---------------------------------------------------------------------------------------------

    @property
    def awake(self) -> bool:
        """Whether ``settle`` has anything to do after this turn's event."""
        return bool(self._room.waiting or self._room.unreserved_bytes or self._restores or self._expected)

    def handle(self, event: Any, now_ns: int) -> list[Any]:
        """Take one event, return its effects in order."""
        match event:
            case Received(route, FetchObject() as fetch):
                return self._fetch(route, fetch, now_ns)
            case Received(_, ObjectsSealed(objects)):
                return self._sealed(sealed.object for sealed in objects) if self._expected else []
            case Received(_, ObjectsFreed(objects)):
                self._freed(objects)
            case Received(_, ReturnExtents()):
                self._look_ns = 0
            case ObjectSpilled():
                return self._spilled(event, now_ns)
            case ObjectRestored():
                return self._restored(event, now_ns)
            case RangeReserved(object_, offset):
                return self._reserved(object_, offset)
            case RangeRefused(object_, refused):
                return self._refused(object_, refused)
            case SessionGone(_, route):
                for restore in self._restores.values():
                    restore.waiters.pop(route, None)
                for expected in self._expected.values():
                    expected.waiters.pop(route, None)
            case Tick():
                return self._tick(now_ns)
        return []

    def settle(self, effects: list[Any], now_ns: int) -> list[Any]:
        """Turn what other parts say to this one into effects, and make room if somebody waits for it."""
        return self._heard(effects, now_ns) + self._make_room(now_ns)

    def _heard(self, effects: list[Any], now_ns: int) -> list[Any]:
        remaining: list[Any] = []
        for effect in effects:
            if type(effect) is RangeReserved or type(effect) is RangeRefused:
                remaining += self.handle(effect, now_ns)
            else:
                remaining.append(effect)
        return remaining

    def deadline_ns(self) -> int | None:
        """When to look for room again, or to give an object up that was never sealed."""
        if not self.awake:
            return None
        deadlines = [expected.deadline_ns for expected in self._expected.values()]
        if (self._room.waiting or self._room.unreserved_bytes) and not self._spilling:
            deadlines.append(self._look_ns)
        return min(deadlines, default=None)

    # --- reading -------------------------------------------------------------------------------------------------

    def is_mine(self, fetch: FetchObject) -> bool:
        """Whether a fetch ends here: the object is known, or should be."""
        return self._directory.find(fetch.object) is not None or fetch.location.node == self._directory.node

    def _fetch(self, route: bytes, fetch: FetchObject, now_ns: int) -> list[Any]:
        entry = self._directory.find(fetch.object)
        if entry is None:
            expected = self._expected.setdefault(fetch.object, _Expected(now_ns + config.SEAL_WAIT_NS))
            expected.waiters[route] = None
            return []
        if entry.offset >= 0:
            self._promise(entry, now_ns)
            return self._tell((route,), fetch.object)
        effects = self.bring(fetch.object, now_ns)
        self._restores[fetch.object].waiters[route] = None
        return effects

    def is_on_disk(self, object_: bytes) -> bool:
        """Whether an object is known here, but not in memory."""
        entry = self._directory.find(object_)
        return entry is not None and entry.offset < 0

    def bring(self, object_: bytes, now_ns: int) -> list[Any]:
        """Bring an object back from disk, for whoever asks again later."""
        entry = self._directory.find(object_)
        if entry is None or entry.offset >= 0 or object_ in self._restores:
            return []
        self._restores[object_] = _Restore(entry)
        return self._room.reserve_later(object_, entry.size_bytes, now_ns)

    def _promise(self, entry: Entry, now_ns: int) -> None:
        entry.promised_ns = now_ns + config.PROMISE_NS
        entry.promised_uses = self._directory.board.uses(entry.offset)

    def _tell(self, routes: Iterable[bytes], object_: bytes) -> list[Any]:
        location = self._directory.lookup(object_)
        assert location is not None
        return [Send(route, ObjectFetched(object_, location)) for route in routes]

    def _sealed(self, objects: Iterable[bytes]) -> list[Any]:
        effects: list[Any] = []
        for object_ in objects:
            if object_ in self._expected and self._directory.lookup(object_) is not None:
                effects += self._tell(self._expected.pop(object_).waiters, object_)
        return effects

    def _reserved(self, object_: bytes, offset: int) -> list[Any]:
        restore = self._restores.get(object_)
        if restore is None or restore.offset >= 0 or restore.entry.freed:
            self._directory.unreserve(offset)
            return []
        restore.offset = offset
        entry = restore.entry
        entry.busy = True
        return [RestoreObject(object_, offset, entry.size_bytes, entry.digests)]

    def _refused(self, object_: bytes, refused: ExtentRefused) -> list[Any]:
        restore = self._restores.pop(object_, None)
        waiters = restore.waiters if restore is not None else {}
        return [Send(route, FetchFailed(object_, "the object store is full", refused=refused)) for route in waiters]

    def _restored(self, event: ObjectRestored, now_ns: int) -> list[Any]:
        restore = self._restores.pop(event.object)
        entry = restore.entry
        entry.busy = False
        if entry.freed or event.error:
            self._directory.unreserve(restore.offset)
            self._directory.done_with(entry)
            why = event.error or "its owner freed it"
            return [*self._directory.news(),
                    *(Send(route, FetchFailed(event.object, why, lost=True)) for route in restore.waiters)]
        self._counts["restores"] += 1
        self._directory.settle(entry, restore.offset)
        self._promise(entry, now_ns)
        return self._tell(restore.waiters, event.object)

    def _freed(self, objects: Iterable[bytes]) -> None:
        for object_ in objects:
            restore = self._restores.get(object_)
            if restore is not None and restore.offset < 0:
                # It waits for a range. One that is being read from disk ends with the read.
                self._room.forget_waiting(object_)
                self._restores.pop(object_)
                self._expected.setdefault(object_, _Expected(0)).waiters.update(restore.waiters)

    # --- making room ---------------------------------------------------------------------------------------------

    def _make_room(self, now_ns: int) -> list[Any]:
        room = self._room
        need_bytes = room.short_bytes()
        if not need_bytes or self._spilling or now_ns < self._look_ns:
            return []
        goal_bytes = max(need_bytes - room.ranges.free_bytes, self._batch_bytes)
        ready, dirty = self._victims(goal_bytes, now_ns)
        evicted = self._evict(ready, now_ns)
        effects = self._after_eviction(now_ns) if evicted else []
        for entry in dirty:
            entry.busy = True
            self._spilling[entry.object] = entry
            self._largest_bytes = max(self._largest_bytes, entry.size_bytes)
            effects.append(SpillObject(entry.object, entry.offset, entry.size_bytes, self._spare_bytes()))
        room.making_room = bool(self._spilling)
        if not evicted and not dirty:
            self._look_ns = now_ns + config.SPILL_LOOK_NS
            room.unreserved_bytes = 0
            if now_ns >= self._surplus_ns:
                self._surplus_ns = now_ns + config.SURPLUS_REPEAT_NS
                effects += room.want_surplus()
        return effects

    def _spare_bytes(self) -> int:
        waiting = self._room.waiting
        return 0 if waiting and waiting[0].object else self._largest_bytes

    def _victims(self, goal_bytes: int, now_ns: int) -> tuple[list[Entry], list[Entry]]:
        """Choose what leaves memory: what can go at once, and what must be written first."""
        look = self._directory.board.look()
        ready = _choose(self._directory.replicas, goal_bytes, look, now_ns, lambda entry: True)
        goal_bytes -= sum(entry.size_bytes for entry in ready)
        if goal_bytes <= 0 or not self._to_disk:
            return ready, []
        may_write = now_ns >= self._retry_ns
        chosen = _choose(self._directory.primaries, goal_bytes, look, now_ns,
                         lambda entry: may_write or bool(entry.digests))
        return ready + [each for each in chosen if each.digests], [each for each in chosen if not each.digests]

    def _evict(self, entries: list[Entry], now_ns: int) -> bool:
        """Take the memory of those that nobody reads; False if that was none."""
        board = self._directory.board
        entries = [entry for entry in entries if entry.offset >= 0 and not entry.held
                   and not entry.is_promised(board.uses(entry.offset), now_ns)]
        free = board.revoke([entry.offset for entry in entries]) if entries else []
        gone = [entry for entry, is_free in zip(entries, free, strict=True) if is_free]
        for entry in gone:
            self._directory.evict(entry)
        self._counts["evictions"] += len(gone)
        return bool(gone)

    def _after_eviction(self, now_ns: int) -> list[Any]:
        self._room.unreserved_bytes = 0
        self._room.be_patient(now_ns)
        news = self._directory.news()
        if any(type(effect) is Send for effect in news):
            self._look_ns = now_ns + config.SPILL_LOOK_NS
        return self._heard(news + self._room.serve_waiting(now_ns), now_ns)

    def _spilled(self, event: ObjectSpilled, now_ns: int) -> list[Any]:
        entry = self._spilling.pop(event.object)
        entry.busy = False
        entry.digests = event.digests
        self._directory.disk_error = event.error
        if event.error:
            self._counts["spill_failures"] += 1
            # Chunks of objects that are in memory too are the only ones that can go.
            spare = [one for one in self._directory.primaries.values() if one.digests and not one.busy]
            self._directory.drop_chunks(spare)
            self._retry_ns = now_ns if spare else now_ns + config.SPILL_RETRY_NS
        else:
            self._counts["spills"] += 1
        if entry.freed:
            self._directory.done_with(entry)
        elif event.error or not self._evict([entry], now_ns):
            return self._directory.news() + self._make_room(now_ns)
        return self._after_eviction(now_ns) + self._make_room(now_ns)

    # --- time ----------------------------------------------------------------------------------------------------

    def _tick(self, now_ns: int) -> list[Any]:
        effects: list[Any] = []
        for object_, expected in list(self._expected.items()):
            if expected.deadline_ns <= now_ns:
                del self._expected[object_]
                why = f"{self._directory.node} does not hold it: it was freed, or its maker died before it was complete"
                effects += [Send(route, FetchFailed(object_, why, lost=True)) for route in expected.waiters]
        return effects

    # --- questions -----------------------------------------------------------------------------------------------

    def statistics(self) -> dict[str, int]:
        """Return counters and sizes for ``status`` and tests."""
        return {"spilling": len(self._spilling), "restoring": len(self._restores), **self._counts}

    def check(self) -> None:
        """Assert the invariants of the module header."""
        assert all(entry.busy and entry.offset >= 0 and not entry.digests for entry in self._spilling.values())
        for object_, restore in self._restores.items():
            assert restore.entry.offset < 0 and restore.entry.digests
            assert restore.entry.busy == (restore.offset >= 0)
            waits = any(waiting.object == object_ for waiting in self._room.waiting)
            assert waits == (restore.offset < 0), "a restore waits for a range, or has one"
        assert self._room.making_room or not self._spilling


def _choose(entries: dict[bytes, Entry], goal_bytes: int, look: Any, now_ns: int, fits: Any) -> list[Entry]:
    """Return the entries that can go, oldest first, up to ``goal_bytes``; move those that cannot to the end."""
    chosen: list[Entry] = []
    used: list[Entry] = []
    later: list[Entry] = []
    for entry in entries.values():
        if goal_bytes <= 0:
            break
        uses, pinned = look(entry.offset)
        if pinned or entry.held or entry.busy or entry.is_promised(uses, now_ns) or not fits(entry):
            later.append(entry)
        elif entry.uses not in (-1, uses):
            used.append(entry)
        else:
            chosen.append(entry)
            goal_bytes -= entry.size_bytes
        entry.uses = uses
    for entry in used:
        if goal_bytes <= 0:
            later.append(entry)
        else:
            chosen.append(entry)
            goal_bytes -= entry.size_bytes
    for entry in later:
        del entries[entry.object]
        entries[entry.object] = entry
    return chosen
