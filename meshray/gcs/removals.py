"""Remembers which rows were removed lately, so that a watcher can go on where another tail left it.

*Pure.* Runs in shard servers, at every member: whichever is the tail next must know.

1. Every removal of a version above ``floor`` is remembered. What is older is forgotten, the oldest first.
2. A row that is there shows by its own version when it was written; only a row that is gone needs this.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator

from meshray.gcs import limits
from meshray.gcs.log import Entry


class Removals:
    """The latest removals, in the order of their versions."""

    def __init__(self, version: int) -> None:
        """Begin after ``version``: what was removed before is not known here."""
        self.floor = version
        self._versions: list[int] = []
        self._keys: list[tuple[str, bytes]] = []

    def note(self, entries: Iterable[Entry]) -> None:
        """These entries are durable here."""
        for entry in entries:
            for table, key, version, value in entry.rows:
                if value is None:
                    self._versions.append(version)
                    self._keys.append((table, key))
        if len(self._versions) > 2 * limits.REMOVALS_MAX:
            surplus = len(self._versions) - limits.REMOVALS_MAX
            self.floor = self._versions[surplus - 1]
            del self._versions[:surplus], self._keys[:surplus]

    def above(self, version: int) -> Iterator[tuple[int, str, bytes]]:
        """Yield what was removed after ``version``, which is not below ``floor``: version, table, key."""
        for place in range(bisect_right(self._versions, version), len(self._versions)):
            yield self._versions[place], *self._keys[place]

    def __len__(self) -> int:
        return len(self._versions)
