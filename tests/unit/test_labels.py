"""Label selectors: what is well formed, and what matches."""

from __future__ import annotations

import pytest

from meshray import labels


@pytest.mark.parametrize(("condition", "a", "b", "none"), [
    ("a", True, False, False), ("!a", False, True, True), ("in(a,c)", True, False, False),
    ("in( a , b )", True, True, False), ("!in(a,c)", False, True, True),
])
def test_conditions_are_those_of_ray(condition: str, a: bool, b: bool, none: bool) -> None:
    selector = labels.check_selector("label_selector", {"zone": condition})
    found = [labels.matches(selector, carried) for carried in ({"zone": "a"}, {"zone": "b", "x": "a"}, {})]
    assert found == [a, b, none]


def test_all_conditions_must_hold() -> None:
    selector = labels.check_selector("label_selector", {"zone": "a", "example.com/disk": "!hdd"})
    assert labels.matches(selector, {"zone": "a"})
    assert not labels.matches(selector, {"zone": "a", "example.com/disk": "hdd"})
    assert not labels.matches(selector, {"example.com/disk": "ssd"})
    assert labels.matches((), {})


@pytest.mark.parametrize(("value", "error", "text"), [
    ("zone=a", TypeError, "must be a dict of label to condition, not str"),
    ({"zone": 1}, TypeError, "must hold strings, not 'zone': 1"),
    ({"": "a"}, ValueError, "has the key ''"),
    ({"-zone": "a"}, ValueError, "has the key '-zone'"),
    ({"zone": "in(a"}, ValueError, "write 'a', '!a', 'in(a,b)' or '!in(a,b)'"),
    ({"zone": "in()"}, ValueError, "is 'in()'"),
    ({"zone": "a b"}, ValueError, "is 'a b'"),
    ({"zone": "x" * 64}, ValueError, "at most 63"),
])
def test_what_is_malformed_is_refused_with_a_hint(value: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        labels.check_selector("label_selector", value)
    assert text in str(caught.value)
    assert str(caught.value).startswith("label_selector")
