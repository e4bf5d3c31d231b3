"""The replica's view: heartbeats in, placements and news out."""

from __future__ import annotations

from typing import Any

import pytest

from meshray import config
from meshray.machine import Received, Send, Tick
from meshray.messages.node import Ping, Pong, Strategy
from meshray.messages.sched import ClusterView, DemandPlaced, Heartbeat, NodeGone, NodeLoad, PlaceDemand
from meshray.sched import members
from meshray.sched.global_scheduler import CHECK_NS, VIEW_AGAIN_NS, VIEW_PAGE_MAX, YOUNG_NS, GlobalScheduler
from meshray.sched.roster import SAMPLE

U = 10_000
CPU = {"CPU": U}


def beat(name: str, sequence: int, free: int = 2, incarnation: int = 0, knows: int = 0,
         labels: dict[str, str] | None = None) -> Received:
    load = NodeLoad(name, name, f"ipc://{name}", {"CPU": 2 * U}, {"CPU": free * U}, incarnation=incarnation,
                    labels=labels or {})
    return Received(name.encode(), Heartbeat(load, sequence, knows))


def placed(machine: GlobalScheduler, demand: PlaceDemand, now_ns: int = 1) -> DemandPlaced:
    (effect,) = machine.handle(Received(b"a", demand), now_ns)
    assert isinstance(effect.message, DemandPlaced)
    return effect.message


def places(machine: GlobalScheduler, count: int, now_ns: int = 1) -> list[tuple[str, int]]:
    effects = machine.handle(Received(b"a", PlaceDemand(7, "a", CPU, count)), now_ns)
    answer = effects[0].message
    assert isinstance(answer, DemandPlaced)
    assert answer.request == 7
    return [(node, count) for node, _, count in answer.places]


def told(effects: list[Any]) -> list[str]:
    """Return the nodes of the views among the effects."""
    views = [effect.message for effect in effects if isinstance(effect.message, ClusterView)]
    return [load.node for view in views for load in view.nodes]


def line(name: str) -> int:
    return members.line(beat(name, 1).message.load)


def test_members_hear_of_each_other_with_their_next_heartbeat() -> None:
    machine = GlobalScheduler("s")
    assert told(machine.handle(beat("a", 1, knows=line("a")), 0)) == [], "it knows itself"
    assert told(machine.handle(beat("b", 1, knows=line("b")), 1)) == ["a", "b"]
    assert told(machine.handle(beat("a", 2, knows=line("a")), 2)) == ["b"], "what is new"
    assert told(machine.handle(beat("a", 3, knows=line("a") ^ line("b")), 3)) == []
    machine.check()


def test_a_node_that_missed_the_news_is_told_again_after_a_while() -> None:
    machine = GlobalScheduler("s")
    machine.handle(beat("a", 1), 0)
    assert told(machine.handle(beat("b", 1, knows=line("b")), 0)) == ["a", "b"]
    assert told(machine.handle(beat("b", 2, knows=line("b")), VIEW_AGAIN_NS - 1)) == []
    assert told(machine.handle(beat("b", 3, knows=line("b")), VIEW_AGAIN_NS)) == ["a", "b"]


def test_a_large_cluster_is_told_page_by_page() -> None:
    machine = GlobalScheduler("s")
    for number in range(3 * VIEW_PAGE_MAX):
        machine.handle(beat(f"n{number}", 1), 0)
    machine.check()
    heard: list[str] = []
    for sequence in range(1, 6):
        page = told(machine.handle(beat("new", sequence), sequence))
        assert len(page) <= VIEW_PAGE_MAX
        heard += page
    assert set(heard) == {"new", *(f"n{number}" for number in range(3 * VIEW_PAGE_MAX))}


def test_a_replica_that_stood_still_suspects_nobody_for_it() -> None:
    machine = GlobalScheduler("s")
    for name in ("a", "b"):
        machine.handle(beat(name, 1), 0)
    late_ns = 10 * config.SUSPICION_NS
    machine.handle(Tick(), late_ns)
    assert machine.statistics()["nodes"] == 2
    for passed_ns in range(CHECK_NS, config.SUSPICION_NS + 1, CHECK_NS):
        machine.handle(beat("a", 1 + passed_ns // CHECK_NS), late_ns + passed_ns - 1)
        effects = machine.handle(Tick(), late_ns + passed_ns)
    assert Send(b"a", NodeGone("b")) in effects, "from then on its clock counts again"


def test_the_cost_of_a_placement_is_bounded() -> None:
    machine = GlobalScheduler("s")
    for number in range(500):
        machine.handle(beat(f"n{number}", 1), 0)
    looked_at = machine._roster.sample(CPU, 1, machine._roster.suitable(CPU, Strategy()))
    assert len(looked_at) <= SAMPLE + 2
    assert sum(count for _, count in places(machine, 1000)) == 1000, "all have room, and one demand may use it"
    machine.handle(beat("a", 1, free=0), 0)
    assert places(machine, 1) == []


def test_labels_and_affinity_decide() -> None:
    machine = GlobalScheduler("s")
    for name, zone in (("a", "east"), ("b", "west"), ("c", "north")):
        machine.handle(beat(name, 1, labels={"zone": zone}), 1)

    def where(strategy: Strategy) -> tuple[list[str], str]:
        answer = placed(machine, PlaceDemand(1, "a", CPU, 1, strategy), 2 * YOUNG_NS)
        return [node for node, _, _ in answer.places], answer.reason

    assert where(Strategy(labels=(("zone", "west"),))) == (["b"], "")
    assert where(Strategy(labels=(("zone", "!in(west,east)"),))) == (["c"], "")
    assert where(Strategy(labels=(("zone", "south"),)))[1].startswith("needs label zone=south")
    assert where(Strategy("node", "c")) == (["c"], "")
    assert where(Strategy("node", "z"))[1] == "must run on node 'z', which is not part of the cluster"
    assert where(Strategy("node", "z", True))[1] == ""
    assert where(Strategy("node", "c", labels=(("zone", "east"),)))[1].startswith("must run on node 'c', which lacks")


@pytest.mark.parametrize("need", [CPU, {}], ids=["what holds a CPU", "what holds nothing"])
def test_what_is_spread_one_by_one_goes_round(need: dict[str, int]) -> None:
    machine = GlobalScheduler("s")
    for name in ("a", "b", "c"):
        machine.handle(beat(name, 1, labels={"gpu": "no"} if name == "c" else {}), 0)
    where = [placed(machine, PlaceDemand(number, "a", need, 1, Strategy("spread"))).places[0][0] for number in range(6)]
    assert sorted(where[:3]) == sorted(where[3:]) == ["a", "b", "c"]


def test_excluded_nodes_are_the_last_resort() -> None:
    machine = GlobalScheduler("s")
    for name in ("b", "c"):
        machine.handle(beat(name, 1), 0)
    assert [place[0] for place in placed(machine, PlaceDemand(1, "a", CPU, 1, exclude=["b"])).places] == ["c"]
    assert [place[0] for place in placed(machine, PlaceDemand(1, "a", CPU, 1, exclude=["b", "c"])).places]


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
    machine.handle(beat("a", 1), CHECK_NS)
    for now_ns in range(CHECK_NS, config.SUSPICION_NS + 1, CHECK_NS):
        assert machine.deadline_ns() is not None
        effects = machine.handle(Tick(), now_ns)
    assert Send(b"a", NodeGone("b")) in effects
    machine.check()
    assert machine.handle(beat("b", 2), config.SUSPICION_NS + 1)[0] == Send(b"b", NodeGone("b"))
    assert machine.statistics()["nodes"] == 2
    machine.check()


def test_ping_and_strangers() -> None:
    machine = GlobalScheduler("s")
    assert machine.deadline_ns() is None
    assert machine.handle(Received(b"x", Ping(3)), 1) == [Send(b"x", Pong(3))]
    assert machine.handle(Received(b"x", Pong(3)), 0) == []
    assert placed(machine, PlaceDemand(1, "a", CPU, 1), YOUNG_NS - 1).feasible, "it may not know everybody yet"
    assert not placed(machine, PlaceDemand(1, "a", CPU, 1), 2 * YOUNG_NS).feasible


def test_a_node_that_repeats_itself_gives_back_what_was_booked_there() -> None:
    machine = GlobalScheduler("s")
    machine.handle(beat("a", 1, free=0), 0)
    machine.handle(beat("b", 1, free=1), 0)
    assert places(machine, 1) == [("b", 1)]
    assert places(machine, 1) == [], "it counts as used"
    machine.handle(beat("b", 2, free=1), 1)
    machine.check()
    assert places(machine, 1) == [("b", 1)], "what was asked for did not get there"
