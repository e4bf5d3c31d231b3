"""What happens to a chain when its servers and masters die, freeze, or cannot reach each other."""

from __future__ import annotations

import pytest
from chain_world import World

from meshray.config import MILLISECOND_NS, SECOND_NS
from meshray.messages.gcs import Op


def started(seed: int = 1, **options: object) -> World:
    """Return a world whose chain serves, with one client."""
    w = World(seed, **options)  # type: ignore[arg-type]
    assert w.run(3 * SECOND_NS, lambda: w.settled("".join(name for name, _ in w.shard.members))), w.chain()
    w.client("user")
    return w


def equal_disks(w: World) -> None:
    """Let the chain become quiet; its disks are then the same."""
    w.run(SECOND_NS)
    first, *others = [w.disks[name] for name in w.chain()]
    for other in others:
        assert (other.tables, other.clients, other.version) == (first.tables, first.clients, first.version)


@pytest.mark.parametrize("place", range(3), ids=["head", "middle", "tail"])
def test_a_member_dies_and_comes_back(place: int) -> None:
    w = started()
    w.put("user", b"a", b"1")
    dead = w.chain()[place]
    w.processes[dead].crash()
    asked = w.write("user", Op("kv", b"a", b"2"))
    assert w.run(5 * SECOND_NS, lambda: asked in w.answers)
    assert w.get("user", b"a") == b"2"
    assert dead not in w.chain()
    w.processes[dead].start()
    assert w.run(5 * SECOND_NS, lambda: w.settled("abc"))
    assert w.chain()[-1] == dead
    w.put("user", b"b", b"3")
    equal_disks(w)


@pytest.mark.parametrize("place", range(3), ids=["head", "middle", "tail"])
def test_a_frozen_member_is_replaced_and_serves_nothing_when_it_wakes(place: int) -> None:
    w = started()
    w.put("user", b"a", b"1")
    frozen = w.chain()[place]
    w.processes[frozen].frozen_until_ns = w.now_ns + 5 * SECOND_NS
    begun_ns = w.now_ns
    w.put("user", b"a", b"2")
    assert w.get("user", b"a") == b"2"
    assert w.now_ns - begun_ns < 2000 * MILLISECOND_NS
    w.run(7 * SECOND_NS)
    assert w.run(5 * SECOND_NS, lambda: w.settled("abc"))
    equal_disks(w)


def test_all_members_die_and_come_back() -> None:
    w = started()
    w.put("user", b"a", b"1")
    for name in "abc":
        w.processes[name].crash()
    w.run(2 * SECOND_NS)
    for name in "abc":
        w.processes[name].start()
    assert w.run(20 * SECOND_NS, lambda: w.settled("abc"))
    assert w.get("user", b"a") == b"1"
    equal_disks(w)


@pytest.mark.parametrize("away", "abc")
def test_all_members_die_and_one_never_comes_back(away: str) -> None:
    w = started()
    w.put("user", b"a", b"1")
    for name in (*"abc", *w.masters):
        w.processes[name].crash()
    w.run(2 * SECOND_NS)
    back = "abc".replace(away, "")
    for name in (*back, *w.masters):
        w.processes[name].start()
    assert w.run(20 * SECOND_NS, lambda: w.settled(back)), w.chain()
    assert w.get("user", b"a") == b"1"


def test_masters_die_and_come_back() -> None:
    w = started()
    for name in w.masters:
        w.processes[name].crash()
    w.put("user", b"a", b"1")
    w.processes["b"].crash()
    for name in w.masters:
        w.processes[name].start()
    w.put("user", b"a", b"2")
    assert w.chain() == "ac"
