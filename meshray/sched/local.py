"""The local scheduler: leases, workers and actors of one node, and the node's place among the others.

*Pure.* Runs in the node process.

1. Every event from which something can follow here is followed by one scheduling pass: place actors, grant leases,
   start workers, ask back, spill over. What passes between our sessions and other nodes' workers needs none.
2. A pass never waits: what cannot be decided now is looked at again at ``deadline_ns``.
3. Sessions are known by the route they registered on; what comes from a route nobody registered is ignored.

Source: OSDI'18 s4.2.2 (bottom-up scheduling).
"""

from __future__ import annotations

from typing import Any

from meshray import config
from meshray.machine import Disconnect, Received, Tick, Undeliverable
from meshray.messages.node import (
    ActorStarted,
    CreateActor,
    Death,
    DeclareDemand,
    KillActor,
    LeaseLost,
    ReassignLeases,
    ReturnLease,
    WorkerBlocked,
    WorkerUnblocked,
)
from meshray.messages.objects import HoldersDied
from meshray.messages.sched import (
    ActorBuilding,
    ActorMoved,
    ClusterView,
    DemandPlaced,
    JobEnded,
    NodeGone,
    ReassignRemoteLeases,
    RemoteLeaseGranted,
    RemoteLeaseReclaimed,
    RequestRemoteLease,
    ReturnRemoteLease,
)
from meshray.sched import describe, policy
from meshray.sched.actors import Actors
from meshray.sched.context import Context
from meshray.sched.demands import Claim, Demands, Owner
from meshray.sched.events import (
    ActorPassed,
    DriverGone,
    SessionJoined,
    StartWorkers,
    Transferred,
    WorkerDied,
    WorkerLeft,
    WorkerStartFailed,
)
from meshray.sched.lending import Lending
from meshray.sched.pool import ACTOR, IDLE, LEASED, LEAVING, Worker
from meshray.sched.presence import Presence
from meshray.sched.reassign import reassign
from meshray.sched.spill import Spill

RECLAIM_NS = 2 * config.MILLISECOND_NS
"""Leases are asked back at most this often."""

WAITING_TICK_NS = 20 * config.MILLISECOND_NS
"""While somebody waits for resources, the passes of time-slicing, reservation and timeouts run this often."""


class LocalScheduler:
    """The machine that the node process composes. See ``events`` for what it takes and gives beside messages."""

    def __init__(self, node: str, name: str, endpoint: str, total: dict[str, int], *,
                 schedulers: dict[str, str] | None = None, incarnation: int = 0, prestart: int = 0,
                 pid: int = 0, labels: dict[str, str] | None = None, locality: bool = True) -> None:
        """``node`` is the process name, by which peers route; ``name`` what users call it; ``total`` in 1/10 000 units;
        ``schedulers``: replica name -> endpoint; ``prestart``: task workers to have from the beginning; ``locality``:
        whether tasks go where their inputs are."""
        self._context = Context(node, name, endpoint, total, incarnation=incarnation, prestart=prestart,
                                carries=labels or {}, locality=locality)
        self._demands = Demands(self._context)
        self._actors = Actors(self._context)
        self._spill = Spill(self._context, self._demands, self._actors)
        self._spill.schedulers = dict(schedulers or {})
        self._lending = Lending(self._demands)
        self._presence = Presence(self._context, self._demands, incarnation=incarnation, pid=pid)
        self._presence.report_to(self._spill.schedulers)
        self._reclaim_ns = self._sweep_ns = 0
        self._waiting = self._postponed = False

    def set_schedulers(self, schedulers: dict[str, str]) -> None:
        """Replace the list of global scheduler replicas: name -> endpoint. They hear of us at the next tick."""
        self._spill.schedulers = dict(schedulers)
        self._presence.report_to(schedulers)

    # --- the machine ---------------------------------------------------------------------------------------------

    def handle(self, event: Any, now_ns: int) -> list[Any]:
        """Take one event, schedule, return the effects in order. Messages of other dialogs are ignored."""
        context = self._context
        context.now_ns = now_ns
        useful = self._take(event)
        overdue = now_ns - self._sweep_ns >= WAITING_TICK_NS
        waiting = self._demands.waiting() if useful or overdue else None
        if waiting is not None:
            if overdue:
                self._sweep(waiting)
            if waiting or self._actors.actors or self._waiting or context.ledger.oversubscribed():
                self._schedule(waiting)
            else:
                self._start_workers(0)
        self._presence.beat(waiting, news=type(event) is not Tick)
        effects, context.effects = context.effects, []
        return effects

    def deadline_ns(self) -> int:
        """When ``Tick`` is due next."""
        rhythm_ns = self._presence.due_ns()
        if self._postponed:
            return min(rhythm_ns, self._reclaim_ns + RECLAIM_NS)
        return min(rhythm_ns, self._sweep_ns + WAITING_TICK_NS) if self._waiting else rhythm_ns

    def check(self) -> None:
        """Assert every invariant of every part."""
        self._context.ledger.check()
        self._context.pool.check()
        self._demands.check()
        self._actors.check()
        self._spill.check()
        self._presence.check()

    def statistics(self) -> dict[str, int]:
        """Return counters and sizes."""
        pool, demands = self._context.pool, self._demands
        waiting = demands.waiting()
        states = [worker.state for worker in pool.workers.values()]
        return {
            "workers_idle": states.count(IDLE), "workers_leased": states.count(LEASED),
            "workers_actor": states.count(ACTOR), "workers_leaving": states.count(LEAVING),
            "workers_starting": pool.starting, "leases": len(demands.leases), "leases_remote": len(self._spill.leases),
            "leases_granted": demands.granted, "leases_lost": demands.lost, "leases_spilled": self._spill.placed,
            "leases_missing": sum(claim.missing for claim in waiting), "owners": len(demands.owners),
            "infeasible": sum(1 for claim in waiting if claim.stuck) + sum(
                1 for actor in self._actors.waiting() if actor.stuck),
            "actors": len(self._actors.actors), "actors_waiting": len(self._actors.waiting()),
            "actors_created": self._actors.created, "nodes_known": len(self._context.view) + 1,
            "bytes_per_s": self._context.bytes_per_s,
        }

    def describe(self) -> dict[str, list[dict[str, Any]]]:
        """Return rows for ``status``: resources, workers, demands, leases, actors, nodes."""
        return describe.rows(self._context, self._demands, self._actors, self._spill)

    # --- events --------------------------------------------------------------------------------------------------

    def _take(self, event: Any) -> bool:
        """Apply one event; False if nothing can follow from it."""
        match event:
            case Received():
                return self._received(event.route, event.message)
            case Tick():
                pass
            case SessionJoined():
                self._joined(event)
            case WorkerLeft():
                self._worker_left(event)
            case WorkerDied():
                self._worker_died(event)
            case DriverGone():
                self._driver_gone(event.name)
            case ActorPassed():
                self._actors.passed(event.actor, event.before)
            case WorkerStartFailed():
                self._context.pool.start_failed(event.count, self._context.now_ns)
            case Transferred():
                self._context.bytes_per_s = policy.average(
                    self._context.bytes_per_s, event.size_bytes * config.SECOND_NS // max(1, event.elapsed_ns))
                return False
            case Undeliverable():
                if type(event.message) is not RemoteLeaseGranted:
                    return False
                self._lending.undeliverable(event.message)
            case _:
                return False
        return True

    def _received(self, route: bytes, message: Any) -> bool:
        match message:  # the most frequent ones first: each case is looked at in turn
            case RemoteLeaseGranted():
                self._spill.granted(route, message)
                return False
            case DeclareDemand() | ReturnLease():
                return self._from_session(route, message)
            case RequestRemoteLease():
                self._lending.asked(route, message)
            case ReturnRemoteLease():
                self._lending.returned(route, message)
            case ReassignRemoteLeases():
                self._lending.reassigned(route, message)
                return False
            case DemandPlaced():
                self._spill.answered(message)
            case RemoteLeaseReclaimed():
                self._spill.reclaimed(message)
                return False
            case NodeGone():
                return self._node_gone(message.node)
            case WorkerBlocked() | WorkerUnblocked() | ReassignLeases() | ActorStarted() | ActorBuilding():
                return self._from_session(route, message)
            case CreateActor():
                self._actors.create(route, message)
            case KillActor():
                self._actors.kill(message)
            case LeaseLost():
                self._spill.lost(message)
            case ClusterView():
                self._cluster_view(message)
            case ActorMoved():
                self._actors.moved(message)
            case HoldersDied():
                self._actors.owners_gone(message.processes)
            case JobEnded():
                self._job_ended(message.job)
            case _:
                return False
        return True

    def _from_session(self, route: bytes, message: Any) -> bool:
        owner = self._demands.owners.get(route.decode(errors="replace"))
        worker = self._context.pool.at(route)
        if owner is None or owner.route != route:
            return False
        match message:
            case DeclareDemand():
                if worker is not None:
                    owner.job = worker.job
                for demand in message.demands:
                    if demand.mean_ns:
                        self._presence.ran(demand.mean_ns)
                    self._spill.trim(self._demands.declare(owner, demand))
            case ReturnLease():
                missing, useful = self._spill.returned(owner, message.leases), False
                for number in message.leases:
                    lease = self._demands.leases.get(number)
                    if lease is not None and lease.claim.owner is owner:
                        self._demands.returned(number)
                        useful = True
                return useful or self._miss(missing)
            case ReassignLeases():
                reassign(self._context, self._demands, self._spill, owner, message)
                return False
            case ActorStarted() | ActorBuilding():
                if worker is not None:
                    self._actors.started(worker, message)
            case _:
                if worker is None or worker.allocation is None:
                    return False
                if type(message) is WorkerBlocked:
                    self._context.ledger.park(worker.allocation)
                else:
                    self._context.ledger.resume(worker.allocation)
        return True

    def _miss(self, claims: list[Claim]) -> bool:
        """Claims have fewer leases elsewhere now, and ask there for others. Whether there is room for them here; if
        not, whom to ask back can wait for the next tick."""
        self._waiting = self._waiting or bool(claims)
        return any(self._context.ledger.fits(claim.need) for claim in claims)

    def _joined(self, event: SessionJoined) -> None:
        if event.name in self._demands.owners:
            return
        nested = event.kind == "worker"
        self._demands.owners[event.name] = Owner(event.name, event.route, event.job, nested)
        if nested:
            self._context.pool.joined(Worker(event.name, event.route, event.pid, event.endpoint, IDLE,
                                             self._context.now_ns))

    def _worker_left(self, event: WorkerLeft) -> None:
        worker = self._context.pool.workers.get(event.name)
        if worker is None or worker.state == LEAVING:
            return
        self._actors.worker_left(worker, event.reason)
        self._context.pool.leaving(worker)
        self._demands.worker_died(worker, Death(worker.name, worker.pid, self._context.node, reason=event.reason))
        if worker.allocation is not None and not worker.allocation.gpus:
            # It may stay a while for those who refer to what it owns. The memory of GPUs is free when the process ends.
            self._take_back(worker)

    def _take_back(self, worker: Worker) -> None:
        if worker.allocation is not None:
            self._context.ledger.give_back(worker.allocation)
            worker.allocation = None

    def _worker_died(self, event: WorkerDied) -> None:
        worker = self._context.pool.died(event.name)
        if worker is None:
            return
        self._take_back(worker)
        self._demands.worker_died(worker, event.death)
        self._actors.worker_died(worker, event.death)
        self._owner_gone(event.name)

    def _driver_gone(self, name: str) -> None:
        owner = self._demands.owners.get(name)
        if owner is None or owner.nested or owner.node:
            return
        self._owner_gone(name)
        if owner.job:
            self._job_ended(owner.job)
            for load in self._context.view.values():
                self._context.send_to(load.node, load.endpoint, JobEnded(owner.job))

    def _owner_gone(self, name: str) -> None:
        self._spill.owner_gone(name)
        self._demands.owner_gone(name)
        self._actors.owners_gone([name])

    def _job_ended(self, job: str) -> None:
        self._actors.job_ended(job)
        for owner in list(self._demands.owners.values()):
            if owner.job != job:
                continue
            for claim in list(owner.claims.values()):
                claim.count = 0
                for number in list(claim.leases):
                    self._demands.returned(number, kill=True)
                self._spill.trim(claim)
            self._lending.forget(owner)

    # --- other nodes ---------------------------------------------------------------------------------------------

    def _cluster_view(self, message: ClusterView) -> None:
        if self._presence.learn(message):
            self._spill.cluster_changed()
        for node in message.gone:
            if node in self._context.view:
                self._node_gone(node)

    def _node_gone(self, node: str) -> bool:
        """Another node is gone; whether anything follows from it here. Every replica says it."""
        if node == self._context.node:
            self._declared_gone()
            return True
        self._presence.forget(node, lambda known: self._context.emit(Disconnect(node)))
        asked, ran = self._spill.node_gone(node), self._actors.node_gone(node)
        owners = [owner.name for owner in self._demands.owners.values() if owner.node == node]
        for name in owners:
            self._demands.owner_gone(name)
        return asked or ran or bool(owners) or not self._context.view

    def _declared_gone(self) -> None:
        """The others gave us up while we were silent: what we lent and borrowed is void."""
        self._demands.void_remote()
        self._actors.given_up()
        for node in {lease.node for lease in self._spill.leases.values()}:
            self._spill.node_gone(node)

    def _sweep(self, waiting: list[Claim]) -> None:
        """Do what is due by the clock alone. Events run this too: a busy node may never see a tick."""
        self._sweep_ns = self._context.now_ns
        self._spill.expire(waiting)
        for worker in self._context.pool.expired(self._context.now_ns):
            self._context.stop(worker, "idle", kill=False)

    # --- scheduling ----------------------------------------------------------------------------------------------

    def _schedule(self, waiting: list[Claim]) -> None:
        now_ns = self._context.now_ns
        needed = self._actors.place() + self._demands.grant(waiting)
        self._start_workers(needed)
        for claim in waiting:
            if claim.sought and claim.sought > claim.missing:
                self._spill.trim(claim)
        self._spill.seek(waiting)
        waiters = self._demands.waiters(waiting) + self._actors.waiters()
        self._waiting = bool(waiters or self._spill.requests or needed)
        self._postponed = bool(waiters) and now_ns - self._reclaim_ns < RECLAIM_NS
        if waiters and not self._postponed:
            self._reclaim_ns = now_ns
            self._demands.reclaim(waiters)

    def _start_workers(self, needed: int) -> None:
        if count := self._context.pool.to_start(needed, self._context.now_ns):
            self._context.emit(StartWorkers(count))
