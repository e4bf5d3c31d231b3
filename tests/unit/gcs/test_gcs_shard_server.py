"""A server and its place in a chain: what it does when configurations name it, and when they do not."""

from __future__ import annotations

from typing import Any

from meshray.gcs import limits
from meshray.gcs.log import MarkWhole, Recovered, WipeDisk
from meshray.gcs.shard_server import ShardServer
from meshray.machine import Received, Send, Stop, Tick
from meshray.messages.chain import (
    Chain,
    Configure,
    Entry,
    Fed,
    Feed,
    JoinChain,
    Place,
    ServerAlive,
    StreamUnknown,
    Wedge,
    Wedged,
)
from meshray.messages.node import Shard
from tests.sim.gcs_sim.disk import Disk

A, B = Place("a", "ipc://a", "1-1-x"), Place("b", "ipc://b", "2-2-x")


def server(recovered: Recovered) -> ShardServer:
    disk = Disk()
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


def test_masters_hear_at_once_that_a_joiner_has_everything() -> None:
    one = server(Recovered(3, 9, {}, True))
    told(one, 4, A)
    feeds = messages(one.handle(Received(b"b", JoinChain("2-2-x/1")), 0), Feed)
    while not feeds[-1].whole:
        feeds += messages(one.handle(Received(b"b", Fed("2-2-x/1", feeds[-1].number)), 0), Feed)
    told_to = messages(one.handle(Received(b"b", Fed("2-2-x/1", feeds[-1].number)), 0), ServerAlive)
    assert [alive.joiner for alive in told_to] == [B.life]


def test_a_wedged_tail_says_when_the_joiner_has_confirmed_the_last_thing() -> None:
    one = server(Recovered(3, 9, {}, True))
    told(one, 4, A)
    feeds = messages(one.handle(Received(b"b", JoinChain("2-2-x/1")), 0), Feed)
    while not feeds[-1].whole:
        feeds += messages(one.handle(Received(b"b", Fed("2-2-x/1", feeds[-1].number)), 0), Feed)
    wedged = messages(one.handle(Received(b">m", Wedge(4)), 0), Wedged)
    assert [message.joiner for message in wedged] == [""]
    again = messages(one.handle(Received(b"b", Fed("2-2-x/1", feeds[-1].number)), 0), Wedged)
    assert [message.joiner for message in again] == [B.life]


def test_an_earlier_life_does_not_end_the_stream_of_a_later_one() -> None:
    one = server(Recovered(3, 9, {}, True))
    told(one, 4, A)
    assert messages(one.handle(Received(b"b", JoinChain("2-2-x/1")), 0), Feed)
    assert not messages(one.handle(Received(b"b", JoinChain("1-1-x/5")), 0), Feed)
    assert messages(one.handle(Received(b"b", Fed("2-2-x/1", 1)), 0), Feed)
    assert messages(one.handle(Received(b"b", JoinChain("3-3-x/1")), 0), Feed)


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
    assert WipeDisk() in effects and messages(effects, JoinChain) == [JoinChain(A.life + "/2")]
