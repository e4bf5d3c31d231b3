"""Actors under the simulated cluster: placed, spilled, restarted, killed, ended with their driver."""

from __future__ import annotations

from meshray import failures
from meshray.errors import ActorUnschedulableError
from meshray.machine import Received
from meshray.messages.node import ActorSpec, ActorStarted, CreateActor, KillActor, Strategy
from meshray.messages.tasks import TaskEntry
from meshray.sched.events import DriverGone, WorkerLeft
from tests.sim.cluster import UNIT, Cluster
from tests.sim.network import MS, S
from tests.sim.sim_sessions import Owner, SimWorker, Task

CPU = {"CPU": UNIT}


def spec(number: int, driver: Owner, *, run: dict[str, int] | None = None, place: dict[str, int] | None = None,
         max_restarts: int = 0, detached: bool = False, strategy: Strategy | None = None) -> ActorSpec:
    return ActorSpec(number.to_bytes(16, "big"), driver.name, "sim://", f"job-{driver.name}", b"class", "Counter",
                     TaskEntry(0, 0), place or CPU, run or {}, max_restarts=max_restarts, detached=detached,
                     strategy=strategy or Strategy())


def create(cluster: Cluster, driver: Owner, wanted: ActorSpec) -> None:
    driver.to_node(CreateActor(wanted))


def story(cluster: Cluster, wanted: ActorSpec) -> list[tuple[str, int]]:
    return [(change.state, change.incarnation) for change in cluster.actor_states if change.spec.actor == wanted.actor]


def worker_of(cluster: Cluster, wanted: ActorSpec) -> SimWorker:
    (worker,) = [worker for worker in cluster.workers() if worker.actor == wanted.actor]
    return worker


def ready(*totals: dict[str, int], seed: int = 3) -> tuple[Cluster, Owner]:
    cluster = Cluster(seed, list(totals))
    cluster.rest(300 * MS)
    return cluster, cluster.driver("node-0")


def test_life_and_restarts() -> None:
    cluster, driver = ready(CPU)
    wanted = spec(1, driver, max_restarts=1)
    create(cluster, driver, wanted)
    create(cluster, driver, wanted)
    cluster.rest(50 * MS)
    assert story(cluster, wanted) == [("pending", 0), ("alive", 0)]
    cluster.crash_worker(worker_of(cluster, wanted))
    cluster.rest(50 * MS)
    assert story(cluster, wanted)[2:] == [("restarting", 1), ("alive", 1)]
    cluster.crash_worker(worker_of(cluster, wanted), signal=11)
    cluster.rest(50 * MS)
    last = cluster.actor_states[-1]
    assert (last.state, last.incarnation, last.restarts_left) == ("dead", 1, 0)
    assert last.death is not None
    assert last.death.signal == 11
    create(cluster, driver, wanted)
    cluster.rest(50 * MS)
    assert cluster.actor_states[-1] is last, "a dead actor does not come back"
    cluster.check_rest()


def test_kill_is_final_or_a_restart() -> None:
    cluster, driver = ready(CPU)
    one, two = spec(1, driver, max_restarts=-1), spec(2, driver, max_restarts=-1)
    create(cluster, driver, one)
    create(cluster, driver, two)
    cluster.rest(50 * MS)
    driver.to_node(KillActor(one.actor))
    driver.to_node(KillActor(two.actor, no_restart=False))
    cluster.rest(50 * MS)
    assert story(cluster, one) == [("pending", 0), ("alive", 0), ("dead", 0)]
    assert story(cluster, two) == [("pending", 0), ("alive", 0), ("restarting", 1), ("alive", 1)]


def test_leaving_ends_an_actor_without_restart() -> None:
    cluster, driver = ready(CPU)
    wanted = spec(1, driver, max_restarts=-1)
    create(cluster, driver, wanted)
    cluster.rest(50 * MS)
    worker = worker_of(cluster, wanted)
    cluster.processes["node-0"].handle(WorkerLeft(worker.name, "ended"))
    cluster.crash_worker(worker, signal=0)
    cluster.rest(50 * MS)
    assert story(cluster, wanted)[-1] == ("dead", 0)
    assert story(cluster, wanted).count(("dead", 0)) == 1


def test_a_worker_that_has_left_keeps_only_its_gpus_until_its_end() -> None:
    for need in (CPU, {"GPU": UNIT}):
        cluster, driver = ready({"CPU": UNIT, "GPU": UNIT})
        first, second = spec(1, driver, run=need, place=need), spec(2, driver, run=need, place=need)
        create(cluster, driver, first)
        cluster.rest(50 * MS)
        worker = worker_of(cluster, first)
        create(cluster, driver, second)
        cluster.rest(50 * MS)
        assert story(cluster, second) == [("pending", 0)]
        cluster.processes["node-0"].handle(WorkerLeft(worker.name, "ended"))
        cluster.rest(50 * MS)
        assert story(cluster, first)[-1] == ("dead", 0)
        assert len(story(cluster, second)) == (2 if need is CPU else 1)
        cluster.crash_worker(worker, signal=0)
        cluster.rest(50 * MS)
        assert story(cluster, second) == [("pending", 0), ("alive", 0)]
        cluster.check_rest()


def test_actors_hold_what_they_run_with_and_spill_when_the_node_is_full() -> None:
    cluster, driver = ready({"CPU": 2 * UNIT}, {"CPU": 2 * UNIT})
    actors = [spec(number, driver, run=CPU) for number in range(4)]
    for wanted in actors:
        create(cluster, driver, wanted)
    cluster.rest(2 * S)
    assert all(story(cluster, wanted)[-1] == ("alive", 0) for wanted in actors)
    assert {len([worker for worker in cluster.workers(node) if worker.actor]) for node in cluster.totals} == {2}
    spilled = next(wanted for wanted in actors if worker_of(cluster, wanted).node == "node-1")
    driver.to_node(KillActor(spilled.actor))
    cluster.rest(100 * MS)
    assert story(cluster, spilled)[-1] == ("dead", 0), "a kill follows the actor"


def spilled(cluster: Cluster, driver: Owner, max_restarts: int) -> ActorSpec:
    """Return an actor of node-0 that lives on node-1."""
    wanted = spec(1, driver, place={"special": UNIT}, max_restarts=max_restarts)
    create(cluster, driver, wanted)
    cluster.rest(S)
    assert worker_of(cluster, wanted).node == "node-1"
    return wanted


def test_actors_of_a_dead_node_start_again_elsewhere_if_they_may() -> None:
    special = {"CPU": UNIT, "special": UNIT}
    for max_restarts in (0, 1):
        cluster, driver = ready(CPU, special)
        wanted = spilled(cluster, driver, max_restarts)
        cluster.crash_node("node-1")
        cluster.add_node("node-2", special)
        cluster.rest(6 * S)
        if max_restarts:
            assert story(cluster, wanted)[-2:] == [("restarting", 1), ("alive", 1)]
            assert worker_of(cluster, wanted).node == "node-2"
            cluster.crash_worker(worker_of(cluster, wanted))
            cluster.rest(S)
        assert story(cluster, wanted)[-1] == ("dead", max_restarts), "restarts are counted across nodes"


def test_restarts_on_another_node_count_when_that_dies() -> None:
    special = {"CPU": UNIT, "special": UNIT}
    cluster, driver = ready(CPU, special)
    wanted = spilled(cluster, driver, 1)
    cluster.crash_worker(worker_of(cluster, wanted))
    cluster.rest(S)
    assert story(cluster, wanted)[-1] == ("alive", 1)
    cluster.crash_node("node-1")
    cluster.add_node("node-2", special)
    cluster.rest(6 * S)
    assert story(cluster, wanted)[-1] == ("dead", 1)


def test_a_node_that_was_given_up_ends_the_actors_that_start_again_elsewhere() -> None:
    special = {"CPU": UNIT, "special": UNIT}
    cluster, driver = ready(CPU, special, special)
    wanted = spec(1, driver, place={"special": UNIT}, max_restarts=1)
    create(cluster, driver, wanted)
    cluster.rest(S)
    frozen = worker_of(cluster, wanted).node
    cluster.processes[frozen].alive = False
    cluster.rest(5 * S)
    cluster.processes[frozen].alive = True
    cluster.processes[frozen].arm()
    cluster.rest(5 * S)
    assert worker_of(cluster, wanted).node != frozen, "it lives once"
    assert story(cluster, wanted)[-1] == ("alive", 1)


def test_a_worker_that_dies_before_the_constructor_costs_no_restart() -> None:
    cluster, driver = ready(CPU)
    wanted = spec(1, driver)
    create(cluster, driver, wanted)
    assert cluster.run(lambda: any(worker.actor for worker in cluster.workers()), S)
    cluster.crash_worker(worker_of(cluster, wanted))
    cluster.rest(S)
    assert story(cluster, wanted)[-2:] == [("restarting", 1), ("alive", 1)]
    cluster.crash_worker(worker_of(cluster, wanted))
    cluster.rest(S)
    assert story(cluster, wanted)[-1] == ("dead", 1)


def test_an_actor_waits_for_tasks_and_gets_its_turn() -> None:
    cluster, driver = ready(CPU)
    driver.submit([Task(CPU, 10 * MS) for _ in range(200)])
    cluster.rest(100 * MS)
    wanted = spec(1, driver)
    create(cluster, driver, wanted)
    cluster.rest(300 * MS)
    assert story(cluster, wanted)[-1] == ("alive", 0)
    assert driver.waiting


def test_end_of_the_driver_ends_its_actors_everywhere_but_detached_ones() -> None:
    cluster, driver = ready(CPU, {"CPU": UNIT, "special": UNIT})
    here, there, stays = spec(1, driver), spec(2, driver, place={"special": UNIT}), spec(3, driver, detached=True)
    for wanted in (here, there, stays):
        create(cluster, driver, wanted)
    cluster.rest(S)
    assert worker_of(cluster, there).node == "node-1"
    cluster.crash_driver(driver)
    cluster.rest(100 * MS)
    assert story(cluster, here)[-1] == story(cluster, there)[-1] == ("dead", 0)
    assert story(cluster, stays)[-1] == ("alive", 0)
    cluster.processes["node-0"].handle(DriverGone(driver.name))


def test_infeasible_actor_warns_once_and_affinity_is_kept() -> None:
    cluster, driver = ready(CPU, CPU)
    large = spec(1, driver, place={"CPU": 8 * UNIT})
    there = spec(2, driver, strategy=Strategy("node", "node-1"))
    create(cluster, driver, large)
    create(cluster, driver, there)
    cluster.rest(6 * S)
    assert cluster.warnings == ["actor Counter cannot be placed and stays pending: needs 8 CPU, the cluster's largest "
                                "node has 1"]
    assert worker_of(cluster, there).node == "node-1"


def test_an_actor_whose_node_does_not_come_is_dead_with_the_reason() -> None:
    cluster, driver = ready(CPU, CPU)
    create(cluster, driver, spec(1, driver, strategy=Strategy("node", "node-9")))
    cluster.rest(6 * S)
    (end,) = [change for change in cluster.actor_states if change.state == "dead"]
    error = failures.decode(failures.encode_death("actor_died", "Counter", end.death))
    assert isinstance(error, ActorUnschedulableError)
    assert str(error) == ("actor Counter cannot be scheduled: must run on node 'node-9', which is not part of the "
                          "cluster")


def test_creation_keeps_workers_ready_but_bounded() -> None:
    cluster, driver = ready({"CPU": 2 * UNIT})
    started_ns = cluster.clock.now_ns
    actors = [spec(number, driver) for number in range(100)]
    for wanted in actors:
        create(cluster, driver, wanted)

    def alive() -> bool:
        return sum(change.state == "alive" for change in cluster.actor_states) == 100

    assert cluster.run(alive, 5 * S)
    assert cluster.clock.now_ns - started_ns < S, "less than 100 actors a second"
    assert cluster.processes["node-0"].machine.statistics()["workers_idle"] <= 16 + 2
    for wanted in actors:
        driver.to_node(KillActor(wanted.actor))
    cluster.rest(15 * S)
    assert cluster.processes["node-0"].machine.statistics()["workers_idle"] <= 2


def test_constructor_error_is_death() -> None:
    cluster, driver = ready(CPU)
    wanted = spec(1, driver, max_restarts=3)
    create(cluster, driver, wanted)
    node = cluster.processes["node-0"]
    assert cluster.run(lambda: any(worker.actor for worker in cluster.workers()), S)
    worker = worker_of(cluster, wanted)
    node.handle(Received(worker.name.encode(), ActorStarted(wanted.actor, 0, b"ValueError")))
    assert cluster.actor_states[-1].state == "dead"
    assert cluster.actor_states[-1].error == b"ValueError"
