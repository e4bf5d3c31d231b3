"""The bulk threads of two nodes, with real sockets and arenas, and those who have no ticket."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from meshray import config
from meshray.messages.objects import Chunk, ChunksRefused, RequestChunks
from meshray.node_config import Network
from meshray.store.arena_file import ArenaFile
from meshray.store.bulk import Bulk
from meshray.store.events import (
    AskChunks,
    BeginTransfer,
    ChunksArrived,
    ChunksBad,
    ChunksMissing,
    ChunksUnreadable,
    CopyChunks,
    EndTransfer,
    ForgetHolder,
    Grant,
    Revoke,
    TransferEnded,
)
from meshray.store.manifest import chunk_count, digests_of
from meshray.store.spill_files import SpillFiles
from meshray.transport.bulk_sockets import BulkSockets
from meshray.transport.codec import decode, encode
from meshray.transport.curve import AllowList, KeyPair

CHUNK = config.CHUNK_BYTES
DATA = os.urandom(3 * CHUNK + 1000)
COUNT = chunk_count(len(DATA))
DIGESTS = digests_of(memoryview(DATA))
TICKET = b"sesame"


class Side:
    """A bulk thread with its arena; ``events`` collects what it tells."""

    def __init__(self, directory: Path, kind: str, allowed: AllowList) -> None:
        directory.mkdir()
        network = None
        if kind != "ipc":
            pair = KeyPair.make(directory.name)
            pair.save(str(directory / "key"))
            allowed.allow(pair.name, pair.public)
            network = Network(key_file=str(directory / "key"), bulk_encryption=kind == "encrypted")
        self.file = ArenaFile.create(str(directory / "arena"), 16 * config.MIB)
        self.disk = SpillFiles(str(directory / "disk"))
        self.bulk = Bulk(self.file, lambda: BulkSockets(f"ipc://{directory}/bulk.sock", network, allowed), self.disk)
        self.events: list[Any] = []

    def until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not done():
            assert select.select([self.bulk.fd], [], [], max(0, deadline - time.monotonic()))[0], self.events
            self.events += self.bulk.drain()

    def chunks(self, kind: type) -> list[int]:
        return sorted(chunk for event in self.events if type(event) is kind for chunk in event.chunks)

    def close(self) -> None:
        self.bulk.close()
        self.disk.close()
        self.file.unlink()
        self.file.close()


@pytest.fixture(params=["ipc", "plain", "encrypted"])
def sides(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Side, Side]]:
    allowed = AllowList()
    pair = Side(tmp_path / "holder", request.param, allowed), Side(tmp_path / "taker", request.param, allowed)
    yield pair
    for side in pair:
        side.close()


def serve(holder: Side, offset: int = 4096) -> str:
    holder.file.write(offset, DATA)
    holder.bulk.submit(Grant(TICKET, b"x", offset, len(DATA)))
    return holder.bulk.start()


def ask(taker: Side, endpoint: str, chunks: list[int], ticket: bytes = TICKET) -> None:
    taker.bulk.submit(AskChunks(b"x", "holder", endpoint, ticket, chunks))


def test_chunks_go_from_arena_to_arena(sides: tuple[Side, Side]) -> None:
    holder, taker = sides
    endpoint = serve(holder)
    taker.bulk.submit(BeginTransfer(1, b"x", 8192, len(DATA), DIGESTS))
    ask(taker, endpoint, list(range(COUNT)))
    taker.until(lambda: len(taker.chunks(ChunksArrived)) == COUNT)
    assert taker.file.view(8192, len(DATA)) == DATA
    assert taker.bulk.statistics()["bulk_received_bytes"] == holder.bulk.statistics()["bulk_sent_bytes"] == len(DATA)
    taker.bulk.submit(EndTransfer(1, complete=True))
    taker.until(lambda: TransferEnded(1) in taker.events)
    ask(taker, endpoint, [0])
    taker.bulk.submit(BeginTransfer(2, b"y", 4 * config.MIB, len(DATA), DIGESTS))
    taker.bulk.submit(CopyChunks(2, [0, 1, 2], [8192, 8192 + CHUNK, 0]))
    taker.until(lambda: taker.chunks(ChunksMissing) == [2])
    assert taker.events[-1].holder == "" and taker.file.view(4 * config.MIB, 2 * CHUNK) == DATA[: 2 * CHUNK]


def test_a_partial_copy_serves_what_it_has(sides: tuple[Side, Side]) -> None:
    holder, taker = sides
    endpoint = serve(holder)
    taker.bulk.submit(BeginTransfer(1, b"x", 8192, len(DATA), DIGESTS))
    taker.bulk.submit(Grant(b"mine", b"x", -1, len(DATA)))
    ask(taker, endpoint, [1])
    taker.until(lambda: taker.chunks(ChunksArrived) == [1])
    holder.bulk.submit(BeginTransfer(7, b"x", 8 * config.MIB, len(DATA), DIGESTS))
    holder.bulk.submit(AskChunks(b"x", "taker", taker.bulk.start(), b"mine", [0, 1]))
    holder.until(lambda: bool(holder.chunks(ChunksArrived)) and bool(holder.chunks(ChunksMissing)))
    assert (holder.chunks(ChunksArrived), holder.chunks(ChunksMissing)) == ([1], [0])


def test_chunks_on_disk_are_served_from_there(sides: tuple[Side, Side]) -> None:
    holder, taker = sides
    assert holder.disk.write(memoryview(DATA)) == DIGESTS
    holder.bulk.submit(Grant(TICKET, b"x", -1, len(DATA), DIGESTS))
    taker.bulk.submit(BeginTransfer(1, b"x", 8192, len(DATA), DIGESTS))
    ask(taker, holder.bulk.start(), [*range(COUNT), COUNT])
    taker.until(lambda: len(taker.chunks(ChunksArrived)) == COUNT and taker.chunks(ChunksMissing) == [COUNT])
    assert taker.file.view(8192, len(DATA)) == DATA
    assert holder.bulk.statistics()["bulk_disk_bytes"] == len(DATA) and not holder.events


def test_a_damaged_file_is_refused_and_reported_once(sides: tuple[Side, Side]) -> None:
    holder, taker = sides
    holder.disk.write(memoryview(DATA))
    damaged, = Path(holder.disk.directory).rglob(DIGESTS[:32].hex())
    damaged.write_bytes(b"what a broken disk gives")
    holder.bulk.submit(Grant(TICKET, b"x", -1, len(DATA), DIGESTS))
    taker.bulk.submit(BeginTransfer(1, b"x", 8192, len(DATA), DIGESTS))
    ask(taker, holder.bulk.start(), [0, 1, 2])
    holder.until(lambda: bool(holder.events))
    taker.until(lambda: taker.chunks(ChunksMissing) == [0, 1, 2])
    ask(taker, holder.bulk.start(), [1])
    taker.until(lambda: taker.chunks(ChunksMissing) == [0, 1, 1, 2])
    assert [*holder.events, *holder.bulk.drain()] == [ChunksUnreadable(b"x")] and not taker.chunks(ChunksArrived)


def test_a_changed_byte_is_noticed_and_not_written(sides: tuple[Side, Side]) -> None:
    holder, taker = sides
    endpoint = serve(holder)
    holder.file.write(4096 + CHUNK + 5, bytes([DATA[CHUNK + 5] ^ 1]))
    taker.bulk.submit(BeginTransfer(1, b"x", 8192, len(DATA), DIGESTS))
    taker.file.populate(8192, len(DATA))
    ask(taker, endpoint, [1])
    taker.until(lambda: taker.chunks(ChunksBad) == [1])
    assert taker.file.view(8192 + CHUNK, CHUNK) == bytes(CHUNK)
    holder.file.write(4096 + CHUNK + 5, DATA[CHUNK + 5 : CHUNK + 6])
    ask(taker, endpoint, [1])
    taker.until(lambda: taker.chunks(ChunksArrived) == [1])


def test_without_a_ticket_nothing_is_served_and_not_after_it_was_revoked(sides: tuple[Side, Side]) -> None:
    holder, taker = sides
    endpoint = serve(holder)
    taker.bulk.submit(BeginTransfer(1, b"x", 8192, len(DATA), DIGESTS))
    ask(taker, endpoint, [0, 1], ticket=b"guess")
    taker.until(lambda: taker.chunks(ChunksMissing) == [0, 1])
    taker.bulk.submit(ForgetHolder("holder"))
    holder.bulk.submit(Revoke([b"x"]))
    ask(taker, endpoint, [2])
    taker.until(lambda: taker.chunks(ChunksMissing) == [0, 1, 2])
    assert not taker.chunks(ChunksArrived) and holder.bulk.statistics()["bulk_sent_bytes"] == 0


@pytest.mark.parametrize("sides", ["ipc", "plain"], indirect=True)
def test_strangers_hurt_nobody(sides: tuple[Side, Side]) -> None:
    holder, taker = sides
    endpoint = serve(holder)
    context = zmq.Context()
    stranger = context.socket(zmq.DEALER)
    stranger.linger = 0
    stranger.connect(endpoint)
    for frames in ([b""], [b"x" * 1000], [b"a", b"b", b"c"], [encode(Chunk(b"x", 0)), b"data"]):
        stranger.send_multipart(frames)
    stranger.send(encode(RequestChunks(b"x", [-1, 0, 1 << 40], b"")))
    assert stranger.poll(30_000)
    assert decode(stranger.recv()) == ChunksRefused(b"x", [-1, 0, 1 << 40])
    stranger.send(bytes(2 * config.BULK_REQUEST_BYTES_MAX))
    taker.bulk.submit(BeginTransfer(1, b"x", 8192, len(DATA), DIGESTS))
    ask(taker, endpoint, [0])
    taker.until(lambda: taker.chunks(ChunksArrived) == [0])
    stranger.close()
    context.term()


def test_orders_that_come_while_the_thread_works_are_neither_lost_nor_its_end(sides: tuple[Side, Side]) -> None:
    holder, taker = sides
    endpoint = serve(holder)
    for number in range(1, 40):
        taker.bulk.submit(BeginTransfer(number, b"x", 8192, len(DATA), DIGESTS))
        taker.bulk.submit(AskChunks(b"x", "holder", endpoint, TICKET, [3]))
        taker.bulk.submit(EndTransfer(number))
    taker.until(lambda: TransferEnded(39) in taker.events)
    taker.bulk.submit(BeginTransfer(40, b"x", 8192, len(DATA), DIGESTS))
    ask(taker, endpoint, [0])
    taker.until(lambda: 0 in taker.chunks(ChunksArrived))


def test_a_thread_that_fails_ends_the_node(sides: tuple[Side, Side]) -> None:
    _, taker = sides
    taker.bulk.start()
    taker.bulk.submit(EndTransfer(77))
    with pytest.raises(RuntimeError, match="the bulk thread failed"):
        taker.until(lambda: False)


def test_sockets_are_opened_in_the_thread_and_what_goes_wrong_there_is_the_callers_error(tmp_path: Path) -> None:
    file = ArenaFile.create(str(tmp_path / "arena"), config.MIB)
    threads = []

    def refuse() -> BulkSockets:
        threads.append(threading.current_thread().name)
        raise OSError("cannot listen")

    bulk = Bulk(file, refuse)
    for _ in range(2):
        with pytest.raises(OSError, match="cannot listen"):
            bulk.start()
    assert threads == ["meshray-bulk", "meshray-bulk"]
    bulk.close()
    file.unlink()
    file.close()
