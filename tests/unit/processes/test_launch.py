"""Starting a node: what the boot process gets, how it reports, how its failures look. The boot here is a stand-in."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from meshray.errors import ClusterStartError
from meshray.processes import launch, machine_resources, run_dirs
from meshray.processes.process_identity import end, identify, is_alive

HEALTHY = """
import json, os, sys
from meshray.node_config import NodeFile
from meshray.processes import run_dirs
given = json.load(sys.stdin)
run_dir = given["run_dir"]
facts = {"fds": sorted(os.listdir("/proc/self/fd")), "cwd": os.getcwd(), "session": os.getpgid(0),
         "variable": os.environ.get("PLACE"), "given": given}
with open(os.path.join(run_dir, "facts.json"), "w") as file:
    json.dump(facts, file)
run_dirs.write_node_file(run_dir, NodeFile(cluster=given["cluster"], node_name=given["node_name"], node="node-x",
    pid=os.getpid(), endpoint="ipc://" + run_dir + "/node.sock", arena_path=given["arena_path"], pids={}))
ready = int(os.environ["MESHRAY_READY_FD"])
os.write(ready, b"ready\\n")
os.close(ready)
import signal
signal.pause()
"""


@pytest.fixture
def boot(root, monkeypatch):
    """Let this script be the boot process; what a failed test leaves running is ended."""
    def become(script: str) -> None:
        monkeypatch.setattr(launch, "_BOOT", (sys.executable, "-c", script))

    yield become
    end([process for cluster in run_dirs.clusters() for process in run_dirs.processes_of(cluster)], grace_s=0, term_s=0)


def small_config(**options):
    return launch.embedded_config(**{"num_cpus": 2, "num_gpus": 0, "object_store_memory": 2**20, **options})


def test_node_starts_detached_and_stops(root, boot):
    boot(HEALTHY)
    left, right = os.pipe()
    os.set_inheritable(right, True)
    try:
        node = launch.start_node(small_config(environment={"PLACE": "here"}, resources={"x": 2}))
    finally:
        os.close(left)
        os.close(right)
    known = identify(node.pid)
    facts = json.loads(Path(run_dirs.node_dir(node.cluster, node.node_name), "facts.json").read_text())
    # Number 4 is the directory listing itself.
    assert facts["fds"] == ["0", "1", "2", "3", "4"]
    assert facts["session"] == node.pid
    assert facts["cwd"] == os.getcwd()
    assert facts["variable"] == "here"
    assert facts["given"]["resources"] == {"CPU": 2.0, "x": 2.0, "object_store_memory": 2.0**20,
                                           "memory": facts["given"]["resources"]["memory"]}
    assert facts["given"]["embedded_pid"] == os.getpid()
    launch.stop_node(node, timeout_s=0)
    assert not is_alive(known)
    launch.stop_node(node, timeout_s=0)
    run_dirs.remove(node.cluster)


def test_workers_go_with_their_node(root, boot):
    boot("import subprocess; subprocess.Popen(['sleep', '60'])\n" + HEALTHY)
    node = launch.start_node(small_config())
    session = launch._group_of(node.pid)
    assert len(session) == 1
    launch.stop_node(node, timeout_s=0)
    assert not any(map(is_alive, session))


def test_workers_go_after_their_node_was_killed(root, boot):
    boot("import subprocess; subprocess.Popen(['sleep', '60'])\n" + HEALTHY)
    node = launch.start_node(small_config())
    session = launch._group_of(node.pid)
    os.kill(node.pid, signal.SIGKILL)
    os.waitpid(node.pid, 0)
    launch.stop_node(node, timeout_s=0)
    assert not any(map(is_alive, session))


def children():
    """Return the pids of this process's children, zombies among them: another test's cluster may be one."""
    return {child.pid for child in psutil.Process().children()}


@pytest.mark.parametrize(("script", "words"), [
    ("import sys; sys.exit('the shard is unwell')", r"ended with exit code 1. Its last words:\nthe shard is unwell"),
    ("import os; os.kill(os.getpid(), 9)", "was ended by SIGKILL and wrote nothing"),
    ("pass", "ended with exit code 0"),
    ("import signal; print('hm', file=__import__('sys').stderr, flush=True); signal.pause()",
     r"was not healthy after 0.5 s. Its last words:\nhm"),
    ("import os, sys; os.close(int(os.environ['MESHRAY_READY_FD'])); sys.exit(7)", "ended with exit code 7"),
])
def test_node_that_does_not_start(root, boot, script, words):
    boot(script)
    before = children()
    with pytest.raises(ClusterStartError, match=words):
        launch.start_node(small_config(), timeout_s=0.5 if "pause" in script else 20)
    assert children() == before


def test_node_that_finds_the_disk_full(root, boot, monkeypatch):
    boot("import sys; sys.exit(1)")
    settings = small_config()
    full = os.statvfs_result((4096, 4096, 4, 0, 0, 4, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    words = f"exit code 1: no space is left in {settings.run_dir}.*MESHRAY_RUN_ROOT"
    with pytest.raises(ClusterStartError, match=words):
        launch.start_node(settings)


@pytest.mark.parametrize(("options", "error", "words"), [
    ({"num_cpus": -1}, ValueError, "num_cpus must be zero or more, not -1"),
    ({"resources": {"x": float("nan")}}, ValueError, r"resources\['x'\] must be zero or more"),
    ({"resources": {"CPU": 1}}, ValueError, r"resources\['CPU'\] has an option of its own: use num_cpus"),
    ({"num_gpus": "two"}, TypeError, "num_gpus must be a number, not 'two'"),
    ({"object_store_memory": 2**60}, ClusterStartError, "no room for the object store: .* free"),
])
def test_bad_amounts_leave_nothing(root, options, error, words):
    with pytest.raises(error, match=words):
        small_config(**options)
    assert run_dirs.clusters() == []


def test_detected_amounts(root, monkeypatch):
    monkeypatch.setattr(machine_resources, "cpus", lambda: 6)
    monkeypatch.setattr(machine_resources, "gpus", lambda: 1)
    settings = launch.embedded_config(object_store_memory=2**20)
    assert (settings.resources["CPU"], settings.resources["GPU"]) == (6.0, 1.0)
    assert settings.resources["memory"] == machine_resources.memory_bytes() - 2**20
    assert settings.shards[0].members == [("shard-0-0", f"ipc://{settings.run_dir}/shard-0-0.sock")]


def test_gpus(monkeypatch):
    for text, count in (("0,1", 2), ("", 0), ("-1", 0), ("GPU-abc", 1)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", text)
        assert machine_resources.gpus() == count


def test_control_group_limits(monkeypatch):
    limits = {"cpu.max": ["max 100000", "150000 100000"], "memory.max": ["max", str(2**30)]}
    monkeypatch.setattr(machine_resources, "_limits", lambda name: iter(limits.get(name, [])))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert machine_resources.cpus() == 1
    assert machine_resources.memory_bytes() == 2**30
