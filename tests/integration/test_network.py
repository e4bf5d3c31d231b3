"""Two nodes that share nothing but the network: tasks, actors, objects and references cross it, in both directions."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import numpy
import pytest

import meshray
from meshray import config
from meshray.session import current
from meshray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from .networked import Hosts
from .support import wait_gone, wait_until

pytestmark = pytest.mark.limit_s(120)
SIDES = ("left", "right")


@pytest.fixture(scope="module")
def pair() -> Iterator[Hosts]:
    from .support import run_root

    with run_root() as root:
        cluster = Hosts(root)
        try:
            cluster.start()
            yield cluster
        finally:
            meshray.shutdown()
            cluster.stop()


@pytest.fixture(params=SIDES)
def driver(pair, request) -> Iterator[str]:
    """The side on which this process is a driver: each in turn."""
    pair.hosts[request.param].join()
    yield request.param
    meshray.shutdown()


def other(side):
    return SIDES[1 - SIDES.index(side)]


def on(name):
    return {"resources": {name: 1}}


@meshray.remote
def where():
    return meshray.get_runtime_context().get_node_id()


@meshray.remote
def add(a, b):
    return a + b


@meshray.remote
def big(value):
    return numpy.full(2**20, value, dtype=numpy.uint8)


@meshray.remote
def total(array):
    return int(array.sum())


@meshray.remote
class Counter:
    def __init__(self):
        self.value = 0

    def add(self, amount=1):
        self.value += amount
        return self.value

    def pid(self):
        return os.getpid()


def test_tasks_run_on_both_sides(driver):
    ids = {side: {row["NodeID"] for row in meshray.nodes() if side in row["Resources"]} for side in SIDES}
    assert len(ids["left"] | ids["right"]) == 2
    for side in SIDES:
        found = meshray.get([where.options(**on(side)).remote() for _ in range(20)], timeout=30)
        assert set(found) == ids[side]


def test_many_tasks_come_back_in_full(driver):
    there = add.options(**on(other(driver)))
    refs = [there.remote(index, 1) for index in range(2000)]
    assert meshray.get(refs, timeout=60) == list(range(1, 2001))


def test_objects_cross(driver):
    refs = {side: big.options(**on(side)).remote(3) for side in SIDES}
    for side in SIDES:
        assert int(meshray.get(refs[side], timeout=30).sum()) == 3 * 2**20
        assert meshray.get(total.options(**on(other(side))).remote(refs[side]), timeout=30) == 3 * 2**20
    put = meshray.put(numpy.ones(2**20, dtype=numpy.uint8))
    assert meshray.get(total.options(**on(other(driver))).remote(put), timeout=30) == 2**20


def test_references_inside_values_cross(driver):
    @meshray.remote
    def make():
        return [meshray.put(7), big.remote(1)]

    @meshray.remote
    def use(pair):
        return meshray.get(pair[0]) + int(meshray.get(pair[1]).sum())

    made = make.options(**on(other(driver))).remote()
    inner = meshray.get(made, timeout=30)
    assert meshray.get(inner[0], timeout=30) == 7
    assert meshray.get(use.options(**on(driver)).remote(inner), timeout=30) == 7 + 2**20
    assert meshray.get(use.options(**on(other(driver))).remote(inner), timeout=30) == 7 + 2**20


def test_actors_are_called_across(driver):
    counter = Counter.options(**on(other(driver))).remote()
    assert meshray.get([counter.add.remote() for _ in range(300)], timeout=30) == list(range(1, 301))

    @meshray.remote
    def call(handle):
        return meshray.get(handle.add.remote(1000))

    assert meshray.get(call.options(**on(driver)).remote(counter), timeout=30) == 1300


def test_named_actors_are_found_from_the_other_side(pair):
    pair.hosts["left"].join()
    Counter.options(name="shared", lifetime="detached", **on("left")).remote()
    named = meshray.get_actor("shared")
    assert meshray.get(named.add.remote(5), timeout=30) == 5
    meshray.shutdown()
    pair.hosts["right"].join()
    assert meshray.get(meshray.get_actor("shared").add.remote(5), timeout=30) == 10
    meshray.kill(meshray.get_actor("shared"))
    meshray.shutdown()


def test_a_worker_of_the_other_side_that_dies_is_replaced(driver, tmp_path):
    mark = tmp_path / "died"

    @meshray.remote(max_retries=2, **on(other(driver)))
    def die_once():
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "lived"

    assert meshray.get(die_once.remote(), timeout=30) == "lived"
    counter = Counter.options(max_restarts=1, **on(other(driver))).remote()
    pid = meshray.get(counter.pid.remote(), timeout=30)
    os.kill(pid, signal.SIGKILL)
    wait_gone(pid)

    def answers():
        try:
            return meshray.get(counter.pid.remote(), timeout=10) != pid
        except meshray.exceptions.ActorDiedError:
            return False
        except meshray.exceptions.ActorUnavailableError:
            return False

    wait_until(answers, what="the actor lives again")


def test_a_release_that_is_lost_on_the_way_leaks_only_until_the_owner_asks(pair):
    @meshray.remote(num_cpus=0, **on("right"))
    class Owner:
        def make(self):
            return [meshray.put(1)]

        def lent(self):
            return len(current.session().references.holds.held)

    pair.hosts["left"].join()
    owner = Owner.remote()
    box = meshray.get(owner.make.remote(), timeout=30)
    wait_until(lambda: meshray.get(owner.lent.remote(), timeout=30) == 1, what="the driver holds the object")
    holds = current.session().references.holds
    holds.send_releases = holds.released.clear
    del box
    wait_until(lambda: not holds.released, what="the release is lost")
    assert meshray.get(owner.lent.remote(), timeout=30) == 1
    wait_until(lambda: meshray.get(owner.lent.remote(), timeout=30) == 0, 3 * config.HOLDS_DOUBTED_NS / 1e9,
               what="the owner has asked")
    meshray.shutdown()


def test_a_node_that_is_killed_is_given_up(root):
    cluster = Hosts(root)
    try:
        cluster.start()
        cluster.hosts["left"].join()
        right = next(row["NodeID"] for row in meshray.nodes() if "right" in row["Resources"])
        soft = NodeAffinitySchedulingStrategy(right, soft=True)
        assert meshray.get(where.options(scheduling_strategy=soft).remote(), timeout=30) == right
        os.kill(cluster.hosts["right"].file.pid, signal.SIGKILL)
        wait_until(lambda: len([row for row in meshray.nodes() if row["Alive"]]) == 1, what="one node is left")
        assert meshray.get(where.options(scheduling_strategy=soft).remote(), timeout=30) != right
        assert meshray.get([add.remote(1, index) for index in range(50)], timeout=30) == list(range(1, 51))
    finally:
        meshray.shutdown()
        cluster.stop()
