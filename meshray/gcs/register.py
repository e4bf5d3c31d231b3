"""The configuration register: one value that a majority of acceptors keeps, changed by compare-and-set.

*Pure.* Acceptors run in shard servers, proposers in masters.

1. An acceptor answers only what is on its disk, synced (``KeepVote``), and never takes back a promise.
2. A ballot is a round and the name of one proposer's life, so two proposers never use the same one.
3. A value is decided once a majority has accepted it. Whoever prepares a higher ballot then learns it: two majorities
   share an acceptor.
4. A change is a function of the value that was read under the same ballot: that is a compare-and-set, with as many
   proposers at once as there may be. A read is a change to the same value.
5. A proposer whose ballot was not answered does not know the outcome. It reads again, and finds out whether the value
   is its own by ``Configuration.author``.
6. An acceptor whose disk is new does not vote: it does not know what it promised. It votes again once it is among the
   acceptors that an exchange brings in. Those of a new cluster are told that they may.
7. Which acceptors there are is part of the value. They are exchanged in two steps, first to (old and new), which needs
   majorities of both, then to new: a proposer that knows only the old ones reads the first step from them. Whoever
   was an acceptor once is thus a place to begin; but of old ones a majority may be gone, so a master that begins asks
   for newer ones.

A proposer that succeeded was promised the next ballot with it, so its next change takes one round instead of two,
unless somebody else came between.

Source: Rystsov, CASPaxos, 2018, s2.2 (the register), s2.2.1 (one round trip), s2.3 (exchanging acceptors); joint
majorities as in Raft, USENIX ATC'14 s6.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from meshray.gcs import limits
from meshray.gcs.log import KeepVote, Vote
from meshray.machine import Send
from meshray.messages.base import Message
from meshray.messages.chain import Accept, Accepted, Ballot, BallotRefused, Configuration, Prepare, Promised

Change = Callable[[Configuration | None], Configuration | None]
"""From the value that is there to the one that shall be; None leaves it as it is."""


class Acceptor:
    """One acceptor's votes."""

    def __init__(self, name: str, vote: Vote) -> None:
        """``vote`` is what its disk holds."""
        self.name = name
        self.vote = vote

    def handle(self, route: bytes, message: Prepare | Accept) -> list[Any]:
        """Answer a proposer."""
        vote = self.vote
        if not vote.votes and not (isinstance(message, Accept) and self.name in message.value.acceptors_next):
            return []
        if message.ballot < vote.promised:
            return [Send(route, BallotRefused(self.name, message.ballot, vote.promised))]
        if isinstance(message, Prepare):
            self.vote = Vote(message.ballot, vote.accepted, vote.value, True)
            answer: Message = Promised(self.name, message.ballot, vote.accepted, vote.value)
        else:
            self.vote = Vote(max(message.ballot, message.following), message.ballot, message.value, True)
            answer = Accepted(self.name, message.ballot)
        return [*([KeepVote(self.vote)] if self.vote != vote else []), Send(route, answer)]


class Decided(msgspec.Struct, frozen=True):
    """A round is over: the register held ``value`` then. ``ours``: our change made it so."""

    value: Configuration | None
    ours: bool


class Round(msgspec.Struct):
    """A ballot on its way."""

    ballot: Ballot
    change: Change
    due_ns: int
    promises: dict[str, tuple[Ballot, Configuration | None]] = {}
    value: Configuration | None = None
    """What was sent to be accepted; only then is ``accepting`` true."""
    accepting: bool = False
    changed: bool = False
    accepted: set[str] = set()
    again: bool = False
    """Whether an earlier ballot for this change has failed."""


class Proposer:
    """A master's side: one change at a time, repeated under higher ballots until it is decided."""

    def __init__(self, life: str, acceptors: tuple[str, ...], rank: int) -> None:
        """``life`` must be new for every life of a proposer; ``rank`` spaces out those that outbid each other."""
        self._life = life
        self._groups = [acceptors]
        self._rank = rank
        self._highest = 0
        self._begun_ns = 0
        self._round: Round | None = None
        self._ready: tuple[Ballot, Configuration | None] | None = None
        """The ballot that a majority promised us with our last success, and the value it holds."""
        self._retry: tuple[int, Change] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a change is on its way."""
        return self._round is not None or self._retry is not None

    def propose(self, change: Change, now_ns: int) -> list[Any]:
        """Begin a change. Ends with Decided among the results of a later call."""
        assert not self.is_busy
        self._begun_ns = now_ns
        return self._begin(change, now_ns)

    def is_stalled(self, now_ns: int) -> bool:
        """Whether a change is on its way for so long that the acceptors that were asked may be gone."""
        return self.is_busy and now_ns - self._begun_ns > limits.SUSPECT_NS

    def turn_to(self, acceptors: tuple[str, ...], now_ns: int) -> None:
        """Go on with the change that is on its way at these acceptors."""
        self._groups = [acceptors]
        if self._round is not None:
            self._again(self._round.change, now_ns)

    def handle(self, message: Promised | Accepted | BallotRefused, now_ns: int) -> tuple[list[Any], Decided | None]:
        """Take an acceptor's answer; return effects, and the end of the change if this was it."""
        current = self._round
        if isinstance(message, BallotRefused):
            self._highest = max(self._highest, message.promised[0])
        if current is None or message.ballot != current.ballot:
            return [], None
        match message:
            case BallotRefused():
                # Once, somebody came between; again, somebody is there, and the one of lower rank goes first.
                pause_ns = limits.PROPOSE_NS * (1 + self._rank) // 4 if current.again else 0
                self._again(current.change, now_ns + pause_ns)
                return self.tick(now_ns), None
            case Promised() if not current.accepting:
                current.promises[message.acceptor] = (message.accepted, message.value)
                if self._has_majorities(current.promises):
                    return self._prepared(current, now_ns)
            case Accepted() if current.accepting:
                current.accepted.add(message.acceptor)
                if self._has_majorities(current.accepted):
                    return self._accepted(current, now_ns)
        return [], None

    def tick(self, now_ns: int) -> list[Any]:
        """Give up a ballot that takes too long; begin the one that is due."""
        if self._round is not None and now_ns >= self._round.due_ns:
            self._again(self._round.change, now_ns)
        if self._retry is not None and now_ns >= self._retry[0]:
            change = self._retry[1]
            self._retry = None
            effects = self._begin(change, now_ns)
            assert self._round is not None
            self._round.again = True
            return effects
        return []

    def deadline_ns(self) -> int | None:
        """When ``tick`` is due."""
        if self._round is not None:
            return self._round.due_ns
        return self._retry[0] if self._retry is not None else None

    def _begin(self, change: Change, now_ns: int) -> list[Any]:
        due_ns = now_ns + limits.PROPOSE_NS
        if self._ready is not None:
            ballot, value = self._ready
            self._ready = None
            self._round = Round(ballot, change, due_ns, {}, None)
            return self._accept(self._round, value)
        self._highest += 1
        self._round = Round((self._highest, self._life), change, due_ns, {}, None)
        return self._to_all(Prepare(self._round.ballot))

    def _prepared(self, current: Round, now_ns: int) -> tuple[list[Any], Decided | None]:
        """A majority promised: take the newest value they know, unless it names other acceptors than were asked."""
        _, value = max(current.promises.values(), key=_ballot)
        if value is not None and self._adopt(value):
            self._round = None
            return self._begin(current.change, now_ns), None
        effects = self._accept(current, value)
        if not effects:
            self._round = None
            return [], Decided(None, False)
        return effects, None

    def _accept(self, current: Round, value: Configuration | None) -> list[Any]:
        wanted = current.change(value)
        current.changed = wanted is not None
        current.value = wanted if wanted is not None else value
        current.accepting = True
        current.accepted = set()
        if current.value is None:
            return []  # nothing was ever written, and nothing is to be
        if current.value.acceptors_next and current.value.acceptors_next not in self._groups:
            self._groups = [current.value.acceptors, current.value.acceptors_next]
        self._highest = max(self._highest, current.ballot[0] + 1)
        return self._to_all(Accept(current.ballot, (current.ballot[0] + 1, self._life), current.value))

    def _accepted(self, current: Round, now_ns: int) -> tuple[list[Any], Decided]:
        assert current.value is not None
        self._round = None
        if not self._adopt(current.value):
            self._ready = ((current.ballot[0] + 1, self._life), current.value)
        return [], Decided(current.value, current.changed)

    def _adopt(self, value: Configuration) -> bool:
        """Turn to the acceptors that ``value`` names; return whether they are others than before."""
        groups = [value.acceptors, *([value.acceptors_next] if value.acceptors_next else [])]
        if groups == self._groups:
            return False
        self._groups, self._ready = groups, None
        return True

    def _again(self, change: Change, due_ns: int) -> None:
        self._round, self._ready = None, None
        self._retry = (due_ns, change)

    def _has_majorities(self, names: Any) -> bool:
        return all(2 * sum(name in names for name in group) > len(group) for group in self._groups)

    def _to_all(self, message: Message) -> list[Any]:
        names = sorted({name for group in self._groups for name in group})
        return [Send(name.encode(), message) for name in names]


def _ballot(promise: tuple[Ballot, Configuration | None]) -> Ballot:
    return promise[0]
