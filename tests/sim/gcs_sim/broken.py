"""Control stores that are broken on purpose, to show that the checkers see it.

*Pure.* Runs in simulation tests. Each is a context in which worlds are made of broken parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any
from unittest.mock import PropertyMock, patch

import msgspec

from meshray.gcs import shard_server
from meshray.gcs.chain import ChainMember
from meshray.gcs.clients import Clients, Verdict
from meshray.gcs.log import Entry
from meshray.gcs.read_lease import ReadLease
from meshray.gcs.requests import Link
from meshray.gcs.watches import Watches
from meshray.machine import Send
from meshray.messages.gcs import Read, Written
from tests.sim.gcs_sim.process import Process


class AnswersBeforeTheTail(ChainMember):
    """The head answers what is durable with it, before the others have it."""

    def persisted(self, count: int, now_ns: int) -> list[Any]:
        entries = [self._waiting[index] for index in range(count)]
        effects = super().persisted(count, now_ns)
        if self.is_head and not self.is_tail:
            effects += [Send(entry.route, Written(entry.sequence, entry.version, entry.refused))
                        for entry in entries if entry.client]
        return effects


class IgnoresEpochs(ChainMember):
    """A member takes whatever comes as if it were of its own epoch."""

    def received(self, route: bytes, message: Any, now_ns: int) -> list[Any]:
        if hasattr(message, "epoch"):
            message = msgspec.structs.replace(message, epoch=self.shard.epoch)
        return super().received(route, message, now_ns)


class ReadsAtTheHead(ChainMember):
    """The head answers reads from its own disk."""

    def received(self, route: bytes, message: Any, now_ns: int) -> list[Any]:
        if isinstance(message, Read) and self.is_head and not self.is_tail and message.epoch == self.shard.epoch:
            return [Send(route, self.tail._look(message))]
        return super().received(route, message, now_ns)


@contextmanager
def answers_before_the_tail() -> Iterator[None]:
    with patch.object(shard_server, "ChainMember", AnswersBeforeTheTail):
        yield


@contextmanager
def ignores_epochs() -> Iterator[None]:
    nothing: frozenset[type] = frozenset()
    with patch.object(shard_server, "ChainMember", IgnoresEpochs), patch.object(shard_server, "_OF_AN_EPOCH", nothing):
        yield


@contextmanager
def reads_at_the_head() -> Iterator[None]:
    """Clients also ask there."""
    with patch.object(shard_server, "ChainMember", ReadsAtTheHead), patch.object(Link, "tail", Link.head):
        yield


@contextmanager
def forgets_clients() -> Iterator[None]:
    """What was done before is done again."""
    kept = Clients.judge

    def judge(clients: Clients, client: str, sequence: int, now_ns: int) -> Any:
        verdict = kept(clients, client, sequence, now_ns)
        return Verdict.NEW if isinstance(verdict, Written) else verdict

    with patch.object(Clients, "judge", judge), patch.object(Clients, "check", lambda clients: None):
        yield


@contextmanager
def reads_after_the_lease() -> Iterator[None]:
    """A tail reads as if its lease never ended."""
    with patch.object(ReadLease, "until_ns", PropertyMock(return_value=1 << 62)):
        yield


@contextmanager
def sends_before_it_persists() -> Iterator[None]:
    """Messages of a turn leave before it is on the disk: what is acknowledged upwards and to clients may be lost."""

    class Early(ChainMember):
        def _append(self, entry: Any, now_ns: int) -> list[Any]:
            effects = super()._append(entry, now_ns)
            early = super().persisted(1, now_ns)
            return [*(each for each in effects if not isinstance(each, Send)), *early]

        def persisted(self, count: int, now_ns: int) -> list[Any]:
            return []

    with patch.object(shard_server, "ChainMember", Early), patch.object(Process, "sends_first", True, create=True):
        yield


@contextmanager
def drops_changes() -> Iterator[None]:
    """What watchers are told is thinned out, without a gap in the numbers."""
    kept = Watches.feed

    def thinned(watches: Watches, entry: Entry) -> Any:
        return kept(watches, msgspec.structs.replace(entry, rows=entry.rows[1:]))

    with patch.object(Watches, "feed", thinned):
        yield


BROKEN: dict[str, Callable[[], AbstractContextManager[None]]] = {
    each.__name__: each for each in (
        answers_before_the_tail, ignores_epochs, reads_at_the_head, forgets_clients, reads_after_the_lease,
        sends_before_it_persists, drops_changes)
}


@contextmanager
def broken(*names: str) -> Iterator[None]:
    """Break these parts."""
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(BROKEN[name]())
        yield
