"""What a second ``up`` does on which host."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from meshray.cluster_config import parse_cluster_config
from meshray.cluster_schema import ClusterConfig
from meshray.processes.ssh_plan import (
    ClusterRecord,
    HostRecord,
    bearers,
    changes,
    commands_for,
    landmarks,
    probe_of,
    seconds_for,
    shared_differences,
    take_logins,
)

FILE = "cluster_name: lab\nprovider: {type: ssh}\nnodes: [{host: a}, {host: b}, {host: c}]\n"
ALIVE = {"a": True, "b": True, "c": True}


def cluster(text: str = FILE) -> ClusterConfig:
    return parse_cluster_config(text)


def record(text: str = FILE, **more: Any) -> ClusterRecord:
    config = cluster(text)
    hosts = [HostRecord(spec=node, python="python3", run_root="/r", state_dir="/s") for node in config.nodes]
    return ClusterRecord(cluster="lab", config=config, digest="d", mounts="m", hosts=hosts,
                         founders=[node.name for node in config.nodes], complete=True, **more)


def plan(text: str, *, alive: dict[str, bool] | None = None, mounts: str = "m") -> list[str]:
    return [str(change) for change in changes(record(), cluster(text), mounts, ALIVE | (alive or {}))]


def test_a_cluster_that_is_not_there_starts_whole():
    assert [str(change) for change in changes(None, cluster(), "m", {})] == ["a: start", "b: start", "c: start"]


@pytest.mark.parametrize(("old", "new", "expected"), [
    ("", "", ["a: keep", "b: keep", "c: keep"]),
    ("{host: b}", "{host: b, labels: {x: y}}", ["a: keep", "b: restart (labels: nothing -> {x: y})", "c: keep"]),
    (", {host: c}", ", {host: c}, {host: d}", ["a: keep", "b: keep", "c: keep", "d: start (new)"]),
    (", {host: b}", "", ["a: keep", "c: keep", "b: stop (not in the file)"]),
    ("nodes:", "setup_commands: [x]\nnodes:", [f"{name}: update (setup_commands changed)" for name in "abc"]),
])
def test_only_what_differs_changes(old: str, new: str, expected: list[str]):
    assert plan(FILE.replace(old, new, 1)) == expected


def test_another_login_is_taken_without_a_restart():
    before = record()
    text = FILE.replace("{host: b}", "{host: b, ssh_user: me}").replace("{host: a}", "{host: a, ssh_user: i}")
    assert not take_logins(before, cluster())
    assert take_logins(before, cluster(text))
    assert shared_differences(before, cluster(text), "d") == []
    assert {change.action for change in changes(before, cluster(text), "m", ALIVE)} == {"keep"}
    assert [host.spec.ssh_user for host in before.hosts] == ["i", "me", ""]


def test_nodes_that_died_start_again():
    assert plan(FILE, alive={"b": False}) == ["a: keep", "b: restart (it does not run)", "c: keep"]


def test_nodes_whose_hosts_cannot_be_reached_stay_or_are_given_up():
    reached = {"a": True}
    assert [str(change) for change in changes(record(), cluster(FILE.replace(", {host: c}", "")), "m", reached)] == [
        "a: keep", "b: away (its host cannot be reached)", "c: forget (not in the file; its host cannot be reached)"]


def test_files_that_changed_are_copied_without_a_restart():
    assert plan(FILE, mounts="other") == [f"{name}: update (files to copy changed)" for name in "abc"]


@pytest.mark.parametrize(("old", "new", "expected"), [
    ("", "", []),
    ("nodes:", "shards: 2\nnodes:", ["shards: 1 runs, 2 is in the file"]),
    ("{host: a}, ", "", ["head: a runs, b is in the file"]),
    ("{host: a}", "{host: a, num_cpus: 2}", ["head a: num_cpus: nothing -> 2"]),
    ("ssh}", "ssh, bulk_encryption: false}", ["provider.bulk_encryption differs"]),
])
def test_what_all_nodes_share(old: str, new: str, expected: list[str]):
    assert shared_differences(record(), cluster(FILE.replace(old, new, 1)), "d") == expected


def test_another_meshray_is_a_difference():
    assert shared_differences(record(), cluster(), "e") == ["meshray: sources d run, e are here"]


def test_nodes_with_a_part_of_the_control_store_cannot_leave():
    replicated = FILE + "replicas: 3\n"
    assert bearers(record()) == ["a"]
    assert bearers(record(replicated)) == ["a", "b", "c"]
    assert shared_differences(record(replicated), cluster(replicated.replace(", {host: b}", "")), "d") == [
        "b: has a part of the control store, which cannot move"]


def test_a_node_with_a_scheduler_is_known_to_all_but_may_leave():
    assert landmarks(record()) == {"a", "b"}
    assert landmarks(record(FILE + "schedulers: 1\n")) == {"a"}
    assert shared_differences(record(), cluster(FILE.replace(", {host: b}", "")), "d") == []


def test_records_survive_being_stored():
    before = record()
    assert msgspec.json.decode(msgspec.json.encode(before), type=ClusterRecord) == before


def test_deadlines_and_commands():
    config = cluster(FILE.replace("ssh}", "ssh, timeouts: {start: 5}}")
                     + "setup_commands: [x]\nhead_setup_commands: [h]\nworker_setup_commands: [w]\n")
    assert (seconds_for(config, "start"), seconds_for(config, "connect")) == (5, 15)
    assert (commands_for(config, 0), commands_for(config, 2)) == (["x", "h"], ["x", "w"])


def test_a_probe_asks_for_room_for_the_object_store():
    node = cluster(FILE.replace("{host: a}", "{host: a, object_store_memory: 1GiB}")).nodes[0]
    assert probe_of(node, version="1", digest="d").memory_bytes == 2**30
