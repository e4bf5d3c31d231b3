"""The session's side, against a node that is a list of extents."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from meshray import config
from meshray.store.arena_file import ArenaFile
from meshray.store.client import ArenaClient

MIB = config.MIB


class Full(Exception):
    """Stands for ObjectStoreFullError."""


class Node:
    """Grants extents one after the other, up to the arena's size."""

    def __init__(self, capacity_bytes: int, extent_bytes: int = 4 * MIB) -> None:
        self.capacity_bytes = capacity_bytes
        self.extent_bytes = extent_bytes
        self.granted: list[int] = []
        self.next = 0
        self.before_refusal: Callable[[], None] = lambda: None

    def request(self, size_bytes: int) -> tuple[int, int, int]:
        size = max(size_bytes, self.extent_bytes)
        if self.next + size > self.capacity_bytes:
            self.before_refusal()
            raise Full(f"need {size_bytes}")
        offset, self.next = self.next, self.next + size
        self.granted.append(offset)
        return offset, size, 0


@pytest.fixture
def file(tmp_path: Path) -> Iterator[ArenaFile]:
    arena = ArenaFile.create(str(tmp_path / "arena"), 32 * MIB)
    yield arena
    arena.close()


def test_many_objects_share_one_extent_without_asking_again(file: ArenaFile) -> None:
    node = Node(file.size_bytes)
    client = ArenaClient(file, node.request)
    offsets = [client.allocate(1000) for _ in range(100)]
    assert len(set(offsets)) == 100 and node.granted == [0]
    client.check()


def test_a_released_range_is_used_again_at_once(file: ArenaFile) -> None:
    client = ArenaClient(file, Node(file.size_bytes).request)
    first = client.allocate(3 * MIB)
    client.write(first, [(0, b"head"), (64, b"body")])
    assert file.view(first + 64, 4) == b"body"
    assert client.release(first)
    assert client.allocate(3 * MIB) == first


def test_a_range_that_is_not_ours_is_not_released(file: ArenaFile) -> None:
    client = ArenaClient(file, Node(file.size_bytes).request)
    offset = client.allocate(MIB)
    assert not client.release(offset + 64)
    client.ranges_freed([(offset, MIB), (12345, 1)])
    assert client.statistics()["used_bytes"] == 0


def test_a_full_store_raises_what_the_node_said(file: ArenaFile) -> None:
    client = ArenaClient(file, Node(8 * MIB).request)
    client.allocate(6 * MIB)
    with pytest.raises(Full, match="need"):
        client.allocate(6 * MIB)
    client.check()


def test_a_range_freed_while_the_node_refused_is_used(file: ArenaFile) -> None:
    node = Node(8 * MIB)
    client = ArenaClient(file, node.request)
    first = client.allocate(6 * MIB)
    node.before_refusal = lambda: client.ranges_freed([(first, 6 * MIB)])
    assert client.allocate(6 * MIB) == first


def test_empty_extents_are_surplus_beyond_a_reserve(file: ArenaFile) -> None:
    client = ArenaClient(file, Node(file.size_bytes).request)
    offsets = [client.allocate(4 * MIB) for _ in range(3)]
    for offset in offsets[1:]:
        client.release(offset)
    assert client.surplus() == [] and client.surplus() == []
    assert client.surplus(everything=True) == offsets[1:]
    assert client.statistics() == {"leased_bytes": 4 * MIB, "used_bytes": 4 * MIB}


def test_a_range_without_memory_behind_it_is_given_back(file: ArenaFile, monkeypatch: pytest.MonkeyPatch) -> None:
    client = ArenaClient(file, Node(file.size_bytes).request)

    def refuse(offset: int, size_bytes: int) -> int:
        raise OSError(28, "no space")

    monkeypatch.setattr(file, "populate", refuse)
    with pytest.raises(OSError, match="no space"):
        client.allocate(100)
    assert client.statistics()["used_bytes"] == 0


def test_memory_is_populated_ahead_in_proportion_to_what_was_used(file: ArenaFile) -> None:
    client = ArenaClient(file, Node(file.size_bytes, 16 * MIB).request)
    client.allocate(2 * MIB)
    assert [client.populate_ahead() for _ in range(3)] == [MIB, MIB, 0]
    assert file.populate(0, 4 * MIB) == 0
    assert file.populate(4 * MIB, MIB) == MIB


def test_threads_never_get_the_same_range(file: ArenaFile) -> None:
    client = ArenaClient(file, Node(file.size_bytes).request)
    found: list[list[int]] = [[] for _ in range(4)]

    def work(mine: list[int]) -> None:
        for round_ in range(300):
            offset = client.allocate(64 * 1024)
            if round_ % 4:
                client.release(offset)
            else:
                mine.append(offset)

    threads = [threading.Thread(target=work, args=(mine,)) for mine in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    offsets = [offset for mine in found for offset in mine]
    assert len(set(offsets)) == 300
    client.check()
