"""Digest to place and back."""

from __future__ import annotations

import random

from meshray.store.chunk_index import DIGEST_BYTES, ChunkIndex


def digests(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(DIGEST_BYTES, "big") for number in numbers)


def test_a_chunk_is_found_under_any_object_that_has_it() -> None:
    index = ChunkIndex()
    index.add(b"x", digests(1, 2, 1))
    index.add(b"y", digests(2, 3))
    assert index.find(digests(2)) == (b"x", 1) and index.find(digests(3)) == (b"y", 1)
    assert index.find(digests(9)) is None
    index.drop(b"x")
    assert index.find(digests(2)) == (b"y", 0) and index.find(digests(1)) is None
    index.drop(b"x")
    index.drop(b"y")
    assert set(index.statistics().values()) == {0}


def test_an_object_that_is_made_anew_is_known_by_its_new_content() -> None:
    index = ChunkIndex()
    index.add(b"x", digests(1))
    index.add(b"x", digests(1))
    index.add(b"x", digests(2))
    assert index.find(digests(1)) is None and index.digests_of(b"x") == digests(2) and index.digests_of(b"y") == b""


def test_random_objects_come_and_go() -> None:
    rng = random.Random(5)
    index = ChunkIndex()
    for _ in range(2000):
        name = b"%d" % rng.randrange(8)
        if rng.random() < 0.5:
            index.add(name, digests(*(rng.randrange(12) for _ in range(rng.randrange(1, 6)))))
        else:
            index.drop(name)
        index.check()
        for number in range(12):
            has = any(digests(number) in [digests_[at : at + 32] for at in range(0, len(digests_), 32)]
                      for digests_ in map(index.digests_of, map(b"%d".__mod__, range(8))))
            assert (index.find(digests(number)) is not None) == has
