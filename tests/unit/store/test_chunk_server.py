"""What other nodes are told of this one's objects, message by message."""

from __future__ import annotations

from typing import Any, cast

from meshray import config
from meshray.machine import Received, Send, Tick
from meshray.messages.objects import ChunksHeld, Manifest, ObjectsFreed, ObjectUnknown, RequestManifest, Sealed
from meshray.messages.tasks import Location
from meshray.store import chunk_sets
from meshray.store.chunk_index import ChunkIndex
from meshray.store.chunk_server import ChunkServer
from meshray.store.directory import ArenaDirectory
from meshray.store.events import (
    ChunksUnreadable,
    DigestObject,
    Grant,
    HolderGone,
    ObjectDigested,
    ObjectSpilled,
    Revoke,
)
from meshray.store.records import Entry
from meshray.store.swarm import Pull

SIZE = config.CHUNK_BYTES + 10
DIGESTS = bytes(range(64))


class Shelf:
    """What the server asks of the directory."""

    def __init__(self) -> None:
        self.objects = {b"x": Entry(Sealed(b"x", 64, SIZE), None)}
        self.held: list[Entry] = []

    def lookup(self, object_: bytes) -> Location | None:
        entry = self.objects.get(object_)
        return None if entry is None or entry.offset < 0 else Location("here", entry.offset, SIZE)

    def find(self, object_: bytes) -> Entry | None:
        return self.objects.get(object_)

    def hold(self, object_: bytes) -> Entry:
        entry = self.objects[object_]
        entry.held += 1
        self.held.append(entry)
        return entry

    def unhold(self, entry: Entry) -> None:
        entry.held -= 1
        self.held.remove(entry)


class Bench:
    """A server over a table of objects; tickets are numbers."""

    def __init__(self) -> None:
        self.shelf = Shelf()
        self.objects = self.shelf.objects
        self.pulls: dict[bytes, Pull] = {}
        self.tickets = 0
        self.server = ChunkServer(cast(ArenaDirectory, self.shelf), self.pulls.get, index=ChunkIndex(), bulk=lambda: "bulk://here",
                                  entropy=self.ticket)

    def ticket(self, size_bytes: int) -> bytes:
        assert size_bytes == config.TICKET_BYTES
        self.tickets += 1
        return b"%d" % self.tickets

    def ask(self, route: bytes = b"a", *, brief: bool = False) -> list[Any]:
        return self.server.handle(Received(route, RequestManifest(b"x", brief)), 1)

    def digested(self, offset: int = 64) -> list[Any]:
        return self.server.handle(ObjectDigested(b"x", offset, DIGESTS), 1)


def answer(route: bytes, ticket: bytes, *others: str, digests: bytes = DIGESTS) -> list[Any]:
    manifest = Manifest(b"x", SIZE, config.CHUNK_BYTES, digests, ticket, "bulk://here", None, list(others))
    return [Grant(ticket, b"x", 64, SIZE), Send(route, manifest)]


def test_digests_are_computed_once_and_only_when_somebody_asks() -> None:
    bench = Bench()
    assert bench.ask() == [DigestObject(b"x", 64, SIZE)]
    assert bench.ask() == [Send(b"a", ChunksHeld(b"x", []))], "who asks again hears that somebody is at it"
    assert bench.ask(b"b", brief=True) == [Send(b"b", ChunksHeld(b"x", []))]
    assert bench.digested() == [*answer(b"a", b"1"), *answer(b"b", b"2", "a", digests=b"")]
    assert bench.ask(b"c") == answer(b"c", b"3", "a", "b")
    assert bench.ask() == answer(b"a", b"1", "b", "c"), "who asks again has the same ticket"


def test_an_object_that_is_not_here_is_unknown() -> None:
    bench = Bench()
    bench.objects.clear()
    assert bench.ask() == [Send(b"a", ObjectUnknown(b"x"))]


def test_an_object_on_its_way_is_served_as_far_as_it_has_come() -> None:
    bench = Bench()
    bench.objects.clear()
    pull = bench.pulls[b"x"] = Pull("here", b"x", "owner", SIZE, 2)
    pull.digests, pull.done = DIGESTS, chunk_sets.of([1])
    grant, told = bench.ask()
    assert grant == Grant(b"1", b"x", -1, SIZE) and told.message.have == b"\x02" and told.message.digests == DIGESTS
    pull.announce = [1]
    assert bench.server.announce(pull, 1) == [Send(b"a", ChunksHeld(b"x", [1]))]
    assert bench.server.announce(pull, 2) == []
    assert bench.server.forget(b"x") == [Revoke([b"x"])] and bench.server.forget(b"x") == []


def test_an_object_that_was_freed_or_sealed_anew_while_it_was_hashed() -> None:
    bench = Bench()
    bench.ask()
    assert bench.digested(offset=128) == []
    assert bench.ask() == [DigestObject(b"x", 64, SIZE)]
    bench.objects.clear()
    assert bench.digested() == [Send(b"a", ObjectUnknown(b"x"))]
    bench.server.check()


def test_who_asked_is_told_when_the_object_is_freed_and_its_tickets_are_worth_nothing() -> None:
    bench = Bench()
    bench.ask()
    bench.digested()
    del bench.objects[b"x"]
    freed = bench.server.handle(Received(b"owner", ObjectsFreed([b"x", b"other"])), 1)
    assert freed == [Revoke([b"x"]), Send(b"a", ObjectsFreed([b"x"]))]
    assert bench.server.handle(Received(b"owner", ObjectsFreed([b"x"])), 1) == []
    assert set(bench.server.statistics().values()) == {0}
    bench.server.check()


def test_a_node_that_is_gone_loses_its_tickets() -> None:
    bench = Bench()
    bench.ask()
    bench.digested()
    assert bench.server.handle(HolderGone("a"), 1) == [Revoke(tickets=[b"1"])]
    assert bench.server.handle(HolderGone("a"), 1) == [] and bench.ask() == answer(b"a", b"2")


def test_askers_are_bounded_and_the_oldest_goes_first() -> None:
    bench = Bench()
    bench.ask()
    bench.digested()
    for index in range(config.SERVE_ASKERS_MAX - 1):
        bench.ask(b"node-%d" % index)
    effects = bench.ask(b"last")
    assert effects[0] == Revoke(tickets=[b"1"]) and len(effects[2].message.holders) == config.PULL_PEERS_MAX
    assert bench.server.statistics()["askers"] == config.SERVE_ASKERS_MAX


def test_an_object_stays_in_memory_while_somebody_asks_and_its_tickets_end_with_that() -> None:
    bench = Bench()
    bench.ask()
    bench.digested()
    assert len(bench.shelf.held) == 1 and bench.server.deadline_ns() == 1 + config.SERVE_HOLD_NS
    bench.server.handle(Received(b"a", RequestManifest(b"x", brief=True)), config.SERVE_HOLD_NS)
    assert bench.server.handle(Tick(), 1 + config.SERVE_HOLD_NS) == [] and len(bench.shelf.held) == 1
    assert bench.server.handle(Tick(), 1 + 2 * config.SERVE_HOLD_NS) == [Revoke([b"x"])] and not bench.shelf.held
    assert bench.server.deadline_ns() is None and bench.ask() == answer(b"a", b"1") and len(bench.shelf.held) == 1


def test_what_left_the_node_is_forgotten_and_what_went_to_disk_can_be_found() -> None:
    bench = Bench()
    bench.ask()
    bench.digested()
    del bench.objects[b"x"]
    bench.server.handle(Tick(), 1 + 2 * config.SERVE_HOLD_NS)
    assert bench.server.statistics()["indexed_chunks"] == bench.server.statistics()["manifests"] == 0
    bench.server.handle(ObjectSpilled(b"y", DIGESTS), 1)
    assert bench.server.statistics()["indexed_chunks"] == 2


def test_what_is_on_disk_is_served_from_there_and_stays_while_somebody_asks() -> None:
    bench = Bench()
    entry = bench.objects[b"x"]
    entry.offset, entry.digests = -1, DIGESTS
    grant, told = bench.ask()
    assert grant == Grant(b"1", b"x", -1, SIZE, DIGESTS)
    assert told == answer(b"a", b"1")[1] and bench.shelf.held == [entry]
    bench.server.check()
    assert bench.server.let_go(1, sooner_ns=config.SERVE_HOLD_NS) == [], "it takes no memory that somebody waits for"
    entry.offset = 128
    assert bench.ask()[0] == Grant(b"1", b"x", 128, SIZE), "it is back, and needs not be hashed"
    assert bench.server.let_go(1, sooner_ns=config.SERVE_HOLD_NS) == [Revoke([b"x"])] and not bench.shelf.held


def test_what_cannot_be_read_from_disk_is_served_when_it_is_back() -> None:
    bench = Bench()
    entry = bench.objects[b"x"]
    bench.server.handle(ChunksUnreadable(b"gone"), 1)
    bench.server.handle(ChunksUnreadable(b"x"), 1)
    assert bench.server.serves_from_disk(b"x"), "it was back before the news came"
    entry.offset, entry.digests = -1, DIGESTS
    bench.server.handle(ChunksUnreadable(b"x"), 1)
    assert not bench.server.serves_from_disk(b"x")
    entry.offset = 64
    assert bench.ask() == answer(b"a", b"1") and bench.server.serves_from_disk(b"x")
