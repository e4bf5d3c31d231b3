"""Brings objects from other nodes into this node's arena.

*Pure.* Runs in the node process; the chunks themselves move in the bulk plane (``bulk``), which verifies them.

1. Fetches of one object are joined: it is pulled once.
2. At most PULL_CREDIT_CHUNKS chunks are outstanding at one holder, over all pulls.
3. A chunk counts only when its digest is right; a bad, lost or late one is asked for again, elsewhere if possible.
4. The object is sealed in the own directory before any session hears of it.
5. Every fetch ends in ObjectFetched or FetchFailed: silence, lies and lack of room are all bounded.
6. A holder whose node lives is waited for, however slow it is, up to PULL_USELESS_NS without a chunk; one whose node is
   given up as dead is dropped at once.
7. A pull that lost its last holder asks every node, then keeps what it has for a while: a later fetch goes on from it.

::

    manifest --> room --> memory --> chunks --> sealed
       |          |         |          |
       +----------+---------+----------+------> failed (no holder left, no room, freed by the owner)
                                       +------> paused --> chunks (fetched again) | forgotten

Source: OSDI'18 s4.2.3 (pull by the node that needs the object); receiver-driven credit as in Homa (SIGCOMM'18).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from meshray import config
from meshray.machine import Received, Send, Tick
from meshray.messages.objects import (
    ChunksHeld,
    FetchFailed,
    FetchObject,
    Manifest,
    ObjectFetched,
    ObjectsFreed,
    ObjectUnknown,
    RequestManifest,
)
from meshray.store import chunk_sets
from meshray.store import manifest as manifests
from meshray.store.chunk_flow import ChunkFlow
from meshray.store.chunk_server import ChunkServer
from meshray.store.directory import ArenaDirectory
from meshray.store.events import (
    ChunksArrived,
    ChunksBad,
    ChunksMissing,
    ForgetHolder,
    HolderGone,
    RangePopulated,
    SessionGone,
    TransferEnded,
)
from meshray.store.introductions import Introductions
from meshray.store.landing import Landing
from meshray.store.swarm import Holder, Pull


class Puller:
    """All pulls of one node."""

    def __init__(self, directory: ArenaDirectory, resolve: Callable[[str], str | None],
                 nodes: Callable[[], Iterable[str]], *, server: ChunkServer, flow: ChunkFlow) -> None:
        """``resolve`` maps a node's name to its endpoint, or None while it is not known; ``nodes`` are all that
        are known."""
        self._directory = directory
        self._meeting = Introductions(directory.node, resolve, nodes, flow.link)
        self._server = server
        self._flow = flow
        self._pulls: dict[bytes, Pull] = {}
        self._landing = Landing(directory)
        self._look_ns = 0
        self.loss = ""
        """The last object that could not be had, and why."""
        self._counts = {"fetched": 0, "failed": 0, "bad_chunks": 0, "silences": 0}

    # --- the machine ---------------------------------------------------------------------------------------------

    def handle(self, event: Any, now_ns: int) -> list[Any]:
        """Take one event, return its effects in order."""
        match event:
            case ChunksArrived():
                return self._arrived(event, now_ns)
            case Received(route, FetchObject() as fetch):
                return self._fetch(route, fetch, now_ns)
            case Received(route, Manifest() as manifest):
                return self._manifest(_name(route), manifest, now_ns)
            case Received(route, ChunksHeld(object_, chunks)):
                return self._held(_name(route), object_, chunks, now_ns)
            case Received(route, RequestManifest(object_)):
                pull = self._pulls.get(object_)
                if pull is not None and pull.stage != "paused":
                    return self._meeting.meet(pull, [_name(route)], now_ns)
            case Received(route, ObjectUnknown(object_)):
                return self._unknown(object_, _name(route), now_ns)
            case Received(_, ObjectsFreed(objects)):
                pulls = [self._pulls[object_] for object_ in objects if object_ in self._pulls]
                return [effect for pull in pulls for effect in self._fail(pull, "its owner freed it", lost=True)]
            case RangePopulated():
                return self._populated(event, now_ns)
            case ChunksBad():
                return self._bad(event, now_ns)
            case ChunksMissing():
                return self._refused(event, now_ns)
            case TransferEnded(transfer):
                self._landing.ended(transfer)
            case HolderGone(node):
                return self._gone(node, now_ns)
            case SessionGone(_, route):
                for pull in self._pulls.values():
                    pull.waiters.pop(route, None)
            case Tick():
                return self._tick(now_ns) if self._pulls and now_ns >= self._look_ns else []
        return []

    def deadline_ns(self) -> int | None:
        """When the pulls are looked at next."""
        return self._look_ns if self._pulls else None

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
            if not self._pulls:
                self._look_ns = now_ns + config.PULL_LOOK_NS
            count = manifests.chunk_count(size_bytes)
            pull = Pull(self._directory.node, fetch.object, fetch.owner, size_bytes, count)
            self._pulls[fetch.object] = pull
        elif pull.stage == "paused":
            pull.stage, pull.swept, pull.reason = "chunks", False, ""
            pull.stuck_ns = now_ns + config.PULL_STUCK_NS
        pull.waiters[route] = None
        pull.named.add(holder)
        return self._meeting.add(pull, holder, now_ns)

    def _manifest(self, name: str, manifest: Manifest, now_ns: int) -> list[Any]:
        pull = self._pulls.get(manifest.object)
        holder = pull.holders.get(name) if pull is not None else None
        if pull is None or holder is None:
            return []
        flaw = manifests.flaw_of(manifest, pull.size_bytes, pull.digests)
        if flaw:
            return self._drop(pull, name, flaw, now_ns)
        holder.ready = True
        holder.have = None if manifest.have is None else chunk_sets.unpack(manifest.have, pull.count)
        holder.ticket, holder.bulk = manifest.ticket, manifest.bulk
        holder.deadline_ns = now_ns + config.PULL_SILENCE_NS if holder.asked_ns else None
        effects: list[Any] = []
        if pull.stage == "manifest":
            pull.digests = manifest.digests
            pull.missing = chunk_sets.all_of(pull.count)
            pull.stage = "room"
            pull.give_up_ns = now_ns + config.EXTENT_WAIT_NS
            effects += self._make_room(pull, now_ns)
        effects += self._meeting.meet(pull, manifest.holders, now_ns)
        return effects + self._flow.pump(pull, now_ns)

    def _held(self, name: str, object_: bytes, chunks: list[int], now_ns: int) -> list[Any]:
        pull = self._pulls.get(object_)
        holder = pull.holders.get(name) if pull is not None else None
        if holder is not None and not chunks:  # it lives, and is busy with what we asked for
            holder.useful()
        if pull is None or holder is None or holder.have is None:
            return []
        holder.have |= chunk_sets.of(chunk for chunk in chunks if chunk < pull.count)
        if holder.have == chunk_sets.all_of(pull.count):
            holder.have = None
        return self._flow.pump(pull, now_ns)

    # --- room ----------------------------------------------------------------------------------------------------

    def _make_room(self, pull: Pull, now_ns: int) -> list[Any]:
        reserved = self._landing.reserve(pull)
        if reserved or now_ns < pull.refresh_ns:
            return reserved
        paused = [other for other in self._pulls.values() if other.stage == "paused"]
        if paused:
            return self._end(paused[0])
        if now_ns >= pull.give_up_ns:
            return self._fail(pull, self._landing.lack(pull))
        pull.refresh_ns = min(now_ns + config.PULL_SILENCE_NS, pull.give_up_ns)
        return self._directory.want_surplus()

    def _populated(self, event: RangePopulated, now_ns: int) -> list[Any]:
        pull = self._pulls.get(event.object)
        if pull is None or pull.stage != "memory" or pull.offset != event.offset:
            return []
        if event.error:
            return self._fail(pull, event.error)
        pull.refresh_ns = now_ns + config.PULL_REFRESH_NS
        pull.stuck_ns = now_ns + config.PULL_STUCK_NS
        begin = self._landing.begin(pull)
        return [begin, *self._flow.copy_own(pull), *self._flow.pump(pull, now_ns)]

    # --- chunks --------------------------------------------------------------------------------------------------

    def _arrived(self, event: ChunksArrived, now_ns: int) -> list[Any]:
        pull = self._pulls.get(event.object)
        if pull is None or pull.stage not in ("chunks", "paused"):
            return []
        self._flow.arrived(pull, event, now_ns)
        pull.stuck_ns = now_ns + config.PULL_STUCK_NS
        if pull.done == chunk_sets.all_of(pull.count):
            return self._finish(pull, now_ns)
        return self._server.announce(pull, now_ns) + self._flow.pump(pull, now_ns)

    def _bad(self, event: ChunksBad, now_ns: int) -> list[Any]:
        pull = self._pulls.get(event.object)
        holder = pull.holders.get(event.holder) if pull is not None else None
        self._counts["bad_chunks"] += len(event.chunks)
        if pull is None or holder is None:
            return [] if pull is None else self._flow.not_copied(pull, event.chunks, now_ns)
        holder.bad += len(event.chunks)
        holder.link.failed()
        self._flow.ask_elsewhere(pull, holder, event.chunks)
        if holder.bad >= config.PULL_BAD_CHUNKS_MAX:
            return self._drop(pull, holder.name, f"{holder.bad} chunks in a row were corrupt", now_ns)
        return self._flow.pump(pull, now_ns)

    def _refused(self, event: ChunksMissing, now_ns: int) -> list[Any]:
        pull = self._pulls.get(event.object)
        holder = pull.holders.get(event.holder) if pull is not None else None
        if pull is None or holder is None:
            return [] if pull is None else self._flow.not_copied(pull, event.chunks, now_ns)
        if not any(chunk in holder.asked_ns for chunk in event.chunks):
            return []
        self._flow.ask_elsewhere(pull, holder, event.chunks)
        if not holder.ready:  # one ticket that ended refuses many chunks, and a new one is asked for already
            return self._flow.pump(pull, now_ns)
        holder.refusals += 1
        if holder.is_useless(now_ns):
            return self._drop(pull, holder.name, self._meeting.silence_of(holder), now_ns, lost=True)
        if holder.refusals <= config.PULL_UNKNOWNS_MAX:
            return [*self._meeting.ask(pull, holder, now_ns), *self._flow.pump(pull, now_ns)]
        self._meeting.ask_later(holder, now_ns)
        return [*self._meeting.sweep(pull, now_ns), *self._flow.pump(pull, now_ns)]

    # --- ends ----------------------------------------------------------------------------------------------------

    def _finish(self, pull: Pull, now_ns: int) -> list[Any]:
        effects = self._server.announce(pull, now_ns, last=True)
        self._forget(pull)
        end = self._landing.seal(pull)
        effects.append(end)
        here = self._directory.lookup(pull.object)
        if here is None:
            self._counts["failed"] += 1
            failed = FetchFailed(pull.object, "its owner freed it", lost=True)
            effects += [Send(route, failed) for route in pull.waiters]
        else:
            if end.complete:
                self._server.learned(pull.object, pull.offset, pull.digests, now_ns)
            self._counts["fetched"] += 1
            effects += [Send(route, ObjectFetched(pull.object, here)) for route in pull.waiters]
        return effects + self._flow.feed_all(pull, now_ns)

    def _unknown(self, object_: bytes, name: str, now_ns: int) -> list[Any]:
        """The holder's node may not have read the seal notice yet, so it is asked a second time after a silence."""
        pull = self._pulls.get(object_)
        if pull is None or name not in pull.holders:
            return []
        pull.holders[name].unknown += 1
        if pull.holders[name].unknown < config.PULL_UNKNOWNS_MAX:
            return []
        return self._drop(pull, name, "it holds no such object", now_ns, lost=True)

    def _gone(self, node: str, now_ns: int) -> list[Any]:
        effects: list[Any] = [ForgetHolder(node)]
        for pull in list(self._pulls.values()):
            if node in pull.holders:
                effects += self._drop(pull, node, "given up as dead", now_ns, lost=True)
        self._flow.forget_link(node)
        return effects

    def _drop(self, pull: Pull, name: str, why: str, now_ns: int, *, lost: bool = False) -> list[Any]:
        """Go on without this holder, if there is another."""
        holder = pull.holders[name]
        self._flow.ask_elsewhere(pull, holder, list(holder.asked_ns))
        del pull.holders[name]
        if not pull.reason or name in pull.named:
            pull.reason, pull.lost = f"{name}, failed: {why}", lost
        if pull.holders:
            return self._flow.pump(pull, now_ns)
        effects = self._meeting.sweep(pull, now_ns)
        if not pull.holders:
            reason = f"the last holder, {pull.reason}"
            self.loss = f"object {pull.object.hex()}: {reason}"
            effects += self._fail(pull, reason, lost=pull.lost, keep_until_ns=now_ns + config.PULL_KEEP_NS)
        return effects + self._flow.feed(name, now_ns)

    def _fail(self, pull: Pull, reason: str, *, lost: bool = False, keep_until_ns: int = 0) -> list[Any]:
        self._counts["failed"] += 1
        effects: list[Any] = [Send(route, FetchFailed(pull.object, reason, lost)) for route in pull.waiters]
        if not keep_until_ns or not pull.done:
            return effects + self._end(pull)
        pull.waiters.clear()
        pull.tried.clear()
        pull.stage, pull.give_up_ns = "paused", keep_until_ns
        return effects

    def _end(self, pull: Pull) -> list[Any]:
        """Forget a pull that did not succeed; its range is freed when nobody writes there any more."""
        self._forget(pull)
        return [*self._landing.give_back(pull), *self._server.forget(pull.object)]

    def _forget(self, pull: Pull) -> None:
        del self._pulls[pull.object]
        self._flow.forget(pull)

    # --- time ----------------------------------------------------------------------------------------------------

    def _tick(self, now_ns: int) -> list[Any]:
        effects: list[Any] = []
        short = False
        for pull in list(self._pulls.values()):
            if self._pulls.get(pull.object) is not pull:
                continue
            if pull.stage == "paused":
                effects += self._end(pull) if pull.give_up_ns <= now_ns else []
                continue
            if pull.stage == "room" and (pull.refresh_ns <= now_ns or not short):
                effects += self._make_room(pull, now_ns)
                short = pull.stage == "room"
            effects += self._server.announce(pull, now_ns)
            for holder in list(pull.holders.values()):
                if holder.deadline_ns is not None and holder.deadline_ns <= now_ns:
                    effects += self._silence(pull, holder, now_ns)
            if pull.stage == "chunks" and self._pulls.get(pull.object) is pull:
                effects += self._flow.rescue(pull, now_ns) + self._flow.pump(pull, now_ns)
                effects += self._meeting.refresh(pull, now_ns)
                effects += self._stuck(pull, now_ns)
        active = any(pull.stage != "paused" for pull in self._pulls.values())
        self._look_ns = now_ns + (config.PULL_LOOK_NS if active else config.PULL_SILENCE_NS)
        return effects

    def _silence(self, pull: Pull, holder: Holder, now_ns: int) -> list[Any]:
        self._counts["silences"] += 1
        holder.silences += 1
        holder.deadline_ns = None
        holder.link.failed()
        self._flow.ask_elsewhere(pull, holder, list(holder.asked_ns))
        long = holder.silences >= config.PULL_SILENCES_MAX
        if holder.is_useless(now_ns) or (long and not self._meeting.knows(holder.name)):
            return self._drop(pull, holder.name, self._meeting.silence_of(holder), now_ns, lost=holder.refusals > 0)
        effects = self._meeting.sweep(pull, now_ns) if long else []
        return effects if holder.ready else effects + self._meeting.ask(pull, holder, now_ns)

    def _stuck(self, pull: Pull, now_ns: int) -> list[Any]:
        """End a pull whose holders live but lack what it lacks: other pulls, of an object whose copies are gone."""
        if now_ns < pull.stuck_ns or pull.local or not pull.is_hopeless():
            return []
        pull.stuck_ns = now_ns + config.PULL_STUCK_NS
        if not pull.swept:
            return self._meeting.sweep(pull, now_ns)
        return [effect for holder in pull.ready()
                for effect in self._drop(pull, holder.name, "it lacks the same chunks", now_ns, lost=True)]

    # --- questions -----------------------------------------------------------------------------------------------

    def pulls(self, object_: bytes) -> bool:
        """Whether the object is on its way here."""
        return object_ in self._pulls

    def partial(self, object_: bytes) -> Pull | None:
        """Return the pull of an object whose digests are known, for the chunk server."""
        pull = self._pulls.get(object_)
        return pull if pull is not None and pull.digests else None

    def statistics(self) -> dict[str, int]:
        """Return counters and sizes for ``status`` and tests."""
        parts = {**self._flow.statistics(), **self._landing.statistics()}
        return {"pulls": len(self._pulls), **self._counts, **parts}

    def check(self) -> None:
        """Assert the invariants of the module header."""
        self._flow.check(self._pulls.values())
        for object_, pull in self._pulls.items():
            assert pull.object == object_ and (pull.holders or pull.stage == "paused")
            assert (pull.offset >= 0) == (pull.stage in ("memory", "chunks", "paused"))
            assert bool(pull.transfer) == (pull.stage in ("chunks", "paused"))
            for name, holder in pull.holders.items():
                assert holder.name == name and (holder.ready or holder.deadline_ns is not None)


def _name(route: bytes) -> str:
    """Return the node's name, whichever side opened the dialog."""
    return route.removeprefix(b">").decode(errors="replace")
