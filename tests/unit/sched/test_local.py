"""The local scheduler, event by event."""

from __future__ import annotations

from typing import Any

from meshray import config
from meshray.machine import Disconnect, Received, Tick
from meshray.messages.node import (
    ActorSpec,
    CreateActor,
    Death,
    DeclareDemand,
    Demand,
    LeaseGranted,
    LeaseLost,
    LeaseReclaimed,
    ReassignLeases,
    ReturnLease,
    Strategy,
    WorkerBlocked,
    WorkerUnblocked,
)
from meshray.messages.objects import HoldersDied, ReleaseObjects
from meshray.messages.sched import (
    ClusterView,
    DemandPlaced,
    NodeGone,
    NodeLoad,
    PlaceDemand,
    ReassignRemoteLeases,
    RemoteLeaseGranted,
    RequestRemoteLease,
    ReturnRemoteLease,
)
from meshray.messages.tasks import TaskEntry
from meshray.sched.events import (
    ActorStateChanged,
    DriverGone,
    StartWorkers,
    StopWorker,
    WorkerDied,
    WorkerLabelled,
    WorkerStartFailed,
)
from meshray.sched.local import WAITING_TICK_NS
from tests.unit.sched.bench import CPU, MS, Bench, U, sent


def started(effects: list[Any]) -> int:
    return sum(effect.count for effect in effects if isinstance(effect, StartWorkers))


def test_workers_start_for_what_resources_justify_and_leases_follow() -> None:
    bench = Bench()
    bench.driver("d")
    assert started(bench.wants("d", 10)) == 2
    assert started(bench.wants("d", 10)) == 0, "the same word changes nothing"
    (grant,) = sent(bench.worker(), LeaseGranted)
    assert (grant.worker, grant.endpoint, grant.node, grant.pid) == ("w1", "ipc://w1", "node-1", 1)
    assert len(sent(bench.worker(), LeaseGranted)) == 1
    assert bench.machine.statistics()["leases_missing"] == 8
    (again,) = sent(bench.says("d", ReturnLease([grant.lease])), LeaseGranted)
    assert again.worker == "w1"
    assert again.lease != grant.lease


def test_count_zero_cancels_and_returned_workers_stay() -> None:
    bench = Bench()
    bench.driver("d")
    bench.wants("d", 1)
    (grant,) = sent(bench.worker(), LeaseGranted)
    bench.wants("d", 0)
    bench.says("d", ReturnLease([grant.lease, grant.lease, 12345]))
    assert bench.machine.statistics()["workers_idle"] == 1
    assert bench.machine.describe()["demands"] == []


def test_a_stranger_cannot_return_or_demand() -> None:
    bench = Bench()
    bench.driver("d")
    bench.driver("e")
    bench.wants("d", 1)
    (grant,) = sent(bench.worker(), LeaseGranted)
    bench.says("e", ReturnLease([grant.lease]))
    bench.wants("nobody", 3)
    assert bench.event(Received(b"d", ReleaseObjects([]))) == []
    assert bench.machine.statistics()["leases"] == 1


def test_a_lost_worker_is_told_and_replaced() -> None:
    bench = Bench()
    bench.driver("d")
    bench.wants("d", 1)
    (grant,) = sent(bench.worker(), LeaseGranted)
    death = Death("w1", 1, "node-1", signal=9)
    effects = bench.event(WorkerDied("w1", death))
    assert sent(effects, LeaseLost) == [LeaseLost(grant.lease, death)]
    assert started(effects) == 1


def test_a_waiting_task_lends_its_cpu_and_takes_it_back() -> None:
    bench = Bench(cpus=1)
    bench.driver("d")
    bench.wants("d", 1)
    bench.worker()
    asked_back = sent(bench.wants("w1", 1), LeaseReclaimed)
    assert started(bench.says("w1", WorkerBlocked())) == 1
    assert len(sent(bench.worker(), LeaseGranted)) == 1
    bench.says("w1", WorkerUnblocked())
    assert bench.machine.describe()["resources"][0]["oversubscribed"] == U
    bench.now_ns += 60 * MS
    asked_back += sent(bench.event(Tick()), LeaseReclaimed)
    assert len(asked_back) == len({message.lease for message in asked_back}) == 2, "each is asked once to make room"


def test_a_driver_that_goes_takes_its_workers_along() -> None:
    bench = Bench()
    bench.driver("d")
    bench.wants("d", 2)
    bench.worker()
    effects = bench.event(DriverGone("d"))
    assert [(stop.name, stop.kill) for stop in effects if isinstance(stop, StopWorker)] == [("w1", True)]
    bench.event(WorkerDied("w1", Death("w1", 1, "node-1")))
    assert bench.machine.describe()["resources"][0]["available"] == 2 * U


def test_leases_without_resources_are_granted_beside_full_cpus() -> None:
    bench = Bench(cpus=1)
    bench.driver("d")
    bench.wants("d", 1)
    bench.worker()
    assert started(bench.wants("d", 3, {}, klass=1)) == 3
    assert len(sent(bench.worker(), LeaseGranted)) == 1
    assert bench.machine.describe()["leases"]


def test_a_node_that_was_given_up_voids_what_it_lent() -> None:
    bench = Bench()
    bench.says("node-2", RequestRemoteLease("d", "node-2", "job", Demand(0, CPU, 1)))
    (grant,) = sent(bench.worker(), RemoteLeaseGranted)
    assert (grant.owner, grant.worker) == ("d", "w1")
    effects = bench.says(">scheduler", NodeGone("node-1"))
    assert [message.lease for message in sent(effects, LeaseLost)] == [grant.lease]
    assert [(stop.name, stop.kill) for stop in effects if isinstance(stop, StopWorker)] == [("w1", True)]
    assert bench.machine.describe()["demands"] == []


def test_an_asking_node_that_is_gone_loses_its_leases() -> None:
    bench = Bench()
    bench.says("node-2", RequestRemoteLease("d", "node-2", "job", Demand(0, CPU, 1)))
    bench.worker()
    effects = bench.says(">scheduler", NodeGone("node-2"))
    assert [(stop.name, stop.kill) for stop in effects if isinstance(stop, StopWorker)] == [("w1", True)]
    assert bench.machine.statistics()["owners"] == 1, "only the worker's own session is left"


def test_a_failed_start_pauses() -> None:
    bench = Bench()
    bench.driver("d")
    assert started(bench.wants("d", 1)) == 1
    assert started(bench.event(WorkerStartFailed(1, "no memory"))) == 0
    bench.now_ns += 200 * MS
    assert started(bench.event(Tick())) == 1


def test_workers_that_fail_together_are_one_failure() -> None:
    bench = Bench(cpus=8)
    bench.driver("d")
    count = started(bench.wants("d", 8))
    assert count > 3
    for _ in range(count):  # the zygote died
        assert started(bench.event(WorkerStartFailed(1, "signal 9"))) == 0
    bench.now_ns += 200 * MS
    assert started(bench.event(Tick())) == count
    bench.event(WorkerStartFailed(1, "signal 9"))
    bench.now_ns += 150 * MS
    assert started(bench.event(Tick())) == 0, "after a second failure in a row the pause is longer"


def test_idle_workers_above_the_cpus_end() -> None:
    bench = Bench(cpus=1)
    for _ in range(3):
        bench.worker()
    bench.now_ns += config.WORKER_IDLE_NS
    effects = bench.event(Tick())
    assert [stop.name for stop in effects if isinstance(stop, StopWorker)] == ["w1", "w2"]
    assert not any(stop.kill for stop in effects if isinstance(stop, StopWorker))


def test_prestarted_workers_and_rhythm() -> None:
    bench = Bench(prestart=2)
    assert bench.machine.deadline_ns() == 0
    assert started(bench.event(Tick())) == 2
    assert bench.machine.deadline_ns() > bench.now_ns


def actor_spec(name: bytes, owner: str, *, detached: bool = False) -> ActorSpec:
    return ActorSpec(name, owner, f"ipc://{owner}", "job", b"class", "Class", TaskEntry(1, 1), {}, {},
                     detached=detached)


def test_actors_end_with_their_creator_unless_detached() -> None:
    bench = Bench()
    bench.driver("d")
    bench.worker()
    for name, owner, detached in ((b"a", "w1", False), (b"b", "w1", True), (b"c", "elsewhere", False)):
        bench.says("d", CreateActor(actor_spec(name, owner, detached=detached)))

    def ended(effects: list[Any]) -> list[bytes]:
        return [effect.spec.actor for effect in effects
                if isinstance(effect, ActorStateChanged) and effect.state == "dead"]

    assert ended(bench.event(WorkerDied("w1", Death("w1", 1, "node-1")))) == [b"a"]
    assert ended(bench.says("node-2", HoldersDied(["elsewhere", "nobody"]))) == [b"c"]


def borrowing_bench() -> Bench:
    """A node without CPUs whose driver was lent two workers by another node, after one word from a replica."""
    bench = Bench(cpus=0, schedulers={"s1": "ipc://s1"})
    bench.driver("d1")
    effects = bench.wants("d1", 2)
    request = sent(effects, PlaceDemand)[0].request
    bench.says(">s1", DemandPlaced(request, [("node-2", "ipc://node-2", 2)]))
    for number in (1, 2):
        bench.says("node-2", RemoteLeaseGranted("d1", 0, number, f"w{number}", "ipc://w", "node-2", number))
    return bench


def test_leases_that_end_together_are_returned_in_one_message_that_takes_the_demand_back() -> None:
    bench = borrowing_bench()
    bench.wants("d1", 0)
    effects = bench.says("d1", ReturnLease([1, 2]))
    assert sent(effects, ReturnRemoteLease) == [ReturnRemoteLease([1, 2], False, "d1", 0, 0)]
    assert sent(effects, RequestRemoteLease) == []


def test_a_returned_lease_that_is_still_wanted_is_sought_again() -> None:
    bench = borrowing_bench()
    effects = bench.says("d1", ReturnLease([1]))
    assert sent(effects, ReturnRemoteLease) == [ReturnRemoteLease([1], False, "d1", 0, 2)]


def test_a_lease_that_comes_back_from_another_node_takes_its_demand_along() -> None:
    bench = Bench(cpus=1)
    bench.worker()
    asked = RequestRemoteLease("far", "node-2", "job", Demand(3, CPU, 1))
    (granted,) = sent(bench.says("node-2", asked), RemoteLeaseGranted)
    effects = bench.says("node-2", ReturnRemoteLease([granted.lease], False, "far", 3, 0))
    assert sent(effects, RemoteLeaseGranted) == []
    assert bench.machine.statistics()["owners"] == 1, "only the worker's session is known"
    (granted,) = sent(bench.says("node-2", asked), RemoteLeaseGranted)
    effects = bench.says("node-2", ReturnRemoteLease([granted.lease], False, "far", 3, 1))
    assert len(sent(effects, RemoteLeaseGranted)) == 1, "it is still asked for"


def test_leases_of_this_node_serve_another_class_of_their_session() -> None:
    bench = Bench()
    bench.driver("d")
    bench.worker()
    bench.worker()
    granted = [grant.lease for grant in sent(bench.wants("d", 2, klass=0), LeaseGranted)]
    bench.says("d", DeclareDemand([Demand(1, CPU, 1, "other")]))
    effects = bench.says("d", ReassignLeases(granted[:1], 1, 0, 1))
    assert [effect.label for effect in effects if isinstance(effect, WorkerLabelled)] == ["other"]
    rows = {row["lease"]: row["class"] for row in bench.machine.describe()["leases"]}
    assert rows == {granted[0]: 1, granted[1]: 0}
    assert bench.machine.statistics()["leases_missing"] == 0
    bench.says("d", ReassignLeases(granted, 7, 0, 0))
    bench.says("d", ReassignLeases([12345], 1, 0, 1))
    assert bench.machine.statistics()["leases"] == 2, "what cannot be is ignored"
    bench.says("d", DeclareDemand([Demand(2, {"CPU": 2 * U}, 1)]))
    bench.says("d", ReassignLeases(granted[1:], 2, 0, 0))
    assert bench.machine.statistics()["leases_missing"] == 1, "a larger class cannot use it"
    bench.says("d", DeclareDemand([Demand(klass, CPU, 0) for klass in range(3)]))
    bench.says("d", ReturnLease(granted))
    assert bench.machine.statistics()["leases"] == 0


def test_leases_of_another_node_serve_another_class_and_that_node_is_told_once() -> None:
    bench = borrowing_bench()
    bench.says("d1", DeclareDemand([Demand(1, CPU, 1, "other")]))
    effects = bench.says("d1", ReassignLeases([1, 2], 1, 0, 0))
    assert sent(effects, ReassignRemoteLeases) == [
        ReassignRemoteLeases("d1", [1, 2], 0, 0, Demand(1, CPU, 2, "other"), True)]
    assert sent(bench.wants("d1", 0), RequestRemoteLease) == [], "nothing is asked for there any longer"
    effects = bench.says("d1", ReturnLease([1]))
    assert sent(effects, ReturnRemoteLease) == [ReturnRemoteLease([1], False, "d1", 1, 1)]


def test_a_class_whose_leases_cannot_move_counts_as_its_session_said() -> None:
    bench = Bench(cpus=1)
    bench.driver("d")
    bench.worker()
    granted = [grant.lease for grant in sent(bench.wants("d", 1, klass=0), LeaseGranted)]
    bench.says("d", ReassignLeases(granted, 7, 0, 0))
    assert bench.machine.statistics()["leases"] == 1, "nobody knows class 7"
    assert sent(bench.says("d", ReturnLease(granted)), LeaseGranted) == [], "class 0 wants nothing any longer"


def test_a_worker_that_nobody_needs_goes_back_with_what_is_wanted_now() -> None:
    bench = borrowing_bench()
    bench.wants("d1", 0)
    bench.says("d1", ReturnLease([1, 2]))
    effects = bench.says("node-2", RemoteLeaseGranted("d1", 0, 3, "w3", "ipc://w", "node-2", 3))
    assert sent(effects, ReturnRemoteLease) == [ReturnRemoteLease([3], False, "d1", 0, 0)], "or it is lent for ever"


def test_lent_workers_serve_another_class_of_their_owner() -> None:
    bench = Bench(cpus=1)
    bench.worker()
    (granted,) = sent(bench.says("node-2", RequestRemoteLease("far", "node-2", "job", Demand(3, CPU, 1))),
                      RemoteLeaseGranted)
    moved = ReassignRemoteLeases("far", [granted.lease], 3, 0, Demand(4, CPU, 1, "other"), False)
    bench.says("node-9", moved)
    assert [row["class"] for row in bench.machine.describe()["leases"]] == [3], "only the node that asked may say so"
    effects = bench.says("node-2", moved)
    assert sent(effects, RemoteLeaseGranted) == []
    assert [row["class"] for row in bench.machine.describe()["leases"]] == [4]
    effects = bench.says("node-2", ReturnRemoteLease([granted.lease], False, "far", 4, 0))
    assert bench.machine.statistics()["owners"] == 1, "only the worker's session is known"


def test_the_end_of_a_node_is_told_by_each_replica_and_taken_in_once() -> None:
    bench = Bench()
    load = NodeLoad("node-2", "b", "ipc://node-2", CPU, CPU)
    bench.says(">s1", ClusterView([load, NodeLoad("node-3", "c", "ipc://node-3", CPU, CPU)], []))
    bench.worker()
    (granted,) = sent(bench.says("node-2", RequestRemoteLease("far", "node-2", "job", Demand(3, CPU, 1))),
                      RemoteLeaseGranted)
    assert granted.owner == "far"
    effects = bench.says(">s1", NodeGone("node-2"))
    assert [type(effect) for effect in effects if not isinstance(effect, StartWorkers)] == [Disconnect, StopWorker]
    assert bench.says(">s2", NodeGone("node-2")) == []


def test_what_is_spread_one_by_one_does_not_wait_after_its_turn_here() -> None:
    bench = Bench(2, schedulers={"s1": "ipc://s1"})
    bench.says(">s1", ClusterView([NodeLoad("node-2", "node-2", "ipc://node-2", CPU, {})], []))
    bench.worker()
    bench.driver("d")
    for _ in range(3):
        (asked,) = sent(bench.says("d", DeclareDemand([Demand(0, CPU, 1, strategy=Strategy("spread"))])), PlaceDemand)
        (granted,) = sent(bench.says(">s1", DemandPlaced(asked.request, [("node-1", "ipc://node-1", 1)])), LeaseGranted)
        bench.says("d", DeclareDemand([Demand(0, CPU, 0, strategy=Strategy("spread"))]))
        bench.says("d", ReturnLease([granted.lease]))


def test_who_returns_a_lease_to_another_node_gets_at_once_what_is_free_here() -> None:
    bench = Bench(1, schedulers={"s1": "ipc://s1"})
    bench.says(">s1", ClusterView([NodeLoad("node-2", "node-2", "ipc://node-2", CPU, {})], []))
    bench.worker()
    for name in ("d1", "d2"):
        bench.driver(name)
    (mine,) = sent(bench.wants("d2", 1), LeaseGranted)
    effects = bench.says("d1", DeclareDemand([Demand(0, CPU, 1, backlog=100)]))
    bench.says(">s1", DemandPlaced(sent(effects, PlaceDemand)[0].request, [("node-2", "ipc://node-2", 1)]))
    bench.says("node-2", RemoteLeaseGranted("d1", 0, 77, "w77", "ipc://w77", "node-2", 77))
    bench.now_ns += WAITING_TICK_NS
    bench.event(Tick())
    assert bench.machine.deadline_ns() > bench.now_ns + WAITING_TICK_NS, "nobody waits"
    effects = bench.says("d1", ReturnLease([77]))
    assert bench.machine.deadline_ns() <= bench.now_ns + WAITING_TICK_NS, "somebody waits"
    assert sent(effects, ReturnRemoteLease) and not sent(effects, LeaseGranted)
    bench.says("node-2", RemoteLeaseGranted("d1", 0, 78, "w77", "ipc://w77", "node-2", 77))
    bench.says("d2", DeclareDemand([Demand(0, CPU, 0)]))
    bench.says("d2", ReturnLease([mine.lease]))
    assert len(sent(bench.says("d1", ReturnLease([78])), LeaseGranted)) == 1
