"""Real servers of a replicated control store are killed and stopped under load; what clients saw is checked as in the
simulation.

*Shell (processes, signals, zmq).* Runs in the pytest process: several clients, each with one call on its way.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from meshray.gcs import limits
from meshray.messages.gcs import COMPARE_AND_SET, DELETE, PUT, PUT_IF_ABSENT, Op
from meshray.messages.node import Shard
from perf.failover import fill
from perf.gcs_caller import Caller
from perf.gcs_cluster import GcsCluster, gcs_cluster
from tests.sim.gcs_sim import linearizability, versions
from tests.sim.gcs_sim.history import History

pytestmark = pytest.mark.limit_s(180)
CLIENTS = 3
KEYS = [b"chaos-%d" % index for index in range(12)]
WHOLE_S = 60.0
ROWS = 40_000
"""So many take a joiner a while."""
JOINING_BYTES = 500_000
"""A server that has written so much since it started has begun to join; all rows are many times more."""


class Load:
    """Clients with one random call each on its way, and the history of all."""

    def __init__(self, cluster: GcsCluster, seed: int) -> None:
        self.cluster = cluster
        self.history = History()
        self.callers = [cluster.caller() for _ in range(CLIENTS)]
        self._random = random.Random(seed)
        self._known: dict[bytes, int] = {}
        self._open: dict[int, tuple[int, list[Op]]] = {}
        self._made = 0

    def step(self) -> None:
        """Let every client go on a little."""
        for index, caller in enumerate(self.callers):
            if index not in self._open:
                self._begin(index, caller)
            caller.drive(1)
            number, ops = self._open[index]
            answer = caller.take(number)
            if answer is not None:
                del self._open[index]
                self.history.end((index, number), answer, time.monotonic_ns())
                for op, result in zip(ops, answer.results, strict=False):
                    self._known[op.key] = 0 if op.kind == DELETE else result.version

    def _begin(self, index: int, caller: Caller) -> None:
        now_ns, source = time.monotonic_ns(), self._random
        if source.random() < 0.4:
            keys = [("kv", key) for key in source.sample(KEYS, 2)]
            number, effects = caller.client.read(keys, now_ns)
            self.history.begin_read((index, number), f"client-{index}", keys, now_ns)
            self._open[index] = (number, [])
        else:
            ops = [self._op() for _ in range(source.choice((1, 1, 3)))]
            number, effects = caller.client.write(ops, now_ns)
            self.history.begin_write((index, number), f"client-{index}", ops, now_ns)
            self._open[index] = (number, ops)
        caller.perform(effects)

    def _op(self) -> Op:
        self._made += 1
        kind, key = self._random.choice((PUT, PUT_IF_ABSENT, COMPARE_AND_SET, DELETE)), self._random.choice(KEYS)
        value = b"" if kind == DELETE else b"%d" % self._made
        return Op("kv", key, value, kind, self._known.get(key, 0) if kind == COMPARE_AND_SET else 0)

    @property
    def shard(self) -> Shard:
        """The chain as the first client knows it."""
        return self.callers[0].client.shards[0]

    def until(self, holds: Callable[[], Any], what: str) -> Any:
        """Go on until ``holds`` returns something true, and return it."""
        end = time.monotonic() + WHOLE_S
        while not (found := holds()):
            self.step()
            assert time.monotonic() < end, f"not {what} within {WHOLE_S:g} s; the chain is {self.shard}"
        return found

    def until_whole(self, after: int = 0) -> None:
        """Go on until the chain has all its members, and is of a higher epoch than ``after``."""
        self.until(lambda: len(self.shard.members) == self.cluster.replicas and self.shard.epoch > after, "whole")

    def finish(self) -> None:
        """Let the last calls end, and check everything."""
        end = time.monotonic() + WHOLE_S
        while self._open:
            for index, caller in enumerate(self.callers):
                caller.drive(1)
                if index in self._open and (answer := caller.take(self._open[index][0])) is not None:
                    number, _ = self._open.pop(index)
                    self.history.end((index, number), answer, time.monotonic_ns())
            assert time.monotonic() < end, "calls are still open"
        assert self.history.errors == 0
        versions.check(self.history)
        linearizability.check(self.history)


@pytest.fixture
def load(root: str) -> Iterator[Load]:
    with gcs_cluster(3) as cluster:
        made = Load(cluster, 1)
        try:
            made.until_whole()
            yield made
        finally:
            for caller in made.callers:
                caller.close()


def strike(load: Load, name: str, number: signal.Signals) -> int:
    """Signal a server in the middle of calls; return its pid."""
    for _ in range(random.randrange(1, 20)):
        load.step()
    return load.cluster.signal(name, number)


@pytest.mark.parametrize("place", [0, 1, 2], ids=["head", "middle", "tail"])
def test_a_killed_member_is_replaced_and_nothing_is_lost(load: Load, place: int) -> None:
    for _ in range(2):
        before = load.shard
        strike(load, before.members[place][0], signal.SIGKILL)
        load.until_whole(before.epoch)
    load.finish()


@pytest.mark.parametrize("place", [0, 2], ids=["head", "tail"])
def test_a_stopped_member_is_replaced_and_wakes_up_harmless(load: Load, place: int) -> None:
    before = load.shard
    pid = strike(load, before.members[place][0], signal.SIGSTOP)
    load.until(lambda: load.shard.epoch > before.epoch, "replaced")
    os.kill(pid, signal.SIGCONT)
    load.until_whole()
    load.finish()


def bytes_written(pid: int) -> int:
    """Return how much a process has written since it began; 0 when it is gone."""
    with suppress(FileNotFoundError, ProcessLookupError):
        counters = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
        return int(counters["wchar"])
    return 0


def test_a_joiner_is_killed_twice_and_joins_in_the_end(load: Load) -> None:
    fill(load.callers[0], ROWS)
    before = load.shard
    name = before.members[1][0]
    pid = strike(load, name, signal.SIGKILL)
    for _ in range(2):
        joiner = load.until(lambda pid=pid: (now := load.cluster.pids().get(name, pid)) != pid and now, "restarted")
        load.until(lambda joiner=joiner: bytes_written(joiner) > JOINING_BYTES, "joining")
        assert name not in [member for member, _ in load.shard.members], "it had joined before it was killed"
        pid = load.cluster.signal(name, signal.SIGKILL)
        assert pid == joiner
    load.until_whole(before.epoch)
    load.finish()


@pytest.mark.parametrize("places", [(0, 1), (1, 2)], ids=["tail is left", "head is left"])
def test_while_most_acceptors_stand_still_nothing_is_written_nor_changed(load: Load, places: tuple[int, ...]) -> None:
    before = load.shard
    pids = [load.cluster.signal(before.members[place][0], signal.SIGSTOP) for place in places]
    stopped_ns = time.monotonic_ns()
    lasts_ns = limits.SUSPECT_NS + 2 * limits.READ_LEASE_GIVEN_NS
    load.until(lambda: time.monotonic_ns() > stopped_ns + lasts_ns, "over")
    written = [call for call in load.history.calls if call.begun_ns > stopped_ns and not call.is_look]
    assert not written, f"acknowledged without the chain: {written[:3]}"
    assert load.shard == before, "the chain was changed without a majority"
    woken_ns = time.monotonic_ns()
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    load.until(lambda: any(call.begun_ns > woken_ns and not call.is_look for call in load.history.calls), "writing")
    load.until_whole()
    load.finish()


def test_servers_and_masters_are_killed_at_random(load: Load) -> None:
    source = random.Random(7)
    for _ in range(6):
        pids: dict[str, Any] = {**load.cluster.pids(), **load.cluster.pids("master-")}
        for name in source.sample(sorted(pids), 1):
            with suppress(ProcessLookupError):
                os.kill(pids[name], signal.SIGKILL)
        for _ in range(source.randrange(10, 300)):
            load.step()
    load.until_whole()
    load.finish()
