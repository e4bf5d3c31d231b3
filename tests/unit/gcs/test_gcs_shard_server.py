"""A server and its place in a chain: what it does when configurations name it, and when they do not."""

from __future__ import annotations

from typing import Any

from meshray.gcs import limits
from meshray.gcs.log import MarkWhole, Persist, Recovered, WipeDisk
from meshray.gcs.shard_server import ShardServer
from meshray.machine import Received, Send, Stop, Tick
from meshray.messages.chain import (
    AskReadLease,
    Chain,
    Configure,
    Entry,
    Fed,
    Feed,
    JoinChain,
    Place,
    ReadLeaseGiven,
    ServerAlive,
    StreamUnknown,
    Wedge,
    Wedged,
)
from meshray.messages.gcs import Op, Write
from meshray.messages.node import Shard
from tests.sim.gcs_sim.disk import Disk

A, B = Place("a", "ipc://a", "1-1-x"), Place("b", "ipc://b", "2-2-x")


def server(recovered: Recovered, disk: Disk | None = None) -> ShardServer:
    disk = disk or Disk()
    return ShardServer("a", A.life, "ipc://a", index=0, shard=Shard(1, [("a", "ipc://a"), ("b", "ipc://b")]),
                       masters={"m": "ipc://m"}, committed=disk, recovered=recovered, vote=disk.vote, now_ns=0)


def told(one: ShardServer, epoch: int, *places: Place, join: str = "") -> list[Any]:
    return one.handle(Received(b">m", Configure(Chain(epoch, list(places)), bool(join), join)), 0)


def test_a_life_that_was_left_out_takes_no_place_without_having_joined() -> None:
    one = server(Recovered(3, 9, {}, True))
    assert MarkWhole(4) in told(one, 4, A)
    assert one.member is not None and one.member.version == 9
    told(one, 5, B)
    assert one.role == "idle"
    effects = told(one, 6, A)
    assert one.role == "idle" and not any(isinstance(effect, MarkWhole) for effect in effects)
    assert [effect for effect in effects if isinstance(effect, Stop)]


def test_a_life_that_was_left_out_joins() -> None:
    one = server(Recovered(3, 9, {}, True))
    told(one, 4, A)
    told(one, 5, B)
    assert WipeDisk() in told(one, 5, B, join=A.life)
    assert one.role == "joining"


def test_an_earlier_life_has_seen_a_newer_chain() -> None:
    one = server(Recovered(7, 9, {}, True))
    assert told(one, 6, B, join=A.life) == []
    assert one.role == "idle"
    assert WipeDisk() in told(one, 7, B, join=A.life)


def test_a_later_life_does_not_join_because_an_earlier_one_should() -> None:
    one = server(Recovered(6, 9, {}, True))
    assert WipeDisk() not in told(one, 6, B, join="0-0-x")
    assert one.role == "idle"


def messages(effects: list[Any], kind: type) -> list[Any]:
    return [effect.message for effect in effects if isinstance(effect, Send) and isinstance(effect.message, kind)]


def fed_to(one: ShardServer, attempt: str) -> list[Feed]:
    """Let ``b`` join behind ``one``; return its stream, of which all but the last is confirmed."""
    feeds = messages(one.handle(Received(b"b", JoinChain(attempt, A.life)), 0), Feed)
    while not feeds[-1].whole:
        feeds += messages(one.handle(Received(b"b", Fed(attempt, feeds[-1].number)), 0), Feed)
    return feeds


def test_a_piece_is_sent_when_the_one_before_is_confirmed_whatever_else_is_on_the_way() -> None:
    disk = Disk()
    rows = [("kv", b"%05d" % index, 1, b"x") for index in range(2 * limits.SNAPSHOT_CHUNK_ROWS)]
    disk.persist([Persist(Entry(9, 1, "", 0, rows, []), 3)])
    one = server(Recovered(3, 9, {}, True), disk)
    told(one, 4, A)
    first, = messages(one.handle(Received(b"b", JoinChain("2-2-x/1", A.life)), 0), Feed)
    wrote = one.handle(Received(b"c", Write("c", 1, 4, [Op("kv", b"new", b"y")])), 0)
    entry, = messages([effect for done in disk.persist(wrote) for effect in one.handle(done, 0)], Feed)
    assert (first.number, entry.number) == (1, 2)
    assert messages(one.handle(Received(b"b", JoinChain("2-2-x/1", A.life)), 0), Feed) == []
    assert [feed.number for feed in messages(one.handle(Received(b"b", Fed("2-2-x/1", 1)), 0), Feed)] == [3]
    assert messages(one.handle(Received(b"b", Fed("2-2-x/1", 2)), 0), Feed) == []
    last, = messages(one.handle(Received(b"b", Fed("2-2-x/1", 3)), 0), Feed)
    assert last.whole and [key for _, key, _, _ in last.entries[0].rows] == [b"new"]


def test_a_piece_has_rows_of_several_tables() -> None:
    disk = Disk()
    rows = [("kv", b"a", 1, b"x"), ("task", b"b", 2, b"y"), ("actor", b"c", 3, b"z")]
    disk.persist([Persist(Entry(1, 3, "", 0, rows, []), 3)])
    one = server(Recovered(3, 9, {}, True), disk)
    told(one, 4, A)
    pieces = [entry for feed in fed_to(one, "2-2-x/1") for entry in feed.entries]
    assert [sorted(entry.rows) for entry in pieces] == [sorted(rows)]


def test_masters_hear_at_once_that_a_joiner_has_everything() -> None:
    one = server(Recovered(3, 9, {}, True))
    told(one, 4, A)
    feeds = fed_to(one, "2-2-x/1")
    told_to = messages(one.handle(Received(b"b", Fed("2-2-x/1", feeds[-1].number)), 0), ServerAlive)
    assert [alive.joiner for alive in told_to] == [B.life]


def test_a_wedged_tail_says_when_the_joiner_has_confirmed_the_last_thing() -> None:
    one = server(Recovered(3, 9, {}, True))
    told(one, 4, A)
    feeds = fed_to(one, "2-2-x/1")
    wedged = messages(one.handle(Received(b">m", Wedge(4)), 0), Wedged)
    assert [message.joiner for message in wedged] == [""]
    again = messages(one.handle(Received(b"b", Fed("2-2-x/1", feeds[-1].number)), 0), Wedged)
    assert [message.joiner for message in again] == [B.life]


def test_an_earlier_life_does_not_end_the_stream_of_a_later_one() -> None:
    one = server(Recovered(3, 9, {}, True))
    told(one, 4, A)
    assert messages(one.handle(Received(b"b", JoinChain("2-2-x/1", A.life)), 0), Feed)
    assert not messages(one.handle(Received(b"b", JoinChain("1-1-x/5", A.life)), 0), Feed)
    assert not messages(one.handle(Received(b"b", Fed("2-2-x/1", 1)), 0), StreamUnknown)
    later_ns = 2 * limits.JOIN_RETRY_NS + 1
    assert messages(one.handle(Received(b"b", JoinChain("1-1-x/6", A.life)), later_ns), Feed), "after a long silence"
    assert messages(one.handle(Received(b"b", JoinChain("3-3-x/1", A.life)), 0), Feed)
    assert messages(one.handle(Received(b"b", Fed("2-2-x/1", 1)), 0), StreamUnknown)


def test_a_tail_says_that_a_stream_has_ended_unless_it_is_wedged() -> None:
    one = server(Recovered(3, 9, {}, True))
    told(one, 4, A)
    assert messages(one.handle(Received(b"b", Fed("2-2-x/1", 7)), 0), StreamUnknown) == [StreamUnknown("2-2-x/1", 4)]
    one.handle(Received(b">m", Wedge(4)), 0)
    assert one.handle(Received(b"b", Fed("2-2-x/1", 7)), 0) == []


def test_a_whole_joiner_begins_again_only_when_its_tail_does_not_know_it() -> None:
    one = server(Recovered(3, 9, {}, True))
    told(one, 4, B, join=A.life)
    attempt = A.life + "/1"
    one.handle(Received(b">b", Feed(attempt, 1, 4, [Entry(10, 0, "", 0, [], [])], True)), 0)
    assert one.role == "whole"
    effects = one.handle(Tick(), 10 * limits.JOIN_RETRY_NS)
    assert messages(effects, Fed) == [Fed(attempt, 1)] and WipeDisk() not in effects
    for late in (StreamUnknown(attempt, 3), StreamUnknown(A.life + "/0", 4)):
        assert one.handle(Received(b">b", late), 0) == []
    effects = one.handle(Received(b">b", StreamUnknown(attempt, 4)), 0)
    assert WipeDisk() in effects and messages(effects, JoinChain) == [JoinChain(A.life + "/2", B.life)]


def test_a_whole_joiner_keeps_its_disk_while_its_tail_may_have_it_named() -> None:
    one = server(Recovered(3, 9, {}, True))
    told(one, 4, B, join=A.life)
    one.handle(Received(b">b", Feed(A.life + "/1", 1, 4, [Entry(10, 0, "", 0, [], [])], True)), 0)
    other = Place("c", "ipc://c", "3-3-x")
    effects = told(one, 7, other, B)
    assert WipeDisk() not in effects and messages(effects, Fed) == [Fed(A.life + "/1", 1)]
    assert one.role == "whole"
    effects = told(one, 8, B, other)
    assert WipeDisk() in effects and messages(effects, JoinChain) == [JoinChain(A.life + "/2", other.life)]


def test_a_tail_feeds_only_joiners_that_ask_its_present_life() -> None:
    one = server(Recovered(3, 9, {}, True))
    told(one, 4, A)
    assert one.handle(Received(b"b", JoinChain("2-2-x/1", "0-0-x")), 0) == []
    assert messages(one.handle(Received(b"b", JoinChain("2-2-x/1", A.life)), 0), Feed)


def test_what_comes_for_a_new_chain_waits_until_the_member_has_adopted_it() -> None:
    disk = Disk()
    one = server(Recovered(3, 9, {}, True), disk)
    told(one, 4, A)
    taken = one.handle(Received(b"c", Write("c", 1, 4, [Op("kv", b"a", b"x")])), 0)
    told(one, 5, A, B)
    assert one.handle(Received(b"b", AskReadLease(5, 77)), 0) == []
    assert one.handle(Received(b"c", Write("d", 1, 5, [Op("kv", b"b", b"y")])), 0) == []
    effects = [effect for done in disk.persist(taken) for effect in one.handle(done, 0)]
    assert messages(effects, ReadLeaseGiven) == [ReadLeaseGiven(5, 77)]
    assert [effect.entry.client for effect in effects if isinstance(effect, Persist)] == ["d"]
