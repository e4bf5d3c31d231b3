"""One puller and the holders it talks to, message by message."""

from __future__ import annotations

import os
from typing import Any

import pytest

from meshray import config
from meshray.machine import Connect, Received, Send, Tick
from meshray.messages.objects import (
    Chunk,
    FetchFailed,
    FetchObject,
    Manifest,
    ObjectFetched,
    ObjectsFreed,
    ObjectUnknown,
    RequestChunks,
    RequestManifest,
)
from meshray.messages.tasks import Location
from meshray.store.directory import ArenaDirectory
from meshray.store.events import HolderGone, PopulateRange, RangePopulated, SessionGone, WriteRange
from meshray.store.manifest import chunk_count, chunk_range, digests_of
from meshray.store.pull import Puller

MIB = config.MIB
DATA = os.urandom(2 * MIB + 500)
MANIFEST = Manifest(b"x", len(DATA), config.CHUNK_BYTES, digests_of(memoryview(DATA)))
FROM_H = b">h"


class Bench:
    """A puller with a clock; ``memory`` takes what it writes."""

    def __init__(self, capacity_bytes: int = 16 * MIB) -> None:
        self.directory = ArenaDirectory(capacity_bytes, "here")
        self.endpoints = {"h": "ipc://h", "h2": "ipc://h2"}
        self.puller = Puller(self.directory, self.endpoints.get)
        self.memory = bytearray(capacity_bytes)
        self.now_ns = 1

    def event(self, event: Any) -> list[Any]:
        effects = self.puller.handle(event, self.now_ns)
        self.puller.check()
        self.directory.check()
        for effect in effects:
            if isinstance(effect, WriteRange):
                self.memory[effect.offset : effect.offset + len(effect.data)] = effect.data
        return effects

    def tell(self, route: bytes, message: Any, *buffers: bytes) -> list[Any]:
        return self.event(Received(route, message, buffers))

    def fetch(self, *, route: bytes = b"s", node: str = "h", size_bytes: int = len(DATA)) -> list[Any]:
        return self.tell(route, FetchObject(b"x", Location(node, 0, size_bytes), "owner"))

    def to_chunks(self) -> list[Any]:
        self.fetch()
        (populate,) = self.tell(FROM_H, MANIFEST)
        assert isinstance(populate, PopulateRange)
        return self.event(RangePopulated(b"x", populate.offset))

    def chunk(self, index: int, route: bytes = FROM_H) -> list[Any]:
        start, size = chunk_range(index, len(DATA))
        return self.tell(route, Chunk(b"x", index), DATA[start : start + size])

    def silence(self) -> list[Any]:
        deadline_ns = self.puller.deadline_ns()
        assert deadline_ns is not None
        self.now_ns = deadline_ns
        return self.event(Tick())


def messages(effects: list[Any]) -> list[Any]:
    return [effect.message for effect in effects if isinstance(effect, Send)]


def test_a_fetch_connects_asks_verifies_writes_seals_and_answers() -> None:
    bench = Bench()
    assert bench.fetch() == [Connect("h", "ipc://h"), Send(FROM_H, RequestManifest(b"x"))]
    assert messages(bench.tell(FROM_H, MANIFEST)) == []
    assert messages(bench.event(RangePopulated(b"x", 0))) == [RequestChunks(b"x", [0, 1, 2])]
    for index in (2, 0):
        assert messages(bench.chunk(index)) == []
    assert bench.chunk(1)[-1] == Send(b"s", ObjectFetched(b"x", Location("here", 0, len(DATA))))
    assert bench.memory[: len(DATA)] == DATA
    assert bench.fetch() == [Send(b"s", ObjectFetched(b"x", Location("here", 0, len(DATA))))]
    assert bench.directory.objects_of("owner") == [b"x"]


def test_fetches_of_one_object_are_joined_and_a_session_that_went_is_not_told() -> None:
    bench = Bench()
    bench.to_chunks()
    assert bench.fetch(route=b"s2") == [] and bench.fetch(route=b"s3") == []
    bench.event(SessionGone("s2", b"s2"))
    last = [effect for index in range(3) for effect in bench.chunk(index)]
    assert [effect.to for effect in last if isinstance(effect, Send)] == [b"s", b"s3"]


def test_a_bad_chunk_is_asked_for_again_and_never_written() -> None:
    bench = Bench()
    bench.to_chunks()
    effects = bench.tell(FROM_H, Chunk(b"x", 1), bytes(config.CHUNK_BYTES))
    assert effects == [Connect("h", "ipc://h"), Send(FROM_H, RequestChunks(b"x", [1]))]
    assert messages(bench.tell(FROM_H, Chunk(b"x", 0))) == [RequestChunks(b"x", [0])]


def test_a_holder_that_sends_only_garbage_is_given_up() -> None:
    bench = Bench()
    bench.to_chunks()
    for _ in range(config.PULL_BAD_CHUNKS_MAX):
        effects = bench.tell(FROM_H, Chunk(b"x", 1), b"garbage")
    assert messages(effects) == [FetchFailed(b"x", "the last holder, h, failed: 8 chunks in a row were corrupt")]
    assert bench.directory.statistics()["used_bytes"] == 0


def test_silence_is_asked_again_and_then_fails() -> None:
    bench = Bench()
    bench.to_chunks()
    bench.chunk(1)
    for _ in range(config.PULL_SILENCES_MAX - 1):
        (request,) = messages(bench.silence())
        assert isinstance(request, RequestChunks) and sorted(request.chunks) == [0, 2]
    (failed,) = messages(bench.silence())
    assert isinstance(failed, FetchFailed) and "h, failed: no answer" in failed.reason and not failed.lost
    assert bench.puller.deadline_ns() is None and bench.puller.statistics()["outstanding"] == 0


def test_an_unknown_node_becomes_known_or_the_fetch_fails() -> None:
    bench = Bench()
    assert bench.fetch(node="new") == []
    bench.endpoints["new"] = "ipc://new"
    assert messages(bench.silence()) == [RequestManifest(b"x")]
    del bench.endpoints["new"]
    while not (told := messages(bench.silence())):
        pass
    assert "its address is not known" in told[0].reason


def test_a_second_holder_takes_over() -> None:
    bench = Bench()
    bench.to_chunks()
    bench.chunk(0)
    assert bench.fetch(route=b"s2", node="h2") == []
    effects = bench.event(HolderGone("h"))
    assert effects == [Connect("h2", "ipc://h2"), Send(b">h2", RequestChunks(b"x", [1, 2]))]
    assert bench.chunk(1) == []
    told = [*bench.chunk(1, b">h2"), *bench.chunk(2, b">h2")]
    assert [type(message) for message in messages(told)] == [ObjectFetched, ObjectFetched]


def test_credit_bounds_what_is_outstanding_at_one_holder() -> None:
    bench = Bench(128 * MIB)
    size = 40 * config.CHUNK_BYTES
    digests = bytes(32 * chunk_count(size))
    asked = 0
    for name in (b"x", b"y"):
        bench.tell(b"s", FetchObject(name, Location("h", 0, size)))
        (populate,) = bench.tell(FROM_H, Manifest(name, size, config.CHUNK_BYTES, digests))
        for message in messages(bench.event(RangePopulated(name, populate.offset))):
            asked += len(message.chunks)
    assert asked == config.PULL_CREDIT_CHUNKS


def test_an_object_unknown_twice_is_lost() -> None:
    bench = Bench()
    bench.fetch()
    assert bench.tell(FROM_H, ObjectUnknown(b"x")) == []
    assert messages(bench.silence()) == [RequestManifest(b"x")]
    (failed,) = messages(bench.tell(FROM_H, ObjectUnknown(b"x")))
    assert failed.lost and "h, failed: it holds no such object" in failed.reason


@pytest.mark.parametrize("flawed", [Manifest(b"x", 5, config.CHUNK_BYTES, b""),
                                    Manifest(b"x", len(DATA), 17, MANIFEST.digests),
                                    Manifest(b"x", len(DATA), config.CHUNK_BYTES, b"short")])  # fmt: skip
def test_a_manifest_that_cannot_be_true_ends_the_holder(flawed: Manifest) -> None:
    bench = Bench()
    bench.fetch()
    (failed,) = messages(bench.tell(FROM_H, flawed))
    assert isinstance(failed, FetchFailed)


def test_an_object_freed_on_its_way_fails_and_leaves_nothing() -> None:
    bench = Bench()
    bench.to_chunks()
    (failed,) = messages(bench.tell(FROM_H, ObjectsFreed([b"x"])))
    assert failed.lost and bench.directory.statistics()["used_bytes"] == 0
    assert bench.chunk(0) == []


def test_without_room_the_fetch_waits_and_then_says_the_numbers() -> None:
    bench = Bench(4 * MIB)
    blocked = bench.directory.reserve(3 * MIB)
    bench.fetch()
    bench.tell(FROM_H, MANIFEST)
    while not (told := messages(bench.silence())):
        pass
    assert f"need {len(DATA)} bytes, free {MIB}" in told[0].reason
    assert bench.now_ns == 1 + config.EXTENT_WAIT_NS and blocked == 0
    assert "do not fit" in messages(bench.fetch(size_bytes=5 * MIB))[0].reason


def test_shared_memory_that_ran_out_fails_the_fetch() -> None:
    bench = Bench()
    bench.fetch()
    bench.tell(FROM_H, MANIFEST)
    assert messages(bench.event(RangePopulated(b"x", 0, "no memory"))) == [FetchFailed(b"x", "no memory")]
    assert bench.directory.statistics()["used_bytes"] == 0


def test_answers_nobody_asked_for_change_nothing() -> None:
    bench = Bench()
    for message in (MANIFEST, Chunk(b"x", 0), ObjectUnknown(b"x")):
        assert bench.tell(FROM_H, message) == []
    bench.to_chunks()
    assert bench.chunk(0, b">stranger") == [] and bench.tell(FROM_H, Chunk(b"x", 77), b"") == []
    assert bench.event(RangePopulated(b"x", 0)) == []
