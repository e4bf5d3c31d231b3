"""Objects whose owner died: kept for those who read them, freed when nobody does."""

from __future__ import annotations

from meshray import config
from meshray.machine import Received
from meshray.messages.objects import ExtentGranted, HoldersDied, ObjectsSealed, RequestExtent, Sealed
from meshray.processes.orphans import Orphans
from meshray.store.directory import ArenaDirectory

OWNER = "ipc:///run/owner"


def orphans() -> Orphans:
    """Two objects of the owner, one of another process."""
    directory = ArenaDirectory(config.MIB, "node")
    (granted,) = directory.handle(Received(b"s", RequestExtent(1, 0)), 1)
    assert isinstance(granted.message, ExtentGranted)
    sealed = [Sealed(b"x", 0, 10, OWNER), Sealed(b"y", 64, 10, OWNER), Sealed(b"z", 128, 10, "ipc:///run/other")]
    directory.handle(Received(b"s", ObjectsSealed(sealed)), 1)
    return Orphans(directory)


def ask(book: Orphans, sessions: list[str]) -> int:
    message = book.died(HoldersDied(["owner"]), 1)
    assert message.cookie
    assert book.asked(message, sessions) == []
    return message.cookie


def test_without_sessions_everything_of_a_dead_owner_is_free() -> None:
    book = orphans()
    message = book.died(HoldersDied([], ("ipc:///run",)), 1)
    assert sorted(book.asked(message, [])) == [b"x", b"y", b"z"]


def test_who_owned_nothing_leaves_nothing_to_ask() -> None:
    assert orphans().died(HoldersDied(["nobody"]), 1).cookie == 0


def test_what_is_read_stays_until_its_last_reader_lets_go() -> None:
    book = orphans()
    cookie = ask(book, ["a", "b"])
    assert book.answered("a", cookie, [b"x", b"z"]) == []
    assert book.may_free("elsewhere", [b"x", b"q"]) == [b"q"], "somebody may yet say that it reads this"
    assert book.answered("b", cookie, [b"x"]) == [b"y"]
    assert book.may_free("elsewhere", [b"x"]) == []
    assert book.may_free("a", [b"x"]) == []
    assert book.may_free("b", [b"x"]) == [b"x"]


def test_sessions_that_end_read_nothing() -> None:
    book = orphans()
    cookie = ask(book, ["a", "b"])
    book.answered("a", cookie, [b"x"])
    assert book.session_gone("b") == [b"y"]
    assert book.session_gone("a") == [b"x"]


def test_a_reader_that_ends_before_all_have_answered_is_forgotten() -> None:
    book = orphans()
    cookie = ask(book, ["a", "b"])
    book.answered("a", cookie, [b"x"])
    assert book.session_gone("a") == []
    assert sorted(book.answered("b", cookie, [])) == [b"x", b"y"]


def test_a_reader_may_pass_its_object_on() -> None:
    book = orphans()
    book.answered("a", ask(book, ["a"]), [b"x"])
    book.answered("c", 0, [b"x"])
    assert book.may_free("a", [b"x"]) == []
    assert book.may_free("c", [b"x"]) == [b"x"]


def test_dead_owners_are_looked_for_again() -> None:
    book = orphans()
    book.answered("a", ask(book, ["a"]), [b"x", b"y"])
    due_ns = book.deadline_ns()
    assert due_ns is not None and due_ns > 1
    assert book.tick(due_ns) == [], "what is read needs no second question"
    book.may_free("a", [b"x"])
    due_ns = book.deadline_ns()
    assert due_ns is not None
    (again,) = book.tick(due_ns)
    assert book.asked(again, []) == [b"x"], "it is still there, as if it had been sealed late"
