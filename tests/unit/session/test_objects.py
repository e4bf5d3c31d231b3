"""Stored values: what the node is told, and when memory is free again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from meshray import config, failures
from meshray.errors import ObjectLostError, ObjectStoreFullError
from meshray.messages.objects import (
    ExtentRefused,
    FetchFailed,
    FetchObject,
    ObjectFetched,
    ObjectsFreed,
    ObjectsSealed,
    Sealed,
)
from meshray.messages.tasks import Location, Value
from meshray.object_ref import DATA, FAILED, STORED, ObjectRef
from meshray.session.objects import ARGUMENTS_RETURN
from meshray.session.values import fill
from meshray.store import layout
from tests.unit.session.fake_session import PREFIX, FakeSession

LARGE = b"v" * (config.INLINE_BYTES_MAX + 1)


def put(session: FakeSession, value: Any, index: int = 1) -> ObjectRef:
    ref = ObjectRef(_prefix=PREFIX, _index=index)
    session.objects.put(ref, value)
    return ref


def test_small_values_stay_here_and_large_ones_go_to_the_arena() -> None:
    session = FakeSession()
    small, large = put(session, [1, 2]), put(session, LARGE, 2)
    assert (small._state, large._state) == (DATA, STORED)
    assert session.objects.read(small) == [1, 2]
    assert len(session.arena.mine) == 1


def test_what_lives_shortly_is_freed_without_a_word_to_the_node() -> None:
    session = FakeSession()
    ref = put(session, LARGE)
    session.objects.flush(0)
    del ref
    session.told.clear()
    other = put(session, LARGE, 2)
    del other
    session.objects.free_dropped()
    session.objects.send_freed()
    assert len(session.arena.mine) == 1, "the first is the node's now, which says when its range is free"
    assert [type(message) for message in session.told] == [ObjectsFreed], "the first outlived a flush"


def test_an_object_that_stays_is_sealed_once() -> None:
    session = FakeSession()
    ref = put(session, LARGE)
    location = ref._value.location
    for now_ns in (config.LINEAGE_FLUSH_NS, 2 * config.LINEAGE_FLUSH_NS):
        session.objects.flush(now_ns)
    session.references.info_of(ref)
    assert session.take_sent(ObjectsSealed) == [
        ObjectsSealed([Sealed(ref.binary(), location.offset, location.size_bytes, "ipc://me")])]


def test_an_object_that_is_published_is_sealed_at_once() -> None:
    session = FakeSession()
    ref = put(session, LARGE)
    session.references.info_of(ref)
    session.objects.flush(config.LINEAGE_FLUSH_NS)
    assert len(session.take_sent(ObjectsSealed)) == 1


def test_an_own_object_on_another_node_is_freed_there() -> None:
    session = FakeSession()
    ref = ObjectRef(_prefix=PREFIX, _index=1)
    identity = ref.binary()
    session.references.take(ref, Value(None, Location("node-2", 64, 100)), owned=True)
    del ref
    session.objects.free_dropped()
    assert session.told == [], "the news waits for others"
    session.objects.send_freed()
    assert session.told == [ObjectsFreed([identity], "node-2")]
    assert not session.objects.waiting


def test_news_of_many_freed_bytes_does_not_wait() -> None:
    session = FakeSession()
    ref = ObjectRef(_prefix=PREFIX, _index=1)
    large = Location("node-2", 64, config.FREED_BYTES_MAX + 1)
    session.references.take(ref, Value(None, large), owned=True)
    del ref
    session.objects.free_dropped()
    assert len(session.take_sent(ObjectsFreed)) == 1


def test_a_borrowed_object_is_not_freed_by_its_borrower() -> None:
    session = FakeSession()
    ref = session.references.restore(b"x" * 18, "other", "ipc://other")
    fill(ref, Value(None, Location("node-1", 64, 100)), None)
    del ref
    session.objects.free_dropped()
    session.objects.send_freed()
    assert session.told == []


def test_the_arguments_of_a_task_are_an_object_with_a_name_of_its_own() -> None:
    session = FakeSession()
    task, = session.new_tasks(session.new_class(), 1)
    blob = session.objects.blob(task, SimpleNamespace(data=LARGE, buffers=[]))  # type: ignore[arg-type]
    task.pins = [blob]
    task.blob = session.references.value_of(blob)
    assert int.from_bytes(blob.binary()[-2:], "big") == ARGUMENTS_RETURN
    assert session.references.entry_of(task, "node-1").args_location == blob._value.location
    assert session.take_sent(ObjectsSealed) == [], "a worker of the own node finds it by its place"
    for _ in range(2):
        session.references.entry_of(task, "node-2")
    assert len(session.take_sent(ObjectsSealed)) == 1, "another node asks ours for it by name"


def remote(session: FakeSession) -> ObjectRef:
    ref = ObjectRef(_prefix=PREFIX, _index=1)
    session.references.take(ref, Value(None, Location("node-2", 64, 100)), owned=True)
    return ref


def test_a_remote_object_is_fetched_once_and_read_from_the_own_arena(monkeypatch: Any) -> None:
    session: Any = FakeSession()
    ref = remote(session)
    monkeypatch.setattr(layout, "parse", lambda view: (b"", []))
    session.happens.append(lambda: session.objects.on_fetched(ObjectFetched(ref.binary(), Location("node-1", 0, 100))))
    session.objects._view(ref)
    assert session.told == [FetchObject(ref.binary(), Location("node-2", 64, 100), "ipc://me")]
    assert session.pins.pinned == [(0, 100)]
    assert ref._value.location.node == "node-2", "the first copy is the one that is freed"


def test_a_remote_object_that_cannot_be_had_is_lost() -> None:
    session = FakeSession()
    ref = remote(session)
    session.happens.append(lambda: session.objects.on_fetch_failed(FetchFailed(ref.binary(), "its node is gone")))
    try:
        session.objects.read(ref)
    except ObjectLostError as error:
        assert "its node is gone" in str(error)
    else:
        raise AssertionError("reading a lost object must raise")
    assert ref._state == FAILED
    assert isinstance(failures.decode(ref._value), ObjectLostError)


def test_an_object_that_was_moved_is_asked_for_and_read_where_it_is(monkeypatch: Any) -> None:
    session: Any = FakeSession()
    ref = put(session, LARGE)
    session.references.info_of(ref)
    session.pins.now = 1
    monkeypatch.setattr(layout, "parse", lambda view: (b"", []))
    for offset, generation in ((640, 0), (1280, 1)):
        moved = ObjectFetched(ref.binary(), Location("node-1", offset, 100, generation))
        session.happens.append(lambda moved=moved: session.objects.on_fetched(moved))
    session.objects._view(ref)
    assert len(session.take_sent(FetchObject)) == 2, "it was moved again before it could be pinned"
    assert session.pins.pinned == [(1280, 100)]


def test_what_the_node_does_not_know_is_read_although_a_neighbour_was_moved(monkeypatch: Any) -> None:
    session: Any = FakeSession()
    ref = put(session, LARGE)
    session.pins.now = 1
    monkeypatch.setattr(layout, "parse", lambda view: (b"", []))
    session.objects._view(ref)
    assert session.take_sent(FetchObject) == [] and len(session.pins.pinned) == 1
    assert ref._value.location.generation == 1


def test_a_store_without_room_for_a_spilled_object_is_an_error_for_now() -> None:
    session: Any = FakeSession()
    ref = remote(session)
    full = ExtentRefused(0, 100, 10, 90, 100, False, 90, 1000, "the disk is full")
    session.happens.append(lambda: session.objects.on_fetch_failed(FetchFailed(ref.binary(), "full", refused=full)))
    with pytest.raises(ObjectStoreFullError, match=r"pinned 90 B, on disk 1000 B.*the disk is full") as caught:
        session.objects.read(ref)
    assert (caught.value.need_bytes, caught.value.spilled_bytes) == (100, 1000)
    assert ref._state == STORED, "the next get asks again"
