"""Why something can run nowhere, in words for the user: which resource or label is missing, and how much there is.

*Pure.* Used by the local and the global scheduler. Empty words mean that it can run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from meshray import labels
from meshray.messages.node import Strategy
from meshray.sched.policy import UNIT, Candidate, covers


def units(amount: int) -> str:
    """Write an amount as the user gave it: ``4``, ``0.5``."""
    return f"{amount / UNIT:g}"


def shortage(need: Mapping[str, int], totals: Iterable[Mapping[str, int]]) -> str:
    """Say why no node with these totals can run ``need``; empty if one can."""
    nodes = list(totals)
    if any(covers(total, need) for total in nodes):
        return ""
    short = []
    for name, amount in need.items():
        largest = max((total.get(name, 0) for total in nodes), default=0)
        if largest < amount:
            short.append(f"needs {units(amount)} {name}, the cluster's largest node has {units(largest)}")
    if short:
        return "; ".join(short)
    wanted = ", ".join(f"{units(amount)} {name}" for name, amount in need.items())
    return f"needs {wanted} on one node, and no node has all of them together"


def unsuitable(need: Mapping[str, int], strategy: Strategy,
               kinds: Iterable[tuple[Mapping[str, int], Mapping[str, str]]]) -> str:
    """Say why none of these kinds of nodes (totals, labels) can ever run it; empty if one can."""
    kinds = list(kinds)
    if strategy.labels:
        missing = labels.mismatch(strategy.labels, [carried for _, carried in kinds])
        if missing:
            return missing
        kinds = [kind for kind in kinds if labels.matches(strategy.labels, kind[1])]
    reason = shortage(need, [total for total, _ in kinds])
    return f"{reason} (of those with the labels asked for)" if reason and strategy.labels else reason


def unsuitable_node(need: Mapping[str, int], strategy: Strategy, named: Candidate | None) -> str:
    """Say why the one node that is allowed cannot run it; empty if it can."""
    if named is None:
        return f"must run on node {strategy.node!r}, which is not part of the cluster"
    reason = unsuitable(need, strategy, [(named.total, named.labels)])
    if not reason:
        return ""
    if strategy.labels and not labels.matches(strategy.labels, named.labels):
        return f"must run on node {strategy.node!r}, which lacks a label: {reason}"
    return f"must run on node {strategy.node!r}, which is too small: {reason}"
