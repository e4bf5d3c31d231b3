"""A cluster with three replicas whose nodes are lost for good, one after the other: others take their places."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import meshray
from meshray.processes import run_dirs

from .support import command_line, wait_until

pytestmark = pytest.mark.limit_s(120)
NAME = "attrition"
ASKED = {"shard": 3, "master": 2, "scheduler": 2}
NODES = ("one", "two", "three", "four", "five", "six")
FILE = """\
cluster_name: attrition
provider:
  type: local
replicas: 3
replace_after: 1
keep_state: true
nodes:
"""


class Cluster:
    """What a test does to it."""

    def __init__(self, directory: Path, nodes: tuple[str, ...]) -> None:
        self.living = list(nodes)
        self.file = str(directory / "attrition.yaml")
        Path(self.file).write_text(FILE + "".join(
            f"  - {{name: {name}, num_cpus: 1, object_store_memory: 64MiB}}\n" for name in nodes))

    def up(self) -> None:
        command_line("up", self.file)

    def pids(self, node: str) -> dict[str, int]:
        """The processes of a node, by name."""
        record = run_dirs.read_node_file(run_dirs.node_dir(NAME, node))
        return {} if record is None else record.pids

    def services(self, node: str) -> set[str]:
        """What a node carries of the control store, and its global schedulers."""
        return {name for name in self.pids(node) if "-" in name}

    def kill(self, node: str) -> None:
        """The node and all that it has is gone for good."""
        self.living.remove(node)
        os.kill(self.pids(node)["node"], signal.SIGKILL)
        wait_until(lambda: not run_dirs.is_node_alive(run_dirs.node_dir(NAME, node)), what=f"{node} to be dead")

    def wait_carried(self) -> None:
        """Wait until living nodes have the three members of the chain, and acceptors, masters and schedulers."""
        wait_until(self._is_carried, 60, what=f"three replicas on {self.living}")

    def _is_carried(self) -> bool:
        here = [name for node in self.living for name in self.services(node)]
        if any(sum(kind in name for name in here) != count for kind, count in ASKED.items()):
            return False
        shard, servers = newest(), {name for name in here if "shard" in name}
        return set(shard["members"]) == servers == set(shard["acceptors"]) and shard["failover"] == "automatic"


@pytest.fixture
def cluster(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
            ) -> Iterator[Cluster]:
    monkeypatch.setenv("MESHRAY_STATE_DIR", str(tmp_path / "state"))
    cluster = Cluster(tmp_path, NODES[:request.param])
    cluster.up()
    try:
        yield cluster
    finally:
        print(command_line("events").stdout)
        meshray.shutdown()
        command_line("down", cluster.file)


@meshray.remote
class Keeper:
    def where(self) -> int:
        return os.getpid()


@meshray.remote
def double(number: int) -> int:
    return 2 * number


def shards() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(command_line("status", "--json").stdout)["shards"]
    return rows


def newest() -> dict[str, Any]:
    """What is said by the server that knows the newest chain."""
    return max(shards(), key=lambda row: int(row["epoch"]), default={"members": [], "failover": ""})


def address_of(node: str) -> str:
    record = run_dirs.read_node_file(run_dirs.node_dir(NAME, node))
    assert record is not None
    return record.endpoint


def workers_of(node: str) -> list[int]:
    rows = json.loads(command_line("list", "workers", "--json").stdout)
    return [row["pid"] for row in rows if row["node"] == node]


@pytest.mark.parametrize("cluster", [6], indirect=True)
def test_a_cluster_that_loses_one_node_after_the_other_has_three_replicas_in_the_end(cluster: Cluster) -> None:
    meshray.init(address=address_of("six"), namespace="tests")
    keeper = Keeper.options(name="keeper").remote()
    pid = meshray.get(keeper.where.remote(), timeout=60)
    home = next(node for node in NODES if pid in workers_of(node))
    for number, node in enumerate([node for node in NODES if node not in ("six", home)][:3]):
        cluster.kill(node)
        cluster.wait_carried()
        assert meshray.get(meshray.get_actor("keeper").where.remote(), timeout=60) == pid
        assert meshray.get([double.remote(each) for each in range(50)], timeout=60) == [2 * each for each in range(50)]
        other = Keeper.options(name=f"keeper-{number}").remote()
        assert meshray.get(meshray.get_actor(f"keeper-{number}").where.remote(), timeout=60)
        meshray.kill(other)


@pytest.mark.parametrize("cluster", [4], indirect=True)
def test_a_node_that_comes_back_too_late_carries_nothing_any_more(cluster: Cluster) -> None:
    frozen = cluster.pids("two")
    disks = Path(os.environ["MESHRAY_STATE_DIR"]) / NAME / "two" / "gcs"
    assert [path.name for path in disks.iterdir()] == ["shard-0-1"]
    for pid in frozen.values():
        os.kill(pid, signal.SIGSTOP)
    try:
        cluster.living.remove("two")
        cluster.wait_carried()
        assert "services moved" in command_line("events").stdout
    finally:
        for pid in frozen.values():
            os.kill(pid, signal.SIGCONT)
    wait_until(lambda: not cluster.services("two") and not list(disks.iterdir()), what="nothing to be left on it")
    cluster.wait_carried()


@pytest.mark.parametrize("cluster", [4], indirect=True)
def test_a_cluster_finds_its_disks_where_they_went(cluster: Cluster) -> None:
    meshray.init(address=address_of("four"), namespace="tests")
    keeper = Keeper.options(name="keeper", lifetime="detached").remote()
    assert meshray.get(keeper.where.remote(), timeout=60)
    cluster.kill("one")
    cluster.wait_carried()
    carries = {node: cluster.services(node) for node in cluster.living}
    meshray.shutdown()
    for process in run_dirs.processes_of(NAME):
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: not run_dirs.is_cluster_alive(NAME), what="the cluster to be dead")
    cluster.up()
    cluster.wait_carried()
    assert {node: cluster.services(node) for node in cluster.living} == carries
    assert not cluster.services("one")
    meshray.init(address="auto", namespace="tests")
    assert meshray.get(meshray.get_actor("keeper").where.remote(), timeout=60)
