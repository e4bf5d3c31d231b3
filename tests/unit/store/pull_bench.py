"""A puller with a clock; its holders and the bulk plane are played by the test."""

from __future__ import annotations

import os
from typing import Any

from meshray import config
from meshray.machine import Received, Send, Tick
from meshray.messages.objects import (
    FetchObject,
    Manifest,
)
from meshray.messages.tasks import Location
from meshray.store import chunk_sets
from meshray.store.chunk_flow import ChunkFlow
from meshray.store.chunk_index import ChunkIndex
from meshray.store.chunk_server import ChunkServer
from meshray.store.directory import ArenaDirectory
from meshray.store.events import (
    AskChunks,
    ChunksArrived,
    PopulateRange,
    RangePopulated,
)
from meshray.store.manifest import chunk_count, digests_of
from meshray.store.pull import Puller

MIB = config.MIB
DATA = os.urandom(2 * MIB + 500)
DIGESTS = digests_of(memoryview(DATA))
FROM_H = b">h"


def manifest(node: str = "h", object_: bytes = b"x", size_bytes: int = len(DATA), digests: bytes = DIGESTS,
             have: int | None = None, holders: list[str] | None = None) -> Manifest:
    packed = None if have is None else chunk_sets.pack(have, chunk_count(size_bytes))
    return Manifest(object_, size_bytes, config.CHUNK_BYTES, digests, b"ticket-" + node.encode(), f"bulk://{node}",
                    packed, holders or [])


def ask(chunks: list[int], node: str = "h") -> AskChunks:
    return AskChunks(b"x", node, f"bulk://{node}", b"ticket-" + node.encode(), chunks)


class Bench:
    """A puller with a clock; the bulk plane is played by the test."""

    def __init__(self, capacity_bytes: int = 16 * MIB) -> None:
        self.directory = ArenaDirectory(capacity_bytes, "here")
        self.endpoints = {"h": "ipc://h", "h2": "ipc://h2"}
        self.index = ChunkIndex()
        self.server = ChunkServer(self.directory, lambda object_: self.puller.partial(object_),
                                  index=self.index, bulk=lambda: "bulk://here", entropy=bytes)
        self.flow = ChunkFlow(self.index, self.directory.find, lambda below: 0)
        self.puller = Puller(self.directory, self.endpoints.get, lambda: self.endpoints, server=self.server,
                             flow=self.flow)
        self.now_ns = 1

    def event(self, event: Any) -> list[Any]:
        effects = self.puller.handle(event, self.now_ns)
        self.puller.check()
        self.directory.check()
        return effects

    def tell(self, route: bytes, message: Any) -> list[Any]:
        return self.event(Received(route, message))

    def fetch(self, *, route: bytes = b"s", node: str = "h", size_bytes: int = len(DATA)) -> list[Any]:
        return self.tell(route, FetchObject(b"x", Location(node, 0, size_bytes), "owner"))

    def to_chunks(self, first: Manifest | None = None) -> list[Any]:
        self.fetch()
        populate, *_ = self.tell(FROM_H, first or manifest())
        assert isinstance(populate, PopulateRange)
        return self.event(RangePopulated(b"x", populate.offset))

    def chunks(self, *chunks: int, node: str = "h") -> list[Any]:
        return self.event(ChunksArrived(b"x", node, list(chunks)))

    def wait(self, time_ns: int) -> list[Any]:
        """Let time pass; return everything that was done meanwhile."""
        until_ns, effects = self.now_ns + time_ns, []
        while (deadline_ns := self.puller.deadline_ns()) is not None and deadline_ns <= until_ns:
            self.now_ns = deadline_ns
            effects += self.event(Tick())
        self.now_ns = until_ns
        return effects


def messages(effects: list[Any]) -> list[Any]:
    return [effect.message for effect in effects if isinstance(effect, Send)]


def asked(effects: list[Any]) -> list[Any]:
    return [effect for effect in effects if isinstance(effect, AskChunks)]


SILENCE_NS = config.PULL_SILENCE_NS + config.PULL_LOOK_NS
