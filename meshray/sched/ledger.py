"""The node's resources, to the 1/10 000 unit and the GPU index.

*Pure.* Runs in the node process, inside ``LocalScheduler``.

1. For each resource: available + what unparked allocations hold = total.
2. ``available`` is negative only after ``resume``: a blocked worker that goes on does not wait for its CPU.
3. A GPU index is shared only by fractional allocations, and never beyond one unit.

Source: OSDI'18 s4.2.2 (the local scheduler accounts for its node).
"""

from __future__ import annotations

import msgspec

from meshray.sched import policy
from meshray.sched.policy import UNIT, Resources

CPU = "CPU"
GPU = "GPU"
WEIGHTLESS = "weightless"
"""What a lease without resources holds: bounds how many of them run at once. Never shown outside."""

WEIGHTLESS_MAX = 16
"""Leases without resources on one node, not counting those that wait for others."""

_PARKED = (CPU, WEIGHTLESS)


def visible(need: Resources) -> Resources:
    """Return ``need`` as others should see it."""
    return {name: amount for name, amount in need.items() if name != WEIGHTLESS}


class Allocation(msgspec.Struct, eq=False):
    """What one worker holds. ``gpus``: indices, ``share`` units of each. ``parked``: its CPU is lent out."""

    resources: Resources
    gpus: list[int]
    share: int
    parked: bool = False


class Ledger:
    """Resources in all, free, and held."""

    def __init__(self, total: Resources) -> None:
        self.total: Resources = {name: amount for name, amount in total.items() if amount > 0}
        self.available: Resources = {**self.total, WEIGHTLESS: WEIGHTLESS_MAX * UNIT}
        self._gpus_free = [UNIT] * (self.total.get(GPU, 0) // UNIT)
        self._held: dict[int, Allocation] = {}

    def possible(self, need: Resources) -> bool:
        """Whether ``need`` fits when nothing else runs."""
        return all(name == WEIGHTLESS or self.total.get(name, 0) >= amount for name, amount in need.items())

    def fits(self, need: Resources) -> bool:
        """Whether ``need`` is free now."""
        return policy.covers(self.available, need) and self._indices(need.get(GPU, 0)) is not None

    def take(self, need: Resources) -> Allocation:
        """Hold ``need``; the caller has asked ``fits`` (an actor that is placed holds less than it was placed by)."""
        amount = need.get(GPU, 0)
        gpus = self._indices(amount) or []
        share = min(amount, UNIT)
        for index in gpus:
            self._gpus_free[index] -= share
        policy.subtract(self.available, need)
        allocation = Allocation(dict(need), gpus, share)
        self._held[id(allocation)] = allocation
        return allocation

    def give_back(self, allocation: Allocation) -> None:
        """Free everything that is held."""
        del self._held[id(allocation)]
        for index in allocation.gpus:
            self._gpus_free[index] += allocation.share
        policy.subtract(self.available, self._holds(allocation), -1)

    def park(self, allocation: Allocation) -> None:
        """The worker waits for others: lend its CPU out. Twice is once."""
        if not allocation.parked:
            policy.subtract(self.available, self._holds(allocation), -1)
            allocation.parked = True
            policy.subtract(self.available, self._holds(allocation))

    def resume(self, allocation: Allocation) -> None:
        """The worker goes on: take its CPU back even if that oversubscribes the node."""
        if allocation.parked:
            policy.subtract(self.available, self._holds(allocation), -1)
            allocation.parked = False
            policy.subtract(self.available, self._holds(allocation))

    def free(self) -> Resources:
        """Return what is available, as shown to others: never negative."""
        return {name: max(0, self.available.get(name, 0)) for name in self.total}

    def oversubscribed(self) -> Resources:
        """Return by how much more is held than there is."""
        if min(self.available.values()) >= 0:
            return {}
        return {name: -amount for name, amount in self.available.items() if amount < 0}

    def _holds(self, allocation: Allocation) -> Resources:
        if not allocation.parked:
            return allocation.resources
        return {name: amount for name, amount in allocation.resources.items() if name not in _PARKED}

    def _indices(self, amount: int) -> list[int] | None:
        """Return GPU indices for ``amount``: the fullest that fits for a fraction, whole ones otherwise."""
        if not amount:
            return []
        if amount < UNIT:
            fitting = [index for index, free in enumerate(self._gpus_free) if free >= amount]
            return [min(fitting, key=lambda index: (self._gpus_free[index], index))] if fitting else None
        count = -(-amount // UNIT)
        whole = [index for index, free in enumerate(self._gpus_free) if free == UNIT][:count]
        return whole if len(whole) == count else None

    def check(self) -> None:
        """Assert invariants 1 and 3."""
        left: Resources = {**self.total, WEIGHTLESS: WEIGHTLESS_MAX * UNIT}
        for allocation in self._held.values():
            policy.subtract(left, self._holds(allocation))
        for name in left.keys() | self.available.keys():
            assert left.get(name, 0) == self.available.get(name, 0), f"{name}: available {self.available}, left {left}"
        assert all(0 <= free <= UNIT for free in self._gpus_free), f"GPU shares out of range: {self._gpus_free}"
