"""Which chunk is asked of whom."""

from __future__ import annotations

import random

from meshray import config
from meshray.store import chunk_sets
from meshray.store.swarm import Holder as SwarmHolder
from meshray.store.swarm import Link, Pull, designated

MS = config.MILLISECOND_NS


def test_sets_of_chunks_travel_and_come_back() -> None:
    rng = random.Random(3)
    for count in (1, 7, 8, 9, 1000):
        chunks = sorted(rng.sample(range(count), rng.randrange(count) + 1))
        bits = chunk_sets.of([*chunks, -1])
        assert chunk_sets.to_list(bits) == chunks and chunk_sets.unpack(chunk_sets.pack(bits, count), count) == bits
        assert chunk_sets.first(bits) == chunks[0] and chunk_sets.first(bits, chunks[-1] + 1) == chunks[0]
        assert chunk_sets.first(bits, chunks[-1]) == chunks[-1]
    assert chunk_sets.unpack(b"\xff\xff", 3) == 0b111


def test_each_chunk_has_as_many_designated_nodes_as_there_are_complete_copies() -> None:
    names = [f"node-{index:x}" for index in range(8)]
    for complete in (1, 2):
        sets = [designated(name, [other for other in names if other != name], complete, 256) for name in names]
        for chunk in range(256):
            assert sum(each >> chunk & 1 for each in sets) == complete
        sizes = [bin(each).count("1") for each in sets]
        assert max(sizes) < 3 * min(sizes), "nobody fetches much more than the others"
    assert designated("a", ["b"], 2, 10) == chunk_sets.all_of(10), "enough copies for everybody"
    large = designated("a", ["b", "c"], 1, 100_000)
    assert 25_000 < bin(large).count("1") < 42_000


def holder(pull: Pull, name: str, have: int | None) -> SwarmHolder:
    made = pull.holders[name] = SwarmHolder(name, Link())
    made.ready, made.have = True, have
    return made


def a_pull(count: int = 16) -> Pull:
    pull = Pull("here", b"x", "owner", count * config.CHUNK_BYTES, count)
    pull.missing = chunk_sets.all_of(count)
    return pull


def test_alone_with_a_complete_copy_a_pull_goes_from_front_to_back() -> None:
    pull = a_pull()
    source = holder(pull, "source", None)
    assert pull.choose(source, 9) == 0
    pull.missing = 0
    assert pull.choose(source, 9) is None


def test_with_peers_the_source_is_asked_for_designated_chunks_only_unless_nothing_else_is_on_its_way() -> None:
    pull = a_pull()
    source, peer = holder(pull, "source", None), holder(pull, "peer", 0)
    own = pull.designated()
    assert own not in (0, chunk_sets.all_of(16))
    pull.missing &= ~own
    assert pull.choose(source, 5) is not None
    peer.asked_ns[0] = 1
    assert pull.choose(source, 5) is None
    pull.missing |= own
    assert own >> (pull.choose(source, 5) or 0) & 1
    peer.have = None
    assert pull.choose(source, 5) == 0, "two complete copies for two nodes: no need to be careful"


def test_the_rarest_chunk_of_a_peer_comes_first() -> None:
    pull = a_pull()
    first = holder(pull, "a", chunk_sets.of([1, 2, 3]))
    holder(pull, "b", chunk_sets.of([2, 3]))
    holder(pull, "c", chunk_sets.of([3]))
    order = []
    while (chunk := pull.choose(first, 3)) is not None:
        order.append(chunk)
        pull.missing &= ~(1 << chunk)
    assert order == [1, 2, 3]


def test_only_what_is_late_is_asked_for_twice_and_at_most_twice() -> None:
    pull = a_pull()
    slow, fast, third = (holder(pull, name, None) for name in ("slow", "fast", "third"))
    slow.asked_ns[4] = 1000 * MS
    assert pull.choose_late(fast, 1100 * MS) is None
    assert pull.choose_late(fast, 1000 * MS + config.PULL_LATE_NS) == 4
    fast.asked_ns[4] = 1500 * MS
    assert pull.choose_late(third, 9000 * MS) is None


def test_a_window_grows_with_speed_and_shrinks_with_delay() -> None:
    link = Link()
    for _ in range(100):
        link.answered(MS)
    assert link.free == config.PULL_CREDIT_CHUNKS
    for _ in range(100):
        link.answered(900 * MS)
    assert link.free == config.PULL_WINDOW_MIN and link.latency_ns > 800 * MS
    link.failed()
    assert link.free == 1
