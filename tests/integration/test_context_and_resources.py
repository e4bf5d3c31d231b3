"""The runtime context, nodes and resources, GPUs, demand that cannot be met, and the timeline."""

from __future__ import annotations

import json
import os

import pytest

import meshray

from .support import Gate, Journal, wait_until


@pytest.fixture(autouse=True)
def cluster(fresh):
    fresh(num_cpus=4, num_gpus=2, resources={"special": 3})


def context():
    return meshray.get_runtime_context()


def free(name):
    return meshray.available_resources().get(name, 0)


def test_context_of_the_driver():
    here = context()
    assert here.namespace == "tests"
    assert here.get_task_name() is None or here.get_task_name() == ""
    assert here.get_actor_id() is None
    assert here.get_node_id() == meshray.nodes()[0]["NodeID"]
    assert len(here.get_job_id()) >= 8
    assert len({here.get_job_id(), here.get_worker_id(), here.get_node_id()}) == 3


def test_context_of_a_task():
    @meshray.remote
    def look():
        here = context()
        return {"job": here.get_job_id(), "node": here.get_node_id(), "task": here.get_task_id(),
                "worker": here.get_worker_id(), "actor": here.get_actor_id(), "name": here.get_task_name(),
                "namespace": here.namespace, "resources": here.get_assigned_resources()}

    first, second = meshray.get([look.remote(), look.options(name="renamed", num_cpus=0.5).remote()])
    assert first["job"] == context().get_job_id()
    assert first["node"] == context().get_node_id()
    assert first["worker"] != context().get_worker_id()
    assert first["task"] != second["task"]
    assert first["actor"] is None
    assert first["namespace"] == "tests"
    assert "look" in first["name"]
    assert second["name"] == "renamed"
    assert first["resources"]["CPU"] == 1
    assert second["resources"]["CPU"] == 0.5


def test_context_of_an_actor():
    @meshray.remote
    class Looks:
        def __init__(self):
            self.built_by = context().get_actor_id()

        def look(self):
            here = context()
            return self.built_by, here.get_actor_id(), here.get_actor_name(), here.get_task_id()

    actor = Looks.options(name="looker").remote()
    (built, first, name, task), (_, second, _, other) = meshray.get([actor.look.remote(), actor.look.remote()])
    assert built == first == second
    assert name == "looker"
    assert task != other


def test_nodes_and_resources():
    (node,) = meshray.nodes()
    assert node["Alive"] is True
    assert node["NodeID"]
    assert node["Resources"]["CPU"] == 4
    total = meshray.cluster_resources()
    assert (total["CPU"], total["GPU"], total["special"]) == (4, 2, 3)
    assert total["memory"] > 0
    assert total["object_store_memory"] > 0


def test_available_resources_follow_what_runs(tmp_path):
    gate, journal = Gate(tmp_path / "gate"), Journal(tmp_path / "journal")

    @meshray.remote(num_cpus=1.5, resources={"special": 2})
    def hold():
        journal.write("in")
        gate.wait()

    ref = hold.remote()
    journal.wait_for(1)
    wait_until(lambda: free("special") == 1 and free("CPU") == 2.5)
    gate.open()
    meshray.get(ref)
    wait_until(lambda: free("special") == 3 and free("CPU") == 4)


def test_actor_holds_what_it_asked_for():
    @meshray.remote(num_cpus=2, resources={"special": 1})
    class Holds:
        def ping(self):
            return 1

    actor = Holds.remote()
    meshray.get(actor.ping.remote())
    wait_until(lambda: free("CPU") == 2 and free("special") == 2)
    meshray.kill(actor)
    wait_until(lambda: free("CPU") == 4 and free("special") == 3)


def test_resources_limit_how_many_run(tmp_path):
    gate, journal = Gate(tmp_path / "gate"), Journal(tmp_path / "journal")

    @meshray.remote(num_cpus=0, resources={"special": 1})
    def hold(i):
        journal.write(i)
        gate.wait()
        return i

    refs = [hold.remote(i) for i in range(5)]
    journal.wait_for(3)
    assert free("special") == 0 or wait_until(lambda: free("special") == 0)
    assert len(journal.lines()) == 3
    gate.open()
    assert meshray.get(refs) == list(range(5))


def test_gpus_are_assigned_and_visible(tmp_path):
    gates = [Gate(tmp_path / str(i)) for i in range(2)]

    @meshray.remote(num_gpus=1)
    def meet(me):
        gates[me].open()
        gates[1 - me].wait()
        return os.environ["CUDA_VISIBLE_DEVICES"], meshray.get_gpu_ids()

    @meshray.remote(num_gpus=2)
    def both():
        return os.environ["CUDA_VISIBLE_DEVICES"]

    first, second = meshray.get([meet.remote(0), meet.remote(1)], timeout=50)
    assert {first[0], second[0]} == {"0", "1"}
    assert [[int(i) for i in ids] for _, ids in (first, second)] == [[int(first[0])], [int(second[0])]]
    assert sorted(meshray.get(both.remote(), timeout=50).split(",")) == ["0", "1"]


def test_gpu_actor_keeps_its_gpu():
    @meshray.remote(num_gpus=1)
    class OnGpu:
        def visible(self):
            return os.environ["CUDA_VISIBLE_DEVICES"]

    actors = [OnGpu.remote(), OnGpu.remote()]
    assert sorted(meshray.get([actor.visible.remote() for actor in actors], timeout=50)) == ["0", "1"]


def test_memory_is_a_resource(tmp_path):
    total = free("memory")

    @meshray.remote(num_cpus=0, memory=int(total * 0.75))
    def hold(gate, journal):
        journal.write("in")
        gate.wait()

    gates = [Gate(tmp_path / "gate"), Journal(tmp_path / "journal")]
    refs = [hold.remote(*gates) for _ in range(2)]
    gates[1].wait_for(1)
    wait_until(lambda: free("memory") < total / 2)
    assert gates[1].lines() == ["in"]
    gates[0].open()
    meshray.get(refs, timeout=50)


def test_demand_that_cannot_be_met_waits_and_harms_nobody():
    @meshray.remote(resources={"unobtainium": 1})
    def never():
        return 1

    @meshray.remote(num_cpus=1000)
    class Never:
        def ping(self):
            return 1

    stuck, actor = never.remote(), Never.remote()
    ping = actor.ping.remote()
    assert meshray.get(meshray.remote(lambda: 2).remote(), timeout=30) == 2
    assert meshray.wait([stuck, ping], num_returns=2, timeout=0.2) == ([], [stuck, ping])
    meshray.cancel(stuck)
    with pytest.raises(meshray.exceptions.TaskCancelledError):
        meshray.get(stuck, timeout=30)


def test_timeline(tmp_path):
    @meshray.remote
    def traced():
        return 1

    meshray.get([traced.options(name="traced-task").remote() for _ in range(5)])

    def slices():
        return [event for event in meshray.timeline() if event["ph"] == "X" and "traced" in str(event)]

    wait_until(lambda: len(slices()) >= 5)
    assert all(event["dur"] >= 0 and "ts" in event and "pid" in event and "tid" in event for event in slices())
    file = tmp_path / "timeline.json"
    meshray.timeline(str(file))
    assert isinstance(json.loads(file.read_text()), list)
