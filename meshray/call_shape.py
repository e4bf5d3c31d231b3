"""Whether a call fits a signature, checked where the call is made.

*Pure.* Used by drivers and workers when something is called with ``.remote``.

1. A call with positional arguments only costs two comparisons; anything else is checked name by name.
2. A shape is plain data, so that it travels with an actor's handle.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import msgspec


class CallShape(msgspec.Struct, frozen=True):
    """Parameters of a function, without ``self``."""

    positional: tuple[str, ...] = ()
    required: int = 0
    """How many of ``positional`` have no default."""
    positional_only: int = 0
    keyword_only: tuple[str, ...] = ()
    keyword_required: tuple[str, ...] = ()
    more_positional: bool = True
    more_keywords: bool = True

    def check(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise TypeError, as Python would, if ``name(*args, **kwargs)`` does not fit."""
        given = len(args)
        if not kwargs and self.required <= given and not self.keyword_required and (
                given <= len(self.positional) or self.more_positional):
            return
        if given > len(self.positional) and not self.more_positional:
            raise TypeError(f"{name}() takes {len(self.positional)} positional arguments but {given} were given")
        by_name = self.positional[self.positional_only:]
        for key in kwargs:
            if key in self.positional[self.positional_only:given]:
                raise TypeError(f"{name}() got multiple values for argument {key!r}")
            if key not in by_name and key not in self.keyword_only and not self.more_keywords:
                raise TypeError(f"{name}() got an unexpected keyword argument {key!r}")
        missing = [key for key in self.positional[given:self.required]
                   if key not in kwargs or key not in by_name]
        missing += [key for key in self.keyword_required if key not in kwargs]
        if missing:
            raise TypeError(f"{name}() is missing required arguments: {', '.join(map(repr, missing))}")


def shape_of(function: Callable[..., Any], *, bound: bool = False) -> CallShape:
    """Return the shape of ``function``; ``bound`` leaves its first parameter out. Without signature anything fits."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return CallShape()
    if bound and parameters and parameters[0].kind in (inspect.Parameter.POSITIONAL_ONLY,
                                                       inspect.Parameter.POSITIONAL_OR_KEYWORD):
        parameters = parameters[1:]
    kinds = inspect.Parameter
    positional = [one for one in parameters if one.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    keywords = [one for one in parameters if one.kind is kinds.KEYWORD_ONLY]
    return CallShape(
        tuple(one.name for one in positional),
        sum(1 for one in positional if one.default is kinds.empty),
        sum(1 for one in positional if one.kind is kinds.POSITIONAL_ONLY),
        tuple(one.name for one in keywords),
        tuple(one.name for one in keywords if one.default is kinds.empty),
        any(one.kind is kinds.VAR_POSITIONAL for one in parameters),
        any(one.kind is kinds.VAR_KEYWORD for one in parameters),
    )
