"""Rows survive encoding, keys find their shard, names become keys."""

from __future__ import annotations

from collections import Counter

import pytest

from meshray.gcs import limits, tables
from meshray.messages.tasks import Location, TaskEntry


def test_rows_survive_encoding_and_ignore_later_fields() -> None:
    row = tables.TaskRow(b"f", "square", b"p", 1, TaskEntry(1, 2), {"CPU": 10_000})
    assert tables.decode(tables.encode(row), tables.TaskRow) == row
    node = tables.NodeRow("node-1", "head", "ipc://x", {"CPU": 20_000})
    assert tables.decode(tables.encode(node), tables.NodeRow) == node


@pytest.mark.parametrize("value", [b"", b"\x00", b"\x90", b"\xc1", b"\x91" * 4000])
def test_bytes_that_are_no_row_are_a_typed_error(value: bytes) -> None:
    with pytest.raises(tables.BadRow, match="NodeRow"):
        tables.decode(value, tables.NodeRow)


def test_keys_spread_over_shards_and_stay() -> None:
    counts = Counter(tables.shard_of("task", b"%d" % i, 4) for i in range(4000))
    assert set(counts) == {0, 1, 2, 3} and min(counts.values()) > 800
    assert tables.shard_of("task", b"key", 4) == tables.shard_of("task", b"key", 4)
    assert [tables.shard_of("kv", b"default\0name", shards) for shards in (1, 2, 3, 5)] == [0, 1, 2, 4]


def test_name_keys_are_reversible_prefixed_and_bounded() -> None:
    key = tables.name_key("space", "näme")
    assert tables.split_name_key(key) == ("space", "näme")
    assert key.startswith(tables.name_key("space", "")) and not key.startswith(tables.name_key("spac", ""))
    assert len(tables.name_key("n" * 250, "m" * 250)) <= limits.KEY_BYTES_MAX
    with pytest.raises(ValueError, match="name of 251 bytes"):
        tables.name_key("", "m" * 251)
    with pytest.raises(ValueError, match="zero byte"):
        tables.name_key("a\0b", "c")


def test_an_object_row_takes_lists() -> None:
    row = tables.ObjectRow("owner", 10, [Location("node-1", 0, 10)], ["a", "b"])
    assert tables.decode(tables.encode(row), tables.ObjectRow).holders == ["a", "b"]
