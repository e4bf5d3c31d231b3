"""The rows on meshray alone, under pytest-benchmark: ``pytest perf --benchmark-only``.

*Shell (clock).* Runs in pytest, with one embedded cluster for all rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from perf.rows import ROWS
from perf.systems import meshray_system

CPUS = 2


@pytest.fixture(scope="module")
def api() -> Iterator[Any]:
    system = meshray_system()
    try:
        yield system.start(CPUS)
    finally:
        system.stop()


@pytest.mark.parametrize("name", ROWS)
def test_row(name: str, api: Any, benchmark: Any) -> None:
    with ROWS[name].open(api) as operation:
        benchmark(operation.run)
        benchmark.extra_info.update(text=ROWS[name].text, unit=ROWS[name].unit, units_per_round=operation.count)
