"""A client's reads and scans: split over the shards, repeated on silence, continued when an answer was only a part.

*Pure.* Used by ``gcs.client``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from meshray.gcs import limits
from meshray.gcs.requests import Link, Request
from meshray.machine import Send
from meshray.messages.gcs import Read, ReadAnswered, Row, Scan, Scanned


class Ask(msgspec.Struct, eq=False):
    """One question to one shard: a Read of ``keys``, or a Scan of ``table``."""

    request: Request
    link: Link
    due_ns: int
    attempt: int = 0
    keys: Sequence[tuple[str, bytes]] = ()
    places: Sequence[int] = ()
    """Places of the keys among the request's results."""
    table: str = ""
    prefix: bytes = b""
    after: bytes = b""
    found: int = 0
    """Rows that a scan has had from this shard."""


class Reader:
    """All questions of one client that are not answered."""

    def __init__(self) -> None:
        self._asks: dict[int, Ask] = {}
        self._cookie = 0

    def ask(self, ask: Ask, now_ns: int) -> list[Any]:
        """Send a question."""
        self._cookie += 1
        self._asks[self._cookie] = ask
        ask.due_ns = now_ns + limits.RESEND_NS
        return [*ask.link.connect(), self._send(self._cookie, ask)]

    def read(self, message: ReadAnswered, now_ns: int) -> list[Any]:
        """Rows of the first keys have come; ask for the rest."""
        ask = self._asks.get(message.cookie)
        if ask is None or ask.table or not message.rows:
            return []
        del self._asks[message.cookie]
        for place, row in zip(ask.places, message.rows, strict=False):
            ask.request.results[place] = row
        done = min(len(message.rows), len(ask.keys))
        ask.request.left -= done
        if done < len(ask.keys):
            ask.keys, ask.places, ask.attempt = ask.keys[done:], ask.places[done:], 0
            return self.ask(ask, now_ns)
        return ask.request.end() if not ask.request.left else []

    def scanned(self, message: Scanned, now_ns: int) -> list[Any]:
        """A page has come; ask for the next, or put the shards' rows together."""
        ask = self._asks.pop(message.cookie, None)
        if ask is None or not ask.table:
            return []
        request = ask.request
        request.results += message.rows
        ask.found += len(message.rows)
        if message.more and message.rows and ask.found < request.limit:
            ask.after, ask.attempt = message.rows[-1].key, 0
            return self.ask(ask, now_ns)
        request.more |= message.more
        request.left -= 1
        if request.left:
            return []
        request.results.sort(key=_key)
        request.more |= len(request.results) > request.limit
        del request.results[request.limit :]
        return request.end()

    def retry(self, link: Link, due_ns: int, *, newer: bool) -> None:
        """Ask this shard again at ``due_ns``; as for the first time if its chain is ``newer``."""
        for ask in self._asks.values():
            if ask.link is link:
                ask.due_ns = min(ask.due_ns, due_ns)
                if newer:
                    ask.attempt = -1

    def tick(self, now_ns: int) -> list[Any]:
        """Drop what nobody waits for, ask again what is due."""
        effects: list[Any] = []
        silent: list[Link] = []
        for cookie, ask in list(self._asks.items()):
            if ask.request.ended:
                del self._asks[cookie]
            elif ask.due_ns <= now_ns:
                ask.attempt += 1
                ask.due_ns = now_ns + limits.RESEND_NS
                effects.append(self._send(cookie, ask))
                if ask.attempt and ask.link not in silent:
                    silent.append(ask.link)
                    effects += ask.link.follow()
        return effects

    def deadline_ns(self) -> int | None:
        """When ``tick`` is due next."""
        return min((ask.due_ns for ask in self._asks.values()), default=None)

    def _send(self, cookie: int, ask: Ask) -> Send:
        epoch = ask.link.shard.epoch
        if ask.table:
            limit = min(ask.request.limit - ask.found, limits.SCAN_ROWS_MAX)
            return Send(ask.link.tail(ask.attempt), Scan(cookie, epoch, ask.table, ask.prefix, ask.after, limit))
        return Send(ask.link.tail(ask.attempt), Read(cookie, epoch, list(ask.keys)))


def _key(row: Row) -> bytes:
    return row.key
