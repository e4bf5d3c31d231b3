"""Which chunks lie on this node, by digest, so that equal bytes are not fetched twice.

*Pure.* Runs in the node process; kept by whoever learns an object's digests: the chunk server, the puller, the spiller.

1. A digest names at most one place: the first object that has it. When that object goes, the next one takes its place.
2. The index is a hint: whoever copies from a place verifies the copy.
"""

from __future__ import annotations

DIGEST_BYTES = 32


class ChunkIndex:
    """Digest -> (object, chunk)."""

    def __init__(self) -> None:
        self._digests: dict[bytes, bytes] = {}
        """Object -> its joined digests."""
        self._places: dict[bytes, tuple[bytes, int]] = {}
        self._spares: dict[bytes, list[tuple[bytes, int]]] = {}
        """Places of digests that have more than one."""

    def add(self, object_: bytes, digests: bytes) -> None:
        """The object's chunks, with these joined digests, lie here."""
        if self._digests.get(object_) == digests:
            return
        self.drop(object_)
        self._digests[object_] = digests
        for chunk in range(len(digests) // DIGEST_BYTES):
            digest = digests[chunk * DIGEST_BYTES : (chunk + 1) * DIGEST_BYTES]
            if digest in self._places:
                self._spares.setdefault(digest, []).append((object_, chunk))
            else:
                self._places[digest] = (object_, chunk)

    def drop(self, object_: bytes) -> None:
        """The object is gone. Dropping twice is a no-op."""
        digests = self._digests.pop(object_, b"")
        for start in range(0, len(digests), DIGEST_BYTES):
            digest = digests[start : start + DIGEST_BYTES]
            spares = [place for place in self._spares.pop(digest, ()) if place[0] != object_]
            place = self._places.get(digest)
            if place is not None and place[0] == object_:
                del self._places[digest]
                if spares:
                    self._places[digest] = spares.pop()
            if spares:
                self._spares[digest] = spares

    def digests_of(self, object_: bytes) -> bytes:
        """Return the joined digests of an object, empty if they are not known."""
        return self._digests.get(object_, b"")

    def find(self, digest: bytes) -> tuple[bytes, int] | None:
        """Return (object, chunk) of a place where these bytes lie."""
        return self._places.get(digest)

    def statistics(self) -> dict[str, int]:
        """Return sizes for ``status`` and tests."""
        return {"indexed_objects": len(self._digests), "indexed_chunks": len(self._places)}

    def check(self) -> None:
        """Assert that every place is of an object that is known, and has the digest that it is found by."""
        for digest, places in [*self._spares.items(), *((key, [value]) for key, value in self._places.items())]:
            for object_, chunk in places:
                assert self._digests[object_][chunk * DIGEST_BYTES : (chunk + 1) * DIGEST_BYTES] == digest
        assert all(digest in self._places for digest in self._spares)
