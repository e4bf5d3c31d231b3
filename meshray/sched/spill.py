"""Work that should run elsewhere: asking for places, asking the places, and relaying what they answer.

*Pure.* Runs in the node process, inside ``LocalScheduler``.

1. At most one PlaceDemand is open per claim or actor. On silence the same request goes to the next replica.
2. For each claim: leases asked for elsewhere and not held <= leases that it misses; what is no longer needed is
   taken back from the node that was asked.
3. A lease of another node is known here from its grant until it is returned or lost; each is told its owner once.
4. Only claims of this node's own sessions spill; what was placed here stays.

Source: OSDI'18 s4.2.2 (bottom-up: the global scheduler sees only what the local one cannot or should not run).
"""

from __future__ import annotations

from typing import Any

import msgspec

from meshray import config
from meshray.messages.node import Death, Demand, DemandStuck, LeaseGranted, LeaseLost, LeaseReclaimed, Strategy
from meshray.messages.sched import (
    DemandPlaced,
    PlaceDemand,
    RemoteLeaseGranted,
    RemoteLeaseReclaimed,
    RequestRemoteLease,
    ReturnRemoteLease,
)
from meshray.sched import policy, reasons
from meshray.sched.actors import Actor, Actors
from meshray.sched.context import Context
from meshray.sched.demands import Ask, Claim, Demands, Owner
from meshray.sched.events import Warn
from meshray.sched.ledger import visible

PLACE_TIMEOUT_NS = 500 * config.MILLISECOND_NS
"""Silence after which the next replica is asked."""

ASK_TIMEOUT_NS = 500 * config.MILLISECOND_NS
"""A node that grants nothing for this long is taken off the list for the next placement."""

PLACE_PAUSE_NS = 100 * config.MILLISECOND_NS
"""Between two placements for the same claim or actor when the first one brought nothing."""

STUCK_PAUSE_NS = 2 * config.SECOND_NS
"""Between two placements of what no node can satisfy; a change of the cluster ends the pause."""

LEASES_MAX = 64
"""Leases sought in one placement; who wants more asks again at once. Bounds what a replica does for one message."""

HOPS_MAX = 3
"""Times an actor is sent on before it queues where it is."""


class Request(msgspec.Struct, eq=False):
    """An open PlaceDemand. ``key`` is a claim's or an actor's."""

    message: PlaceDemand
    key: Any
    sent_ns: int


class RemoteLease(msgspec.Struct, eq=False):
    """A lease that another node granted to one of our sessions."""

    claim: Claim
    node: str
    worker: str
    pid: int


class Spill:
    """All dialogs about placement with replicas and other nodes, on the asking side."""

    def __init__(self, context: Context, demands: Demands, actors: Actors) -> None:
        self._context = context
        self._demands = demands
        self._actors = actors
        self.schedulers: dict[str, str] = {}
        self.requests: dict[int, Request] = {}
        self.leases: dict[int, RemoteLease] = {}
        self.placed = 0
        self._open: dict[Any, int] = {}
        self._not_before_ns: dict[Any, int] = {}
        self._shunned: dict[Any, list[str]] = {}
        self._number = 0
        self._replica = 0

    # --- asking for places ---------------------------------------------------------------------------------------

    def seek(self, waiting: list[Claim]) -> None:
        """Ask for places for what cannot or should not wait here. ``waiting``: the claims that may lack leases."""
        for claim in waiting:
            if not claim.owner.node:
                self._seek_claim(claim)
        for actor in self._actors.waiting():
            self._seek_actor(actor)

    def _seek_claim(self, claim: Claim) -> None:
        short = claim.missing - claim.sought
        if short <= 0 or self._resting(key := (claim.owner.name, claim.klass)):
            return
        need = visible(claim.need)
        if self._must_move(claim):
            count = short if claim.strategy.kind != "spread" else short - max(0, claim.quota - len(claim.leases))
        elif self._context.view:
            travel_ns = 0 if claim.away or not claim.input_bytes else policy.transfer_ns(
                claim.input_bytes, "", self._context.bytes_per_s)
            count = policy.spill_count(
                min(short, claim.short), backlog=claim.backlog, mean_ns=claim.mean_ns, running=len(claim.leases),
                waited_ns=self._context.now_ns - claim.since_ns, travel_ns=travel_ns, away=claim.away)
        else:
            count = 0
        if count > 0:
            self._ask(key, PlaceDemand(
                0, self._context.node, need, min(count, LEASES_MAX), claim.strategy, claim.mean_ns, claim.input_bytes,
                None, claim.backlog))

    def _must_move(self, claim: Claim) -> bool:
        context, strategy = self._context, claim.strategy
        if strategy.kind == "node" and not policy.is_here(strategy, context.node, context.name):
            return not (strategy.soft and claim.quota)
        if not context.able(claim.need, strategy):
            return True
        return strategy.kind == "spread" and bool(context.view)

    def _seek_actor(self, actor: Actor) -> None:
        key, need = actor.spec.actor, actor.spec.place_resources
        if self._resting(key) or actor.hops >= HOPS_MAX:
            return
        if self._actors.may_live_here(actor) and (self._context.ledger.fits(need) or not self._context.view):
            return
        need = {name: max(need.get(name, 0), actor.spec.run_resources.get(name, 0))
                for name in need.keys() | actor.spec.run_resources.keys()}
        self._ask(key, PlaceDemand(0, self._context.node, need, 1, actor.spec.strategy))

    def _resting(self, key: Any) -> bool:
        return key in self._open or self._context.now_ns < self._not_before_ns.get(key, 0)

    def _ask(self, key: Any, message: PlaceDemand) -> None:
        if not self.schedulers:
            self._alone(key, message)
            return
        self._number += 1
        exclude = self._shunned.pop(key, None)
        message = msgspec.structs.replace(message, request=self._number, exclude=exclude)
        self.requests[self._number] = Request(message, key, self._context.now_ns)
        self._open[key] = self._number
        self._send_request(self.requests[self._number])

    def _alone(self, key: Any, message: PlaceDemand) -> None:
        """No global scheduler: this node is the cluster."""
        context = self._context
        need, strategy = message.resources, message.strategy
        reason = reasons.unsuitable(need, strategy, [(context.ledger.total, context.labels)])
        if strategy.kind == "node" and not strategy.soft and not policy.is_here(strategy, context.node, context.name):
            reason = reasons.unsuitable_node(need, strategy, None)
        places = [] if reason else [(context.node, context.endpoint, message.count)]
        self._take_places(key, places, not reason, reason)

    def _send_request(self, request: Request) -> None:
        names = list(self.schedulers)
        name = names[self._replica % len(names)]
        self._context.send_to(name, self.schedulers[name], request.message)

    def answered(self, message: DemandPlaced) -> None:
        """A replica chose places."""
        request = self.requests.pop(message.request, None)
        if request is None:
            return
        self._open.pop(request.key, None)
        self._take_places(request.key, message.places, message.feasible, message.reason)

    def _take_places(self, key: Any, places: list[tuple[str, str, int]], feasible: bool, reason: str) -> None:
        elsewhere = [place for place in places if place[0] != self._context.node]
        claim = None if isinstance(key, bytes) else self._claim(*key)
        if not elsewhere and not (places and claim is not None and claim.strategy.kind == "spread"):
            self._not_before_ns[key] = self._context.now_ns + (PLACE_PAUSE_NS if feasible else STUCK_PAUSE_NS)
        if isinstance(key, bytes):
            self._actor_placed(key, places, "" if feasible else reason)
        if claim is None:
            return
        self._stuck(claim, "" if feasible else reason)
        claim.quota += sum(count for node, _, count in places if node == self._context.node)
        room = claim.missing - claim.sought
        for node, endpoint, count in elsewhere:
            count = min(count, room)
            if count > 0:
                room -= count
                self.placed += count
                ask = claim.ask(node, endpoint, count)
                ask.progress_ns = self._context.now_ns
                self._send_ask(claim, node, ask)

    def _actor_placed(self, key: bytes, places: list[tuple[str, str, int]], reason: str) -> None:
        actor = self._actors.actors.get(key)
        if actor is None or not actor.waits:
            return
        if reason and actor.stuck == reason and self._is_final(actor.spec.strategy, actor.stuck_ns):
            self._actors.unschedulable(actor, reason)
            return
        if actor.stuck != reason:
            actor.stuck, actor.stuck_ns = reason, self._context.now_ns
            if reason and not actor.hops:
                self._context.emit(Warn(actor.route, f"actor {actor.spec.class_name} cannot be placed and stays "
                                                     f"pending: {reason}"))
        if places and places[0][0] == self._context.node:
            actor.hops = max(actor.hops, 1)
        elif places:
            self.placed += 1
            self._actors.send_on(actor, places[0][0], places[0][1])

    def _stuck(self, claim: Claim, reason: str) -> None:
        if claim.stuck != reason:
            claim.stuck, claim.stuck_ns = reason, self._context.now_ns
            self._context.send(claim.owner.route, DemandStuck(claim.klass, reason))
        elif reason and self._is_final(claim.strategy, claim.stuck_ns):
            self._context.send(claim.owner.route, DemandStuck(claim.klass, reason, True))

    def _is_final(self, strategy: Strategy, since_ns: int) -> bool:
        """Whether the one node that is allowed has been missing so long that it will not be heard of again."""
        context = self._context
        known = [(context.node, context.name), *((load.node, load.name) for load in context.view.values())]
        return (strategy.kind == "node" and not strategy.soft and context.now_ns - since_ns >= config.SUSPICION_NS
                and not any(policy.is_here(strategy, node, name) for node, name in known))

    def cluster_changed(self) -> None:
        """Nodes came or grew: ask again for what no node could satisfy."""
        self._not_before_ns.clear()

    # --- asking the places ---------------------------------------------------------------------------------------

    def _claim(self, owner: str, klass: int) -> Claim | None:
        known = self._demands.owners.get(owner)
        return known.claims.get(klass) if known is not None else None

    def _send_ask(self, claim: Claim, node: str, ask: Ask) -> None:
        self._context.send_to(node, ask.endpoint, RequestRemoteLease(
            claim.owner.name, self._context.node, claim.owner.job, *self.wish(claim, ask)))

    def wish(self, claim: Claim, ask: Ask) -> tuple[Demand, bool]:
        """Return what a node is told of a claim: the demand there, and whether others may be asked to return leases."""
        return Demand(claim.klass, visible(claim.need), ask.asked, claim.label, claim.strategy, claim.backlog,
                      claim.mean_ns, claim.input_bytes), not claim.held or claim.away or self._must_move(claim)

    def trim(self, claim: Claim) -> None:
        """Take back what was asked elsewhere and is no longer missed."""
        surplus = claim.sought - claim.missing
        for node, ask in list(claim.remote.items()) if surplus > 0 else ():
            less = min(ask.asked - ask.held, surplus)
            if less:
                surplus -= less
                claim.ask(node, ask.endpoint, -less)
                self._send_ask(claim, node, ask)
        self._demands.tidy(claim)

    def granted(self, route: bytes, message: RemoteLeaseGranted) -> None:
        """Another node lends a worker: pass it on, or give it back if nobody needs it."""
        claim = self._claim(message.owner, message.klass)
        ask = claim.remote.get(message.node) if claim is not None else None
        if claim is None or ask is None or not claim.missing:
            if message.lease not in self.leases:
                self._context.send(route, ReturnRemoteLease(
                    [message.lease], False, message.owner, message.klass, ask.asked if ask is not None else 0))
            return
        if message.lease in self.leases:
            return
        if ask.asked == ask.held:
            claim.ask(message.node, ask.endpoint, 1)
        claim.lend(message.node, 1)
        ask.progress_ns = self._context.now_ns
        self.leases[message.lease] = RemoteLease(claim, message.node, message.worker, message.pid)
        self._context.send(claim.owner.route, LeaseGranted(message.klass, message.lease, message.worker,
                                                           message.endpoint, message.node, message.pid, message.gpus))
        self.trim(claim)

    def reclaimed(self, message: RemoteLeaseReclaimed) -> None:
        """The granting node wants a lease back."""
        lease = self.leases.get(message.lease)
        if lease is not None:
            self._context.send(lease.claim.owner.route, LeaseReclaimed(message.lease))

    def returned(self, owner: Owner, numbers: list[int], *, kill: bool = False) -> list[Claim]:
        """An owner is done with leases of other nodes. Return its claims that miss one now."""
        done: dict[tuple[int, str], list[int]] = {}
        for number in numbers:
            lease = self.leases.get(number)
            if lease is not None and lease.claim.owner is owner:
                del self.leases[number]
                done.setdefault((lease.claim.klass, lease.node), []).append(number)
        missing: dict[int, Claim] = {}
        for (klass, node), leases in done.items():
            claim = owner.claims[klass]
            ask = claim.remote[node]
            claim.lend(node, -len(leases))
            claim.ask(node, ask.endpoint, -claim.surplus(ask))
            if not kill and not claim.missing:
                self._hand_over(claim, node, ask.endpoint, len(leases))
            self._context.send_to(node, ask.endpoint, ReturnRemoteLease(leases, kill, owner.name, klass, ask.asked))
            self.trim(claim)
            if claim.missing:
                missing[klass] = claim
        return list(missing.values())

    def lost(self, message: LeaseLost) -> None:
        """A worker of another node died."""
        lease = self.leases.pop(message.lease, None)
        if lease is not None:
            self._release(lease)
            self._context.send(lease.claim.owner.route, message)

    def _hand_over(self, given: Claim, node: str, endpoint: str, count: int) -> None:
        """Workers elsewhere are not needed any longer: seek them for another class of the same owner that waits."""
        for claim in given.owner.claims.values():
            more = min(count, claim.missing - claim.sought)
            if more > 0 and claim is not given and claim.need == given.need and not claim.away and (
                    claim.strategy == given.strategy) and claim.strategy.kind == "default":
                ask = claim.ask(node, endpoint, more)
                ask.progress_ns = self._context.now_ns
                self._send_ask(claim, node, ask)
                count -= more

    def _release(self, lease: RemoteLease) -> None:
        """A lease of another node has ended; another one is sought there if it is still missed."""
        lease.claim.lend(lease.node, -1)
        self.trim(lease.claim)

    def owner_gone(self, name: str) -> None:
        """Our session is gone: take back what was asked and return what it held elsewhere."""
        owner = self._demands.owners.get(name)
        if owner is None:
            return
        for claim in list(owner.claims.values()):
            claim.count = 0
            self.returned(owner, [number for number, lease in self.leases.items() if lease.claim is claim], kill=True)
            self.trim(claim)

    def node_gone(self, node: str) -> bool:
        """Another node is gone: its leases are lost, what was asked there is asked elsewhere. Whether anything was."""
        asking = [claim for claim in self._demands.claims() if node in claim.remote]
        if not asking:
            return False
        for number, lease in list(self.leases.items()):
            if lease.node == node:
                self.lost(LeaseLost(number, Death(lease.worker, lease.pid, node, reason=f"node {node} is gone")))
        for claim in asking:
            ask = claim.remote.get(node)
            if ask is not None:
                claim.ask(node, ask.endpoint, ask.held - ask.asked)
                self._demands.tidy(claim)
        return True

    # --- time ----------------------------------------------------------------------------------------------------

    def expire(self, waiting: list[Claim]) -> None:
        """Turn to the next replica where one is silent; turn away from nodes that grant nothing. ``waiting``: who lacks
        leases."""
        now_ns = self._context.now_ns
        late = [request for request in self.requests.values()
                if now_ns - request.sent_ns > PLACE_TIMEOUT_NS] if self.requests else []
        if late:
            self._replica += 1
        for request in late:
            request.sent_ns = now_ns
            if self.schedulers:
                self._send_request(request)
        for claim in waiting:
            for node, ask in list(claim.remote.items()) if claim.sought else ():
                if ask.asked > ask.held and now_ns - ask.progress_ns > ASK_TIMEOUT_NS:
                    self._shunned.setdefault((claim.owner.name, claim.klass), []).append(node)
                    claim.ask(node, ask.endpoint, ask.held - ask.asked)
                    self._send_ask(claim, node, ask)
        if self._not_before_ns:
            self._not_before_ns = {key: due for key, due in self._not_before_ns.items() if due > now_ns}
        if self._shunned:
            self._shunned = {key: nodes for key, nodes in self._shunned.items() if key[0] in self._demands.owners}

    def check(self) -> None:
        """Assert invariants 1 to 3."""
        assert len(self._open) == len(self.requests)
        held: dict[tuple[int, str], int] = {}
        for lease in self.leases.values():
            held[id(lease.claim), lease.node] = held.get((id(lease.claim), lease.node), 0) + 1
        for claim in self._demands.claims():
            for node, ask in claim.remote.items():
                assert 0 <= ask.held <= ask.asked, f"{node} lent {ask.held} of {ask.asked} asked"
                assert ask.held == held.get((id(claim), node), 0), f"{node}: {ask.held} leases held, list differs"
            waiting = sum(ask.asked - ask.held for ask in claim.remote.values())
            assert claim.sought == waiting, f"{claim.sought} sought, {waiting} asked for"
            assert claim.lent == sum(ask.held for ask in claim.remote.values()), "leases lent are miscounted"
            assert waiting <= claim.missing, f"{waiting} asked elsewhere, {claim.missing} missing"
