"""The node's whole object store as one machine: directory, puller and chunk server side by side.

*Pure.* Runs in the node process, which performs ``EFFECTS`` and passes on every message of ``ACCEPTS``.

1. Each event reaches every part that knows it; for ObjectsFreed in this order: end pulls, tell copies, free the range.
2. Parts share nothing but the directory's answers.
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
    HolderGone,
    ObjectDigested,
    OwnerGone,
    PopulateRange,
    RangePopulated,
    SessionGone,
    WriteRange,
)
from meshray.store.pull import Puller

EFFECTS = (DigestObject, PopulateRange, WriteRange)
"""Effects that the process performs: the first two by ``Background.submit``, the last by ``ArenaFile.write``."""

_DIRECTORY = (objects.RequestExtent, objects.ReturnExtents, objects.ObjectsSealed)
_PULLER = (objects.FetchObject, objects.Manifest, objects.ObjectUnknown, objects.Chunk)
_SERVER = (objects.RequestManifest, objects.RequestChunks)
ACCEPTS = (*_DIRECTORY, *_PULLER, *_SERVER, objects.ObjectsFreed)
"""Messages that belong here."""


class StoreService:
    """Directory, puller and chunk server of one node."""

    def __init__(
        self,
        capacity_bytes: int,
        node: str,
        *,
        read: Callable[[int, int], Any],
        resolve_node: Callable[[str], str | None],
    ) -> None:
        """``read`` is ``ArenaFile.view``; ``resolve_node`` maps a node's name to its endpoint, or None."""
        self.directory = ArenaDirectory(capacity_bytes, node)
        self.puller = Puller(self.directory, resolve_node)
        self.chunk_server = ChunkServer(self.directory.lookup, read)
        all_parts = (self.puller, self.chunk_server, self.directory)
        self._parts = all_parts
        self._by_kind: dict[type, tuple[Any, ...]] = {
            **dict.fromkeys(_DIRECTORY, (self.directory,)),
            **dict.fromkeys(_PULLER, (self.puller,)),
            **dict.fromkeys(_SERVER, (self.chunk_server,)),
            objects.ObjectsFreed: all_parts,
            ObjectDigested: (self.chunk_server,),
            RangePopulated: (self.puller,),
            HolderGone: (self.puller,),
            SessionGone: (self.puller, self.directory),
            Undeliverable: (self.directory,),
            Tick: all_parts,
        }

    def handle(self, event: Any, now_ns: int) -> list[Any]:
        """Take one event, return its effects in order. An event that is not of the store has none."""
        if type(event) is OwnerGone:
            event = Received(b"", objects.ObjectsFreed(self.directory.objects_of(event.owner)))
        kind = type(event.message) if type(event) is Received else type(event)
        return [effect for part in self._by_kind.get(kind, ()) for effect in part.handle(event, now_ns)]

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
