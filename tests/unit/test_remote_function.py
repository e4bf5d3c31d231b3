"""Remote functions and their options."""

from __future__ import annotations

import pytest

from meshray import options, remote_function
from meshray.options import NodeAffinitySchedulingStrategy
from meshray.remote_function import RemoteFunction


def identity(value: int) -> int:
    return value


def test_the_same_options_give_the_same_object_and_others_another() -> None:
    function = RemoteFunction(identity, options.task_options({}))
    variants = [function.options(**changes) for changes in (
        {}, {"num_cpus": 2}, {"resources": {"a": 1, "b": 2}}, {"resources": {"a": 1}},
        {"scheduling_strategy": "SPREAD"},
        {"scheduling_strategy": NodeAffinitySchedulingStrategy("n", True)}, {"name": "other"},
        {"retry_exceptions": [ValueError]}, {"label_selector": {"zone": "east"}})]
    assert len({id(variant) for variant in (function, *variants)}) == 10
    assert function.options(resources={"b": 2, "a": 1}) is variants[2]
    assert function.options(scheduling_strategy=NodeAffinitySchedulingStrategy("n", True)) is variants[5]
    assert function.options(retry_exceptions=[ValueError]) is variants[7]
    assert variants[1].options(num_cpus=1, scheduling_strategy="SPREAD") is variants[4], "however they came about"
    assert RemoteFunction(identity, options.task_options({})).options(num_cpus=2) is not variants[1]


def test_not_all_different_options_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_function, "VARIANTS_MAX", 3)
    function = RemoteFunction(identity, options.task_options({}))
    first = function.options(name="0")
    assert function.options(name="0") is first
    kept = [function.options(name=str(number)) for number in range(10)]
    assert len(function._variants) <= 3
    assert function.options(name="9") is kept[9]
