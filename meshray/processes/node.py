"""The node's machine: sessions come and go, everything else is handed to the part that decides it.

*Pure.* Runs in the node process.

1. A session is known by its name and its route; what it sends before it has registered is dropped.
2. Every message kind belongs to exactly one part: local scheduler, store, control store client, actor table, describer,
   or this module.
3. When a process ends, every part is told, the processes that may hold something of it are told, in this order: leases,
   store, other sessions.

Source: OSDI'18 s4.2 (the node's local scheduler and object store), DESIGN s2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from meshray import config
from meshray.gcs import tables
from meshray.gcs.client import GcsClient
from meshray.gcs.requests import Answered, RowChanged, Synced
from meshray.ids import process_name
from meshray.machine import Connect, Received, Send, Stop, Tick, Undeliverable
from meshray.messages import node as messages
from meshray.messages import objects, sched, state
from meshray.messages.gcs import Op, ShardDescribed
from meshray.messages.node import Death
from meshray.messages.sched import ClusterView, NodeGone
from meshray.node_config import NodeConfig
from meshray.processes.node_actors import NodeActors
from meshray.processes.node_describe import Describer
from meshray.processes.node_events import (
    DriverExited,
    ForkWorker,
    KillWorker,
    LinesWritten,
    ServiceExited,
    WatchDriver,
    WorkerExited,
    WorkerForked,
    WorkerForkFailed,
)
from meshray.resources import UNITS_PER_ONE
from meshray.sched import events as sched_events
from meshray.sched.local import LocalScheduler
from meshray.store import service as store_service
from meshray.store.events import HolderGone, OwnerGone, SessionGone
from meshray.transport.sockets import name_of, route_to

_SCHEDULED = frozenset({
    messages.DeclareDemand, messages.ReturnLease, messages.WorkerBlocked, messages.WorkerUnblocked, messages.CreateActor,
    messages.ActorStarted, messages.LeaseLost, *sched.MESSAGES,
})
"""Messages that belong to the local scheduler."""


class Member(msgspec.Struct):
    """A registered session."""

    name: str
    route: bytes
    kind: str
    pid: int
    endpoint: str
    job: str
    namespace: str
    label: str = ""
    leaving: str = ""
    serving: str = ""
    """The job whose output this worker writes now."""


class NodeMachine:
    """All decisions of one node, composed."""

    def __init__(self, settings: NodeConfig, node: str, endpoint: str, *, entropy: Callable[[], bytes],
                 scheduler: LocalScheduler, store: store_service.StoreService, gcs: GcsClient) -> None:
        self.settings = settings
        self.node = node
        self.endpoint = endpoint
        self.scheduler = scheduler
        self.store = store
        self.gcs = gcs
        self.total = {name: int(amount * UNITS_PER_ONE) for name, amount in settings.resources.items()}
        self.members: dict[str, Member] = {}
        self.starting: dict[str, int] = {}
        """Workers forked or about to be that have not registered: name -> deadline."""
        self.peers: dict[str, str] = {}
        """Other nodes: id -> endpoint."""
        self.actors = NodeActors(self)
        self.describer = Describer(self)
        self._entropy = entropy
        self._jobs = 0
        self._asked: dict[int, Callable[[Answered, int], list[Any]]] = {}
        self._watched: dict[int, Callable[[RowChanged, int], list[Any]]] = {}
        self._handlers: dict[type, Callable[[Any, int], list[Any]]] = {
            messages.Register: self._register,
            messages.Unregister: self._unregister,
            messages.Ping: lambda event, now_ns: [Send(event.route, messages.Pong(event.message.cookie))],
            messages.WatchActor: self.actors.watch,
            messages.KillActor: self.actors.kill,
            state.DescribeCluster: self.describer.describe,
            state.Description: self.describer.described,
            ShardDescribed: self.describer.shard_described,
            state.StopCluster: self._stop,
            objects.ObjectsFreed: self._objects_freed,
            objects.HoldersDied: self._relay_holders_died,
            state.LogLines: lambda event, now_ns: self._deliver_lines(event.message),
        }
        self._by_event: dict[type, Callable[[Any, int], list[Any]]] = {
            WorkerForked: lambda event, now_ns: [],
            WorkerForkFailed: self._fork_failed,
            WorkerExited: self._worker_exited,
            DriverExited: lambda event, now_ns: self._driver_gone(event.name, "its process is gone", now_ns),
            LinesWritten: self._lines_written,
            ServiceExited: lambda event, now_ns: [Stop(f"{event.name} is gone: {event.reason}")],
            Undeliverable: self._undeliverable,
            Tick: self._tick,
        }

    # --- machine -------------------------------------------------------------------------------------------------

    def handle(self, event: Any, now_ns: int) -> list[Any]:
        """Take one event, return its effects in order."""
        kind = type(event)
        if kind is Received:
            return self._received(event, now_ns)
        own = self._by_event.get(kind)
        if own is not None:
            return own(event, now_ns)
        return self.store.handle(event, now_ns)

    def _received(self, event: Received, now_ns: int) -> list[Any]:
        kind = type(event.message)
        own = self._handlers.get(kind)
        if own is not None:
            return own(event, now_ns)
        if kind in store_service.ACCEPTS:
            return self.store.handle(event, now_ns)
        if kind in _SCHEDULED:
            effects = self._scheduled(self.scheduler.handle(event, now_ns), now_ns)
            if kind is ClusterView:
                self._view(event.message)
            elif kind is NodeGone:
                effects += self._peer_gone(event.message.node, now_ns)
            return effects
        return self._gcs_done(self.gcs.handle(event, now_ns), now_ns)

    def deadline_ns(self) -> int | None:
        """When ``Tick`` is due next."""
        deadlines = [self.scheduler.deadline_ns(), self.store.deadline_ns(), self.gcs.deadline_ns(),
                     self.describer.deadline_ns(), min(self.starting.values(), default=None)]
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def _tick(self, event: Tick, now_ns: int) -> list[Any]:
        effects = self._scheduled(self.scheduler.handle(event, now_ns), now_ns)
        effects += self.store.handle(event, now_ns)
        effects += self._gcs_done(self.gcs.handle(event, now_ns), now_ns)
        effects += self.describer.tick(now_ns)
        for name, deadline_ns in list(self.starting.items()):
            if deadline_ns <= now_ns:
                self.starting[name] = now_ns + config.WORKER_START_TIMEOUT_NS
                effects.append(KillWorker(name))
        return effects

    def check(self) -> None:
        """Assert every invariant of every part."""
        self.scheduler.check()
        self.store.check()
        assert not self.members.keys() & self.starting.keys(), "a registered worker is not starting"

    def statistics(self) -> dict[str, int]:
        """Return the counters of all parts."""
        return {**self.scheduler.statistics(), **self.store.statistics(), "sessions": len(self.members)}

    def begin(self, now_ns: int) -> list[Any]:
        """Return the effects of the node's birth: its row, the first workers, the first heartbeat."""
        row = tables.NodeRow(self.node, self.settings.node_name, self.endpoint, self.total,
                             started_wall_ns=0)
        effects = self.write([Op(tables.NODE, self.node.encode(), tables.encode(row))], now_ns)
        return effects + self.schedule(Tick(), now_ns)

    # --- control store -------------------------------------------------------------------------------------------

    def write(self, ops: list[Op], now_ns: int, done: Callable[[Answered, int], list[Any]] | None = None) -> list[Any]:
        """Write rows; ``done`` gets the answer."""
        request, effects = self.gcs.write(ops, now_ns)
        if done is not None:
            self._asked[request] = done
        return self._gcs_done(effects, now_ns)

    def read(self, table: str, key: bytes, now_ns: int, done: Callable[[Answered, int], list[Any]]) -> list[Any]:
        """Read a row."""
        request, effects = self.gcs.read([(table, key)], now_ns)
        self._asked[request] = done
        return self._gcs_done(effects, now_ns)

    def scan(self, table: str, prefix: bytes, limit: int, now_ns: int,
             done: Callable[[Answered, int], list[Any]]) -> list[Any]:
        """Read rows by key prefix."""
        request, effects = self.gcs.scan(table, prefix, now_ns, limit=limit)
        self._asked[request] = done
        return self._gcs_done(effects, now_ns)

    def watch(self, table: str, key: bytes, now_ns: int,
              changed: Callable[[RowChanged, int], list[Any]]) -> tuple[int, list[Any]]:
        """Follow a row; return the watch and effects."""
        watch, effects = self.gcs.watch(table, key, now_ns)
        self._watched[watch] = changed
        return watch, self._gcs_done(effects, now_ns)

    def unwatch(self, watch: int) -> list[Any]:
        """End a watch."""
        self._watched.pop(watch, None)
        return self.gcs.unwatch(watch)

    def _gcs_done(self, effects: list[Any], now_ns: int) -> list[Any]:
        remaining: list[Any] = []
        for effect in effects:
            if type(effect) is Answered:
                done = self._asked.pop(effect.request, None)
                if done is not None:
                    remaining += done(effect, now_ns)
            elif type(effect) is RowChanged:
                changed = self._watched.get(effect.watch)
                if changed is not None:
                    remaining += changed(effect, now_ns)
            elif type(effect) is not Synced:
                remaining.append(effect)
        return remaining

    # --- scheduler -----------------------------------------------------------------------------------------------

    def schedule(self, event: Any, now_ns: int) -> list[Any]:
        """Pass an event to the local scheduler and return what remains to be done."""
        return self._scheduled(self.scheduler.handle(event, now_ns), now_ns)

    def _scheduled(self, effects: list[Any], now_ns: int) -> list[Any]:
        remaining: list[Any] = []
        for effect in effects:
            match effect:
                case sched_events.StartWorkers():
                    for _ in range(effect.count):
                        name = process_name("worker", self._entropy())
                        self.starting[name] = now_ns + config.WORKER_START_TIMEOUT_NS
                        remaining.append(ForkWorker(name))
                case sched_events.StopWorker():
                    remaining += self._stop_worker(effect)
                case Send(message=messages.CreateActor(spec=spec)):
                    remaining += [effect, *self.actors.spilled(spec.actor, now_ns)]
                case sched_events.ActorStateChanged():
                    remaining += self.actors.changed(effect, now_ns)
                case sched_events.WorkerLabelled():
                    member = self.members.get(effect.worker)
                    if member is not None:
                        member.label, member.serving = effect.label, effect.job
                case sched_events.Warn():
                    remaining.append(Send(effect.session_route, state.Notice("warning", effect.text)))
                case _:
                    remaining.append(effect)
        return remaining

    def _stop_worker(self, effect: sched_events.StopWorker) -> list[Any]:
        member = self.members.get(effect.name)
        if member is not None:
            member.leaving = effect.reason or "stopped by its node"
            if not effect.kill:
                return [Send(member.route, messages.Leave(effect.reason))]
        return [KillWorker(effect.name)]

    # --- sessions ------------------------------------------------------------------------------------------------

    def _register(self, event: Received, now_ns: int) -> list[Any]:
        request: messages.Register = event.message
        if request.kind == "worker" and request.name not in self.starting and request.name not in self.members:
            return [Send(event.route, messages.RegisterRefused("this node has not started such a worker"))]
        known = self.members.get(request.name)
        job = known.job if known is not None else ""
        if known is None:
            if request.kind == "driver":
                self._jobs += 1
                job = f"{self.node.removeprefix('node-')}-{self._jobs}"
            namespace = request.namespace or f"anonymous-{job}"
            self.starting.pop(request.name, None)
            self.members[request.name] = Member(request.name, event.route, request.kind, request.pid, request.endpoint,
                                                job, namespace, serving=job)
        member = self.members[request.name]
        effects: list[Any] = [Send(event.route, messages.Registered(
            self.node, self.settings.node_name, job, member.namespace, self.settings.arena_path,
            self.settings.object_store_bytes, self.settings.shards, self.settings.run_dir, self.settings.cluster,
            self.total, bool(self.settings.embedded_pid)))]
        if known is None:
            effects += self.schedule(sched_events.SessionJoined(
                request.name, event.route, request.kind, request.pid, request.endpoint, job), now_ns)
            if request.kind == "driver":
                effects.append(WatchDriver(request.name, request.pid))
                row = tables.JobRow(job, request.name, member.namespace, request.entrypoint, node=self.node,
                                    pid=request.pid)
                effects += self.write([Op(tables.JOB, job.encode(), tables.encode(row))], now_ns)
        return effects

    def _unregister(self, event: Received, now_ns: int) -> list[Any]:
        name = name_of(event.route)
        member = self.members.get(name)
        effects: list[Any] = []
        if member is not None and member.kind == "worker":
            member.leaving = event.message.reason or "left"
            effects += self.schedule(sched_events.WorkerLeft(name, member.leaving), now_ns)
        elif member is not None:
            effects += self._driver_gone(name, "finished", now_ns)
        effects.append(Send(event.route, messages.Unregistered()))
        if event.message.stop_cluster:
            effects.append(Stop("its driver shut it down"))
        return effects

    def _worker_exited(self, event: WorkerExited, now_ns: int) -> list[Any]:
        self.starting.pop(event.name, None)
        member = self.members.pop(event.name, None)
        if member is None:
            return self.schedule(sched_events.WorkerStartFailed(1, death_text(event)), now_ns)
        death = Death(event.name, event.pid, self.settings.node_name, event.code, event.signal, event.stderr,
                      member.leaving)
        effects = self.schedule(sched_events.WorkerDied(event.name, death), now_ns)
        return effects + self._process_gone(member, now_ns)

    def _fork_failed(self, event: WorkerForkFailed, now_ns: int) -> list[Any]:
        self.starting.pop(event.name, None)
        return self.schedule(sched_events.WorkerStartFailed(1, event.reason), now_ns)

    def _driver_gone(self, name: str, reason: str, now_ns: int) -> list[Any]:
        member = self.members.pop(name, None)
        if member is None:
            return []
        effects = self.schedule(sched_events.DriverGone(name), now_ns)
        effects += self._process_gone(member, now_ns)
        row = tables.JobRow(member.job, name, member.namespace, state="finished" if reason == "finished" else "failed",
                            node=self.node, pid=member.pid, reason=reason)
        effects += self.write([Op(tables.JOB, member.job.encode(), tables.encode(row))], now_ns)
        if self.settings.embedded_pid == member.pid and reason != "finished":
            effects.append(Stop("its driver is gone"))
        return effects

    def _process_gone(self, member: Member, now_ns: int) -> list[Any]:
        effects = self.store.handle(SessionGone(member.name, member.route), now_ns)
        effects += self.store.handle(OwnerGone(member.name), now_ns)
        effects += self.describer.gone(member.name)
        self.actors.forget(member.route)
        gone = objects.HoldersDied([member.name])
        effects += [Send(other.route, gone) for other in self.members.values()]
        effects += [Send(route_to(peer), gone) for peer in self.peers]
        return effects

    def _relay_holders_died(self, event: Received, now_ns: int) -> list[Any]:
        return [Send(member.route, event.message) for member in self.members.values()]

    def _undeliverable(self, event: Undeliverable, now_ns: int) -> list[Any]:
        effects = self._scheduled(self.scheduler.handle(event, now_ns), now_ns)
        return effects + self._gcs_done(self.gcs.handle(event, now_ns), now_ns)

    # --- other nodes ---------------------------------------------------------------------------------------------

    def _view(self, view: ClusterView) -> None:
        for load in view.nodes:
            if load.node != self.node:
                self.peers[load.node] = load.endpoint

    def _peer_gone(self, node: str, now_ns: int) -> list[Any]:
        self.peers.pop(node, None)
        return self.store.handle(HolderGone(node), now_ns)

    def to_peer(self, node: str, message: Any) -> list[Any]:
        """Return the effects of sending to another node that is known."""
        endpoint = self.peers.get(node)
        return [] if endpoint is None else self.to_named(node, endpoint, message)

    def to_named(self, name: str, endpoint: str, message: Any) -> list[Any]:
        """Return the effects of sending to a process at a known endpoint."""
        return [Connect(name, endpoint), Send(route_to(name), message)]

    def _objects_freed(self, event: Received, now_ns: int) -> list[Any]:
        message: objects.ObjectsFreed = event.message
        effects = self.store.handle(event, now_ns)
        if message.node and message.node != self.node:
            effects += self.to_peer(message.node, message)
        return effects

    # --- logs and end --------------------------------------------------------------------------------------------

    def _lines_written(self, event: LinesWritten, now_ns: int) -> list[Any]:
        member = self.members.get(event.worker)
        if member is None:
            return []
        lines = state.LogLines(member.label or "worker", member.pid, self.settings.node_name, event.stream, event.lines,
                               member.serving)
        return self._deliver_lines(lines)

    def _deliver_lines(self, lines: state.LogLines) -> list[Any]:
        for driver in self.members.values():
            if driver.kind == "driver" and driver.job == lines.job:
                return [Send(driver.route, lines)]
        home = "node-" + lines.job.rpartition("-")[0]
        return self.to_peer(home, lines) if home != self.node else []

    def _stop(self, event: Received, now_ns: int) -> list[Any]:
        pids = [member.pid for member in self.members.values() if member.kind == "worker"]
        leave = messages.Leave(event.message.reason or "the cluster was taken down")
        effects: list[Any] = [Send(event.route, state.ClusterStopping(event.message.cookie, pids))]
        effects += [Send(member.route, leave) for member in self.members.values() if member.kind == "driver"]
        return [*effects, Stop(event.message.reason or "taken down")]


def death_text(event: WorkerExited) -> str:
    """Say how a worker ended that never registered."""
    how = f"signal {event.signal}" if event.signal else f"exit code {event.code}"
    return f"worker {event.name} (pid {event.pid}) ended with {how} before it was ready\n{event.stderr}".rstrip()

