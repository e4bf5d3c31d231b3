"""Which chunks are outstanding where: fills the holders' windows, takes back what did not come.

*Pure.* Used by ``pull``.

1. A chunk of a pull is in exactly one of four states: missing, asked for, being copied from this node itself, or done.
2. What is outstanding at one holder, over all pulls, fits its window; who came first is served first.
3. It measures how fast chunks come from other nodes: bytes over the time in which any of them was awaited.

Source: credit windows as in Homa (SIGCOMM'18); the choice itself is ``swarm``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from meshray import config
from meshray.store import chunk_sets
from meshray.store import manifest as manifests
from meshray.store.chunk_index import ChunkIndex
from meshray.store.events import AskChunks, ChunksArrived, CopyChunks
from meshray.store.records import Entry
from meshray.store.swarm import Holder, Link, Pull


class ChunkFlow:
    """The windows of all holders."""

    def __init__(self, index: ChunkIndex, find: Callable[[bytes], Entry | None], draw: Callable[[int], int]) -> None:
        """``find`` knows what is in memory or on disk here; ``draw(n)`` returns a random number below n."""
        self._index = index
        self._find = find
        self._draw = draw
        self._links: dict[str, Link] = {}
        self._moved_bytes = 0
        self._awaited_ns = 0
        self._counted_ns = 0
        self._counts = {"chunks": 0, "copied_chunks": 0, "rescued_chunks": 0}

    # --- asking --------------------------------------------------------------------------------------------------

    def link(self, name: str) -> Link:
        """Return what is known of a holder."""
        return self._links.setdefault(name, Link())

    def forget_link(self, name: str) -> None:
        """The node is gone."""
        self._links.pop(name, None)

    def pump(self, pull: Pull, now_ns: int) -> list[Any]:
        """Ask the pull's holders for as many chunks as their windows allow."""
        if pull.stage != "chunks":
            return []
        effects: list[Any] = []
        for holder in pull.ready():
            if pull.missing:
                holder.link.pulls[pull.object] = pull
            effects += self.feed(holder.name, now_ns)
        return effects

    def feed_all(self, pull: Pull, now_ns: int) -> list[Any]:
        """Let other pulls have the windows that this one used."""
        return [effect for name in pull.holders for effect in self.feed(name, now_ns)]

    def feed(self, name: str, now_ns: int) -> list[Any]:
        """Use up one holder's window, oldest pull first."""
        effects: list[Any] = []
        link = self._links.get(name)
        for pull in list(link.pulls.values()) if link is not None and link.free > 0 else ():
            assert link is not None
            holder = pull.holders.get(name)
            if not pull.missing or holder is None or pull.stage != "chunks":
                del link.pulls[pull.object]
                continue
            chunks: list[int] = []
            while link.free > 0 and holder.ready:
                chunk = pull.choose(holder, self._draw(pull.count))
                if chunk is None:
                    break
                self._ask(holder, chunk, now_ns)
                pull.missing &= ~(1 << chunk)
                chunks.append(chunk)
            if chunks:
                effects.append(AskChunks(pull.object, name, holder.bulk, holder.ticket, chunks))
            if link.free <= 0:
                break
        return effects

    def _ask(self, holder: Holder, chunk: int, now_ns: int) -> None:
        holder.asked_ns[chunk] = now_ns
        holder.link.used += 1
        if holder.deadline_ns is None:
            holder.deadline_ns = now_ns + config.PULL_SILENCE_NS

    def rescue(self, pull: Pull, now_ns: int) -> list[Any]:
        """Ask holders that have nothing better to do, and sent nothing bad, for chunks that are late elsewhere."""
        effects: list[Any] = []
        for holder in pull.ready() if len(pull.holders) > 1 else ():
            while holder.link.free > 0 and not holder.bad and pull.choose(holder, 0) is None:
                chunk = pull.choose_late(holder, now_ns)
                if chunk is None:
                    break
                self._counts["rescued_chunks"] += 1
                self._ask(holder, chunk, now_ns)
                effects.append(AskChunks(pull.object, holder.name, holder.bulk, holder.ticket, [chunk]))
        return effects

    def copy_own(self, pull: Pull) -> list[Any]:
        """Take the chunks that lie on this node already, under whatever object."""
        chunks: list[int] = []
        sources: list[int] = []
        for chunk in range(pull.count):
            place = self._index.find(manifests.digest_of(pull.digests, chunk))
            entry = self._find(place[0]) if place is not None else None
            if place is not None and entry is not None:
                start = manifests.chunk_range(place[1], entry.size_bytes)[0]
                chunks.append(chunk)
                sources.append(entry.offset + start if entry.offset >= 0 else -1)
        if not chunks:
            return []
        pull.local = chunk_sets.of(chunks)
        pull.missing &= ~pull.local
        return [CopyChunks(pull.transfer, chunks, sources)]

    # --- what came, what did not ---------------------------------------------------------------------------------

    def arrived(self, pull: Pull, event: ChunksArrived, now_ns: int) -> None:
        """These chunks lie in the arena, verified."""
        for chunk in event.chunks:
            if pull.done >> chunk & 1:
                continue
            for holder in pull.asked_of(chunk):
                asked_ns = _take_back(holder, chunk)
                if holder.name == event.holder:
                    holder.link.answered(now_ns - asked_ns)
                    self._measure(pull, chunk, asked_ns, now_ns)
            pull.done |= 1 << chunk
            pull.missing &= ~(1 << chunk)
            pull.local &= ~(1 << chunk)
            pull.announce.append(chunk)
            self._counts["chunks" if event.holder else "copied_chunks"] += 1
        sender = pull.holders.get(event.holder)
        if sender is not None:
            sender.useful()
            if sender.asked_ns:
                sender.deadline_ns = now_ns + config.PULL_SILENCE_NS

    def _measure(self, pull: Pull, chunk: int, asked_ns: int, now_ns: int) -> None:
        self._moved_bytes += manifests.chunk_range(chunk, pull.size_bytes)[1]
        self._awaited_ns += now_ns - max(asked_ns, self._counted_ns)
        self._counted_ns = now_ns

    def take_moved(self) -> tuple[int, int] | None:
        """Return the bytes that came since this was last answered, and how long they were awaited; None while they are
        so few that this would say more about latency than about bandwidth."""
        if self._moved_bytes < config.LOCALITY_BYTES_MIN:
            return None
        moved = self._moved_bytes, self._awaited_ns
        self._moved_bytes = self._awaited_ns = 0
        return moved

    def ask_elsewhere(self, pull: Pull, holder: Holder, chunks: Iterable[int]) -> None:
        """The holder does not send these; whoever has them may be asked."""
        for chunk in chunks:
            if chunk in holder.asked_ns:
                _take_back(holder, chunk)
                if not pull.asked_of(chunk):
                    pull.missing |= 1 << chunk

    def not_copied(self, pull: Pull, chunks: list[int], now_ns: int) -> list[Any]:
        """What should have lain on this node was something else: fetch it."""
        again = chunk_sets.of(chunks) & pull.local
        pull.local &= ~again
        pull.missing |= again
        return self.pump(pull, now_ns)

    def forget(self, pull: Pull) -> None:
        """The pull has ended: nothing of it is outstanding any more."""
        for holder in pull.holders.values():
            holder.link.pulls.pop(pull.object, None)
            holder.link.used -= len(holder.asked_ns)
            holder.asked_ns.clear()

    # --- questions -----------------------------------------------------------------------------------------------

    def statistics(self) -> dict[str, int]:
        """Return counters and sizes for ``status`` and tests."""
        return {**self._counts, "outstanding": sum(link.used for link in self._links.values())}

    def check(self, pulls: Iterable[Pull]) -> None:
        """Assert the invariants of the module header."""
        used: dict[str, int] = {}
        for pull in pulls:
            asked = chunk_sets.EMPTY
            for name, holder in pull.holders.items():
                assert self._links.get(name, holder.link) is holder.link
                assert not holder.asked_ns or holder.deadline_ns is not None
                asked |= chunk_sets.of(holder.asked_ns)
                used[name] = used.get(name, 0) + len(holder.asked_ns)
            parts = (asked, pull.missing, pull.done, pull.local)
            whole = chunk_sets.EMPTY
            for part in parts:
                assert not whole & part, "a chunk in two states"
                whole |= part
            assert whole == (chunk_sets.all_of(pull.count) if pull.digests else chunk_sets.EMPTY)
        assert all(link.used == used.get(name, 0) for name, link in self._links.items())
        assert all(link.used <= config.PULL_CREDIT_CHUNKS for link in self._links.values())


def _take_back(holder: Holder, chunk: int) -> int:
    """The chunk is no longer outstanding there; return when it was asked for."""
    asked_ns = holder.asked_ns.pop(chunk)
    holder.link.used -= 1
    if not holder.asked_ns and holder.ready:
        holder.deadline_ns = None
    return asked_ns
