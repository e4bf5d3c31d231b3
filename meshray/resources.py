"""Amounts of resources: what users write as numbers, and what travels as whole units.

*Pure.* Used by options and by whoever shows resources to users.

1. A unit is 1/10 000 of what the user counts in (a CPU, a GPU, a byte of memory), so sums are exact.
2. An amount that is no multiple of a unit is refused, not rounded: it would grant more or less than was said.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

UNITS_PER_ONE = 10_000
CPU, GPU, MEMORY = "CPU", "GPU", "memory"


def to_units(option: str, amount: object) -> int:
    """Return ``amount`` in units. ``option`` names it in the error. Raise TypeError or ValueError."""
    if isinstance(amount, bool) or not isinstance(amount, int | float):
        raise TypeError(f"{option} must be a number, not {type(amount).__name__}")
    if not math.isfinite(amount):
        raise ValueError(f"{option} must be finite, not {amount}")
    if amount < 0:
        raise ValueError(f"{option} cannot be negative, but is {amount}")
    units = round(amount * UNITS_PER_ONE)
    if isinstance(amount, float) and not math.isclose(units, amount * UNITS_PER_ONE, rel_tol=1e-9):
        raise ValueError(f"{option} = {amount} is finer than 0.0001: use a multiple of that")
    return units


def from_units(units: Mapping[str, int]) -> dict[str, float]:
    """Return amounts as users count them."""
    return {name: value / UNITS_PER_ONE for name, value in units.items()}


def check_custom(option: str, resources: object) -> dict[str, int]:
    """Return custom resources in units. Raise TypeError or ValueError that names the one that is wrong."""
    if not isinstance(resources, Mapping):
        raise TypeError(f"{option} must be a dict of name to amount, not {type(resources).__name__}")
    units = {}
    for name, amount in resources.items():
        if not isinstance(name, str) or not name:
            raise TypeError(f"{option} has the name {name!r}: names are non-empty strings")
        if name in (CPU, GPU, MEMORY):
            raise ValueError(f"{option} must not contain {name!r}: use {_OWN_OPTIONS[name]} instead")
        units[name] = to_units(f"{option}[{name!r}]", amount)
    return units


_OWN_OPTIONS = {CPU: "num_cpus", GPU: "num_gpus", MEMORY: "memory"}
