"""The three machines as one: what goes where."""

from __future__ import annotations

from meshray import config
from meshray.machine import Received, Send, Tick
from meshray.messages import objects
from meshray.messages.objects import (
    ExtentGranted,
    ObjectsFreed,
    ObjectsSealed,
    RequestExtent,
    RequestManifest,
    Sealed,
    SurplusWanted,
)
from meshray.store.events import ObjectDigested, Revoke
from meshray.store.service import ACCEPTS, StoreService


def service() -> StoreService:
    return StoreService(64 * config.MIB, "here", resolve_node=lambda name: None, nodes=tuple, bulk=str,
                        draw=lambda below: 0, entropy=bytes)


def test_every_message_that_is_sent_to_a_node_about_the_arena_is_accepted() -> None:
    to_sessions_or_owners = {
        "HoldObjects", "HoldsRegistered", "ReleaseObjects", "ResolveObjects", "ObjectResolved", "ExtentGranted",
        "ExtentRefused", "RangesFreed", "ObjectFetched", "FetchFailed", "HoldersDied", "SurplusWanted",
    }  # fmt: skip
    assert {kind.__name__ for kind in objects.MESSAGES} >= {kind.__name__ for kind in ACCEPTS}
    assert not {kind.__name__ for kind in ACCEPTS} & to_sessions_or_owners


def test_what_is_freed_here_is_freed_where_it_was_copied_to() -> None:
    store = service()
    (granted,) = store.handle(Received(b"s", RequestExtent(1, 0)), 1)
    assert isinstance(granted.message, ExtentGranted)
    store.handle(Received(b"s", ObjectsSealed([Sealed(b"x", 0, 10, "driver"), Sealed(b"y", 64, 10, "other")])), 1)
    store.handle(Received(b"peer", RequestManifest(b"x")), 1)
    store.handle(ObjectDigested(b"x", 0, bytes(32)), 1)
    freed = store.handle(Received(b"", ObjectsFreed(store.directory.objects_of("driver"))), 2)
    assert freed == [Revoke([b"x"]), Send(b"peer", ObjectsFreed([b"x"])), Send(b"s", objects.RangesFreed([(0, 10)]))]
    assert store.statistics()["sealed"] == 1
    store.check()


def test_events_of_others_are_left_alone_and_nothing_is_due() -> None:
    store = service()
    assert store.handle(Received(b"s", SurplusWanted()), 1) == [] and store.handle("anything", 1) == []
    assert store.deadline_ns() is None and store.handle(Tick(), 5) == []


def test_a_free_that_comes_twice_from_peers_is_not_held_against_the_object_when_it_is_made_again() -> None:
    store = service()
    store.handle(Received(b"s", RequestExtent(1, 0)), 1)
    sealed = Received(b"s", ObjectsSealed([Sealed(b"x", 0, 10, "driver")]))
    store.handle(sealed, 1)
    for route in (b">peer", b">other"):
        store.handle(Received(route, ObjectsFreed([b"x"])), 2)
    store.handle(sealed, 3)
    assert store.directory.lookup(b"x") is not None and store.statistics()["early_frees"] == 0
