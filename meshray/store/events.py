"""Events and effects of the node's side of the store, beside those that every machine has.

*Pure.* Used by the machines of this package, ``background``, and the node process.
"""

from __future__ import annotations

from typing import Any

import msgspec

from meshray.messages.objects import ExtentRefused


class SessionGone(msgspec.Struct, frozen=True, gc=False):
    """Event: the session that was at ``route`` has ended; its objects stay, its extents become the node's."""

    name: str
    route: bytes


class OwnerGone(msgspec.Struct, frozen=True, gc=False):
    """Event: the process whose endpoint is ``owner`` is gone and nobody else holds its objects; they are freed."""

    owner: str


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


class WriteRange(msgspec.Struct, frozen=True, gc=False):
    """Effect: copy ``data`` into the arena, to a range that is populated."""

    offset: int
    data: Any


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
