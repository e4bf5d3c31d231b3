"""Leases whose workers have several tasks: behind a long one the others may have to be recalled.

*Pure.* Runs in drivers and workers, inside ``Submitter``.

1. Only leases that were given more than one task at a time are known here, so that looking for stalled workers costs
   nothing while tasks are pushed one by one.

Source: DESIGN s4.5 (recall).
"""

from __future__ import annotations

from meshray import config
from meshray.session.records import Lease, SchedulingClass

STALL_NS = 5 * config.MILLISECOND_NS
"""A worker that has not answered for this long holds a long task: what waits behind it may go elsewhere."""

_LOOK_MAX = 64
"""Leases that are looked through whenever one of a class is idle; more than that only every ``STALL_NS``."""


class Piles:
    """All leases of a session with several tasks outstanding, or that had them lately."""

    def __init__(self) -> None:
        self._leases: dict[int, Lease] = {}

    def add(self, lease: Lease) -> None:
        """A lease has several tasks outstanding."""
        self._leases[lease.number] = lease

    def stalled_of(self, klass: SchedulingClass, now_ns: int) -> list[Lease]:
        """Return the leases of a class where tasks wait behind a long one."""
        if not self._leases:
            return []
        if len(self._leases) > _LOOK_MAX:
            if now_ns - klass.looked_ns < STALL_NS:
                return []
            klass.looked_ns = now_ns
        return [lease for lease in self._leases.values() if lease.klass is klass and _is_stalled(lease, now_ns)]

    def stalled(self, now_ns: int) -> list[Lease]:
        """Return the leases of all classes where tasks wait behind a long one; forget those with no pile."""
        if self._leases:
            self._leases = {number: lease for number, lease in self._leases.items() if len(lease.outstanding) > 1}
        return [lease for lease in self._leases.values() if _is_stalled(lease, now_ns)]


def _is_stalled(lease: Lease, now_ns: int) -> bool:
    return len(lease.outstanding) > 1 and now_ns - lease.answered_ns > STALL_NS
