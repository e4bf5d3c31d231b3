"""A shard with its servers, masters and clients, and everything that is recorded of them.

*Pure.* Runs in simulation tests.

1. All randomness is of one seed, and time is virtual: a seed is a schedule.
2. The world records, and checks what is wrong at the moment when it happens; what must hold in the end is asked by
   ``judgement``.
3. A process that ended is started again after a while, as its node would do, which mostly also tells the masters.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

from meshray.config import MILLISECOND_NS, SECOND_NS
from meshray.gcs.client import GcsClient
from meshray.gcs.log import Persisted, SweepReaders
from meshray.gcs.master import Master
from meshray.gcs.requests import Answered, RowChanged, Synced
from meshray.gcs.shard_server import ShardServer
from meshray.messages.chain import MastersChanged, ServerDied
from meshray.messages.gcs import Op
from meshray.messages.node import Shard
from tests.sim.gcs_sim.chain_order import Commits
from tests.sim.gcs_sim.disk import DURABLE, Disk
from tests.sim.gcs_sim.history import History, Key, Violation
from tests.sim.gcs_sim.network import Network, Weather
from tests.sim.gcs_sim.process import Process
from tests.sim.gcs_sim.schedule import Clock, Schedule

DRIFT = 0.02
"""Clocks go at most this much faster or slower than true time; leases allow for twice that and a little more."""
RESTART_NS = 300 * MILLISECOND_NS
"""A process that ended is started again within this."""
NOTICE_NS = 5 * MILLISECOND_NS
"""A node tells the masters within this that a server has ended."""
UNNOTICED = 0.2
"""Chance that nobody tells: the node died with its server."""

Then = Callable[[Answered], None] | None


class World:
    """One shard of ``replicas`` servers with ``masters`` masters, and clients, in some weather."""

    def __init__(self, seed: int, weather: Weather, *, replicas: int = 3, masters: int = 2) -> None:
        self.random = random.Random(seed)
        self.replicas = replicas
        self.schedule = Schedule()
        self.network = Network(self.schedule, self.random, weather)
        self.history = History()
        self.commits = Commits()
        self.told: dict[tuple[str, int], list[RowChanged]] = {}
        self.ends: list[str] = []
        self.disks: dict[str, Disk] = {}
        self.servers: dict[str, Process] = {}
        self.masters: dict[str, Process] = {}
        self.clients: dict[str, Process] = {}
        self.new_chain: Callable[[Shard], None] = lambda shard: None
        """Told of each chain when the first server knows it."""
        self.away_ns: dict[str, int] = {}
        """How much later than usual these come back, once."""
        self.is_calm = False
        """Whether everything is mended."""
        self.replacing = 0
        """Losses for good that are still to come."""
        self._lost: set[str] = set()
        """Processes that do not come back, since others have their places."""
        self._number = replicas
        self._epoch = 0
        self._then: dict[tuple[str, int], Then] = {}
        self._pids = 100
        self._pid_of: dict[str, int] = {}
        self.shard = Shard(1, [(f"shard-0-{index}", f"ipc://shard-0-{index}") for index in range(replicas)])
        names = [f"master-{index}" for index in range(masters if replicas > 1 else 0)]
        self._named = {master: f"ipc://{master}" for master in names}
        """The masters as the servers' nodes know them, in the order of their ranks."""
        for rank, name in enumerate(names):
            self._add_master(name, rank)
        for name, endpoint in self.shard.members:
            self.disks[name] = Disk(founding=True)
            self._add_server(name, endpoint)

    @property
    def now_ns(self) -> int:
        """True time."""
        return self.schedule.now_ns

    # --- what clients do -----------------------------------------------------------------------------------------

    def add_client(self, name: str) -> Process:
        """Let a client live. It knows the shard as it was at first."""
        shard = self.shard
        client = self._process(name, lambda now_ns: (GcsClient(name, [shard]), []), partial(self._told, name), list)
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

    # --- what is known -------------------------------------------------------------------------------------------

    def chain(self) -> Shard:
        """Return the newest chain that a server knows."""
        known = [server.machine.shard for server in self.servers.values() if server.is_up]
        return max(known, key=lambda shard: shard.epoch, default=self.shard)

    def is_whole(self) -> bool:
        """Whether all servers are members of one chain, and no change is under way."""
        chain = self.chain()
        return len(chain.members) == self.replicas and all(
            self._serves(server, chain.epoch) for server in self.servers.values()
        ) and not any(self._is_busy(master) for master in self.masters.values())

    def has_recovered(self) -> bool:
        """Whether it is whole, and after the loss of a node for good also ready for the next one."""
        return self.may_lose_a_disk() if self._lost and self.replicas >= 3 else self.is_whole()

    def may_lose_a_disk(self) -> bool:
        """Whether the loss of one disk, whichever it is, must be survived now: no change is under way, every chain that
        was proposed last has other members, and three acceptors vote."""
        votes = [self.disks[name].vote for name in self.servers]
        values = [vote.value for vote in votes if vote.votes and vote.value]
        return len(values) >= 3 and self.is_whole() and all(
            len(value.chains[0].places) == self.replicas and len(value.acceptors) >= 3 and not value.acceptors_next
            and self.servers.keys() >= set(value.acceptors) for value in values)

    def committed_rows(self) -> dict[int, tuple[bytes, bytes | None]]:
        """Return what is committed, by version."""
        return {version: (key, value) for entry in self.commits.entries for _, key, version, value in entry.rows}

    @staticmethod
    def _serves(server: Process, epoch: int) -> bool:
        member = server.machine.member if server.is_up and not server.is_frozen else None
        return member is not None and member.shard.epoch == epoch and member.in_step and not member.wedged

    @staticmethod
    def _is_busy(master: Process) -> bool:
        return not master.is_up or master.machine._plan is not None or master.machine._proposer.is_busy

    # --- processes -----------------------------------------------------------------------------------------------

    def _add_master(self, name: str, rank: int) -> None:
        acceptors = tuple(server for server, _ in self.shard.members)[:3]

        def boot(now_ns: int) -> tuple[Master, list[Any]]:
            return Master(name, f"{self._pid(name)}-m", shards=[self.shard], acceptors=acceptors,
                          replicas=self.replicas, rank=rank, now_ns=now_ns), []

        master = self.masters[name] = self._process(name, boot, self._perform, list)
        master.ended = self._ended
        self.schedule.after(self.random.randrange(20 * MILLISECOND_NS), master.start)

    def _add_server(self, name: str, endpoint: str) -> None:
        disk = self.disks[name]

        def boot(now_ns: int) -> tuple[ShardServer, list[Any]]:
            server = ShardServer(name, f"{self._pid(name)}-{self._pids}-s", endpoint, index=0, shard=self.shard,
                                 masters=dict(self._named), committed=disk, recovered=disk.recovered, vote=disk.vote,
                                 now_ns=now_ns)
            return server, server.begin(now_ns)

        server = self.servers[name] = self._process(name, boot, self._perform, disk.persist)
        server.ended, server.turned = self._ended, self._turned
        self.schedule.after(self.random.randrange(20 * MILLISECOND_NS), server.start)

    def _process(self, name: str, boot: Callable[[int], Any], perform: Callable[[Any], list[Any]],
                 persist: Callable[[list[Any]], list[Any]]) -> Process:
        rate = 1 + DRIFT * (2 * self.random.random() - 1)
        clock = Clock(self.schedule, rate, self.random.randrange(3600 * SECOND_NS))
        return Process(name, schedule=self.schedule, network=self.network, source=self.random, clock=clock, boot=boot,
                       perform=perform, persist=persist, durable=DURABLE)

    def _pid(self, name: str) -> int:
        self._pids += 1
        self._pid_of[name] = self._pids
        return self._pids

    def _ended(self, process: Process, reason: str) -> None:
        self.ends.append(f"{self.now_ns / 1e6:.1f} ms {process.name}: {reason}")
        if process.name in self.servers and self.random.random() >= UNNOTICED:
            died = ServerDied(process.name, self._pid_of[process.name])
            self.schedule.after(self.random.randrange(NOTICE_NS), self._tell_masters, died)
        if process.name in self._lost:
            return
        pause_ns = self.random.randrange(RESTART_NS) + self.away_ns.pop(process.name, 0)
        self.schedule.after(pause_ns, self._start_again, process)

    def _tell_masters(self, died: ServerDied) -> None:
        for master in self.masters:
            self.network.post("node", master, b"node", died)

    def _start_again(self, process: Process) -> None:
        disk = self.disks.get(process.name)
        if process.name in self._lost:
            return
        if disk is not None and disk.full:
            self.schedule.after(self.random.randrange(RESTART_NS), self._start_again, process)
        else:
            process.start()

    def replace(self, name: str) -> None:
        """The node of a server or master is lost, and another one has its place from now on. Perhaps it comes back
        later, when nobody waits for it, and runs until it has learnt that."""
        self._lost.add(name)
        self._number += 1
        process = self.servers.pop(name, None) or self.masters.pop(name)
        process.crash()
        if self.random.random() < 0.5:
            back_ns = self.random.randrange(20) * SECOND_NS // 2
            self.schedule.after(back_ns, process.start)
            self.schedule.after(back_ns + self.random.randrange(3 * SECOND_NS), process.crash)
        if name in self.disks:
            new = f"shard-0-{self._number}"
            self.disks[new] = Disk()
            self._add_server(new, f"ipc://{new}")
            return
        new = f"master-{self._number}"
        rank = list(self._named).index(name)
        self._named = {new if each == name else each: f"ipc://{new if each == name else each}" for each in self._named}
        self._add_master(new, rank)
        for server in self.servers.values():
            if server.is_up:  # its node, which is its parent, tells it; or starts it with this
                server.arrive(b"node", MastersChanged(dict(self._named)))

    # --- what happens --------------------------------------------------------------------------------------------

    def _turned(self, process: Process) -> None:
        """A server has lived through a turn."""
        self._watch_commits(process)
        shard = process.machine.shard
        if shard.epoch > self._epoch:
            self._epoch = shard.epoch
            self.new_chain(shard)

    def _watch_commits(self, process: Process) -> None:
        """What a serving tail has is committed; and it must have all that ever was."""
        member = process.machine.member
        if member is None or not member.is_tail or member.wedged:
            return
        commits = self.commits
        if member.version > commits.version:
            for entry in self.disks[process.name].log:
                if commits.version < entry.last <= member.version:
                    commits.tail_has(process.name, entry)
        elif member.version < commits.version and member.in_step and member.shard.epoch >= commits.epoch:
            raise Violation(f"{process.name} is in step as the tail of epoch {member.shard.epoch} with version "
                            f"{member.version}, but {commits.version} was committed in epoch {commits.epoch}")
        commits.epoch = max(commits.epoch, member.shard.epoch)

    def _perform(self, effect: Any) -> list[Any]:
        match effect:
            case Persisted():
                return [effect]
            case SweepReaders():
                return []
            case _:
                raise AssertionError(f"the simulated server cannot do {effect!r}")

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
