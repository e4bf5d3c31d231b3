"""Actors that live on this node: from creation over restarts to death.

*Pure.* Runs in the node process, inside ``LocalScheduler``.

1. An actor is placed when its ``place_resources`` are free, and then holds its ``run_resources`` as long as it lives.
2. Each start has its own incarnation; what an earlier incarnation's worker says is ignored.
3. Creation is idempotent by actor id, also when the actor was sent on to another node or is dead already.
4. Where an actor was asked for first is its home. A node that takes it in tells its home of every start and of the end;
   if that node is gone, its home starts it again elsewhere, as a restart. A detached actor whose home is gone has its
   home where it lives, and is started again only by who first says so in its row (``ActorOrphaned``).
5. A worker that dies before the constructor began costs no restart: nothing of the actor was there yet.
6. Death is told once. It is final when the actor was killed for good, left of its own will, failed in its constructor,
   has no restarts left, or its job is over (unless it is detached).

::

    pending -> starting -> building -> alive -> dead
       ^          |           |          |
       +---------- restarting -----------+      worker died, restarts left: the next incarnation

Source: OSDI'18 s4.2; life-cycle names as Ray's.
"""

from __future__ import annotations

import msgspec

from meshray.messages.node import UNSCHEDULABLE, ActorSpec, ActorStarted, CreateActor, Death, KillActor, StartActor
from meshray.messages.sched import ActorBuilding, ActorMoved
from meshray.sched import policy
from meshray.sched.context import Context
from meshray.sched.events import ActorOrphaned, ActorStateChanged
from meshray.sched.policy import Waiter
from meshray.sched.pool import ACTOR, Worker

PENDING = "pending"
STARTING = "starting"
BUILDING = "building"
ALIVE = "alive"
RESTARTING = "restarting"
DEAD = "dead"

ENDED_MAX = 10_000
"""Dead actors remembered, so that a repeated CreateActor does not bring one back; the oldest are forgotten."""


class Actor(msgspec.Struct, eq=False):
    """One actor of this node. ``route`` is where its creation came from, for warnings. ``home`` and ``home_endpoint``
    name the node where it was asked for first, if that is another one."""

    spec: ActorSpec
    route: bytes
    state: str
    since_ns: int
    hops: int = 0
    incarnation: int = 0
    restarts: int = 0
    worker: Worker | None = None
    stuck: str = ""
    stuck_ns: int = 0
    home: str = ""
    home_endpoint: str = ""

    @property
    def restarts_left(self) -> int:
        """Return how often it may still be restarted (-1: always)."""
        return -1 if self.spec.max_restarts < 0 else max(0, self.spec.max_restarts - self.restarts)

    @property
    def waits(self) -> bool:
        """Whether it waits for a place."""
        return self.state in (PENDING, RESTARTING)


class Spilled(msgspec.Struct, eq=False):
    """An actor that was sent on: where it is, as far as this node knows. ``home``: it was asked for here first, so this
    node sees to it that it lives."""

    spec: ActorSpec
    route: bytes
    node: str
    endpoint: str
    home: bool
    incarnation: int = 0
    restarts: int = 0


class Actors:
    """All actors that this node is responsible for, and where it sent others."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.actors: dict[bytes, Actor] = {}
        self.spilled: dict[bytes, Spilled] = {}
        """Actors sent on."""
        self._ended: dict[bytes, None] = {}
        self.created = 0

    # --- birth ---------------------------------------------------------------------------------------------------

    def create(self, route: bytes, message: CreateActor) -> None:
        """Take an actor in; it waits for its place."""
        spec = message.spec
        sent_on = self.spilled.get(spec.actor)
        if spec.detached:
            self.passed(spec.actor, message.incarnation)
        # A home knows where its actors are, unless they are detached and got another home while it was silent.
        if spec.actor in self.actors or spec.actor in self._ended or (sent_on is not None and (
                (sent_on.home and not spec.detached) or message.incarnation <= sent_on.incarnation)):
            return
        self.spilled.pop(spec.actor, None)
        self.created += 1
        actor = Actor(spec, route, PENDING, self._context.now_ns, message.hops, message.incarnation, message.restarts,
                      home=message.home, home_endpoint=message.home_endpoint)
        self.actors[spec.actor] = actor
        if not message.hops:
            self._tell(actor, RESTARTING if message.incarnation else PENDING)
        self._tell_home(actor)

    def place(self) -> int:
        """Start waiting actors whose place is free; return how many workers more could be used now."""
        context, needed = self._context, 0
        if not self.actors:
            return 0
        room = dict(context.ledger.available)
        for actor in self.actors.values():
            if not actor.waits or not self.may_live_here(actor):
                continue
            need = actor.spec.place_resources
            if not policy.covers(room, need) or not context.ledger.fits(actor.spec.run_resources):
                continue
            if context.pool.idle:
                self._start(actor)
            else:
                needed += 1
            policy.subtract(room, actor.spec.run_resources)
        return needed

    def _start(self, actor: Actor) -> None:
        context = self._context
        worker = context.pool.take(ACTOR, context.now_ns)
        worker.actor = actor.spec.actor
        worker.allocation = context.ledger.take(actor.spec.run_resources)
        actor.worker = worker
        actor.state = STARTING
        context.label(worker, actor.spec.class_name, actor.spec.job)
        context.send(worker.route, StartActor(actor.spec, actor.incarnation, worker.allocation.gpus or None))

    def may_live_here(self, actor: Actor) -> bool:
        """Whether this node is large enough and is where the actor's strategy wants it."""
        strategy = actor.spec.strategy
        if strategy.kind == "node" and not (strategy.soft and actor.hops) and not policy.is_here(
                strategy, self._context.node, self._context.name):
            return False
        if strategy.kind == "spread" and not actor.hops and self._context.view:
            return False
        return self._context.able(actor.spec.place_resources, strategy) and self._context.ledger.possible(
            actor.spec.run_resources)

    def started(self, worker: Worker, message: ActorStarted | ActorBuilding) -> None:
        """The constructor is about to run, or returned, or failed."""
        actor = self.actors.get(message.actor)
        if actor is None or actor.worker is not worker or actor.state not in (STARTING, BUILDING) or (
                message.incarnation != actor.incarnation):
            return
        if isinstance(message, ActorBuilding):
            actor.state = BUILDING
        elif message.error is not None:
            self._end(actor, self._death(actor, "its constructor failed"), error=message.error)
            self._context.stop(worker, "the actor's constructor failed", kill=False)
        else:
            actor.state = ALIVE
            self._tell(actor, ALIVE)

    # --- death ---------------------------------------------------------------------------------------------------

    def kill(self, message: KillActor) -> None:
        """End an actor's process now; for good if ``no_restart``."""
        actor = self.actors.get(message.actor)
        if actor is None:
            sent_on = self.spilled.get(message.actor)
            if sent_on is not None:
                self._context.send_to(sent_on.node, sent_on.endpoint, message)
            return
        worker = actor.worker
        if message.no_restart:
            self._end(actor, self._death(actor, message.reason))
        if worker is not None:
            self._context.stop(worker, message.reason, kill=True)

    def worker_left(self, worker: Worker, reason: str) -> None:
        """An actor's worker ends of its own will: that is the actor's end."""
        actor = self.actors.get(worker.actor)
        if actor is not None and actor.worker is worker:
            self._end(actor, self._death(actor, reason or "ended"))

    def worker_died(self, worker: Worker, death: Death) -> None:
        """An actor's worker is gone: the next incarnation, or the end."""
        actor = self.actors.get(worker.actor)
        if actor is None or actor.worker is not worker:
            return
        unborn = actor.state == STARTING
        if not unborn and not actor.restarts_left:
            self._end(actor, death)
            return
        actor.worker = None
        actor.restarts += not unborn
        self._again(actor, death)

    def _again(self, actor: Actor, death: Death) -> None:
        """The next incarnation."""
        actor.incarnation += 1
        actor.state = RESTARTING
        actor.since_ns = self._context.now_ns
        self._tell(actor, RESTARTING, death=death)
        self._tell_home(actor)

    def job_ended(self, job: str) -> None:
        """End the actors of a job that are not detached."""
        for actor in list(self.actors.values()):
            if actor.spec.job == job and not actor.spec.detached:
                self.kill(KillActor(actor.spec.actor, True, "its driver is gone"))
        for identity, sent_on in list(self.spilled.items()):
            if sent_on.spec.job == job and not sent_on.spec.detached:
                del self.spilled[identity]
                self._remember(identity)

    def owners_gone(self, processes: list[str]) -> None:
        """End the actors, unless detached, whose creators are gone."""
        for actor in list(self.actors.values()):
            if actor.spec.owner in processes and not actor.spec.detached:
                self.kill(KillActor(actor.spec.actor, True, f"its creator {actor.spec.owner} is gone"))

    def node_gone(self, node: str) -> bool:
        """Actors that were sent to a node that is gone start again, if they may; whether there were any."""
        lost = [(identity, sent_on) for identity, sent_on in self.spilled.items() if sent_on.node == node]
        for identity, sent_on in lost:
            self._lost(identity, sent_on, node)
        for actor in self.actors.values():
            if actor.home == node and actor.spec.detached:
                actor.home = actor.home_endpoint = ""
                self._tell(actor, ALIVE if actor.state == ALIVE else RESTARTING if actor.incarnation else PENDING)
        return bool(lost)

    def _lost(self, identity: bytes, sent_on: Spilled, node: str) -> None:
        del self.spilled[identity]
        if not sent_on.home:
            return
        if sent_on.spec.detached:
            self._context.emit(ActorOrphaned(identity, sent_on.incarnation, node))
            return
        spec, death = sent_on.spec, Death("", 0, node, reason=f"node {node} is gone")
        actor = Actor(spec, sent_on.route, RESTARTING, self._context.now_ns, 0, sent_on.incarnation, sent_on.restarts)
        if actor.restarts_left:
            actor.restarts += 1
            self.actors[identity] = actor
            self._again(actor, death)
        else:
            self._remember(identity)
            self._tell(actor, DEAD, death=death)

    def moved(self, message: ActorMoved) -> None:
        """The node that has an actor of ours says how it is."""
        sent_on = self.spilled.get(message.actor)
        if sent_on is None or not sent_on.home or message.incarnation < sent_on.incarnation:
            return
        if message.lost:
            if message.node == sent_on.node:
                self._lost(message.actor, sent_on, message.node)
        elif message.ended:
            del self.spilled[message.actor]
            self._remember(message.actor)
        else:
            sent_on.node, sent_on.endpoint = message.node, message.endpoint
            sent_on.incarnation, sent_on.restarts = message.incarnation, message.restarts

    def given_up(self) -> None:
        """The others gave this node up: actors whose home is elsewhere are, or will be, started again from there. Of
        those that are detached the rows will tell."""
        for identity, actor in list(self.actors.items()):
            if actor.home and not actor.spec.detached:
                self._tell_home(actor, lost=True)
                del self.actors[identity]
                if actor.worker is not None:
                    self._context.stop(actor.worker, "this node had been given up", kill=True)

    def passed(self, identity: bytes, before: int) -> None:
        """A detached actor was started by another node: end what is here of earlier incarnations, and say nothing."""
        actor = self.actors.get(identity)
        if actor is None or actor.incarnation >= before:
            return
        del self.actors[identity]
        if actor.worker is not None:
            self._context.stop(actor.worker, "this node had been given up, and the actor was started elsewhere",
                               kill=True)

    def _tell_home(self, actor: Actor, *, ended: bool = False, lost: bool = False) -> None:
        if actor.home:
            context = self._context
            context.send_to(actor.home, actor.home_endpoint, ActorMoved(
                actor.spec.actor, context.node, context.endpoint, actor.incarnation, actor.restarts, ended, lost))

    def unschedulable(self, actor: Actor, reason: str) -> None:
        """The one node where the actor may live has gone."""
        self._end(actor, self._death(actor, f"{UNSCHEDULABLE}{reason}"))

    def _end(self, actor: Actor, death: Death, error: bytes | None = None) -> None:
        del self.actors[actor.spec.actor]
        self._remember(actor.spec.actor)
        self._tell(actor, DEAD, death=death, error=error)
        self._tell_home(actor, ended=True)

    def _remember(self, identity: bytes) -> None:
        self._ended[identity] = None
        if len(self._ended) > ENDED_MAX:
            del self._ended[next(iter(self._ended))]

    def _death(self, actor: Actor, reason: str) -> Death:
        worker = actor.worker
        return Death(worker.name if worker else "", worker.pid if worker else 0, self._context.node, reason=reason)

    def _tell(self, actor: Actor, state: str, death: Death | None = None, error: bytes | None = None) -> None:
        worker = actor.worker
        self._context.emit(ActorStateChanged(
            actor.spec, state, actor.incarnation, worker.name if worker else "", worker.endpoint if worker else "",
            worker.pid if worker else 0, death, error, actor.restarts_left, actor.home or self._context.node))

    # --- moving on -----------------------------------------------------------------------------------------------

    def waiting(self) -> list[Actor]:
        """Return the actors that wait for a place."""
        return [actor for actor in self.actors.values() if actor.waits]

    def waiters(self) -> list[Waiter]:
        """Return the actors that wait for resources of this node."""
        return [Waiter(actor.spec.actor, "actors", 0, 0, actor.since_ns, actor.spec.place_resources, 1)
                for actor in self.waiting() if self.may_live_here(actor)
                and not self._context.ledger.fits(actor.spec.place_resources)]

    def send_on(self, actor: Actor, node: str, endpoint: str) -> None:
        """Another node takes this actor."""
        identity = actor.spec.actor
        del self.actors[identity]
        context = self._context
        self.spilled[identity] = Spilled(actor.spec, actor.route, node, endpoint, not actor.home, actor.incarnation,
                                         actor.restarts)
        context.send_to(node, endpoint, CreateActor(
            actor.spec, actor.hops + 1, actor.home or context.node, actor.home_endpoint or context.endpoint,
            actor.incarnation, actor.restarts))

    def check(self) -> None:
        """Assert that actors and workers agree."""
        for identity, actor in self.actors.items():
            assert (actor.worker is None) == actor.waits, f"actor {identity.hex()} is {actor.state}"
            if actor.worker is not None:
                assert actor.worker.actor == identity
                assert actor.worker.name in self._context.pool.workers, f"actor {identity.hex()} in a dead worker"
            assert identity not in self.spilled
