"""The subcommands against a node that only answers tools."""

from __future__ import annotations

import json
import os
import sys
import types
from pathlib import Path

import pytest

from meshray.cluster_config import parse_cluster_config
from meshray.errors import ClusterStartError
from meshray.messages.state import StopCluster
from meshray.processes import local_cluster, run_dirs
from meshray.version import __version__

ROWS = {
    "nodes": [{"node": "node-1", "name": "left", "state": "alive", "pid": 7, "workers": 2, "endpoint": "ipc://x",
               "resources_total": {"CPU": 20_000, "left": 40_000, "memory": 10_000 * 2**30},
               "resources_available": {"CPU": 5_000, "left": 40_000, "memory": 10_000 * 2**29},
               "object_store_bytes": 2**28, "object_store_used": 2**26,
               "object_store_spilled": 3 * 2**30}],
    "workers": [{"worker": "worker-1", "node": "left", "pid": 8, "state": "leased", "label": "rollout", "job": "j"},
                {"worker": "worker-2", "node": "left", "pid": 9, "state": "idle", "label": "", "job": None}],
    "actors": [{"actor": "ab", "class_name": "Noise", "name": "noise", "namespace": "n", "state": "alive", "pid": 9}],
    "tasks": [{"task": f"{number:02x}", "name": "rollout", "state": "failed" if number % 2 else "running",
               "duration_ms": 1.5} for number in range(5)],
    "objects": [{"object": "cd", "node": "left", "size_bytes": 3 * 2**20, "owner": "driver-1"}],
    "shards": [{"shard": "shard-0-0", "role": "alone", "epoch": 3, "members": ["shard-0-0"],
                "rows": {"task": 5, "kv": 0}, "used_bytes": 4096, "file_bytes": 8192, "durability": "fsync"}],
    "demands": [{"session": "driver-1", "label": "train", "resources": {"GPU": 10_000}, "count": 3,
                 "state": "infeasible", "reason": "needs 1 GPU, the largest node has 0"}],
    "timeline": [{"name": "rollout", "ph": "X", "ts": 1.0, "dur": 2.0, "pid": "left", "tid": "worker-1"}],
}


@pytest.fixture
def node(fake_node):
    node = fake_node()
    node.rows = ROWS
    node.up()
    return node


def test_version_and_help(meshray_command):
    assert meshray_command("--version").output == f"meshray {__version__}\n"
    shown = meshray_command("--help").output
    for word in ("up", "down", "status", "list", "logs", "timeline", "demo", "doctor", "Exit codes", "Examples",
                 "_MESHRAY_COMPLETE", "NO_COLOR"):
        assert word in shown
    for command in ("up", "down", "status", "list", "logs", "timeline"):
        assert "Example" in meshray_command(command, "--help").output


def test_status_says_which_replicas_are_missing_and_being_made(node, meshray_command):
    newest = {"epoch": 4, "members": ["shard-0-0", "shard-0-2"], "replicas": 3, "lost": ["shard-0-1 on beta"]}
    node.rows = {**ROWS, "shards": [
        {"shard": "shard-0-0", "role": "head", **newest}, {"shard": "shard-0-2", "role": "tail", **newest},
        {"shard": "shard-0-3", "role": "joining", **newest, "epoch": 3, "members": []},
        {"shard": "shard-1-0", "role": "alone", "epoch": 1, "members": ["shard-1-0"], "replicas": 1}]}
    lines = meshray_command("status").output.splitlines()
    assert "shard-0: 2 of 3 replicas; shard-0-3 is being filled; shard-0-1 on beta is lost" in lines
    assert not any(line.startswith("shard-1:") for line in lines)


def test_status(node, meshray_command):
    result = meshray_command("status")
    assert result.exit_code == 0, result.output
    for words in ("1 node (1 alive)", "2 workers (1 idle, 1 leased)", "1 actor", "5 tasks (2 failed, 3 running)",
                  "1 object in stores, 3 MiB", "████████░░ CPU 1.5 of 2", "░░░░░░░░░░ left 0 of 4",
                  "memory 512 MiB of 1 GiB", "64 MiB of 256 MiB", "3 GiB on disk", "2 (1 busy)", "shard-0-0",
                  "5 task", "fsync",
                  "infeasible: 3 x train, each needs GPU 1. needs 1 GPU, the largest node has 0", node.endpoint):
        assert words in result.output, words
    assert "0 kv" not in result.output


def test_status_json(node, meshray_command):
    shown = json.loads(meshray_command("status", "--json").output)
    assert shown["address"] == node.endpoint
    assert shown["nodes"][0]["resources_available"] == {"CPU": 0.5, "left": 4.0, "memory": 2**29}
    assert shown["demands"][0]["resources"] == {"GPU": 1.0}


def test_who_did_not_answer_is_named(node, meshray_command):
    node.missing = ["node-2"]
    assert "no answer in time from node-2" in meshray_command("status").stderr


def test_node_of_another_version(node, meshray_command):
    node.rows = {**ROWS, "nodes": [{"workers": "many"}]}
    result = meshray_command("status")
    assert result.exit_code == 1
    assert "another version" in result.stderr


@pytest.mark.parametrize(("address", "environment"), [("auto", ""), ("pair", ""), ("", "pair"), ("{endpoint}", "")])
def test_addresses(node, meshray_command, monkeypatch, address, environment):
    if environment:
        monkeypatch.setenv("MESHRAY_ADDRESS", environment)
    given = ["--address", address.format(endpoint=node.endpoint)] if address else []
    assert meshray_command("status", *given).exit_code == 0


@pytest.mark.parametrize("arguments", [["status"], ["list", "nodes"], ["timeline", "x.json"], ["logs"]])
def test_without_a_cluster(meshray_command, arguments):
    result = meshray_command(*arguments)
    assert result.exit_code == 3
    assert "meshray up FILE" in result.stderr and "Traceback" not in result.stderr


def test_unknown_cluster(node, meshray_command):
    result = meshray_command("status", "--address", "other")
    assert result.exit_code == 3
    assert "no cluster other, running here: pair" in result.stderr


@pytest.mark.parametrize(("arguments", "words"), [
    (["nodes"], ["left", "CPU 2, left 4, memory 1 GiB", "64 MiB"]),
    (["workers"], ["worker-1", "rollout", "leased"]),
    (["actors"], ["Noise", "noise", "alive"]),
    (["objects"], ["cd", "3 MiB", "driver-1"]),
    (["tasks", "--filter", "state=failed"], ["01", "03", "1.5"]),
])
def test_lists(node, meshray_command, arguments, words):
    result = meshray_command("list", *arguments)
    assert result.exit_code == 0, result.output
    for word in words:
        assert word in result.output


def test_list_filters_and_limits(node, meshray_command):
    result = meshray_command("list", "tasks", "--json", "--filter", "state=running", "--filter", "name=rollout")
    assert [row["task"] for row in json.loads(result.output)] == ["00", "02", "04"]
    result = meshray_command("list", "tasks", "--json", "--limit", "2")
    assert len(json.loads(result.stdout)) == 2
    result = meshray_command("list", "tasks", "--limit", "2")
    assert "more than 2 rows" in result.stderr
    assert "more than" not in meshray_command("list", "tasks", "--limit", "5").stderr


@pytest.mark.parametrize(("arguments", "words"), [
    (["planets"], "planets"), (["tasks", "--filter", "stat=x"], "tasks have no stat, did you mean state?"),
    (["tasks", "--filter", "state"], "must be KEY=VALUE"), (["tasks", "--limit", "0"], "--limit"),
])
def test_wrong_lists(node, meshray_command, arguments, words):
    result = meshray_command("list", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr


def test_logs(node, meshray_command):
    directory = Path(node.run_dir, "logs")
    (directory / "node.err").write_text("one\ntwo\nthree\n")
    (directory / "worker-1.out").write_bytes(b"caf\xe9\n")
    assert meshray_command("logs", "node", "--tail", "2").output == "two\nthree\n"
    assert meshray_command("logs", "left/worker").output == "caf\ufffd\n"
    assert meshray_command("logs", "--tail", "1").output == (
        "left/node.err | three\nleft/worker-1.out | caf\ufffd\n")
    result = meshray_command("logs", "shard")
    assert result.exit_code == 1
    assert "no process shard in cluster pair: there are left/node, left/worker-1" in result.stderr
    node.close()
    assert meshray_command("logs", "node", "--tail", "1").output == "three\n"


def test_following_logs(node, meshray_command, monkeypatch):
    file = Path(node.run_dir, "logs", "node.err")
    file.write_text("one\n")
    turns = iter(["hal", "f\nfu", "ll\n"])

    def write_more(seconds: float) -> None:
        text = next(turns, None)
        if text is None:
            raise KeyboardInterrupt
        with file.open("a") as opened:
            opened.write(text)

    monkeypatch.setattr("meshray.cli.logs.time.sleep", write_more)
    result = meshray_command("logs", "-f")
    assert result.stdout == "one\nhalf\nfull\n"
    assert result.exit_code == 130


def test_timeline(node, meshray_command, tmp_path):
    file = tmp_path / "trace.json"
    result = meshray_command("timeline", str(file))
    assert "1 events" in result.output
    assert json.loads(file.read_text())["traceEvents"] == ROWS["timeline"]
    assert os.listdir(tmp_path) == ["trace.json"]
    result = meshray_command("timeline", str(tmp_path / "no" / "such.json"))
    assert result.exit_code == 1 and "No such file" in result.stderr


def test_down(node, meshray_command, root):
    arena = Path(run_dirs.arena_path("pair", "left"))
    arena.touch()
    result = meshray_command("down")
    assert result.output == "cluster pair is down\n"
    assert isinstance(node.asked[0], StopCluster)
    assert node.process.poll() is not None
    assert run_dirs.clusters() == [] and not arena.exists()
    assert meshray_command("down").output == "no cluster is up, nothing to do\n"
    assert meshray_command("down", "pair").output == "cluster pair is not up, nothing to do\n"


def test_down_of_a_frozen_node(node, meshray_command, root, monkeypatch):
    monkeypatch.setattr("meshray.processes.launch._ASK_TIMEOUT_S", 0.05)
    monkeypatch.setattr(local_cluster, "stop_nodes", lambda nodes, reason, stop=local_cluster.stop_nodes: stop(
        nodes, reason=reason, timeout_s=0))
    node.silent = True
    assert meshray_command("down", "pair").exit_code == 0
    assert node.process.poll() is not None
    assert run_dirs.clusters() == []


FILE = "cluster_name: pair\nnodes:\n  - name: left\n    num_cpus: 1\n    object_store_memory: 1MiB\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "pair.yaml"
    path.write_text(FILE)
    return str(path)


@pytest.fixture
def starts(monkeypatch, fake_node):
    """Let ``up`` start fake nodes; return the configurations they got. ``starts.append(error)`` lets the next fail."""
    found = []

    class FakeLaunch:
        def __init__(self, plan):
            self.plan = plan
            self.node = None
            found.append(plan)

        def wait(self):
            errors = [each for each in found if isinstance(each, BaseException)]
            if errors and self.plan is found[-1]:
                raise errors[0]
            run_dirs.remove(self.plan.cluster)
            self.node = fake_node(self.plan.cluster, self.plan.node_name)
            return run_dirs.read_node_file(self.plan.run_dir)

        def abandon(self):
            if self.node is not None:
                self.node.process.kill()

    monkeypatch.setattr(local_cluster, "Launch", FakeLaunch)
    return found


def test_up_twice_and_down_by_file(starts, file, meshray_command):
    result = meshray_command("up", file)
    assert result.exit_code == 0, result.output
    assert "cluster pair is up: ipc://" in result.output
    (plan,) = starts
    assert list(plan.host_shards) == ["shard-0-0"]
    assert list(plan.host_schedulers) == ["scheduler-0", "scheduler-1"] == list(plan.schedulers)
    assert (plan.resources["CPU"], plan.object_store_bytes) == (1.0, 2**20)
    result = meshray_command("up", file)
    assert result.exit_code == 0 and "runs already, nothing to do" in result.output
    assert len(starts) == 1
    assert meshray_command("down", file).output == "cluster pair is down\n"
    assert meshray_command("down", file).output == "cluster pair is not up, nothing to do\n"


def test_up_with_another_configuration(starts, file, meshray_command):
    meshray_command("up", file)
    Path(file).write_text(FILE.replace("num_cpus: 1", "num_cpus: 2"))
    result = meshray_command("up", file)
    assert result.exit_code == 4
    assert "head left: num_cpus: 1 -> 2" in result.stderr
    assert f"meshray down pair && meshray up {file}" in result.stderr
    assert len(starts) == 1


def test_up_when_a_node_has_died(fake_node, file, meshray_command):
    node = fake_node()
    other = fake_node("other", "right")
    node.up(local_cluster._canonical(parse_cluster_config(FILE)))
    record = run_dirs.read_node_file(node.run_dir)
    run_dirs._write(os.path.join(node.run_dir, "node.json"), type(record)(**{
        **{name: getattr(record, name) for name in record.__struct_fields__},
        "processes": {"node": run_dirs.Process(1, 1, "x"), "shard": run_dirs.identify(other.process.pid)}}))
    result = meshray_command("up", file)
    assert result.exit_code == 1
    assert "node left, the head of cluster pair, is dead" in result.stderr and "meshray down pair" in result.stderr


@pytest.mark.parametrize(("error", "code"), [(ClusterStartError("no luck"), 1), (KeyboardInterrupt(), 130)])
def test_failed_up_leaves_nothing(starts, file, meshray_command, root, error, code):
    starts.append(error)
    result = meshray_command("up", file)
    assert result.exit_code == code
    assert run_dirs.clusters() == []


def test_second_node_that_fails_takes_the_first_along(starts, fake_node, file, meshray_command):
    Path(file).write_text(FILE + "  - name: right\n    object_store_memory: 1MiB\n")
    starts.append(ClusterStartError("no luck with right"))
    result = meshray_command("up", file)
    assert result.exit_code == 1 and "no luck with right" in result.stderr
    assert [plan.node_name for plan in starts[1:]] == ["left", "right"]
    assert run_dirs.clusters() == []


def test_up_of_wrong_files(meshray_command, file, tmp_path):
    Path(file).write_text(FILE.replace("num_cpus", "num_cpu"))
    result = meshray_command("up", file)
    assert result.exit_code == 2
    assert f"{file}:4: nodes[0].num_cpu: unknown key, did you mean num_cpus?" in result.stderr
    assert meshray_command("up", str(tmp_path / "missing.yaml")).exit_code == 2
    assert run_dirs.clusters() == []


def test_doctor(meshray_command, monkeypatch, root):
    result = meshray_command("doctor")
    for words in ("libzmq", "LMDB", "shared memory", "open files", "run root", "CPUs"):
        assert words in result.output
    os.chmod(root, 0o777)
    result = meshray_command("doctor")
    assert result.exit_code == 1
    assert "BAD" in result.output and "can be written by others" in result.output


def test_schema(meshray_command):
    assert "ClusterConfig" in json.loads(meshray_command("schema").output)["$defs"]


def test_demo_is_given_its_options(meshray_command, monkeypatch):
    given = {}
    stand_in = types.ModuleType("meshray.cli.demo")
    stand_in.run = lambda **options: given.update(options)
    monkeypatch.setitem(sys.modules, "meshray.cli.demo", stand_in)
    assert meshray_command("demo", "--out", "d", "--seed", "3", "--quick").exit_code == 0
    assert given == {"out": "d", "seed": 3, "quick": True, "file": None}
