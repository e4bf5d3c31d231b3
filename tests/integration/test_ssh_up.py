"""``meshray up`` on three hosts over SSH: it comes up, works, changes, and goes without a trace."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from . import ssh_hosts
from .ssh_hosts import SshHosts
from .support import wait_until

pytestmark = [pytest.mark.skipif(bool(ssh_hosts.possible()), reason=ssh_hosts.possible()), pytest.mark.limit_s(120)]

USES_ALL_NODES = """
import sys
import meshray

meshray.init(address="auto")
where = meshray.remote(lambda: meshray.get_runtime_context().get_node_id())
nodes = meshray.get([where.options(resources={name: 1}).remote() for name in sys.argv[1:]], timeout=30)
data = meshray.put(bytes(3_000_000))
size = meshray.remote(lambda value, name: print("a word from", name) or len(value))
sizes = meshray.get([size.options(resources={name: 1}).remote(data, name) for name in sys.argv[1:]], timeout=30)
print("nodes", len(set(nodes)), "sizes", set(sizes), "CPU", meshray.cluster_resources()["CPU"])
"""


@pytest.fixture(scope="module")
def shared_bed() -> Iterator[SshHosts]:
    with SshHosts(3) as made:
        yield made


@pytest.fixture
def bed(shared_bed: SshHosts) -> Iterator[SshHosts]:
    yield shared_bed
    shared_bed.clear()


def test_up_work_change_and_down(bed: SshHosts):
    first, second, third = bed.hosts
    output = bed.meshray("up", bed.file("lab", [first, second]))
    for host in (first, second):
        for phase in ("connect", "probe", "sync", "install", "start", "join", "healthy"):
            assert f"{host.name}: {phase} ok" in output
    before = {host.name: node_pid(bed, host.name) for host in (first, second)}
    assert "nothing to do" in bed.meshray("up", bed.file("lab", [first, second], nodes={"h1": "ssh_user: root"}))

    output = bed.meshray("up", bed.file("lab", [first, second, third], nodes={"h1": "labels: {zone: b}"}))
    assert "h0: keep\n" in output
    assert "h1: restart (labels: nothing -> {zone: b})" in output
    assert "h2: start (new)" in output
    assert node_pid(bed, "h0") == before["h0"]
    assert node_pid(bed, "h1") != before["h1"]
    assert "nodes 3 sizes {3000000} CPU 3.0" in bed.program(first, USES_ALL_NODES, "h0", "h1", "h2")
    assert "a word from h1" in bed.meshray("logs", "worker")

    output = bed.meshray("up", bed.file("lab", [first, third]))
    assert "h1: stop (not in the file)" in output
    assert not bed.left(second)
    assert "nodes 2 sizes {3000000} CPU 2.0" in bed.program(first, USES_ALL_NODES, "h0", "h2")
    rows = json.loads(bed.meshray("keys", "list", "--json"))
    assert {row["name"]: row["state"] for row in rows} == {"h0": "allowed", "h1": "revoked", "h2": "allowed"}

    bed.meshray("down")
    bed.assert_clean()
    assert "nothing to do" in bed.meshray("down", "lab")


def test_a_host_that_starts_again_brings_its_replica_back(bed: SshHosts):
    """Services go by their old names behind a new node id, at places that other hosts can reach."""
    hosts, more = list(bed.hosts), "replicas: 3\n"
    bed.meshray("up", bed.file("store", hosts, more=more))
    bed.meshray("up", bed.file("store", hosts, nodes={"h1": "labels: {zone: b}"}, more=more))

    def chain() -> set[tuple[str, int, int]]:
        rows = json.loads(bed.meshray("status", "--json"))["shards"]
        return {(row["shard"], row["epoch"], len(row["members"])) for row in rows}

    wait_until(lambda: {(name, count) for name, _, count in chain()} == {(f"shard-0-{each}", 3) for each in range(3)}
               and len({epoch for _, epoch, _ in chain()}) == 1, what="the chain to be whole again", timeout_s=40)
    assert min(epoch for _, epoch, _ in chain()) > 1
    for host in hosts[:2]:
        assert "nodes 3 sizes {3000000} CPU 3.0" in bed.program(host, USES_ALL_NODES, "h0", "h1", "h2")
    bed.meshray("down", "store")
    bed.assert_clean()


GOES_ON = """
import meshray

meshray.init(address="auto")

@meshray.remote
def double(number):
    return 2 * number

@meshray.remote(resources={"h2": 0.5}, max_restarts=-1, max_task_retries=-1)
class Counter:
    def __init__(self):
        self.count = 0

    def add(self):
        self.count += 1
        return self.count

counter = Counter.options(name="counter", lifetime="detached").remote()
rounds = after = 0
while after < 20:
    assert meshray.get([double.remote(i) for i in range(50)], timeout=40) == list(range(0, 100, 2))
    assert meshray.get(meshray.get_actor("counter").add.remote(), timeout=40) == rounds + 1
    rounds += 1
    after += meshray.cluster_resources()["CPU"] == 2.0
    if rounds == 1:
        print("begun", flush=True)
print("done")
"""


def test_a_cluster_goes_on_without_its_head(bed: SshHosts):
    head, second, _ = bed.hosts
    bed.meshray("up", bed.file("headless", list(bed.hosts), more="replicas: 3\n"))
    program = bed.hosts.run(second, [sys.executable, "-c", GOES_ON], text=True, stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert program.stdout is not None
    assert program.stdout.readline() == "begun\n"
    bed.stop_serving(head)
    output = program.communicate(timeout=60)[0]
    assert output == "done\n"
    bed.serve(head)
    bed.meshray("down", "headless")
    bed.assert_clean()


REMEMBERS = """
import meshray

meshray.init(address="auto", namespace="tests")

@meshray.remote
class Counter:
    def __init__(self):
        self.count = 0

    def add(self):
        self.count += 1
        return self.count

counter = Counter.options(name="counter", lifetime="detached", get_if_exists=True).remote()
print("counted", meshray.get(counter.add.remote(), timeout=40))
"""


@pytest.mark.parametrize("replicas", [1, 3])
def test_a_cluster_that_lost_every_host_goes_on_from_its_disks(bed: SshHosts, replicas: int):
    hosts, more = list(bed.hosts), f"replicas: {replicas}\nkeep_state: true\n"
    bed.meshray("up", bed.file("kept", hosts, more=more))
    assert "counted 1" in bed.program(hosts[1], REMEMBERS)
    assert "counted 2" in bed.program(hosts[2], REMEMBERS)
    for host in hosts:
        bed.stop_serving(host)
    for host in hosts:
        bed.serve(host)
    assert "meshray down kept, then up again" in bed.meshray("up", bed.file("kept", hosts, more=more), ok=False)
    bed.meshray("down")
    bed.assert_clean()

    bed.meshray("up", bed.file("kept", hosts, more=more))
    actors = json.loads(bed.meshray("list", "actors", "--json"))
    assert [(row["name"], row["state"]) for row in actors] in ([("counter", "restarting")], [("counter", "alive")])
    assert "counted 1" in bed.program(hosts[1], REMEMBERS), "an actor without checkpoints begins anew"
    assert "nodes 3 sizes {3000000} CPU 3.0" in bed.program(hosts[2], USES_ALL_NODES, "h0", "h1", "h2")
    bed.meshray("down")
    bed.assert_clean()
    for host in hosts:
        shutil.rmtree(host.state / "kept", ignore_errors=True)


def node_pid(bed: SshHosts, name: str) -> int:
    rows = json.loads(bed.meshray("status", "--json"))["nodes"]
    return next(int(row["pid"]) for row in rows if row["name"] == name and row["state"] == "alive")


def test_what_all_nodes_share_cannot_change(bed: SshHosts):
    hosts = [bed.hosts[0]]
    bed.meshray("up", bed.file("fixed", hosts))
    output = bed.meshray("up", bed.file("fixed", hosts, nodes={"h0": "labels: {a: b}"}, more="shards: 2\n"), ok=False)
    assert "shards: 1 runs, 2 is in the file" in output
    assert "head h0: labels: nothing -> {a: b}" in output
    output = bed.meshray("list", "nodes", "--json")
    assert "alive" in output
    bed.meshray("down", "fixed")
    bed.assert_clean()


def test_files_and_commands(bed: SshHosts, tmp_path: Path):
    host = bed.hosts[0]
    data = bed.client / "data"
    (data / "deep").mkdir(parents=True)
    (data / "deep" / "file").write_text("one")
    (data / "run.sh").write_text("#!/bin/sh\necho ran >> $1\n")
    (data / "run.sh").chmod(0o755)
    target, ran = host.root / "copied", host.root / "ran"
    more = (f"file_mounts: {{{target}: data}}\ninitialization_commands: ['test ! -e {target}/never']\n"
            f"setup_commands: ['{target}/run.sh {ran}']\n")
    bed.meshray("up", bed.file("files", [host], more=more))
    assert (target / "deep" / "file").read_text() == "one"
    assert ran.read_text() == "ran\n"
    (data / "deep" / "file").write_text("two")
    output = bed.meshray("up", bed.file("files", [host], more=more))
    assert "h0: update (files to copy changed)" in output
    assert "1 of 2 files copied" in output
    assert (target / "deep" / "file").read_text() == "two"
    bed.meshray("down", "files")
    bed.assert_clean()


def test_the_demo_runs_on_hosts(bed: SshHosts):
    file, head = Path(bed.file("demo", list(bed.hosts))), bed.hosts[0]
    bed.may_launch(head)
    shutil.copy(file, head.root)
    output = bed.meshray("demo", "--quick", "--out", "demo", "--cluster", file.name, on=head)
    assert "cluster demo is up: 3 nodes" in output
    assert (head.root / "demo" / "timeline.json").exists()
    bed.assert_clean()


def test_meshray_is_installed_where_it_is_missing(bed: SshHosts):
    host = bed.hosts[0]
    python = os.path.join(sys.base_prefix, "bin", "python3")
    # The libraries lie where the host's Python sees them; meshray itself, which is a checkout here, does not.
    environment = f"environment: {{PYTHONPATH: {Path(msgspec.__file__).parents[1]}, PIP_NO_INDEX: '1'}}"
    file = Path(bed.file("fresh", [host], nodes={"h0": environment}))
    file.write_text(file.read_text().replace(sys.executable, python))
    output = bed.meshray("up", str(file))
    assert "h0: probe ok" in output and "meshray is missing" in output
    assert "h0: install ok" in output and "meshray installed" in output
    assert "alive" in bed.meshray("list", "nodes", "--json")
    assert "nothing to do" in bed.meshray("up", str(file))
    bed.meshray("down", "fresh")
    bed.assert_clean()
    assert "meshray is there" in bed.meshray("up", str(file))
    bed.meshray("down", "fresh")
