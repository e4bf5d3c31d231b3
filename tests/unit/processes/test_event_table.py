"""What a node writes of what happened: each event once, in order of time, and never more than was promised."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec

from meshray import config
from meshray.gcs import tables
from meshray.gcs.requests import Answered, Outcome, Unanswered
from meshray.messages.gcs import COMPARE_AND_SET, Op, Row
from meshray.messages.node import Shard
from meshray.processes.event_table import EventTable, excess_max

S = config.SECOND_NS
WALL_NS = 10**18


class Node:
    """A node and a control store that answers when the test says so."""

    def __init__(self) -> None:
        self.node = "node-a"
        self.endpoint = "ipc://a"
        self.pid = 7
        self.peers = {"node-b": "ipc://b"}
        self.row = tables.NodeRow("node-a", "left", "ipc://a", {})
        self.settings: Any = SimpleNamespace(node_name="left", host_shards={"shard-0-0": ""}, replicas=2)
        self.gcs: Any = SimpleNamespace(shards=[Shard(1, [("shard-0-0", ""), ("shard-0-1", "")])])
        self.counts: dict[str, int] = {}
        self.store: Any = SimpleNamespace(
            statistics=lambda: self.counts, puller=SimpleNamespace(loss=""),
            directory=SimpleNamespace(capacity_bytes=100, disk_error="no space left"))
        self.rows: dict[tuple[str, bytes], tuple[int, bytes]] = {}
        self.version = 0
        self.fails = False
        self.now_ns = 1
        self.events = EventTable(self)  # type: ignore[arg-type]
        self.events.wall_offset_ns = WALL_NS
        self.events.begin(self.now_ns)

    def write(self, ops: list[Op], now_ns: int, done: Any = None) -> list[Any]:
        if self.fails:
            return list(done(Answered(1, [], Unanswered("silent", True)), now_ns))
        outcomes = []
        for op in ops:
            key = (op.table, op.key)
            ok = op.kind != COMPARE_AND_SET or self.rows.get(key, (0, b""))[0] == op.version
            if ok:
                self.version += 1
                self.rows[key] = (self.version, op.value)
            outcomes.append(Outcome(ok, self.version))
        return list(done(Answered(1, outcomes), now_ns)) if done is not None else []

    def read(self, table: str, key: bytes, now_ns: int, done: Any) -> list[Any]:
        version, value = self.rows.get((table, key), (0, None))
        return list(done(Answered(1, [Row(key, version, value)]), now_ns))

    def wait(self, time_ns: int = S) -> None:
        until_ns = self.now_ns + time_ns
        while (due_ns := self.events.deadline_ns()) is not None and due_ns <= until_ns:
            self.now_ns = due_ns
            assert self.events.tick(due_ns) == []
        self.now_ns = until_ns

    def note(self, text: str, severity: str = "warning") -> None:
        self.events.note(severity, "test", text, self.now_ns)

    def told(self, kind: str = "") -> list[str]:
        """The texts in the table, in the order of their keys."""
        found = [tables.decode(value, tables.EventRow)
                 for (table, _), (_, value) in sorted(self.rows.items()) if table == tables.EVENT]
        texts = [f"{row.kind}: {row.message}" for row in found]
        return [text for text in texts if text.startswith(kind) and not text.startswith("node joined")]


def test_what_is_noted_is_written_in_one_write_and_in_the_order_of_time() -> None:
    node = Node()
    node.note("one")
    node.now_ns += 5
    node.note("two")
    assert node.rows == {}
    node.wait()
    assert node.told() == ["test: one", "test: two"]
    row = tables.decode(node.rows[tables.EVENT, b"%020d/node-a/00000002" % (WALL_NS + 1)][1], tables.EventRow)
    assert row == tables.EventRow(WALL_NS + 1, "warning", "test", "left", "one")


def test_what_the_control_store_does_not_take_is_written_again_and_is_there_once() -> None:
    node = Node()
    node.fails = True
    node.note("one")
    node.wait(10 * S)
    node.note("two")
    node.fails = False
    node.wait()
    assert node.told() == ["test: one", "test: two"]
    before = node.version
    node.wait(10 * S)
    assert node.version == before


def test_a_store_that_stays_away_costs_bounded_memory_and_the_newest_survive() -> None:
    node = Node()
    node.fails = True
    for number in range(3 * config.EVENT_WAITING_MAX):
        node.note(str(number))
        node.wait()
    node.fails = False
    node.wait()
    assert len(node.told()) == config.EVENT_WAITING_MAX
    assert node.told()[-1] == f"test: {3 * config.EVENT_WAITING_MAX - 1}"


def test_a_flood_is_cut_and_said_to_be_and_takes_no_room_from_what_is_graver() -> None:
    node = Node()
    for number in range(10_000):
        node.note(f"info {number}", "info")
    node.note("grave", "error")
    node.wait()
    assert len(node.told("test: info")) <= config.EVENT_BURST_MAX and node.told()[-1] == "test: grave"
    node.wait(2 * S)
    node.note("later", "info")
    node.wait()
    assert node.told()[-2].startswith("events left out: 99") and node.told()[-1] == "test: later"


def test_between_two_sweeps_no_node_exceeds_its_part() -> None:
    node = Node()
    for _ in range(config.RETENTION_SWEEP_NS // S):
        for severity in ("info", "warning", "error"):
            for number in range(50):
                node.note(str(number), severity)
        node.wait()
    assert config.EVENT_BURST_MAX < len(node.told()) <= excess_max(1)


def test_the_node_beside_the_head_tells_of_a_new_chain() -> None:
    node = Node()
    node.gcs.shards = [Shard(4, [("shard-0-0", "")])]
    node.wait()
    assert node.told() == ["chain changed: shard 0 is shard-0-0 in epoch 4 (before: 1); 1 of 2 replicas"]
    node.gcs.shards = [Shard(5, [("shard-0-2", ""), ("shard-0-0", "")])]
    node.wait(5 * S)
    assert len(node.told()) == 1, "now it is for the other node to tell"


def test_a_full_store_a_full_disk_and_lost_objects_are_told_by_their_counts() -> None:
    node = Node()
    node.counts = {"refusals": 3, "spill_failures": 1, "used_bytes": 90}
    node.store.puller.loss = "object 00: the last holder is gone"
    node.wait(5 * S)
    assert node.told() == ["object store full: 3 times within a second: of 100 bytes, 90 are in use and none can go",
                           "spilling fails: 1 times within a second: no space left",
                           "object lost: object 00: the last holder is gone"]


def test_the_first_who_writes_that_a_node_is_gone_tells_of_it() -> None:
    node = Node()
    gone = tables.NodeRow("node-b", "right", "ipc://b", {})
    node.write([Op(tables.NODE, b"node-b", tables.encode(gone))], 0)
    node.events.node_gone("node-b", node.now_ns)
    node.wait()
    assert node.told() == [], "it is among the peers again"
    del node.peers["node-b"]
    for _ in range(2):
        node.events.node_gone("node-b", node.now_ns)
        node.wait()
    assert node.told() == ["node died: node-b at ipc://b: no heartbeat for 3 s"]
    row = tables.decode(node.rows[tables.NODE, b"node-b"][1], tables.NodeRow)
    assert row.state == "dead" and row.ended_wall_ns > WALL_NS


def test_a_node_that_ends_of_its_own_will_says_so_and_nobody_calls_it_dead() -> None:
    node = Node()
    node.note("before")
    node.events.last_words("taken down", node.now_ns)
    assert node.told() == ["test: before", "node left: taken down"]
    assert tables.decode(node.rows[tables.NODE, b"node-a"][1], tables.NodeRow).state == "left"
    del node.peers["node-b"]
    node.rows[tables.NODE, b"node-b"] = (99, tables.encode(msgspec.structs.replace(node.row, node="node-b",
                                                                                  state="left")))
    node.events.node_gone("node-b", node.now_ns)
    node.wait()
    assert not node.told("node died")


def test_a_long_text_is_cut() -> None:
    node = Node()
    node.note("x" * 10**6)
    node.wait()
    assert len(node.told()[0]) == config.EVENT_MESSAGE_CHARS_MAX + len("test: ")
