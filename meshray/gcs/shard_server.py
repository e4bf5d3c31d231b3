"""A server of the control store: an acceptor of the configuration register, and a place in one shard's chain, if it has
one.

*Pure.* Runs in shard servers (``processes.shard``).

1. It is a member only of a configuration that names its very life. A server that starts again is a stranger to the
   chain that it was in, whatever its disk holds, until a master decides that it joins, or, if nobody else is left, that
   its disk is what the shard goes on with.
2. A configuration of a lower epoch than one that was seen, by an earlier life too, changes nothing. A life that was
   left out of a chain does not know what its disk holds: it joins, or ends.
3. Whoever follows the shard is told of every new chain.

Roles, as masters hear of them::

    idle -- Configure names this life --> member <-- Configure -- wedged
    idle -- Configure(join) --> joining -- Feed whole --> whole -- Configure names this life --> member
    member -- Configure without this life --> idle

Without masters a server is a member from the start and for good: the chain is what its node was told.
"""

from __future__ import annotations

from typing import Any

from meshray.gcs import limits
from meshray.gcs.chain import ChainMember
from meshray.gcs.joining import Joiner
from meshray.gcs.log import Committed, MarkWhole, Persist, Persisted, Recovered, Vote
from meshray.gcs.register import Acceptor
from meshray.machine import Connect, Disconnect, Received, Send, Stop, Tick, Undeliverable
from meshray.messages.base import Message
from meshray.messages.chain import (
    Accept,
    AskReadLease,
    AskRegister,
    Chain,
    Configure,
    Extend,
    Extended,
    Fed,
    Feed,
    FollowShard,
    JoinChain,
    MastersChanged,
    Prepare,
    RegisterKnown,
    Resume,
    ServerAlive,
    StreamUnknown,
    Wedge,
    Wedged,
)
from meshray.messages.gcs import (
    CloseClient,
    DescribeShard,
    Read,
    Scan,
    ShardDescribed,
    Watch,
    Write,
    WrongEpoch,
)
from meshray.messages.node import Leave, Ping, Pong, Shard

_OF_AN_EPOCH = frozenset((Write, CloseClient, Read, Scan, Watch, AskReadLease, Extend, Extended, Resume))
"""Messages that may come from somebody who heard of a new chain before us."""


class ShardServer:
    """The machine."""

    def __init__(self, name: str, life: str, endpoint: str, *, index: int, shard: Shard, masters: dict[str, str],
                 committed: Committed, recovered: Recovered, vote: Vote, now_ns: int) -> None:
        """Be the server ``name`` of the shard ``index``. ``shard``: its first chain; ``masters``: name -> endpoint;
        ``recovered`` and ``vote`` are what the disk holds. Raise WrongChain without masters if it cannot be that."""
        self.name = name
        self.life = life
        self.index = index
        self.shard = Shard(0, shard.members) if masters else shard
        self._chain: Chain | None = None
        self._endpoint = endpoint
        self._masters = masters
        self._committed = committed
        self._recovered = recovered
        self._acceptor = Acceptor(name, vote)
        self.member: ChainMember | None = None
        self.joiner: Joiner | None = None
        if not masters:
            self.member = ChainMember(name, shard, committed=committed, recovered=recovered, now_ns=now_ns)
        self._attempts = 0
        self._joiner_persists = 0
        """Entries on their way to the disk that a joiner took, and no member knows of."""
        self._mark = False
        """Whether the disk is to be marked as whole, once the member is in step."""
        self._followers: dict[bytes, None] = {}
        self._early: list[Received] = []
        self._left = False
        """Whether this life was a member, and was left out."""
        self._wedger = b""
        """The master that wedged us last."""
        self._alive_ns = now_ns
        self._counts = {"joins": 0, "configured": 0}
        self._own: dict[type, Any] = {
            Configure: self._configure, FollowShard: self._follow, Prepare: self._vote, Accept: self._vote,
            Wedge: self._wedge, Feed: self._feed, Fed: self._fed,
            AskRegister: self._register_asked, MastersChanged: self._masters_changed,
            StreamUnknown: self._stream_unknown, JoinChain: self._join_asked, DescribeShard: self._describe,
            Ping: lambda event, now_ns: [Send(event.route, Pong(event.message.cookie))],
            Leave: lambda event, now_ns: [Stop(event.message.reason)]}

    # --- machine -------------------------------------------------------------------------------------------------

    def begin(self, now_ns: int) -> list[Any]:
        """Return the effects of the first moment."""
        connects = [Connect(name, endpoint) for name, endpoint in self._masters.items()]
        return [*connects, *self._say_alive(now_ns)]

    def handle(self, event: Any, now_ns: int) -> list[Any]:
        """Take one event, return its effects in order."""
        kind, member = type(event), self.member
        if kind is Received:
            message = event.message
            own = self._own.get(type(message))
            if own is not None:
                effects: list[Any] = own(event, now_ns)
            elif self._masters and type(message) in _OF_AN_EPOCH and message.epoch > self._epoch:
                effects = self._keep_for_later(event)
            elif member is not None:
                effects = member.received(event.route, message, now_ns)
            else:
                effects = self._without_place(event.route, message)
        elif kind is Persisted:
            effects = self._persisted(event.count, now_ns)
        elif kind is Tick:
            effects = self._tick(now_ns)
        elif kind is Undeliverable:
            self._followers.pop(event.route, None)
            effects = member.handle(event, now_ns) if member is not None else []
        else:
            raise AssertionError(f"not an event of a shard server: {event!r}")
        if self._mark or self._early:
            effects += self._settle_in(now_ns)
        return effects

    def _settle_in(self, now_ns: int) -> list[Any]:
        """Do what waited for a new configuration."""
        member = self.member
        effects: list[Any] = []
        if any(event.message.epoch <= self.shard.epoch for event in self._early) \
                and (member is None or member.shard.epoch == self.shard.epoch):
            early, self._early = self._early, []
            for event in early:
                effects += self.handle(event, now_ns)
        if self._mark and member is not None and member.in_step:
            self._mark = False
            effects.append(MarkWhole(self.shard.epoch))
        return effects

    @property
    def _epoch(self) -> int:
        """The epoch in which this server acts: a member adopts a new chain when what it has taken is on the disk."""
        return self.member.shard.epoch if self.member is not None else self.shard.epoch

    def _keep_for_later(self, event: Received) -> list[Any]:
        """The sender knows a newer chain than we do: it will come here too, so let the message wait for that."""
        if len(self._early) < limits.HELD_READS_MAX:
            self._early.append(event)
        return []

    def deadline_ns(self) -> int:
        """When ``Tick`` is due next."""
        if not self._masters:
            assert self.member is not None
            return self.member.deadline_ns()
        due_ns = self._alive_ns
        if self.member is not None:
            due_ns = min(due_ns, self.member.deadline_ns())
        return due_ns if self.joiner is None else min(due_ns, self.joiner.deadline_ns())

    def check(self) -> None:
        """Assert every invariant."""
        assert self.member is None or self.joiner is None
        if self.member is not None:
            self.member.check()
            assert self.member.shard.epoch <= self.shard.epoch

    def statistics(self) -> dict[str, int]:
        """Return counters and sizes."""
        parts = self.member.statistics() if self.member is not None else {}
        return {**self._counts, **parts, "followers": len(self._followers)}

    @property
    def role(self) -> str:
        """What this server is now."""
        if self.member is not None:
            return "wedged" if self.member.wedged else "member"
        if self.joiner is not None:
            return "whole" if self.joiner.whole else "joining"
        return "idle"

    # --- configurations ------------------------------------------------------------------------------------------

    def _configure(self, event: Received, now_ns: int) -> list[Any]:
        chain, join = event.message.chain, event.message.join and event.message.life == self.life
        if chain.epoch < max(self.shard.epoch, self._recovered.epoch):
            return []
        is_news = chain.epoch > self.shard.epoch
        shard = chain.shard
        self.shard, self._chain = shard, chain
        effects: list[Any] = []
        if any(place.life == self.life for place in chain.places):
            if is_news:
                effects += self._take_place(shard, now_ns)
        elif self.member is not None:
            self.member, self._recovered, self._left = None, Recovered(shard.epoch), True
        elif self.joiner is not None:
            if is_news:
                same = chain.places[-1].life == self.joiner.feeder
                effects += self.joiner.go_on(shard) if same else self._begin_join(now_ns)
        elif join:
            effects += self._begin_join(now_ns)
        if not is_news:
            return effects
        self._counts["configured"] += 1
        return [*effects, *(Send(route, WrongEpoch(shard)) for route in self._followers), *self._say_alive(now_ns)]

    def _take_place(self, shard: Shard, now_ns: int) -> list[Any]:
        """This life is named in a new configuration."""
        if self.member is not None:
            self._mark = True
            return self.member.adopt(shard, now_ns)
        if self.joiner is not None and not self.joiner.whole:
            return []  # decided for an attempt that has ended; the predecessor will find that this place is silent
        if self.joiner is None and self._left:
            return [Stop("named in a chain again without having joined: only the disk knows what it holds")]
        recovered = self.joiner.recovered if self.joiner is not None else self._recovered
        self.joiner = None
        self._mark = True
        self.member = ChainMember(self.name, shard, committed=self._committed, recovered=recovered, now_ns=now_ns)
        return self.member.begin(now_ns)

    def _begin_join(self, now_ns: int) -> list[Any]:
        self._attempts += 1
        self._counts["joins"] += 1
        self._recovered = Recovered(self.shard.epoch)
        assert self._chain is not None
        self.joiner = Joiner(self.shard, self._chain.places[-1].life, self.life, self._attempts, now_ns)
        return self.joiner.begin(now_ns)

    def _feed(self, event: Received, now_ns: int) -> list[Any]:
        if self.joiner is None:
            return []
        was_whole = self.joiner.whole
        effects = self.joiner.feed(event.message, now_ns)
        self._joiner_persists += sum(type(effect) is Persist for effect in effects)
        return effects + (self._say_alive(now_ns) if self.joiner.whole and not was_whole else [])

    def _join_asked(self, event: Received, now_ns: int) -> list[Any]:
        if self.member is None or event.message.tail != self.life:
            return []
        return self.member.handle(event, now_ns)

    def _stream_unknown(self, event: Received, now_ns: int) -> list[Any]:
        """The tail does not feed this attempt. It is not wedged, so no chain will name us for it."""
        joiner, message = self.joiner, event.message
        if joiner is None or message.life != joiner.attempt or message.epoch < self.shard.epoch:
            return []
        return self._begin_join(now_ns)

    def _fed(self, event: Received, now_ns: int) -> list[Any]:
        """The joiner has confirmed something. Masters wait for it to have the whole snapshot; who wedged us waits
        for it to confirm the last thing."""
        member = self.member
        if member is None:
            return []
        had_all = bool(_joiner(member))
        effects = member.handle(event, now_ns)
        if _joiner(member) and not had_all:
            effects += self._say_alive(now_ns)
        if member.wedged and self._wedger and member.is_tail and member.tail.confirmed_by:
            effects.append(self._wedged(member, now_ns))
        return effects

    def _wedge(self, event: Received, now_ns: int) -> list[Any]:
        member = self.member
        if member is None or not member.wedge(event.message):
            return []
        self._wedger = event.route
        feeder = member.tail.feeder if member.is_tail else None
        return [self._wedged(member, now_ns), *(feeder.tick(now_ns) if feeder is not None else ())]

    def _wedged(self, member: ChainMember, now_ns: int) -> Send:
        joiner = member.tail.confirmed_by if member.is_tail else ""
        lease_ns = member.tail.lease.left_ns(now_ns)
        return Send(self._wedger, Wedged(self.name, self.life, member.shard.epoch, member.version, lease_ns, joiner))

    # --- others --------------------------------------------------------------------------------------------------

    def _vote(self, event: Received, now_ns: int) -> list[Any]:
        return self._acceptor.handle(event.route, event.message)

    def _register_asked(self, event: Received, now_ns: int) -> list[Any]:
        value = self._acceptor.vote.value
        return [Send(event.route, RegisterKnown(value.change, value.acceptors))] if value is not None else []

    def _masters_changed(self, event: Received, now_ns: int) -> list[Any]:
        before, self._masters = self._masters, event.message.masters
        effects: list[Any] = [Disconnect(name) for name in before if name not in self._masters]
        effects += [Connect(name, endpoint) for name, endpoint in self._masters.items()]
        return effects + self._say_alive(now_ns)

    def _follow(self, event: Received, now_ns: int) -> list[Any]:
        if len(self._followers) < limits.FOLLOWERS_MAX:
            self._followers[event.route] = None
        return [Send(event.route, WrongEpoch(self.shard))] if event.message.epoch < self.shard.epoch else []

    def _without_place(self, route: bytes, message: Message) -> list[Any]:
        """Answer as a server that is in no chain."""
        match message:
            case Write() | CloseClient() | Read() | Scan() | Watch():
                return [Send(route, WrongEpoch(self.shard))]
            case _:
                return []

    def _describe(self, event: Received, now_ns: int) -> list[Any]:
        member, facts = self.member, self._committed.facts()
        role = member.role if member is not None and not member.wedged else self.role
        return [Send(event.route, ShardDescribed(
            event.message.cookie, self.name, role, self.shard, self._version(), facts.rows, facts.used_bytes,
            facts.file_bytes, facts.map_bytes, facts.durability, len(member.clients) if member is not None else 0,
            len(member.tail.watches) if member is not None else 0))]

    def _persisted(self, count: int, now_ns: int) -> list[Any]:
        if self._joiner_persists:
            joiners = min(count, self._joiner_persists)
            self._joiner_persists -= joiners
            count -= joiners
        return self.member.persisted(count, now_ns) if self.member is not None and count else []

    # --- time ----------------------------------------------------------------------------------------------------

    def _tick(self, now_ns: int) -> list[Any]:
        effects: list[Any] = []
        if self.member is not None:
            effects += self.member.handle(Tick(), now_ns)
        if self.joiner is not None:
            asked = self.joiner.tick(now_ns)
            effects += self._begin_join(now_ns) if asked is None else asked
        return effects + (self._say_alive(now_ns) if self._masters and now_ns >= self._alive_ns else [])

    def _say_alive(self, now_ns: int) -> list[Any]:
        """Tell every master how it is."""
        self._alive_ns = now_ns + limits.HEARTBEAT_NS
        member = self.member
        epoch = max(self.shard.epoch, self._recovered.epoch) if self.role == "idle" else self.shard.epoch
        alive = ServerAlive(
            self.index, self.name, self._endpoint, self.life, self.role, epoch, self._version(),
            member.in_step if member is not None else self._recovered.whole,
            member is not None and _is_stuck(member, now_ns), _joiner(member) if member is not None else "",
            self._acceptor.vote.votes, self._chain)
        return [Send(b">" + name.encode(), alive) for name in self._masters]

    def _version(self) -> int:
        if self.member is not None:
            return self.member.version
        return self.joiner.recovered.version if self.joiner is not None else self._recovered.version


def _joiner(member: ChainMember) -> str:
    """Return the life of the server to which this tail has given everything; empty if there is none."""
    feeder = member.tail.feeder
    return feeder.life.partition("/")[0] if feeder is not None and feeder.has_all and not member.is_idle else ""


def _is_stuck(member: ChainMember, now_ns: int) -> bool:
    """Whether a member has waited too long for its successor, or as the tail for a lease or for its predecessor."""
    if member.wedged or not member.others or (not member.is_tail and not member.downstream):
        return False
    waits_ns = member.downstream.progress_ns
    if member.is_tail:
        waits_ns = member.tail.lease.until_ns if member.in_step else 0
    return now_ns - max(waits_ns, member.adopted_ns) > limits.STUCK_NS
