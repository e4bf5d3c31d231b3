"""Chunks and digests: how an object's bytes are cut for transfer, and how each piece is known to be right.

*Pure.* Used by the node: by the chunk server that names chunks, and by the puller that verifies them.

1. Chunks have CHUNK_BYTES each, the last one what is left; the manifest is their blake3 digests in order.
2. Digests are computed when the first other node asks, never when an object is made: hashing costs as much as copying.

Hashing runs without the GIL. Source: BLAKE3 (O'Connor et al. 2020); iroh-blobs DESIGN.md.
"""

from __future__ import annotations

from typing import Any

from blake3 import blake3

from meshray import config
from meshray.messages.objects import Manifest

DIGEST_BYTES = 32


def chunk_count(size_bytes: int) -> int:
    """Return the number of chunks of an object."""
    return -(-size_bytes // config.CHUNK_BYTES)


def chunk_range(index: int, size_bytes: int) -> tuple[int, int]:
    """Return (offset in the object, bytes) of chunk ``index``."""
    start = index * config.CHUNK_BYTES
    return start, min(config.CHUNK_BYTES, size_bytes - start)


def digests_of(view: memoryview) -> bytes:
    """Return the joined digests of the chunks of the object in ``view``."""
    ranges = (chunk_range(index, len(view)) for index in range(chunk_count(len(view))))
    return b"".join(blake3(view[start : start + size]).digest() for start, size in ranges)


def digest_of(digests: bytes, index: int) -> bytes:
    """Return the digest of chunk ``index``."""
    return digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]


def verify(digest: bytes, data: Any) -> bool:
    """Whether ``data`` is the chunk that ``digest`` names."""
    return blake3(data).digest() == digest


def flaw_of(manifest: Manifest, size_bytes: int, digests: bytes = b"") -> str:
    """Say what makes a manifest useless for an object of ``size_bytes``; empty if nothing does. ``digests`` are those
    that are known already: then a brief manifest will do, and another content will not."""
    if manifest.size_bytes != size_bytes:
        return f"manifest is of {manifest.size_bytes} bytes, the object has {size_bytes}"
    if manifest.chunk_bytes != config.CHUNK_BYTES:
        return f"chunks of {manifest.chunk_bytes} bytes, this version uses {config.CHUNK_BYTES}"
    if digests and not manifest.digests:
        return ""
    if len(manifest.digests) != chunk_count(size_bytes) * DIGEST_BYTES:
        return f"{len(manifest.digests)} bytes of digests for {chunk_count(size_bytes)} chunks"
    if digests and manifest.digests != digests:
        return "its copy has another content"
    return ""
