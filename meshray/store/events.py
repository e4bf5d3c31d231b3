"""Events and effects of the node's side of the store, beside those that every machine has.

*Pure.* Used by the machines of this package, ``background``, and the node process.
"""

from __future__ import annotations

import msgspec

from meshray.messages.objects import ExtentRefused


class SessionGone(msgspec.Struct, frozen=True, gc=False):
    """Event: the session that was at ``route`` has ended; its objects stay, its extents become the node's."""

    name: str
    route: bytes


class HolderGone(msgspec.Struct, frozen=True, gc=False):
    """Event: the node ``node`` was given up; nothing can be pulled from it."""

    node: str


class DigestObject(msgspec.Struct, frozen=True, gc=False):
    """Effect: hash this range. Answered by ObjectDigested."""

    object: bytes
    offset: int
    size_bytes: int


class ObjectDigested(msgspec.Struct, frozen=True, gc=False):
    """Event: the joined digests of the object's chunks."""

    object: bytes
    offset: int
    digests: bytes


class PopulateRange(msgspec.Struct, frozen=True, gc=False):
    """Effect: back this range with memory. Answered by RangePopulated."""

    object: bytes
    offset: int
    size_bytes: int


class RangePopulated(msgspec.Struct, frozen=True, gc=False):
    """Event: the range can be written, or ``error`` says why not."""

    object: bytes
    offset: int
    error: str = ""


class RangeReserved(msgspec.Struct, frozen=True, gc=False):
    """Event between the store's machines: ``object`` has a range of the node's own."""

    object: bytes
    offset: int


class RangeRefused(msgspec.Struct, frozen=True, gc=False):
    """Event between the store's machines: there was no room for ``object``."""

    object: bytes
    refused: ExtentRefused


class SpillObject(msgspec.Struct, frozen=True, gc=False):
    """Effect: write the chunks of this range to disk, if it has ``spare_bytes`` more. Answered by ObjectSpilled."""

    object: bytes
    offset: int
    size_bytes: int
    spare_bytes: int = 0


class ObjectSpilled(msgspec.Struct, frozen=True, gc=False):
    """Event: the object's chunks are on disk under these joined digests, or ``error`` says why not."""

    object: bytes
    digests: bytes
    error: str = ""


class RestoreObject(msgspec.Struct, frozen=True, gc=False):
    """Effect: read these chunks from disk into this range. Answered by ObjectRestored."""

    object: bytes
    offset: int
    size_bytes: int
    digests: bytes


class ObjectRestored(msgspec.Struct, frozen=True, gc=False):
    """Event: the range holds the object again, or ``error`` says why not."""

    object: bytes
    error: str = ""


class DropChunks(msgspec.Struct, frozen=True, gc=False):
    """Effect: these objects need their chunks on disk no more (joined digests, each as often as it was written)."""

    digests: bytes


class BeginTransfer(msgspec.Struct, frozen=True, gc=False):
    """Effect: from now on take chunks of the object into this range. ``digests`` are joined, one per chunk."""

    transfer: int
    object: bytes
    offset: int
    size_bytes: int
    digests: bytes


class AskChunks(msgspec.Struct, frozen=True, gc=False):
    """Effect: ask the node ``holder``, whose bulk socket is at ``endpoint``, for these chunks. Answered, in pieces, by
    ChunksArrived, ChunksBad and ChunksMissing, or not at all."""

    object: bytes
    holder: str
    endpoint: str
    ticket: bytes
    chunks: list[int]


class CopyChunks(msgspec.Struct, frozen=True, gc=False):
    """Effect: take these chunks from this node itself; ``sources`` are offsets in the arena, or -1 for a chunk
    on disk. Answered as AskChunks is, with an empty holder."""

    transfer: int
    chunks: list[int]
    sources: list[int]


class EndTransfer(msgspec.Struct, frozen=True, gc=False):
    """Effect: take nothing more into the transfer's range. A ``complete`` one is served from now on as what it is.
    Answered by TransferEnded, after which nobody writes there."""

    transfer: int
    complete: bool = False


class TransferEnded(msgspec.Struct, frozen=True, gc=False):
    """Event: nothing is written into the transfer's range any more."""

    transfer: int


class ChunksArrived(msgspec.Struct, frozen=True, gc=False):
    """Event: these chunks came from ``holder``, had the right digests, and lie in the arena."""

    object: bytes
    holder: str
    chunks: list[int]


class ChunksBad(msgspec.Struct, frozen=True, gc=False):
    """Event: what ``holder`` sent as these chunks has other digests; it was thrown away."""

    object: bytes
    holder: str
    chunks: list[int]


class ChunksMissing(msgspec.Struct, frozen=True, gc=False):
    """Event: ``holder`` does not serve us these chunks, or not any more."""

    object: bytes
    holder: str
    chunks: list[int]


class ChunksUnreadable(msgspec.Struct, frozen=True, gc=False):
    """Event: the object, which is served from disk, cannot be read there; it is not served any more."""

    object: bytes


class Grant(msgspec.Struct, frozen=True, gc=False):
    """Effect: serve chunks of the object to who shows ``ticket``: from this range, or with ``offset`` -1 from disk
    under these joined digests, or without digests what a transfer has brought so far."""

    ticket: bytes
    object: bytes
    offset: int
    size_bytes: int
    digests: bytes = b""


class Revoke(msgspec.Struct, frozen=True, gc=False):
    """Effect: these tickets, and all tickets for these objects, are worth nothing any more."""

    objects: list[bytes] = []
    tickets: list[bytes] = []


class ForgetHolder(msgspec.Struct, frozen=True, gc=False):
    """Effect: close the bulk connection to a node that is gone."""

    holder: str
