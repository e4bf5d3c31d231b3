"""Chunks on disk: shared, counted, verified, and refused with numbers."""

from __future__ import annotations

import errno
import os
import random
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from meshray import config
from meshray.store import spill_files
from meshray.store.manifest import DIGEST_BYTES, digests_of
from meshray.store.spill_files import SpillFiles, remove_leftovers

CHUNK = config.CHUNK_BYTES
DATA = random.Random(1).randbytes(2 * CHUNK + 1000)


@pytest.fixture
def files(tmp_path: Path) -> Iterator[SpillFiles]:
    opened = SpillFiles(str(tmp_path / "disk" / "node"))
    yield opened
    opened.close()


def on_disk(files: SpillFiles) -> list[Path]:
    return [path for path in Path(files.directory).rglob("*") if path.is_file() and not path.name.startswith(".")]


def joined(files: SpillFiles, digests: bytes) -> bytes:
    return b"".join(files.read(digests[at : at + DIGEST_BYTES]) for at in range(0, len(digests), DIGEST_BYTES))


def test_what_was_written_is_read_back(files: SpillFiles) -> None:
    digests = files.write(memoryview(DATA))
    assert digests == digests_of(memoryview(DATA))
    assert joined(files, digests) == DATA
    assert files.statistics() == {"chunks": 3, "disk_bytes": len(DATA)}


def test_equal_chunks_are_one_file_until_the_last_object_goes(files: SpillFiles) -> None:
    other = DATA[:CHUNK] + b"else"
    first, second = files.write(memoryview(DATA)), files.write(memoryview(other))
    assert len(on_disk(files)) == 4 and files.statistics()["disk_bytes"] == len(DATA) + 4
    files.drop(first)
    assert joined(files, second) == other
    files.drop(second)
    assert on_disk(files) == [] and files.statistics() == {"chunks": 0, "disk_bytes": 0}
    repeated = files.write(memoryview(bytes(3 * CHUNK)))
    assert len(on_disk(files)) == 1
    files.drop(repeated)
    assert on_disk(files) == []


def test_files_are_this_user_s_alone(files: SpillFiles) -> None:
    files.write(memoryview(DATA))
    for path in [Path(files.directory), *Path(files.directory).rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_damaged_file_is_an_error_and_never_data(files: SpillFiles) -> None:
    digest = files.write(memoryview(DATA))[:DIGEST_BYTES]
    path = next(path for path in on_disk(files) if path.name == digest.hex())
    for content, wrong in ((b"\x00" + DATA[1:CHUNK], "damaged"), (DATA[: CHUNK - 1], "damaged"), (b"", "damaged")):
        path.write_bytes(content)
        with pytest.raises(OSError, match=wrong):
            files.read(digest)
    path.unlink()
    with pytest.raises(OSError, match="cannot be read: No such file"):
        files.read(digest)


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """The kernel refuses to write files beyond this size (Python ignores SIGXFSZ)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_fails_leaves_nothing_and_works_again_later(files: SpillFiles) -> None:
    kept = files.write(memoryview(DATA[:100]))
    refused = r"cannot spill to .*: File too large \(need 1 MiB, free "
    with largest_file(CHUNK // 2), pytest.raises(OSError, match=refused):
        files.write(memoryview(DATA))
    assert len(on_disk(files)) == 1 and files.statistics()["chunks"] == 1
    assert joined(files, files.write(memoryview(DATA))) == DATA
    assert joined(files, kept) == DATA[:100]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("call", ["write", "rename"])
def test_a_disk_that_fails_in_the_middle(files: SpillFiles, monkeypatch: pytest.MonkeyPatch, call: str, number: int
                                         ) -> None:
    calls: list[int] = []
    original = getattr(os, call)

    def failing(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise OSError(number, os.strerror(number))
        return original(*arguments)

    monkeypatch.setattr(spill_files.os, call, failing)
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        files.write(memoryview(DATA))
    assert caught.value.errno == number
    monkeypatch.undo()
    assert on_disk(files) == []
    assert joined(files, files.write(memoryview(DATA))) == DATA


def test_the_limit_is_kept(tmp_path: Path) -> None:
    files = SpillFiles(str(tmp_path / "node"), 2 * CHUNK)
    first = files.write(memoryview(bytes(CHUNK)))
    with pytest.raises(OSError, match="need 1 MiB, 2 MiB of spill_max 2 MiB are in use"):
        files.write(memoryview(DATA))
    assert files.statistics()["disk_bytes"] == CHUNK
    files.drop(first)
    files.close()


def test_space_is_left_for_others(files: SpillFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs(files.directory)

    class Full:
        f_bavail, f_blocks, f_frsize = real.f_blocks // config.SPILL_FREE_SHARE, real.f_blocks, real.f_frsize

    monkeypatch.setattr(spill_files.os, "statvfs", lambda path: Full)
    with pytest.raises(OSError, match="No space left on device"):
        files.write(memoryview(DATA))
    assert on_disk(files) == []


def test_leftovers_of_dead_nodes_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    living = SpillFiles(str(tmp_path / "living"))
    living.write(memoryview(DATA))
    dead = SpillFiles(str(tmp_path / "dead"))
    dead.write(memoryview(DATA))
    os.close(dead._guard)
    (tmp_path / "stranger").mkdir()
    remove_leftovers(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["living", "stranger"]
    again = SpillFiles(str(tmp_path / "dead"))
    assert again.statistics()["chunks"] == 0
    for files in (living, again):
        files.close()
        files.close()
    assert [path.name for path in tmp_path.iterdir()] == ["stranger"]


def test_a_new_directory_that_another_node_took_for_a_leftover_is_made_again(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill_files, "_PAUSE_S", 0)
    real, times = spill_files._take_lock, []

    def removed_meanwhile(directory: str) -> int:
        times.append(directory)
        guard = real(directory)
        if len(times) == 1:
            spill_files.shutil.rmtree(directory)
        return guard

    monkeypatch.setattr(spill_files, "_take_lock", removed_meanwhile)
    files = SpillFiles(str(tmp_path / "node"))
    assert len(times) == 2
    files.write(memoryview(DATA))
    files.close()


def test_a_directory_in_use_or_open_to_others_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill_files, "_PAUSE_S", 0)
    files = SpillFiles(str(tmp_path / "node"))
    with pytest.raises(OSError, match="another node spills into this directory"):
        SpillFiles(files.directory)
    files.close()
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(PermissionError, match="mode 0700"):
        SpillFiles(str(tmp_path / "open"))
