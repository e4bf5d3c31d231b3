"""How one pickled value lies in one contiguous range of the arena.

*Pure.* Used by sessions: to write a value, and to read it back without copying.

::

    | magic 4 | buffers 4 | data bytes 8 | buffer bytes 8 each | data | pad | buffer 0 | pad | buffer 1 | ...

1. Integers are little-endian and unsigned. Every buffer starts at a multiple of ALIGN_BYTES from the start of the
   range, large ones of PAGE_BYTES, and ranges are aligned in the same way: for vector instructions and fast copies.
2. ``parse`` returns slices of the view it got, nothing is copied; a range that does not parse raises MalformedObject
   and nothing else.

Source: PEP 574 (out-of-band buffers of pickle protocol 5).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from meshray import config

MAGIC = b"MOB1"
_FIXED = struct.Struct("<4sIQ")


class MalformedObject(ValueError):
    """A range of the arena does not hold a value."""


class Layout(NamedTuple):
    """Where the parts of one value go, relative to the start of its range."""

    size_bytes: int
    header: bytes
    data_offset: int
    buffer_offsets: tuple[int, ...]

    def pieces(self, data: Any, buffers: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Yield (relative offset, buffer) of everything that must be written."""
        yield 0, self.header
        yield self.data_offset, data
        yield from zip(self.buffer_offsets, buffers, strict=True)


def plan(data_bytes: int, buffer_bytes: Sequence[int]) -> Layout:
    """Lay out a value of ``data_bytes`` of pickle and out-of-band buffers of the given sizes."""
    header = pack_header(data_bytes, buffer_bytes)
    cursor = len(header) + data_bytes
    offsets = []
    for size in buffer_bytes:
        cursor = _aligned(cursor, size)
        offsets.append(cursor)
        cursor += size
    return Layout(cursor, header, len(header), tuple(offsets))


def _aligned(cursor: int, size_bytes: int) -> int:
    step = config.ALIGN_BYTES if size_bytes < config.PAGED_BYTES else config.PAGE_BYTES
    return -(-cursor // step) * step


def pack_header(data_bytes: int, buffer_bytes: Sequence[int]) -> bytes:
    """Return the header that ``parse`` reads."""
    return _FIXED.pack(MAGIC, len(buffer_bytes), data_bytes) + struct.pack(f"<{len(buffer_bytes)}Q", *buffer_bytes)


def parse(view: memoryview) -> tuple[memoryview, list[memoryview]]:
    """Return the pickle and the buffers of the value in ``view``; raise MalformedObject."""
    if len(view) < _FIXED.size:
        raise MalformedObject(f"object of {len(view)} bytes is shorter than its header")
    magic, count, data_bytes = _FIXED.unpack_from(view)
    if magic != MAGIC:
        raise MalformedObject(f"object starts with {bytes(magic)!r}, not {MAGIC!r}")
    cursor = _FIXED.size + 8 * count
    if cursor + data_bytes > len(view):
        raise MalformedObject(f"object of {len(view)} bytes claims {data_bytes} bytes of data and {count} buffers")
    lengths = struct.unpack_from(f"<{count}Q", view, _FIXED.size)
    data = view[cursor : cursor + data_bytes]
    cursor += data_bytes
    buffers = []
    for length in lengths:
        cursor = _aligned(cursor, length)
        if cursor + length > len(view):
            raise MalformedObject(f"a buffer of {length} bytes at {cursor} leaves the object's {len(view)} bytes")
        buffers.append(view[cursor : cursor + length])
        cursor += length
    return data, buffers
