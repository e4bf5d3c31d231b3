"""Where servers and masters of the control store are placed."""

from __future__ import annotations

from meshray.processes.control_store import Plan, plan


def planned(nodes: str, shards: int, replicas: int) -> Plan:
    return plan(list(nodes), shards, replicas, lambda node, process: f"{node}/{process}")


def test_one_replica_has_neither_masters_nor_acceptors() -> None:
    store = planned("ab", 2, 1)
    assert store.servers_on("a") == {"shard-0-0": "a/shard-0-0", "shard-1-0": "a/shard-1-0"}
    assert (store.masters, store.acceptors, store.servers_on("b")) == ({}, [], {})
    assert store.failover.startswith("none")


def test_replicas_of_a_shard_and_acceptors_lie_on_different_nodes() -> None:
    store = planned("abc", 2, 3)
    assert [[endpoint[0] for _, endpoint in shard.members] for shard in store.shards] == [list("abc"), list("bca")]
    assert {store.servers[name][0] for name in store.acceptors} == set("abc")
    assert {node for node, _ in store.hosts.values()} == set("ab")
    assert store.failover == "automatic"


def test_two_replicas_get_a_spare_for_the_third_vote() -> None:
    store = planned("ab", 1, 2)
    assert [name for name, _ in store.shards[0].members] == ["shard-0-0", "shard-0-1"]
    assert sorted(store.acceptors) == ["shard-0-0", "shard-0-1", "shard-0-2"]
    assert "on 2 nodes, 3 are needed" in store.failover
    assert "on 1 node, 3 are needed" in planned("a", 1, 3).failover
