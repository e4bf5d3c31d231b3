"""The node's whole object store as one machine: directory, spiller, puller and chunk server side by side.

*Pure.* Runs in the node process, which performs ``EFFECTS`` and passes on every message of ``ACCEPTS``.

1. Each event reaches every part that knows it; for ObjectsFreed in this order: end pulls, tell copies, end restores,
   free the range.
2. Parts share nothing but the directory's answers.
3. After each event the spiller sees to those who wait for room.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from meshray.machine import Received, Tick, Undeliverable
from meshray.messages import objects
from meshray.store.chunk_server import ChunkServer
from meshray.store.directory import ArenaDirectory
from meshray.store.events import (
    DigestObject,
    DropChunks,
    HolderGone,
    ObjectDigested,
    ObjectRestored,
    ObjectSpilled,
    OwnerGone,
    PopulateRange,
    RangePopulated,
    RestoreObject,
    SessionGone,
    SpillObject,
    WriteRange,
)
from meshray.store.pull import Puller
from meshray.store.records import Board
from meshray.store.spill import Spiller

EFFECTS = (DigestObject, PopulateRange, WriteRange, SpillObject, RestoreObject, DropChunks)
"""Effects that the process performs: the third by ``ArenaFile.write``, all others by ``Background.submit``, the last
three in a thread of their own."""

_DIRECTORY = (objects.RequestExtent, objects.WithdrawRequest)
_PULLER = (objects.Manifest, objects.ObjectUnknown, objects.Chunk)
_SERVER = (objects.RequestManifest, objects.RequestChunks)
ACCEPTS = (*_DIRECTORY, *_PULLER, *_SERVER, objects.ReturnExtents, objects.FetchObject, objects.ObjectsSealed,
           objects.ObjectsFreed)
"""Messages that belong here."""


class StoreService:
    """Directory, spiller, puller and chunk server of one node."""

    def __init__(
        self,
        capacity_bytes: int,
        node: str,
        *,
        read: Callable[[int, int], Any],
        resolve_node: Callable[[str], str | None],
        board: Board | None = None,
        to_disk: bool = False,
    ) -> None:
        """``read`` is ``ArenaFile.view``; ``resolve_node`` maps a node's name to its endpoint, or None; ``board`` knows
        who reads in place; ``to_disk``: what has no room may be spilled."""
        self.directory = ArenaDirectory(capacity_bytes, node, board)
        self.spiller = Spiller(self.directory, to_disk=to_disk)
        self.puller = Puller(self.directory, resolve_node)
        self.chunk_server = ChunkServer(self.directory.lookup, read)
        all_parts = (self.puller, self.chunk_server, self.spiller, self.directory)
        self._parts = all_parts
        self._by_kind: dict[type, tuple[Any, ...]] = {
            **dict.fromkeys(_DIRECTORY, (self.directory,)),
            **dict.fromkeys(_PULLER, (self.puller,)),
            **dict.fromkeys(_SERVER, (self.chunk_server,)),
            objects.ReturnExtents: (self.directory, self.spiller),
            objects.ObjectsSealed: (self.directory, self.spiller),
            objects.ObjectsFreed: all_parts,
            ObjectSpilled: (self.spiller,),
            ObjectRestored: (self.spiller,),
            ObjectDigested: (self.chunk_server,),
            RangePopulated: (self.puller,),
            HolderGone: (self.puller,),
            SessionGone: (self.puller, self.spiller, self.directory),
            Undeliverable: (self.directory,),
            Tick: all_parts,
        }

    def handle(self, event: Any, now_ns: int) -> list[Any]:
        """Take one event, return its effects in order. An event that is not of the store has none."""
        if type(event) is OwnerGone:
            event = Received(b"", objects.ObjectsFreed(self.directory.objects_of(event.owner)))
        kind = type(event.message) if type(event) is Received else type(event)
        if kind is objects.RequestManifest and self.spiller.is_on_disk(event.message.object):
            return self.spiller.settle(self.spiller.bring(event.message.object, now_ns), now_ns)
        parts = self._reader_of(event.message) if kind is objects.FetchObject else self._by_kind.get(kind, ())
        effects = [effect for part in parts for effect in part.handle(event, now_ns)]
        return self.spiller.settle(effects, now_ns) if self.spiller.awake else effects

    def _reader_of(self, fetch: objects.FetchObject) -> tuple[Any, ...]:
        return (self.spiller,) if self.spiller.is_mine(fetch) else (self.puller,)

    def deadline_ns(self) -> int | None:
        """When ``Tick`` is due next."""
        deadlines = (part.deadline_ns() for part in self._parts)
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def statistics(self) -> dict[str, int]:
        """Return the counters of all parts."""
        return {key: value for part in self._parts for key, value in part.statistics().items()}

    def check(self) -> None:
        """Assert every invariant of every part."""
        for part in self._parts:
            part.check()
