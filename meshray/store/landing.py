"""Where pulled objects land: room in the arena, and giving it back when nobody writes there any more.

*Pure.* Used by ``pull``.

1. A range that the bulk plane was told of is free again only when it has said that it writes there no more.
2. A range is either a pull's, an object's that the directory knows, or on its way back.
"""

from __future__ import annotations

from typing import Any

from meshray.messages.objects import Sealed
from meshray.store.directory import ArenaDirectory
from meshray.store.events import BeginTransfer, EndTransfer, PopulateRange
from meshray.store.swarm import Pull


class Landing:
    """The ranges of all pulls."""

    def __init__(self, directory: ArenaDirectory) -> None:
        self._directory = directory
        self._transfers = 0
        self._ending: dict[int, int] = {}
        """Transfers that are not written to any more soon -> the range to free then, -1 for none."""

    def reserve(self, pull: Pull) -> list[Any]:
        """Find room for the pull; nothing if there is none."""
        offset = self._directory.reserve(pull.size_bytes)
        if offset is None:
            return []
        pull.offset, pull.stage = offset, "memory"
        return [PopulateRange(pull.object, offset, pull.size_bytes)]

    def lack(self, pull: Pull) -> str:
        """Say why there is no room."""
        numbers = self._directory.statistics()
        return (f"object store full (need {pull.size_bytes} bytes, free {numbers['free_bytes']}, "
                f"in use {numbers['used_bytes']}): raise object_store_memory or drop refs")

    def begin(self, pull: Pull) -> BeginTransfer:
        """The range has memory: let chunks in."""
        self._transfers += 1
        pull.transfer, pull.stage = self._transfers, "chunks"
        return BeginTransfer(pull.transfer, pull.object, pull.offset, pull.size_bytes, pull.digests)

    def seal(self, pull: Pull) -> EndTransfer:
        """Everything came: the range is the object's, unless it was freed or sealed meanwhile."""
        self._ending[pull.transfer] = -1
        adopted = self._directory.adopt(Sealed(pull.object, pull.offset, pull.size_bytes, pull.owner))
        return EndTransfer(pull.transfer, complete=adopted)

    def give_back(self, pull: Pull) -> list[Any]:
        """The pull failed."""
        if pull.transfer:
            self._ending[pull.transfer] = pull.offset
            return [EndTransfer(pull.transfer)]
        if pull.offset >= 0:
            self._directory.unreserve(pull.offset)
        return []

    def ended(self, transfer: int) -> None:
        """Nobody writes there any more."""
        offset = self._ending.pop(transfer)
        if offset >= 0:
            self._directory.unreserve(offset)

    def statistics(self) -> dict[str, int]:
        """Return sizes for ``status`` and tests."""
        return {"ending": len(self._ending)}
