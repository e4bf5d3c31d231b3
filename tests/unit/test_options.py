"""Options are checked where they are written, and become what the scheduler needs."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from meshray import options, serialization
from meshray.messages.node import Strategy
from meshray.options import ActorOptions, NodeAffinitySchedulingStrategy, TaskOptions
from meshray.resources import from_units, to_units


def test_defaults_are_rays() -> None:
    task, actor = options.task_options({}), options.actor_options({})
    assert (task.num_cpus, task.num_gpus, task.num_returns, task.max_retries) == (1, 0, 1, 3)
    assert task.retry_exceptions is False
    assert (actor.max_restarts, actor.max_task_retries, actor.lifetime, actor.get_if_exists) == (0, 0, None, False)
    assert options.task_resources(task) == {"CPU": 10_000}
    assert options.actor_place_resources(actor) == {"CPU": 10_000}
    assert options.actor_run_resources(actor) == {}


def test_resources_in_units() -> None:
    task = options.task_options({"num_cpus": 0.5, "num_gpus": 2, "memory": 1024, "resources": {"disk": 0.0001, "x": 0},
                                 "accelerator_type": "T4"})
    assert options.task_resources(task) == {
        "CPU": 5_000, "GPU": 20_000, "memory": 10_240_000, "disk": 1, "accelerator_type:T4": 10}
    actor = options.actor_options({"num_cpus": 2})
    assert options.actor_place_resources(actor) == options.actor_run_resources(actor) == {"CPU": 20_000}
    assert from_units({"CPU": 5_000}) == {"CPU": 0.5}
    assert to_units("num_cpus", 0.1 + 0.2) == 3_000


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"num_cpu": 1}, ValueError, "tasks have no option 'num_cpu': did you mean 'num_cpus'"),
    ({"zzz": 1}, ValueError, "no option 'zzz'. There are: accelerator_type, "),
    ({"num_cpus": -1}, ValueError, "num_cpus cannot be negative, but is -1"),
    ({"num_cpus": "2"}, TypeError, "num_cpus must be a number, not str"),
    ({"num_cpus": True}, TypeError, "num_cpus must be a number, not bool"),
    ({"num_cpus": 0.00001}, ValueError, "num_cpus = 1e-05 is finer than 0.0001"),
    ({"num_cpus": float("nan")}, ValueError, "num_cpus must be finite"),
    ({"num_gpus": 1.5}, ValueError, "num_gpus above 1 must be a whole number, but is 1.5"),
    ({"memory": -5}, ValueError, "memory cannot be negative"),
    ({"resources": {"CPU": 1}}, ValueError, "must not contain 'CPU': use num_cpus"),
    ({"resources": {"GPU": 1}}, ValueError, "must not contain 'GPU': use num_gpus"),
    ({"resources": {"a": -1}}, ValueError, r"resources\['a'\] cannot be negative"),
    ({"resources": ["a"]}, TypeError, "resources must be a dict of name to amount, not list"),
    ({"resources": {1: 1}}, TypeError, "resources has the name 1"),
    ({"num_returns": -1}, ValueError, "num_returns must be at least 0, but is -1"),
    ({"num_returns": 1.0}, TypeError, "num_returns must be an int, not float"),
    ({"num_returns": 70_000}, ValueError, "num_returns can be at most 65533"),
    ({"num_returns": "streaming"}, ValueError, "num_returns='streaming' is not supported yet"),
    ({"max_retries": -2}, ValueError, r"max_retries must be at least -1 \(-1 means without limit\), but is -2"),
    ({"retry_exceptions": [int]}, TypeError, "retry_exceptions must be a bool or a list of exception classes"),
    ({"retry_exceptions": ValueError}, TypeError, "retry_exceptions must be a bool or a list"),
    ({"name": ""}, ValueError, "name cannot be empty"),
    ({"scheduling_strategy": "PACK"}, ValueError, "scheduling_strategy must be 'DEFAULT', 'SPREAD'"),
    ({"scheduling_strategy": object()}, TypeError, "scheduling_strategy object is not supported yet"),
    ({"runtime_env": {"pip": ["x"]}}, ValueError, "option 'runtime_env' is not supported yet"),
    ({"placement_group": "pg"}, ValueError, "option 'placement_group' is not supported yet"),
    ({"max_restarts": 1}, ValueError, "tasks have no option 'max_restarts': did you mean 'max_retries'"),
]


@pytest.mark.parametrize(("given", "error", "message"), BAD)
def test_what_is_wrong_is_named(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        options.task_options(given)
    with pytest.raises(error, match=message):
        options.change_task(TaskOptions(), given)


BAD_ACTOR: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"max_concurrency": 0}, ValueError, "max_concurrency must be at least 1, but is 0"),
    ({"lifetime": "forever"}, ValueError, "lifetime must be 'detached' or 'non_detached', not 'forever'"),
    ({"get_if_exists": True}, ValueError, "get_if_exists needs a name"),
    ({"concurrency_groups": {"io": 0}}, ValueError, r"concurrency_groups\['io'\] must be at least 1"),
    ({"concurrency_groups": ["io"]}, TypeError, "concurrency_groups must be a dict of group name to concurrency"),
    ({"max_restarts": "3"}, TypeError, "max_restarts must be an int, not str"),
    ({"num_returns": 2}, ValueError, "actors have no option 'num_returns'"),
    ({"namespace": 3}, TypeError, "namespace must be a str, not int"),
]


@pytest.mark.parametrize(("given", "error", "message"), BAD_ACTOR)
def test_what_is_wrong_with_an_actor_is_named(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        options.actor_options(given)


def test_options_change_only_what_is_given_and_none_is_the_default() -> None:
    task = options.task_options({"num_cpus": 2, "name": "f", "max_calls": 3})
    changed = options.change_task(task, {"num_returns": 2, "name": None, "runtime_env": {}, "placement_group": None})
    assert (changed.num_cpus, changed.num_returns, changed.name, changed.max_calls) == (2, 2, None, 3)
    assert (task.num_returns, task.name) == (1, "f")
    actor = options.change_actor(options.actor_options({"name": "a", "get_if_exists": True}), {"num_cpus": 1})
    assert actor == ActorOptions(name="a", get_if_exists=True, num_cpus=1)
    with pytest.raises(ValueError, match="get_if_exists needs a name"):
        options.change_actor(actor, {"name": None})


def test_what_belongs_to_the_decorator_is_refused_later() -> None:
    with pytest.raises(ValueError, match="max_calls cannot be set in"):
        options.change_task(TaskOptions(), {"max_calls": 1})
    with pytest.raises(ValueError, match="concurrency_groups cannot be set in"):
        options.change_actor(ActorOptions(), {"concurrency_groups": {"io": 1}})


def test_method_options_keep_only_what_is_given() -> None:
    assert options.method_options({"num_returns": 2, "concurrency_group": "io", "retry_exceptions": None}) == {
        "num_returns": 2, "concurrency_group": "io"}
    with pytest.raises(ValueError, match="methods have no option 'num_cpus'"):
        options.method_options({"num_cpus": 1})


def test_strategies_on_the_wire() -> None:
    def wire(**given: object) -> Strategy:
        return options.strategy_of(options.task_options(given))

    assert wire().kind == wire(scheduling_strategy="DEFAULT").kind == "default"
    assert wire(scheduling_strategy="SPREAD").kind == "spread"
    strategy = wire(scheduling_strategy=NodeAffinitySchedulingStrategy("n1", soft=True), label_selector={"zone": "a"})
    assert (strategy.kind, strategy.node, strategy.soft) == ("node", "n1", True)
    assert strategy.labels == (("zone", "a"),)


def test_exceptions_worth_another_attempt() -> None:
    assert options.retry_bytes(False) is None
    yes = options.retry_bytes(True)
    assert yes is not None
    assert serialization.deserialize(yes) is True
    chosen = options.task_options({"retry_exceptions": [KeyError, OSError]})
    some = options.retry_bytes(chosen.retry_exceptions)
    assert some is not None
    assert serialization.deserialize(some) == (KeyError, OSError)
    assert pickle.loads(pickle.dumps(chosen)) == chosen
