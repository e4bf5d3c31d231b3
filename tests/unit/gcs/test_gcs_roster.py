"""What a master concludes from what it heard of servers, and what it does not."""

from __future__ import annotations

from typing import Any

from meshray.gcs import limits
from meshray.gcs.roster import Roster
from meshray.messages.chain import Chain, Place, ServerAlive

CHAIN = Chain(6, [Place("a", "ipc://a", "36-36-x")])


def alive(life: str, **what: Any) -> ServerAlive:
    return ServerAlive(0, "a", "ipc://a", life, "idle", 5, 9, **what)


def test_a_later_life_proves_that_an_earlier_one_has_ended() -> None:
    roster = Roster(0)
    roster.heard(b"a", alive("37-37-x"), 0)
    assert roster.is_dead(CHAIN.places[0])
    best = roster.best_returned(CHAIN, 0, 0)
    assert best is not None and best.life == "37-37-x"


def test_a_late_word_of_an_earlier_life_proves_nothing() -> None:
    roster = Roster(0)
    roster.heard(b"a", alive("35-35-x"), 0)
    assert not roster.is_dead(CHAIN.places[0])
    assert roster.best_returned(CHAIN, 0, 0) is None
    roster.heard(b"a", alive("36-36-x"), 1)
    roster.heard(b"a", alive("35-35-x"), 2)
    assert roster.servers["a"].alive.life == "36-36-x"
    assert not roster.is_dead(CHAIN.places[0])


def test_an_earlier_number_is_heard_when_the_later_life_is_silent_and_proves_nothing_of_it() -> None:
    roster = Roster(0)
    roster.heard(b"a", alive("36-36-x"), 0)
    roster.heard(b"a", alive("9-9-y"), limits.SUSPECT_NS + 1)
    assert roster.servers["a"].alive.life == "9-9-y"
    assert not roster.is_dead(CHAIN.places[0])


def test_a_death_is_of_one_life_although_its_pid_comes_again() -> None:
    roster = Roster(0)
    roster.heard(b"a", alive("36-36-x"), 0)
    roster.died("a", 36)
    assert roster.is_dead(CHAIN.places[0])
    roster.heard(b"a", alive("36-36-x"), 1)
    assert roster.servers["a"].heard_ns == 0
    roster.heard(b"a", alive("36-40-y"), 2)
    assert roster.servers["a"].heard_ns == 2
    assert not roster.is_dead(Place("a", "ipc://a", "36-40-y"))


def test_a_death_may_be_told_before_the_life_was_heard_of() -> None:
    roster = Roster(0)
    roster.died("a", 36)
    assert roster.is_dead(CHAIN.places[0])
    roster.heard(b"a", alive("36-36-x"), 1)
    assert not roster.servers and roster.is_dead(CHAIN.places[0])
    roster.heard(b"a", alive("36-40-y"), 2)
    assert roster.servers["a"].alive.life == "36-40-y"


def test_a_life_of_another_form_is_before_all_others() -> None:
    roster = Roster(0)
    for life in ("", "x", "1-x", "1--x", "36-\u00b2-x"):
        roster.heard(b"a", alive(life), 0)
        assert not roster.is_dead(CHAIN.places[0])
