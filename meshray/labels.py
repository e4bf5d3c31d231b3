"""Label selectors: which nodes a task or actor may run on, by the labels that the nodes carry.

*Pure.* Used by options, to check what users write, and by the schedulers, to match it.

1. A selector is a mapping of label key to condition; a node matches if it meets all of them.
2. Conditions are Ray's: ``a`` (is), ``!a`` (is not), ``in(a,b)`` (one of), ``!in(a,b)`` (none of). A node without the
   key meets the negative ones.
3. A selector is checked where the user wrote it; what reaches a scheduler is well formed.

Source: Ray 2.60, ``label_selector`` of tasks and actors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

Selector = tuple[tuple[str, str], ...]
"""Pairs of key and condition, sorted by key."""

_WORD = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_KEY = re.compile(rf"(?:[A-Za-z0-9][A-Za-z0-9.-]{{0,252}}/)?{_WORD}")
_ONE = re.compile(rf"!?({_WORD})?")
_SOME = re.compile(rf"!?in\(\s*{_WORD}\s*(?:,\s*{_WORD}\s*)*\)")
_FORMS = "write 'a', '!a', 'in(a,b)' or '!in(a,b)'"


def check_selector(name: str, value: object) -> Selector:
    """Return the selector in its wire form. Raise TypeError or ValueError, naming ``name`` and what is wrong."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dict of label to condition, not {type(value).__name__}")
    for key, condition in value.items():
        if not isinstance(key, str) or not isinstance(condition, str):
            raise TypeError(f"{name} must hold strings, not {key!r}: {condition!r}")
        if not _KEY.fullmatch(key):
            raise ValueError(f"{name} has the key {key!r}: a label's key is letters, digits, '-', '_' and '.', at most "
                             "63 of them, with an optional prefix that ends with '/'")
        if not _ONE.fullmatch(condition) and not _SOME.fullmatch(condition):
            raise ValueError(f"{name}[{key!r}] is {condition!r}: {_FORMS}, where each value is at most 63 letters, "
                             "digits, '-', '_' and '.'")
    return tuple(sorted(value.items()))


def matches(selector: Selector, labels: Mapping[str, str]) -> bool:
    """Whether a node with these labels meets every condition."""
    return all((labels.get(key) in allowed) != negative for key, negative, allowed in _meaning(selector))


def mismatch(selector: Selector, nodes: Iterable[Mapping[str, str]]) -> str:
    """Say which condition no node meets; empty if some node meets them all."""
    nodes = list(nodes)
    if any(matches(selector, labels) for labels in nodes):
        return ""
    for key, condition in selector:
        if not any(matches(((key, condition),), labels) for labels in nodes):
            there = sorted({labels[key] for labels in nodes if key in labels})
            return f"needs label {key}={condition}, " + (
                f"the cluster's nodes have {key}={' or '.join(there[:5])}" if there else f"no node has a label {key}")
    wanted = ", ".join(f"{key}={condition}" for key, condition in selector)
    return f"needs labels {wanted} on one node, and no node has all of them together"


@lru_cache(1024)
def _meaning(selector: Selector) -> tuple[tuple[str, bool, frozenset[str]], ...]:
    """Return key, whether the condition is negative, and the values that it names."""
    meant = []
    for key, condition in selector:
        negative = condition.startswith("!")
        words = condition.removeprefix("!")
        if words.startswith("in(") and words.endswith(")"):
            values = frozenset(word.strip() for word in words[3:-1].split(","))
        else:
            values = frozenset((words,))
        meant.append((key, negative, values))
    return tuple(meant)
