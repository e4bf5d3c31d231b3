"""Detached actors outlive their nodes: who writes their rows, and who starts them again when nobody else would.

*Pure.* Runs in the node process.

1. The row of a detached actor is written by compare-and-set only. Each start has its own incarnation, and who wants to
   start the actor first writes the next one into the row: of several that want to, one does.
2. Its *home* is the node that starts it again when the node where it lives is gone: where it was asked for first, and
   if that is gone, where it lives. Its row names both.
3. When both are gone, a node takes it over: it becomes the home, at the cost of a restart unless the actor had never
   lived. The node beside the head of the first shard looks for such actors soon after each death, and in each sweep of
   ``retention``. An actor without restarts left is dead, and its name is free.
4. A node reads the rows of its detached actors again once a minute, and for a while each second when it hears that it
   had been given up, or was frozen for so long that it may have been. When it finds a later incarnation there, or that
   the actor is dead, it ends what it has.

Actors that are not detached end with the node of their creator, which is their home. When nobody is left to say so, who
finds their rows does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from meshray import config
from meshray.gcs import tables
from meshray.gcs.requests import Answered, Outcome
from meshray.gcs.tables import ActorRow
from meshray.machine import Received
from meshray.messages.gcs import COMPARE_AND_SET, Op, Row
from meshray.messages.node import CreateActor, Death
from meshray.sched.events import ActorOrphaned, ActorPassed

if TYPE_CHECKING:
    from meshray.processes.node import NodeMachine

_PAGE = 1_000
"""Rows that are looked through at a time."""
_GONE_MAX = 1_000
"""Nodes remembered that are gone."""

Entitled = Callable[[ActorRow], bool]
"""Whether an actor, as its row is now, is ours to start again."""


class _Kept(msgspec.Struct, eq=False):
    """A row that this node writes: as it should be, and the version of the one that it replaces."""

    row: ActorRow
    version: int = 0
    written: ActorRow | None = None
    writing: bool = False


class _Claim(msgspec.Struct, eq=False):
    """An actor that should be started again: the row that was there, and the one that may have been written over it."""

    entitled: Entitled
    before: ActorRow | None = None
    heir: ActorRow | None = None
    asking: bool = False


class DetachedActors:
    """The detached actors of this node, and those that nobody else starts again."""

    def __init__(self, node: NodeMachine) -> None:
        self._node = node
        self._kept: dict[bytes, _Kept] = {}
        self._claims: dict[bytes, _Claim] = {}
        """Actors that should be started again and for which the control store did not answer yet."""
        self._gone: dict[str, None] = {}
        """Nodes that this one has seen go, oldest first."""
        self._look_from_ns = self._look_until_ns = 0
        self._verify_ns = self._doubt_until_ns = self._ticked_ns = 0
        self._due_ns: int | None = None
        self.counts = {"actors_taken_over": 0, "actors_passed_on": 0}

    def deadline_ns(self) -> int | None:
        """When ``tick`` is due."""
        return self._due_ns

    def tick(self, now_ns: int) -> list[Any]:
        """Repeat what was not answered; look for actors that nobody starts again."""
        if self._due_ns is None or now_ns < self._due_ns:
            return []
        self._due_ns = None
        effects: list[Any] = []
        for actor in list(self._kept):
            effects += self._push(actor, now_ns)
        if self._kept:
            frozen = now_ns - self._ticked_ns >= config.SUSPICION_NS
            effects += self.given_up(now_ns) if frozen else self._verify(now_ns) if now_ns >= self._verify_ns else []
            self._ticked_ns = now_ns
            self._again(now_ns)
        for actor in list(self._claims):
            effects += self._read(actor, now_ns)
        if self._look_from_ns <= now_ns < self._look_until_ns:
            if self._node.is_beside_head():
                self._look_until_ns = now_ns
                effects += self._look(b"", now_ns)
            else:
                self._again(now_ns)  # the chain may change with the node that went, and the head come here
        elif now_ns < self._look_from_ns:
            self._again(now_ns)
        return effects

    def _again(self, now_ns: int) -> None:
        due_ns = now_ns + config.ACTOR_CLAIM_NS
        self._due_ns = due_ns if self._due_ns is None else min(self._due_ns, due_ns)

    # --- rows of our own -----------------------------------------------------------------------------------------

    def changed(self, row: ActorRow, now_ns: int) -> list[Any]:
        """A detached actor of this node changed: let its row say so."""
        self._keep(row, now_ns)
        return self._push(row.spec.actor, now_ns)

    def _keep(self, row: ActorRow, now_ns: int) -> _Kept:
        if not self._kept:
            self._ticked_ns = now_ns
            self._verify_ns = now_ns + config.RETENTION_SWEEP_NS
            self._again(now_ns)
        kept = self._kept.setdefault(row.spec.actor, _Kept(row))
        kept.row = row
        return kept

    def sent_on(self, actor: bytes) -> None:
        """The actor goes to another node, which writes its row from now on."""
        self._kept.pop(actor, None)

    def _push(self, actor: bytes, now_ns: int) -> list[Any]:
        kept = self._kept.get(actor)
        if kept is None or kept.writing or kept.row is kept.written:
            return []
        kept.writing, row = True, kept.row

        def done(answer: Answered, later_ns: int) -> list[Any]:
            kept.writing = False
            if self._kept.get(actor) is not kept:
                return []
            if answer.error is not None:
                self._again(later_ns)
                return []
            outcome: Outcome = answer.results[0]
            if outcome.ok:
                return self._pushed(kept, row, outcome.version, later_ns)
            if outcome.value is None and outcome.version:
                return self._node.read(tables.ACTOR, actor, later_ns, lambda found, at_ns: self._other(
                    kept, row, found.results[0] if found.error is None else None, at_ns))
            return self._other(kept, row, Row(actor, outcome.version, outcome.value), later_ns)

        return self._node.write([Op(tables.ACTOR, actor, tables.encode(row), COMPARE_AND_SET, kept.version)], now_ns,
                                done)

    def _pushed(self, kept: _Kept, row: ActorRow, version: int, now_ns: int) -> list[Any]:
        kept.version, kept.written = version, row
        return self._ended(row, now_ns) if row.state == "dead" else self._push(row.spec.actor, now_ns)

    def _other(self, kept: _Kept, row: ActorRow, found: Row | None, now_ns: int) -> list[Any]:
        """The row is another one than we thought."""
        actor = row.spec.actor
        if found is None or self._kept.get(actor) is not kept:
            self._again(now_ns)
            return []
        kept.version, kept.written = found.version, None
        if found.value is not None:
            other = tables.decode(found.value, ActorRow)
            if other == row:  # a write of ours that was not answered
                return self._pushed(kept, row, found.version, now_ns)
            if other.incarnation > row.incarnation or (
                    other.incarnation == row.incarnation and other.state == "dead" != row.state):
                return self._passed(actor, other, now_ns)
            if row.state == "pending" and other.incarnation == row.incarnation and kept.row is row:
                # Where the actor was placed is another node, whose word on it must not be overwritten by ours.
                del self._kept[actor]
                return []
        return self._push(actor, now_ns)

    def _passed(self, actor: bytes, row: ActorRow, now_ns: int) -> list[Any]:
        del self._kept[actor]
        self.counts["actors_passed_on"] += 1
        self._node.events.note("warning", "actor passed on", f"{_name(row)} lives on {row.node} now, incarnation "
                               f"{row.incarnation}: what this node had of it is ended", now_ns)
        passed = ActorPassed(actor, row.incarnation + (row.state == "dead"))
        return [*self._node.schedule(passed, now_ns), *self._node.actors.passed(actor, row, now_ns)]

    def _ended(self, row: ActorRow, now_ns: int) -> list[Any]:
        self._kept.pop(row.spec.actor, None)
        return self._node.actors.free_name(row.spec, now_ns) if row.spec.name else []

    def given_up(self, now_ns: int) -> list[Any]:
        """The others have given this node up, or may have: see whether its actors are still its own."""
        self._doubt_until_ns = now_ns + config.ACTOR_HEIR_LOOK_NS
        return self._verify(now_ns)

    def _verify(self, now_ns: int) -> list[Any]:
        self._verify_ns = now_ns + (
            config.ACTOR_CLAIM_NS if now_ns < self._doubt_until_ns else config.RETENTION_SWEEP_NS)
        self._again(now_ns)
        actors = list(self._kept)

        def found(answer: Answered, later_ns: int) -> list[Any]:
            effects: list[Any] = []
            for actor, row in zip(actors, answer.results, strict=False):
                kept = self._kept.get(actor)
                if kept is not None and not kept.writing and row.version > kept.version:
                    effects += self._other(kept, kept.row, row, later_ns)
            return effects

        return self._node.read_all([(tables.ACTOR, actor) for actor in actors], now_ns, found) if actors else []

    # --- taking over ---------------------------------------------------------------------------------------------

    def node_gone(self, node: str, now_ns: int) -> None:
        """Another node was given up. Homes that are left see to their actors first."""
        self._gone[node] = None
        if len(self._gone) > _GONE_MAX:
            del self._gone[next(iter(self._gone))]
        self._look_from_ns = now_ns + config.ACTOR_HEIR_WAIT_NS
        self._look_until_ns = now_ns + config.ACTOR_HEIR_LOOK_NS
        self._again(now_ns)

    def is_gone(self, node: str) -> bool:
        """Whether a node went while this one looked, and did not come back."""
        return node in self._gone and node not in self._node.peers and node != self._node.node

    def _look(self, after: bytes, now_ns: int) -> list[Any]:
        def found(answer: Answered, later_ns: int) -> list[Any]:
            if answer.error is not None:
                self._look_until_ns = later_ns + config.ACTOR_HEIR_LOOK_NS
                self._again(later_ns)
                return []
            effects: list[Any] = []
            for row in answer.results:
                effects += self.inherit(row, self.is_gone, later_ns)
            if answer.more and answer.results:
                effects += self._look(answer.results[-1].key, later_ns)
            return effects

        return self._node.scan(tables.ACTOR, b"", _PAGE, now_ns, found, after=after)

    def inherit(self, found: Row, is_gone: Callable[[str], bool], now_ns: int) -> list[Any]:
        """Take an actor over if neither the node where it lives nor its home is left."""
        def entitled(row: ActorRow) -> bool:
            if found.key in self._kept:  # it is here, and its row will say so
                return False
            return row.state != "dead" and is_gone(row.node) and is_gone(row.home or row.node)

        try:
            row = tables.decode(found.value or b"", ActorRow)
        except tables.BadRow:
            return []
        return self._claim(found.key, entitled, now_ns) if entitled(row) else []

    def orphaned(self, effect: ActorOrphaned, now_ns: int) -> list[Any]:
        """An actor whose home is here has lost its node."""
        ours = self._node.node

        def entitled(row: ActorRow) -> bool:
            unplaced = row.node == ours and row.incarnation <= effect.incarnation
            return row.state != "dead" and row.home == ours and (row.node == effect.node or unplaced)

        return self._claim(effect.actor, entitled, now_ns)

    def _claim(self, actor: bytes, entitled: Entitled, now_ns: int) -> list[Any]:
        """Start an actor again if it is ours to do, as its row is now."""
        if actor in self._claims:
            return []
        self._claims[actor] = _Claim(entitled)
        return self._read(actor, now_ns)

    def _read(self, actor: bytes, now_ns: int) -> list[Any]:
        claim = self._claims[actor]
        if claim.asking:
            return []
        claim.asking = True

        def found(answer: Answered, later_ns: int) -> list[Any]:
            claim.asking = False
            if answer.error is not None:
                self._again(later_ns)
                return []
            row, version = answer.results[0].value, answer.results[0].version
            row = None if row is None else tables.decode(row, ActorRow)
            if row is not None and row == claim.heir:  # it was written, and nobody answered
                return self._taken(actor, claim, version, later_ns)
            if row is None or not claim.entitled(row):
                del self._claims[actor]
                return []
            return self._take(actor, claim, row, version, later_ns)

        return self._node.read(tables.ACTOR, actor, now_ns, found)

    def _take(self, actor: bytes, claim: _Claim, row: ActorRow, version: int, now_ns: int) -> list[Any]:
        claim.before, claim.heir, claim.asking = row, heir_of(row, self._node.node), True

        def written(answer: Answered, later_ns: int) -> list[Any]:
            claim.asking = False
            if answer.error is not None:
                self._again(later_ns)
                return []
            if not answer.results[0].ok:  # somebody else was first, or changed something
                return self._read(actor, later_ns)
            return self._taken(actor, claim, answer.results[0].version, later_ns)

        return self._node.write([Op(tables.ACTOR, actor, tables.encode(claim.heir), COMPARE_AND_SET, version)], now_ns,
                                written)

    def _taken(self, actor: bytes, claim: _Claim, version: int, now_ns: int) -> list[Any]:
        row, heir = claim.before, claim.heir
        assert row is not None and heir is not None
        del self._claims[actor]
        if heir.state == "dead":
            assert heir.death is not None
            self._node.events.note("warning", "actor died", f"{_name(row)}: {heir.death.reason}", now_ns)
            return self._ended(heir, now_ns)
        self.counts["actors_taken_over"] += 1
        self._node.events.note("warning", "actor taken over", f"{_name(row)}, which lived on {row.node}, starts again "
                               f"as incarnation {heir.incarnation}", now_ns)
        kept = self._keep(heir, now_ns)
        kept.version, kept.written = version, heir
        create = CreateActor(row.spec, incarnation=heir.incarnation, restarts=heir.restarts)
        return self._node.schedule(Received(b">nobody", create), now_ns)


def heir_of(row: ActorRow, node: str) -> ActorRow:
    """Return the row by which ``node`` starts an actor again whose nodes are gone, or says that it is dead."""
    spec, lived = row.spec, row.state != "pending"
    nobody = Death(row.worker, row.pid, row.node, reason=f"node {row.node} is gone")
    if not spec.detached or (lived and 0 <= spec.max_restarts <= row.restarts):
        return msgspec.structs.replace(row, state="dead", death=nobody, worker="", endpoint="", pid=0)
    return msgspec.structs.replace(
        row, state="restarting", incarnation=row.incarnation + 1, restarts=row.restarts + lived, node=node, home=node,
        worker="", endpoint="", pid=0, death=nobody)


def _name(row: ActorRow) -> str:
    return f"{row.spec.class_name} {row.spec.name or row.spec.actor.hex()}"
