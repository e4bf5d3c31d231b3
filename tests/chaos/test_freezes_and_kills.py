"""Single processes of the system are frozen or killed: idle workers, busy workers, a global scheduler replica."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from integration.support import Gate, Journal, is_alive, processes_of, wait_gone, wait_until

import meshray

pytestmark = pytest.mark.limit_s(90)


@meshray.remote
def identity(x):
    return x


def system_pids(root, prefix):
    """Pids of the cluster's processes whose name begins with this, as the nodes' own files tell."""
    files = [json.loads(path.read_text()) for path in Path(root).glob("*/*/node.json")]
    return sorted({pid for file in files for name, pid in file["pids"].items() if name.startswith(prefix)})


def test_frozen_worker_holds_up_only_its_own_task(fresh, tmp_path):
    fresh(num_cpus=2)
    gate, journal = Gate(tmp_path / "gate"), Journal(tmp_path / "pids")

    @meshray.remote
    def block():
        journal.write(os.getpid())
        gate.wait()
        return "thawed"

    ref = block.remote()
    pid = int(journal.wait_for(1)[0])
    os.kill(pid, signal.SIGSTOP)
    assert meshray.get([identity.remote(i) for i in range(100)], timeout=50) == list(range(100))
    gate.open()
    assert meshray.wait([ref], timeout=0)[0] == []
    os.kill(pid, signal.SIGCONT)
    assert meshray.get(ref, timeout=50) == "thawed"


def test_frozen_actor_can_be_killed(fresh):
    fresh(num_cpus=2)

    @meshray.remote
    class Actor:
        def pid(self):
            return os.getpid()

    actor = Actor.remote()
    pid = meshray.get(actor.pid.remote())
    os.kill(pid, signal.SIGSTOP)
    ref = actor.pid.remote()
    meshray.kill(actor)
    with pytest.raises(meshray.exceptions.RayActorError):
        meshray.get(ref, timeout=50)
    wait_gone(pid)


def test_frozen_worker_does_not_stop_the_shutdown(fresh, tmp_path, root):
    fresh(num_cpus=2)
    journal = Journal(tmp_path / "pids")

    @meshray.remote
    def block():
        journal.write(os.getpid())
        signal.pause()

    ref = block.remote()
    pid = int(journal.wait_for(1)[0])
    os.kill(pid, signal.SIGSTOP)
    meshray.shutdown()
    wait_gone(pid)
    assert ref is not None


def test_idle_workers_are_killed_between_bursts(fresh):
    fresh(num_cpus=2)
    for burst in range(4):
        pids = set(meshray.get([meshray.remote(lambda: os.getpid()).remote() for _ in range(50)], timeout=50))
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        wanted = [100 * burst + i for i in range(50)]
        assert meshray.get([identity.remote(i) for i in wanted], timeout=50) == wanted


def test_zygote_dies_and_workers_still_start(fresh, root):
    fresh(num_cpus=2)
    meshray.get(identity.remote(1))
    zygotes = system_pids(root, "zygote") or [pid for pid, line in processes_of(root).items() if "zygote" in line]
    assert zygotes
    for pid in zygotes:
        os.kill(pid, signal.SIGKILL)

    @meshray.remote(max_restarts=-1, max_task_retries=-1)  # a worker that dies with the zygote may have taken one over
    class Actor:
        def ping(self):
            return 1

    actors = [Actor.remote() for _ in range(4)]
    assert meshray.get([actor.ping.remote() for actor in actors], timeout=50) == [1] * 4


@pytest.mark.parametrize("service", ["shard", "scheduler", "zygote"])
def test_killed_service_is_started_again(fresh, root, service):
    fresh(num_cpus=2)

    @meshray.remote(max_restarts=-1, max_task_retries=-1)
    class Counter:
        def one_more(self, x):
            return x + 1

    counter = Counter.remote()
    for value in range(3):
        [victim] = system_pids(root, service)
        os.kill(victim, signal.SIGKILL)
        fresh_function = meshray.remote(lambda value=value: value)
        assert meshray.get([fresh_function.remote() for _ in range(20)], timeout=50) == [value] * 20
        assert meshray.get(counter.one_more.remote(value), timeout=50) == value + 1
        wait_until(lambda victim=victim: system_pids(root, service) not in ([], [victim]), what=f"another {service}")
        assert len(meshray.nodes()) == 1


def test_service_that_ends_again_and_again_ends_the_node(fresh, root):
    fresh(num_cpus=1)
    [node] = system_pids(root, "node")
    ended = set()
    while is_alive(node) and len(ended) < 10:
        living = [pid for pid in system_pids(root, "scheduler") if pid not in ended]
        for pid in living:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            ended.add(pid)
        wait_until(lambda: not is_alive(node) or set(system_pids(root, "scheduler")) - ended)
    assert len(ended) == 6
    with pytest.raises(meshray.exceptions.MeshrayError, match="scheduler-0"):
        meshray.get(identity.remote(1), timeout=30)


def live_schedulers(root):
    """Pids of the replicas that run, also of those that were started again."""
    return [pid for pid, line in processes_of(root).items() if "scheduler" in line]


def spill_over(directory, count=4):
    """Run so many tasks at once that both nodes are needed; return where they ran."""
    gate, journal = Gate(directory / "gate"), Journal(directory / "journal")

    @meshray.remote
    def meet():
        journal.write("in")
        gate.wait()
        return meshray.get_runtime_context().get_node_id()

    refs = [meet.remote() for _ in range(count)]
    journal.wait_for(count, 50)
    gate.open()
    return set(meshray.get(refs, timeout=50))


def test_killed_global_scheduler_loses_nothing(two_nodes, root, tmp_path):
    (tmp_path / "before").mkdir()
    (tmp_path / "after").mkdir()
    assert len(spill_over(tmp_path / "before")) == 2
    schedulers = system_pids(root, "scheduler")
    assert schedulers
    os.kill(schedulers[0], signal.SIGKILL)
    wait_gone(schedulers[0])
    assert len(spill_over(tmp_path / "after")) == 2


def test_frozen_global_scheduler_is_passed_by(two_nodes, root, tmp_path):
    (tmp_path / "frozen").mkdir()
    (tmp_path / "thawed").mkdir()
    schedulers = system_pids(root, "scheduler")
    assert schedulers
    os.kill(schedulers[0], signal.SIGSTOP)
    try:
        assert meshray.get([identity.remote(i) for i in range(50)], timeout=50) == list(range(50))
        if len(schedulers) > 1:
            assert len(spill_over(tmp_path / "frozen")) == 2
    finally:
        os.kill(schedulers[0], signal.SIGCONT)
    assert is_alive(schedulers[0])
    assert len(spill_over(tmp_path / "thawed")) == 2


def test_replicas_that_are_killed_and_frozen_all_the_time_change_no_result(two_nodes, root, tmp_path):
    """Kill one and freeze the other for longer than the suspicion time, thaw it; then the other way round."""
    for victims in range(2):
        directory = tmp_path / str(victims)
        directory.mkdir()
        replicas = sorted(live_schedulers(root))
        assert len(replicas) == 2, "two replicas by default"
        os.kill(replicas[victims], signal.SIGSTOP)
        there = identity.options(resources={"right": 0.01})
        refs = [there.remote(i) for i in range(200)]
        os.kill(replicas[1 - victims], signal.SIGKILL)
        wait_gone(replicas[1 - victims])
        assert meshray.get(refs, timeout=50) == list(range(200))
        here = meshray.get([identity.remote(i) for i in range(2000)], timeout=50)
        assert here == list(range(2000)), "what stays here needs no replica"
        wait_until(lambda old=set(replicas): len([pid for pid in live_schedulers(root) if pid not in old]) == 1)
        frozen_since = time.monotonic()
        wait_until(lambda since=frozen_since: time.monotonic() - since > 3.5, what="longer than the suspicion time")
        os.kill(replicas[victims], signal.SIGCONT)
        assert len(spill_over(directory)) == 2
        assert {row["Alive"] for row in meshray.nodes()} == {True}, "the thawed replica suspects nobody"


def test_replicas_that_start_again_and_again_change_no_result(two_nodes, root, tmp_path):
    """Nine times one of the two replicas is killed or frozen in the middle of work that stays, spills over and nests:
    more often than a node survives the end of what has no replicas."""
    @meshray.remote
    def nested(number):
        return sum(meshray.get([identity.remote(number + index) for index in range(4)]))

    for turn in range(9):
        replicas = live_schedulers(root)
        assert len(replicas) == 2
        victim = sorted(replicas)[turn % 2]
        directory = tmp_path / str(turn)
        directory.mkdir()
        there = [identity.options(resources={"right": 0.01}).remote(number) for number in range(100)]
        trees = [nested.remote(number) for number in range(20)]
        if turn % 3 == 2:
            os.kill(victim, signal.SIGSTOP)
        else:
            os.kill(victim, signal.SIGKILL)
            wait_gone(victim)
        here = [identity.remote(number) for number in range(500)]
        assert meshray.get(there, timeout=50) == list(range(100))
        assert meshray.get(trees, timeout=50) == [4 * number + 6 for number in range(20)]
        assert meshray.get(here, timeout=50) == list(range(500))
        assert len(spill_over(directory)) == 2, "one replica is enough to spill over"
        if turn % 3 == 2:
            os.kill(victim, signal.SIGCONT)
        wait_until(lambda: len(live_schedulers(root)) == 2, what="two replicas")


def test_frozen_node_comes_back(two_nodes, root):
    nodes = {row["NodeID"] for row in meshray.nodes()}
    assert len(nodes) == 2
    refs = [identity.options(resources={"right": 1}).remote(i) for i in range(100)]
    victim = next(json.loads(path.read_text())["pid"] for path in Path(root).glob("*/right/node.json"))
    os.kill(victim, signal.SIGSTOP)
    here = identity.options(resources={"left": 1})
    assert meshray.get([here.remote(i) for i in range(50)], timeout=50) == list(range(50))
    os.kill(victim, signal.SIGCONT)
    assert meshray.get(refs, timeout=50) == list(range(100))
