"""The node's machine: hands every event to the part that decides it, and each part's effects to the others.

*Pure.* Runs in the node process.

1. Every message kind belongs to exactly one part: local scheduler, store, control store client, sessions, actor table,
   describer, or this module.
2. A node that stops tells its drivers why, unless it is killed.

Source: OSDI'18 s4.2 (the node's local scheduler and object store), DESIGN s2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from meshray.gcs import tables
from meshray.gcs.client import GcsClient
from meshray.gcs.requests import Answered, RowChanged, Synced
from meshray.ids import process_name
from meshray.machine import Connect, Disconnect, Received, Send, Stop, Tick, Undeliverable
from meshray.messages import keys as key_messages
from meshray.messages import node as messages
from meshray.messages import objects, sched, state
from meshray.messages.chain import RegisterKnown
from meshray.messages.gcs import Op, ShardDescribed
from meshray.messages.sched import ClusterView, NodeGone
from meshray.node_config import NodeConfig
from meshray.processes.detached_actors import DetachedActors
from meshray.processes.event_table import EventTable
from meshray.processes.node_actors import NodeActors
from meshray.processes.node_describe import Describer
from meshray.processes.node_events import (
    DriverExited,
    ForkWorker,
    GreetNode,
    KillWorker,
    LinesWritten,
    LogsRead,
    ServiceExited,
    WatchDriver,
    WorkerExited,
    WorkerForked,
    WorkerForkFailed,
)
from meshray.processes.node_keys import NodeKeys
from meshray.processes.node_lifetimes import Lifetimes
from meshray.processes.node_logs import NodeLogs
from meshray.processes.node_sessions import NodeSessions, PinSlots
from meshray.processes.placement import Placement
from meshray.processes.retention import Retention
from meshray.processes.revival import Revival
from meshray.processes.supervision import Supervisor
from meshray.resources import UNITS_PER_ONE
from meshray.sched import events as sched_events
from meshray.sched.local import LocalScheduler
from meshray.store import service as store_service
from meshray.store.events import ChunksArrived, HolderGone
from meshray.transport.endpoints import homes_of
from meshray.transport.sockets import route_to

_SCHEDULED = frozenset({
    messages.DeclareDemand, messages.ReturnLease, messages.ReassignLeases, messages.WorkerBlocked,
    messages.WorkerUnblocked, messages.CreateActor, messages.ActorStarted, messages.LeaseLost, *sched.MESSAGES,
})
"""Messages that belong to the local scheduler."""


class NodeMachine:
    """All decisions of one node, composed."""

    def __init__(self, settings: NodeConfig, node: str, endpoint: str, *, entropy: Callable[[], bytes],
                 scheduler: LocalScheduler, store: store_service.StoreService, pins: PinSlots, gcs: GcsClient,
                 pid: int) -> None:
        self.settings = settings
        self.pid = pid
        self.node = node
        self.endpoint = endpoint
        self.scheduler = scheduler
        self.store = store
        self.pins = pins
        self.gcs = gcs
        self.total = {name: int(amount * UNITS_PER_ONE) for name, amount in settings.resources.items()}
        self.sessions = NodeSessions(self)
        self.logs = NodeLogs(self)
        self.lifetimes = Lifetimes(self)
        self.members = self.sessions.members
        self.peers: dict[str, str] = {}
        """Other nodes: id -> endpoint."""
        self._names = {node: settings.node_name}
        self._connects = settings.network is not None and settings.network.connect_only
        self.row = tables.NodeRow(node, settings.node_name, endpoint, self.total, pid=pid,
                                  arena_bytes=settings.object_store_bytes, life=settings.life,
                                  visits=bool(settings.embedded_pid))
        self.events = EventTable(self)
        self.actors = NodeActors(self)
        self.detached = DetachedActors(self)
        self.keys = NodeKeys(self)
        self.describer = Describer(self)
        self._retention = Retention(self)
        self._revival = Revival(self) if settings.revives else None
        self.supervisor = Supervisor(settings.replicated)
        self.placement = Placement(self)
        self._timed = (self.describer, self.sessions, self.logs, self.lifetimes, self._retention, self.actors,
                       self.detached, self.events, self.supervisor, self.placement)
        self._waited = (*store.parts, gcs, *self._timed)
        """What has deadlines beside the scheduler, which always has one."""
        self._entropy = entropy
        self._asked: dict[int, Callable[[Answered, int], list[Any]]] = {}
        self._watched: dict[int, Callable[[RowChanged, int], list[Any]]] = {}
        self._handlers = self._by_message()
        self._by_event: dict[type, Callable[[Any, int], list[Any]]] = {
            WorkerForked: lambda event, now_ns: [],
            WorkerForkFailed: self.sessions.fork_failed,
            WorkerExited: self.sessions.worker_exited,
            DriverExited: self.sessions.driver_exited,
            LogsRead: self.logs.read,
            LinesWritten: self.logs.written,
            ServiceExited: self._service_exited,
            Undeliverable: self._undeliverable,
            Tick: self._tick,
        }

    def _by_message(self) -> dict[type, Callable[[Any, int], list[Any]]]:
        return {
            messages.Register: self.sessions.register,
            messages.Unregister: self.sessions.unregister,
            messages.Ping: lambda event, now_ns: [Send(event.route, messages.Pong(event.message.cookie))],
            messages.WatchActor: self.actors.watch,
            messages.KillActor: self.actors.kill,
            state.DescribeCluster: self.describer.describe,
            state.Description: self.describer.described,
            ShardDescribed: self.describer.shard_described,
            RegisterKnown: self.placement.register_known,
            state.StopCluster: self._stop,
            objects.ObjectsFreed: self.lifetimes.objects_freed,
            objects.HoldersDied: self.lifetimes.holders_died,
            objects.CheckProcesses: self.lifetimes.check_living,
            key_messages.ChangeKey: self.keys.change,
            key_messages.AskWay: self.keys.way,
            objects.OrphansRead: self.lifetimes.orphans_read,
            state.LogLines: lambda event, now_ns: self.logs.deliver(event.message),
            state.FlushLines: self.logs.asked,
            state.LinesFlushed: self.logs.flushed,
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
        effects = self.store.handle(event, now_ns)
        moved = self.store.flow.take_moved() if kind is ChunksArrived else None
        return effects if moved is None else effects + self.schedule(sched_events.Transferred(*moved), now_ns)

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
                effects += self._view(event.message, now_ns)
            elif kind is NodeGone:
                effects += self._peer_gone(event.message.node, now_ns)
            return effects
        return self._gcs_done(self.gcs.handle(event, now_ns), now_ns)

    def deadline_ns(self) -> int:
        """When ``Tick`` is due next."""
        # This runs in every turn: a generator over the parts, and one over their answers, would double its time.
        earliest_ns: int = self.scheduler.deadline_ns()
        for part in self._waited:
            deadline_ns = part.deadline_ns()
            if deadline_ns is not None and deadline_ns < earliest_ns:
                earliest_ns = deadline_ns
        return earliest_ns

    def _tick(self, event: Tick, now_ns: int) -> list[Any]:
        effects = self._scheduled(self.scheduler.handle(event, now_ns), now_ns)
        effects += self.store.handle(event, now_ns)
        effects += self._gcs_done(self.gcs.handle(event, now_ns), now_ns)
        for part in self._timed:
            effects += part.tick(now_ns)
        return effects

    def check(self) -> None:
        """Assert every invariant of every part."""
        self.scheduler.check()
        self.store.check()
        self.sessions.check()

    def statistics(self) -> dict[str, int]:
        """Return the counters of all parts."""
        return {**self.scheduler.statistics(), **self.store.statistics(), **self._retention.statistics(),
                **self.events.counts, **self.detached.counts, "sessions": len(self.members)}

    def begin(self, now_ns: int) -> list[Any]:
        """Return the effects of the node's birth: its row, the first workers, the first heartbeat."""
        self.row = msgspec.structs.replace(self.row, started_wall_ns=now_ns + self.events.wall_offset_ns)
        self.lifetimes.begin(now_ns)
        self._retention.begin(now_ns)
        self.events.begin(now_ns)
        effects = self._put_row(now_ns)
        if self.settings.embedded_pid:
            effects.append(WatchDriver(self.settings.embedded_pid))
        if self._revival is not None:
            effects += self._revival.begin(now_ns)
        return effects + self.keys.begin(now_ns) + self.placement.begin(now_ns) + self.schedule(Tick(), now_ns)

    @property
    def is_ready(self) -> bool:
        """Whether drivers may join: what the tables say of an earlier life of the cluster is put right."""
        return self._revival is None or self._revival.is_done

    def is_beside_head(self) -> bool:
        """Whether the head of the first shard runs here, so that this node does what one does for all."""
        return self.gcs.shards[0].members[0][0] in self.settings.host_shards

    def _put_row(self, now_ns: int) -> list[Any]:
        return self.write([Op(tables.NODE, self.node.encode(), tables.encode(self.row))], now_ns)

    # --- control store -------------------------------------------------------------------------------------------

    def write(self, ops: list[Op], now_ns: int, done: Callable[[Answered, int], list[Any]] | None = None) -> list[Any]:
        """Write rows; ``done`` gets the answer."""
        request, effects = self.gcs.write(ops, now_ns)
        if done is not None:
            self._asked[request] = done
        return self._gcs_done(effects, now_ns)

    def read(self, table: str, key: bytes, now_ns: int, done: Callable[[Answered, int], list[Any]]) -> list[Any]:
        """Read a row."""
        return self.read_all([(table, key)], now_ns, done)

    def read_all(self, keys: list[tuple[str, bytes]], now_ns: int, done: Callable[[Answered, int], list[Any]]
                 ) -> list[Any]:
        """Read rows, (table, key) each."""
        request, effects = self.gcs.read(keys, now_ns)
        self._asked[request] = done
        return self._gcs_done(effects, now_ns)

    def scan(self, table: str, prefix: bytes, limit: int, now_ns: int,
             done: Callable[[Answered, int], list[Any]], *, after: bytes = b"") -> list[Any]:
        """Read rows by key prefix, those behind the key ``after``."""
        request, effects = self.gcs.scan(table, prefix, now_ns, after=after, limit=limit)
        self._asked[request] = done
        return self._gcs_done(effects, now_ns)

    def watch(self, table: str, key: bytes, now_ns: int, changed: Callable[[RowChanged, int], list[Any]], *,
              prefix: bool = False) -> tuple[int, list[Any]]:
        """Follow a row, or all whose key has this prefix; return the watch and effects."""
        watch, effects = self.gcs.watch(table, key, now_ns, prefix=prefix)
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
                        self.sessions.expect(name, now_ns)
                        remaining.append(ForkWorker(name))
                case sched_events.StopWorker():
                    remaining += self._stop_worker(effect)
                case Send(message=messages.CreateActor(spec=spec)):
                    self.detached.sent_on(spec.actor)
                    remaining += [effect, *self.actors.spilled(spec.actor, now_ns)]
                case sched_events.ActorOrphaned():
                    remaining += self.detached.orphaned(effect, now_ns)
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

    def _undeliverable(self, event: Undeliverable, now_ns: int) -> list[Any]:
        effects = self._scheduled(self.scheduler.handle(event, now_ns), now_ns)
        return effects + self._gcs_done(self.gcs.handle(event, now_ns), now_ns)

    # --- other nodes ---------------------------------------------------------------------------------------------

    def _view(self, view: ClusterView, now_ns: int) -> list[Any]:
        effects: list[Any] = []
        for load in view.nodes:
            if load.node != self.node:
                if self._connects and load.node not in self.peers:
                    effects += [Connect(load.node, load.endpoint), GreetNode(load.node)]
                self.peers[load.node] = load.endpoint
                self._names[load.node] = load.name
                effects += self.placement.known(load.name, load.endpoint)
        gone = [node for node in view.gone if node in self.peers]
        return effects + [effect for node in gone for effect in self._peer_gone(node, now_ns)]

    def name_of_node(self, node: str) -> str:
        """Return what users call a node, also one that is gone; its id if it was never heard of."""
        return self._names.get(node, node)

    def _peer_gone(self, node: str, now_ns: int) -> list[Any]:
        if node == self.node:  # the others gave us up while we were silent, and our row says so
            self.events.note("warning", "node came back", "the others had given it up", now_ns)
            return self._put_row(now_ns) + self.detached.given_up(now_ns)
        effects = self.store.handle(HolderGone(node), now_ns)
        if node in self.peers:
            homes = self.homes(node)
            del self.peers[node]
            effects += [Disconnect(node), *self.lifetimes.node_gone(node, homes, now_ns)]
            effects += self.events.node_gone(node, now_ns) + self.placement.gone(self._names[node])
            self.detached.node_gone(node, now_ns)
        return effects

    def homes(self, node: str) -> tuple[str, ...]:
        """Return the homes of the processes of a node that is known."""
        endpoint = self.endpoint if node == self.node else self.peers[node]
        return homes_of(node, self._names[node], endpoint)

    def to_peer(self, node: str, message: Any) -> list[Any]:
        """Return the effects of sending to another node that is known."""
        endpoint = self.peers.get(node)
        return [] if endpoint is None else self.to_named(node, endpoint, message)

    def to_named(self, name: str, endpoint: str, message: Any) -> list[Any]:
        """Return the effects of sending to a process at a known endpoint."""
        return [Connect(name, endpoint), Send(route_to(name), message)]

    def _service_exited(self, event: ServiceExited, now_ns: int) -> list[Any]:
        """One of our services ended."""
        effects = self.placement.exited(event, now_ns)
        if not self.placement.is_here(event.name):
            return effects
        self.events.note("warning", "service ended", f"pid {event.pid}: {event.reason}; it is started again", now_ns,
                         source=event.name)
        return effects + self._ending(self.supervisor.exited(event, now_ns), now_ns)

    # --- end ---------------------------------------------------------------------------------------------------

    def _stop(self, event: Received, now_ns: int) -> list[Any]:
        pids = [member.pid for member in self.members.values() if member.kind == "worker"]
        stopping = Send(event.route, state.ClusterStopping(event.message.cookie, pids))
        return [stopping, *self._ending([Stop(event.message.reason or "the cluster was taken down")], now_ns)]

    def _ending(self, effects: list[Any], now_ns: int) -> list[Any]:
        """If the effects stop this node, say so to its drivers first."""
        reasons = [effect.reason for effect in effects if type(effect) is Stop]
        farewell: list[Any] = [Send(member.route, messages.Leave(reason)) for reason in reasons
                               for member in self.members.values() if member.kind == "driver"]
        return farewell + [each for reason in reasons for each in self.events.last_words(reason, now_ns)] + effects
