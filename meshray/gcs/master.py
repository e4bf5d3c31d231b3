"""A master: notices servers that are gone, and gives shards chains without them.

*Pure.* Runs in master processes, any number of them. It holds nothing that matters: what it knows, servers tell it
again, and what it decides is a compare-and-set on the register (``gcs.register``).

1. One change is in flight at each master, and each changes what the register held when it began.
2. Before a chain is replaced, its commits are blocked: one of its members has ended for certain, or has promised to do
   nothing more (Wedge). A commit needs every member.
3. Before another member becomes the tail, the old tail's reads have ended: it has ended for certain, or was wedged, or
   its lease has run out: one wedged member says when. So a wrong suspicion costs a join, and never an answer.
4. A server is gone for certain when its node says that its process ended, or when another process has its place. It is
   suspected when it was silent for SUSPECT_NS of this master's time; pauses of the master itself do not count.
5. Whoever a chain names has every committed write: a joiner is named once the wedged tail says that it has confirmed
   all. A chain is never left to members of whom this master has not heard: they may have ended too, with their disks
   lost, and those that came back are then all there is. If every member ended, one that comes back with its disk whole
   continues alone; a member that is merely silent is never overruled by one that lacks something.
6. A server that comes back is another one (``Place.life``): it joins, whatever its disk holds.

State of a change: wedging -- blocked and quiet --> deciding -- Decided --> told to every server (Configure). A master
that dies anywhere in this leaves a wedged chain at worst, whose members say so (``stuck``) to the next one.

Source: van Renesse and Schneider, OSDI'04 s3.3 (the master); van Renesse, Ho and Schiper, OPODIS'12 (wedging).
"""

from __future__ import annotations

from typing import Any

import msgspec

from meshray.gcs import configuration as configurations
from meshray.gcs import limits
from meshray.gcs.register import Decided, Proposer
from meshray.gcs.roster import Roster
from meshray.machine import Received, Send, Stop, Tick, Undeliverable
from meshray.messages.chain import (
    Accepted,
    AskRegister,
    BallotRefused,
    Chain,
    Configuration,
    Configure,
    Promised,
    RegisterKnown,
    ServerAlive,
    ServerDied,
    Wedge,
    Wedged,
)
from meshray.messages.node import Leave, Ping, Pong, Shard


class Plan(msgspec.Struct):
    """A change in flight: ``chain`` is to follow ``old`` for the shard ``index``."""

    index: int
    old: Chain
    chain: Chain
    begun_ns: int
    asked_ns: int
    quiet_ns: int | None = None
    """From when on the old tail answers no reads; None: not known yet."""
    blocked: bool = False
    joiner: str = ""
    """The life that is to join, until the wedged tail says that it has confirmed everything."""


class Master:
    """The machine."""

    def __init__(self, name: str, life: str, *, shards: list[Shard], acceptors: tuple[str, ...], replicas: int,
                 rank: int, now_ns: int) -> None:
        """``shards`` are the servers of a new cluster; ``rank`` (0, 1, ...) orders the masters."""
        self.name = name
        self.configuration: Configuration | None = None
        self._life = f"{name}/{life}"
        self._shards = shards
        self._acceptors = acceptors
        self._replicas = replicas
        self._rank = rank
        self._roster = Roster(now_ns)
        self._proposer = Proposer(self._life, acceptors, rank)
        self._plan: Plan | None = None
        self._authored = 0
        self._short_ns: int | None = None
        """Since when acceptors should be exchanged."""
        self._exchanged_ns = now_ns - limits.SUSPECT_NS
        self._turned = 0
        """The change by which the acceptors became those whom the proposer asks."""
        self._since: dict[int, int] = {}
        """Shards whose chain should change, and since when."""
        self._lost: dict[int, int] = {}
        """Shards all of whose members are gone, and since when."""
        self._begun_ns = self._looked_ns = now_ns
        self._found_ns = now_ns
        self._counts = {"changes": 0, "suspected": 0, "died": 0, "conflicts": 0}

    def handle(self, event: Any, now_ns: int) -> list[Any]:
        """Take one event, return its effects in order."""
        effects: list[Any] = []
        if now_ns - self._looked_ns > limits.HEARTBEAT_NS:
            # Before anything that waited is looked at: one message says nothing of the other servers.
            self._roster.forgive(now_ns - self._looked_ns - limits.HEARTBEAT_NS)
            self._looked_ns = now_ns
        match event:
            case Received(route=route, message=message):
                effects = self._received(route, message, now_ns)
            case Tick():
                self._looked_ns = now_ns
                effects = self._proposer.tick(now_ns)
            case Undeliverable():
                return []
            case _:
                raise AssertionError(f"not an event of a master: {event!r}")
        return effects + self._look(now_ns)

    def deadline_ns(self) -> int:
        """When ``Tick`` is due next."""
        due_ns = self._looked_ns + limits.HEARTBEAT_NS // 2
        for since_ns in self._since.values():
            acts_ns = since_ns + self._rank * limits.STAGGER_NS
            if acts_ns > self._looked_ns:
                due_ns = min(due_ns, acts_ns)
        if self.configuration is None and not self._proposer.is_busy:
            due_ns = min(due_ns, self._found_ns)
        if self._plan is not None and self._plan.quiet_ns is not None and self._plan.quiet_ns > self._looked_ns:
            due_ns = min(due_ns, self._plan.quiet_ns)
        for chain in self.configuration.chains if self.configuration is not None else ():
            suspects_ns = self._roster.suspects_ns(chain.places, self._looked_ns)
            due_ns = due_ns if suspects_ns is None else min(due_ns, suspects_ns)
        proposer_ns = self._proposer.deadline_ns()
        return due_ns if proposer_ns is None else min(due_ns, proposer_ns)

    def check(self) -> None:
        """Assert every invariant."""
        if self._plan is not None and self.configuration is not None:
            assert self._plan.chain.epoch == self._plan.old.epoch + 1
            assert self._plan.chain.places

    def statistics(self) -> dict[str, int]:
        """Return counters and sizes."""
        return {**self._counts, "servers": len(self._roster.servers)}

    def _received(self, route: bytes, message: Any, now_ns: int) -> list[Any]:
        match message:
            case ServerAlive():
                self._roster.heard(route, message, now_ns)
                return self._answer(route, message, now_ns)
            case ServerDied(name=name, pid=pid):
                self._counts["died"] += 1
                self._roster.died(name, pid)
            case Wedged():
                self._wedged(message, now_ns)
            case Promised() | Accepted() | BallotRefused():
                effects, decided = self._proposer.handle(message, now_ns)
                return effects + (self._decided(decided) if decided is not None else [])
            case RegisterKnown(change=change, acceptors=acceptors):
                if self._proposer.is_stalled(now_ns) and change > self._turned:
                    self._turned = change
                    self._proposer.turn_to(acceptors, now_ns)
            case Ping(cookie=cookie):
                return [Send(route, Pong(cookie))]
            case Leave(reason=reason):
                return [Stop(reason)]
        return []

    def _answer(self, route: bytes, alive: ServerAlive, now_ns: int) -> list[Any]:
        """Tell a server what it does not know."""
        # The acceptors that this master knows do not answer: others may have taken their places.
        asked = [Send(route, AskRegister())] if self._proposer.is_stalled(now_ns) else []
        if self.configuration is None:
            return asked
        chain = self.configuration.chains[alive.index]
        if alive.chain is not None and alive.chain.epoch > chain.epoch:
            # Whatever a server was told was decided, so there is no need to ask the register.
            chains = list(self.configuration.chains)
            chains[alive.index] = chain = alive.chain
            self._learn(msgspec.structs.replace(self.configuration, chains=chains))
        join = alive.role == "idle" and self._may_join(chain, alive, now_ns)
        return asked + ([Send(route, Configure(chain, join, alive.life))] if join or alive.epoch < chain.epoch else [])

    def _learn(self, configuration: Configuration) -> list[int]:
        """This was decided; return the shards whose chain is new. What was planned for their old chains is void."""
        before, self.configuration = self.configuration, configuration
        new = [index for index, chain in enumerate(configuration.chains)
               if before is None or before.chains[index].epoch < chain.epoch]
        for index in new:
            self._since.pop(index, None)
            if self._plan is not None and self._plan.index == index:
                self._plan = None
        return new

    def _may_join(self, chain: Chain, alive: ServerAlive, now_ns: int) -> bool:
        """Whether this idle server should begin with an empty disk: only while its old data is of no use."""
        named = any(place.name == alive.name for place in chain.places)
        serving = any(self._roster.serves(place, chain.epoch, now_ns) for place in chain.places)
        return not named and serving and len(chain.places) < self._replicas

    # --- what should change --------------------------------------------------------------------------------------

    def _look(self, now_ns: int) -> list[Any]:
        """Begin or go on with whatever is due."""
        if self._proposer.is_busy:
            return []
        if self.configuration is None:
            return self._find(now_ns) if now_ns >= self._found_ns else []
        if self._plan is not None:
            return self._pursue(self._plan, now_ns)
        for index, chain in enumerate(self.configuration.chains):
            wanted = self._wanted(index, chain, now_ns)
            if wanted is None:
                self._since.pop(index, None)
                continue
            since_ns = self._since.setdefault(index, now_ns)
            if now_ns >= since_ns + self._rank * limits.STAGGER_NS:
                del self._since[index]
                joins = wanted.places[-1].life if len(wanted.places) > len(chain.places) else ""
                self._plan = Plan(index, chain, wanted, now_ns, now_ns, joiner=joins)
                return self._pursue(self._plan, now_ns)
        return self._exchange(now_ns)

    def _wanted(self, index: int, chain: Chain, now_ns: int) -> Chain | None:
        """Return the chain that should follow, or None."""
        roster = self._roster
        gone = {place.name for place in chain.places if roster.is_gone(place, now_ns)}
        if len(gone) == len(chain.places):
            best = roster.best_returned(chain, self._lost.setdefault(index, now_ns), now_ns)
            return configurations.alone(chain, best) if best is not None else None
        self._lost.pop(index, None)
        if gone:
            left = [place for place in chain.places if place.name not in gone]
            return configurations.without(chain, gone) if any(roster.lives(place, now_ns) for place in left) else None
        stuck = roster.stuck(chain)
        if stuck is not None:
            names = [place.name for place in chain.places]
            blamed = {names[min(stuck + 1, len(names) - 1)]} if len(names) > 1 else set()
            return configurations.without(chain, blamed)
        joiner = roster.joiner(chain, now_ns) if len(chain.places) < self._replicas else None
        if joiner is not None:
            return configurations.with_tail(chain, joiner)
        return Chain(chain.epoch + 1, chain.places) if roster.is_wedged(chain, now_ns) else None

    def _find(self, now_ns: int) -> list[Any]:
        """Learn the configuration; of a new cluster, write the first one once its servers are there."""
        self._found_ns = now_ns + limits.STAGGER_NS // 2
        chains = [self._roster.first_chain(shard, index, now_ns - self._begun_ns > limits.RESTART_PATIENCE_NS)
                  for index, shard in enumerate(self._shards)]
        first = None
        if all(chains) and now_ns >= self._begun_ns + self._rank * limits.STAGGER_NS:
            first = Configuration(1, self._author(), [chain for chain in chains if chain], self._acceptors)

        def change(before: Configuration | None) -> Configuration | None:
            return first if before is None else None

        return self._proposer.propose(change, now_ns)

    # --- how it changes ------------------------------------------------------------------------------------------

    def _pursue(self, plan: Plan, now_ns: int) -> list[Any]:
        """Wedge until the old chain can do nothing more that matters; then decide."""
        roster, old = self._roster, plan.old
        dead = [place for place in old.places if roster.is_dead(place)]
        plan.blocked |= bool(dead)
        if old.places[-1] == plan.chain.places[-1] or old.places[-1] in dead:
            plan.quiet_ns = now_ns
        elif plan.chain.places[0].life not in {place.life for place in old.places}:
            plan.quiet_ns = roster.since_ns(plan.chain.places[0].name) + limits.READ_LEASE_GIVEN_NS
        if plan.joiner and dead:
            self._plan = None  # the chain must become shorter before it becomes longer
            return []
        if plan.blocked and plan.quiet_ns is not None and now_ns >= plan.quiet_ns and not plan.joiner:
            self._plan = None
            return self._decide(plan, now_ns)
        if now_ns - plan.begun_ns > limits.SUSPECT_NS:
            self._plan = None  # who did not answer is silent by now, and another plan is due
            return []
        if plan.asked_ns > now_ns:
            return []
        plan.asked_ns = now_ns + limits.HEARTBEAT_NS // 2
        return [Send(route, Wedge(old.epoch)) for route in roster.routes(old.places)]

    def _wedged(self, message: Wedged, now_ns: int) -> None:
        plan = self._plan
        if plan is None or message.epoch != plan.old.epoch:
            return
        place = next((place for place in plan.old.places if place.life == message.life), None)
        if place is None:
            return
        plan.blocked = True
        if plan.joiner and place == plan.old.places[-1] and message.joiner == plan.joiner:
            plan.joiner = ""
        quiet_ns = now_ns if place == plan.old.places[-1] else now_ns + message.lease_ns
        plan.quiet_ns = quiet_ns if plan.quiet_ns is None else min(plan.quiet_ns, quiet_ns)

    def _decide(self, plan: Plan, now_ns: int) -> list[Any]:
        author = self._author()
        self._counts["changes"] += 1
        self._counts["suspected"] += not any(self._roster.is_dead(place) for place in plan.old.places)

        def change(before: Configuration | None) -> Configuration | None:
            if before is None or before.author == author:
                return None
            return configurations.changed(before, plan.index, plan.chain, author)

        return self._proposer.propose(change, now_ns)

    def _exchange(self, now_ns: int) -> list[Any]:
        """Keep ACCEPTORS acceptors that vote, one exchange at a time; complete one that was begun."""
        present = self.configuration
        assert present is not None
        author = self._author()
        if present.acceptors_next:
            return self._proposer.propose(
                lambda before: configurations.exchanged(before, author) if before == present else None, now_ns)
        following = self._roster.acceptors(present.acceptors, now_ns)
        if following == present.acceptors:
            self._short_ns = None
            return []
        if self._short_ns is None:
            self._short_ns = now_ns
        # Whoever was brought in says only with its next words that it votes.
        if now_ns < max(self._short_ns + self._rank * limits.ACCEPTOR_SILENT_NS,
                        self._exchanged_ns + 2 * limits.HEARTBEAT_NS):
            return []
        self._short_ns = None
        self._exchanged_ns = now_ns
        return self._proposer.propose(
            lambda before: configurations.exchanging(before, following, author) if before == present else None, now_ns)

    def _decided(self, decided: Decided) -> list[Any]:
        """The register holds this: tell the servers of every chain that is new."""
        before, value = self.configuration, decided.value
        if value is None or (before is not None and value.change <= before.change):
            return []
        self._counts["conflicts"] += not decided.ours
        return [Send(route, Configure(value.chains[index])) for index in self._learn(value)
                for route in self._roster.routes_of_shard(index)]

    def _author(self) -> str:
        self._authored += 1
        return f"{self._life}/{self._authored}"

