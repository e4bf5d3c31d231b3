"""A shard, its clients, and everything that is recorded of them.

*Pure.* Runs in simulation tests.

1. All randomness is of one seed, and time is virtual: a seed is a schedule.
2. The world only records, and checks what is wrong at the moment when it happens; what must hold in the end is asked by
   ``judgement``.
3. A process that ended is started again after a while, as its node would do.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

from meshray.config import MILLISECOND_NS, SECOND_NS
from meshray.gcs.chain import ChainMember
from meshray.gcs.client import GcsClient
from meshray.gcs.log import Entry, Persisted, Recovered, SweepReaders
from meshray.gcs.requests import Answered, RowChanged, Synced
from meshray.messages.gcs import Op
from meshray.messages.node import Shard
from tests.sim.gcs_sim.chain_order import Commits
from tests.sim.gcs_sim.disk import DURABLE, Disk
from tests.sim.gcs_sim.history import History, Key
from tests.sim.gcs_sim.network import Network, Weather
from tests.sim.gcs_sim.process import Process
from tests.sim.gcs_sim.schedule import Clock, Schedule

DRIFT = 0.01
"""Clocks go at most this much faster or slower than true time."""
RESTART_NS = 300 * MILLISECOND_NS
"""A process that ended is started again within this."""

Then = Callable[[Answered], None] | None


class World:
    """One shard with clients in some weather. ``member`` may be a broken member; the other changes break
    what it is told of its disk, and its process."""

    def __init__(self, seed: int, weather: Weather, *, member: type[ChainMember] = ChainMember,
                 forgets_clients: bool = False, sends_first: bool = False) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.schedule = Schedule()
        self.network = Network(self.schedule, self.random, weather)
        self.history = History()
        self.commits = Commits()
        self.told: dict[tuple[str, int], list[RowChanged]] = {}
        self.ends: list[str] = []
        self.disks: dict[str, Disk] = {}
        self.members: dict[str, Process] = {}
        self.clients: dict[str, Process] = {}
        self.restarts = True
        self._member, self._forgets_clients, self._sends_first = member, forgets_clients, sends_first
        self._then: dict[tuple[str, int], Then] = {}
        self.shard = Shard(1, [("shard-0-0", "ipc://shard-0-0")])
        for name, _ in self.shard.members:
            self._add_member(name)

    @property
    def now_ns(self) -> int:
        """True time."""
        return self.schedule.now_ns

    def add_client(self, name: str) -> Process:
        """Let a client live. It knows the shard as it is now."""
        shard = self.shard
        client = self._process(name, lambda now_ns: GcsClient(name, [shard]), partial(self._told, name), list)
        self.clients[name] = client
        client.start()
        return client

    def write(self, name: str, ops: list[Op], then: Then = None) -> None:
        """Let a client write."""

        def begin(client: GcsClient, now_ns: int) -> list[Any]:
            number, effects = client.write(ops, now_ns)
            self.history.begin_write((name, number), name, ops, self.now_ns)
            self._then[(name, number)] = then
            return effects

        self.clients[name].act(begin)

    def read(self, name: str, keys: list[Key], then: Then = None) -> None:
        """Let a client read."""

        def begin(client: GcsClient, now_ns: int) -> list[Any]:
            number, effects = client.read(keys, now_ns)
            self.history.begin_read((name, number), name, keys, self.now_ns)
            self._then[(name, number)] = then
            return effects

        self.clients[name].act(begin)

    def watch(self, name: str, table: str, key: bytes, *, prefix: bool) -> None:
        """Let a client watch."""

        def begin(client: GcsClient, now_ns: int) -> list[Any]:
            watch, effects = client.watch(table, key, now_ns, prefix=prefix)
            self.told[(name, watch)] = []
            return effects

        self.clients[name].act(begin)

    def committed_rows(self) -> dict[int, tuple[bytes, bytes | None]]:
        """Return what is committed, by version."""
        return {version: (key, value) for entry in self.commits.entries for _, key, version, value in entry.rows}

    def _add_member(self, name: str) -> None:
        disk = self.disks[name] = Disk(partial(self._durable, name))

        def boot(now_ns: int) -> ChainMember:
            found = disk.recovered
            if self._forgets_clients:
                found = Recovered(found.epoch, found.version)
            return self._member(name, self.shard, committed=disk, recovered=found, now_ns=now_ns)

        process = self._process(name, boot, self._perform, disk.persist)
        process.ended = self._ended
        process.sends_first = self._sends_first
        self.members[name] = process
        process.start()

    def _process(self, name: str, boot: Callable[[int], Any], perform: Callable[[Any], list[Any]],
                 persist: Callable[[list[Any]], list[Any]]) -> Process:
        rate = 1 + DRIFT * (2 * self.random.random() - 1)
        clock = Clock(self.schedule, rate, self.random.randrange(3600 * SECOND_NS))
        return Process(name, schedule=self.schedule, network=self.network, source=self.random, clock=clock, boot=boot,
                       perform=perform, persist=persist, durable=DURABLE)

    def _durable(self, name: str, entry: Entry) -> None:
        if name == self.shard.members[-1][0]:
            self.commits.tail_has(name, entry)

    def _perform(self, effect: Any) -> list[Any]:
        match effect:
            case Persisted():
                return [effect]
            case SweepReaders():
                return []
            case _:
                raise AssertionError(f"the simulated member cannot do {effect!r}")

    def _told(self, name: str, effect: Any) -> list[Any]:
        """A client tells of something."""
        match effect:
            case Answered(request=request):
                self.history.end((name, request), effect, self.now_ns)
                then = self._then.pop((name, request))
                if then is not None:
                    # Not at once: the client is in the middle of a turn.
                    self.schedule.after(0, then, effect)
            case RowChanged(watch=watch):
                self.told[(name, watch)].append(effect)
            case Synced():
                pass
            case _:
                raise AssertionError(f"the simulated client cannot do {effect!r}")
        return []

    def _ended(self, process: Process, reason: str) -> None:
        self.ends.append(f"{process.name}: {reason}")
        if self.restarts:
            self.schedule.after(self.random.randrange(RESTART_NS), self._start_again, process)

    def _start_again(self, process: Process) -> None:
        disk = self.disks.get(process.name)
        if disk is not None and disk.full:
            self.schedule.after(self.random.randrange(RESTART_NS), self._start_again, process)
        else:
            process.start()
