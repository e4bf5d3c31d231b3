"""Holders on other machines are asked what they hold, and what a broken connection swallowed is made good."""

from __future__ import annotations

from meshray import config
from meshray.messages.objects import CheckProcesses, HoldObjects, HoldsDoubted, ReleaseObjects
from meshray.object_ref import ObjectRef
from meshray.session.references import References
from tests.unit.session.fake_session import PREFIX, FakeSession

FAR, OURS = "via://far", "via://near"
X = b"x" * 18


def owner(count: int = 1, home: str = FAR) -> tuple[FakeSession, list[ObjectRef], list[bytes]]:
    """Return a session with so many objects, all held by ``other`` since its question 5."""
    session = FakeSession()
    session.endpoint = f"{OURS}/me"
    session.references = References(session)  # type: ignore[arg-type]
    refs = [ObjectRef(_prefix=PREFIX, _index=index + 1) for index in range(count)]
    identities = [session.references.info_of(ref).object for ref in refs]
    session.references.holds.on_hold(b"other", "other", HoldObjects(identities, 5, home))
    return session, refs, identities


def pass_time(session: FakeSession) -> list[HoldsDoubted]:
    """Let the time pass after which holders are asked; return the questions."""
    session.now_ns += config.HOLDS_DOUBTED_NS
    session.references.tick(session.now_ns)
    return session.take_sent(HoldsDoubted)


def test_a_holder_on_another_machine_is_asked_and_a_lost_release_made_good() -> None:
    session, _, identities = owner()
    session.references.tick(session.now_ns)
    assert session.take_sent(HoldsDoubted) == [], "not before its time"
    assert pass_time(session) == [HoldsDoubted(identities)]
    session.references.holds.on_release("other", ReleaseObjects(identities, 5))
    assert not session.references.holds.held
    assert pass_time(session) == []


def test_holders_of_this_machine_are_not_asked() -> None:
    for home in (OURS, "ipc:///run/right"):
        session, _, _ = owner(home=home)
        assert pass_time(session) == []


def test_a_hold_that_is_younger_than_the_answer_stays() -> None:
    session, _, identities = owner()
    pass_time(session)
    session.references.holds.on_hold(b"other", "other", HoldObjects(identities, 9, FAR))
    session.references.holds.on_release("other", ReleaseObjects(identities, 8))
    assert session.references.holds.held
    session.references.holds.on_release("other", ReleaseObjects(identities, 9))
    assert not session.references.holds.held


def test_who_does_not_answer_is_asked_after() -> None:
    session, _, _ = owner()
    pass_time(session)
    assert session.take_sent(CheckProcesses) == []
    pass_time(session)
    assert session.take_sent(CheckProcesses) == [CheckProcesses([("other", f"{FAR}/other")])]
    session.references.holds.on_release("other", ReleaseObjects([], 5))
    pass_time(session)
    assert session.take_sent(CheckProcesses) == []


def test_many_holds_are_asked_for_in_turn() -> None:
    count = config.HOLDS_DOUBTED_MAX + 10
    session, refs, identities = owner(count)
    (first,), (second,) = pass_time(session), pass_time(session)
    assert first.objects == identities[: config.HOLDS_DOUBTED_MAX]
    assert second.objects[:10] == identities[config.HOLDS_DOUBTED_MAX:]
    assert len(refs) == count


def test_a_refused_hold_is_not_asked_for() -> None:
    session, _, identities = owner()
    session.references.holds.on_hold(b"late", "late", HoldObjects([X], 1, FAR))
    assert pass_time(session) == [HoldsDoubted(identities)]


def test_a_holder_names_what_it_does_not_hold() -> None:
    session = FakeSession()
    held, fresh = (session.references.restore(letter * 18, "other", "via://far/other") for letter in (b"a", b"b"))
    cookie, = session.references.holds.hold([held])
    session.references.holds.on_doubted(b">other", HoldsDoubted([held.binary(), fresh.binary(), X]))
    assert session.sent[-1] == (b">other", ReleaseObjects([fresh.binary(), X], cookie))
