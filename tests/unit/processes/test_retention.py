"""What the tables keep of what has ended: history is bounded, and nothing that is needed goes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from meshray import config
from meshray.cluster_schema import Retention as Keep
from meshray.gcs import tables
from meshray.gcs.limits import SCAN_ROWS_MAX
from meshray.gcs.requests import Answered, Outcome, Unanswered
from meshray.messages.gcs import COMPARE_AND_SET, DELETE, Op, Row
from meshray.messages.node import ActorSpec, Shard
from meshray.messages.tasks import TaskEntry
from meshray.processes.retention import Retention, too_many

SWEEP = config.RETENTION_SWEEP_NS
DEFAULT = Keep()


class Store:
    """A node and a control store that answers at once."""

    def __init__(self, keep: Keep = DEFAULT) -> None:
        self.node = "node-a"
        self.peers = {"node-b": "tcp://b"}
        self.settings: Any = SimpleNamespace(host_shards={"shard-0-0": "ipc://x"}, retention=keep)
        self.gcs: Any = SimpleNamespace(shards=[Shard(1, [("shard-0-0", "ipc://x")])])
        self.rows: dict[tuple[str, bytes], tuple[int, bytes]] = {}
        self.version = 0
        self.fails = False
        self.now_ns = 0
        self.died: list[str] = []
        self.inherited: list[bytes] = []
        self.detached = SimpleNamespace(inherit=self.inherit)
        self.events = SimpleNamespace(node_died=lambda row, now_ns: self.died.append(row.node))
        self.retention = Retention(self)  # type: ignore[arg-type]
        self.retention.begin(0)

    def is_beside_head(self) -> bool:
        return "shard-0-0" in self.settings.host_shards

    def inherit(self, row: Row, is_gone: Any, now_ns: int) -> list[Any]:
        found = tables.decode(row.value or b"", tables.ActorRow)
        assert is_gone(found.node) and is_gone(found.home or found.node)
        self.inherited.append(row.key)
        return []

    def put(self, table: str, key: str, row: Any) -> None:
        self.version += 1
        self.rows[table, key.encode()] = (self.version, tables.encode(row))

    def scan(self, table: str, prefix: bytes, limit: int, now_ns: int, done: Any, *, after: bytes = b"") -> list[Any]:
        if self.fails:
            return list(done(Answered(1, [], Unanswered("silent", False)), now_ns))
        keys = sorted(key for named, key in self.rows if named == table and key > after)
        limit = min(limit, SCAN_ROWS_MAX)
        found = [Row(key, *self.rows[table, key]) for key in keys[:limit]]
        return list(done(Answered(1, found, None, len(keys) > limit), now_ns))

    def write(self, ops: list[Op], now_ns: int, done: Any) -> list[Any]:
        outcomes = []
        for op in ops:
            present = self.rows.get((op.table, op.key))
            ok = present is not None and present[0] == op.version
            if ok and op.kind == DELETE:
                del self.rows[op.table, op.key]
            elif ok:
                assert op.kind == COMPARE_AND_SET
                self.version += 1
                self.rows[op.table, op.key] = (self.version, op.value)
            outcomes.append(Outcome(ok, 0))
        return list(done(Answered(1, outcomes), now_ns))

    def sweep(self, times: int = 1) -> None:
        for _ in range(times):
            self.now_ns += SWEEP
            assert self.retention.tick(self.now_ns) == []

    def keys(self, table: str) -> list[str]:
        return sorted(key.decode() for named, key in self.rows if named == table)

    def work(self, job: str) -> None:
        """What a job leaves."""
        entry = TaskEntry(1, 0, b"", None, [])
        self.put(tables.TASK, f"task of {job}", tables.TaskRow(b"f", "f", b"p", 1, entry, {}, job=job))
        self.put(tables.OBJECT, f"object of {job}", tables.ObjectRow("worker", job=job))
        self.put(tables.FUNCTION, f"function of {job}", tables.FunctionRow("f", b"", job))


def job(name: str, state: str = "finished", node: str = "node-a") -> tables.JobRow:
    return tables.JobRow(name, f"driver of {name}", "ns", state=state, node=node)


def actor(state: str, job: str = "a-1", node: str = "node-a", home: str = "") -> tables.ActorRow:
    spec = ActorSpec(b"x", "o", "ipc://o", job, b"c", "C", TaskEntry(1, 0, b"", None, []), {}, {})
    return tables.ActorRow(spec, state, node=node, home=home)


def left(store: Store) -> list[str]:
    return store.keys(tables.TASK) + store.keys(tables.OBJECT) + store.keys(tables.FUNCTION)


def test_what_a_job_left_goes_two_sweeps_after_its_end_and_its_row_stays() -> None:
    store = Store()
    for name, state in (("a-1", "finished"), ("a-2", "running"), ("a-3", "failed")):
        store.put(tables.JOB, name, job(name, state))
        store.work(name)
    store.sweep()
    assert len(left(store)) == 9
    store.sweep()
    assert left(store) == ["task of a-2", "object of a-2", "function of a-2"]
    assert store.keys(tables.JOB) == ["a-1", "a-2", "a-3"]
    assert store.retention.statistics()["retention_removed_functions"] == 2


def test_a_job_whose_actors_live_has_not_ended() -> None:
    store = Store(Keep(jobs=0))
    store.put(tables.JOB, "a-1", job("a-1"))
    store.put(tables.ACTOR, "detached", actor("restarting"))
    store.work("a-1")
    store.put(tables.OBJECT, "object of the driver", tables.ObjectRow("driver of a-1", job="a-1"))
    store.sweep(5)
    assert left(store) == ["task of a-1", "object of a-1", "function of a-1"]
    assert store.keys(tables.JOB) == ["a-1"]
    store.put(tables.ACTOR, "detached", actor("dead"))
    store.sweep(2)
    assert left(store) == []
    assert store.keys(tables.JOB) == []


def test_history_keeps_the_newest() -> None:
    store = Store(Keep(jobs=2, actors=3, nodes=1, events=4))
    for number in range(2500):
        store.put(tables.ACTOR, f"{number:04}", actor("dead", "a-9"))
    store.put(tables.ACTOR, "living", actor("alive", "a-9"))
    for number in range(5):
        store.put(tables.JOB, f"a-{number}", job(f"a-{number}"))
        store.put(tables.NODE, f"n-{number}", tables.NodeRow(f"n-{number}", "n", "", {}, state="left"))
        store.put(tables.EVENT, f"{number}/a", tables.EventRow(number, "info", "test", "n"))
    store.sweep(2)
    assert store.keys(tables.EVENT) == ["1/a", "2/a", "3/a", "4/a"]
    assert store.keys(tables.ACTOR) == ["2497", "2498", "2499", "living"]
    assert store.keys(tables.JOB) == ["a-3", "a-4"]
    assert store.keys(tables.NODE) == ["n-4"]


def test_a_job_row_goes_only_after_what_names_it() -> None:
    store = Store(Keep(jobs=0))
    store.put(tables.JOB, "a-1", job("a-1"))
    store.sweep()
    assert store.keys(tables.JOB) == ["a-1"]
    store.sweep()
    assert store.keys(tables.JOB) == []


@pytest.mark.parametrize("comes_back", [False, True])
def test_a_node_that_two_sweeps_did_not_find_is_dead_and_its_jobs_have_failed(comes_back: bool) -> None:
    store = Store()
    for node in ("node-a", "node-b", "node-c"):
        store.put(tables.NODE, node, tables.NodeRow(node, "n", "", {}))
        store.put(tables.JOB, node, job(node, "running", node))
    store.sweep()
    if comes_back:
        store.peers["node-c"] = "tcp://c"
    store.sweep()
    jobs = {key.decode(): tables.decode(value, tables.JobRow).state
            for (table, key), (_, value) in store.rows.items() if table == tables.JOB}
    assert jobs == {"node-a": "running", "node-b": "running", "node-c": "running" if comes_back else "failed"}
    node = tables.decode(store.rows[tables.NODE, b"node-c"][1], tables.NodeRow)
    assert node.state == ("alive" if comes_back else "dead")
    assert store.died == ([] if comes_back else ["node-c"])
    store.peers["node-c"] = "tcp://c"
    store.sweep()
    node = tables.decode(store.rows[tables.NODE, b"node-c"][1], tables.NodeRow)
    assert node.state == "alive", "it was there after all"


def test_actors_whose_node_and_home_two_sweeps_did_not_find_are_inherited() -> None:
    store = Store()
    for key, node, home in (("both", "node-x", "node-y"), ("old row", "node-x", ""), ("has a home", "node-x", "node-b"),
                            ("lives", "node-b", "node-x"), ("here", "node-a", "node-a")):
        store.put(tables.ACTOR, key, actor("alive", node=node, home=home))
    store.put(tables.ACTOR, "dead", actor("dead", node="node-x", home="node-x"))
    store.sweep()
    assert store.inherited == []
    store.sweep()
    assert sorted(store.inherited) == [b"both", b"old row"]


def test_only_the_node_beside_the_head_sweeps_and_an_error_ends_only_this_sweep() -> None:
    store = Store(Keep(actors=0))
    store.put(tables.ACTOR, "x", actor("dead"))
    store.settings.host_shards = {"shard-0-1": "ipc://y"}
    store.sweep()
    assert store.keys(tables.ACTOR) == ["x"]
    store.settings.host_shards = {"shard-0-0": "ipc://x"}
    store.fails = True
    store.sweep()
    store.fails = False
    store.sweep()
    assert store.keys(tables.ACTOR) == []


def test_a_row_that_cannot_be_read_stays() -> None:
    store = Store(Keep(actors=0))
    store.rows[tables.ACTOR, b"odd"] = (1, b"\xc1")
    store.sweep(2)
    assert store.keys(tables.ACTOR) == ["odd"]


def test_each_shard_keeps_its_part_of_the_history() -> None:
    keys = [b"%d" % number for number in range(100)]
    history = [(number, key) for number, key in enumerate(keys)]
    removed = too_many(tables.ACTOR, history, 10, 4)
    kept = [key for key in keys if key not in {key for _, key in removed}]
    assert [sum(tables.shard_of(tables.ACTOR, key, 4) == shard for key in kept) for shard in range(4)] == [3, 3, 3, 3]
    assert msgspec.structs.asdict(Keep()) == {"jobs": 1_000, "actors": 10_000, "nodes": 1_000, "events": 5_000}
