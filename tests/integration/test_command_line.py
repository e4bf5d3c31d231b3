"""``meshray up``, ``status``, ``list``, ``logs`` and ``down`` as a user types them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

import meshray

from .support import (
    TWO_NODES,
    Gate,
    TwoNodes,
    abandoned,
    command_line,
    processes_of,
    run_script,
    shared_memory,
    sockets_under,
    wait_until,
)

pytestmark = pytest.mark.limit_s(90)


@meshray.remote
class Named:
    def speak(self):
        print("words for the log")
        return os.getpid()


def test_status_of_a_running_cluster(two_nodes):
    actor = Named.options(name="somebody").remote()
    meshray.get(actor.speak.remote())
    status = two_nodes.status()
    assert len(status["nodes"]) == 2
    text = json.dumps(status)
    for word in ("CPU", "left", "right", "actors", "workers", "objects", "shards"):
        assert word in text, word
    shown = command_line("status").stdout
    assert "left" in shown
    assert "CPU" in shown


def test_status_shows_demand_that_cannot_be_met(two_nodes):
    stuck = meshray.remote(resources={"unobtainium": 1})(lambda: 1).remote()
    wait_until(lambda: "unobtainium" in command_line("status").stdout)
    assert meshray.wait([stuck], timeout=0)[0] == []


def test_lists(two_nodes):
    actor = Named.options(name="somebody").remote()
    pid = meshray.get(actor.speak.remote())
    ref = meshray.put(bytes(1_000_000))
    meshray.get([meshray.remote(lambda: 1).options(name="listed-task").remote() for _ in range(3)])
    assert "somebody" in command_line("list", "actors").stdout
    assert str(pid) in command_line("list", "workers").stdout
    assert {"left", "right"} <= set(command_line("list", "nodes").stdout.split())
    wait_until(lambda: ref.hex()[:12] in command_line("list", "objects").stdout)
    wait_until(lambda: "listed-task" in command_line("list", "tasks").stdout)
    assert command_line("list", "planets", ok=False).returncode != 0


def test_tasks_are_listed_with_id_node_and_outcome(two_nodes, tmp_path):
    def listed():
        return {row["task"]: row for row in json.loads(command_line("list", "tasks", "--json").stdout)}

    gate = Gate(tmp_path / "gate")
    options = {"resources": {"right": 1}, "max_retries": 0}
    good = meshray.remote(lambda: 1).options(**options).remote()
    bad = meshray.remote(lambda: 1 / 0).options(**options).remote()
    assert meshray.get(good) == 1
    with pytest.raises(ZeroDivisionError):
        meshray.get(bad)
    stays = meshray.remote(lambda: gate.wait()).options(**options).remote()
    actor = Named.remote()
    pid = meshray.get(actor.speak.remote())
    try:
        wait_until(lambda: listed().get(stays.task_id().hex(), {}).get("state") == "running")
        rows = listed()
    finally:
        gate.open()
    meshray.get(stays)
    assert rows[good.task_id().hex()]["state"] == "finished"
    assert rows[bad.task_id().hex()]["state"] == "failed"
    assert {rows[ref.task_id().hex()]["node"] for ref in (good, bad, stays)} == {"right"}
    homes = {row["pid"]: row["node"] for row in json.loads(command_line("list", "workers", "--json").stdout)}
    assert homes[pid] in {row["node"] for row in rows.values() if row["name"] == "Named.speak"}


def test_logs(two_nodes):
    meshray.get(Named.remote().speak.remote())
    wait_until(lambda: "words for the log" in command_line("logs").stdout)


def test_up_and_down_twice(root, tmp_path):
    memory, cluster = shared_memory(), TwoNodes(tmp_path)
    cluster.up()
    before = set(processes_of(root))
    cluster.up()
    assert before <= set(processes_of(root))
    assert len(cluster.status()["nodes"]) == 2
    cluster.down()
    wait_until(lambda: not processes_of(root), 10)
    assert not sockets_under(root)
    assert not abandoned(shared_memory() - memory)
    cluster.down()


def test_status_without_a_cluster(root):
    result = command_line("status", ok=False)
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert "meshray up" in result.stdout + result.stderr


def test_programs_join_by_variable_and_by_address(two_nodes, tmp_path):
    address = json.loads(next(Path(os.environ["MESHRAY_RUN_ROOT"]).glob("*/cluster.json")).read_text())["address"]
    program = """
        import sys
        import meshray

        meshray.init(address=sys.argv[1] if len(sys.argv) > 1 else None)
        print("cpus", meshray.cluster_resources()["CPU"])
        """
    assert "cpus 4" in run_script(program, tmp_path, address)
    assert "cpus 4" in run_script(program, tmp_path, "auto")
    assert "cpus 4" in run_script(program, tmp_path, MESHRAY_ADDRESS=address)


def test_killed_program_leaves_the_cluster_usable(two_nodes, tmp_path):
    result = run_script("""
        import os, signal
        import meshray

        meshray.init(address="auto")
        refs = [meshray.remote(lambda: signal.pause()).remote() for _ in range(8)]
        actor = meshray.remote(num_cpus=0, resources={"left": 4})(type("A", (), {"ping": lambda self: 1})).remote()
        meshray.get(actor.ping.remote())
        print("dying", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """, tmp_path, ok=False)
    assert "dying" in result
    wait_until(lambda: meshray.available_resources().get("CPU") == 4, 15)
    wait_until(lambda: meshray.available_resources().get("left") == 4, 15)


def test_workers_find_the_modules_beside_a_joined_program(two_nodes, tmp_path):
    module = "class Thing:\n    value = 7\n\ndef value_of(thing):\n    return thing.value\n"
    (tmp_path / "neighbour.py").write_text(module)
    output = run_script("""
        import meshray, neighbour

        meshray.init(address="auto")
        value_of = meshray.remote(neighbour.value_of)
        for side in ("left", "right"):
            print(side, meshray.get(value_of.options(resources={side: 1}).remote(neighbour.Thing())))
        print("actor", meshray.get(meshray.remote(neighbour.Thing).remote().__ray_ready__.remote()))
        """, tmp_path)
    assert "left 7" in output
    assert "right 7" in output
    assert "actor" in output


def test_labels_of_the_cluster_file_are_shown(root, tmp_path):
    file = tmp_path / "labelled.yaml"
    file.write_text("cluster_name: labelled\nnodes:\n  - {num_cpus: 1, labels: {zone: east}}\n")
    command_line("up", str(file))
    try:
        meshray.init(address="auto")
        assert [row["Labels"] for row in meshray.nodes()] == [{"zone": "east"}]
        meshray.shutdown()
    finally:
        command_line("down", str(file))


def test_down_while_a_driver_is_joined(two_nodes):
    ref = meshray.remote(lambda: signal.pause()).remote()
    two_nodes.down()
    with pytest.raises(meshray.exceptions.MeshrayError):
        meshray.get(ref, timeout=30)


def test_up_with_another_configuration_changes_nothing(two_nodes, tmp_path):
    file = tmp_path / "pair.yaml"
    file.write_text(file.read_text().replace("left: 4", "left: 5"))
    result = command_line("up", str(file), ok=False)
    assert result.returncode == 4
    assert "left" in result.stdout + result.stderr
    assert meshray.cluster_resources()["left"] == 4


def test_a_running_cluster_is_changed_to_its_file(two_nodes, tmp_path):
    file = tmp_path / "pair.yaml"
    third = "  - {name: third, num_cpus: 1, resources: {third: 1}, object_store_memory: 64MiB}\n"
    text = file.read_text().replace("right: 4", "right: 5").replace("schedulers:", third + "schedulers:")
    pids = {row["name"]: row["pid"] for row in two_nodes.status()["nodes"]}
    where = meshray.remote(lambda: meshray.get_runtime_context().get_node_id())

    def answers_from(*names: str) -> int:
        return len(set(meshray.get([where.options(resources={name: 1}).remote() for name in names], timeout=30)))

    file.write_text(text)
    shown = command_line("up", str(file)).stdout
    for line in ("left: keep", "right: restart (resources: {right: 4} -> {right: 5})", "third: start (new)"):
        assert line in shown
    assert answers_from("left", "right", "third") == 3
    after = {row["name"]: row["pid"] for row in two_nodes.status()["nodes"] if row["state"] == "alive"}
    assert after.keys() == {"left", "right", "third"}
    assert after["left"] == pids["left"] and after["right"] != pids["right"]

    file.write_text(text.replace(third, "  - {name: fourth, num_cpus: 1, spill_directory: /proc/nowhere}\n"))
    result = command_line("up", str(file), ok=False)
    assert "third: stop (not in the file)" in result.stdout
    assert "spill_directory /proc/nowhere cannot be made" in result.stderr
    file.write_text(text.replace(third, ""))
    assert "nothing to do" in command_line("up", str(file)).stdout
    assert answers_from("left", "right") == 2

    os.kill(after["right"], signal.SIGKILL)
    wait_until(lambda: "right: restart (it does not run)" in command_line("up", str(file)).stdout)
    assert answers_from("left", "right") == 2


@pytest.mark.parametrize(("change", "words"), [
    (("cluster_name", "cluster_nam"), ["bad.yaml:1", "cluster_nam", "did you mean cluster_name"]),
    (("type: local", "typ: local"), ["bad.yaml:3", "provider.typ", "did you mean type"]),
    (("num_cpus: 2", "num_cpus: many"), ["bad.yaml:6", "num_cpus", "many"]),
    (("num_cpus: 2", "num_cpus: -2"), ["bad.yaml:6", "num_cpus", "-2"]),
    (("num_cpus: 2", "num_cpu: 2"), ["bad.yaml:6", "num_cpu", "did you mean num_cpus"]),
    (("provider:", "provider: ["), ["bad.yaml:", "not valid YAML"]),
])
def test_bad_files_are_refused_before_anything_starts(root, tmp_path, change, words):
    file = tmp_path / "bad.yaml"
    file.write_text(TWO_NODES.format(name="bad", store="64MiB").replace(*change, 1))
    result = command_line("up", str(file), ok=False)
    shown = result.stdout + result.stderr
    assert result.returncode != 0
    assert "Traceback" not in shown
    for word in words:
        assert word in shown, shown
    assert not processes_of(root)


def test_up_of_a_file_that_is_not_there(root, tmp_path):
    result = command_line("up", str(tmp_path / "missing.yaml"), ok=False)
    assert result.returncode != 0
    assert "missing.yaml" in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


def test_help_names_every_command():
    shown = command_line("--help").stdout
    assert all(word in shown for word in ("up", "down", "status", "list", "logs", "demo"))
