"""When a node says its load."""

from __future__ import annotations

from itertools import pairwise

from meshray import config
from meshray.machine import Tick
from meshray.messages.node import DeclareDemand, Demand
from meshray.messages.sched import Heartbeat
from meshray.sched.presence import HEARTBEAT_MIN_NS
from tests.unit.sched.bench import CPU, MS, Bench, sent


def test_the_load_is_told_often_only_while_it_changes() -> None:
    bench = Bench(schedulers={"s": "ipc://s"})

    def beats(until_ns: int) -> list[int]:
        """Let the clock run to ``until_ns``; return when a heartbeat was sent."""
        found = []
        while (due_ns := bench.machine.deadline_ns()) <= until_ns:
            bench.now_ns = due_ns - MS
            found += [bench.now_ns for _ in sent(bench.event(Tick()), Heartbeat)]
            assert bench.machine.deadline_ns() > bench.now_ns, "it ticks in a tight loop"
        bench.now_ns = until_ns
        return found

    bench.event(Tick())
    rest_ns, rhythm_ns = config.HEARTBEAT_REST_NS, config.HEARTBEAT_NS
    resting = beats(10 * rest_ns)
    assert {later - earlier for earlier, later in pairwise(resting)} == {rest_ns}, "nothing has happened"
    bench.driver("d")
    more = beats(resting[-1] + 2 * rest_ns)
    assert more == [resting[-1] + rest_ns, resting[-1] + 2 * rest_ns], "what happened changes no load"
    bench.says("d", DeclareDemand([Demand(0, CPU, 0, mean_ns=5 * MS)]))
    last_ns = more[-1]
    assert beats(last_ns + rest_ns) == [last_ns + rhythm_ns], "tasks take another time than before"
    bench.says("d", DeclareDemand([Demand(0, CPU, 0, mean_ns=5 * MS)]))
    assert beats(last_ns + rhythm_ns + rest_ns) == [last_ns + rhythm_ns + rest_ns], "they still do"


def test_a_node_that_fills_up_says_so_at_once() -> None:
    bench = Bench(1, schedulers={"s": "ipc://s"})
    bench.driver("d")
    bench.worker()
    bench.event(Tick())
    bench.now_ns += HEARTBEAT_MIN_NS
    assert [beat.load.available["CPU"] for beat in sent(bench.wants("d", 1), Heartbeat)] == [0]
    assert not sent(bench.wants("d", 2), Heartbeat), "it says so once"
