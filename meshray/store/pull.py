"""Brings objects from other nodes into this node's arena.

*Pure.* Runs in the node process.

1. Fetches of one object are joined: however many sessions ask, it is pulled once.
2. At most PULL_CREDIT_CHUNKS chunks are outstanding at one holder, over all pulls.
3. A chunk counts only when its digest is right; a bad, lost or late one is asked for again.
4. The object is sealed in the own directory before any session hears of it.
5. Every fetch ends in ObjectFetched or FetchFailed: silence, lies and lack of room are all bounded.

::

    manifest --> room --> memory --> chunks --> sealed
       |          |         |          |
       +----------+---------+----------+------> failed (no holder left, no room, freed by the owner)

Source: OSDI'18 s4.2.3 (pull by the node that needs the object); receiver-driven credit as in Homa (SIGCOMM'18).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from meshray import config
from meshray.machine import Connect, Received, Send, Tick
from meshray.messages.base import Message
from meshray.messages.objects import (
    Chunk,
    FetchFailed,
    FetchObject,
    Manifest,
    ObjectFetched,
    ObjectsFreed,
    ObjectUnknown,
    RequestChunks,
    RequestManifest,
    Sealed,
)
from meshray.store import manifest as manifests
from meshray.store.directory import ArenaDirectory
from meshray.store.events import HolderGone, PopulateRange, RangePopulated, SessionGone, WriteRange

Resolve = Callable[[str], str | None]
Verify = Callable[[bytes, int, Any], bool]


class _Holder:
    """What one pull knows of one node that has the object."""

    __slots__ = ("bad", "silences", "unknown")

    def __init__(self) -> None:
        self.silences = 0
        self.unknown = 0
        self.bad = 0


class _Pull:
    """One object on its way."""

    __slots__ = ("deadline_ns", "digests", "give_up_ns", "holders", "missing", "object", "offset", "outstanding",
                 "owner", "size_bytes", "stage", "waiters")  # fmt: skip

    def __init__(self, fetch: FetchObject) -> None:
        self.object = fetch.object
        self.owner = fetch.owner
        self.size_bytes = fetch.location.size_bytes
        self.waiters: dict[bytes, None] = {}
        self.holders: dict[str, _Holder] = {}
        self.stage: Literal["manifest", "room", "memory", "chunks"] = "manifest"
        self.digests = b""
        self.offset = -1
        self.missing: list[int] = []
        """Chunks to ask for, the next one last."""
        self.outstanding: dict[int, str] = {}
        """Chunks asked for -> of whom."""
        self.deadline_ns: int | None = None
        self.give_up_ns = 0


class Puller:
    """All pulls of one node."""

    def __init__(self, directory: ArenaDirectory, resolve_node: Resolve, *, verify: Verify = manifests.verify) -> None:
        """``resolve_node`` maps a node's name to its endpoint, or None while it is not known."""
        self._directory = directory
        self._resolve = resolve_node
        self._verify = verify
        self._pulls: dict[bytes, _Pull] = {}
        self._credit_used: dict[str, int] = {}
        self._counts = {"fetched": 0, "failed": 0, "chunks": 0, "bad_chunks": 0, "silences": 0}

    # --- the machine ---------------------------------------------------------------------------------------------

    def handle(self, event: Any, now_ns: int) -> list[Any]:
        """Take one event, return its effects in order."""
        match event:
            case Received(route, FetchObject() as fetch):
                return self._fetch(route, fetch, now_ns)
            case Received(route, Chunk() as chunk, buffers):
                return self._chunk(_name(route), chunk, buffers, now_ns)
            case Received(route, Manifest() as manifest):
                return self._manifest(_name(route), manifest, now_ns)
            case Received(route, ObjectUnknown(object_)):
                return self._unknown(object_, _name(route), now_ns)
            case Received(_, ObjectsFreed(objects)):
                pulls = [self._pulls[object_] for object_ in objects if object_ in self._pulls]
                return [effect for pull in pulls for effect in self._fail(pull, "its owner freed it", lost=True)]
            case RangePopulated():
                return self._populated(event, now_ns)
            case HolderGone(node):
                drops = [self._drop(object_, node, "given up as dead", now_ns, lost=True) for object_ in [*self._pulls]]
                return [effect for drop in drops for effect in drop]
            case SessionGone(_, route):
                for pull in self._pulls.values():
                    pull.waiters.pop(route, None)
            case Tick():
                return self._tick(now_ns)
        return []

    def deadline_ns(self) -> int | None:
        """When the next silence is up."""
        return min((pull.deadline_ns for pull in self._pulls.values() if pull.deadline_ns is not None), default=None)

    # --- asking --------------------------------------------------------------------------------------------------

    def _fetch(self, route: bytes, fetch: FetchObject, now_ns: int) -> list[Any]:
        here = self._directory.lookup(fetch.object)
        if here is not None:
            return [Send(route, ObjectFetched(fetch.object, here))]
        holder, size_bytes = fetch.location.node, fetch.location.size_bytes
        if holder == self._directory.node:
            return [Send(route, FetchFailed(fetch.object, f"{holder} is this node and does not hold it", lost=True))]
        if not 0 < size_bytes <= self._directory.capacity_bytes:
            capacity = self._directory.capacity_bytes
            reason = f"{size_bytes} bytes do not fit the object store of {capacity} bytes: raise object_store_memory"
            return [Send(route, FetchFailed(fetch.object, reason))]
        pull = self._pulls.get(fetch.object)
        if pull is None:
            pull = self._pulls[fetch.object] = _Pull(fetch)
        pull.waiters[route] = None
        if holder in pull.holders:
            return []
        pull.holders[holder] = _Holder()
        if pull.stage == "manifest":
            return self._ask_manifest(pull, holder, now_ns)
        return self._pump(now_ns)

    def _ask_manifest(self, pull: _Pull, holder: str, now_ns: int) -> list[Any]:
        pull.deadline_ns = now_ns + config.PULL_SILENCE_NS
        return self._to(holder, RequestManifest(pull.object))

    def _to(self, holder: str, message: Message) -> list[Any]:
        """Send to a holder. One whose endpoint is not known is silent, and what is asked of the silent is repeated."""
        endpoint = self._resolve(holder)
        if endpoint is None:
            return []
        return [Connect(holder, endpoint), Send(b">" + holder.encode(), message)]

    def _manifest(self, holder: str, manifest: Manifest, now_ns: int) -> list[Any]:
        pull = self._pulls.get(manifest.object)
        if pull is None or pull.stage != "manifest" or holder not in pull.holders:
            return []
        flaw = manifests.flaw_of(manifest, pull.size_bytes)
        if flaw:
            return self._drop(pull.object, holder, flaw, now_ns)
        pull.holders[holder].silences = 0
        pull.digests = manifest.digests
        pull.stage = "room"
        pull.give_up_ns = now_ns + config.EXTENT_WAIT_NS
        return self._make_room(pull, now_ns)

    def _make_room(self, pull: _Pull, now_ns: int) -> list[Any]:
        offset = self._directory.reserve(pull.size_bytes)
        if offset is not None:
            pull.offset = offset
            pull.stage = "memory"
            pull.deadline_ns = None
            return [PopulateRange(pull.object, offset, pull.size_bytes)]
        if now_ns >= pull.give_up_ns:
            numbers = self._directory.statistics()
            return self._fail(pull, f"object store full (need {pull.size_bytes} bytes, free {numbers['free_bytes']}, "
                              f"in use {numbers['used_bytes']}): raise object_store_memory or drop refs")  # fmt: skip
        pull.deadline_ns = min(now_ns + config.PULL_SILENCE_NS, pull.give_up_ns)
        return self._directory.want_surplus()

    def _populated(self, event: RangePopulated, now_ns: int) -> list[Any]:
        pull = self._pulls.get(event.object)
        if pull is None or pull.stage != "memory" or pull.offset != event.offset:
            return []
        if event.error:
            return self._fail(pull, event.error)
        pull.stage = "chunks"
        pull.missing = list(range(manifests.chunk_count(pull.size_bytes)))[::-1]
        pull.deadline_ns = now_ns + config.PULL_SILENCE_NS
        return self._pump(now_ns)

    def _pump(self, now_ns: int) -> list[Any]:
        """Ask for as many chunks as the credit at each holder allows, oldest pull first."""
        effects: list[Any] = []
        for pull in self._pulls.values():
            if pull.stage != "chunks":
                continue
            for holder in pull.holders:
                credit = config.PULL_CREDIT_CHUNKS - self._credit_used.get(holder, 0)
                chunks = [pull.missing.pop() for _ in range(min(credit, len(pull.missing)))]
                if chunks:
                    pull.outstanding.update(dict.fromkeys(chunks, holder))
                    self._credit_used[holder] = self._credit_used.get(holder, 0) + len(chunks)
                    effects += self._to(holder, RequestChunks(pull.object, chunks))
        return effects

    # --- answers -------------------------------------------------------------------------------------------------

    def _chunk(self, name: str, chunk: Chunk, buffers: Any, now_ns: int) -> list[Any]:
        pull = self._pulls.get(chunk.object)
        if pull is None or pull.outstanding.get(chunk.chunk) != name:
            return []
        holder = pull.holders[name]
        start, size_bytes = manifests.chunk_range(chunk.chunk, pull.size_bytes)
        data = buffers[0] if len(buffers) == 1 else b""
        self._give_back_credit(pull, [chunk.chunk])
        if len(data) != size_bytes or not self._verify(pull.digests, chunk.chunk, data):
            self._counts["bad_chunks"] += 1
            holder.bad += 1
            pull.missing.append(chunk.chunk)
            if holder.bad >= config.PULL_BAD_CHUNKS_MAX:
                return self._drop(pull.object, name, f"{holder.bad} chunks in a row were corrupt", now_ns)
            return self._pump(now_ns)
        self._counts["chunks"] += 1
        holder.bad = holder.silences = 0
        pull.deadline_ns = now_ns + config.PULL_SILENCE_NS
        effects: list[Any] = [WriteRange(pull.offset + start, data)]
        if not pull.missing and not pull.outstanding:
            effects += self._finish(pull)
        return effects + self._pump(now_ns)

    def _give_back_credit(self, pull: _Pull, chunks: list[int]) -> None:
        for chunk in chunks:
            holder = pull.outstanding.pop(chunk)
            self._credit_used[holder] -= 1
            if not self._credit_used[holder]:
                del self._credit_used[holder]

    def _ask_again(self, pull: _Pull, chunks: list[int]) -> None:
        self._give_back_credit(pull, chunks)
        pull.missing += reversed(chunks)

    def _finish(self, pull: _Pull) -> list[Any]:
        del self._pulls[pull.object]
        self._directory.adopt(Sealed(pull.object, pull.offset, pull.size_bytes, pull.owner))
        here = self._directory.lookup(pull.object)
        if here is None:
            self._counts["failed"] += 1
            return [Send(route, FetchFailed(pull.object, "its owner freed it", lost=True)) for route in pull.waiters]
        self._counts["fetched"] += 1
        return [Send(route, ObjectFetched(pull.object, here)) for route in pull.waiters]

    def _unknown(self, object_: bytes, name: str, now_ns: int) -> list[Any]:
        """The holder's node may not have read the seal notice yet, so it is asked a second time after a silence."""
        pull = self._pulls.get(object_)
        if pull is None or name not in pull.holders:
            return []
        pull.holders[name].unknown += 1
        if pull.holders[name].unknown < config.PULL_UNKNOWNS_MAX:
            return []
        return self._drop(object_, name, "it holds no such object", now_ns, lost=True)

    def _drop(self, object_: bytes, name: str, why: str, now_ns: int, *, lost: bool = False) -> list[Any]:
        """Go on without this holder, if there is another."""
        pull = self._pulls.get(object_)
        if pull is None or name not in pull.holders:
            return []
        del pull.holders[name]
        self._ask_again(pull, [chunk for chunk, holder in pull.outstanding.items() if holder == name])
        if not pull.holders:
            return self._fail(pull, f"the last holder, {name}, failed: {why}", lost=lost) + self._pump(now_ns)
        if pull.stage == "manifest":
            return self._ask_manifest(pull, next(iter(pull.holders)), now_ns)
        return self._pump(now_ns)

    def _fail(self, pull: _Pull, reason: str, *, lost: bool = False) -> list[Any]:
        del self._pulls[pull.object]
        self._give_back_credit(pull, list(pull.outstanding))
        if pull.offset >= 0:
            self._directory.unreserve(pull.offset)
        self._counts["failed"] += 1
        return [Send(route, FetchFailed(pull.object, reason, lost)) for route in pull.waiters]

    # --- silence -------------------------------------------------------------------------------------------------

    def _tick(self, now_ns: int) -> list[Any]:
        effects: list[Any] = []
        for pull in list(self._pulls.values()):
            if pull.deadline_ns is not None and pull.deadline_ns <= now_ns and pull.object in self._pulls:
                effects += self._make_room(pull, now_ns) if pull.stage == "room" else self._silence(pull, now_ns)
        return effects

    def _silence(self, pull: _Pull, now_ns: int) -> list[Any]:
        pull.deadline_ns = now_ns + config.PULL_SILENCE_NS
        silent = set(pull.holders) if pull.stage == "manifest" else set(pull.outstanding.values())
        self._ask_again(pull, list(pull.outstanding))
        effects: list[Any] = []
        for name in [name for name in pull.holders if name in silent]:
            self._counts["silences"] += 1
            pull.holders[name].silences += 1
            if pull.holders[name].silences >= config.PULL_SILENCES_MAX:
                known = "no answer" if self._resolve(name) else "its address is not known"
                effects += self._drop(pull.object, name, known, now_ns)
            elif pull.stage == "manifest":
                effects += self._ask_manifest(pull, name, now_ns)
        return effects + self._pump(now_ns)

    # --- questions -----------------------------------------------------------------------------------------------

    def statistics(self) -> dict[str, int]:
        """Return counters and sizes for ``status`` and tests."""
        return {"pulls": len(self._pulls), "outstanding": sum(self._credit_used.values()), **self._counts}

    def check(self) -> None:
        """Assert the invariants of the module header."""
        used: dict[str, int] = {}
        for object_, pull in self._pulls.items():
            assert pull.object == object_ and pull.holders
            assert self._directory.lookup(object_) is None or pull.offset >= 0
            assert not set(pull.missing) & set(pull.outstanding)
            assert pull.stage == "chunks" or not pull.outstanding
            assert (pull.offset >= 0) == (pull.stage in ("memory", "chunks"))
            assert pull.deadline_ns is not None or pull.stage == "memory"
            for holder in pull.outstanding.values():
                assert holder in pull.holders
                used[holder] = used.get(holder, 0) + 1
        assert used == self._credit_used
        assert all(count <= config.PULL_CREDIT_CHUNKS for count in used.values())


def _name(route: bytes) -> str:
    """Return the node's name, whichever side opened the dialog."""
    return route.removeprefix(b">").decode(errors="replace")
