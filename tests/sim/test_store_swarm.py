"""Many nodes pull one object: who sends what, how long it takes, and what dead, slow and lying holders cost.

Times are virtual: bytes over link rates, so they say what the protocol can do, not what this machine can.
"""

from __future__ import annotations

import os

import pytest

from meshray import config
from meshray.messages.objects import ObjectFetched
from meshray.store import chunk_sets
from meshray.store.events import HolderGone
from tests.sim.store_world import MS, Node, S, World

GIGABIT = 125_000_000
SEEDS = [int(os.environ["MESHRAY_SEED"])] if "MESHRAY_SEED" in os.environ else range(6)


def swarm(seed: int, takers: int, size_bytes: int, **options: float) -> World:
    """Return a world in which ``takers`` nodes have just begun to fetch one object from n0."""
    print(f"seed {seed}; repeat with: MESHRAY_SEED={seed} python -m pytest tests/sim/test_store_swarm.py")
    world = World(seed, nodes=takers + 1, loss=options.get("loss", 0.0), corruption=0.0, content=False,
                  capacity_bytes=2 * size_bytes, bytes_per_s=GIGABIT, delay_max_ns=MS // 2)
    world.make("n0", b"x", size_bytes)
    for index in range(1, takers + 1):
        world.fetch(f"n{index}", b"x", "n0", world.random.randrange(5 * MS))
    return world


def last_ns(world: World) -> int:
    return max(node.done_ns for node in world.nodes.values())


def everybody_has_it(world: World) -> bool:
    takers = [node for node in world.nodes.values() if node.name != "n0" and not node.dead]
    return all(outcome[3] is ObjectFetched for outcome in world.outcomes()) and all(
        node.store.directory.lookup(b"x") is not None for node in takers)


@pytest.mark.parametrize("seed", SEEDS)
def test_eight_takers_need_little_longer_than_one(seed: int) -> None:
    alone, together = swarm(seed, 1, 256 * config.MIB), swarm(seed, 8, 256 * config.MIB)
    for world in (alone, together):
        world.run(30 * S)
        assert everybody_has_it(world)
    assert last_ns(together) < 1.45 * last_ns(alone)
    assert together.chunks_sent["n0"] < 1.2 * 256, "the source sends each chunk about once"
    assert sum(together.chunks_sent.values()) < 1.1 * 8 * 256, "few chunks are sent twice"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_taker_that_comes_late_takes_from_everybody(seed: int) -> None:
    world = swarm(seed, 3, 64 * config.MIB)
    world.nodes["n4"] = Node(world, "n4", 128 * config.MIB, GIGABIT)
    world.run(10 * S)
    before = world.chunks_sent | {"n4": 0}
    world.chunks_sent = dict(before)
    world.fetch("n4", b"x", "n0", 0)
    world.run(20 * S)
    assert everybody_has_it(world)
    taken = [world.chunks_sent[name] - before[name] for name in ("n0", "n1", "n2", "n3")]
    assert min(taken) >= 8 and sum(taken) <= 66


@pytest.mark.parametrize("seed", SEEDS)
def test_a_source_that_dies_once_each_chunk_is_somewhere_stops_nobody(seed: int) -> None:
    world = swarm(seed, 6, 64 * config.MIB)
    while world.now_ns < 10 * S:
        world.run(world.now_ns + 10 * MS)
        pulls = [node.store.puller.partial(b"x") for node in world.nodes.values()]
        together = 0
        for pull in pulls:
            together |= pull.done if pull is not None else 0
        if together == chunk_sets.all_of(64):
            break
    assert any(pull is not None for pull in pulls), "nobody was still pulling"
    world.nodes["n0"].dead = True
    if seed % 2:
        for name in world.nodes:
            world.post(name, HolderGone("n0"), 500 * MS)
    world.run(world.now_ns + 30 * S)
    assert everybody_has_it(world) and not world.failures()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_liar_costs_each_of_the_others_a_chunk_or_two(seed: int) -> None:
    world = swarm(seed, 6, 64 * config.MIB)
    world.nodes["n2"].liar = True
    world.run(30 * S)
    assert everybody_has_it(world)
    for name in ("n1", "n3", "n4", "n5", "n6"):
        assert world.nodes[name].store.statistics()["bad_chunks"] <= config.PULL_WINDOW_START


@pytest.mark.parametrize("seed", SEEDS)
def test_a_slow_peer_slows_nobody_else(seed: int) -> None:
    fast, slow = swarm(seed, 6, 64 * config.MIB), swarm(seed, 6, 64 * config.MIB)
    slow.nodes["n2"].up.bytes_per_s = GIGABIT // 100
    for world in (fast, slow):
        world.run(60 * S)
        assert everybody_has_it(world)
    others = [node.done_ns for node in slow.nodes.values() if node.name != "n2"]
    assert max(others) < last_ns(fast) + S


@pytest.mark.parametrize("seed", SEEDS)
def test_takers_that_die_and_messages_that_get_lost_stop_nobody(seed: int) -> None:
    world = swarm(seed, 8, 64 * config.MIB, loss=0.02)
    world.run(300 * MS)
    for name in ("n3", "n7"):
        world.nodes[name].dead = True
    world.run(60 * S)
    assert everybody_has_it(world)


@pytest.mark.parametrize("seed", SEEDS)
def test_equal_chunks_under_another_name_are_copied_not_fetched(seed: int) -> None:
    world = World(seed, nodes=2, loss=0.0, corruption=0.0, delay_max_ns=MS)
    base = world.random.randbytes(20 * config.MIB + 77)
    changed = bytearray(base)
    for chunk in (3, 11):
        changed[chunk * config.CHUNK_BYTES] ^= 1
    objects = {b"base": base, b"changed": bytes(changed)}
    for name, data in objects.items():
        world.make("n0", name, data)
        world.fetch("n1", name, "n0", 0)
        world.run(world.now_ns + 20 * S)
    taker = world.nodes["n1"].store.statistics()
    assert (taker["chunks"], taker["copied_chunks"], taker["fetched"]) == (23, 19, 2)
    world.check_copies(objects)


def test_a_copy_from_a_place_that_changed_is_fetched_after_all() -> None:
    world = World(3, nodes=2, loss=0.0, corruption=0.0, delay_max_ns=MS)
    data = world.random.randbytes(8 * config.MIB)
    for name in (b"first", b"second"):
        world.make("n0", name, data)
        world.fetch("n1", name, "n0", 0)
        world.run(world.now_ns + 20 * S)
        place = world.nodes["n1"].store.directory.lookup(name)
        assert place is not None
        if name == b"first":
            world.nodes["n1"].memory[place.offset] ^= 1
    second = world.nodes["n1"].store.directory.lookup(b"second")
    assert second is not None and world.nodes["n1"].store.statistics()["chunks"] == 9
    assert world.nodes["n1"].memory[second.offset : second.offset + len(data)] == data
