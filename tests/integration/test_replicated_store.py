"""Clusters whose control store has three replicas: they lose one after the other, and all of them at once."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import meshray
from meshray.processes import run_dirs

from .support import command_line, run_script, wait_until

pytestmark = pytest.mark.limit_s(120)
NAME = "replicated"
FILE = """\
cluster_name: replicated
provider:
  type: local
replicas: 3
keep_state: true
nodes:
  - {name: left, num_cpus: 1, object_store_memory: 64MiB}
  - {name: right, num_cpus: 1, object_store_memory: 64MiB}
"""
PAST = """
    import meshray

    meshray.init(address="auto", namespace="tests")

    @meshray.remote
    class Counter:
        def __init__(self):
            self.count = 0

        def add(self):
            self.count += 1
            return self.count

    stays = Counter.options(name="stays", lifetime="detached").remote()
    goes = Counter.options(name="goes", max_restarts=-1).remote()
    print(meshray.get([stays.add.remote(), goes.add.remote()]), flush=True)
    import os, signal
    from meshray.processes import run_dirs
    for process in run_dirs.processes_of("replicated"):
        os.kill(process.pid, signal.SIGKILL)
    os._exit(0)
"""


class Cluster:
    """What a test does to it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.file = str(directory / "replicated.yaml")
        Path(self.file).write_text(FILE)

    def up(self) -> None:
        command_line("up", self.file)

    def servers(self) -> dict[str, int]:
        """The pids of the shard servers, by name."""
        records = [run_dirs.read_node_file(run_dirs.node_dir(NAME, node)) for node in ("left", "right")]
        return {name: pid for record in records if record for name, pid in record.pids.items() if "shard" in name}


@pytest.fixture
def cluster(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("MESHRAY_STATE_DIR", str(tmp_path / "state"))
    cluster = Cluster(tmp_path)
    cluster.up()
    try:
        yield cluster
    finally:
        meshray.shutdown()
        command_line("down", cluster.file)


@meshray.remote
def double(number: int) -> int:
    return 2 * number


@meshray.remote
class Keeper:
    def where(self) -> int:
        return os.getpid()


def test_tasks_and_names_go_on_while_each_replica_is_killed(cluster: Cluster) -> None:
    meshray.init(address="auto", namespace="tests")
    for number, name in enumerate(sorted(cluster.servers())):
        before = cluster.servers()[name]
        os.kill(before, signal.SIGKILL)
        keeper = Keeper.options(name=f"keeper-{number}").remote()
        assert meshray.get([double.remote(number) for _ in range(200)], timeout=60) == [2 * number] * 200
        pid = meshray.get(keeper.where.remote(), timeout=60)
        assert meshray.get(meshray.get_actor(f"keeper-{number}").where.remote(), timeout=60) == pid
        meshray.kill(keeper)
        wait_until(lambda name=name, before=before: cluster.servers().get(name, before) != before,
                   what=f"{name} to be started again")


def test_a_cluster_whose_every_process_was_killed_starts_again_from_its_disks(cluster: Cluster) -> None:
    assert "[1, 1]" in run_script(PAST, cluster.directory, ok=False)
    wait_until(lambda: not run_dirs.is_cluster_alive(NAME), what="the cluster to be dead")
    cluster.up()
    meshray.init(address="auto", namespace="tests")
    assert meshray.get(meshray.get_actor("stays").add.remote(), timeout=60) == 1
    with pytest.raises(ValueError, match="goes"):
        meshray.get_actor("goes")
    assert "the cluster was started again" in command_line("list", "actors").stdout


def events() -> list[dict[str, Any]]:
    return [json.loads(line) for line in command_line("events", "--json").stdout.splitlines()]


def told(*words: str) -> bool:
    """Whether an event's kind and text contain all these words."""
    return any(all(word in f"{row['kind']}: {row['message']}" for word in words) for row in events())


def test_what_happens_is_told_and_survives_the_whole_cluster(cluster: Cluster) -> None:
    server = cluster.servers()["shard-0-0"]
    os.kill(server, signal.SIGKILL)
    assert "[1, 1]" in run_script(PAST.partition("import os, signal")[0], cluster.directory)
    for words in (("service ended", str(server)), ("chain changed", "3 of 3 replicas"), ("job started",),
                  ("job finished",), ("actor runs", "Counter stays"), ("actor died", "Counter goes")):
        wait_until(lambda words=words: told(*words), what=f"the event {words}")
    before = events()
    for process in run_dirs.processes_of(NAME):
        os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: not run_dirs.is_cluster_alive(NAME), what="the cluster to be dead")
    cluster.up()
    wait_until(lambda: told("cluster started again"), what="the event of the new start")
    assert events()[:len(before)] == before
