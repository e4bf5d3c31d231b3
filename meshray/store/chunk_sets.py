"""Sets of chunks of one object, as integers: bit ``i`` stands for chunk ``i``.

*Pure.* Used by the puller, the swarm's choice, and the chunk server.

Unions, differences and "which of mine are missing there" are then one operation of C code each, also for an object of a
hundred thousand chunks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

EMPTY = 0


def all_of(count: int) -> int:
    """Return the set of the chunks 0 to ``count`` - 1."""
    return (1 << count) - 1


def of(chunks: Iterable[int]) -> int:
    """Return the set of these chunks; negative numbers are left out."""
    bits = 0
    for chunk in chunks:
        if chunk >= 0:
            bits |= 1 << chunk
    return bits


def to_list(bits: int) -> list[int]:
    """Return the chunks of a set in order."""
    return list(_each(bits))


def _each(bits: int) -> Iterator[int]:
    while bits:
        low = bits & -bits
        yield low.bit_length() - 1
        bits ^= low


def first(bits: int, start: int = 0) -> int:
    """Return the first chunk of a set that is not empty, from ``start`` on and around the end."""
    above = bits >> start
    if above:
        return start + (above & -above).bit_length() - 1
    return (bits & -bits).bit_length() - 1


def pack(bits: int, count: int) -> bytes:
    """Return the set as it travels in messages."""
    return bits.to_bytes(-(-count // 8), "little")


def unpack(packed: bytes, count: int) -> int:
    """Return the set in a message; what lies beyond ``count`` is left out."""
    return int.from_bytes(packed[: -(-count // 8)], "little") & all_of(count)
