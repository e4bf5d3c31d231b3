"""The culprit in a value is found and named."""

from __future__ import annotations

import functools
import io
import threading
from typing import Any

import pytest

from meshray import unpicklable
from meshray.unpicklable import explain, inspect_serializability


class Holder:
    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)

    def method(self) -> None: ...


class Slotted:
    __slots__ = ("lock", "other")


def slotted() -> Slotted:
    made = Slotted()
    made.lock = threading.Lock()
    return made


class Hostile:
    """Neither picklable nor to be looked into."""

    def __reduce__(self) -> Any:
        raise RuntimeError("no")

    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no")


LOCK = threading.Lock()

CASES = {
    "attribute": (Holder(inner=Holder(lock=LOCK)), ".inner.lock is a _thread.lock"),
    "item": ([1, {"k": (LOCK,)}], "[1]['k'][0] is a _thread.lock"),
    "slot": (slotted(), ".lock is a _thread.lock"),
    "method": (Holder(lock=LOCK).method, ".__self__.lock is a _thread.lock"),
    "partial": (functools.partial(print, 1, end=LOCK), ".keywords['end'] is a _thread.lock"),
    "itself": (LOCK, "(_thread.lock) cannot be pickled"),
    "hostile": (Hostile(), "cannot be pickled"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_path_to_the_culprit(case: str) -> None:
    value, expected = CASES[case]
    message = explain(value, "the value", TypeError("reason"))
    assert message.startswith("the value")
    assert expected in message
    assert "reason" in message


def test_a_cycle_ends() -> None:
    value: list[Any] = [LOCK]
    value.append(value)
    assert "[0] is a _thread.lock" in explain(value, "it", TypeError("no"))


def test_inspect_tells_all_culprits() -> None:
    report = io.StringIO()
    ok, failures = inspect_serializability({"a": LOCK, "b": 1, "c": [io.StringIO(), threading.Lock()]}, "config",
                                           print_file=report)
    assert not ok
    assert {failure.name for failure in failures} == {"config['a']", "config['c'][1]"}
    assert "config['a'] (_thread.lock) cannot be pickled" in report.getvalue()
    assert inspect_serializability([1, 2], print_file=report) == (True, set())


def test_depth_limits_how_far_one_looks() -> None:
    ok, failures = inspect_serializability([[[LOCK]]], "it", depth=1, print_file=io.StringIO())
    assert not ok
    assert {failure.name for failure in failures} == {"it[0]"}


def test_arguments_by_position_and_keyword() -> None:
    def f(x: Any, *rest: Any) -> None: ...

    assert unpicklable.find_argument((LOCK,), {}, f)[0].startswith("argument 'x' of ")
    assert unpicklable.find_argument((1, 2, LOCK), {}, f)[0].startswith("argument 2 of ")
    assert unpicklable.find_argument((1,), {"k": LOCK}, "g") == ("argument 'k' of g", LOCK)
