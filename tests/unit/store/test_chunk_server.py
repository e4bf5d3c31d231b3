"""The other end of a pull, and the digests it names chunks by."""

from __future__ import annotations

import os

from meshray import config
from meshray.machine import Received, Send
from meshray.messages.objects import Chunk, Manifest, ObjectsFreed, ObjectUnknown, RequestChunks, RequestManifest
from meshray.messages.tasks import Location
from meshray.store.chunk_server import ChunkServer
from meshray.store.events import DigestObject, ObjectDigested
from meshray.store.manifest import chunk_count, chunk_range, digests_of, verify

DATA = os.urandom(config.CHUNK_BYTES * 2 + 77)
DIGESTS = digests_of(memoryview(DATA))


def serving() -> tuple[ChunkServer, dict[bytes, Location]]:
    objects = {b"x": Location("here", 64, len(DATA))}
    memory = bytes(64) + DATA
    return ChunkServer(objects.get, lambda offset, size: memory[offset : offset + size]), objects


def test_digests_are_computed_once_for_all_who_ask() -> None:
    server, _ = serving()
    assert server.handle(Received(b"a", RequestManifest(b"x")), 0) == [DigestObject(b"x", 64, len(DATA))]
    assert server.handle(Received(b"b", RequestManifest(b"x")), 0) == []
    manifest = Manifest(b"x", len(DATA), config.CHUNK_BYTES, DIGESTS)
    assert server.handle(ObjectDigested(b"x", 64, DIGESTS), 0) == [Send(b"a", manifest), Send(b"b", manifest)]
    assert server.handle(Received(b"c", RequestManifest(b"x")), 0) == [Send(b"c", manifest)]
    server.check()


def test_digests_of_bytes_that_moved_are_not_used() -> None:
    server, objects = serving()
    server.handle(Received(b"a", RequestManifest(b"x")), 0)
    objects[b"x"] = Location("here", 0, len(DATA))
    assert server.handle(ObjectDigested(b"x", 64, DIGESTS), 0) == []
    assert server.handle(Received(b"a", RequestManifest(b"x")), 0) == [DigestObject(b"x", 0, len(DATA))]
    del objects[b"x"]
    assert server.handle(ObjectDigested(b"x", 0, DIGESTS), 0) == [Send(b"a", ObjectUnknown(b"x"))]


def test_chunks_come_with_their_bytes_and_nonsense_is_left_out() -> None:
    server, _ = serving()
    (effect,) = server.handle(Received(b"a", RequestChunks(b"x", [2, 99, -1])), 0)
    assert effect == Send(b"a", Chunk(b"x", 2), (DATA[config.CHUNK_BYTES * 2 :],))
    assert len(server.handle(Received(b"a", RequestChunks(b"x", [0] * 1000)), 0)) == config.PULL_CREDIT_CHUNKS
    assert server.handle(Received(b"a", RequestChunks(b"y", [0])), 0) == [Send(b"a", ObjectUnknown(b"y"))]


def test_a_freed_object_is_freed_where_it_was_copied_to() -> None:
    server, objects = serving()
    server.handle(Received(b"a", RequestChunks(b"x", [0])), 0)
    del objects[b"x"]
    assert server.handle(Received(b"owner", ObjectsFreed([b"x", b"y"])), 0) == [Send(b"a", ObjectsFreed([b"x"]))]
    assert server.handle(Received(b"owner", ObjectsFreed([b"x"])), 0) == []
    server.check()


def test_each_digest_names_one_chunk() -> None:
    for index in range(chunk_count(len(DATA))):
        start, size = chunk_range(index, len(DATA))
        chunk = bytearray(DATA[start : start + size])
        assert verify(DIGESTS, index, chunk) and not verify(DIGESTS, (index + 1) % 3, chunk)
        chunk[size // 2] ^= 1
        assert not verify(DIGESTS, index, chunk)
    assert not verify(DIGESTS, 3, b"")
