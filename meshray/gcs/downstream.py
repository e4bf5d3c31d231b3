"""What a member has handed down and the tail has not confirmed: the sent list of chain replication.

*Pure.* Runs in shard servers.

1. The list holds, without gaps, every entry that is durable here and not known to be durable at the tail.
2. What a successor lacks is therefore always in it: a successor has everything that the tail has.
3. Entries go down in batches, one for each turn, and are confirmed cumulatively.

Source: van Renesse and Schneider, OSDI'04 s3.2 (``Sent_i``), s3.3 (resending it to a new successor).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from meshray.gcs import limits
from meshray.messages.chain import Entry, Extend


class Downstream:
    """The sent list of one member."""

    def __init__(self) -> None:
        self._sent: deque[Entry] = deque()
        self.due_ns = 0
        """When the successor is to be asked whether it got everything."""
        self.progress_ns = 0
        """When something was confirmed last, or the list was empty."""

    def add(self, entries: Iterable[Entry], now_ns: int) -> None:
        """These entries are durable here and go down now."""
        if not self._sent:
            self.due_ns, self.progress_ns = now_ns + limits.CHAIN_RESEND_NS, now_ns
        self._sent.extend(entries)

    def put_first(self, entries: list[Entry]) -> None:
        """A successor may lack these, which come before everything in the list."""
        self._sent.extendleft(reversed(entries))

    def confirm(self, committed: int, now_ns: int) -> list[Entry]:
        """Everything up to ``committed`` is at the tail: return the entries that were not known to be."""
        sent = self._sent
        confirmed = []
        while sent and sent[0].last <= committed:
            confirmed.append(sent.popleft())
        if confirmed:
            self.due_ns, self.progress_ns = now_ns + limits.CHAIN_RESEND_NS, now_ns
        return confirmed

    def take_all(self) -> list[Entry]:
        """Return every entry and forget it: this member is the tail now, so all of them are committed."""
        taken = list(self._sent)
        self._sent.clear()
        return taken

    def after(self, epoch: int, version: int, last: int) -> Iterator[Extend]:
        """Yield what a successor whose history ends at ``version`` lacks up to ``last``; at least one message."""
        lacking = [entry for entry in self._sent if entry.last > version]
        yield from batches(epoch, lacking, lacking[0].version - 1 if lacking else last, last)

    def check(self, durable: int) -> None:
        """Assert that the list has no gaps and ends with what is durable here."""
        before = None
        for entry in self._sent:
            assert before is None or entry.version == before.last + 1
            before = entry
        assert before is None or before.last == durable

    def __len__(self) -> int:
        return len(self._sent)


def batches(epoch: int, entries: list[Entry], after: int, last: int) -> Iterable[Extend]:
    """Return Extend messages with ``entries``, none of them larger than EXTEND_BYTES_MAX unless one entry is."""
    return (Extend(epoch, after, last, entries),) if len(entries) == 1 else _batches(epoch, entries, after, last)


def _batches(epoch: int, entries: list[Entry], after: int, last: int) -> Iterator[Extend]:
    batch: list[Entry] = []
    room_bytes = limits.EXTEND_BYTES_MAX
    for entry in entries:
        size_bytes = sum([len(value) for _, _, _, value in entry.rows if value])
        if batch and size_bytes > room_bytes:
            yield Extend(epoch, after, last, batch)
            after, batch, room_bytes = entry.version - 1, [], limits.EXTEND_BYTES_MAX
        batch.append(entry)
        room_bytes -= size_bytes
    yield Extend(epoch, after, last, batch)
