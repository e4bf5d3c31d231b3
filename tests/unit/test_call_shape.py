"""A call fits a signature exactly when Python would say so."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from meshray.call_shape import CallShape, shape_of


def plain(a: int, b: int) -> None: ...
def defaults(a: int, b: int = 1) -> None: ...
def only_positional(a: int, /, b: int) -> None: ...
def only_keyword(a: int, *, key: int, other: int = 2) -> None: ...
def rest(a: int, *args: int) -> None: ...
def anything(*args: int, **kwargs: int) -> None: ...
def keywords(a: int, **kwargs: int) -> None: ...
def both(a: int, /, b: int = 0, *args: int, key: int = 0, **kwargs: int) -> None: ...


FUNCTIONS = [plain, defaults, only_positional, only_keyword, rest, anything, keywords, both]
CALLS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    (args, dict.fromkeys(names.split(), 0))
    for args in ((), (1,), (1, 2), (1, 2, 3))
    for names in ("", "a", "b", "a b", "key", "other", "key other", "b key", "unknown")
]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_it_agrees_with_python(function: Callable[..., Any]) -> None:
    shape = shape_of(function)
    for args, kwargs in CALLS:
        try:
            inspect.signature(function).bind(*args, **kwargs)
            fits = True
        except TypeError:
            fits = False
        try:
            shape.check("f", args, kwargs)
            found = True
        except TypeError:
            found = False
        assert found == fits, f"{function.__name__}(*{args}, **{kwargs})"


@pytest.mark.parametrize(("function", "args", "kwargs", "words"), [
    (plain, (1, 2, 3), {}, r"f\(\) takes 2 positional arguments but 3 were given"),
    (plain, (1,), {"a": 1}, "multiple values for argument 'a'"),
    (plain, (1, 2), {"c": 1}, "unexpected keyword argument 'c'"),
    (plain, (), {}, "missing required arguments: 'a', 'b'"),
    (only_keyword, (1,), {}, "missing required arguments: 'key'"),
])
def test_the_error_names_the_function_and_the_argument(
        function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        shape_of(function).check("f", args, kwargs)


def test_a_bound_method_leaves_self_out() -> None:
    class Counter:
        def add(self, amount: int) -> None: ...
        def any(*args: int) -> None: ...

    shape_of(Counter.add, bound=True).check("add", (1,), {})
    with pytest.raises(TypeError, match="takes 1 positional"):
        shape_of(Counter.add, bound=True).check("add", (1, 2), {})
    shape_of(Counter.any, bound=True).check("any", (1, 2), {})


def test_what_has_no_signature_takes_anything() -> None:
    shape = shape_of(type("Strange", (), {"__signature__": 3, "__call__": lambda self: None})())
    assert shape == CallShape()
    shape.check("strange", (1, 2), {"x": 3})


def test_a_shape_travels() -> None:
    shape = shape_of(both)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(shape), type=CallShape) == shape
