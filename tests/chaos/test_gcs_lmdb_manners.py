"""Manners of the control store's disk in real processes: who opens it, and what a process that dies leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from integration.support import processes_of, wait_until

import meshray
from meshray.gcs.log import Entry, Persist
from meshray.gcs.storage import Storage

READER = (
    "import lmdb, sys, time\n"
    "environment = lmdb.open(sys.argv[1], readonly=True, max_dbs=20)\n"
    "transaction = environment.begin()\n"
    "print('reading', flush=True)\n"
    "time.sleep(600)\n"
)


def write(storage: Storage, number: int) -> None:
    """Commit one row; the same few are written again and again."""
    rows = [("kv", b"%d" % (number % 3), number, bytes(50_000))]
    storage.persist([Persist(Entry(number, 1, "c", number, rows, []), 1)])


def blocks(directory: Path) -> int:
    """Return the bytes that the data file takes."""
    return (directory / "data.mdb").stat().st_blocks * 512


def test_a_reader_that_was_killed_no_longer_keeps_old_pages(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path), durability="relaxed")
    try:
        write(storage, 1)
        reader = subprocess.Popen([sys.executable, "-c", READER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert reader.stdout is not None and reader.stdout.readline().strip() == "reading"
        reader.kill()
        reader.communicate()
        for number in range(2, 40):
            write(storage, number)
        grown = blocks(tmp_path)
        assert storage.sweep_readers() == 1
        for number in range(40, 80):
            write(storage, number)
        assert blocks(tmp_path) < 1.2 * grown
    finally:
        storage.close()


def holders(root: str, path: Path) -> list[int]:
    """Return the processes below ``root`` that have mapped ``path`` or hold it open."""
    found = []
    for pid in processes_of(root):
        try:
            maps = Path(f"/proc/{pid}/maps").read_text()
            links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if str(path) in maps or str(path) in links:
            found.append(pid)
    return found


@pytest.mark.limit_s(90)
def test_each_environment_belongs_to_one_process_of_a_cluster(fresh, root: str) -> None:
    fresh(num_cpus=2)
    assert meshray.get([meshray.remote(os.getpid).remote() for _ in range(4)], timeout=50)
    files = wait_until(lambda: list(Path(root).rglob("data.mdb")), what="a data file")
    for path in files:
        assert len(holders(root, path)) == 1, f"{path} is open in several processes"
        assert path.stat().st_mode & 0o077 == 0
        assert path.parent.stat().st_mode & 0o777 == 0o700
