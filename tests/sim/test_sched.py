"""The schedulers under many seeds: every task runs, nothing is oversubscribed, no lease is lost or doubled.

Repeat one run with ``MESHRAY_SEED=<seed> python -m pytest tests/sim/test_sched.py -k <scenario>``.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from meshray import config
from meshray.messages.node import Strategy
from meshray.sched import policy
from meshray.sched.demands import Demands
from meshray.sched.global_scheduler import YOUNG_NS
from meshray.sched.ledger import Ledger
from tests.sim.cluster import UNIT, Cluster
from tests.sim.network import MS, S
from tests.sim.sim_sessions import Owner, Task

CPU = {"CPU": UNIT}


@contextmanager
def told(seed: int, scenario: str) -> Iterator[None]:
    """Name the seed and the command that repeats the run when it fails."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {error}\nrepeat: MESHRAY_SEED={seed} python -m pytest "
                             f"tests/sim/test_sched.py -k {scenario}") from error


def seeds(count: int) -> list[int]:
    return [int(os.environ["MESHRAY_SEED"])] if "MESHRAY_SEED" in os.environ else list(range(count))


def every_seed(count: int, scenario: Callable[[int], None]) -> None:
    for seed in seeds(count):
        with told(seed, scenario.__name__):
            scenario(seed)


def finish(cluster: Cluster, drivers: list[Owner], limit_ns: int) -> None:
    """Wait until all drivers have all results and everything was returned."""
    done = cluster.run(lambda: not any(driver.waiting for driver in drivers), limit_ns)
    assert done, f"after {limit_ns // MS} ms {[driver.waiting for driver in drivers]} tasks have not run"
    cluster.rest(2 * S)
    cluster.check_rest()


def bag(rng: random.Random, count: int, run_max_ns: int = 40 * MS) -> list[Task]:
    return [Task(CPU, rng.randrange(MS, run_max_ns), function=number % 3) for number in range(count)]


def tree(rng: random.Random, depth: int) -> Task:
    """A task that runs others and waits for them."""
    children = [tree(rng, depth - 1) for _ in range(rng.randrange(1, 4))] if depth else []
    return Task(CPU, rng.randrange(MS, 10 * MS), children, rng.randrange(MS, 5 * MS))


# --- scenarios ---------------------------------------------------------------------------------------------------


def bag_of_tasks(seed: int) -> None:
    """Makespan within twice the ideal plus 300 ms, over which workers start and views spread."""
    rng = random.Random(seed)
    totals = [{"CPU": rng.randrange(1, 5) * UNIT} for _ in range(rng.randrange(2, 7))]
    cluster = Cluster(seed, totals, replicas=rng.randrange(1, 4), duplication=0.1)
    cluster.rest(300 * MS)
    driver = cluster.driver("node-0")
    tasks = bag(rng, rng.randrange(10, 120))
    cpus = sum(total["CPU"] for total in totals) // UNIT
    ideal_ns = max(sum(task.run_ns for task in tasks) // cpus, max(task.run_ns for task in tasks))
    started_ns = cluster.clock.now_ns
    driver.submit(tasks)
    assert cluster.run(lambda: not driver.waiting, 60 * S), f"{driver.waiting} tasks have not run"
    took_ns = cluster.clock.now_ns - started_ns
    assert took_ns <= 2 * ideal_ns + 300 * MS, f"makespan {took_ns // MS} ms, ideal {ideal_ns // MS} ms, {cpus} CPUs"
    finish(cluster, [driver], S)
    assert all(task.runs == 1 for task in tasks)


def nested_tasks(seed: int) -> None:
    """Tasks that wait for tasks finish, however few CPUs there are; heartbeats and placements get lost."""
    rng = random.Random(seed)
    totals = [{"CPU": rng.randrange(1, 3) * UNIT} for _ in range(rng.randrange(1, 4))]
    cluster = Cluster(seed, totals, loss=0.1, duplication=0.1, start_failure=0.05)
    drivers = [cluster.driver(f"node-{rng.randrange(len(totals))}") for _ in range(rng.randrange(1, 3))]
    for driver in drivers:
        driver.submit([tree(rng, 3) for _ in range(rng.randrange(1, 5))])
    finish(cluster, drivers, 120 * S)


def mixed_classes(seed: int) -> None:
    """Several owners with classes of every size, also without resources; the large ones are not starved."""
    rng = random.Random(seed)
    totals = [{"CPU": 4 * UNIT, "GPU": 2 * UNIT}] + [{"CPU": 2 * UNIT} for _ in range(rng.randrange(0, 3))]
    needs = [CPU, {"CPU": UNIT // 2}, {"CPU": 4 * UNIT}, {"CPU": UNIT, "GPU": UNIT // 4}, {"GPU": 2 * UNIT}, {}]
    cluster = Cluster(seed, totals, replicas=2, loss=0.05, duplication=0.1)
    drivers = [cluster.driver(f"node-{rng.randrange(len(totals))}") for _ in range(3)]
    for driver in drivers:
        driver.submit([Task(rng.choice(needs), rng.randrange(MS, 30 * MS),
                            strategy=rng.choice([Strategy(), Strategy(), Strategy("spread")])) for _ in range(30)])
    finish(cluster, drivers, 120 * S)


def crashes(seed: int) -> None:
    """Workers, a node, a driver and a replica crash; what the remaining drivers asked for still runs."""
    rng = random.Random(seed)
    totals = [{"CPU": 2 * UNIT} for _ in range(rng.randrange(3, 6))]
    cluster = Cluster(seed, totals, replicas=2, loss=0.05, duplication=0.05)
    cluster.rest(300 * MS)
    driver, victim = cluster.driver("node-0"), cluster.driver("node-1")
    driver.submit(bag(rng, 60) + [tree(rng, 2) for _ in range(5)])
    victim.submit(bag(rng, 60, 2 * S))
    for _ in range(3):
        cluster.rest(rng.randrange(MS, 60 * MS))
        workers = cluster.workers()
        if workers:
            cluster.crash_worker(rng.choice(workers))
    cluster.crash_driver(victim)
    cluster.crash_node("node-2")
    cluster.processes["scheduler-0"].alive = False
    cluster.rest(rng.randrange(MS, 300 * MS))
    cluster.start_replica("scheduler-0")
    finish(cluster, [driver], 60 * S)


def many_nodes(seed: int) -> None:
    """A hundred nodes share the bag that one driver has."""
    rng = random.Random(seed)
    cluster = Cluster(seed, [{"CPU": 2 * UNIT} for _ in range(100)], replicas=2)
    cluster.rest(300 * MS)
    driver = cluster.driver("node-0")
    tasks = [Task(CPU, rng.randrange(20 * MS, 40 * MS), function=number // 400) for number in range(800)]
    driver.submit(tasks)
    assert cluster.run(lambda: not driver.waiting, 10 * S), f"{driver.waiting} tasks have not run"
    assert len({task.ran_at for task in tasks}) > 50, "the work stayed at home"


def two_drivers(seed: int) -> None:
    """Neither waits for the other's whole queue, and leases do not go round faster than tasks."""
    cluster = Cluster(seed, [CPU], replicas=0)
    first, second = cluster.driver("node-0"), cluster.driver("node-0")
    long, short = [Task(CPU, 10 * MS) for _ in range(400)], [Task(CPU, 10 * MS) for _ in range(5)]
    first.submit(long)
    cluster.rest(100 * MS)
    second.submit(short)
    assert cluster.run(lambda: not second.waiting, S), "the second driver starved"
    assert first.waiting > 200
    assert cluster.network.sent["LeaseReclaimed"] < 20


def near_inputs(seed: int) -> None:
    """Tasks of 2 to 8 ms whose input of 10 MB lies on one of the nodes run there, most of them."""
    rng = random.Random(seed)
    names = [f"node-{index}" for index in range(rng.randrange(2, 5))]
    cluster = Cluster(seed, [{"CPU": 2 * UNIT} for _ in names], replicas=rng.randrange(1, 3), duplication=0.1)
    cluster.rest(300 * MS)
    driver = cluster.driver("node-0")
    tasks = [Task(CPU, rng.randrange(2 * MS, 8 * MS), inputs={rng.choice(names): 10_000_000}) for _ in range(300)]
    driver.submit(tasks)
    finish(cluster, [driver], 20 * S)
    check_near(tasks)


def check_near(tasks: list[Task]) -> None:
    """At least four fifths of the input bytes did not travel: the rest would have waited longer."""
    moved = sum(task.away_bytes(task.ran_at) for task in tasks)
    all_bytes = sum(sum(task.inputs.values()) for task in tasks)
    assert moved * 5 <= all_bytes, f"{moved} of {all_bytes} input bytes travelled"


# --- tests -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scenario", "count"), [
    (bag_of_tasks, 70), (nested_tasks, 60), (two_drivers, 5), (mixed_classes, 40), (crashes, 40), (many_nodes, 1),
    (near_inputs, 30)],
    ids=lambda value: getattr(value, "__name__", ""))
def test_scenario(scenario: Callable[[int], None], count: int) -> None:
    every_seed(count, scenario)


def test_infeasible_demand_is_told_and_runs_when_a_node_joins() -> None:
    cluster = Cluster(1, [CPU, CPU])
    cluster.rest(300 * MS)
    driver = cluster.driver("node-0")
    driver.submit([Task({"GPU": 4 * UNIT}, MS)])
    cluster.rest(3 * S)
    (klass,) = driver.classes.values()
    assert klass.stuck == "needs 4 GPU, the cluster's largest node has 0"
    assert cluster.processes["node-0"].machine.statistics()["infeasible"] == 1
    assert cluster.network.sent["DemandStuck"] == 1, "told once"
    cluster.add_node("node-big", {"GPU": 4 * UNIT})
    assert cluster.run(lambda: not driver.waiting, 3 * S), "the fitting node was not used"
    assert klass.stuck == ""


def test_node_affinity() -> None:
    cluster = Cluster(1, [CPU, CPU, CPU])
    cluster.rest(YOUNG_NS)
    driver = cluster.driver("node-0")
    there = [Task(CPU, MS, strategy=Strategy("node", "node-2")) for _ in range(4)]
    soft = [Task(CPU, MS, strategy=Strategy("node", "node-9", True)) for _ in range(4)]
    hard = [Task(CPU, MS, strategy=Strategy("node", "node-9"))]
    driver.submit(there + soft + hard)
    assert cluster.run(lambda: driver.waiting == 1, 5 * S), f"{driver.waiting} tasks have not run"
    assert {task.ran_at for task in there} == {"node-2"}
    assert not hard[0].done
    assert any("not part of the cluster" in klass.stuck for klass in driver.classes.values())


def test_a_node_given_up_comes_back_clean() -> None:
    """Its leases were lost meanwhile; when it is heard again, what it lent is void and new work may go there."""
    cluster = Cluster(5, [CPU, CPU])
    cluster.rest(300 * MS)
    driver = cluster.driver("node-0")
    tasks = [Task(CPU, 50 * MS) for _ in range(40)]
    driver.submit(tasks)
    cluster.rest(100 * MS)
    cluster.processes["node-1"].alive = False
    cluster.rest(4 * S)
    cluster.processes["node-1"].alive = True
    cluster.processes["node-1"].arm()
    finish(cluster, [driver], 30 * S)
    assert cluster.network.sent["NodeGone"] >= 2, "the others and the node itself are told"


def test_a_node_that_joins_takes_over_work_that_waits() -> None:
    cluster = Cluster(4, [{"CPU": 2 * UNIT}, {"CPU": 2 * UNIT}], replicas=2)
    cluster.rest(300 * MS)
    driver = cluster.driver("node-0")
    rng = random.Random(4)
    tasks = [Task(CPU, rng.choice([MS, 10 * MS, 100 * MS, S]), function=number % 3) for number in range(120)]
    started_ns = cluster.clock.now_ns
    driver.submit(tasks)
    cluster.rest(S)
    cluster.add_node("node-late", {"CPU": 4 * UNIT})
    finish(cluster, [driver], 60 * S)
    left_ns = sum(task.run_ns for task in tasks) - 4 * S
    took_ns = cluster.clock.now_ns - 2 * S - started_ns
    late_ns = sum(task.run_ns for task in tasks if task.ran_at == "node-late")
    assert late_ns > left_ns * 2 // 5, f"{late_ns // MS} of {left_ns // MS} ms ran on the node that joined"
    assert took_ns < S + left_ns // 8 + 2 * S, "the last task, and what it takes to find the node"


def test_short_work_behind_work_that_turns_out_long_goes_where_there_is_room() -> None:
    cluster = Cluster(1, [{"CPU": 2 * UNIT}, {"CPU": 2 * UNIT}], replicas=2)
    cluster.rest(300 * MS)
    driver = cluster.driver("node-0")
    driver.submit([Task(CPU, 5 * S) for _ in range(2)])
    cluster.rest(100 * MS)
    short = [Task(CPU, MS) for _ in range(2)]
    driver.submit(short)
    assert cluster.run(lambda: all(task.done for task in short), S), "the other node has nothing to do"
    assert {task.ran_at for task in short} == {"node-1"}
    finish(cluster, [driver], 6 * S)


def test_a_replica_that_starts_knows_the_cluster_once_every_node_has_spoken() -> None:
    cluster = Cluster(2, [CPU] * 100, replicas=1)
    cluster.rest(S)
    driver = cluster.driver("node-0")
    driver.submit([Task(CPU, S)])
    cluster.rest(200 * MS)
    cluster.start_replica("scheduler-0")
    cluster.rest(config.HEARTBEAT_REST_NS + config.HEARTBEAT_NS)
    replica = cluster.processes["scheduler-0"].machine
    assert replica.statistics()["nodes"] == 100
    tasks = [Task(CPU, 300 * MS) for _ in range(99)]
    driver.submit(tasks)
    assert cluster.run(lambda: all(task.done for task in tasks), S)
    assert len({task.ran_at for task in tasks}) >= 90, "it places on all of them"
    finish(cluster, [driver], 10 * S)


@pytest.mark.parametrize(("owner", "method", "broken", "scenario"), [
    (Ledger, "park", lambda self, allocation: None, nested_tasks),
    (Demands, "returned", lambda self, number, kill=False: None, nested_tasks),
    (policy, "covers", lambda room, need: True, bag_of_tasks),
    (Demands, "reclaim", lambda self, waiters: None, two_drivers),
    (policy, "transfer_ns", lambda input_bytes, node, bytes_per_s: 0, near_inputs),
], ids=["blocked CPU kept", "returned leases forgotten", "resources ignored", "never asked back", "locality off"])
def test_broken_variants_are_caught(owner: object, method: str, broken: Callable[..., object],
                                    scenario: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, method, broken)
    with pytest.raises((AssertionError, KeyError)):
        every_seed(5, scenario)
