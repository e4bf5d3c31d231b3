"""The checkers of the control store against histories made by hand: what is right passes, what is wrong is named."""

from __future__ import annotations

import random
from typing import Any

import pytest

from meshray.gcs.log import Entry
from meshray.gcs.requests import Answered, Outcome, Refused, RowChanged, Unanswered
from meshray.messages.gcs import COMPARE_AND_SET, DELETE, PUT, PUT_IF_ABSENT, Op, Row
from tests.sim.gcs_sim import chain_order, linearizability, versions, watching
from tests.sim.gcs_sim.history import READ, History, RowCall, Violation

KEY = ("kv", b"a")


def put(begun: int, ended: int | None, value: bytes, version: int = 0, **more: Any) -> RowCall:
    """A write that was done, or (``ended`` None) may have been."""
    kind = more.pop("kind", PUT)
    return RowCall("w", KEY, kind, begun, ended, value, version=version, value=value if ended else None, **more)


def look(begun: int, ended: int, version: int, value: bytes | None) -> RowCall:
    return RowCall("r", KEY, READ, begun, ended, version=version, value=value)


def refused(begun: int, ended: int, kind: int, expected: int, version: int, value: bytes | None) -> RowCall:
    return RowCall("c", KEY, kind, begun, ended, b"never", expected, False, version, value)


def gone(begun: int, ended: int | None, version: int = 0, expected: int = 0) -> RowCall:
    return RowCall("d", KEY, DELETE, begun, ended, b"", expected, version=version)


GOOD = {
    "one after the other": [put(0, 1, b"x", 1), look(2, 3, 1, b"x"), put(4, 5, b"y", 2), look(6, 7, 2, b"y")],
    "a read beside a write sees either": [put(0, 1, b"x", 1), put(2, 9, b"y", 2), look(3, 4, 1, b"x"),
                                          look(5, 6, 2, b"y")],
    "nothing yet": [look(0, 1, 0, None), put(2, 3, b"x", 1, kind=PUT_IF_ABSENT)],
    "an unanswered write is seen later": [put(0, None, b"x"), look(5, 6, 0, None), look(7, 8, 3, b"x")],
    "an unanswered write is never seen": [put(0, None, b"x"), put(5, 6, b"y", 4), look(7, 8, 4, b"y")],
    "an unanswered removal": [put(0, 1, b"x", 1), gone(2, None), look(3, 4, 1, b"x"), look(5, 6, 0, None)],
    "compare and set names its predecessor": [
        put(0, 1, b"x", 1), put(2, 3, b"y", 2, kind=COMPARE_AND_SET, expected=1),
        refused(4, 5, COMPARE_AND_SET, 1, 2, b"y"), refused(4, 5, PUT_IF_ABSENT, 0, 2, b"y"),
    ],
    "compare and set on an unanswered one": [
        put(0, None, b"x"), look(1, 2, 7, b"x"), put(3, 4, b"y", 8, kind=COMPARE_AND_SET, expected=7),
    ],
    "removed and made again": [put(0, 1, b"x", 1), gone(2, 3, 2), look(4, 5, 0, None),
                               put(6, 7, b"y", 3, kind=PUT_IF_ABSENT), look(8, 9, 3, b"y")],
    "a refusal that left out the value": [put(0, 1, b"x", 1), RowCall("c", KEY, PUT_IF_ABSENT, 2, 3, b"n", 0, False, 1,
                                                                     None, True)],
}
BAD = {
    "a stale read": [put(0, 1, b"x", 1), put(2, 3, b"y", 2), look(4, 5, 1, b"x")],
    "a write that is lost": [put(0, 1, b"x", 1), look(2, 3, 0, None)],
    "two reads in the wrong order": [put(0, 1, b"x", 1), put(2, 9, b"y", 2), look(3, 4, 2, b"y"), look(5, 6, 1, b"x")],
    "a value from nowhere": [put(0, 1, b"x", 1), look(2, 3, 2, b"z")],
    "a value before its write": [look(0, 1, 1, b"x"), put(2, 3, b"x", 1)],
    "two take the same place": [put(0, 1, b"x", 1), put(2, 8, b"y", 2, kind=COMPARE_AND_SET, expected=1),
                                put(2, 9, b"z", 3, kind=COMPARE_AND_SET, expected=1)],
    "two make the same row": [put(0, 5, b"x", 1, kind=PUT_IF_ABSENT), put(0, 5, b"y", 2, kind=PUT_IF_ABSENT)],
    "an unanswered write comes, goes and comes": [
        put(0, None, b"x"), look(1, 2, 1, b"x"), put(3, 4, b"y", 2), look(5, 6, 2, b"y"), look(7, 8, 1, b"x"),
    ],
    "a removed row comes back": [put(0, 1, b"x", 1), gone(2, 3, 2), look(4, 5, 1, b"x")],
    "a write repeated after its successor": [put(0, 1, b"x", 1), put(2, 3, b"y", 2), look(4, 5, 3, b"x")],
    "a refusal without a reason": [put(0, 1, b"x", 1), refused(2, 3, COMPARE_AND_SET, 1, 1, b"x")],
}


def history(calls: list[RowCall]) -> History:
    made = History()
    made.calls = calls
    return made


@pytest.mark.parametrize("name", GOOD)
def test_good_histories_pass(name: str) -> None:
    linearizability.check(history(GOOD[name]))
    versions.check(history(GOOD[name]))


@pytest.mark.parametrize("name", BAD)
def test_the_search_finds_bad_histories(name: str) -> None:
    with pytest.raises(Violation, match="no order explains"):
        linearizability.check(history(BAD[name]))


@pytest.mark.parametrize("name", [name for name in BAD if name != "a refusal without a reason"])
def test_the_linear_check_finds_bad_histories(name: str) -> None:
    with pytest.raises(Violation):
        versions.check(history(BAD[name]))


def random_calls(source: random.Random, count: int) -> list[RowCall]:
    """Calls on a real row at random moments, each with a begin before and an end after; some ends are lost. Nobody
    expects a version that nobody was told."""
    calls: list[RowCall] = []
    version, value, told = 0, None, True
    for moment in range(1, count + 1):
        now = 100 * moment
        begun, ended = now - source.randrange(250), now + source.randrange(250)
        kind = source.choice((READ, PUT, PUT_IF_ABSENT, COMPARE_AND_SET, DELETE))
        expected = source.choice((version if told else 1, 1)) if kind == COMPARE_AND_SET else 0
        lost = kind != READ and source.random() < 0.1
        written = None if kind == READ else b"" if kind == DELETE else b"%d" % moment
        call = RowCall("c", KEY, kind, begun, None if lost else ended, written, expected)
        wanted = {PUT_IF_ABSENT: version == 0, COMPARE_AND_SET: version == expected}.get(kind, True)
        if kind == READ or not wanted:
            call.ok, call.version, call.value = kind == READ, version, value
        else:
            version, value, told = (0, None, True) if kind == DELETE else (moment, written, not lost)
            if not lost:
                call.version, call.value = moment, value
        calls.append(call)
    return calls


@pytest.mark.parametrize("seed", range(40))
def test_random_good_histories_pass_and_one_stale_look_is_found(seed: int) -> None:
    source = random.Random(seed)
    calls = random_calls(source, 60)
    linearizability.check(history(calls))
    versions.check(history(calls))
    writes = [call for call in calls if call.ended_ns and call.kind == PUT]
    old, new = writes[0], writes[-1]
    stale = look((new.ended_ns or 0) + 1, (new.ended_ns or 0) + 2, old.version, old.value)
    for check in (linearizability.check, versions.check):
        with pytest.raises(Violation):
            check(history([*calls, stale]))


def test_a_history_is_recorded_row_by_row() -> None:
    made = History()
    made.begin_write(1, "c", [Op("kv", b"a", b"x"), Op("kv", b"b", b"y", PUT_IF_ABSENT)], 10)
    made.begin_read(2, "c", [KEY], 11)
    made.begin_write(3, "c", [Op("kv", b"a", b"z")], 12)
    made.begin_write(4, "c", [Op("kv", b"a", b"q")], 12)
    made.begin_write(5, "c", [Op("kv", b"a", b"p")], 12)
    made.end(1, Answered(0, [Outcome(True, 1), Outcome(False, 7, b"was")]), 20)
    made.end(2, Answered(0, [Row(b"a", 1, b"x")]), 21)
    made.end(3, Answered(0, [], Unanswered("silent", True)), 22)
    made.end(4, Answered(0, [], Refused("too much")), 22)
    assert made.unanswered == 1
    made.close()
    assert [(call.key[1], call.ended_ns, call.ok, call.version, call.value) for call in made.calls] == [
        (b"a", 20, True, 1, b"x"), (b"b", 20, False, 7, b"was"), (b"a", 21, True, 1, b"x"), (b"a", None, True, 0, None),
        (b"a", None, True, 0, None),
    ]
    assert made.errors == 2


def entry(version: int, value: bytes, client: str = "c", sequence: int = 0) -> Entry:
    return Entry(version, 1, client, sequence or version, [("kv", b"a", version, value)], [])


ONE, TWO, OTHER = entry(1, b"x"), entry(2, b"y"), entry(2, b"z", "d")


def test_a_log_is_a_prefix_of_the_one_before() -> None:
    chain_order.prefixes([("a", [ONE, TWO]), ("b", [ONE, TWO]), ("c", [ONE])])
    chain_order.prefixes([("a", [ONE, TWO]), ("b", [TWO])])
    with pytest.raises(Violation, match="b has"):
        chain_order.prefixes([("a", [ONE]), ("b", [ONE, TWO])])
    with pytest.raises(Violation, match="b has"):
        chain_order.prefixes([("a", [ONE, TWO]), ("b", [ONE, OTHER])])


def test_what_is_committed_stays() -> None:
    commits = chain_order.Commits()
    for each in (ONE, TWO, TWO):
        commits.tail_has("c", each)
    commits.agree_with("a", [ONE, TWO, entry(3, b"not yet")], whole=True)
    with pytest.raises(Violation, match="b has"):
        commits.agree_with("b", [ONE, OTHER], whole=False)
    with pytest.raises(Violation, match="lacks version 2"):
        commits.agree_with("b", [ONE], whole=True)
    with pytest.raises(Violation, match="was committed there before"):
        commits.tail_has("b", OTHER)
    with pytest.raises(Violation, match="committed twice"):
        commits.tail_has("b", entry(3, b"y", "c", 2))


def test_answers_must_be_committed() -> None:
    commits = chain_order.Commits()
    commits.tail_has("c", ONE)
    commits.answers_are_there(history([put(0, 1, b"x", 1), put(0, None, b"y")]))
    with pytest.raises(Violation, match="not committed"):
        commits.answers_are_there(history([put(0, 1, b"y", 2)]))


def test_members_are_equal_and_writes_are_there_once() -> None:
    chain_order.equal({"a": {"kv": {b"a": (1, b"x")}}, "b": {"kv": {b"a": (1, b"x")}}})
    with pytest.raises(Violation, match=r"\['kv'\]\[b'a'\]: .*b'x'.*b'y'"):
        chain_order.equal({"a": {"kv": {b"a": (1, b"x")}}, "b": {"kv": {b"a": (2, b"y")}}})
    chain_order.once([ONE, TWO])
    with pytest.raises(Violation, match="2 times"):
        chain_order.once([ONE, entry(5, b"x", "c", 1)])


def told(*changes: tuple[int, bytes | None]) -> list[RowChanged]:
    return [RowChanged(1, "kv", b"a", version, value) for version, value in changes]


def test_watchers_are_told_in_order_and_completely() -> None:
    committed: dict[int, tuple[bytes, bytes | None]] = {1: (b"a", b"x"), 2: (b"a", b"y"), 3: (b"a", None)}
    watching.in_order("w", told((1, b"x"), (3, None)), committed)
    watching.complete("w", told((1, b"x"), (2, b"y")), {b"a": (2, b"y")})
    watching.complete("w", told((1, b"x"), (3, None)), {})
    watching.gapless("w", told((1, b"x"), (2, b"y"), (3, None)), [1, 2, 3])
    with pytest.raises(Violation, match="after 2"):
        watching.in_order("w", told((2, b"y"), (1, b"x")), committed)
    with pytest.raises(Violation, match="after 2"):
        watching.in_order("w", told((2, b"y"), (2, b"y")), committed)
    with pytest.raises(Violation, match="committed is"):
        watching.in_order("w", told((2, b"z")), committed)
    with pytest.raises(Violation, match="knows"):
        watching.complete("w", told((1, b"x")), {b"a": (2, b"y")})
    with pytest.raises(Violation, match="not told of"):
        watching.gapless("w", told((1, b"x"), (3, None)), [1, 2, 3])
