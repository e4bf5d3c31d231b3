"""The member of a chain, message by message."""

from __future__ import annotations

from typing import Any

import pytest

from meshray.gcs import limits
from meshray.gcs.chain import ChainMember, WrongChain
from meshray.gcs.log import Entry, Persist, Persisted, Recovered, SweepReaders, Vote
from meshray.gcs.shard_server import ShardServer
from meshray.machine import Received, Send, Stop, Tick, Undeliverable
from meshray.messages.chain import AskReadLease, Extend, Extended
from meshray.messages.gcs import (
    COMPARE_AND_SET,
    DELETE,
    PUT_IF_ABSENT,
    Changed,
    CloseClient,
    DescribeShard,
    Op,
    Read,
    ReadAnswered,
    Refusal,
    Row,
    Scan,
    Scanned,
    ShardDescribed,
    Unwatch,
    Watch,
    WatchConfirmed,
    WatchLost,
    Write,
    WriteRefused,
    Written,
    WrongEpoch,
)
from meshray.messages.node import Leave, Ping, Pong, Shard
from tests.sim.gcs_sim.disk import Disk

MEMBER = "shard-0-0"
SHARD = Shard(1, [(MEMBER, "ipc://shard-0-0")])


class Bench:
    """A member on a disk in memory, turn by turn."""

    def __init__(self) -> None:
        self.disk = Disk()
        self.now_ns = 0
        self.member = self.start()

    def start(self) -> ShardServer:
        self.member = ShardServer(MEMBER, "1-x", "ipc://x", index=0, shard=SHARD, masters={}, committed=self.disk,
                                  recovered=self.disk.recovered, vote=Vote(), now_ns=self.now_ns)
        return self.member

    def turn(self, *events: Any) -> list[tuple[bytes, Any]]:
        """Handle messages (from ``c``) or events in one turn; return (to, message) of what is sent."""
        effects = [
            effect for event in events for effect in self.member.handle(
                event if isinstance(event, Received | Tick | Undeliverable) else Received(b"c", event), self.now_ns)
        ]
        rest = self.disk.persist(effects)
        while rest:
            sent = [effect for effect in rest if isinstance(effect, Send)]
            more = [effect for event in rest if not isinstance(event, Send | Stop | SweepReaders)
                    for effect in self.member.handle(event, self.now_ns)]
            rest = [*sent, *more] if more else []
            if not more:
                self.member.check()
                return [(effect.to, effect.message) for effect in sent]
        return []

    def ask(self, *messages: Any) -> list[Any]:
        return [message for _, message in self.turn(*messages)]


def write(sequence: int, *ops: Op, client: str = "c") -> Write:
    return Write(client, sequence, 1, list(ops))


def test_answers_follow_persist() -> None:
    bench = Bench()
    effects = bench.member.handle(Received(b"c", write(1, Op("kv", b"k", b"v"))), 0)
    assert [type(effect) for effect in effects] == [Persist]
    assert bench.ask(Read(1, 1, [("kv", b"k")])) == [ReadAnswered(1, [Row(b"k")])]


def test_conditions_see_committed_rows_and_those_of_the_turn() -> None:
    bench = Bench()
    answers = bench.ask(
        write(1, Op("kv", b"k", b"1", PUT_IF_ABSENT), Op("kv", b"k", b"2", PUT_IF_ABSENT)),
        write(1, Op("kv", b"k", b"3", COMPARE_AND_SET, 1), Op("kv", b"k", b"4", COMPARE_AND_SET, 1), client="d"),
    )
    assert answers == [Written(1, 1, [Refusal(1, 1, b"1")]), Written(1, 3, [Refusal(1, 3, b"3")])]
    answers = bench.ask(write(2, Op("kv", b"k", kind=DELETE, version=1), Op("kv", b"k", kind=DELETE, version=3),
                              Op("kv", b"k", kind=DELETE), Op("kv", b"k", b"5", COMPARE_AND_SET)))
    assert answers == [Written(2, 5, [Refusal(0, 3, b"3")])]
    assert bench.disk.get("kv", b"k") == (8, b"5")


def test_a_write_is_done_once_also_after_a_restart() -> None:
    bench = Bench()
    first = write(1, Op("kv", b"k", b"1", PUT_IF_ABSENT))
    assert bench.ask(first, first) == [Written(1, 1, [])]
    assert bench.ask(first) == [Written(1, 1, [])]
    bench.start()
    assert bench.ask(first) == [Written(1, 1, [])]
    assert bench.ask(write(5, Op("kv", b"k", b"2")), first) == [Written(5, 2, [])]
    assert bench.ask(first) == []
    assert len(bench.disk.log) == 2


@pytest.mark.parametrize("bad", [
    Write("c", 1, 1, []), Write("", 1, 1, [Op("kv", b"k")]), Write("c" * 600, 1, 1, [Op("kv", b"k")]),
    Write("c", 0, 1, [Op("kv", b"k")]), write(1, Op("nothing", b"k")), write(1, Op("kv", b"")),
    write(1, Op("kv", b"k" * 511)), write(1, Op("kv", b"k", b"", 4)), write(1, Op("kv", b"k", b"", -1)),
    write(1, *[Op("kv", b"k")] * (limits.WRITE_OPS_MAX + 1)),
])
def test_bad_writes_are_refused_whole(bad: Write) -> None:
    bench = Bench()
    answer, = bench.ask(bad)
    assert isinstance(answer, WriteRefused) and answer.reason
    assert not bench.disk.log


def test_other_epochs_change_nothing() -> None:
    bench = Bench()
    stale = [Write("c", 1, 2, [Op("kv", b"k")]), Read(1, 0, []), Scan(1, 2, "kv"), Watch(1, 1, 2, "kv", b""),
             CloseClient("c", 2)]
    assert bench.ask(*stale) == [WrongEpoch(SHARD)] * 5
    assert not bench.disk.log and not bench.member.statistics()["watches"]


def test_a_member_is_what_it_can_be() -> None:
    disk = Disk()
    for shard, recovered, reason in (
        (Shard(1, [("other", "x")]), Recovered(), "is not in the chain"),
        (Shard(1, [(MEMBER, "x")]), Recovered(epoch=2), "has seen epoch 2"),
    ):
        with pytest.raises(WrongChain, match=reason):
            ChainMember(MEMBER, shard, committed=disk, recovered=recovered, now_ns=0)


def test_clients_are_forgotten_after_silence_or_goodbye() -> None:
    bench = Bench()
    bench.ask(write(1, Op("kv", b"k", b"1")), write(1, Op("kv", b"k", b"2"), client="d"), CloseClient("d", 1))
    bench.now_ns = limits.HOUSEKEEPING_NS
    bench.turn(Tick())
    assert set(bench.disk.clients) == {"c"}
    bench.now_ns = limits.CLIENT_FORGET_NS + limits.HOUSEKEEPING_NS
    bench.turn(Tick())
    assert not bench.disk.clients and bench.member.statistics()["clients"] == 0


def test_the_tail_answers_at_once_and_confirms_later_all_in_one() -> None:
    disk = Disk()
    chain = Shard(1, [("head", "x"), (MEMBER, "y")])
    tail = ChainMember(MEMBER, chain, committed=disk, recovered=Recovered(), now_ns=0)

    def turn(event: Any, now_ns: int) -> list[Any]:
        effects = disk.persist(tail.handle(event, now_ns))
        later = [more for effect in effects if isinstance(effect, Persisted) for more in tail.handle(effect, now_ns)]
        sends = [effect for effect in (*effects, *later) if isinstance(effect, Send)]
        return [(send.to, send.message) for send in sends if not isinstance(send.message, AskReadLease)]

    turn(Tick(), 0)
    for version in (1, 2, 3):
        entry = Entry(version, 1, f"c{version}", 1, [("kv", b"k", version, b"v")], [], (), b"c")
        told = turn(Received(b"head", Extend(1, version - 1, version, [entry])), version)
        assert told == [(b"c", Written(1, version, []))]
    due_ns = tail.deadline_ns()
    assert due_ns == 1 + limits.CONFIRM_NS
    assert turn(Tick(), due_ns) == [(b">head", Extended(1, 3))]
    assert turn(Tick(), due_ns + limits.CONFIRM_NS) == []


def test_a_crowded_shard_refuses_new_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CLIENTS_MAX", 1)
    bench = Bench()
    answers = bench.ask(write(1, Op("kv", b"k", b"1")), write(1, Op("kv", b"k", b"2"), client="d"))
    assert isinstance(answers[0], WriteRefused) and answers[1] == Written(1, 1, [])
    assert isinstance(bench.ask(write(2, Op("kv", b"k", b"3")))[0], Written)


def test_reads_and_scans_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    bench.ask(write(1, *(Op("kv", b"%d" % i, b"v" * 10) for i in range(9))))
    assert bench.ask(Scan(1, 1, "kv", b"", b"6", 2)) == [
        Scanned(1, [Row(b"7", 8, b"v" * 10), Row(b"8", 9, b"v" * 10)], False)]
    assert bench.ask(Scan(1, 1, "nothing")) == [Scanned(1, [])]
    monkeypatch.setattr(limits, "ANSWER_BYTES_MAX", 15)
    answer, = bench.ask(Read(1, 1, [("kv", b"%d" % i) for i in range(9)]))
    assert len(answer.rows) == 2


def test_a_watch_tells_present_rows_then_changes() -> None:
    bench = Bench()
    bench.ask(write(1, Op("kv", b"a1", b"x"), Op("kv", b"b", b"y")))
    assert bench.ask(Watch(7, 1, 1, "kv", b"a", True)) == [
        Changed(7, 1, 1, [Row(b"a1", 1, b"x")], True, as_of=2, begun=2)]
    assert bench.ask(Watch(7, 1, 1, "kv", b"a", True)) == [WatchConfirmed(7, 1, 1, 2, 2)]
    told = bench.ask(write(2, Op("kv", b"a2", b"z"), Op("kv", b"b", b"y"), Op("kv", b"a1", kind=DELETE)))
    assert told == [Written(2, 3, []), Changed(7, 1, 2, [Row(b"a2", 3, b"z"), Row(b"a1", 5)], as_of=5, begun=2)]
    assert bench.ask(write(3, Op("kv", b"a2", b"", PUT_IF_ABSENT), Op("kv", b"a0", kind=DELETE)))[1:] == []
    assert bench.ask(Unwatch(7), write(4, Op("kv", b"a2"))) == [Written(4, 8, [])]


def test_a_watch_goes_on_after_the_version_that_it_names() -> None:
    bench = Bench()
    bench.ask(write(1, *(Op("kv", b"a%d" % i, b"x") for i in range(5)), Op("kv", b"b", b"y")))
    bench.ask(write(2, Op("kv", b"a1", kind=DELETE), Op("kv", b"a2", b"new"), Op("kv", b"b", kind=DELETE),
                    Op("kv", b"a3", kind=DELETE), Op("kv", b"a3", b"again")))
    assert bench.ask(Watch(7, 2, 1, "kv", b"a", True, since=6)) == [Changed(
        7, 2, 1, [Row(b"a1", 7), Row(b"a2", 8, b"new"), Row(b"a3", 11, b"again")], True, resumed=True, as_of=11,
        begun=11)]
    assert bench.ask(Watch(8, 1, 1, "kv", b"a1", since=6)) == [
        Changed(8, 1, 1, [Row(b"a1", 7)], True, resumed=True, as_of=11, begun=11)]
    assert bench.ask(Watch(9, 1, 1, "kv", b"a", True, since=11)) == [
        Changed(9, 1, 1, [], True, resumed=True, as_of=11, begun=11)]
    told = bench.ask(write(3, Op("kv", b"a1", b"back")))[1:]
    assert sorted(told, key=lambda changed: changed.watch) == [
        Changed(watch, stream, 2, [Row(b"a1", 12, b"back")], as_of=12, begun=11)
        for watch, stream in ((7, 2), (8, 1), (9, 1))]


@pytest.mark.parametrize("reason", ["removals forgotten", "process new", "version from the future"])
def test_a_watch_that_cannot_go_on_gets_everything(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REMOVALS_MAX", 1)
    bench = Bench()
    bench.ask(write(1, *(Op("kv", b"a%d" % i, b"x") for i in range(5))))
    bench.ask(write(2, *(Op("kv", b"a%d" % i, kind=DELETE) for i in range(3))))
    if reason == "process new":
        bench.start()
    since = {"removals forgotten": 6, "process new": 7, "version from the future": 9}[reason]
    page, = bench.ask(Watch(7, 2, 1, "kv", b"a", True, since=since))
    assert [row.key for row in page.rows] == [b"a3", b"a4"] and not page.resumed
    counts = bench.member.statistics()
    assert counts["watch_snapshots"] == 1 and counts["watch_resumed"] == 0
    again, = bench.ask(Watch(8, 1, 1, "kv", b"a", True, since=8))
    assert again.resumed and again.rows == []


def test_a_watch_that_lost_its_place_is_told() -> None:
    bench = Bench()
    assert isinstance(bench.ask(Watch(7, 1, 1, "kv", b"a", received=3))[0], WatchLost)
    bench.ask(Watch(7, 2, 1, "kv", b"a"))
    lost = [message for sequence in range(1, limits.WATCH_UNRECEIVED_MAX + 3)
            for message in bench.ask(write(sequence, Op("kv", b"a"))) if isinstance(message, WatchLost)]
    assert len(lost) == 1 and "not acknowledged" in lost[0].reason
    assert bench.member.statistics()["watches"] == 0
    bench.ask(Watch(7, 3, 1, "kv", b"a"))
    bench.now_ns = limits.HOUSEKEEPING_NS
    assert isinstance(bench.ask(Tick())[0], WatchLost)
    bench.ask(Watch(7, 4, 1, "kv", b"a"))
    bench.turn(Undeliverable(b"c", None))
    assert bench.member.statistics()["watches"] == 0


def test_a_large_snapshot_comes_in_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SCAN_ROWS_MAX", 2)
    bench = Bench()
    bench.ask(write(1, *(Op("kv", b"%d" % i) for i in range(5))))
    pages = bench.ask(Watch(1, 1, 1, "kv", b"", True))
    assert [(page.number, len(page.rows), page.more) for page in pages] == [(1, 2, True), (2, 2, True), (3, 1, False)]
    monkeypatch.setattr(limits, "WATCH_ROWS_MAX", 3)
    assert isinstance(bench.ask(Watch(2, 1, 1, "kv", b"", True))[0], WatchLost)


def test_pings_descriptions_and_leaving() -> None:
    bench = Bench()
    assert bench.ask(Ping(5)) == [Pong(5)]
    described, = bench.ask(DescribeShard(6))
    assert isinstance(described, ShardDescribed) and described.role == "alone" and described.shard == SHARD
    assert bench.ask(Pong(1)) == [] and bench.member.statistics()["unknown"] == 1
    assert bench.member.handle(Received(b"c", Leave("why")), 0) == [Stop("why")]
