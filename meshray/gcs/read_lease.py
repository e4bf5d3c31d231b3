"""The tail's lease for reads: until when no other configuration can have come into being.

*Pure.* Runs in shard servers.

1. The tail may answer reads only while every other member's promise holds. A promise lasts from when the tail asked for
   it, by the tail's clock; its giver counts it from when it answered, by its own: so the giver's end is never the
   earlier one, whatever the delay between the two.
2. Clocks need not agree, but they must not run at rates more than CLOCK_RATE_DIFFERENCE apart: the giver counts that
   much longer.
3. A giver that was wedged gives no more, and tells how long what it gave may last: who replaces the tail waits for it.
   One wedged member is thus enough to end the old tail's reads.

A chain of one has nobody who could replace it, and needs no lease.

Source: Gray and Cheriton, SOSP'89 (leases, and their dependence on clock rates).
"""

from __future__ import annotations

from meshray.gcs import limits


class ReadLease:
    """Both sides: what this member was promised as the tail, and what it promised the tail."""

    def __init__(self, now_ns: int) -> None:
        self._from: dict[str, int] = {}
        """Other members, and the time at which their latest promise was asked for."""
        self._given_until_ns = now_ns + limits.READ_LEASE_GIVEN_NS
        """A process cannot know what its earlier life promised, so it begins as if that had been just now."""
        self.ask_ns = now_ns

    def begin(self, others: list[str], now_ns: int) -> None:
        """The chain is new: whatever was promised for the old one counts no more."""
        self._from = dict.fromkeys(others, now_ns - limits.READ_LEASE_NS)
        self.ask_ns = now_ns

    def given_to_us(self, name: str, stamp_ns: int, now_ns: int) -> None:
        """``name`` promised what we asked for at ``stamp_ns``."""
        if name in self._from and stamp_ns <= now_ns:
            self._from[name] = max(self._from[name], stamp_ns)

    @property
    def until_ns(self) -> int:
        """Until when reads may be answered."""
        return min(self._from.values(), default=0) + limits.READ_LEASE_NS

    def give(self, now_ns: int) -> None:
        """This member promises the tail."""
        self._given_until_ns = now_ns + limits.READ_LEASE_GIVEN_NS

    def left_ns(self, now_ns: int) -> int:
        """Return how long the tail may still trust what this member gave."""
        return max(0, self._given_until_ns - now_ns)
