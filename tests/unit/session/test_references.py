"""References between processes: who keeps what alive, and who is told."""

from __future__ import annotations

import gc

from meshray import config, failures, serialization
from meshray.errors import ObjectLostError, OwnerDiedError
from meshray.messages.objects import (
    CheckProcesses,
    HoldersDied,
    HoldObjects,
    HoldsRegistered,
    ObjectResolved,
    ReleaseObjects,
    ResolveObjects,
)
from meshray.messages.tasks import RefInfo, Value
from meshray.object_ref import DATA, PENDING, READY, ObjectRef
from meshray.session.values import fail
from tests.unit.session.fake_session import PREFIX, FakeSession

X, Y = b"x" * 18, b"y" * 18
LIST = serialization.serialize([1, 2]).data


def borrowed(session: FakeSession, identity: bytes = X) -> ObjectRef:
    return session.references.restore(identity, "other", "ipc://other")


def own(state: int = PENDING, value: object = None) -> ObjectRef:
    return ObjectRef(_prefix=PREFIX, _index=1, _state=state, _value=value)


def registered(session: FakeSession, ref: ObjectRef, lost: list[bytes] | None = None) -> None:
    cookie, = session.references.holds.hold([ref])
    session.references.holds.on_registered(HoldsRegistered(cookie, lost or []))


def test_publishing_makes_a_reference_known_once_and_names_its_owner() -> None:
    session = FakeSession()
    ref = own(READY)
    info = session.references.info_of(ref)
    assert info == session.references.info_of(ref) == RefInfo(ref.binary(), "me", "ipc://me")
    assert session.escaped == [ref.binary()]
    assert session.references.restore(info.object, "me", "ipc://me") is ref, "identity is equality"


def test_passing_a_borrowed_reference_on_names_the_first_owner() -> None:
    session = FakeSession()
    assert session.references.info_of(borrowed(session)) == RefInfo(X, "other", "ipc://other")
    assert session.escaped == []


def test_an_own_reference_that_comes_back_after_its_death_is_lost() -> None:
    session = FakeSession()
    ref = session.references.restore(X, "me", "ipc://me")
    assert isinstance(failures.decode(ref._value), ObjectLostError)


def test_a_held_object_stays_until_its_last_holder_lets_go() -> None:
    session = FakeSession()
    ref = own(READY)
    identity = session.references.info_of(ref).object
    for holder in ("a", "b"):
        session.references.holds.on_hold(holder.encode(), holder, HoldObjects([identity], 5))
    assert session.take_sent(HoldsRegistered) == [HoldsRegistered(5, [])] * 2
    del ref
    session.references.holds.on_release("a", ReleaseObjects([identity]))
    session.references.holds.on_release("a", ReleaseObjects([identity]))
    assert identity in session.references.holds.held
    assert session.references.known[identity]() is not None
    session.references.holds.on_release("b", ReleaseObjects([identity]))
    assert identity not in session.references.holds.held
    assert session.references.known[identity]() is None


def test_a_hold_that_comes_too_late_is_refused() -> None:
    session = FakeSession()
    session.references.holds.on_hold(b"a", "a", HoldObjects([X], 1))
    assert session.take_sent(HoldsRegistered) == [HoldsRegistered(1, [X])]
    assert not session.references.holds.held


def test_a_hold_is_asked_once_and_released_at_death() -> None:
    session = FakeSession()
    ref = borrowed(session)
    holds = session.references.holds
    cookies = holds.hold([ref])
    assert holds.hold([ref]) == cookies, "it is on its way already, and whoever asks must wait for it too"
    assert not holds.is_held(cookies)
    told: list[str] = []
    holds.when_held(cookies, lambda: told.append("held"))
    assert told == []
    holds.on_registered(HoldsRegistered(cookies[0], []))
    assert holds.is_held(cookies)
    assert told == ["held"]
    assert holds.hold([ref]) == ()
    assert session.take_sent(HoldObjects) == [HoldObjects([X], cookies[0], "ipc:/")]
    del ref
    gc.collect()
    holds.send_releases()
    assert session.sent == [(b">other", ReleaseObjects([X]))]
    assert session.references.find(X) is None


def test_a_reference_that_was_never_held_is_not_released() -> None:
    session = FakeSession()
    ref = borrowed(session)
    del ref
    session.references.holds.send_releases()
    assert session.sent == []


def test_a_reference_that_came_back_before_its_release_was_sent_stays_held() -> None:
    session = FakeSession()
    ref = borrowed(session)
    registered(session, ref)
    del ref
    again = borrowed(session)
    registered(session, again)
    session.references.holds.send_releases()
    assert session.take_sent(ReleaseObjects) == [], "the owner would forget the second hold"
    del again
    session.references.holds.send_releases()
    assert session.take_sent(ReleaseObjects) == [ReleaseObjects([X])]


def test_what_contains_the_references_lives_until_they_are_registered() -> None:
    session = FakeSession()
    outer = own()
    session.references.take(outer, Value(LIST, None, [RefInfo(X, "other", "ipc://other")]), owned=True)
    message, = session.take_sent(HoldObjects)
    assert outer._state == DATA
    del outer
    assert X in session.references.known and session.references.known[X]() is not None
    session.references.holds.on_registered(HoldsRegistered(message.cookie, []))
    assert session.references.known[X]() is None


def test_a_refused_hold_fails_the_reference() -> None:
    session = FakeSession()
    ref = borrowed(session)
    registered(session, ref, lost=[X])
    assert isinstance(failures.decode(ref._value), ObjectLostError)


def test_a_hold_at_an_owner_that_is_gone_fails_at_once() -> None:
    session = FakeSession()
    session.references.on_holders_died(HoldersDied(["other"]))
    ref = borrowed(session)
    cookies = session.references.holds.hold([ref])
    assert isinstance(failures.decode(ref._value), OwnerDiedError)
    assert session.references.holds.is_held(cookies), "nobody waits for an answer that will not come"


def test_silent_owners_are_asked_again_and_asked_after() -> None:
    session = FakeSession()
    waiting, held = borrowed(session), borrowed(session, Y)
    session.references.holds.hold([held])
    session.references.resolve([waiting])
    for _ in range(3):
        session.references.tick(session.now_ns)
        session.now_ns += config.SECOND_NS
    assert session.take_sent(HoldObjects) == [HoldObjects([Y], 1, "ipc:/")] * 3
    assert session.take_sent(ResolveObjects) == [ResolveObjects([X])] * 3
    assert session.take_sent(CheckProcesses) == [CheckProcesses([("other", "ipc://other")])] * 4


def test_what_a_dead_process_held_lingers() -> None:
    session = FakeSession()
    mine = own(READY)
    identity = session.references.info_of(mine).object
    session.references.holds.on_hold(b"other", "other", HoldObjects([identity], 1))
    session.references.on_holders_died(HoldersDied(["other"]))
    session.references.tick(session.now_ns + config.HOLDER_LINGER_NS - 1)
    assert session.references.holds.held, "what it passed on has yet to be registered"
    session.references.tick(session.now_ns + config.HOLDER_LINGER_NS)
    assert not session.references.holds.held


def test_a_hold_that_comes_after_its_holders_death_ends_too() -> None:
    session = FakeSession()
    mine = own(READY)
    identity = session.references.info_of(mine).object
    session.references.on_holders_died(HoldersDied(["other"]))
    session.references.tick(session.now_ns + config.HOLDER_LINGER_NS)
    session.references.holds.on_hold(b"other", "other", HoldObjects([identity], 1))
    assert session.references.holds.held
    session.references.tick(session.now_ns + config.HOLDER_LINGER_NS)
    assert not session.references.holds.held


def test_the_death_of_a_node_ends_the_holds_of_its_processes_and_loses_what_they_owned() -> None:
    session = FakeSession()
    mine, theirs = own(READY), session.references.restore(X, "far", "ipc:///far/far")
    identity = session.references.info_of(mine).object
    for holder, home in (("a", "ipc:///far"), ("b", "ipc:///near")):
        session.references.holds.on_hold(holder.encode(), holder, HoldObjects([identity], 1, home))
    session.references.on_holders_died(HoldersDied([], ("ipc:///far",)))
    session.references.tick(session.now_ns + config.HOLDER_LINGER_NS)
    assert list(session.references.holds.held[identity][1]) == ["b"]
    assert isinstance(failures.decode(theirs._value), OwnerDiedError)


def test_values_are_asked_for_once_and_answered_when_they_are_there() -> None:
    borrower, owner = FakeSession(), FakeSession()
    ref, theirs = own(), None
    info = owner.references.info_of(ref)
    theirs = borrower.references.restore(info.object, "other", "ipc://other")
    for _ in range(2):
        borrower.references.resolve([theirs])
    question, = borrower.take_sent(ResolveObjects)
    for _ in range(2):
        owner.references.on_resolve(b"me", question)
    assert owner.sent == []
    owner.references.take(ref, Value(), owned=True)
    owner.outcomes.completed(ref)
    answer, = owner.take_sent(ObjectResolved)
    told: list[ObjectRef] = []
    borrower.outcomes.when_complete(theirs, told.append)
    for _ in range(2):
        borrower.references.on_resolved(answer)
    assert (theirs._state, told) == (READY, [theirs])


def test_who_waits_is_told_of_a_value_that_came_with_the_arguments_of_a_call_while_the_owners_answer_was_lost() -> None:
    session = FakeSession()
    ref = borrowed(session)
    told: list[ObjectRef] = []
    session.outcomes.when_complete(ref, told.append)
    session.references.tick(session.now_ns)
    session.references.take(ref, Value(), owned=False)
    session.now_ns += config.SECOND_NS
    session.references.tick(session.now_ns)
    assert told == [ref]


def test_a_failure_is_resolved_as_a_failure() -> None:
    owner = FakeSession()
    ref = own()
    owner.references.info_of(ref)
    fail(ref, b"error")
    owner.references.on_resolve(b"a", ResolveObjects([ref.binary(), X]))
    first, second = owner.take_sent(ObjectResolved)
    assert first == ObjectResolved(ref.binary(), None, b"error")
    assert isinstance(failures.decode(second.error), ObjectLostError)


def test_death_ends_holds_and_loses_what_the_dead_owned() -> None:
    session = FakeSession()
    mine, waiting, idle, there = own(READY), borrowed(session), borrowed(session, Y), borrowed(session, b"z" * 18)
    there._state = READY
    identity = session.references.info_of(mine).object
    session.references.holds.on_hold(b"other", "other", HoldObjects([identity], 1))
    cookies = session.references.holds.hold([waiting])
    session.references.resolve([waiting])
    session.references.on_holders_died(HoldersDied(["other"]))
    session.references.tick(session.now_ns + config.HOLDER_LINGER_NS)
    assert not session.references.holds.held
    assert session.references.holds.is_held(cookies)
    for ref in (waiting, idle):
        assert isinstance(failures.decode(ref._value), OwnerDiedError)
    assert there._state == READY, "a value that is here stays"


def test_names_of_dead_references_are_forgotten_when_they_have_become_many() -> None:
    session = FakeSession()
    kept = own(READY)
    session.references.info_of(kept)
    for index in range(3000):
        session.references.info_of(ObjectRef(_prefix=PREFIX, _index=10 + index, _state=READY))
    session.references.forget_dead()
    assert list(session.references.known) == [kept.binary()]
