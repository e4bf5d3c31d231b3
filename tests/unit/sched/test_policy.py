"""The judgements: waiting time, shortage, fairness, spillover, placement."""

from __future__ import annotations

import pytest

from meshray import config, labels
from meshray.messages.node import Strategy
from meshray.sched import policy, reasons
from meshray.sched.policy import Candidate, Holding, Waiter

U = 10_000
CPU = {"CPU": U}
S = config.SECOND_NS
MS = config.MILLISECOND_NS


def node(name: str, cpus: int, free: int | None = None, **more: int) -> Candidate:
    free = cpus if free is None else free
    return Candidate(name, name, f"ipc://{name}", {"CPU": cpus * U}, {"CPU": free * U}, **more)


def counts(placement: policy.Placement) -> dict[str, int]:
    return {name: count for name, _, count in placement.places}


def test_estimated_wait_is_queue_times_mean_plus_transfer() -> None:
    """OSDI'18 s4.2.2: (i) queue size times average task execution, (ii) remote inputs over average bandwidth."""
    assert policy.estimated_wait_ns(10, 5 * MS, 2) == 25 * MS
    assert policy.transfer_ns({"a": 100, "b": 7}, "b", 200) == S // 2
    assert policy.transfer_ns({"a": 100}, "a", 200) == 0


@pytest.mark.parametrize(("need", "reason"), [
    ({"CPU": U}, ""),
    ({"GPU": 4 * U}, "needs 4 GPU, the cluster's largest node has 0"),
    ({"CPU": 25_000}, "needs 2.5 CPU, the cluster's largest node has 2"),
    ({"CPU": 2 * U, "x": U}, "needs 2 CPU, 1 x on one node, and no node has all of them together"),
])
def test_shortage_names_resource_and_numbers(need: dict[str, int], reason: str) -> None:
    assert reasons.shortage(need, [{"CPU": 2 * U}, {"CPU": U, "x": U}]) == reason


def waiter(short: int = 1, *, owner: str = "b", held: int = 0, need: dict[str, int] | None = None) -> Waiter:
    return Waiter((owner, 0), owner, held, held, 0, need or CPU, short)


def holding(lease: int, owner: str = "a", *, since_ns: int = 0, idle: bool = False) -> Holding:
    return Holding(lease, (owner, 0), owner, CPU, since_ns, idle)


def test_idle_leases_are_asked_back_first_and_only_as_many_as_needed() -> None:
    holdings = [holding(1), holding(2), holding(3, "c", idle=True)]
    assert policy.victims([waiter()], holdings, {"CPU": 0}, 0) == [3]
    assert policy.victims([waiter()], holdings, dict(CPU), 0) == [], "one is on its way back already"


def test_shares_are_levelled_and_slices_respected() -> None:
    four = [holding(number) for number in range(4)]
    assert len(policy.victims([waiter(4)], four, {"CPU": 0}, 0)) == 2, "the waiter gets half"
    one = [holding(1, since_ns=S)]
    assert policy.victims([waiter()], one, {"CPU": 0}, S + MS) == [], "a fresh lease of an equal is left alone"
    assert policy.victims([waiter()], one, {"CPU": 0}, 2 * S) == [1], "after a slice it goes round"


def test_nothing_is_asked_back_in_vain() -> None:
    assert policy.victims([waiter(need={"CPU": 4 * U})], [holding(1), holding(2)], {"CPU": 0}, S) == []
    assert policy.victims([waiter(need={"GPU": U})], [holding(1)], {"CPU": 0}, S) == []


def test_short_waits_stay_and_long_ones_spill() -> None:
    assert policy.spill_count(2, backlog=2, mean_ns=MS, running=2) == 0
    assert policy.spill_count(50, backlog=50, mean_ns=MS, running=2) == 50
    assert policy.spill_count(2, backlog=50, mean_ns=MS, running=2) == 2
    assert policy.spill_count(2, backlog=2, mean_ns=MS, running=2, waited_ns=11 * MS) == 2, "the estimate was wrong"


def test_work_stays_while_its_inputs_would_travel_longer_than_it_waits() -> None:
    assert policy.spill_count(50, backlog=50, mean_ns=MS, running=2, travel_ns=20 * MS) == 0
    assert policy.spill_count(50, backlog=100, mean_ns=MS, running=2, travel_ns=20 * MS) == 50
    assert policy.spill_count(1, backlog=1, mean_ns=MS, running=2, away=True) == 1, "it should not be here at all"
    for waited_ns, count in ((200 * MS, 0), (231 * MS, 2)):
        assert policy.spill_count(2, backlog=2, mean_ns=MS, running=2, waited_ns=waited_ns, travel_ns=20 * MS) == count


def test_work_whose_inputs_lie_elsewhere_runs_here_only_when_that_is_faster() -> None:
    def may(waited_ns: int, *, backlog: int = 100, running: int = 2) -> bool:
        return policy.may_run_away(waited_ns, backlog=backlog, mean_ns=MS, running=running, travel_ns=20 * MS)

    assert may(20 * MS)
    assert not may(19 * MS), "it waits for as long as its inputs travel"
    assert not may(S, backlog=30), "it is its turn there before they are here"
    assert may(S, backlog=1, running=0), "it found no place there"


def test_placement_fills_free_slots_and_leaves_the_rest_to_an_able_asker() -> None:
    assert counts(policy.place(CPU, 5, [node("a", 2, 0), node("b", 2), node("c", 1)], asker="a")) == {"b": 2, "c": 1}


def test_placement_queues_where_the_wait_is_lowest_if_the_asker_cannot() -> None:
    nodes = [node("a", 0), node("b", 1, 0, queued=20, mean_task_ns=MS), node("c", 1, 0, queued=2, mean_task_ns=MS)]
    assert counts(policy.place(CPU, 3, nodes, asker="a", asker_able=False)) == {"c": 3}
    assert counts(policy.place(CPU, 3, nodes, asker="a")) == {}


def test_placement_prefers_the_node_that_has_the_inputs() -> None:
    inputs = {"c": 500 * config.MIB}
    assert counts(policy.place(CPU, 1, [node("b", 4), node("c", 1)], input_bytes=inputs)) == {"c": 1}
    assert counts(policy.place(CPU, 3, [node("b", 4), node("c", 1)], input_bytes=inputs, mean_ns=MS)) == {"c": 1}
    assert counts(policy.place(CPU, 3, [node("b", 4), node("c", 1)], input_bytes=inputs, mean_ns=S)) == {
        "b": 2, "c": 1}, "the inputs travel half a second, the work would wait for more"


def test_work_queues_at_its_inputs_if_the_wait_is_shorter_than_their_way() -> None:
    busy = [node("b", 2, 0, queued=4, mean_task_ns=MS)]
    assert counts(policy.place(CPU, 3, busy, asker="a", input_bytes={"b": 50 * config.MIB})) == {"b": 2}
    assert counts(policy.place(CPU, 3, busy, asker="a", input_bytes={"b": 1000})) == {}


def test_placement_books_what_it_gives_out() -> None:
    nodes = [node("b", 2), node("c", 2)]
    first, second = policy.place(CPU, 2, nodes, asker="x"), policy.place(CPU, 2, nodes, asker="x")
    assert set(counts(first)) != set(counts(second))


def test_spread_levels() -> None:
    nodes = [node("b", 4), node("c", 4), node("d", 4)]
    assert counts(policy.place(CPU, 6, nodes, spread=True)) == {"b": 2, "c": 2, "d": 2}
    used = [node("b", 4, 1), node("c", 4, 2), node("d", 4, 2)]
    assert counts(policy.place(CPU, 2, used, spread=True)) == {"c": 1, "d": 1}, "there is more room"


@pytest.mark.parametrize(("need", "selector", "reason"), [
    (CPU, (("zone", "a"),), ""),
    (CPU, (("zone", "c"),), "needs label zone=c, the cluster's nodes have zone=a or b"),
    (CPU, (("rack", "1"),), "needs label rack=1, no node has a label rack"),
    (CPU, (("disk", "ssd"), ("zone", "a")), "needs labels disk=ssd, zone=a on one node, and no node has all of them "
                                            "together"),
    ({"CPU": 8 * U}, (("zone", "a"),), "needs 8 CPU, the cluster's largest node has 2 (of those with the labels asked "
                                       "for)"),
])
def test_what_no_node_can_run_is_refused_with_the_reason(need: dict[str, int], selector: labels.Selector,
                                                         reason: str) -> None:
    kinds = [({"CPU": 2 * U}, {"zone": "a"}), ({"CPU": 9 * U}, {"zone": "b", "disk": "ssd"})]
    strategy = Strategy(labels=selector)
    assert reasons.unsuitable(need, strategy, kinds) == reason
    assert any(policy.suits(*kind, need, strategy) for kind in kinds) == (not reason)


def test_the_one_node_that_is_allowed_may_be_wrong_in_three_ways() -> None:
    alone = Strategy("node", "b", labels=(("zone", "a"),))
    assert reasons.unsuitable_node(CPU, alone, None) == "must run on node 'b', which is not part of the cluster"
    assert reasons.unsuitable_node(CPU, alone, node("b", 4)) == (
        "must run on node 'b', which lacks a label: needs label zone=a, no node has a label zone")
    assert reasons.unsuitable_node({"CPU": 9 * U}, Strategy("node", "b"), node("b", 4)) == (
        "must run on node 'b', which is too small: needs 9 CPU, the cluster's largest node has 4")
