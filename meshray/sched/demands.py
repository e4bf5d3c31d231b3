"""Owners, their claims, and the leases of this node's workers that answer them.

*Pure.* Runs in the node process, inside ``LocalScheduler``.

1. A claim is the last word of an owner on one scheduling class: how many leases it could use in all. Saying it again
   changes nothing; count 0 cancels what was not granted yet.
2. A lease belongs to one claim and to one worker; a leased worker holds the claim's resources until the lease is
   returned or the worker is gone.
3. A lease is asked back at most once.
4. An owner that goes takes its claims along; workers that may still run its tasks are killed.

An owner is a session of this node, or one of another node whose scheduler asks in its name (``node`` is set).

Source: OSDI'18 s4.2.2; leases as in NSDI'21 s4.
"""

from __future__ import annotations

import heapq

import msgspec

from meshray.machine import Send
from meshray.messages.node import Death, Demand, LeaseGranted, LeaseLost, LeaseReclaimed, Strategy
from meshray.messages.sched import RemoteLeaseGranted, RemoteLeaseReclaimed
from meshray.sched import policy
from meshray.sched.context import Context
from meshray.sched.ledger import WEIGHTLESS
from meshray.sched.policy import UNIT, Holding, Resources, Waiter
from meshray.sched.pool import LEASED, Worker

RECLAIM_PATIENCE_NS = 4 * policy.SPILL_WAIT_NS
"""A lease asked back is counted on for this long; after that its task is a long one, and others are asked as well."""


class Ask(msgspec.Struct, eq=False):
    """What a claim seeks at another node: ``asked`` leases in all, of which ``held`` came."""

    endpoint: str
    asked: int
    held: int = 0
    progress_ns: int = 0


class Owner(msgspec.Struct, eq=False):
    """Somebody who asks for leases. ``nested``: a worker, whose task may be waiting for what it asks."""

    name: str
    route: bytes
    job: str = ""
    nested: bool = False
    node: str = ""
    held: int = 0
    claims: dict[int, Claim] = {}


class Claim(msgspec.Struct, eq=False):
    """An owner's demand in one class, and what answers it. ``short``: leases that lack resources here, as of now."""

    owner: Owner
    klass: int
    need: Resources
    count: int
    since_ns: int
    label: str = ""
    strategy: Strategy = Strategy()
    backlog: int = 0
    mean_ns: int = 0
    input_bytes: dict[str, int] | None = None
    travel_ns: int = 0
    """How long the inputs of a task would travel to this node."""
    able: bool = False
    """Whether this node is large enough and carries the right labels: both stay as they are while the node lives."""
    leases: dict[int, Lease] = {}
    remote: dict[str, Ask] = {}
    lent: int = 0
    """Leases held elsewhere: the sum of ``held`` over ``remote``."""
    sought: int = 0
    """Leases asked for elsewhere and not held: the sum of ``asked - held`` over ``remote``."""
    entitled: bool = True
    """Whether others may be asked to return leases for this claim."""
    short: int = 0
    quota: int = 0
    """Leases that a global scheduler placed here; only these run here when the strategy is spread."""
    stuck: str = ""
    stuck_ns: int = 0

    @property
    def held(self) -> int:
        """Leases held here and elsewhere."""
        return len(self.leases) + self.lent

    @property
    def missing(self) -> int:
        """Leases wanted and not held."""
        missing = self.count - len(self.leases) - self.lent
        return missing if missing > 0 else 0

    @property
    def away(self) -> bool:
        """Whether the inputs lie elsewhere, and far."""
        return self.travel_ns >= policy.AWAY_NS

    def ask(self, node: str, endpoint: str, change: int) -> Ask:
        """Seek ``change`` leases more at a node (or less); forget it when nothing is asked and held there."""
        ask = self.remote.get(node)
        if ask is None:
            ask = self.remote[node] = Ask(endpoint, 0)
        ask.asked += change
        self.sought += change
        if not ask.asked:
            del self.remote[node]
        return ask

    def surplus(self, ask: Ask) -> int:
        """Return how many of the leases that are asked for at a node, and not held, are no longer missed."""
        return max(0, min(ask.asked - ask.held, self.sought - self.missing))

    def lend(self, node: str, change: int) -> None:
        """A node lent a lease that was asked for (1), or has it back (-1): then another one is sought there."""
        self.remote[node].held += change
        self.lent += change
        self.sought -= change


class Lease(msgspec.Struct, eq=False):
    """One worker lent to one claim. ``reclaimed_ns``: when it was asked back (0: not)."""

    number: int
    claim: Claim
    worker: Worker
    since_ns: int
    reclaimed_ns: int = 0


class Demands:
    """All claims on this node and the leases it granted."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.owners: dict[str, Owner] = {}
        self.leases: dict[int, Lease] = {}
        self._claims: dict[tuple[str, int], Claim] = {}
        """The claims of all owners: most owners are workers that ask for nothing, and a pass need not look at them."""
        self.granted = 0
        self.lost = 0
        self.starting: Resources = {}
        """What is set aside for work that only lacks a worker."""

    # --- what owners say -----------------------------------------------------------------------------------------

    def declare(self, owner: Owner, demand: Demand) -> Claim:
        """Take an owner's word on one class; return the claim, which may already be over."""
        claim = owner.claims.get(demand.klass)
        need = {name: amount for name, amount in demand.resources.items() if amount > 0} or {WEIGHTLESS: UNIT}
        if claim is None:
            claim = owner.claims[demand.klass] = Claim(owner, demand.klass, need, 0, self._context.now_ns)
            self._claims[owner.name, demand.klass] = claim
        if claim.missing == 0:
            claim.since_ns = self._context.now_ns
        claim.need = need
        claim.count = max(0, demand.count)
        claim.label = demand.label
        claim.strategy = demand.strategy
        claim.able = self._context.able(need, demand.strategy)
        claim.backlog = demand.backlog
        claim.mean_ns = demand.mean_ns
        claim.input_bytes = demand.input_bytes if self._context.locality else None
        claim.travel_ns = policy.transfer_ns(claim.input_bytes, self._context.node, self._context.bytes_per_s) if (
            claim.input_bytes) else 0
        self.tidy(claim)
        return claim

    def tidy(self, claim: Claim) -> None:
        """Forget a claim that wants and holds nothing."""
        if not claim.count and not claim.leases and not claim.remote:
            claim.owner.claims.pop(claim.klass, None)
            if self._claims.get((claim.owner.name, claim.klass)) is claim:
                del self._claims[claim.owner.name, claim.klass]

    def reassign(self, lease: Lease, claim: Claim) -> None:
        """Let a lease serve another claim of its owner that needs the same."""
        left = lease.claim
        if left is claim or left.owner is not claim.owner or left.need != claim.need:
            return
        del left.leases[lease.number]
        lease.claim = claim
        claim.leases[lease.number] = lease
        claim.since_ns = self._context.now_ns
        self._context.label(lease.worker, claim.label, claim.owner.job)

    def returned(self, number: int, *, kill: bool = False) -> None:
        """An owner is done with a lease; its worker is free again (or is killed, if the owner may still use it)."""
        lease = self._end(number)
        if lease is None:
            return
        worker = lease.worker
        if kill:
            self._context.stop(worker, "its owner is gone", kill=True)
        elif worker.state == LEASED:
            if worker.allocation is not None:
                self._context.ledger.give_back(worker.allocation)
                worker.allocation = None
            self._context.pool.rest(worker, self._context.now_ns)

    def worker_died(self, worker: Worker, death: Death) -> None:
        """Tell the owner that its lease is lost."""
        lease = self._end(worker.lease)
        if lease is not None:
            self.lost += 1
            self._context.send(lease.claim.owner.route, LeaseLost(lease.number, death))

    def owner_gone(self, name: str) -> None:
        """Drop an owner's claims; kill the workers that it may be using."""
        owner = self.owners.pop(name, None)
        if owner is None:
            return
        for claim in list(owner.claims.values()):
            claim.count = 0
            for number in list(claim.leases):
                self.returned(number, kill=True)
        for klass in owner.claims:
            self._claims.pop((owner.name, klass), None)
        owner.claims.clear()

    def void_remote(self) -> None:
        """End every lease of other nodes' owners, and tell them: one that missed our being given up waits for it."""
        for owner in [owner for owner in self.owners.values() if owner.node]:
            for claim in owner.claims.values():
                for number, lease in claim.leases.items():
                    self._context.send(owner.route, LeaseLost(number, Death(
                        lease.worker.name, lease.worker.pid, self._context.node, signal=9,
                        reason=f"node {self._context.node} had been given up")))
            self.owner_gone(owner.name)

    def _end(self, number: int) -> Lease | None:
        lease = self.leases.pop(number, None)
        if lease is not None:
            lease.worker.lease = 0
            lease.claim.owner.held -= 1
            del lease.claim.leases[number]
            self.tidy(lease.claim)
        return lease

    # --- granting ------------------------------------------------------------------------------------------------

    def claims(self) -> list[Claim]:
        """Return every claim."""
        return list(self._claims.values())

    def waiting(self) -> list[Claim]:
        """Return the claims that want more than they hold."""
        return [claim for claim in self._claims.values() if claim.count > len(claim.leases) + claim.lent]

    def grant(self, waiting: list[Claim]) -> int:
        """Grant what resources and idle workers allow, in turns; return how many workers more could be used now.

        Work that lacks only a worker has its resources set aside in ``room``, so that nobody later in turn takes them
        and no more workers start than resources justify."""
        context, ledger = self._context, self._context.ledger
        starting: Resources = {}
        needed = 0
        kept: set[str] = set()
        here, any_fits = [], False
        for position, claim in enumerate(waiting):
            claim.short = claim.missing
            if self._wanted_here(claim):
                here.append((position, claim))
                any_fits = any_fits or policy.covers(ledger.available, claim.need)
        # Most passes of a node that is full end here: for what fits now, the others' turns count as well.
        heap = [(self._turn(claim, 0), position, claim, 0) for position, claim in here] if any_fits else []
        heapq.heapify(heap)
        room = dict(ledger.available) if heap else {}
        while heap:
            _, position, claim, pending = heapq.heappop(heap)
            blocked = not claim.owner.nested and not kept.isdisjoint(claim.need)
            if blocked or not policy.covers(room, claim.need) or not ledger.fits(claim.need):
                if policy.keeps_free(context.now_ns - claim.since_ns) and ledger.possible(claim.need):
                    kept.update(claim.need)
                continue
            if context.pool.idle:
                self._grant_one(claim)
            else:
                needed += 1
                pending += 1
                for name, amount in claim.need.items():
                    starting[name] = starting.get(name, 0) + amount
            policy.subtract(room, claim.need)
            claim.short -= 1
            if self._wanted_here(claim) > pending:
                heapq.heappush(heap, (self._turn(claim, pending), position, claim, pending))
        self.starting = starting
        return needed

    def _turn(self, claim: Claim, pending: int) -> tuple[bool, int, int, int]:
        return claim.away, *policy.turn(claim.owner.held + pending, len(claim.leases) + pending, claim.since_ns)

    def _wanted_here(self, claim: Claim) -> int:
        """Return how many more leases the claim may get from this node, resources aside."""
        strategy = claim.strategy
        if not claim.able:
            return 0
        if strategy.kind == "default" and not claim.travel_ns:
            return claim.missing
        if claim.away and not policy.may_run_away(
                self._context.now_ns - claim.since_ns, backlog=claim.backlog, mean_ns=claim.mean_ns,
                running=claim.lent, travel_ns=claim.travel_ns):
            return 0
        if strategy.kind == "node" and not claim.owner.node and not (
                policy.is_here(strategy, self._context.node, self._context.name)
                or (strategy.soft and claim.quota > 0)):
            return 0
        if strategy.kind == "spread" and not claim.owner.node and self._context.view:
            return min(claim.missing, max(0, claim.quota - len(claim.leases)))
        return claim.missing

    def _grant_one(self, claim: Claim) -> None:
        context = self._context
        worker = context.pool.take(LEASED, context.now_ns)
        worker.allocation = context.ledger.take(claim.need)
        gpus = worker.allocation.gpus or None
        lease = Lease(context.next_lease(), claim, worker, context.now_ns)
        worker.lease = lease.number
        claim.leases[lease.number] = self.leases[lease.number] = lease
        claim.since_ns = context.now_ns
        owner = claim.owner
        owner.held += 1
        self.granted += 1
        context.label(worker, claim.label, owner.job)
        if owner.node:
            context.send(owner.route, RemoteLeaseGranted(owner.name, claim.klass, lease.number, worker.name,
                                                         worker.endpoint, context.node, worker.pid, gpus))
        else:
            context.send(owner.route, LeaseGranted(claim.klass, lease.number, worker.name, worker.endpoint,
                                                   context.node, worker.pid, gpus))

    # --- asking back ---------------------------------------------------------------------------------------------

    def waiters(self, waiting: list[Claim]) -> list[Waiter]:
        """Return who lacks resources here, as ``grant`` found: first of all the workers that went on after waiting,
        for what they took beyond the total."""
        over = dict.fromkeys(self._context.ledger.oversubscribed(), 0)
        found = [Waiter("unblocked", "", 0, 0, 0, over, 1)] if over else []
        for claim in waiting:
            short = min(claim.short, self._wanted_here(claim)) if claim.entitled and claim.short else 0
            if short:
                found.append(Waiter((claim.owner.name, claim.klass), claim.owner.name, claim.owner.held,
                                    len(claim.leases), claim.since_ns, claim.need, short, claim.owner.nested,
                                    claim.away))
        return found

    def reclaim(self, waiters: list[Waiter]) -> None:
        """Ask back what ``policy`` says others should have."""
        now_ns = self._context.now_ns
        room = dict(self._context.ledger.available)
        holdings = []
        for lease in self.leases.values():
            allocation = lease.worker.allocation
            if allocation is None or allocation.parked:
                continue
            claim = lease.claim
            if not lease.reclaimed_ns:
                holdings.append(Holding(lease.number, (claim.owner.name, claim.klass), claim.owner.name, claim.need,
                                        lease.since_ns, claim.missing == 0, claim.away))
            elif now_ns - lease.reclaimed_ns < RECLAIM_PATIENCE_NS:
                policy.subtract(room, claim.need, -1)
        for number in policy.victims(waiters, holdings, room, now_ns):
            lease = self.leases[number]
            lease.reclaimed_ns = now_ns
            owner = lease.claim.owner
            self._context.emit(Send(owner.route, RemoteLeaseReclaimed(owner.name, number) if owner.node
                                    else LeaseReclaimed(number)))

    def check(self) -> None:
        """Assert that claims, leases and workers agree."""
        for owner in self.owners.values():
            assert owner.held == sum(len(claim.leases) for claim in owner.claims.values()), f"{owner.name}: held is off"
            assert all(self._claims[owner.name, klass] is claim for klass, claim in owner.claims.items())
        assert len(self._claims) == sum(len(owner.claims) for owner in self.owners.values()), "claims of nobody"
        for number, lease in self.leases.items():
            assert lease.worker.lease == number, f"lease {number} and worker {lease.worker.name} disagree"
            assert lease.claim.leases.get(number) is lease
            assert lease.claim.owner.claims.get(lease.claim.klass) is lease.claim, f"lease {number}: claim forgotten"
        for worker in self._context.pool.workers.values():
            assert not worker.lease or worker.lease in self.leases, f"{worker.name} has a lease nobody knows"
