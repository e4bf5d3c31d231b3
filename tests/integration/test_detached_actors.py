"""Detached actors whose node and home die, or are frozen and come back: another node runs them, and only that one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import meshray
from meshray.node_config import NodeFile
from meshray.processes import run_dirs

from .support import command_line, is_alive, run_script, wait_gone, wait_until

pytestmark = pytest.mark.limit_s(120)
NAME = "heirs"
FILE = """\
cluster_name: heirs
provider:
  type: local
schedulers: 3
nodes:
  - {name: stays, num_cpus: 2, object_store_memory: 64MiB, resources: {spot: 1}}
  - {name: home, num_cpus: 2, object_store_memory: 64MiB}
  - {name: lives, num_cpus: 2, object_store_memory: 64MiB, resources: {spot: 1}}
"""
CREATE = """
    import os, sys
    import meshray

    meshray.init(address=ADDRESS, namespace="tests")

    @meshray.remote(max_restarts=MAX_RESTARTS, max_task_retries=-1)
    class Keeper:
        def __init__(self):
            self.count = 0

        def add(self):
            self.count += 1
            return self.count, os.getpid()

    keeper = Keeper.options(name="keeper", lifetime="detached", resources=RESOURCES).remote()
    meshray.get(keeper.add.remote(), timeout=60)
    print(*meshray.get(keeper.add.remote(), timeout=60))
"""


@pytest.fixture
def cluster(root: str, tmp_path: Path) -> Iterator[Path]:
    file = tmp_path / "heirs.yaml"
    file.write_text(FILE)
    command_line("up", str(file))
    meshray.init(address="auto", namespace="tests")
    try:
        yield tmp_path
    finally:
        meshray.shutdown()
        command_line("down", str(file))


def node(name: str) -> NodeFile:
    record = run_dirs.read_node_file(run_dirs.node_dir(NAME, name))
    assert record is not None
    return record


def create(directory: Path, *, max_restarts: int = 1, resources: str = "{}") -> int:
    """Let a program on the node ``home`` create the actor; return the pid of the actor."""
    program = CREATE.replace("ADDRESS", repr(node("home").endpoint)).replace("MAX_RESTARTS", str(max_restarts))
    count, pid = map(int, run_script(program.replace("RESOURCES", resources), directory).split()[-2:])
    assert count == 2
    return pid


def told(*words: str) -> bool:
    lines = command_line("events").stdout.splitlines()
    return any(all(word in line for word in words) for line in lines)


@meshray.remote(resources={"spot": 1})
class Guest:
    """Takes the place on the node that stays."""

    def where(self) -> str:
        return str(meshray.get_runtime_context().get_node_id())


@pytest.mark.parametrize("max_restarts", [0, 1])
def test_a_third_node_runs_an_actor_whose_node_and_home_were_killed(cluster: Path, max_restarts: int) -> None:
    guest = Guest.remote()
    assert meshray.get(guest.where.remote(), timeout=60) == node("stays").node
    before = create(cluster, max_restarts=max_restarts, resources="{'spot': 1}")
    meshray.kill(guest)
    for name in ("home", "lives"):
        os.kill(node(name).pid, signal.SIGKILL)
    wait_gone(before)
    if not max_restarts:
        wait_until(lambda: told("actor died", "keeper", "is gone"), 60, what="the death of the actor")
        with pytest.raises(ValueError, match="keeper"):
            meshray.get_actor("keeper")
        return
    count, pid = meshray.get(meshray.get_actor("keeper").add.remote(), timeout=60)
    assert (count, pid != before) == (1, True)
    for words in (("actor taken over", "keeper", "incarnation 1"), ("node died", "home"), ("node died", "lives")):
        wait_until(lambda words=words: told(*words), what=f"the event {words}")


def test_a_frozen_home_that_comes_back_finds_that_its_actor_has_passed(cluster: Path) -> None:
    before = create(cluster)
    frozen = node("home").pid
    os.kill(frozen, signal.SIGSTOP)
    try:
        wait_until(lambda: told("actor taken over", "keeper"), 60, what="the take-over")
        count, pid = meshray.get(meshray.get_actor("keeper").add.remote(), timeout=60)
        assert (count, pid != before) == (1, True) and is_alive(before)
    finally:
        os.kill(frozen, signal.SIGCONT)
    wait_gone(before)
    wait_until(lambda: told("actor passed on", "keeper"), what="the old home to notice")
    assert meshray.get(meshray.get_actor("keeper").add.remote(), timeout=60) == (2, pid)
