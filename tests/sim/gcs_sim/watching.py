"""What watchers were told, compared with what was committed.

*Pure.* Runs in simulation and chaos tests.

1. Of one row, changes are told in the order of their commits, each at most once, and none that was not committed.
2. In the end, when nothing is on the way, a watcher knows every row as it is.
3. A watcher that did not lose its place was told every change, not only the last of each row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from meshray.gcs.requests import RowChanged
from tests.sim.gcs_sim.history import Violation

Rows = Mapping[bytes, tuple[int, bytes]]
"""Key -> (version, value)."""


def in_order(watcher: str, told: Sequence[RowChanged], committed: Mapping[int, tuple[bytes, bytes | None]]) -> None:
    """Raise Violation for a change told out of order, twice, or that is not ``committed`` (version -> key, value)."""
    newest: dict[bytes, int] = {}
    for change in told:
        if not change.version:
            continue
        before = newest.get(change.key, 0)
        if change.version <= before:
            raise Violation(f"{watcher} was told {change.key!r} as {change.version} after {before}")
        if committed.get(change.version) != (change.key, change.value):
            raise Violation(f"{watcher} was told {change.key!r} as {change.version} = {change.value!r}; committed is "
                            f"{committed.get(change.version)}")
        newest[change.key] = change.version


def complete(watcher: str, told: Sequence[RowChanged], present: Rows) -> None:
    """Raise Violation if what a watcher knows in the end is not what is there."""
    known: dict[bytes, tuple[int, bytes]] = {}
    for change in told:
        if change.value is None:
            known.pop(change.key, None)
        else:
            known[change.key] = (change.version, change.value)
    for key in {*known, *present}:
        if known.get(key) != present.get(key):
            raise Violation(f"{watcher} knows {key!r} as {known.get(key)}, but it is {present.get(key)}")


def gapless(watcher: str, told: Sequence[RowChanged], versions: Sequence[int]) -> None:
    """Raise Violation if one of ``versions``, committed while the watch stood without a loss, was not told."""
    heard = {change.version for change in told}
    missing = [version for version in versions if version not in heard]
    if missing:
        raise Violation(f"{watcher} kept its place, but was not told of {missing[:5]} ({len(missing)} in all)")
