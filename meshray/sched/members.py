"""Who is part of the cluster: compared by a digest, so that a heartbeat says in one number whom its node knows.

*Pure.* Used by nodes and global scheduler replicas.

1. A member's line changes when what others must know of it changes: its incarnation, endpoint, size and labels, but
   not its load.
2. The digest of a set of members does not depend on their order, and is kept up to date by adding and removing lines.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

from meshray.messages.sched import NodeLoad

_MASK = (1 << 63) - 1


def line(load: NodeLoad) -> int:
    """Return a number for what others must know of a node."""
    text = (f"{load.node} {load.name} {load.endpoint} {load.incarnation} {load.pid} "
            f"{sorted(load.total.items())} {sorted(load.labels.items())}").encode()
    return ((zlib.crc32(text) << 32) | zlib.adler32(text)) * 0x9E3779B97F4A7C15 & _MASK


def same(load: NodeLoad, other: NodeLoad) -> bool:
    """Whether both words of a node have the same line."""
    return (load.incarnation == other.incarnation and load.endpoint == other.endpoint and load.total == other.total
            and load.labels == other.labels and load.name == other.name and load.pid == other.pid)


def digest(loads: Iterable[NodeLoad]) -> int:
    """Return the digest of a set of members."""
    combined = 0
    for load in loads:
        combined ^= line(load)
    return combined
