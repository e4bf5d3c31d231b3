"""A value's data and its buffers in one piece of bytes, for values that travel inside messages.

*Pure.* Runs in drivers and workers.

Layout, little endian: form (1 byte), 3 zero bytes, count of buffers (4), size of data and of each buffer (8 each),
data, then each buffer at the next multiple of ``ALIGN_BYTES``, so that arrays over it are aligned for any element.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

PACKED = 0
"""The form byte; ``serialization`` knows the others."""

ALIGN_BYTES = 16
"""What Python's allocator aligns the contents of bytes objects to."""


def pack(data: bytes, buffers: Sequence[memoryview]) -> bytes:
    """Return ``data`` and ``buffers`` in one piece."""
    sizes = [len(data), *(buffer.nbytes for buffer in buffers)]
    parts: list[bytes | memoryview] = [struct.pack(f"<B3xI{len(sizes)}Q", PACKED, len(buffers), *sizes), data]
    end = len(parts[0]) + len(data)
    for buffer in buffers:
        padding = -end % ALIGN_BYTES
        parts += (bytes(padding), buffer)
        end += padding + buffer.nbytes
    return b"".join(parts)


def unpack(packed: bytes | memoryview) -> tuple[memoryview, list[memoryview]]:
    """Return data and buffers as views of ``packed``."""
    view = memoryview(packed)
    count = int.from_bytes(view[4:8], "little")
    data_bytes, *sizes = struct.unpack_from(f"<{count + 1}Q", view, 8)
    end = 8 + 8 * (count + 1)
    data = view[end:end + data_bytes]
    end += data_bytes
    buffers = []
    for size in sizes:
        end += -end % ALIGN_BYTES
        buffers.append(view[end:end + size])
        end += size
    return data, buffers
