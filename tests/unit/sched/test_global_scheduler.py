"""The replica's view: heartbeats in, placements and news out."""

from __future__ import annotations

from meshray import config
from meshray.machine import Received, Send, Tick
from meshray.messages.node import Ping, Pong
from meshray.messages.sched import ClusterView, DemandPlaced, Heartbeat, NodeGone, NodeLoad, PlaceDemand
from meshray.sched.global_scheduler import GlobalScheduler

U = 10_000
CPU = {"CPU": U}


def beat(name: str, sequence: int, free: int = 2, incarnation: int = 0) -> Received:
    load = NodeLoad(name, name, f"ipc://{name}", {"CPU": 2 * U}, {"CPU": free * U}, incarnation=incarnation)
    return Received(name.encode(), Heartbeat(load, sequence))


def places(machine: GlobalScheduler, count: int, now_ns: int = 1) -> list[tuple[str, int]]:
    effects = machine.handle(Received(b"a", PlaceDemand(7, "a", CPU, count)), now_ns)
    answer = effects[0].message
    assert isinstance(answer, DemandPlaced)
    assert answer.request == 7
    return [(node, count) for node, _, count in answer.places]


def test_members_hear_of_each_other_at_once() -> None:
    machine = GlobalScheduler("s")
    machine.handle(beat("a", 1), 0)
    effects = machine.handle(beat("b", 1), 1)
    assert {effect.to for effect in effects} == {b"a", b"b"}
    view = effects[0].message
    assert isinstance(view, ClusterView)
    assert [load.node for load in view.nodes] == ["a", "b"]


def test_placements_count_until_the_next_heartbeat_and_old_ones_are_ignored() -> None:
    machine = GlobalScheduler("s")
    machine.handle(beat("a", 1, free=0), 0)
    machine.handle(beat("b", 5), 0)
    assert places(machine, 2) == [("b", 2)]
    machine.handle(beat("b", 4), 1)
    assert places(machine, 1) == [], "b is full until it says otherwise"
    machine.handle(beat("b", 6), 2)
    assert places(machine, 1) == [("b", 1)]
    machine.handle(beat("b", 1, incarnation=1), 3)
    assert places(machine, 2) == [("b", 2)], "a restarted node counts from one again"


def test_a_silent_node_is_given_up_and_told_when_it_returns() -> None:
    machine = GlobalScheduler("s")
    machine.handle(beat("b", 1), 0)
    machine.handle(beat("a", 1), config.SUSPICION_NS - 1)
    assert machine.deadline_ns() is not None
    effects = machine.handle(Tick(), config.SUSPICION_NS)
    assert Send(b"a", NodeGone("b")) in effects
    machine.check()
    assert machine.handle(beat("b", 2), config.SUSPICION_NS + 1)[0] == Send(b"b", NodeGone("b"))
    assert machine.statistics()["nodes"] == 2
    machine.check()


def test_ping_and_strangers() -> None:
    machine = GlobalScheduler("s")
    assert machine.deadline_ns() is None
    assert machine.handle(Received(b"x", Ping(3)), 0) == [Send(b"x", Pong(3))]
    assert machine.handle(Received(b"x", Pong(3)), 0) == []
    (answer,) = machine.handle(Received(b"a", PlaceDemand(1, "a", CPU, 1)), 0)
    assert answer.message.feasible is False
