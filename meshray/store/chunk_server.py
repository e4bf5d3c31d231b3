"""Tells other nodes what this one has of an object, and opens its bulk socket to them.

*Pure.* Runs in the node process; the chunks themselves leave through the bulk plane (``bulk``).

1. Sealed objects are served, from memory or from disk, and of objects on their way here the chunks that have come.
2. Digests are computed once per object, off the node's loop, and only when somebody asks. What was on disk has them.
3. A ticket is for one asker and one object; it is told over the control plane only, and ends with either of them.
4. An object is held where it is, in memory or on disk, while somebody asks: pulls ask again every PULL_REFRESH_NS.
   What is on disk and comes back meanwhile is served from disk until somebody asks again.
5. Who asks is told of the others that asked: they have, or soon will have, chunks too.
6. An object that is freed is freed on every node that asked for it here.

Source: iroh-blobs DESIGN.md (requests name content, the asker verifies); the tracker of BitTorrent (Cohen 2003).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from meshray import config
from meshray.machine import Received, Send, Tick
from meshray.messages.objects import ChunksHeld, Manifest, ObjectsFreed, ObjectUnknown, RequestManifest
from meshray.messages.tasks import Location
from meshray.store import chunk_sets
from meshray.store.chunk_index import ChunkIndex
from meshray.store.directory import ArenaDirectory
from meshray.store.events import (
    ChunksUnreadable,
    DigestObject,
    Grant,
    HolderGone,
    ObjectDigested,
    ObjectSpilled,
    Revoke,
)
from meshray.store.records import Entry
from meshray.store.swarm import Pull


class Held(msgspec.Struct):
    """An object that others take: ``entry`` is what the directory holds, until ``until_ns``."""

    entry: Entry
    until_ns: int


class ChunkServer:
    """Serves manifests, gives out tickets, and remembers who asked."""

    def __init__(self, directory: ArenaDirectory, partial: Callable[[bytes], Pull | None], *, index: ChunkIndex,
                 bulk: Callable[[], str], entropy: Callable[[int], bytes]) -> None:
        """``partial`` finds an object on its way here; ``bulk`` returns the endpoint of the bulk socket; ``entropy(n)``
        returns n random bytes."""
        self._directory = directory
        self._partial = partial
        self._index = index
        self._bulk = bulk
        self._entropy = entropy
        self._offsets: dict[bytes, int] = {}
        """Objects whose digests the index has -> where they lay then."""
        self._hashing: dict[bytes, dict[bytes, bool]] = {}
        """Objects being hashed -> routes that wait for the manifest, and whether a brief one will do."""
        self._askers: dict[bytes, dict[bytes, bytes]] = {}
        """Objects -> routes of the nodes that asked, in the order they did first, and the ticket of each."""
        self._held: dict[bytes, Held] = {}
        self._unreadable: set[bytes] = set()
        """Objects on disk that the bulk plane could not read: they are served when they are back in memory."""
        self._disk_manifests = 0
        self._look_ns = 0
        """When holds that ended are looked for."""

    def handle(self, event: Any, now_ns: int) -> list[Any]:
        """Take one event, return its effects in order."""
        match event:
            case Received(route, RequestManifest(object_, brief)):
                return self._manifest(route, object_, brief, now_ns)
            case Received(_, ObjectsFreed(objects)):
                return self._freed(objects)
            case ObjectDigested():
                return self._digested(event, now_ns)
            case HolderGone(node):
                return self._asker_gone(node.encode())
            case ObjectSpilled(object_, digests, error) if not error:
                self._index.add(object_, digests)
            case ChunksUnreadable(object_):
                entry = self._directory.find(object_)
                if entry is not None and entry.offset < 0:
                    self._unreadable.add(object_)
            case Tick():
                return self._tick(now_ns) if self._held and now_ns >= self._look_ns else []
        return []

    def deadline_ns(self) -> int | None:
        """When holds that ended are looked for."""
        return self._look_ns if self._held else None

    def _manifest(self, route: bytes, object_: bytes, brief: bool, now_ns: int) -> list[Any]:
        entry = self._directory.find(object_)
        if entry is not None and entry.offset < 0:
            return self._manifest_from_disk(route, entry, brief, now_ns)
        self._unreadable.discard(object_)
        location = self._directory.lookup(object_)
        if entry is None or location is None:
            pull = self._partial(object_)
            if pull is None:
                return [Send(route, ObjectUnknown(object_))]
            place = Location("", -1, pull.size_bytes)
            return self._answer(route, object_, place, b"" if brief else pull.digests, pull)
        if entry.digests and self._offsets.get(object_) != location.offset:
            self.learned(object_, location.offset, entry.digests, now_ns)
        if self._offsets.get(object_) == location.offset:
            self._hold(object_, now_ns)
            digests = b"" if brief else self._index.digests_of(object_)
            return self._answer(route, object_, location, digests)
        if object_ in self._hashing:
            self._hashing[object_][route] = brief
            return [Send(route, ChunksHeld(object_, []))]
        self._hashing[object_] = {route: brief}
        return [DigestObject(object_, location.offset, location.size_bytes)]

    def _manifest_from_disk(self, route: bytes, entry: Entry, brief: bool, now_ns: int) -> list[Any]:
        self._disk_manifests += 1
        self._hold(entry.object, now_ns)
        self._offsets.pop(entry.object, None)
        place = Location("", -1, entry.size_bytes)
        return self._answer(route, entry.object, place, b"" if brief else entry.digests, on_disk=entry.digests)

    def serves_from_disk(self, object_: bytes) -> bool:
        """Whether an object that is on disk need not come back for who asks here."""
        return object_ not in self._unreadable

    def _hold(self, object_: bytes, now_ns: int) -> None:
        held = self._held.get(object_)
        if held is not None:
            held.until_ns = now_ns + config.SERVE_HOLD_NS
            return
        entry = self._directory.hold(object_)
        if entry is not None:
            if not self._held:
                self._look_ns = now_ns + config.SERVE_HOLD_NS
            self._held[object_] = Held(entry, now_ns + config.SERVE_HOLD_NS)

    def _tick(self, now_ns: int) -> list[Any]:
        """Let go of what nobody asked for lately: it may move now, so tickets must be asked for anew."""
        self._look_ns = now_ns + config.SERVE_HOLD_NS
        effects = self.let_go(now_ns)
        gone = [object_ for object_ in self._offsets if self._directory.find(object_) is None]
        for object_ in gone:
            self._index.drop(object_)
            del self._offsets[object_]
        return effects

    def let_go(self, now_ns: int, *, sooner_ns: int = 0) -> list[Any]:
        """End holds; those in memory ``sooner_ns`` before their time, when somebody waits for room."""
        idle = [object_ for object_, held in self._held.items()
                if held.until_ns - (sooner_ns if held.entry.offset >= 0 else 0) <= now_ns]
        for object_ in idle:
            self._directory.unhold(self._held.pop(object_).entry)
        return [Revoke(idle)] if idle else []

    def _digested(self, event: ObjectDigested, now_ns: int) -> list[Any]:
        routes = self._hashing.pop(event.object, {})
        location = self._directory.lookup(event.object)
        if location is None:
            return [Send(route, ObjectUnknown(event.object)) for route in routes]
        if location.offset != event.offset:
            # Sealed anew elsewhere while the old bytes were hashed: the askers repeat their request.
            return []
        self.learned(event.object, event.offset, event.digests, now_ns)
        self._hold(event.object, now_ns)
        answers = [self._answer(route, event.object, location, b"" if brief else event.digests)
                   for route, brief in routes.items()]
        return [effect for answer in answers for effect in answer]

    def _answer(self, route: bytes, object_: bytes, location: Location, digests: bytes,
                pull: Pull | None = None, *, on_disk: bytes = b"") -> list[Any]:
        askers = self._askers.setdefault(object_, {})
        others = [_name(other) for other in askers if other != route][-config.PULL_PEERS_MAX :]
        effects: list[Any] = []
        if route not in askers:
            askers[route] = self._entropy(config.TICKET_BYTES)
            if len(askers) > config.SERVE_ASKERS_MAX:
                effects.append(Revoke(tickets=[askers.pop(next(iter(askers)))]))
        ticket = askers[route]
        have = None if pull is None else chunk_sets.pack(pull.done, pull.count)
        size_bytes = location.size_bytes
        manifest = Manifest(object_, size_bytes, config.CHUNK_BYTES, digests, ticket, self._bulk(), have, others)
        return [*effects, Grant(ticket, object_, location.offset, size_bytes, on_disk), Send(route, manifest)]

    # --- ends ----------------------------------------------------------------------------------------------------

    def _freed(self, objects: list[bytes]) -> list[Any]:
        copies: dict[bytes, list[bytes]] = {}
        for object_ in objects:
            self._index.drop(object_)
            self._offsets.pop(object_, None)
            self._unreadable.discard(object_)
            held = self._held.pop(object_, None)
            if held is not None:
                self._directory.unhold(held.entry)
            for route in self._askers.get(object_, ()):
                copies.setdefault(route, []).append(object_)
        effects: list[Any] = [effect for object_ in objects for effect in self.forget(object_)]
        return effects + [Send(route, ObjectsFreed(asked)) for route, asked in copies.items()]

    def _asker_gone(self, route: bytes) -> list[Any]:
        tickets = [askers.pop(route) for askers in self._askers.values() if route in askers]
        return [Revoke(tickets=tickets)] if tickets else []

    # --- for the puller ------------------------------------------------------------------------------------------

    def announce(self, pull: Pull, now_ns: int, *, last: bool = False) -> list[Any]:
        """Tell the nodes that asked for the object's manifest which chunks of it came, once there is enough to tell."""
        if not pull.has_news(now_ns) and not (last and pull.announce):
            return []
        held = ChunksHeld(pull.object, pull.announce)
        pull.announce, pull.told_ns = [], now_ns
        return [Send(route, held) for route in self._askers.get(pull.object, ())]

    def learned(self, object_: bytes, offset: int, digests: bytes, now_ns: int) -> None:
        """The object lies at ``offset`` and has these digests."""
        self._index.add(object_, digests)
        self._offsets[object_] = offset
        if object_ in self._askers:
            self._hold(object_, now_ns)

    def forget(self, object_: bytes) -> list[Any]:
        """The object is not here any more, or does not come; return the effects that end serving it."""
        return [Revoke([object_])] if self._askers.pop(object_, None) is not None else []

    # --- questions -----------------------------------------------------------------------------------------------

    def statistics(self) -> dict[str, int]:
        """Return counters and sizes for ``status`` and tests."""
        askers = sum(map(len, self._askers.values()))
        return {"manifests": len(self._offsets), "hashing": len(self._hashing), "askers": askers,
                "serving": len(self._held), "disk_manifests": self._disk_manifests, **self._index.statistics()}

    def check(self) -> None:
        """Assert that what is held is in memory or on disk."""
        self._index.check()
        assert all(held.entry.held and (held.entry.offset >= 0 or held.entry.digests) for held in self._held.values())


def _name(route: bytes) -> str:
    """Return the node's name, whichever side opened the dialog."""
    return route.removeprefix(b">").decode(errors="replace")
