"""The node's whole object store as one machine: directory, spiller, puller and chunk server side by side.

*Pure.* Runs in the node process, which performs ``EFFECTS`` and passes on every message of ``ACCEPTS``.

1. Each event reaches every part that knows it; for ObjectsFreed in this order: tell copies, end pulls, end restores,
   free the range.
2. Parts share nothing but the directory's answers, the index of chunks, and what puller and server know of an object
   that comes and is served at the same time.
3. After each event the spiller sees to those who wait for room.
4. A free that a copy's source passes on, and that comes a second time by another way, is not remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from meshray import config
from meshray.machine import Received, Tick, Undeliverable
from meshray.messages import objects
from meshray.store.chunk_flow import ChunkFlow
from meshray.store.chunk_index import ChunkIndex
from meshray.store.chunk_server import ChunkServer
from meshray.store.directory import ArenaDirectory
from meshray.store.events import (
    AskChunks,
    BeginTransfer,
    ChunksArrived,
    ChunksBad,
    ChunksMissing,
    ChunksUnreadable,
    CopyChunks,
    DigestObject,
    DropChunks,
    EndTransfer,
    ForgetHolder,
    Grant,
    HolderGone,
    ObjectDigested,
    ObjectRestored,
    ObjectSpilled,
    PopulateRange,
    RangePopulated,
    RestoreObject,
    Revoke,
    SessionGone,
    SpillObject,
    TransferEnded,
)
from meshray.store.pull import Puller
from meshray.store.records import Board
from meshray.store.spill import Spiller

SLOW_EFFECTS = (DigestObject, PopulateRange)
"""Effects that ``Background.submit`` performs."""

DISK_EFFECTS = (SpillObject, RestoreObject, DropChunks)
"""Effects that the ``Background`` of the disk performs, in a thread of its own."""

BULK_EFFECTS = (BeginTransfer, AskChunks, CopyChunks, EndTransfer, Grant, Revoke, ForgetHolder)
"""Effects that ``Bulk.submit`` performs."""

_DIRECTORY = (objects.RequestExtent, objects.WithdrawRequest)
_PULLER = (objects.Manifest, objects.ObjectUnknown, objects.ChunksHeld)
_BULK = (ChunksArrived, ChunksBad, ChunksMissing, TransferEnded)
ACCEPTS = (*_DIRECTORY, *_PULLER, objects.RequestManifest, objects.ReturnExtents, objects.FetchObject,
           objects.ObjectsSealed, objects.ObjectsFreed)
"""Messages that belong here."""


class StoreService:
    """Directory, spiller, puller and chunk server of one node."""

    def __init__(self, capacity_bytes: int, node: str, *, resolve_node: Callable[[str], str | None],
                 nodes: Callable[[], Iterable[str]], bulk: Callable[[], str], draw: Callable[[int], int],
                 entropy: Callable[[int], bytes], board: Board | None = None, to_disk: bool = False,
                 counters: Callable[[], dict[str, int]] = dict) -> None:
        """``resolve_node`` maps a node's name to its endpoint, or None; ``nodes`` are the names of all that are known;
        ``bulk`` is where our bulk socket listens; ``draw(n)`` and ``entropy(n)`` return a random number below n, and n
        random bytes; ``board`` knows who reads in place; ``to_disk``: what has no room may be spilled;
        ``counters`` are those of the bulk plane."""
        self._counters = counters
        self.directory = ArenaDirectory(capacity_bytes, node, board)
        self.spiller = Spiller(self.directory, to_disk=to_disk)
        self.index = ChunkIndex()
        self.chunk_server = ChunkServer(self.directory, lambda object_: self.puller.partial(object_),
                                        index=self.index, bulk=bulk, entropy=entropy)
        self.flow = ChunkFlow(self.index, self.directory.find, draw)
        self.puller = Puller(self.directory, resolve_node, nodes, server=self.chunk_server, flow=self.flow)
        self._early: dict[bytes, dict[bytes, Received]] = {}
        """Objects on disk that are not served from there -> what other nodes asked about them, by who asked; answered
        when they are back."""
        all_parts = (self.chunk_server, self.puller, self.spiller, self.directory)
        self.parts = all_parts
        """Each has a deadline of its own."""
        self._by_kind: dict[type, tuple[Any, ...]] = {
            **dict.fromkeys(_DIRECTORY, (self.directory,)),
            **dict.fromkeys(_PULLER, (self.puller,)),
            **dict.fromkeys(_BULK, (self.puller,)),
            objects.RequestManifest: (self.chunk_server, self.puller),
            objects.ReturnExtents: (self.directory, self.spiller),
            objects.ObjectsSealed: (self.directory, self.spiller),
            objects.ObjectsFreed: all_parts,
            ObjectSpilled: (self.chunk_server, self.spiller),
            ObjectRestored: (self.spiller,),
            ChunksUnreadable: (self.chunk_server,),
            ObjectDigested: (self.chunk_server,),
            RangePopulated: (self.puller,),
            HolderGone: (self.chunk_server, self.puller),
            SessionGone: (self.puller, self.spiller, self.directory),
            Undeliverable: (self.directory,),
            Tick: all_parts,
        }

    def handle(self, event: Any, now_ns: int) -> list[Any]:
        """Take one event, return its effects in order. An event that is not of the store has none."""
        kind = type(event.message) if type(event) is Received else type(event)
        if kind is objects.ObjectsFreed and not event.message.node:
            known = [object_ for object_ in event.message.objects if self._knows(object_)]
            event = Received(event.route, objects.ObjectsFreed(known))
        if kind is objects.RequestManifest and self.spiller.is_on_disk(event.message.object) \
                and not self.chunk_server.serves_from_disk(event.message.object):
            self._early.setdefault(event.message.object, {})[event.route] = event
            return self.spiller.settle(self.spiller.bring(event.message.object, now_ns), now_ns)
        parts = self._reader_of(event.message) if kind is objects.FetchObject else self._by_kind.get(kind, ())
        effects = [effect for part in parts for effect in part.handle(event, now_ns)]
        if kind is ObjectRestored and not self.spiller.is_on_disk(event.object):
            for asked in self._early.pop(event.object, {}).values():
                effects += self.handle(asked, now_ns)
        elif kind is objects.ObjectsFreed and self._early:
            for object_ in event.message.objects:
                self._early.pop(object_, None)
        if not self.spiller.awake:
            return effects
        if self.directory.room.short_bytes():
            effects += self.chunk_server.let_go(now_ns, sooner_ns=config.SERVE_HOLD_NS - config.SERVE_HOLD_SHORT_NS)
        return self.spiller.settle(effects, now_ns)

    def _knows(self, object_: bytes) -> bool:
        return self.directory.find(object_) is not None or self.puller.pulls(object_)

    def _reader_of(self, fetch: objects.FetchObject) -> tuple[Any, ...]:
        return (self.spiller,) if self.spiller.is_mine(fetch) else (self.puller,)

    def deadline_ns(self) -> int | None:
        """When ``Tick`` is due next."""
        deadlines = (part.deadline_ns() for part in self.parts)
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def statistics(self) -> dict[str, int]:
        """Return the counters of all parts."""
        return {**self._counters(), **{key: value for part in self.parts for key, value in part.statistics().items()}}

    def check(self) -> None:
        """Assert every invariant of every part."""
        for part in self.parts:
            part.check()
