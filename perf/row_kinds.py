"""What a benchmark row is, and how one sample of it is timed.

*Shell (clock).* Runs in subjects and under pytest-benchmark. Needs nothing but the standard library, because it also
runs in the peer's interpreter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

Make = Callable[[Any], Iterator["Operation"]]
Target = float | str | None
SAMPLE_S = 0.4
"""An operation is repeated at least this long per sample, so that scheduling noise averages out."""


@dataclass(frozen=True)
class Operation:
    """The thing that is timed: ``run`` does ``count`` units (calls, tasks, gigabytes) of the row's work."""

    run: Callable[[], object]
    count: float = 1.0


@dataclass(frozen=True)
class Row:
    """One row of the table. ``at_least`` and ``aim`` are ratios to Ray (or say to what), None where there is none."""

    name: str
    text: str
    unit: str
    at_least: Target
    aim: Target
    open: Callable[[Any], AbstractContextManager[Operation]]


def row(
    name: str, text: str, *, unit: str, at_least: Target = None, aim: Target = None
) -> Callable[[Make], Row]:
    """Turn a generator function that yields one ``Operation`` into a row; what follows the yield cleans up."""

    def wrap(make: Make) -> Row:
        return Row(name, text, unit, at_least, aim, contextmanager(make))

    return wrap


def sample(operation: Operation, least_s: float) -> float:
    """Repeat ``operation`` for at least ``least_s`` seconds; return units per second."""
    rounds = 0
    began = time.perf_counter()
    while True:
        operation.run()
        rounds += 1
        elapsed_s = time.perf_counter() - began
        if elapsed_s >= least_s:
            return rounds * operation.count / elapsed_s
