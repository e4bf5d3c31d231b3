"""The client: splitting, joining, resending, giving up, following configurations and watches."""

from __future__ import annotations

from typing import Any

import pytest

from meshray.config import SECOND_NS
from meshray.gcs import limits
from meshray.gcs.client import GcsClient
from meshray.gcs.requests import Answered, Outcome, Refused, RowChanged, Synced, Unanswered
from meshray.gcs.tables import shard_of
from meshray.machine import Connect, Received, Send, Tick, Undeliverable
from meshray.messages.chain import FollowShard
from meshray.messages.gcs import (
    Changed,
    CloseClient,
    Op,
    Read,
    ReadAnswered,
    Refusal,
    Row,
    Scan,
    Scanned,
    Unwatch,
    Watch,
    WatchConfirmed,
    WatchLost,
    Write,
    WriteRefused,
    Written,
    WrongEpoch,
)
from meshray.messages.node import Shard

ONE = [Shard(1, [("s0", "ipc://s0")])]
TWO = [*ONE, Shard(1, [("s1", "ipc://s1")])]


def sent(effects: list[Any], kind: type) -> list[Any]:
    return [effect.message for effect in effects if isinstance(effect, Send) and isinstance(effect.message, kind)]


def keys(count: int) -> list[bytes]:
    return [b"%d" % i for i in range(count)]


def test_one_write_is_on_the_way_and_the_rest_goes_together() -> None:
    client = GcsClient("c", ONE)
    first, effects = client.write([Op("kv", b"a")], 0)
    assert effects == [Connect("s0", "ipc://s0"), Send(b">s0", Write("c", 1, 1, [Op("kv", b"a")]))]
    second, effects = client.write([Op("kv", b"b"), Op("kv", b"c")], 0)
    third, more = client.write([Op("kv", b"d")], 0)
    assert effects == more == []
    effects = client.handle(Received(b">s0", Written(1, 10, [])), 0)
    assert effects[0] == Answered(first, [Outcome(True, 10)])
    assert sent(effects, Write) == [Write("c", 2, 1, [Op("kv", b"b"), Op("kv", b"c"), Op("kv", b"d")])]
    effects = client.handle(Received(b">s0", Written(2, 11, [Refusal(1, 4, b"x")])), 0)
    assert effects == [
        Answered(second, [Outcome(True, 11), Outcome(False, 4, b"x")]), Answered(third, [Outcome(True, 13)])]
    assert client.handle(Received(b">s0", Written(2, 11, [])), 0) == []
    client.check()
    assert client.statistics()["requests"] == 0


def test_batches_are_split_over_shards_and_joined_in_order() -> None:
    client = GcsClient("c", TWO)
    ops = [Op("kv", key) for key in keys(20)]
    number, effects = client.write(ops, 0)
    writes = {effect.to: effect.message for effect in effects if isinstance(effect, Send)}
    assert set(writes) == {b">s0", b">s1"}
    assert client.handle(Received(b">s1", Written(1, 1000, [])), 0) == []
    answer, = client.handle(Received(b">s0", Written(1, 1, [])), 0)
    assert answer.request == number and answer.error is None
    assert [outcome.version >= 1000 for outcome in answer.results] == [bool(shard_of("kv", key, 2)) for key in keys(20)]


def test_large_requests_are_cut_by_number_and_by_bytes() -> None:
    client = GcsClient("c", ONE)
    number, effects = client.write([Op("kv", key) for key in keys(limits.WRITE_OPS_MAX * 2 + 5)], 0)
    sizes = []
    for sequence in (1, 2, 3):
        sizes.append(len(sent(effects, Write)[0].ops))
        client.check()
        effects = client.handle(Received(b">s0", Written(sequence, sequence * 10_000, [])), 0)
    assert sizes == [limits.WRITE_OPS_MAX, limits.WRITE_OPS_MAX, 5]
    assert effects[0].request == number and effects[0].results[-1] == Outcome(True, 30_004)
    big = bytes(limits.WRITE_BYTES_MAX * 2 // 3)
    _, effects = client.write([Op("kv", b"a", big), Op("kv", b"b", big)], 0)
    assert len(sent(effects, Write)[0].ops) == 1


def test_silence_is_met_with_the_same_write() -> None:
    client = GcsClient("c", ONE)
    _, effects = client.write([Op("kv", b"a")], 0)
    first = sent(effects, Write)
    assert client.deadline_ns() == limits.RESEND_NS
    assert sent(client.handle(Tick(), limits.RESEND_NS), Write) == first
    client.handle(Undeliverable(b">s0", first[0]), limits.RESEND_NS)
    assert client.deadline_ns() == limits.RESEND_NS + limits.RETRY_NS
    assert sent(client.handle(Tick(), limits.RESEND_NS + limits.RETRY_NS), Write) == first


def test_a_request_is_given_up_with_a_typed_value() -> None:
    client = GcsClient("c", ONE)
    first, _ = client.write([Op("kv", b"a")], 0, timeout_ns=SECOND_NS)
    second, _ = client.write([Op("kv", b"b")], 0, timeout_ns=2 * SECOND_NS)
    read, _ = client.read([("kv", b"a")], 0, timeout_ns=SECOND_NS)
    effects = client.handle(Tick(), SECOND_NS)
    errors = {effect.request: effect.error for effect in effects if isinstance(effect, Answered)}
    assert isinstance(errors[first], Unanswered) and errors[first].uncertain and "s0" in errors[first].reason
    assert isinstance(errors[read], Unanswered) and not errors[read].uncertain
    assert sent(effects, Write) == [Write("c", 2, 1, [Op("kv", b"b")])]
    assert client.handle(Received(b">s0", Written(1, 1, [])), SECOND_NS) == []
    assert client.handle(Received(b">s0", Written(2, 2, [])), SECOND_NS) == [Answered(second, [Outcome(True, 2)])]
    client.check()


def test_bad_operations_and_overload_are_refused_at_once() -> None:
    client = GcsClient("c", ONE)
    with pytest.raises(ValueError, match="no table 'x'"):
        client.write([Op("x", b"a")], 0)
    with pytest.raises(ValueError, match="key of 511 bytes"):
        client.write([Op("kv", b"a" * 511)], 0)
    with pytest.raises(ValueError, match="no table 'x'"):
        client.watch("x", b"", 0)
    client.write([Op("kv", b"a")], 0)
    many = [Op("kv", b"a")] * limits.QUEUED_OPS_MAX
    client.write(many, 0)
    number, effects = client.write(many, 0)
    assert effects[0].request == number and isinstance(effects[0].error, Refused)
    number, effects = client.write([], 0)
    assert effects == [Answered(number, [])]


def test_a_refused_write_ends_its_requests() -> None:
    client = GcsClient("c", ONE)
    number, _ = client.write([Op("kv", b"a")], 0)
    assert client.handle(Received(b">s0", WriteRefused(1, "full")), 0) == [Answered(number, [], Refused("full"))]


def test_a_newer_chain_is_followed_and_an_older_one_is_not() -> None:
    client = GcsClient("c", ONE)
    client.write([Op("kv", b"a")], 0)
    client.read([("kv", b"a")], 0)
    newer = Shard(2, [("s0b", "ipc://s0b"), ("s0c", "ipc://s0c")])
    effects = client.handle(Received(b">s0", WrongEpoch(newer)), 0)
    assert [effect.name for effect in effects if isinstance(effect, Connect)] == ["s0b", "s0c"]
    follows = [effect.to for effect in effects if isinstance(effect, Send) and isinstance(effect.message, FollowShard)]
    assert follows == [b">s0b", b">s0c"]
    sends = [effect for effect in effects if isinstance(effect, Send) and not isinstance(effect.message, FollowShard)]
    assert [(effect.to, type(effect.message)) for effect in sends] == [(b">s0b", Write), (b">s0c", Read)]
    assert [effect.message.epoch for effect in sends] == [2, 2]
    assert client.handle(Received(b">s0", WrongEpoch(ONE[0])), 0) == []
    assert client.shards == [newer]
    assert client.handle(Received(b">stranger", WrongEpoch(Shard(9, [("x", "y")]))), 0) == []


def test_silent_members_are_asked_in_turn() -> None:
    client = GcsClient("c", [Shard(1, [("a", "x"), ("b", "y"), ("d", "z")])])
    client.write([Op("kv", b"k")], 0)
    routes = []
    for turn in range(1, 5):
        routes += [effect.to for effect in client.handle(Tick(), turn * limits.RESEND_NS)
                   if isinstance(effect, Send) and isinstance(effect.message, Write)]
    assert routes == [b">a", b">b", b">d", b">a"]


@pytest.mark.parametrize("kind", [Write, Read])
def test_after_a_silence_every_member_may_tell_of_a_newer_chain(kind: type) -> None:
    """Those that were to tell of it may all have ended, and others live under their names."""
    client = GcsClient("c", [Shard(1, [("a", "x"), ("b", "y")])])
    for _ in range(2):
        client.write([Op("kv", b"k")], 0) if kind is Write else client.read([("kv", b"k")], 0)
    effects = client.handle(Tick(), limits.RESEND_NS)
    follows = [effect.to for effect in effects if isinstance(effect, Send) and isinstance(effect.message, FollowShard)]
    assert follows == [b">a", b">b"]
    effects = client.handle(Received(b">b", WrongEpoch(Shard(3, [("b", "y")]))), limits.RESEND_NS)
    assert {effect.to for effect in effects if isinstance(effect, Send) and isinstance(effect.message, kind)} == {b">b"}



def test_reads_are_continued_and_joined() -> None:
    client = GcsClient("c", ONE)
    number, effects = client.read([("kv", key) for key in keys(3)], 0)
    cookie = sent(effects, Read)[0].cookie
    effects = client.handle(Received(b">s0", ReadAnswered(cookie, [Row(b"0", 1, b"x")])), 0)
    again, = sent(effects, Read)
    assert again.keys == [("kv", b"1"), ("kv", b"2")]
    assert client.handle(Received(b">s0", ReadAnswered(cookie, [Row(b"9")])), 0) == []
    effects = client.handle(Received(b">s0", ReadAnswered(again.cookie, [Row(b"1"), Row(b"2", 2, b"y")])), 0)
    assert effects == [Answered(number, [Row(b"0", 1, b"x"), Row(b"1"), Row(b"2", 2, b"y")])]


def test_scans_page_through_all_shards_in_key_order() -> None:
    client = GcsClient("c", TWO)
    number, effects = client.scan("kv", b"", 0, limit=4)
    first, second = sent(effects, Scan)
    effects = client.handle(Received(b">s0", Scanned(first.cookie, [Row(b"b"), Row(b"d")], True)), 0)
    further, = sent(effects, Scan)
    assert (further.after, further.limit) == (b"d", 2)
    assert client.handle(Received(b">s1", Scanned(second.cookie, [Row(b"a"), Row(b"c")])), 0) == []
    effects = client.handle(Received(b">s0", Scanned(further.cookie, [Row(b"e")])), 0)
    assert effects == [Answered(number, [Row(b"a"), Row(b"b"), Row(b"c"), Row(b"d")], None, True)]


def test_a_watch_tells_each_change_once_and_renews() -> None:
    client = GcsClient("c", ONE)
    watch, effects = client.watch("kv", b"a", 0, prefix=True)
    assert sent(effects, Watch) == [Watch(watch, 1, 1, "kv", b"a", True)]
    page = Changed(watch, 1, 1, [Row(b"a1", 5, b"x")], True)
    assert client.handle(Received(b">s0", page), 0) == [RowChanged(watch, "kv", b"a1", 5, b"x"), Synced(watch)]
    assert client.handle(Received(b">s0", page), 0) == []
    change = Changed(watch, 1, 2, [Row(b"a1", 6), Row(b"a2", 7)])
    assert client.handle(Received(b">s0", change), 0) == [RowChanged(watch, "kv", b"a1", 6, None)]
    renewal, = sent(client.handle(Tick(), limits.RESEND_NS), Watch)
    assert renewal.received == 2 and renewal.stream == 1
    assert client.handle(Received(b">s0", WatchConfirmed(watch, 1, 2)), limits.RESEND_NS) == []
    client.handle(Tick(), limits.RESEND_NS)
    assert client.deadline_ns() == limits.RESEND_NS + limits.WATCH_RENEW_NS
    assert client.unwatch(watch) == [Send(b">s0", Unwatch(watch))]
    assert client.handle(Received(b">s0", change), 0) == [Send(b">s0", Unwatch(watch))]


def test_what_is_left_of_an_earlier_stream_of_that_name_is_passed_over() -> None:
    client = GcsClient("c", ONE)
    watch, _ = client.watch("kv", b"", 0, prefix=True)
    client.handle(Received(b">s0", Changed(watch, 1, 1, [Row(b"a", 9, b"x")], True, as_of=9, begun=9)), 0)
    late = Changed(watch, 1, 2, [Row(b"a", 5, b"old")], as_of=5, begun=4)
    assert client.handle(Received(b">s0", late), 0) == []
    change = Changed(watch, 1, 2, [Row(b"a", 10, b"new")], as_of=10, begun=9)
    assert client.handle(Received(b">s0", change), 0) == [RowChanged(watch, "kv", b"a", 10, b"new")]


@pytest.mark.parametrize("news", [
    Changed(1, 1, 3, []), WatchConfirmed(1, 1, 2), WatchLost(1, 1, "why"), Changed(1, 1, 1, [], True, begun=9),
    WatchConfirmed(1, 1, 1, begun=9)], ids=["gap", "renewal shows a gap", "lost", "begun anew", "renewal of another"])
def test_a_watch_that_missed_something_begins_anew_and_tells_what_is_gone(news: Any) -> None:
    client = GcsClient("c", ONE)
    watch, _ = client.watch("kv", b"", 0, prefix=True)
    rows = [Row(b"a", 1, b"x"), Row(b"b", 2, b"y"), Row(b"c", 3, b"z")]
    client.handle(Received(b">s0", Changed(watch, 1, 1, rows, True)), 0)
    effects = client.handle(Received(b">s0", news), 0) + client.handle(Tick(), limits.RETRY_NS)
    assert sent(effects, Watch)[0] == Watch(watch, 2, 1, "kv", b"", True)
    effects = client.handle(Received(b">s0", Changed(watch, 2, 1, [Row(b"a", 1, b"x")], True, True)), 0)
    assert effects == []
    effects = client.handle(Received(b">s0", Changed(watch, 2, 2, [Row(b"c", 9, b"new")], True)), 0)
    assert effects == [RowChanged(watch, "kv", b"c", 9, b"new"), RowChanged(watch, "kv", b"b", 0, None), Synced(watch)]


def test_a_watch_goes_on_at_the_next_tail_after_what_it_was_told() -> None:
    client = GcsClient("c", [Shard(1, [("s0", "ipc://s0"), ("s1", "ipc://s1")])])
    watch, _ = client.watch("kv", b"", 0, prefix=True)
    rows = [Row(b"a", 1, b"x"), Row(b"b", 2, b"y"), Row(b"c", 3, b"z")]
    client.handle(Received(b">s1", Changed(watch, 1, 1, rows[:2], True, True, as_of=9)), 0)
    client.handle(Received(b">s1", Changed(watch, 1, 2, rows[2:], True, as_of=9)), 0)
    client.handle(Received(b">s1", Changed(watch, 1, 3, [Row(b"b", 11, b"n")], as_of=11)), 0)
    client.handle(Received(b">s1", WatchConfirmed(watch, 1, 3, 15)), 0)
    client.handle(Received(b">s1", WrongEpoch(Shard(2, [("s0", "ipc://s0")]))), 0)
    client.handle(Tick(), limits.RESEND_NS)
    effects = client.handle(Received(b">s0", WatchLost(watch, 1, "not known")), limits.RESEND_NS)
    effects += client.handle(Tick(), 3 * limits.RESEND_NS)
    assert sent(effects, Watch) == [Watch(watch, 2, 2, "kv", b"", True, since=15)]
    page = Changed(watch, 2, 1, [Row(b"a", 17), Row(b"d", 16, b"w")], True, resumed=True, as_of=20)
    assert client.handle(Received(b">s0", page), 0) == [
        RowChanged(watch, "kv", b"a", 17, None), RowChanged(watch, "kv", b"d", 16, b"w"), Synced(watch)]


def test_half_a_snapshot_is_no_place_to_go_on_from() -> None:
    client = GcsClient("c", ONE)
    watch, _ = client.watch("kv", b"", 0, prefix=True)
    client.handle(Received(b">s0", Changed(watch, 1, 1, [Row(b"a", 1, b"x")], True, True, as_of=9)), 0)
    client.handle(Received(b">s0", WatchConfirmed(watch, 1, 1, 12)), 0)
    effects = client.handle(Received(b">s0", Changed(watch, 1, 3, [], as_of=13)), 0)
    assert sent(effects, Watch) == [Watch(watch, 2, 1, "kv", b"", True)]


def test_a_prefix_watch_is_synced_when_all_shards_are() -> None:
    client = GcsClient("c", TWO)
    watch, effects = client.watch("node", b"", 0, prefix=True)
    assert len(sent(effects, Watch)) == 2
    assert client.handle(Received(b">s0", Changed(watch, 1, 1, [], True)), 0) == []
    assert client.handle(Received(b">s1", Changed(watch, 1, 1, [], True)), 0) == [Synced(watch)]


def test_goodbye_is_said_to_the_shards_that_were_written_to() -> None:
    client = GcsClient("c", TWO)
    client.write([Op("kv", b"0")], 0)
    client.handle(Received(b">s0", Written(1, 1, [])), 0)
    assert len(sent(client.close(), CloseClient)) == 1


def test_members_of_earlier_chains_are_asked_when_all_others_are_silent() -> None:
    client = GcsClient("c", [Shard(1, [("a", "ipc://a"), ("b", "ipc://b")])])
    client.write([Op("kv", b"a")], 0)
    client.handle(Received(b">a", WrongEpoch(Shard(2, [("b", "ipc://b")]))), 0)
    now_ns, effects = 0, []
    for _ in range(4):
        assert Send(b">a", FollowShard(2)) not in effects
        now_ns += limits.RESEND_NS
        effects = client.handle(Tick(), now_ns)
        if Send(b">a", FollowShard(2)) in effects:
            break
    assert effects[-2:] == [Connect("a", "ipc://a"), Send(b">a", FollowShard(2))]
    newest = Shard(5, [("c", "ipc://c")])
    effects = client.handle(Received(b">a", WrongEpoch(newest)), now_ns)
    assert client.shards == [newest]
    assert Send(b">c", Write("c", 1, 5, [Op("kv", b"a")])) in effects
    assert client.handle(Received(b">d", WrongEpoch(Shard(6, [("d", "ipc://d")]))), now_ns) == []
    assert client.shards == [newest]
