"""What only the head of a chain does: decides Writes, each of them once.

*Pure.* Runs in shard servers; ``chain.ChainMember`` says when this member is the head.

1. A Write sees all that was decided before it, whether or not it is durable yet (``rows``).
2. One that was done is answered as it was then; one that is on its way will be answered by the tail (``clients``).
"""

from __future__ import annotations

from typing import Any

from meshray.gcs.clients import Clients, Verdict
from meshray.gcs.log import Entry
from meshray.gcs.rows import Rows, write_fault
from meshray.machine import Send
from meshray.messages.gcs import Write, WriteRefused, Written


class Head:
    """The duties of a head, with their state."""

    def __init__(self, name: str, rows: Rows, clients: Clients) -> None:
        self.rows = rows
        self.counts = dict.fromkeys(("writes", "ops", "repeated"), 0)
        self._name = name
        self._clients = clients

    def decide(self, route: bytes, message: Write, version: int, now_ns: int) -> Entry | list[Any]:
        """Return the entry, from ``version`` on, of a Write that was not seen before; what to answer to any other."""
        client, sequence, ops = message.client, message.sequence, message.ops
        reason = write_fault(message)
        verdict = self._clients.judge(client, sequence, now_ns) if reason is None else None
        if verdict is Verdict.CROWDED:
            count = len(self._clients)
            reason = f"shard {self._name} already remembers {count} clients: close some, or use more shards"
        if reason is not None:
            return [Send(route, WriteRefused(sequence, reason))]
        if verdict is not Verdict.NEW:
            self.counts["repeated"] += 1
            return [Send(route, verdict)] if isinstance(verdict, Written) else []
        changes, refused = self.rows.decide(ops, version)
        self.counts["writes"] += 1
        self.counts["ops"] += len(ops)
        return Entry(version, len(ops), client, sequence, changes, refused, (), route)
