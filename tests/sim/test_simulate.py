"""The measurement of the schedulers under virtual time: what must not depend on the machine does not."""

from __future__ import annotations

from perf.simulate import rows, simulate


def test_decisions_and_bytecodes_are_the_same_in_every_run() -> None:
    first, second = simulate(10, 200, 1), simulate(10, 200, 1)
    for figure in ("bytecodes_per_task", "bytecodes_per_task_of", "messages_per_task_of", "makespan_s"):
        assert first[figure] == second[figure], figure
    assert first["bytecodes_per_task"] > 500, "the owner alone executes as many for a task"
    named = rows([first, {**second, "nodes": 1000, "bytecodes_per_task": 2 * first["bytecodes_per_task"]}])
    assert named["bytecodes_per_task_growth"] == 2
