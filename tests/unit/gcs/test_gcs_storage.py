"""What is on the disk after a turn, a crash, a full map; who may open it."""

from __future__ import annotations

import os
from pathlib import Path

import lmdb
import msgspec
import pytest

from meshray.gcs import limits
from meshray.gcs.log import ClientRecord, Entry, MarkWhole, Persist, Persisted, WipeDisk
from meshray.gcs.storage import Storage, StorageFailed, StorageUnusable, file_system
from meshray.machine import Send
from meshray.messages.gcs import Refusal
from meshray.messages.node import Ping


def persist(*rows: tuple[str, bytes, int, bytes | None], client: str = "c") -> Persist:
    return Persist(Entry(rows[0][2], len(rows), client, 1, list(rows), []), 3)


@pytest.mark.parametrize("durability", ["fsync", "relaxed"])
def test_a_turn_is_there_after_reopening(tmp_path: Path, durability: str) -> None:
    storage = Storage(str(tmp_path), durability=durability)
    assert storage.recovered.version == 0 and not storage.recovered.clients
    answer = Send(b"c", Ping())
    rows = [("kv", b"a", 1, b"old"), ("kv", b"a", 2, b"new"), ("kv", b"b", 3, b"")]
    first = Persist(Entry(1, 4, "c", 9, rows, [Refusal(3, 2, b"x")]), 3)
    second = persist(("kv", b"b", 5, None), client="d")
    assert storage.persist([first, answer, second]) == [answer, Persisted(2)]
    assert storage.persist([answer]) == [answer]
    storage.close()
    storage.close()

    storage = Storage(str(tmp_path), durability=durability)
    assert storage.get("kv", b"a") == (2, b"new") and storage.get("kv", b"b") is None
    recovered = storage.recovered
    assert (recovered.epoch, recovered.version) == (3, 5)
    assert recovered.clients == {"c": ClientRecord(9, 1, [Refusal(3, 2, b"x")]), "d": ClientRecord(1, 5, [])}
    storage.persist([Persist(Entry(6, 0, "", 0, [], [], ("d",)), 3)])
    storage.close()
    storage = Storage(str(tmp_path))
    assert set(storage.recovered.clients) == {"c"} and storage.recovered.version == 5
    storage.close()


def test_the_epoch_on_the_disk_is_that_of_the_last_turn(tmp_path: Path) -> None:
    entries = [Persist(Entry(version, 1, "c", version, [("kv", b"a", version, b"")], []), epoch)
               for version, epoch in ((1, 3), (2, 3), (3, 4), (4, 4))]
    for turn, epoch, version, whole in (
            ([entries[0]], 3, 1, True), ([entries[1]], 3, 2, True), ([entries[2], entries[3]], 4, 4, True),
            ([WipeDisk()], 4, 0, False), ([Persist(Entry(1, 0, "", 0, [], []), 5)], 5, 0, False),
            ([MarkWhole(6)], 6, 0, True), ([MarkWhole(6)], 6, 0, True),
            ([entries[0], WipeDisk()], 6, 0, False)):
        storage = Storage(str(tmp_path), founding=True)
        storage.persist(list(turn))
        storage.close()
        storage = Storage(str(tmp_path), founding=True)
        recovered = storage.recovered
        assert (recovered.epoch, recovered.version, recovered.whole) == (epoch, version, whole)
        storage.close()
    storage = Storage(str(tmp_path), founding=True)
    for epoch in (7, 7, 8, 8, 7):  # without reopening in between
        storage.persist([msgspec.structs.replace(entries[0], epoch=epoch)])
    storage.close()
    storage = Storage(str(tmp_path), founding=True)
    assert storage.recovered.epoch == 7
    storage.close()


def test_one_row_alone_is_kept_like_one_among_others(tmp_path: Path) -> None:
    turns = [Persist(Entry(version, 1, client, sequence, [("kv", key, version, value)], []), epoch)
             for version, client, sequence, key, value, epoch in (
                 (1, "c", 1, b"a", b"x", 3), (2, "d", 1, b"b", b"", 3), (3, "c", 2, b"a", None, 3),
                 (4, "d", 2, b"b", b"y", 4))]
    found = []
    for name in ("alone", "among"):
        storage = Storage(str(tmp_path / name), durability="relaxed")
        for turn in turns:
            others = [Send(b"c", Ping())] if name == "among" else []
            assert storage.persist([*others, turn]) == [*others, Persisted(1)]
        storage.close()
        storage = Storage(str(tmp_path / name))
        found.append((storage.recovered, storage.scan("kv", b"", b"", 10)))
        storage.close()
    assert found[0] == found[1]
    assert found[0][0].epoch == 4 and found[0][0].version == 4


def test_scan_pages_through_a_prefix(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path), durability="relaxed")
    storage.persist([persist(*(("kv", b"p%03d" % i, i + 1, b"v") for i in range(25)), ("kv", b"q", 26, b""))])
    rows, more = storage.scan("kv", b"p", b"", 10)
    assert [row.key for row in rows] == [b"p%03d" % i for i in range(10)] and more
    rows, more = storage.scan("kv", b"p", b"p019", 10)
    assert [row.key for row in rows] == [b"p%03d" % i for i in range(20, 25)] and not more
    assert len(storage.scan("kv", b"", b"", 100)[0]) == 26
    assert storage.scan("kv", b"x" * 600, b"", 10) == ([], False)
    assert storage.scan("nothing", b"", b"", 10) == ([], False)
    assert storage.get("kv", b"") is None and storage.get("kv", b"x" * 511) is None
    assert storage.facts().rows["kv"] == 26
    storage.close()


def test_a_page_is_bounded_in_bytes(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path), durability="relaxed")
    storage.persist([persist(*(("kv", b"%d" % i, i + 1, bytes(limits.ANSWER_BYTES_MAX // 2)) for i in range(5)))])
    rows, more = storage.scan("kv", b"", b"", 10)
    assert len(rows) == 2 and more
    storage.close()


def test_a_full_map_grows_and_the_turn_is_whole(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path), durability="relaxed", map_bytes=1 << 20)
    rows = [("task", b"%06d" % i, i + 1, bytes(1000)) for i in range(5000)]
    assert storage.persist([persist(*rows)]) == [Persisted(1)]
    assert storage.facts().rows["task"] == 5000
    assert storage.facts().map_bytes > 4 << 20
    storage.close()
    storage = Storage(str(tmp_path), durability="relaxed", map_bytes=1 << 20)
    assert storage.facts().rows["task"] == 5000
    storage.close()


def test_a_map_that_may_not_grow_further_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAP_BYTES_MAX", 1 << 20)
    storage = Storage(str(tmp_path), durability="relaxed", map_bytes=1 << 20)
    with pytest.raises(StorageFailed, match="has reached 1048576 bytes"):
        storage.persist([persist(*(("task", b"%d" % i, i + 1, bytes(1000)) for i in range(3000)))])
    assert storage.facts().rows["task"] == 0
    storage.close()


def test_the_file_does_not_grow_when_rows_come_and_go(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path), durability="relaxed")
    sizes = []
    for turn in range(60):
        keys = [b"%d-%d" % (turn, i) for i in range(200)]
        storage.persist([persist(*(("task", key, 1, bytes(300)) for key in keys))])
        storage.persist([persist(*(("task", key, 2, None) for key in keys))])
        sizes.append(storage.facts().file_bytes)
    assert storage.facts().rows["task"] == 0
    assert sizes[-1] == sizes[10]
    storage.close()


def test_lives_have_growing_numbers_whatever_the_clock_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def life(now_ms: int) -> int:
        monkeypatch.setattr("time.time_ns", lambda: now_ms * 1_000_000)
        storage = Storage(str(tmp_path), votes=True)
        storage.close()
        return storage.life

    assert [life(5_000), life(4_000), life(5_001), life(6_000)] == [5_000, 5_001, 5_002, 6_000]
    storage = Storage(str(tmp_path / "no votes"))
    assert storage.life == 0
    storage.close()


def test_directory_is_private_and_has_one_owner(tmp_path: Path) -> None:
    directory = tmp_path / "gcs"
    storage = Storage(str(directory))
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}
    with pytest.raises(StorageUnusable, match="belongs to a running shard"):
        Storage(str(directory))
    storage.close()
    Storage(str(directory)).close()


def test_what_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageUnusable, match="cannot use"):
        Storage(str(tmp_path / "file"))
    with pytest.raises(ValueError, match="durability is 'maybe'"):
        Storage(str(tmp_path / "x"), durability="maybe")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "data.mdb").write_bytes(b"no database" * 1000)
    with pytest.raises(StorageUnusable, match="cannot open"):
        Storage(str(tmp_path / "bad"))
    environment = lmdb.open(str(tmp_path / "old"), max_dbs=20)
    with environment.begin(write=True) as transaction:
        transaction.put(b"format", b"meshray gcs 0", db=environment.open_db(b"_meta", txn=transaction))
    environment.close()
    with pytest.raises(StorageUnusable, match="reads b'meshray gcs 1'"):
        Storage(str(tmp_path / "old"))


def test_network_file_systems_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "23 22 0:40 / /home\\040dir rw,relatime shared:1 - nfs4 server:/x rw\n"
    )
    assert file_system("/home dir/user", str(mounts)) == "nfs4"
    assert file_system("/homes", str(mounts)) == "ext4"
    monkeypatch.setattr("meshray.gcs.storage.file_system", lambda path: "nfs4")
    with pytest.raises(StorageUnusable, match=r"network file system \(nfs4\)"):
        Storage(str(tmp_path / "gcs"))


def test_an_environment_is_not_used_across_a_fork(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage._pid = os.getpid() + 1
    with pytest.raises(AssertionError, match="fork"):
        storage.persist([persist(("kv", b"a", 1, b""))])
    storage._pid = os.getpid()
    storage.close()
