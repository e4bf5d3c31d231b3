"""A store whose readers and disk are the test's own.

*Pure.* Runs in tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from meshray import config
from meshray.machine import Received, Send, Tick
from meshray.messages.objects import (
    ExtentGranted,
    FetchObject,
    ObjectsSealed,
    RangesFreed,
    RequestExtent,
    ReturnExtents,
    Sealed,
)
from meshray.messages.tasks import Location
from meshray.store.events import (
    ObjectRestored,
    ObjectSpilled,
    RestoreObject,
    SpillObject,
)
from meshray.store.service import StoreService

MIB = config.MIB
A, B, C = b"a", b"b", b"c"


class Board:
    """Who reads what, by exact offset."""

    def __init__(self) -> None:
        self.pins: set[int] = set()
        self.used: dict[int, int] = {}
        self.generations: dict[int, int] = {}

    def read(self, offset: int) -> None:
        self.used[offset] = self.uses(offset) + 1

    def generation(self, offset: int) -> int:
        return self.generations.get(offset, 0)

    def uses(self, offset: int) -> int:
        return self.used.get(offset, 0)

    def look(self) -> Callable[[int], tuple[int, bool]]:
        return lambda offset: (self.uses(offset), offset in self.pins)

    def revoke(self, offsets: Sequence[int]) -> list[bool]:
        for offset in offsets:
            self.generations[offset] = self.generation(offset) + 1
        return [offset not in self.pins for offset in offsets]


class Bench:
    """A store of 16 MiB; what it asks of the disk is done when the test says so."""

    def __init__(self, capacity_bytes: int = 16 * MIB) -> None:
        self.board = Board()
        self.store = StoreService(capacity_bytes, "here", nodes=tuple, bulk=str, draw=lambda below: 0, entropy=bytes,
                                  resolve_node=lambda name: None, board=self.board, to_disk=True)
        self.directory = self.store.directory
        self.now_ns = 1
        self.disk: list[Any] = []

    def event(self, event: Any) -> list[Any]:
        effects = self.store.handle(event, self.now_ns)
        self.store.check()
        self.disk += [effect for effect in effects if not isinstance(effect, Send)]
        return [(effect.to, effect.message) for effect in effects if isinstance(effect, Send)]

    def tell(self, route: bytes, message: Any) -> list[Any]:
        return self.event(Received(route, message))

    def lease(self, route: bytes, size_bytes: int, cookie: int = 0) -> list[Any]:
        return self.tell(route, RequestExtent(size_bytes, cookie))

    def fill(self, count: int = 4) -> None:
        """Four objects of 4 MiB, each in an extent of its own."""
        for index in range(count):
            ((_, granted),) = self.lease(A, 4 * MIB)
            self.tell(A, ObjectsSealed([Sealed(b"o%d" % index, granted.offset, 4 * MIB, "ipc://owner")]))

    def offset(self, name: bytes) -> int:
        here = self.directory.lookup(name)
        assert here is not None
        return here.offset

    def fetch(self, name: bytes, route: bytes = B, node: str = "here") -> list[Any]:
        return self.tell(route, FetchObject(name, Location(node, 0, 4 * MIB)))

    def spilled(self, error: str = "") -> list[Any]:
        """The disk has done the first write."""
        work = self.disk.pop(0)
        assert isinstance(work, SpillObject)
        return self.event(ObjectSpilled(work.object, b"" if error else work.object * 40, error))

    def restored(self, error: str = "") -> list[Any]:
        work = self.disk.pop(0)
        assert isinstance(work, RestoreObject)
        return self.event(ObjectRestored(work.object, error))

    def give_back(self, heard: list[Any]) -> list[Any]:
        """The session returns the extents whose only object has left."""
        ranges = [each for _, message in heard if isinstance(message, RangesFreed) for each in message.ranges]
        return self.tell(A, ReturnExtents([offset for offset, _ in ranges]))

    def pass_time(self, elapsed_ns: int) -> list[Any]:
        self.now_ns += elapsed_ns
        return self.event(Tick())


def kinds(heard: list[Any]) -> list[tuple[bytes, type]]:
    return [(route, type(message)) for route, message in heard]


def spill_one(bench: Bench) -> None:
    """Object o0 is on disk only, and C has its room."""
    bench.fill()
    bench.lease(C, 4 * MIB, 7)
    assert kinds(bench.give_back(bench.spilled())) == [(C, ExtentGranted)]
