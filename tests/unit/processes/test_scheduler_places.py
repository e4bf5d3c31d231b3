"""Global scheduler replicas lie apart, as far as there are enough nodes."""

from __future__ import annotations

from meshray.processes.scheduler_places import scheduler_places


def test_replicas_lie_on_different_nodes() -> None:
    assert scheduler_places(["a", "b", "c"], 2) == {"scheduler-0": "a", "scheduler-1": "b"}


def test_one_node_has_them_all() -> None:
    assert scheduler_places(["a"], 2) == {"scheduler-0": "a", "scheduler-1": "a"}
