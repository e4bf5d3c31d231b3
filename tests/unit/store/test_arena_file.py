"""The real file, small: populated before it is written, pinned until the last buffer is gone."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
import textwrap
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from meshray import config
from meshray.store import arena_file
from meshray.store.arena_file import ArenaFile

SIZE = 8 * config.MIB


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[ArenaFile]:
    file = ArenaFile.create(str(tmp_path / "arena"), SIZE)
    yield file
    file.close()
    file.unlink()


def test_one_process_writes_and_another_mapping_reads(arena: ArenaFile) -> None:
    other = ArenaFile.open(arena.path)
    small, large = b"small", os.urandom(config.COPY_UNLOCKED_BYTES + 1)
    assert arena.write(64, small) == len(small)
    assert arena.write(config.MIB, large) == len(large)
    assert other.view(64, len(small)) == small
    assert other.view(config.MIB, len(large)) == large
    other.close()


@pytest.mark.parametrize("size", [100, config.COPY_UNLOCKED_BYTES * 2])
@pytest.mark.parametrize("make", [bytes, bytearray, lambda b: memoryview(b)[3:], lambda b: np.frombuffer(b, "u2")])
def test_every_kind_of_buffer_is_copied(arena: ArenaFile, size: int, make: object) -> None:
    data = make(os.urandom(size))  # type: ignore[operator]
    count = arena.write(128, data)
    assert arena.view(128, count) == memoryview(data).cast("B")


def test_the_file_is_private_new_and_sparse(arena: ArenaFile) -> None:
    status = os.stat(arena.path)
    assert status.st_mode & 0o777 == 0o600
    assert status.st_blocks * 512 < config.MIB
    with pytest.raises(FileExistsError):
        ArenaFile.create(arena.path, SIZE)


def test_a_file_that_others_may_write_is_not_opened(arena: ArenaFile) -> None:
    os.chmod(arena.path, 0o666)
    with pytest.raises(PermissionError):
        ArenaFile.open(arena.path)


def test_populate_does_each_block_once(arena: ArenaFile) -> None:
    block = config.POPULATE_BLOCK_BYTES
    assert arena.populate(block // 2, block) == 2 * block
    assert arena.populate(0, 4 * block) == 2 * block
    assert arena.populate(0, SIZE) == SIZE - 4 * block
    assert arena.populate(0, SIZE) == 0


def test_ranges_outside_the_arena_are_refused(arena: ArenaFile) -> None:
    for offset, size in ((-1, 10), (SIZE - 5, 10), (0, SIZE + 1)):
        with pytest.raises(ValueError, match="leaves the arena"):
            arena.view(offset, size)
        with pytest.raises(ValueError, match="leaves the arena"):
            arena.pin(offset, size, print)
        with pytest.raises(ValueError, match="leaves the arena"):
            arena.populate(offset, size)


def test_a_pin_is_released_once_when_the_last_derived_buffer_is_gone(arena: ArenaFile) -> None:
    arena.write(4096, bytes(range(64)))
    released: deque[str] = deque()
    view = arena.pin(4096, 64, lambda mark: released.append("gone"))
    array = np.frombuffer(view[8:][8:], dtype="u8")
    part = array[1:]
    del view, array
    gc.collect()
    assert not released
    assert part.view("u1")[0] == 24
    del part
    gc.collect()
    assert list(released) == ["gone"]


def test_a_pin_in_a_reference_cycle_is_released_by_the_collector(arena: ArenaFile) -> None:
    released: deque[int] = deque()
    cycle: list[object] = [arena.pin(0, 64, released.append, 1)]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert list(released) == [1]


def test_pinned_views_are_read_only(arena: ArenaFile) -> None:
    view = arena.pin(0, 64, id)
    assert view.readonly and not np.frombuffer(view, "u1").flags.writeable
    with pytest.raises(TypeError):
        view[0] = 1


def test_a_pinned_view_outlives_close_and_unlink(tmp_path: Path) -> None:
    file = ArenaFile.create(str(tmp_path / "arena"), SIZE)
    file.write(0, b"still here")
    view = file.pin(0, 10, id)
    file.close()
    file.unlink()
    file.unlink()
    assert view == b"still here"
    array = np.frombuffer(view, "u1")
    del view
    assert file.path in Path("/proc/self/maps").read_text() and array[0] == ord("s")
    del array
    assert file.path not in Path("/proc/self/maps").read_text(), "the mapping goes with the last view"


def test_a_kernel_without_populate_falls_back_to_fallocate(arena: ArenaFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena_file, "_MADV_POPULATE_WRITE", 9999)
    arena.write(0, b"x")
    assert os.stat(arena.path).st_blocks * 512 >= config.POPULATE_BLOCK_BYTES


def test_a_full_file_system_is_an_error_and_not_a_signal(tmp_path: Path) -> None:
    # In a child with a mount namespace of its own, so that nothing stays mounted whatever happens.
    program = textwrap.dedent(
        """
        import errno, sys
        from meshray.store.arena_file import ArenaFile
        file = ArenaFile.create(sys.argv[1] + "/arena", 64 << 20)
        file.write(0, b"a" * (1 << 20))
        try:
            file.write(0, b"b" * (32 << 20))
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
            print("refused:", error)
        file.write(0, b"c" * (1 << 20))
        """
    )
    mount = f"mount -t tmpfs -o size=4m none {tmp_path} && exec {sys.executable} -c \"$1\" {tmp_path}"
    command = ["unshare", "-m", "sh", "-c", mount, "sh", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if "mount:" in done.stderr or "unshare:" in done.stderr:
        pytest.skip(f"cannot mount a small tmpfs here: {done.stderr.strip()}")
    assert done.returncode == 0, f"exit {done.returncode} (SIGBUS is -7): {done.stderr}"
    assert done.stdout.startswith("refused:") and os.strerror(errno.ENOSPC) in done.stdout
