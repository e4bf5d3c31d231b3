"""Which chunk a pull asks of which holder, so that many nodes that pull one object serve each other.

*Pure.* Used by ``pull``.

1. A chunk is asked of one holder at a time, of a second one only when it is late.
2. While other nodes pull the same object, each chunk has as many *designated* nodes as there are complete copies: only
   they fetch it from a complete copy, the others from each other. A source so sends each chunk about once.
3. A designated node that is slow or dead stops nobody: a pull with nothing outstanding asks for any chunk.
4. Who sent a bad chunk is asked only for what nobody else has, until it sends a good one.
5. Of the chunks at a peer, those that fewest others have come first.

Source: rarest first and endgame as in BitTorrent (Cohen 2003); rendezvous hashing (Thaler and Ravishankar 1998); delay
bounds as in LEDBAT (RFC 6817).
"""

from __future__ import annotations

from typing import Literal
from zlib import crc32

from meshray import config
from meshray.store import chunk_sets

_GROUPS_MAX = 1024
"""Chunks of large objects are designated in groups, so that a change of members costs a few milliseconds at most."""


class Link:
    """What this node knows of another as a holder, over all pulls."""

    __slots__ = ("latency_ns", "pulls", "used", "window")

    def __init__(self) -> None:
        self.pulls: dict[bytes, Pull] = {}
        """Pulls that may want something from it, oldest first."""
        self.used = 0
        """Chunks outstanding there."""
        self.window: float = config.PULL_WINDOW_START
        self.latency_ns = 0
        """Smoothed time from asking for a chunk to having it verified; 0 while unknown."""

    @property
    def free(self) -> int:
        """Chunks that may be asked for now."""
        return int(self.window) - self.used

    def answered(self, age_ns: int) -> None:
        """A good chunk came ``age_ns`` after it was asked for."""
        self.latency_ns = (7 * self.latency_ns + age_ns) // 8 if self.latency_ns else age_ns
        if age_ns < config.PULL_LATENCY_LOW_NS:
            self.window = min(self.window + 0.5, config.PULL_CREDIT_CHUNKS)
        elif age_ns > config.PULL_LATENCY_HIGH_NS:
            self.window = max(self.window * 0.9, config.PULL_WINDOW_MIN)

    def failed(self) -> None:
        """It was silent or lied: ask for one chunk at a time until it does better."""
        self.window = 1.0


class Holder:
    """What one pull knows of one node that has the object, or a part of it."""

    __slots__ = ("asked_ns", "bad", "bulk", "deadline_ns", "have", "link", "name", "ready", "refusals", "silences",
                 "ticket", "unknown", "useless_ns")  # fmt: skip

    def __init__(self, name: str, link: Link) -> None:
        self.name = name
        self.link = link
        self.ready = False
        """Whether it has answered with a manifest; before, nothing is asked of it."""
        self.have: int | None = 0
        """Its chunks; None: all."""
        self.ticket = b""
        self.bulk = ""
        self.asked_ns: dict[int, int] = {}
        """Chunks outstanding there -> when they were asked for."""
        self.deadline_ns: int | None = None
        """When its silence is too long; None while nothing is asked of it."""
        self.silences = 0
        self.refusals = 0
        """Manifests in a row that it gave without then serving a chunk."""
        self.unknown = 0
        self.bad = 0
        self.useless_ns = 0
        """Since when all that it was asked for came to nothing; 0: it was useful last."""

    def useful(self) -> None:
        """It sent a good chunk, or says that it is about to."""
        self.silences = self.refusals = self.bad = self.unknown = self.useless_ns = 0

    def is_useless(self, now_ns: int) -> bool:
        """Note that it was asked in vain; whether this has gone on for so long that it is given up, although its node
        lives."""
        self.useless_ns = self.useless_ns or now_ns
        return now_ns - self.useless_ns >= config.PULL_USELESS_NS

    @property
    def partial(self) -> bool:
        """Whether it pulls the object itself."""
        return self.ready and self.have is not None


Stage = Literal["manifest", "room", "memory", "chunks", "paused"]


class Pull:
    """One object on its way."""

    __slots__ = ("_designated", "_members", "announce", "count", "digests", "done", "give_up_ns", "holders", "local",
                 "lost", "missing", "named", "node", "object", "offset", "owner", "reason", "refresh_ns", "size_bytes",
                 "stage", "stuck_ns", "swept", "told_ns", "transfer", "tried", "waiters")  # fmt: skip

    def __init__(self, node: str, object_: bytes, owner: str, size_bytes: int, count: int) -> None:
        self.node = node
        self.object = object_
        self.owner = owner
        self.size_bytes = size_bytes
        self.count = count
        self.waiters: dict[bytes, None] = {}
        self.holders: dict[str, Holder] = {}
        self.named: set[str] = set()
        """The nodes that sessions named as holders; others were met on the way."""
        self.tried: set[str] = set()
        """Every node that was a holder once."""
        self.stage: Stage = "manifest"
        self.digests = b""
        self.offset = -1
        self.transfer = 0
        self.missing = chunk_sets.EMPTY
        """Chunks that are neither here nor asked for."""
        self.done = chunk_sets.EMPTY
        self.announce: list[int] = []
        """Chunks that came since the peers were told."""
        self.told_ns = 0
        self.local = chunk_sets.EMPTY
        """Chunks that are being copied from another object of this node."""
        self.refresh_ns = 0
        """When the holders are asked again what they have."""
        self.give_up_ns = 0
        """When waiting for room ends, or a paused pull is forgotten."""
        self.stuck_ns = 0
        """When a pull with nothing outstanding has waited long enough for its peers to find what it lacks."""
        self.swept = False
        """Whether every node of the cluster was asked for the object."""
        self.reason = ""
        """Why the holder that a session named was given up."""
        self.lost = False
        self._members: tuple[object, ...] = ()
        self._designated = chunk_sets.EMPTY

    # --- holders -------------------------------------------------------------------------------------------------

    def asked_of(self, chunk: int) -> list[Holder]:
        """Return the holders at which the chunk is outstanding."""
        return [holder for holder in self.holders.values() if chunk in holder.asked_ns]

    def is_asked(self) -> bool:
        """Whether anything is outstanding."""
        return any(holder.asked_ns for holder in self.holders.values())

    def is_hopeless(self) -> bool:
        """Whether nothing is outstanding, and no holder that may be asked has what is missing. A pull that only waits
        for its turn at a holder whose window others use is not."""
        return not self.is_asked() and all(self.choose(holder, 0) is None for holder in self.ready())

    def has_news(self, now_ns: int) -> bool:
        """Whether so much came that the peers should hear of it, or something a while ago."""
        late = now_ns >= self.told_ns + config.PULL_NEWS_NS
        return bool(self.announce) and (late or len(self.announce) * config.PULL_NEWS_PART >= self.count)

    def ready(self) -> list[Holder]:
        """Return the holders that may be asked: other pulls first, since complete copies are scarce."""
        ready = [holder for holder in self.holders.values() if holder.ready]
        return sorted(ready, key=lambda holder: holder.have is None)

    def designated(self) -> int:
        """Return the chunks that this node may fetch from complete copies while others pull too."""
        partial = sorted(holder.name for holder in self.holders.values() if holder.partial)
        complete = sum(1 for holder in self.holders.values() if holder.ready and holder.have is None)
        members = (complete, *partial)
        if members != self._members:
            self._members = members
            self._designated = designated(self.node, partial, complete, self.count)
        return self._designated

    # --- choice --------------------------------------------------------------------------------------------------

    def choose(self, holder: Holder, start: int) -> int | None:
        """Return the chunk to ask ``holder`` for; ``start`` is a random chunk from which to look, so that nodes do not
        all ask for the same. None: it has none that we want from it."""
        here = self.missing if holder.have is None else self.missing & holder.have
        if holder.bad:
            here &= ~self._elsewhere(holder)
        if not here:
            return None
        peers = [other.have for other in self.holders.values() if other.partial and other is not holder]
        if holder.have is None and peers:
            own = here & self.designated()
            if own:
                return chunk_sets.first(own, start)
            return None if self.is_asked() else chunk_sets.first(here, start)
        if holder.have is None:
            return chunk_sets.first(here)
        once = twice = chunk_sets.EMPTY
        for have in peers:
            assert have is not None
            twice |= once & have
            once |= have
        return chunk_sets.first(here & ~once or here & ~twice or here, start)

    def _elsewhere(self, holder: Holder) -> int:
        """Return the chunks that holders have of which the last chunk was good."""
        chunks = chunk_sets.EMPTY
        for other in self.holders.values():
            if other.ready and not other.bad and other is not holder:
                chunks |= chunk_sets.all_of(self.count) if other.have is None else other.have
        return chunks

    def choose_late(self, holder: Holder, now_ns: int) -> int | None:
        """Return a chunk that is late elsewhere and that ``holder``, which has nothing better to do, has too."""
        for other in self.holders.values():
            if other is holder or not other.asked_ns:
                continue
            late_ns = max(config.PULL_LATE_NS, 2 * max(other.link.latency_ns, holder.link.latency_ns))
            for chunk, asked_ns in other.asked_ns.items():
                if now_ns - asked_ns < late_ns:
                    break
                has = holder.have is None or holder.have >> chunk & 1
                if has and len(self.asked_of(chunk)) == 1:
                    return chunk
        return None


def designated(node: str, others: list[str], complete: int, count: int) -> int:
    """Return the chunks that ``node`` fetches from complete copies, of which there are ``complete``, while ``others``
    pull as well: for each chunk, the nodes with the highest hash of it and their name."""
    if complete > len(others):
        return chunk_sets.all_of(count)
    group = -(-count // _GROUPS_MAX)
    seeds = [_seed(name) for name in others]
    own = _seed(node)
    chunks = chunk_sets.EMPTY
    for start in range(0, count, group):
        mark = _mix(own, start)
        if sum(1 for seed in seeds if _mix(seed, start) > mark) < complete:
            chunks |= chunk_sets.all_of(group) << start
    return chunks & chunk_sets.all_of(count)


def _seed(name: str) -> int:
    encoded = name.encode()
    return crc32(encoded) << 32 | crc32(encoded[::-1])


def _mix(seed: int, chunk: int) -> int:
    """Hash of a node and a chunk (the finisher of splitmix64): for each chunk, nodes are in another order."""
    mixed = (seed ^ (chunk + 1) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return mixed ^ mixed >> 31
