"""The node's book of the arena, event by event."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from meshray import config
from meshray.machine import Received, Send, Tick, Undeliverable
from meshray.messages.objects import (
    ExtentGranted,
    ExtentRefused,
    ObjectsFreed,
    ObjectsSealed,
    RangesFreed,
    RequestExtent,
    ReturnExtents,
    Sealed,
    SurplusWanted,
)
from meshray.messages.tasks import Location
from meshray.store.directory import ArenaDirectory
from meshray.store.events import SessionGone

MIB = config.MIB
A, B = b"worker-a", b"worker-b"


class Book:
    """A directory with a clock and checks after every event."""

    def __init__(self, capacity_bytes: int = 64 * MIB) -> None:
        self.directory = ArenaDirectory(capacity_bytes, "node-1")
        self.now_ns = 1

    def tell(self, route: bytes, message: Any) -> list[Any]:
        return self.event(Received(route, message))

    def event(self, event: Any) -> list[Any]:
        effects = self.directory.handle(event, self.now_ns)
        self.directory.check()
        return effects

    def lease(self, route: bytes, size_bytes: int = 1, cookie: int = 0) -> ExtentGranted:
        (effect,) = self.tell(route, RequestExtent(size_bytes, cookie))
        assert effect.to == route and isinstance(effect.message, ExtentGranted)
        return effect.message

    def seal(self, route: bytes, name: bytes, offset: int, size_bytes: int = 1000) -> list[Any]:
        return self.tell(route, ObjectsSealed([Sealed(name, offset, size_bytes, "owner")]))

    def free(self, route: bytes, *names: bytes) -> list[Any]:
        return self.tell(route, ObjectsFreed(list(names)))

    def end(self, route: bytes) -> None:
        assert self.event(SessionGone(route.decode(), route)) == []
        self.now_ns += config.EXTENT_LINGER_NS
        self.event(Tick())


def test_extents_are_disjoint_and_small_enough_for_a_small_arena() -> None:
    book = Book()
    first, second = book.lease(A), book.lease(B, cookie=7)
    assert (first.offset, first.size_bytes, second.cookie) == (0, 4 * MIB, 7)
    assert second.offset == 4 * MIB
    assert book.lease(A, 10 * MIB + 1).size_bytes == 11 * MIB


def test_returned_extents_are_handed_out_first_and_known_to_be_touched() -> None:
    book = Book()
    first = book.lease(A)
    assert first.populated_bytes == 0
    book.tell(A, ReturnExtents([first.offset]))
    again = book.lease(B)
    assert (again.offset, again.populated_bytes) == (first.offset, first.size_bytes)


def test_a_sealed_object_is_found_until_it_is_freed() -> None:
    book = Book()
    book.lease(A)
    book.seal(A, b"x", 128)
    assert book.directory.lookup(b"x") == Location("node-1", 128, 1000)
    assert book.directory.describe(5)[0]["owner"] == "owner" and book.directory.objects_of("owner") == [b"x"]
    assert book.free(A, b"x") == [Send(A, RangesFreed([(128, 1000)]))], "what is sealed is the node's to give back"
    assert book.directory.lookup(b"x") is None


def test_ranges_that_others_free_go_back_to_the_lessee() -> None:
    book = Book()
    book.lease(A)
    book.seal(A, b"x", 128)
    book.seal(A, b"y", 2048)
    assert book.free(B, b"x", b"y") == [Send(A, RangesFreed([(128, 1000), (2048, 1000)]))]


def test_a_free_that_overtakes_the_seal_is_remembered_for_a_while() -> None:
    book = Book()
    book.lease(A)
    assert book.free(B, b"x") == []
    assert book.seal(A, b"x", 128) == [Send(A, RangesFreed([(128, 1000)]))]
    assert book.directory.lookup(b"x") is None
    book.free(A, b"own")
    assert book.seal(A, b"own", 128) == [Send(A, RangesFreed([(128, 1000)]))]
    book.free(B, b"y")
    assert book.directory.deadline_ns() is not None
    book.now_ns += config.EARLY_FREE_NS
    book.event(Tick())
    book.seal(A, b"y", 128)
    assert book.directory.lookup(b"y") is not None


def test_an_object_sealed_again_elsewhere_replaces_the_first() -> None:
    book = Book()
    book.lease(A)
    other = book.lease(B)
    book.seal(A, b"x", 128)
    assert book.seal(A, b"x", 128) == []
    assert book.seal(B, b"x", other.offset) == [Send(A, RangesFreed([(128, 1000)]))]
    assert book.directory.lookup(b"x") == Location("node-1", other.offset, 1000)


def test_objects_outlive_their_maker_and_the_rest_of_its_extents_does_not() -> None:
    book = Book()
    extent = book.lease(A)
    book.seal(A, b"x", 2 * MIB)
    book.end(A)
    assert book.directory.lookup(b"x") is not None
    assert book.directory.statistics()["used_bytes"] == 1024
    assert book.free(B, b"x") == []
    assert book.directory.statistics()["used_bytes"] == 0
    assert book.lease(B).offset == extent.offset


def test_the_last_seal_notices_of_a_dead_process_count() -> None:
    book = Book()
    book.lease(A)
    book.event(SessionGone("worker-a", A))
    book.event(Tick())
    book.seal(A, b"x", 128)
    assert book.free(B, b"nothing") == []
    book.now_ns += config.EXTENT_LINGER_NS
    book.event(Tick())
    assert book.directory.lookup(b"x") is not None and book.directory.statistics()["extents"] == 0


def test_an_extent_granted_to_nobody_is_free_again() -> None:
    book = Book()
    granted = book.lease(A)
    book.event(Undeliverable(A, granted))
    assert book.directory.statistics()["used_bytes"] == 0


def test_what_can_never_fit_is_refused_at_once() -> None:
    book = Book(16 * MIB)
    (effect,) = book.tell(A, RequestExtent(17 * MIB, 3))
    assert effect == Send(A, ExtentRefused(3, 17 * MIB, 16 * MIB, 0, 16 * MIB))


def test_a_full_arena_asks_for_surplus_and_grants_when_it_comes() -> None:
    book = Book(16 * MIB)
    extent = book.lease(A, 10 * MIB)
    answers = book.tell(B, RequestExtent(12 * MIB, 9))
    assert answers == [Send(B, ExtentRefused(9, 12 * MIB, 6 * MIB, 10 * MIB, 16 * MIB, True)), Send(A, SurplusWanted())]
    assert book.tell(B, RequestExtent(12 * MIB, 9)) == []
    (granted,) = book.tell(A, ReturnExtents([extent.offset]))
    assert granted.to == B and isinstance(granted.message, ExtentGranted) and granted.message.cookie == 9


def test_a_full_arena_refuses_after_the_wait_with_the_numbers() -> None:
    book = Book(16 * MIB)
    book.lease(A, 10 * MIB)
    book.tell(B, RequestExtent(12 * MIB, 9))
    assert book.directory.deadline_ns() == book.now_ns + config.EXTENT_WAIT_NS
    book.now_ns += config.EXTENT_WAIT_NS
    assert book.event(Tick()) == [Send(B, ExtentRefused(9, 12 * MIB, 6 * MIB, 10 * MIB, 16 * MIB))]
    assert book.directory.deadline_ns() is None


def test_notices_about_what_a_session_does_not_lease_change_nothing() -> None:
    book = Book()
    extent = book.lease(A)
    book.seal(A, b"x", 128)
    end = extent.size_bytes
    for offset, size in ((128, 64), (1024, 64), (end - 64, 128), (70, 64), (0, 0), (-64, 64), (1 << 40, 1)):
        book.seal(A, b"bad", offset, size)
    book.seal(B, b"bad", 4096)
    book.tell(B, ReturnExtents([extent.offset, 5]))
    assert book.directory.lookup(b"bad") is None
    assert book.directory.statistics()["ignored"] == 10


names = st.sampled_from([b"o%d" % index for index in range(6)])
routes = st.sampled_from([A, B])
scripts = st.lists(
    st.one_of(
        st.tuples(st.just("lease"), routes, st.integers(1, 9)),
        st.tuples(st.just("seal"), routes, names, st.integers(0, 255), st.integers(1, 3000)),
        st.tuples(st.just("free"), routes, names),
        st.tuples(st.just("return"), routes, st.integers(0, 15)),
        st.tuples(st.just("gone"), routes),
        st.tuples(st.just("pull"), names, st.integers(1, 5)),
        st.tuples(st.just("tick"), st.integers(1, 4 * config.SECOND_NS)),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(scripts)
def test_no_sequence_of_events_breaks_the_invariants(script: list[tuple[Any, ...]]) -> None:
    book = Book(16 * MIB)
    for step in script:
        match step:
            case "lease", route, size:
                book.tell(route, RequestExtent(size * MIB, size))
            case "seal", route, name, place, size:
                book.seal(route, name, place * 65536, size)
            case "free", route, name:
                book.free(route, name)
            case "return", route, place:
                book.tell(route, ReturnExtents([place * MIB]))
            case "gone", route:
                book.event(SessionGone("", route))
            case "pull", name, size:
                offset = book.directory.reserve(size * MIB)
                if offset is not None:
                    book.directory.adopt(Sealed(name, offset, size * MIB))
            case "tick", elapsed:
                book.now_ns += elapsed
                book.event(Tick())
    for route in (A, B):
        book.end(route)
    book.free(B, *(b"o%d" % index for index in range(6)))
    assert book.directory.statistics()["used_bytes"] == 0
