"""Where in a value the thing lies that cannot be pickled.

*Shell (trial pickles).* Runs in drivers and workers, and only after pickling has failed.

1. The answer is a path that a person can follow (``.model.lock``, ``[3]['callback']``, ``closure variable 'lock'``) and
   the type at its end.
2. Looking never raises: an object whose attributes cannot be read is itself the culprit.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Iterator
from types import FunctionType, MethodType
from typing import Any, NamedTuple, TextIO

from meshray import serialization

DEPTH_MAX = 12
"""Steps that a path may have: cycles end here."""
CHILDREN_MAX = 10_000
"""Members of one container that are tried."""
PATHS_MAX = 20
"""Culprits that ``inspect_serializability`` lists."""


class Culprit(NamedTuple):
    """Something that cannot be pickled: the object, its name, and what it is a part of."""

    obj: Any
    name: str
    parent: Any


def explain(value: Any, of: str, error: BaseException) -> str:
    """Return the message of an UnserializableError: what cannot be pickled, and where it is."""
    culprit = next(_culprits(value, "", None, DEPTH_MAX), None)
    if culprit is None or culprit.obj is value:
        return f"{of} ({_type_name(value)}) cannot be pickled: {error}"
    return f"{of}: {culprit.name.strip()} is a {_type_name(culprit.obj)}, which cannot be pickled ({error})"


def find_argument(args: tuple[Any, ...], kwargs: dict[str, Any], of: Any) -> tuple[str, Any]:
    """Return name (``argument 'x' of f``) and value of the first argument that cannot be pickled.

    ``of`` is the function or its name.
    """
    function = of if isinstance(of, str) else getattr(of, "__qualname__", repr(of))
    for name, value in itertools.chain(enumerate(args), kwargs.items()):
        if not _picklable(value):
            label = _parameter(of, name) if isinstance(name, int) and callable(of) else repr(name)
            return f"argument {label} of {function}", value
    return f"arguments of {function}", (args, kwargs)


def inspect_serializability(base_obj: Any, name: str | None = None, depth: int = 3,
                            print_file: TextIO | None = None) -> tuple[bool, set[Culprit]]:
    """Find out why an object cannot be pickled.

    Args:
        base_obj: What should be pickled.
        name: How the report calls it.
        depth: Steps into the object, at least 1.
        print_file: Where the report goes, standard output if None.

    Returns:
        Whether it can be pickled, and the innermost things that cannot.
    """
    name = name or getattr(base_obj, "__qualname__", None) or _type_name(base_obj)
    if _picklable(base_obj):
        print(f"{name} can be pickled.", file=print_file)
        return True, set()
    found: dict[int, Culprit] = {}
    for culprit in itertools.islice(_culprits(base_obj, name, None, depth), PATHS_MAX):
        found.setdefault(id(culprit.obj), culprit)
    for culprit in found.values():
        print(f"{culprit.name} ({_type_name(culprit.obj)}) cannot be pickled.", file=print_file)
    return False, {_Hashable(*culprit) for culprit in found.values()}


class _Hashable(Culprit):
    """Culprits are found by identity: what they hold may not be hashable."""

    def __hash__(self) -> int:
        return hash((id(self.obj), self.name))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Culprit) and self.obj is other.obj and self.name == other.name


def _culprits(value: Any, path: str, parent: Any, depth: int) -> Iterator[Culprit]:
    if _picklable(value):
        return
    inner = False
    if depth > 0:
        for step, child in _children(value):
            for culprit in _culprits(child, path + step, value, depth - 1):
                inner = True
                yield culprit
    if not inner:
        yield Culprit(value, path, parent)


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    try:
        yield from list(itertools.islice(_members(value), CHILDREN_MAX))
    except Exception:  # an object that cannot be looked into has no parts to blame
        return


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield f"[{key!r}]", item
    elif isinstance(value, list | tuple | set | frozenset):
        for index, item in enumerate(value):
            yield f"[{index}]", item
    elif isinstance(value, FunctionType):
        variables = inspect.getclosurevars(value)
        for name, item in variables.nonlocals.items():
            yield f" closure variable {name!r}", item
        for name, item in variables.globals.items():
            yield f" global variable {name!r}", item
        for index, item in enumerate(value.__defaults__ or ()):
            yield f" default {index}", item
    elif isinstance(value, MethodType):
        yield ".__self__", value.__self__
    elif isinstance(value, functools.partial):
        yield from ((f".args[{index}]", item) for index, item in enumerate(value.args))
        yield from ((f".keywords[{key!r}]", item) for key, item in value.keywords.items())
        yield ".func", value.func
    elif isinstance(value, type):
        yield from ((f".{name}", item) for name, item in vars(value).items() if isinstance(item, FunctionType))
    if not isinstance(value, type | FunctionType):
        yield from ((f".{name}", item) for name, item in getattr(value, "__dict__", {}).items())
        for cls in type(value).__mro__:
            slots = cls.__dict__.get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if hasattr(value, name):
                    yield f".{name}", getattr(value, name)
        if isinstance(value, BaseException):
            yield ".args", value.args


def _picklable(value: Any) -> bool:
    return serialization.try_pickle(value) is None


def _parameter(function: Any, position: int) -> str:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return str(position)
    if position < len(parameters) and parameters[position].kind is not inspect.Parameter.VAR_POSITIONAL:
        return repr(parameters[position].name)
    return str(position)


def _type_name(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
