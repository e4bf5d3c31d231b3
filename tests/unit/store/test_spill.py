"""What leaves memory when room is short, and how it comes back."""

from __future__ import annotations

from typing import Any

from meshray import config
from meshray.machine import Tick
from meshray.messages.objects import (
    ExtentGranted,
    ExtentRefused,
    FetchFailed,
    Manifest,
    ObjectFetched,
    ObjectsFreed,
    ObjectsSealed,
    RangesFreed,
    RequestManifest,
    Sealed,
    SurplusWanted,
)
from meshray.messages.tasks import Location
from meshray.store.events import (
    ChunksUnreadable,
    DropChunks,
    Grant,
    RestoreObject,
    Revoke,
    SessionGone,
    SpillObject,
)
from tests.unit.store.spill_bench import MIB, A, B, Bench, C, kinds, spill_one


def test_a_full_store_spills_what_was_used_longest_ago() -> None:
    bench = Bench()
    bench.fill()
    assert kinds(bench.lease(C, 4 * MIB)) == [(C, ExtentRefused), (A, SurplusWanted)]
    assert bench.disk == [SpillObject(b"o0", bench.offset(b"o0"), 4 * MIB, 4 * MIB)]
    assert bench.directory.lookup(b"o0") is not None, "readers find it until it is on disk"
    heard = bench.spilled()
    assert heard == [(A, RangesFreed([(0, 4 * MIB)])), (A, SurplusWanted())]
    assert kinds(bench.give_back(heard)) == [(C, ExtentGranted)]
    assert bench.directory.lookup(b"o0") is None
    numbers = bench.store.statistics()
    assert (numbers["spilled"], numbers["spilled_bytes"], numbers["spills"]) == (1, 4 * MIB, 1)
    assert bench.directory.describe(9)[0]["state"] == "spilled"


def test_a_value_as_large_as_the_store_sends_everything_to_disk() -> None:
    bench = Bench()
    bench.fill()
    bench.lease(C, 16 * MIB)
    heard: list[Any] = []
    for _ in range(4):
        heard = bench.give_back(bench.spilled())
    assert kinds(heard) == [(C, ExtentGranted)]


def test_what_is_pinned_stays_and_what_was_read_gets_a_second_chance() -> None:
    bench = Bench()
    bench.fill()
    bench.directory.board.look()
    bench.lease(C, 4 * MIB, 1)
    bench.give_back(bench.spilled())
    bench.board.pins.add(bench.offset(b"o1"))
    bench.lease(C, 4 * MIB, 2)
    assert [work.object for work in bench.disk] == [b"o2"]
    bench.board.read(bench.offset(b"o3"))
    bench.board.pins.add(bench.offset(b"o2"))
    assert kinds(bench.spilled()) == [], "pinned while it was written: it stays"
    assert [work.object for work in bench.disk] == [b"o3"]


def test_an_object_that_came_back_and_was_not_changed_needs_no_second_write() -> None:
    bench = Bench()
    spill_one(bench)
    bench.fetch(b"o0")
    bench.give_back(bench.spilled())
    bench.restored()
    bench.board.read(bench.offset(b"o0"))
    for name in (b"o2", b"o3"):
        bench.board.pins.add(bench.offset(name))
    heard = bench.lease(C, 4 * MIB, 8)
    assert kinds(heard)[-1] == (C, ExtentGranted) and bench.disk == [], "its chunks are on disk already"


def test_nothing_can_go_so_producers_wait_and_are_told_the_numbers() -> None:
    bench = Bench()
    bench.fill()
    for index in range(4):
        bench.board.pins.add(bench.offset(b"o%d" % index))
    bench.lease(C, 4 * MIB, 3)
    assert bench.disk == []
    deadline_ns = bench.store.deadline_ns()
    assert deadline_ns is not None and deadline_ns <= bench.now_ns + config.SPILL_LOOK_NS
    heard = bench.pass_time(config.EXTENT_WAIT_NS)
    refused = next(message for route, message in heard if route == C)
    assert refused == ExtentRefused(3, 4 * MIB, 0, 16 * MIB, 16 * MIB, False, 16 * MIB, 0, "")
    assert bench.store.deadline_ns() is None


def test_pins_that_go_are_noticed_by_looking_again() -> None:
    bench = Bench()
    bench.fill()
    bench.board.pins = {bench.offset(b"o%d" % index) for index in range(4)}
    bench.lease(C, 4 * MIB)
    bench.board.pins.clear()
    bench.pass_time(config.SPILL_LOOK_NS)
    assert len(bench.disk) == 1


def test_two_that_hold_half_each_and_want_more_are_both_refused() -> None:
    bench = Bench()
    spill_one(bench)
    bench.board.pins = {bench.offset(b"o%d" % index) for index in (1, 2, 3)}
    assert set(kinds(bench.fetch(b"o0", A))) == {(A, SurplusWanted), (C, SurplusWanted)}
    bench.lease(B, 8 * MIB, 5)
    heard = bench.pass_time(config.EXTENT_WAIT_NS)
    failed = next(message for route, message in heard if isinstance(message, FetchFailed))
    assert failed.refused is not None and failed.refused.pinned_bytes == 12 * MIB and not failed.lost
    assert (B, ExtentRefused) in kinds(heard)
    assert bench.store.statistics()["restoring"] == 0
    bench.board.pins.clear()
    bench.fetch(b"o0", A)
    assert bench.store.statistics()["restoring"] == 1, "asked again, it is tried again"


def test_a_restore_is_joined_and_told_to_all_who_asked() -> None:
    bench = Bench()
    spill_one(bench)
    bench.fetch(b"o0", A)
    bench.fetch(b"o0", B)
    bench.give_back(bench.spilled())
    assert [type(work) for work in bench.disk] == [RestoreObject]
    assert bench.disk[0].digests == b"o0" * 40
    heard = bench.restored()
    here = bench.directory.lookup(b"o0")
    assert here is not None and heard == [(A, ObjectFetched(b"o0", here)), (B, ObjectFetched(b"o0", here))]
    assert bench.fetch(b"o0", C) == [(C, ObjectFetched(b"o0", here))]


def test_what_a_reader_was_promised_stays_until_it_came() -> None:
    bench = Bench()
    spill_one(bench)
    bench.fetch(b"o0", A)
    bench.give_back(bench.spilled())
    bench.restored()
    bench.board.pins = {bench.offset(name) for name in (b"o2", b"o3")}
    bench.lease(B, 4 * MIB, 9)
    assert bench.directory.lookup(b"o0") is not None and bench.disk == []
    bench.board.read(bench.offset(b"o0"))
    bench.pass_time(config.SPILL_LOOK_NS)
    bench.pass_time(config.SPILL_LOOK_NS)
    assert bench.directory.lookup(b"o0") is None, "it was read, so the promise was kept"


def test_a_reader_that_never_comes_loses_its_promise() -> None:
    bench = Bench()
    spill_one(bench)
    bench.fetch(b"o0", A)
    bench.give_back(bench.spilled())
    bench.restored()
    bench.board.pins = {bench.offset(name) for name in (b"o2", b"o3")}
    bench.lease(B, 4 * MIB, 9)
    bench.pass_time(config.PROMISE_NS)
    assert bench.directory.lookup(b"o0") is None


def test_a_disk_that_refuses_is_named_and_asked_again() -> None:
    bench = Bench()
    bench.fill()
    bench.lease(C, 4 * MIB, 3)
    bench.spilled("cannot spill to /disk: full")
    assert bench.disk == [] and bench.directory.lookup(b"o0") is not None
    bench.pass_time(config.SPILL_RETRY_NS)
    assert len(bench.disk) == 1, "asked again while somebody waits"
    bench.spilled("cannot spill to /disk: full")
    bench.now_ns += config.EXTENT_WAIT_NS
    heard = bench.event(Tick())
    assert next(message for route, message in heard if route == C).disk_error == "cannot spill to /disk: full"
    bench.now_ns += config.SPILL_RETRY_NS
    bench.disk.clear()
    bench.lease(C, 4 * MIB, 4)
    assert kinds(bench.give_back(bench.spilled())) == [(C, ExtentGranted)]
    assert bench.directory.disk_error == "", "space returned, and it works again"


def test_a_full_disk_gives_up_chunks_of_what_is_in_memory_too() -> None:
    bench = Bench()
    spill_one(bench)
    bench.fetch(b"o0", A)
    bench.give_back(bench.spilled())
    bench.restored()
    bench.lease(B, 8 * MIB, 9)
    assert [type(work) for work in bench.disk] == [SpillObject] * 2
    bench.spilled("full")
    assert bench.disk[1:] == [DropChunks(b"o0" * 40)]


def test_freed_while_it_is_written() -> None:
    bench = Bench()
    bench.fill()
    bench.lease(C, 4 * MIB)
    assert bench.tell(A, ObjectsFreed([b"o0"])) == [], "the disk's thread still reads that memory"
    heard = bench.spilled()
    assert bench.disk == [DropChunks(b"o0" * 40)]
    assert kinds(bench.give_back(heard)) == [(C, ExtentGranted)]
    assert bench.directory.find(b"o0") is None


def test_freed_on_disk_and_freed_on_the_way_back() -> None:
    bench = Bench()
    spill_one(bench)
    bench.tell(A, ObjectsFreed([b"o0"]))
    assert bench.disk == [DropChunks(b"o0" * 40)]
    bench.disk.clear()
    bench.lease(C, 4 * MIB, 8)
    bench.give_back(bench.spilled())
    bench.fetch(b"o1")
    bench.give_back(bench.spilled())
    bench.tell(A, ObjectsFreed(bench.directory.objects_of("ipc://owner")))
    heard = bench.restored()
    assert [(route, message.lost) for route, message in heard if isinstance(message, FetchFailed)] == [(B, True)]
    assert bench.store.statistics()["spilled_bytes"] == 0


def test_freed_while_a_restore_waits_for_room() -> None:
    bench = Bench()
    spill_one(bench)
    bench.board.pins = {bench.offset(b"o%d" % index) for index in (1, 2, 3)}
    bench.fetch(b"o0")
    bench.tell(A, ObjectsFreed([b"o0"]))
    assert bench.store.statistics()["waiting"] == 0
    heard = bench.pass_time(1)
    assert [(route, message.lost) for route, message in heard if isinstance(message, FetchFailed)] == [(B, True)]


def test_a_damaged_chunk_loses_the_object_for_who_asks() -> None:
    bench = Bench()
    spill_one(bench)
    bench.fetch(b"o0")
    bench.give_back(bench.spilled())
    heard = bench.restored("spilled chunk /x is damaged")
    assert heard[-1] == (B, FetchFailed(b"o0", "spilled chunk /x is damaged", lost=True))
    assert bench.store.statistics()["restoring"] == 0


def test_an_object_that_nobody_sealed_yet_is_waited_for() -> None:
    bench = Bench()
    ((_, granted),) = bench.lease(A, MIB)
    assert bench.fetch(b"x", B) == []
    heard = bench.tell(A, ObjectsSealed([Sealed(b"x", granted.offset, 1000)]))
    assert heard == [(B, ObjectFetched(b"x", Location("here", granted.offset, 1000)))]
    assert bench.fetch(b"y", B) == []
    bench.fetch(b"y", C)
    bench.event(SessionGone("c", C))
    heard = bench.pass_time(config.SEAL_WAIT_NS)
    assert kinds(heard) == [(B, FetchFailed)] and heard[0][1].lost


def test_copies_go_first_and_are_forgotten() -> None:
    bench = Bench()
    bench.fill(3)
    offset = bench.directory.reserve(4 * MIB)
    assert offset is not None and bench.directory.adopt(Sealed(b"copy", offset, 4 * MIB))
    bench.board.read(offset)
    heard = bench.lease(C, 4 * MIB, 4)
    assert kinds(heard)[-1] == (C, ExtentGranted)
    assert bench.directory.find(b"copy") is None and bench.disk == []


def test_a_copy_that_nobody_has_read_yet_stays_for_a_while() -> None:
    bench = Bench()
    bench.fill(3)
    offset = bench.directory.reserve(4 * MIB)
    assert offset is not None and bench.directory.adopt(Sealed(b"copy", offset, 4 * MIB))
    bench.lease(C, 4 * MIB, 4)
    assert bench.directory.find(b"copy") is not None and [work.object for work in bench.disk] == [b"o0"]


def test_a_pull_that_finds_no_room_makes_some() -> None:
    bench = Bench()
    bench.fill()
    assert bench.directory.reserve(4 * MIB) is None
    bench.event(Tick())
    assert [work.object for work in bench.disk] == [b"o0"]


def test_another_node_is_served_from_disk_and_the_chunks_stay_meanwhile() -> None:
    bench = Bench()
    spill_one(bench)
    assert kinds(bench.tell(b"peer", RequestManifest(b"o0"))) == [(b"peer", Manifest)]
    grant = bench.disk.pop()
    assert isinstance(grant, Grant) and (grant.offset, grant.digests) == (-1, b"o0" * 40)
    entry = bench.directory.find(b"o0")
    assert entry is not None and entry.held and bench.store.statistics()["restores"] == 0
    bench.tell(A, ObjectsFreed([b"o0"]))
    assert [type(work) for work in bench.disk] == [Revoke, DropChunks], "nobody may ask any more, then they go"


def test_what_cannot_be_read_from_disk_for_another_node_comes_back_first() -> None:
    bench = Bench()
    spill_one(bench)
    bench.tell(b"peer", RequestManifest(b"o0"))
    bench.event(ChunksUnreadable(b"o0"))
    bench.disk.clear()
    assert (b"peer", Manifest) not in kinds(bench.tell(b"peer", RequestManifest(b"o0")))
    bench.give_back(bench.spilled())
    assert [type(work) for work in bench.disk] == [RestoreObject]
    assert kinds(bench.restored()) == [(b"peer", Manifest)], "the question is answered when the object is back"
    assert [type(work) for work in bench.disk] == [Grant]


def test_what_a_part_of_the_node_reads_stays() -> None:
    bench = Bench()
    bench.fill()
    held = bench.directory.hold(b"o0")
    assert held is not None and bench.directory.hold(b"unknown") is None
    bench.lease(C, 4 * MIB)
    assert [work.object for work in bench.disk] == [b"o1"]
    bench.tell(A, ObjectsFreed([b"o0"]))
    assert bench.store.statistics()["used_bytes"] == 16 * MIB
    bench.directory.unhold(held)
    assert kinds(bench.event(Tick()))[:1] == [(A, RangesFreed)]


def test_a_store_that_may_not_spill_drops_only_copies() -> None:
    bench = Bench()
    bench.store.spiller._to_disk = False
    bench.fill()
    bench.lease(C, 4 * MIB)
    assert bench.disk == []


def test_who_came_first_is_served_first_while_room_is_made() -> None:
    bench = Bench()
    bench.fill()
    bench.lease(C, 8 * MIB, 1)
    assert len(bench.disk) == 2
    bench.lease(B, 4 * MIB, 2)
    assert bench.give_back(bench.spilled()) == [], "half of what the first needs is free"
    heard = bench.give_back(bench.spilled())
    assert kinds(heard)[:1] == [(C, ExtentGranted)]
