"""The node's second thread, with a real small arena."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshray import config
from meshray.store.arena_file import ArenaFile
from meshray.store.background import Background, hash_together
from meshray.store.events import DigestObject, ObjectDigested, PopulateRange, RangePopulated
from meshray.store.manifest import digests_of


@pytest.fixture
def background(tmp_path: Path) -> Iterator[tuple[Background, ArenaFile]]:
    file = ArenaFile.create(str(tmp_path / "arena"), 4 * config.MIB)
    work = Background(file)
    yield work, file
    work.close()
    file.close()


def test_work_comes_back_as_events_that_wake_the_host(background: tuple[Background, ArenaFile]) -> None:
    work, file = background
    data = os.urandom(config.MIB + 9)
    file.write(64, data)
    assert work.drain() == ()
    work.submit(DigestObject(b"x", 64, len(data)))
    work.submit(PopulateRange(b"y", 2 * config.MIB, config.MIB))
    found: list[object] = []
    while len(found) < 2:
        assert select.select([work.fd], [], [], 30)[0], "the second thread never answered"
        found += work.drain()
    assert found == [ObjectDigested(b"x", 64, digests_of(memoryview(data))), RangePopulated(b"y", 2 * config.MIB)]
    assert file.populate(2 * config.MIB, config.MIB) == 0
    assert not select.select([work.fd], [], [], 0)[0]


def test_memory_that_ran_out_is_an_event(
    background: tuple[Background, ArenaFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    work, file = background

    def refuse(offset: int, size_bytes: int) -> int:
        raise OSError(28, "no room")

    monkeypatch.setattr(file, "populate", refuse)
    work.submit(PopulateRange(b"y", 0, 1))
    select.select([work.fd], [], [], 30)
    (event,) = work.drain()
    assert isinstance(event, RangePopulated) and "no room" in event.error


def test_a_thread_that_failed_is_told_to_the_host(
    background: tuple[Background, ArenaFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    work, file = background

    def fail(offset: int, size_bytes: int) -> int:
        raise ValueError("a bug")

    monkeypatch.setattr(file, "populate", fail)
    work.submit(PopulateRange(b"y", 0, 1))
    assert select.select([work.fd], [], [], 30)[0]
    with pytest.raises(RuntimeError, match="background thread"):
        work.drain()


@pytest.mark.parametrize("size_bytes", [0, 1, 16 * config.MIB, 16 * config.MIB + 1, 37 * config.MIB - 5])
def test_digests_are_the_same_however_many_threads_compute_them(
    size_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    view = memoryview(os.urandom(config.MIB) * 37)[:size_bytes]
    assert hash_together(view) == digests_of(view)
