"""One puller and the holders it talks to, message by message."""

from __future__ import annotations

import os

import pytest

from meshray import config
from meshray.machine import Connect, Received, Send
from meshray.messages.objects import (
    ChunksHeld,
    FetchFailed,
    FetchObject,
    Manifest,
    ObjectFetched,
    ObjectsFreed,
    ObjectUnknown,
    RequestManifest,
)
from meshray.messages.tasks import Location
from meshray.store.events import (
    AskChunks,
    BeginTransfer,
    ChunksArrived,
    ChunksBad,
    ChunksMissing,
    CopyChunks,
    EndTransfer,
    ForgetHolder,
    HolderGone,
    RangePopulated,
    SessionGone,
    TransferEnded,
)
from meshray.store.manifest import chunk_count
from tests.unit.store.pull_bench import DATA, DIGESTS, FROM_H, MIB, Bench, ask, asked, manifest, messages


def test_a_fetch_connects_asks_seals_and_answers() -> None:
    bench = Bench()
    assert bench.fetch() == [Connect("h", "ipc://h"), Send(FROM_H, RequestManifest(b"x"))]
    assert messages(bench.tell(FROM_H, manifest())) == []
    begin, request = bench.event(RangePopulated(b"x", 0))
    assert begin == BeginTransfer(1, b"x", 0, len(DATA), DIGESTS) and request == ask([0, 1, 2])
    assert bench.chunks(2, 0) == []
    here = Location("here", 0, len(DATA))
    assert bench.chunks(1) == [EndTransfer(1, complete=True), Send(b"s", ObjectFetched(b"x", here))]
    assert bench.fetch() == [Send(b"s", ObjectFetched(b"x", here))]
    assert bench.directory.objects_of("owner") == [b"x"] and bench.index.digests_of(b"x") == DIGESTS
    bench.event(TransferEnded(1))
    assert bench.directory.lookup(b"x") == here and bench.puller.deadline_ns() is None


def test_fetches_of_one_object_are_joined_and_a_session_that_went_is_not_told() -> None:
    bench = Bench()
    bench.to_chunks()
    assert bench.fetch(route=b"s2") == [] and bench.fetch(route=b"s3") == []
    bench.event(SessionGone("s2", b"s2"))
    assert [effect.to for effect in bench.chunks(0, 1, 2) if isinstance(effect, Send)] == [b"s", b"s3"]


def test_a_bad_chunk_is_asked_for_again_and_a_holder_that_sends_only_such_is_given_up() -> None:
    bench = Bench()
    bench.endpoints.pop("h2")
    bench.to_chunks()
    assert asked(bench.event(ChunksBad(b"x", "h", [0, 1, 2]))) == [ask([0])], "one at a time, until it does better"
    for _ in range(config.PULL_BAD_CHUNKS_MAX - 4):
        assert asked(bench.event(ChunksBad(b"x", "h", [0]))) == [ask([0])]
    (failed,) = messages(bench.event(ChunksBad(b"x", "h", [0])))
    assert failed.reason == "the last holder, h, failed: 8 chunks in a row were corrupt"


def test_a_liar_among_several_is_asked_for_nothing_more() -> None:
    bench = Bench()
    bench.to_chunks(manifest(holders=["h2"]))
    bench.tell(b">h2", manifest("h2", digests=b""))
    assert asked(bench.event(ChunksBad(b"x", "h", [0, 1, 2]))) == [ask([0, 1, 2], "h2")]
    assert messages(bench.chunks(0, 1, 2, node="h2")) == [ObjectFetched(b"x", Location("here", 0, len(DATA)))]


def test_another_node_takes_over_when_the_last_holder_goes() -> None:
    bench = Bench()
    bench.to_chunks()
    bench.chunks(0)
    effects = bench.event(HolderGone("h"))
    assert effects == [ForgetHolder("h"), Connect("h2", "ipc://h2"), Send(b">h2", RequestManifest(b"x", brief=True))]
    assert asked(bench.tell(b">h2", manifest("h2", digests=b""))) == [ask([1, 2], "h2")]
    (fetched,) = messages(bench.chunks(1, 2, node="h2"))
    assert isinstance(fetched, ObjectFetched)


def test_a_pull_without_holders_is_kept_and_goes_on_when_it_is_fetched_again() -> None:
    bench = Bench()
    bench.to_chunks()
    bench.chunks(0)
    bench.event(HolderGone("h"))
    (failed,) = messages(bench.tell(b">h2", ObjectUnknown(b"x")))
    assert failed == FetchFailed(b"x", "the last holder, h, failed: given up as dead", lost=True)
    assert messages(bench.fetch(node="h2")) == [RequestManifest(b"x", brief=True)]
    assert asked(bench.tell(b">h2", manifest("h2", digests=b""))) == [ask([1, 2], "h2")]
    (fetched,) = messages(bench.chunks(1, 2, node="h2"))
    assert isinstance(fetched, ObjectFetched)


def test_what_was_kept_goes_after_a_while_but_only_when_nobody_writes_there() -> None:
    bench = Bench()
    bench.to_chunks()
    bench.chunks(0)
    bench.event(HolderGone("h"))
    bench.tell(b">h2", ObjectUnknown(b"x"))
    effects = bench.wait(config.PULL_KEEP_NS + config.SECOND_NS)
    assert effects == [EndTransfer(1)] and bench.directory.statistics()["used_bytes"] > 0
    bench.event(TransferEnded(1))
    assert bench.directory.statistics()["used_bytes"] == 0


def test_a_peer_that_pulls_too_is_met_and_gives_what_it_has() -> None:
    bench = Bench()
    bench.to_chunks()
    assert messages(bench.tell(b"h2", RequestManifest(b"x"))) == [RequestManifest(b"x", brief=True)]
    assert bench.tell(b">h2", manifest("h2", digests=b"", have=0)) == []
    bench.event(ChunksMissing(b"x", "h", [0, 1, 2]))
    assert asked(bench.tell(b">h2", ChunksHeld(b"x", [1, 99]))) == [ask([1], "h2")]


def test_peers_are_told_of_chunks_that_came() -> None:
    bench = Bench()
    bench.to_chunks()
    bench.server.handle(Received(b"h2", RequestManifest(b"x", brief=True)), 1)
    assert messages(bench.chunks(2)) == [ChunksHeld(b"x", [2])]
    assert ChunksHeld(b"x", [0, 1]) in messages(bench.chunks(0, 1))


def test_of_a_large_object_peers_hear_at_most_so_often() -> None:
    bench = Bench(256 * MIB)
    count = 2 * config.PULL_NEWS_PART
    bench.fetch(size_bytes=count * MIB)
    (populate,) = bench.tell(FROM_H, manifest(size_bytes=count * MIB, digests=os.urandom(32 * count)))
    bench.event(RangePopulated(b"x", populate.offset))
    bench.server.handle(Received(b"h2", RequestManifest(b"x", brief=True)), 1)
    told = [messages(bench.chunks(chunk)) for chunk in range(5)]
    assert told == [[], [ChunksHeld(b"x", [0, 1])], [], [ChunksHeld(b"x", [2, 3])], []]
    assert messages(bench.wait(config.PULL_NEWS_NS + config.PULL_LOOK_NS)) == [ChunksHeld(b"x", [4])]


def test_chunks_that_lie_here_under_another_name_are_copied() -> None:
    bench = Bench()
    bench.to_chunks()
    bench.chunks(0, 1, 2)
    bench.tell(b"s", FetchObject(b"y", Location("h", 0, 3 * MIB)))
    digests = bytes(32) + DIGESTS[32:64] + DIGESTS[:32]
    (populate,) = bench.tell(FROM_H, manifest(object_=b"y", size_bytes=3 * MIB, digests=digests))
    _, copy, request = bench.event(RangePopulated(b"y", populate.offset))
    assert copy == CopyChunks(2, [1, 2], [MIB, 0]) and request.chunks == [0]
    bench.event(ChunksArrived(b"y", "", [2]))
    assert asked(bench.event(ChunksMissing(b"y", "", [1])))[0].chunks == [1]


def test_a_late_chunk_is_asked_of_a_second_holder_that_has_nothing_better_to_do() -> None:
    bench = Bench()
    bench.to_chunks(manifest(holders=["h2"]))
    bench.tell(b">h2", manifest("h2", digests=b""))
    assert [request.holder for request in asked(bench.wait(2 * config.PULL_LATE_NS))] == ["h2"] * 3
    assert bench.wait(config.PULL_LATE_NS) == [], "at most two are asked for the same chunk"
    assert messages(bench.chunks(0, 1, 2, node="h2")) and bench.puller.statistics()["rescued_chunks"] == 3


def test_who_sent_a_bad_chunk_is_not_asked_for_what_is_late_elsewhere() -> None:
    bench = Bench()
    bench.to_chunks(manifest(holders=["h2"]))
    bench.tell(b">h2", manifest("h2", digests=b""))
    assert len(asked(bench.wait(config.PULL_LATE_NS + config.PULL_LOOK_NS))) == 3
    bench.event(ChunksBad(b"x", "h2", [0, 1, 2]))
    assert bench.wait(config.PULL_LATE_NS + config.PULL_LOOK_NS) == []


def test_the_window_bounds_what_is_outstanding_at_one_holder() -> None:
    bench = Bench(128 * MIB)
    size = 40 * config.CHUNK_BYTES
    requests: list[AskChunks] = []
    for index, name in enumerate((b"x", b"y")):
        bench.tell(b"s", FetchObject(name, Location("h", 0, size)))
        digests = os.urandom(32 * chunk_count(size))
        (populate,) = bench.tell(FROM_H, manifest(object_=name, size_bytes=size, digests=digests))
        requests += asked(bench.event(RangePopulated(name, populate.offset)))
        assert len(requests) == 1, index
    assert requests[0].chunks == list(range(config.PULL_WINDOW_START))
    for _ in range(40):
        (request,) = asked(bench.chunks(requests[0].chunks.pop(0)))
        requests[0].chunks.extend(request.chunks if request.object == b"x" else [])
        assert bench.puller.statistics()["outstanding"] <= config.PULL_CREDIT_CHUNKS
        if request.object == b"y":
            break
    else:
        pytest.fail("the second pull never had its turn")


@pytest.mark.parametrize("flawed", [manifest(size_bytes=5), manifest(digests=b"short"),
                                    Manifest(b"x", len(DATA), 17, DIGESTS)])  # fmt: skip
def test_a_manifest_that_cannot_be_true_ends_the_holder(flawed: Manifest) -> None:
    bench = Bench()
    bench.endpoints.pop("h2")
    bench.fetch()
    (failed,) = messages(bench.tell(FROM_H, flawed))
    assert isinstance(failed, FetchFailed)


def test_a_holder_of_another_content_is_given_up() -> None:
    bench = Bench()
    bench.to_chunks(manifest(holders=["h2"]))
    bench.tell(b">h2", manifest("h2", digests=DIGESTS[::-1]))
    assert list(bench.puller._pulls[b"x"].holders) == ["h"]


def test_an_object_freed_on_its_way_fails_and_leaves_nothing() -> None:
    bench = Bench()
    bench.to_chunks()
    end, failed = bench.tell(FROM_H, ObjectsFreed([b"x"]))[::-1]
    assert end == EndTransfer(1) and failed.message.lost
    bench.event(TransferEnded(1))
    assert bench.directory.statistics()["used_bytes"] == 0 and bench.chunks(0) == []


def test_without_room_the_fetch_waits_and_then_says_the_numbers() -> None:
    bench = Bench(4 * MIB)
    blocked = bench.directory.reserve(3 * MIB)
    bench.fetch()
    bench.tell(FROM_H, manifest())
    assert messages(bench.wait(config.EXTENT_WAIT_NS - config.SECOND_NS)) == []
    (told,) = messages(bench.wait(2 * config.SECOND_NS))
    assert f"need {len(DATA)} bytes, free {MIB}" in told.reason and blocked == 0
    assert "do not fit" in messages(bench.fetch(size_bytes=5 * MIB))[0].reason


def test_shared_memory_that_ran_out_fails_the_fetch() -> None:
    bench = Bench()
    bench.fetch()
    bench.tell(FROM_H, manifest())
    assert messages(bench.event(RangePopulated(b"x", 0, "no memory"))) == [FetchFailed(b"x", "no memory")]
    assert bench.directory.statistics()["used_bytes"] == 0


def test_answers_nobody_asked_for_change_nothing() -> None:
    bench = Bench()
    for message in (manifest(), ObjectUnknown(b"x"), ChunksHeld(b"x", [0])):
        assert bench.tell(FROM_H, message) == []
    for kind in (ChunksArrived, ChunksBad, ChunksMissing):
        assert bench.event(kind(b"x", "h", [0])) == []
    bench.to_chunks()
    assert bench.event(ChunksMissing(b"x", "stranger", [0])) == []
    assert bench.event(RangePopulated(b"x", 0)) == []


def test_bandwidth_is_measured_while_chunks_are_awaited() -> None:
    bench = Bench()
    bench.to_chunks()
    assert chunk_count(len(DATA)) == 3
    bench.now_ns += 10 * config.MILLISECOND_NS
    bench.chunks(0)
    first = bench.flow.take_moved()
    bench.now_ns += 5 * config.MILLISECOND_NS
    bench.chunks(1, 2)
    assert first == (MIB, 10 * config.MILLISECOND_NS)
    assert bench.flow.take_moved() == (len(DATA) - MIB, 5 * config.MILLISECOND_NS), "time is not counted twice"
    assert bench.flow.take_moved() is None


def test_what_was_copied_here_says_nothing_about_bandwidth() -> None:
    bench = Bench()
    bench.to_chunks()
    bench.chunks(0, 1, 2, node="")
    assert bench.flow.take_moved() is None
