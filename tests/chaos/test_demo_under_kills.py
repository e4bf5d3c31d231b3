"""The demo on a cluster whose control store loses a replica again and again learns what it learns without.

*Shell (processes, signals).* The whole comparison is ``python -m perf.demo_under_kills``.
"""

from __future__ import annotations

import pytest

from perf.demo_under_kills import first_difference, learn

pytestmark = pytest.mark.limit_s(180)


def test_the_learning_curve_is_the_same(root: str) -> None:
    calm, shaken = learn(0, 8, 4), learn(0, 8, 4, 0.5)
    assert shaken.killed and not calm.killed
    assert len(calm.curves[0]) == 4
    assert calm.curves == shaken.curves


def test_the_comparison_sees_every_difference() -> None:
    calm = [20.0, 21.5], [(1, 22.0), (2, 23.0)]
    assert first_difference(calm, ([20.0, 21.5], [(1, 22.0), (2, 23.0)])) is None
    assert first_difference(calm, ([20.0, 21.6], [(1, 22.0), (2, 23.0)])) == 2
    assert first_difference(calm, ([20.0, 21.5], [(1, 22.5), (2, 23.0)])) == 1
    assert first_difference(calm, ([20.0], [(1, 22.0)])) == 2
