"""Readers and the node at one board: who sees whom."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshray import config
from meshray.store.arena_file import ArenaFile
from meshray.store.pins import PinBoard, Pins, bucket_shift

MIB = config.MIB
SIZE = 64 * MIB


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[ArenaFile]:
    file = ArenaFile.create(str(tmp_path / "arena"), SIZE)
    yield file
    file.close()


class Table:
    """A board, and readers with files of their own as in other processes."""

    def __init__(self, arena: ArenaFile) -> None:
        self.arena = arena
        self.board = PinBoard(arena)

    def reader(self) -> Pins:
        slot = self.board.give_slot()
        return Pins(ArenaFile.open(self.arena.path), slot)


@pytest.fixture
def table(arena: ArenaFile) -> Table:
    return Table(arena)


def test_buckets_are_few_and_small() -> None:
    for capacity in (1, MIB, SIZE, config.GIB, 3 * config.GIB + 5):
        shift = bucket_shift(capacity)
        assert (capacity - 1) >> shift < config.PIN_BUCKETS
        assert shift == 0 or (capacity - 1) >> (shift - 1) >= config.PIN_BUCKETS


def test_a_bucket_is_pinned_as_long_as_a_view_lives(table: Table) -> None:
    reader = table.reader()
    first = reader.view(MIB, 100, 0, None)
    second = reader.view(MIB, 50, 0, None)
    assert first is not None and second is not None
    part = first[10:20]
    del first
    assert table.board.revoke([MIB, 2 * MIB]) == [False, True]
    assert table.board.look()(MIB) == (2, True)
    del second, part
    gc.collect()
    assert table.board.revoke([MIB]) == [True]
    assert table.board.look()(MIB) == (2, False) and table.board.uses(MIB) == 2
    assert reader.statistics() == {"pins": 0}


def test_a_location_that_was_revoked_is_not_read(table: Table) -> None:
    reader = table.reader()
    generation = reader.generation(MIB)
    table.board.revoke([MIB])
    assert reader.view(MIB, 100, generation, None) is None
    assert table.board.look()(MIB)[1] is False, "a reader that came too late pins nothing"
    assert reader.view(MIB, 100, table.board.generation(MIB), None) is not None
    assert reader.view(3 * MIB, 100, 0, None) is not None, "other buckets are as good as before"


def test_a_view_keeps_what_it_is_told_to(table: Table) -> None:
    class Ref:
        gone = False

        def __del__(self) -> None:
            Ref.gone = True

    view = table.reader().view(0, 10, 0, Ref())
    gc.collect()
    assert view is not None and not Ref.gone
    del view
    gc.collect()
    assert Ref.gone


def test_a_range_outside_the_arena_leaves_no_pin(table: Table) -> None:
    reader = table.reader()
    with pytest.raises(ValueError, match="leaves the arena"):
        reader.view(SIZE - 64, 128, 0, None)
    assert table.board.look()(SIZE - 64)[1] is False


def test_pins_of_a_process_that_ended_are_gone(table: Table) -> None:
    dead, alive = table.reader(), table.reader()
    views = [dead.view(MIB, 10, 0, None), alive.view(2 * MIB, 10, 0, None)]
    table.board.clear_slot(1)
    assert table.board.revoke([MIB, 2 * MIB]) == [True, False]
    assert table.board.give_slot() == 1
    del views


def test_a_slot_that_was_left_is_given_again_when_nothing_is_read_there(table: Table) -> None:
    reader = table.reader()
    view = reader.view(MIB, 10, 0, None)
    table.board.leave_slot(1)
    assert table.board.give_slot() == 2
    assert table.board.revoke([MIB]) == [False], "a driver that has left still reads"
    del view
    gc.collect()
    assert table.board.give_slot() == 1


def test_slots_run_out(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "PIN_SLOTS_MAX", 2)
    assert [table.board.give_slot() for _ in range(3)] == [1, 2, 0]


def test_views_that_die_in_a_forked_child_stay_pinned_by_the_parent(table: Table) -> None:
    reader = table.reader()
    view = reader.view(MIB, 10, 0, None)
    pid = os.fork()
    if not pid:
        del view
        gc.collect()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert table.board.revoke([MIB]) == [False]
    assert view is not None


def test_threads_lose_no_count(table: Table) -> None:
    reader = table.reader()

    def read() -> None:
        for _ in range(2000):
            assert reader.view(MIB, 10, 0, None) is not None

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert table.board.look()(MIB) == (8000, False)


def test_a_reader_without_pins_leaves_no_mapping_behind(table: Table) -> None:
    reader = table.reader()
    view = reader.view(MIB, 10, 0, None)
    del view
    reader.close()
    assert table.board.look()(MIB) == (1, False)


def test_the_board_takes_memory_only_where_it_is_used(table: Table) -> None:
    before = os.stat(table.arena.path).st_blocks
    reader = table.reader()
    views = [reader.view(offset, 10, 0, None) for offset in range(0, SIZE, MIB)]
    table.board.look()
    used = (os.stat(table.arena.path).st_blocks - before) * 512
    assert used <= 8 * config.PIN_BUCKETS + 2 * config.PAGE_BYTES, "one session's counters"
    del views
