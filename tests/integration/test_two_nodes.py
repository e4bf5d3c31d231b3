"""Two nodes on one machine: spillover, objects and actors across nodes, strategies, several drivers."""

from __future__ import annotations

import os

import numpy
import pytest

import meshray
from meshray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from .support import Gate, Journal, run_script, wait_until

pytestmark = [pytest.mark.usefixtures("two_nodes"), pytest.mark.limit_s(90)]
SIZE = 8 * 2**20


@meshray.remote
def node():
    return meshray.get_runtime_context().get_node_id()


@meshray.remote
def make(value):
    return numpy.full(SIZE, value, dtype=numpy.uint8)


@meshray.remote
def total(array):
    return int(array.sum())


def side(name):
    """The node that has this resource."""
    (found,) = (row["NodeID"] for row in meshray.nodes() if name in row["Resources"])
    return found


def on(name):
    return {"resources": {name: 1}}


def test_both_nodes_are_there():
    rows = meshray.nodes()
    assert len(rows) == 2
    assert all(row["Alive"] for row in rows)
    assert len({row["NodeID"] for row in rows}) == 2
    assert meshray.cluster_resources()["CPU"] == 4
    assert meshray.get_runtime_context().get_node_id() in {row["NodeID"] for row in rows}


def test_custom_resources_decide_the_node():
    refs = [node.options(**on(name)).remote() for name in ("left", "right") for _ in range(5)]
    assert meshray.get(refs, timeout=50) == [side("left")] * 5 + [side("right")] * 5


def test_more_tasks_than_one_node_has_cpus_spill_over(tmp_path):
    gate, journal = Gate(tmp_path / "gate"), Journal(tmp_path / "journal")

    @meshray.remote
    def meet():
        journal.write("in")
        gate.wait()
        return meshray.get_runtime_context().get_node_id()

    refs = [meet.remote() for _ in range(4)]
    journal.wait_for(4, 50)
    gate.open()
    nodes = meshray.get(refs)
    assert sorted(map(nodes.count, set(nodes))) == [2, 2]


def test_tasks_behind_others_that_turn_out_long_spill_over(tmp_path):
    gate, journal = Gate(tmp_path / "gate"), Journal(tmp_path / "journal")

    @meshray.remote
    def meet():
        journal.write("in")
        gate.wait()
        return meshray.get_runtime_context().get_node_id()

    refs = [meet.remote() for _ in range(2)]
    journal.wait_for(2, 50)
    refs += [meet.remote() for _ in range(2)]
    journal.wait_for(4, 50)
    gate.open()
    nodes = meshray.get(refs)
    assert sorted(map(nodes.count, set(nodes))) == [2, 2]


def test_nested_tasks_spill_over_too(tmp_path):
    gate, journal = Gate(tmp_path / "gate"), Journal(tmp_path / "journal")

    @meshray.remote
    def leaf():
        journal.write("in")
        gate.wait()
        return meshray.get_runtime_context().get_node_id()

    @meshray.remote(resources={"right": 1})
    def parent():
        return meshray.get([leaf.remote() for _ in range(4)])

    ref = parent.remote()
    journal.wait_for(4, 50)
    gate.open()
    assert set(meshray.get(ref)) == {side("left"), side("right")}


@pytest.mark.parametrize(("maker", "reader"), [("left", "right"), ("right", "left")])
def test_object_made_on_one_node_is_read_on_the_other(maker, reader):
    ref = make.options(**on(maker)).remote(3)
    assert meshray.get(total.options(**on(reader)).remote(ref), timeout=50) == 3 * SIZE
    assert int(meshray.get(ref, timeout=50).sum()) == 3 * SIZE


def test_put_by_the_driver_is_read_on_both_nodes():
    ref = meshray.put(numpy.full(SIZE, 2, dtype=numpy.uint8))
    refs = [total.options(**on(name)).remote(ref) for name in ("left", "right", "right")]
    assert meshray.get(refs, timeout=50) == [2 * SIZE] * 3


def test_ref_in_a_container_crosses_nodes():
    @meshray.remote
    def inside(box):
        return int(meshray.get(box["ref"])[0])

    @meshray.remote
    def put_there():
        return [meshray.put(numpy.full(SIZE, 5, dtype=numpy.uint8))]

    ref = meshray.get(put_there.options(**on("right")).remote(), timeout=50)[0]
    assert meshray.get(inside.options(**on("left")).remote({"ref": ref}), timeout=50) == 5
    assert meshray.get(inside.options(**on("right")).remote({"ref": ref}), timeout=50) == 5


def test_errors_and_deaths_on_the_other_node():
    @meshray.remote(resources={"right": 1})
    def fail():
        raise KeyError("from afar")

    @meshray.remote(resources={"right": 1}, max_retries=0)
    def die():
        os._exit(9)

    with pytest.raises(KeyError, match="from afar"):
        meshray.get(fail.remote(), timeout=50)
    with pytest.raises(meshray.exceptions.WorkerCrashedError):
        meshray.get(die.remote(), timeout=50)


@meshray.remote
class Counter:
    def __init__(self):
        self.n = 0

    def add(self, n=1):
        self.n += n
        return self.n

    def where(self):
        return meshray.get_runtime_context().get_node_id()

    def size(self, array):
        return array.nbytes


@meshray.remote
def add_through(counter, n):
    return meshray.get(counter.add.remote(n))


def test_actor_on_the_other_node():
    counters = [Counter.options(**on(name)).remote() for name in ("left", "right")]
    assert meshray.get([c.where.remote() for c in counters], timeout=50) == [side("left"), side("right")]
    for counter in counters:
        assert meshray.get([counter.add.remote() for _ in range(100)]) == list(range(1, 101))
        assert meshray.get(add_through.options(**on("right")).remote(counter, 10), timeout=50) == 110
        assert meshray.get(counter.size.remote(meshray.put(numpy.zeros(SIZE, numpy.uint8))), timeout=50) == SIZE


def test_actor_on_the_other_node_is_killed_and_restarted():
    counter = Counter.options(max_restarts=1, **on("right")).remote()
    meshray.get(counter.add.remote(), timeout=50)
    meshray.kill(counter, no_restart=False)

    def again():
        try:
            return meshray.get(counter.add.remote(), timeout=30)
        except meshray.exceptions.RayActorError:
            return None

    assert wait_until(lambda: again() == 1)
    assert meshray.get(counter.where.remote()) == side("right")
    meshray.kill(counter)
    with pytest.raises(meshray.exceptions.RayActorError):
        meshray.get(counter.add.remote(), timeout=30)


def test_node_affinity():
    for name in ("left", "right"):
        strategy = NodeAffinitySchedulingStrategy(node_id=side(name), soft=False)
        refs = [node.options(scheduling_strategy=strategy).remote() for _ in range(4)]
        assert set(meshray.get(refs, timeout=50)) == {side(name)}
        actor = Counter.options(scheduling_strategy=strategy).remote()
        assert meshray.get(actor.where.remote(), timeout=50) == side(name)


@pytest.mark.parametrize(("selector", "where"), [
    ({"side": "right"}, "right"), ({"side": "!right"}, "left"), ({"side": "in(right,up)"}, "right"),
    ({"side": "!in(left,up)"}, "right"), ({"floor": "ground"}, "left"), ({"floor": "!ground"}, "right"),
])
def test_labels_decide_the_node_of_tasks_and_actors(selector, where):
    refs = [node.options(label_selector=selector).remote() for _ in range(6)]
    assert set(meshray.get(refs, timeout=50)) == {side(where)}
    actor = Counter.options(label_selector=selector).remote()
    assert meshray.get(actor.where.remote(), timeout=50) == side(where)


def test_labels_that_no_node_has_are_told(capfd):
    stuck = node.options(label_selector={"side": "up"}).remote()
    assert meshray.wait([stuck], timeout=0) == ([], [stuck])
    said = []

    def told():
        said.append(capfd.readouterr().err)
        return "needs label side=up, the cluster's nodes have side=left or right" in "".join(said)

    wait_until(told)
    with pytest.raises(ValueError, match="label_selector"):
        node.options(label_selector={"side": "in(up"})


def test_affinity_to_a_node_that_is_not_there():
    nowhere = "0" * len(side("left"))
    hard = NodeAffinitySchedulingStrategy(node_id=nowhere, soft=False)
    soft = NodeAffinitySchedulingStrategy(node_id=nowhere, soft=True)
    with pytest.raises(meshray.exceptions.TaskUnschedulableError):
        meshray.get(node.options(scheduling_strategy=hard).remote(), timeout=30)
    lost = Counter.options(scheduling_strategy=hard).remote()
    with pytest.raises(meshray.exceptions.ActorUnschedulableError, match="must run on node"):
        meshray.get(lost.add.remote(), timeout=30)
    assert meshray.get(node.options(scheduling_strategy=soft).remote(), timeout=50) in {side("left"), side("right")}


def test_spread():
    @meshray.remote(num_cpus=1, scheduling_strategy="SPREAD")
    class Spread:
        def where(self):
            return meshray.get_runtime_context().get_node_id()

    actors = [Spread.remote() for _ in range(4)]
    nodes = meshray.get([actor.where.remote() for actor in actors], timeout=50)
    assert sorted(map(nodes.count, set(nodes))) == [2, 2]


def test_demand_too_large_for_every_node_does_not_harm_the_others():
    stuck = node.options(num_cpus=3).remote()
    assert meshray.get([node.remote() for _ in range(10)], timeout=50)
    assert meshray.wait([stuck], timeout=0) == ([], [stuck])


OTHER_DRIVER = """
    import sys
    import meshray

    @meshray.remote
    class Kept:
        def __init__(self):
            self.value = 0

        def add(self):
            self.value += 1
            return self.value

    meshray.init(address="auto", namespace="shared")
    Kept.options(name="short-lived").remote()
    kept = Kept.options(name="kept", lifetime="detached").remote()
    print("value", meshray.get(kept.add.remote()))
    """


def test_detached_actor_outlives_its_driver(tmp_path):
    assert "value 1" in run_script(OTHER_DRIVER, tmp_path)
    kept = meshray.get_actor("kept", namespace="shared")
    assert meshray.get(kept.add.remote(), timeout=50) == 2

    def gone():
        try:
            meshray.get_actor("short-lived", namespace="shared")
        except ValueError:
            return True
        return False

    wait_until(gone)
    meshray.kill(kept)


def test_two_drivers_share_the_cluster_but_not_their_namespaces(tmp_path):
    actor = Counter.options(name="mine").remote()
    meshray.get(actor.add.remote())
    output = run_script("""
        import meshray

        meshray.init(address="auto")
        try:
            meshray.get_actor("mine")
        except ValueError:
            print("hidden")
        print("seen", meshray.get(meshray.get_actor("mine", namespace="tests").add.remote()))
        """, tmp_path)
    assert "hidden" in output
    assert "seen 2" in output


def test_leaving_driver_gives_its_resources_back(tmp_path):
    run_script("""
        import meshray, signal

        @meshray.remote(resources={"left": 4})
        class Holds:
            def ping(self):
                return 1

        meshray.init(address="auto")
        holder = Holds.remote()
        meshray.get(holder.ping.remote())
        blocked = meshray.remote(resources={"right": 4})(lambda: signal.pause()).remote()
        """, tmp_path)
    wait_until(lambda: meshray.available_resources().get("left") == 4)
    wait_until(lambda: meshray.available_resources().get("right") == 4)


PRINTS = """
import meshray

meshray.init(address="auto")

@meshray.remote
def talk(side):
    print("the last words of", side)

meshray.get([talk.options(resources={side: 1}).remote(side) for side in ("left", "right")])
"""


def test_a_driver_hears_what_its_tasks_printed_on_all_nodes_before_it_exits(tmp_path):
    for _ in range(3):
        output = run_script(PRINTS, tmp_path)
        assert "the last words of left" in output
        assert "the last words of right" in output


def test_schedulers_learn_how_fast_objects_come(two_nodes):
    ref = make.options(**on("left")).remote(5)
    assert meshray.get(total.options(**on("right")).remote(ref), timeout=50) == 5 * SIZE

    def measured():
        return {row["name"] for row in two_nodes.status()["nodes"] if row["statistics"]["bytes_per_s"] > 0}

    wait_until(lambda: "right" in measured(), what="a bandwidth at the node that pulled")


def test_short_work_behind_long_work_moves_to_whoever_is_free(tmp_path):
    """Tasks of one function take nothing or for ever: three that wait for the gate hold three of the four CPUs, one or
    two on each node, and what was pushed behind them comes back and runs."""
    gate, journal = Gate(tmp_path / "gate"), Journal(tmp_path / "journal")

    @meshray.remote
    def work(number, waits):
        if waits:
            journal.write("in")
            gate.wait()
        return number

    meshray.get([work.remote(number, False) for number in range(400)], timeout=50)
    long = {100, 350, 700}
    refs = [work.remote(number, number in long) for number in range(1000)]
    short = [ref for number, ref in enumerate(refs) if number not in long]
    assert meshray.get(short, timeout=50) == [number for number in range(1000) if number not in long]
    journal.wait_for(3, 50)
    gate.open()
    assert meshray.get([refs[number] for number in sorted(long)], timeout=50) == sorted(long)
