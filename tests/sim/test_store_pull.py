"""Nodes that pull objects from each other over a network that loses, delays, doubles, reorders and corrupts.

At the end every fetch was answered exactly once per session that asked, every copy that was announced holds the right
bytes, and what was freed is gone everywhere.
"""

from __future__ import annotations

import os

import pytest

from meshray import config
from meshray.messages.objects import FetchFailed, ObjectFetched
from meshray.store.events import HolderGone
from meshray.store.manifest import chunk_count
from tests.sim.store_world import S, World

OBJECTS = 6
SEEDS = [int(os.environ["MESHRAY_SEED"])] if "MESHRAY_SEED" in os.environ else range(12)


def repeat(seed: int, test: str) -> None:
    print(f"seed {seed}; repeat with: MESHRAY_SEED={seed} python -m pytest tests/sim/test_store_pull.py -k {test}")


def make_objects(world: World, home: str) -> dict[bytes, bytes]:
    objects = {}
    for index in range(OBJECTS):
        name = b"object-%d" % index
        objects[name] = world.random.randbytes(world.random.randrange(1, 3 * config.MIB))
        world.make(home, name, objects[name])
    return objects


def fetch_everything(world: World, home: str, objects: dict[bytes, bytes]) -> list[tuple[str, bytes, bytes]]:
    """Let two sessions of every other node fetch each object; return what was asked: (node, session, object)."""
    asked = []
    for node in world.nodes:
        for session in (b"s1", b"s2") if node != home else ():
            for name in objects:
                world.fetch(node, name, home, world.random.randrange(S), session)
                asked.append((node, session, name))
    return asked


@pytest.mark.parametrize("seed", SEEDS)
def test_every_object_arrives_whole_over_a_bad_network(seed: int) -> None:
    repeat(seed, "bad_network")
    world = World(seed)
    objects = make_objects(world, "n0")
    asked = fetch_everything(world, "n0", objects)
    world.run(120 * S)
    assert sorted(world.outcomes()) == sorted((*request, ObjectFetched) for request in asked)
    world.check_copies(objects)
    counts = world.nodes["n1"].store.statistics()
    assert counts["fetched"] == OBJECTS and counts["pulls"] == counts["outstanding"] == counts["ending"] == 0
    for name in objects:
        world.free("n0", [name])
    world.run(200 * S)
    for node in world.nodes.values():
        left = node.store.statistics()
        assert (left["sealed"], left["askers"], left["indexed_chunks"]) == (0, 0, 0)
    assert world.nodes["n1"].store.statistics()["used_bytes"] == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_nodes_that_take_seconds_for_everything_lose_nothing(seed: int) -> None:
    repeat(seed, "take_seconds")
    world = World(seed, loss=0.0, corruption=0.0, delay_max_ns=4 * S)
    objects = make_objects(world, "n0")
    asked = fetch_everything(world, "n0", objects)
    world.run(300 * S)
    assert not world.failures()
    assert sorted(world.outcomes()) == sorted((*request, ObjectFetched) for request in asked)
    world.check_copies(objects)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_holder_that_dies_ends_every_fetch_with_a_reason(seed: int) -> None:
    repeat(seed, "holder_that_dies")
    world = World(seed, loss=0.02, corruption=0.02)
    objects = make_objects(world, "n0")
    asked = fetch_everything(world, "n0", objects)
    world.run(world.random.randrange(2 * S))
    world.nodes["n0"].dead = True
    if seed % 2:
        world.post("n1", HolderGone("n0"), S)
    world.run(4 * config.PULL_USELESS_NS)
    assert sorted(outcome[:3] for outcome in world.outcomes()) == sorted(asked)
    assert all(node.store.statistics()["pulls"] == 0 for node in world.nodes.values())
    world.check_copies(objects)
    assert all("n0, failed: " in message.reason for message in world.failures())
    for node in world.nodes.values():
        copies = sum(len(objects[name]) // 64 + 1 for name in objects if node.store.directory.lookup(name)) * 64
        assert node.name == "n0" or node.store.statistics()["used_bytes"] <= copies


@pytest.mark.parametrize("seed", SEEDS)
def test_objects_freed_while_they_are_pulled_leave_nothing(seed: int) -> None:
    repeat(seed, "freed_while")
    world = World(seed, nodes=4, loss=0.05, corruption=0.05)
    objects = make_objects(world, "n0")
    asked = fetch_everything(world, "n0", objects)
    world.run(world.random.randrange(2 * S))
    world.free("n0", list(objects))
    world.run(120 * S)
    assert sorted(outcome[:3] for outcome in world.outcomes()) == sorted(asked)
    for node in world.nodes.values():
        left = node.store.statistics()
        assert (left["sealed"], left["pulls"], left["ending"], left["askers"]) == (0, 0, 0, 0), node.name
        assert node.name == "n0" or left["used_bytes"] == 0
        assert not node.desk.transfers


@pytest.mark.parametrize("seed", SEEDS)
def test_a_copy_of_a_dead_nodes_object_is_found(seed: int) -> None:
    repeat(seed, "dead_nodes_object")
    world = World(seed, nodes=4, loss=0.02, corruption=0.02)
    data = world.random.randbytes(3 * config.MIB)
    world.make("n0", b"x", data)
    world.fetch("n1", b"x", "n0", 0)
    world.run(20 * S)
    world.fetch("n2", b"x", "n0", 0)
    world.nodes["n0"].dead = True
    world.run(60 * S)
    assert not world.failures() and len(world.outcomes()) == 2
    world.check_copies({b"x": data})
    world.fetch("n3", b"x", "n1", 0)
    world.run(90 * S)
    assert [outcome[3] for outcome in world.outcomes()] == [ObjectFetched] * 3


@pytest.mark.parametrize("seed", SEEDS)
def test_a_pull_that_was_interrupted_goes_on_where_it_stood(seed: int) -> None:
    repeat(seed, "interrupted")
    world = World(seed, nodes=2, loss=0, corruption=0, delay_max_ns=S // 1000, bytes_per_s=10 * config.MIB)
    data = world.random.randbytes(20 * config.MIB + seed)
    world.make("n0", b"x", data)
    world.fetch("n1", b"x", "n0", 0)
    world.run(S)
    source, taker = world.nodes["n0"], world.nodes["n1"]
    source.dead = True
    world.post("n1", HolderGone("n0"), config.SUSPICION_NS)
    world.run(20 * S)
    (failed,) = world.failures()
    assert "n0, failed: given up as dead" in failed.reason
    came = taker.store.statistics()["chunks"]
    assert came > 5
    source.dead = False
    world.fetch("n1", b"x", "n0", 0)
    world.run(40 * S)
    assert [outcome[3] for outcome in world.outcomes()] == [FetchFailed, ObjectFetched]
    count = chunk_count(len(data))
    assert taker.store.statistics()["chunks"] == count and world.chunks_sent["n0"] <= count + config.PULL_CREDIT_CHUNKS
    world.check_copies({b"x": data})


def test_what_was_kept_of_an_interrupted_pull_makes_room_or_is_forgotten() -> None:
    for other in (True, False):
        world = World(1, nodes=3, loss=0, corruption=0, delay_max_ns=S // 1000, bytes_per_s=10 * config.MIB)
        world.make("n0", b"x", world.random.randbytes(25 * config.MIB))
        world.make("n2", b"y", world.random.randbytes(30 * config.MIB))
        world.fetch("n1", b"x", "n0", 0)
        world.run(S)
        world.nodes["n0"].dead = True
        world.post("n1", HolderGone("n0"), config.SUSPICION_NS)
        world.run(20 * S)
        taker = world.nodes["n1"].store
        assert taker.statistics()["used_bytes"] == 25 * config.MIB
        if other:
            world.fetch("n1", b"y", "n2", 0)
        world.run(20 * S + config.PULL_KEEP_NS + S)
        assert taker.statistics()["used_bytes"] == (30 * config.MIB if other else 0)


def test_the_same_seed_makes_the_same_run() -> None:
    runs = []
    for _ in range(2):
        world = World(7)
        fetch_everything(world, "n0", make_objects(world, "n0"))
        world.run(120 * S)
        runs.append((world.posted, world.outcomes()))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("disk_errors", [0.0, 0.1])
@pytest.mark.parametrize("seed", SEEDS)
def test_what_has_no_room_at_its_home_is_served_from_disk(seed: int, disk_errors: float) -> None:
    repeat(seed, "served_from_disk")
    world = World(seed, loss=0.02, corruption=0.02, first_bytes=4 * config.MIB, disk_errors=disk_errors)
    home = world.nodes["n0"]
    objects = make_objects(world, "n0")
    on_disk = [name for name in objects if home.store.spiller.is_on_disk(name)]
    asked = fetch_everything(world, "n0", objects)
    world.run(120 * S)
    assert sorted(world.outcomes()) == sorted((*request, ObjectFetched) for request in asked)
    world.check_copies(objects)
    counts = home.store.statistics()
    assert counts["disk_manifests"] >= len(on_disk) and (disk_errors or not counts["restores"])
    world.free("n0", list(objects))
    world.run(200 * S)
    left = home.store.statistics()
    assert (left["used_bytes"], left["spilled"], left["serving"]) == (0, 0, 0) and not home.disk and not home.counts
