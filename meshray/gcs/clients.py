"""Remembers each client's last Write and its answer, so that a Write that is sent again is not done again.

*Pure.* Runs in shard servers.

1. A client has one Write on the way: its next sequence tells that it has the answer to the one before, so one record
   for each client is enough.
2. A record goes to the disk with its entry, in one transaction, and is part of the replicated state. It answers for its
   Write once the entry is committed.
3. A client is forgotten only when it has been silent for so long that nothing it sent can still arrive; how long is
   counted from the start of this process, as the clock of an earlier one means nothing here.

Source: RIFL, SOSP'15 s3 (completion records, their reclamation); OSDI'04 s3 (retries at the head).
"""

from __future__ import annotations

from enum import Enum

from meshray.gcs import limits
from meshray.gcs.log import ClientRecord, Entry
from meshray.messages.gcs import Written


class Verdict(Enum):
    """What to do with a Write."""

    NEW = 0
    WAITING = 1
    """It was decided, and is answered when it is committed."""
    OUTDATED = 2
    """A copy of one whose answer its client has."""
    CROWDED = 3
    """There is no room to remember another client."""


class Clients:
    """The dedup table."""

    def __init__(self, recovered: dict[str, ClientRecord], now_ns: int) -> None:
        self._records = dict(recovered)
        self._heard_ns = dict.fromkeys(recovered, now_ns)
        self._waiting: dict[str, int] = {}
        """Writes that were decided and are not yet committed, the latest of each client."""

    def judge(self, client: str, sequence: int, now_ns: int) -> Verdict | Written:
        """Say what a Write is; one that was done before is answered with what was answered then."""
        waiting = self._waiting.get(client, 0)
        if sequence <= waiting:
            return Verdict.WAITING if sequence == waiting else Verdict.OUTDATED
        record = self._records.get(client)
        if record is None:
            if not waiting and len(self._heard_ns) >= limits.CLIENTS_MAX:
                return Verdict.CROWDED
        elif sequence <= record.sequence:
            if sequence < record.sequence:
                return Verdict.OUTDATED
            self._heard_ns[client] = now_ns
            return Written(sequence, record.version, record.refused)
        return Verdict.NEW

    def admit(self, client: str, sequence: int, now_ns: int) -> None:
        """This new Write was decided."""
        self._waiting[client] = sequence
        self._heard_ns[client] = now_ns

    def settle(self, entry: Entry) -> None:
        """This entry is committed."""
        if entry.client:
            self._records[entry.client] = ClientRecord(entry.sequence, entry.version, entry.refused)
            if self._waiting.get(entry.client) == entry.sequence:
                del self._waiting[entry.client]
        for client in entry.forgotten:
            if client not in self._waiting:
                self._records.pop(client, None)
                self._heard_ns.pop(client, None)

    def names(self) -> list[str]:
        """Return the clients that have a record."""
        return list(self._records)

    def record(self, client: str) -> ClientRecord | None:
        """Return the record of a client."""
        return self._records.get(client)

    def close(self, client: str, now_ns: int) -> None:
        """The client will not write again: forget it soon."""
        if client in self._heard_ns:
            self._heard_ns[client] = now_ns - limits.CLIENT_FORGET_NS + limits.CLIENT_LINGER_NS

    def silent(self, now_ns: int) -> tuple[str, ...]:
        """Take and return the clients that are to be forgotten now."""
        limit_ns = now_ns - limits.CLIENT_FORGET_NS
        heard = self._heard_ns.items()
        names = [name for name, heard_ns in heard if heard_ns <= limit_ns and name not in self._waiting]
        for name in names:
            del self._heard_ns[name]
        return tuple(names)

    def check(self) -> None:
        """Assert that whoever waits is remembered, and for something newer than its record."""
        for client, sequence in self._waiting.items():
            assert client in self._heard_ns
            assert client not in self._records or self._records[client].sequence < sequence

    def __len__(self) -> int:
        return len(self._heard_ns)
