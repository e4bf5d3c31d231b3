"""Which node runs which service next."""

from __future__ import annotations

from meshray.gcs.tables import PlaceRow
from meshray.messages.node import Shard
from meshray.node_config import NodeConfig
from meshray.processes.replacement import Places, following, newest, placed

PLACES = {"shard-0-0": "a", "shard-0-1": "b", "shard-0-2": "c", "shard-1-0": "b", "shard-1-1": "c", "shard-1-2": "a",
          "master-0": "a", "master-1": "b"}
WANTED = {"shard-0": 3, "shard-1": 3, "master": 2}


def test_nothing_moves_while_no_node_is_lost() -> None:
    assert following(PLACES, WANTED, list("abcdef"), (), 3) == (PLACES, 3)


def test_what_a_lost_node_carried_goes_to_nodes_that_carry_least_under_new_names() -> None:
    places, number = following(PLACES, WANTED, list("bcde"), {"a"}, 3)
    assert places == {"shard-0-3": "d", "shard-0-1": "b", "shard-0-2": "c", "shard-1-0": "b", "shard-1-1": "c",
                      "shard-1-4": "e", "master-5": "d", "master-1": "b"}
    assert list(places)[-2:] == ["master-5", "master-1"], "a master takes the rank of the one that it replaces"
    assert number == 6


def test_a_place_stays_while_no_other_node_can_take_it() -> None:
    places, number = following(PLACES, WANTED, list("bc"), {"a"}, 3)
    assert {name: node for name, node in places.items() if "shard" in name} == {
        name: node for name, node in PLACES.items() if "shard" in name}
    assert (places["master-3"], number) == ("c", 4)


def test_nodes_that_are_added_get_what_is_lacking() -> None:
    places, number = following({"shard-0-0": "a", "shard-0-1": "b"}, {"shard-0": 3}, list("abc"), (), 2)
    assert (places, number) == ({"shard-0-0": "a", "shard-0-1": "b", "shard-0-2": "c"}, 3)


def test_what_may_not_move_stays_on_a_node_that_is_lost() -> None:
    places = {"shard-0-0": "a", "scheduler-0": "a", "scheduler-1": "b"}
    assert following(places, {"scheduler": 2}, list("bc"), {"a"}, 2) == (
        {"shard-0-0": "a", "scheduler-2": "c", "scheduler-1": "b"}, 3)


def test_losing_one_after_the_other_keeps_replicas_apart() -> None:
    places, number, living = dict(PLACES), 3, list("abcdef")
    for lost in "abcd"[:3]:
        living.remove(lost)
        places, number = following(places, WANTED, living, {lost}, number)
        for group in WANTED:
            nodes = [node for name, node in places.items() if name.startswith(group)]
            assert len(set(nodes)) == len(nodes) == WANTED[group] and set(nodes) <= set(living)


def test_a_node_that_starts_is_told_where_services_run_now() -> None:
    before = NodeConfig(cluster="c", node_name="d", run_dir="/run/d", resources={}, object_store_bytes=1,
                        arena_path="/a", shards=[Shard(1, [("shard-0-0", "via://a/shard-0-0")])], replicas=3,
                        masters={"master-0": "via://a/master-0"}, schedulers={"scheduler-0": "via://a/scheduler-0"})
    old = PlaceRow({"shard-0-0": ("a", "via://a/shard-0-0")}, 1)
    row = PlaceRow({"shard-0-1": ("d", "via://d/shard-0-1"), "shard-0-0": ("a", "via://a/shard-0-0"),
                    "master-3": ("d", "via://d/master-3"), "scheduler-0": ("a", "via://a/scheduler-0")}, 4)
    after = placed(before, newest([Places(3, old), None, Places(7, row)]))
    assert (after.host_shards, after.host_masters, after.host_schedulers) == (
        {"shard-0-1": "ipc:///run/d/shard-0-1.sock"}, {"master-3": "ipc:///run/d/master-3.sock"}, {})
    assert after.shards == [Shard(1, [("shard-0-1", "via://d/shard-0-1"), ("shard-0-0", "via://a/shard-0-0")])]
    assert after.masters == {"master-3": "via://d/master-3"}
    assert after.schedulers == before.schedulers
    assert placed(before, newest([None])) is before
