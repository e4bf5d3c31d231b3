"""Answers other nodes that pull objects from this one.

*Pure.* Runs in the node process.

1. Only sealed objects are served; their bytes leave as the second frame, straight from the arena.
2. Digests are computed once per object, off the node's loop, and only when somebody asks.
3. An object that is freed is freed on every node that took it from here.

Source: iroh-blobs DESIGN.md (requests name content, the asker verifies).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from meshray import config
from meshray.machine import Received, Send
from meshray.messages.objects import Chunk, Manifest, ObjectsFreed, ObjectUnknown, RequestChunks, RequestManifest
from meshray.messages.tasks import Location
from meshray.store.events import DigestObject, ObjectDigested
from meshray.store.manifest import DIGEST_BYTES, chunk_count, chunk_range

Lookup = Callable[[bytes], Location | None]
Read = Callable[[int, int], Any]


class ChunkServer:
    """Serves manifests and chunks."""

    def __init__(self, lookup: Lookup, read: Read) -> None:
        """``lookup`` finds a sealed object; ``read(offset, size_bytes)`` returns a buffer over the arena."""
        self._lookup = lookup
        self._read = read
        self._digests: dict[bytes, tuple[int, bytes]] = {}
        """Object -> where it lay when it was hashed, and its digests."""
        self._asking: dict[bytes, dict[bytes, None]] = {}
        """Objects being hashed -> routes that wait for the manifest."""
        self._takers: dict[bytes, dict[bytes, None]] = {}
        """Objects -> routes of the nodes that took chunks."""
        self._chunks_sent = 0

    def handle(self, event: Any, now_ns: int) -> list[Any]:
        """Take one event, return its effects in order."""
        match event:
            case Received(route, RequestManifest(object_)):
                return self._manifest(route, object_)
            case Received(route, RequestChunks(object_, chunks)):
                return self._chunks(route, object_, chunks)
            case Received(_, ObjectsFreed(objects)):
                return self._freed(objects)
            case ObjectDigested():
                return self._digested(event)
        return []

    def deadline_ns(self) -> int | None:
        """The server waits for nothing: the asker repeats itself."""
        return None

    def _manifest(self, route: bytes, object_: bytes) -> list[Any]:
        location = self._lookup(object_)
        if location is None:
            return [Send(route, ObjectUnknown(object_))]
        offset, digests = self._digests.get(object_, (-1, b""))
        if offset == location.offset:
            return [_manifest_to(route, object_, location, digests)]
        waiting = self._asking.get(object_)
        if waiting is not None:
            waiting[route] = None
            return []
        self._asking[object_] = {route: None}
        return [DigestObject(object_, location.offset, location.size_bytes)]

    def _digested(self, event: ObjectDigested) -> list[Any]:
        routes = self._asking.pop(event.object, {})
        location = self._lookup(event.object)
        if location is None:
            return [Send(route, ObjectUnknown(event.object)) for route in routes]
        if location.offset != event.offset:
            # Sealed anew elsewhere while the old bytes were hashed: the askers repeat their request.
            return []
        self._digests[event.object] = (event.offset, event.digests)
        return [_manifest_to(route, event.object, location, event.digests) for route in routes]

    def _chunks(self, route: bytes, object_: bytes, chunks: list[int]) -> list[Any]:
        location = self._lookup(object_)
        if location is None:
            return [Send(route, ObjectUnknown(object_))]
        self._takers.setdefault(object_, {})[route] = None
        effects = []
        for chunk in chunks[: config.PULL_CREDIT_CHUNKS]:
            if 0 <= chunk < chunk_count(location.size_bytes):
                start, size_bytes = chunk_range(chunk, location.size_bytes)
                effects.append(Send(route, Chunk(object_, chunk), (self._read(location.offset + start, size_bytes),)))
        self._chunks_sent += len(effects)
        return effects

    def _freed(self, objects: list[bytes]) -> list[Any]:
        copies: dict[bytes, list[bytes]] = {}
        for object_ in objects:
            self._digests.pop(object_, None)
            for route in self._takers.pop(object_, ()):
                copies.setdefault(route, []).append(object_)
        return [Send(route, ObjectsFreed(taken)) for route, taken in copies.items()]

    def statistics(self) -> dict[str, int]:
        """Return counters and sizes for ``status`` and tests."""
        return {"manifests": len(self._digests), "hashing": len(self._asking), "chunks_sent": self._chunks_sent}

    def check(self) -> None:
        """Assert that what is kept for an object is of its size."""
        for object_, (_, digests) in self._digests.items():
            location = self._lookup(object_)
            assert location is None or len(digests) == chunk_count(location.size_bytes) * DIGEST_BYTES


def _manifest_to(route: bytes, object_: bytes, location: Location, digests: bytes) -> Send:
    return Send(route, Manifest(object_, location.size_bytes, config.CHUNK_BYTES, digests))
