"""How long a puller waits for holders that are silent, slow, gone, or refuse."""

from __future__ import annotations

import os

from meshray import config
from meshray.messages.objects import (
    ChunksHeld,
    FetchFailed,
    FetchObject,
    ObjectFetched,
    ObjectUnknown,
    RequestManifest,
)
from meshray.messages.tasks import Location
from meshray.store.events import (
    ChunksMissing,
    HolderGone,
    PopulateRange,
    RangePopulated,
)
from meshray.store.manifest import chunk_count
from tests.unit.store.pull_bench import FROM_H, MIB, SILENCE_NS, Bench, ask, asked, manifest, messages


def test_silence_is_asked_again_more_carefully() -> None:
    bench = Bench()
    bench.to_chunks()
    bench.chunks(1)
    for _ in range(config.PULL_SILENCES_MAX - 1):
        assert asked(bench.wait(SILENCE_NS)) == [ask([0])]
    assert messages(bench.wait(SILENCE_NS))[-1:] == [RequestManifest(b"x", brief=True)], "others may have it too"
    assert isinstance(messages(bench.chunks(0, 2))[-1], ObjectFetched)


def test_a_slow_holder_is_waited_for_while_its_node_lives() -> None:
    bench = Bench()
    bench.to_chunks()
    for _ in range(3):
        effects = bench.wait(config.PULL_USELESS_NS - 2 * SILENCE_NS)
        assert not any(isinstance(message, FetchFailed) for message in messages(effects))
        bench.tell(b">h2", ObjectUnknown(b"x"))
        (last,) = asked(effects)[-1:]
        bench.chunks(*last.chunks)
    assert bench.directory.lookup(b"x") is not None


def test_a_holder_that_cannot_be_reached_ends_the_pull_although_its_node_lives() -> None:
    bench = Bench()
    bench.endpoints.pop("h2")
    bench.to_chunks()
    bench.chunks(1)
    (failed,) = (message for message in messages(bench.wait(config.PULL_USELESS_NS + 3 * SILENCE_NS))
                 if isinstance(message, FetchFailed))
    assert failed.reason == "the last holder, h, failed: no answer for 60 s, although its node lives"
    assert not failed.lost and bench.puller.statistics()["outstanding"] == 0


def test_a_silent_holder_whose_node_is_given_up_as_dead_is_not_waited_for() -> None:
    bench = Bench()
    bench.endpoints.pop("h2")
    bench.fetch()
    bench.wait(2 * SILENCE_NS)
    (failed,) = messages(bench.event(HolderGone("h")))
    assert failed.lost and failed.reason == "the last holder, h, failed: given up as dead"


def test_a_manifest_that_takes_long_is_waited_for() -> None:
    bench = Bench()
    bench.endpoints.pop("h2")
    bench.fetch()
    for _ in range(2 * config.PULL_USELESS_NS // config.PULL_SILENCE_NS):
        assert set(messages(bench.wait(SILENCE_NS))) <= {RequestManifest(b"x")}
        bench.tell(FROM_H, ChunksHeld(b"x", []))
    assert any(isinstance(effect, PopulateRange) for effect in bench.tell(FROM_H, manifest()))


def test_a_pull_that_waits_for_its_turn_at_a_holder_is_not_stuck() -> None:
    bench = Bench(128 * MIB)
    size = 40 * config.CHUNK_BYTES
    for name in (b"x", b"y"):
        bench.tell(b"s", FetchObject(name, Location("h", 0, size)))
        digests = os.urandom(32 * chunk_count(size))
        (populate,) = bench.tell(FROM_H, manifest(object_=name, size_bytes=size, digests=digests))
        bench.event(RangePopulated(name, populate.offset))
    for chunk in range(30):  # one a second: the second pull has nothing outstanding for half a minute
        assert not any(isinstance(message, FetchFailed) for message in messages(bench.wait(config.SECOND_NS)))
        bench.chunks(chunk)
    assert bench.puller.statistics()["pulls"] == 2


def test_an_unknown_node_becomes_known_or_the_fetch_fails() -> None:
    bench = Bench()
    assert bench.fetch(node="new") == []
    bench.endpoints["new"] = "ipc://new"
    assert messages(bench.wait(SILENCE_NS)) == [RequestManifest(b"x")]
    bench.endpoints.clear()
    (told,) = messages(bench.wait(10 * SILENCE_NS))
    assert "new, failed: its address is not known" in told.reason


def test_an_object_unknown_twice_is_lost() -> None:
    bench = Bench()
    bench.endpoints.pop("h2")
    bench.fetch()
    assert bench.tell(FROM_H, ObjectUnknown(b"x")) == []
    assert messages(bench.wait(SILENCE_NS)) == [RequestManifest(b"x")]
    (failed,) = messages(bench.tell(FROM_H, ObjectUnknown(b"x")))
    assert failed.lost and "h, failed: it holds no such object" in failed.reason


def test_a_holder_that_refuses_is_asked_for_its_manifest_and_given_up_after_a_long_while() -> None:
    bench = Bench()
    bench.endpoints.pop("h2")
    bench.to_chunks()
    for _ in range(config.PULL_UNKNOWNS_MAX):
        assert messages(bench.event(ChunksMissing(b"x", "h", [0, 1, 2]))) == [RequestManifest(b"x", brief=True)]
        assert asked(bench.tell(FROM_H, manifest(digests=b""))) == [ask([0, 1, 2])]
    began_ns = bench.now_ns
    while not (told := messages(bench.event(ChunksMissing(b"x", "h", [0, 1, 2])))):
        told = messages(bench.wait(SILENCE_NS))
        if told != [RequestManifest(b"x", brief=True)]:  # no more than one question a second
            break
        bench.tell(FROM_H, manifest(digests=b""))
    assert told[0].lost and "h, failed: it serves no such object" in told[0].reason
    assert config.PULL_USELESS_NS - 2 * SILENCE_NS < bench.now_ns - began_ns < config.PULL_USELESS_NS + 2 * SILENCE_NS


def test_one_ticket_that_ended_refuses_many_chunks_and_counts_once() -> None:
    bench = Bench()
    bench.endpoints.pop("h2")
    bench.to_chunks()
    assert messages(bench.event(ChunksMissing(b"x", "h", [0]))) == [RequestManifest(b"x", brief=True)]
    for chunk in (1, 2):
        assert messages(bench.event(ChunksMissing(b"x", "h", [chunk]))) == []
    assert asked(bench.tell(FROM_H, manifest(digests=b""))) == [ask([0, 1, 2])]
    assert isinstance(messages(bench.chunks(0, 1, 2))[0], ObjectFetched)
