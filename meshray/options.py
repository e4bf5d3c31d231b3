"""Options of tasks, actors and methods: Ray's names, defaults and rules.

*Pure.* Runs in drivers and workers, when something is decorated and at ``.options``.

1. What is wrong is refused where the user wrote it, not when it runs: unknown name, wrong type, impossible value.
2. None is the same as leaving an option out.
3. What meshray does not do yet is refused by name; no option is accepted and then ignored, unless ignoring it is right.

Source: ray 2.60.0, ``_common/ray_option_utils.py``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec

from meshray import config, labels, resources, serialization
from meshray.messages.node import Strategy


class NodeAffinitySchedulingStrategy(msgspec.Struct, frozen=True):
    """Run on the node with this id (or name). ``soft``: elsewhere if that node is gone or can never run it."""

    node_id: str
    soft: bool = False


class TaskOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of a task. Amounts as users write them; ``memory`` in bytes."""

    num_cpus: float = 1
    num_gpus: float = 0
    memory: float = 0
    resources: dict[str, float] = {}
    accelerator_type: str | None = None
    num_returns: int = 1
    max_retries: int = config.MAX_RETRIES
    retry_exceptions: bool | tuple[type, ...] = False
    max_calls: int = 0
    name: str | None = None
    scheduling_strategy: Any = None
    label_selector: labels.Selector = ()
    enable_task_events: bool = True


class ActorOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of an actor. ``num_cpus`` None: 1 to be placed, 0 while it runs."""

    num_cpus: float | None = None
    num_gpus: float = 0
    memory: float = 0
    resources: dict[str, float] = {}
    accelerator_type: str | None = None
    max_restarts: int = 0
    max_task_retries: int = 0
    max_concurrency: int | None = None
    concurrency_groups: dict[str, int] | None = None
    max_pending_calls: int = -1
    allow_out_of_order_execution: bool | None = None
    name: str | None = None
    namespace: str | None = None
    lifetime: str | None = None
    get_if_exists: bool = False
    scheduling_strategy: Any = None
    label_selector: labels.Selector = ()
    enable_task_events: bool = True


Check = Callable[[str, Any], Any]
"""Takes name and value; returns the value to keep; raises TypeError or ValueError."""


def _typed(kind: type | tuple[type, ...], what: str) -> Check:
    def check(name: str, value: Any) -> Any:
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
            raise TypeError(f"{name} must be {what}, not {type(value).__name__}")
        return value
    return check


def _count(minimum: int, meaning: str = "") -> Check:
    def check(name: str, value: Any) -> Any:
        _typed(int, "an int")(name, value)
        if value < minimum:
            raise ValueError(f"{name} must be at least {minimum}{meaning}, but is {value}")
        return value
    return check


def _amount(name: str, value: Any) -> Any:
    units = resources.to_units(name, value)
    if name == "num_gpus" and units > resources.UNITS_PER_ONE and units % resources.UNITS_PER_ONE:
        raise ValueError(f"num_gpus above 1 must be a whole number, but is {value}")
    return value


def _custom(name: str, value: Any) -> Any:
    resources.check_custom(name, value)
    return dict(value)


def _num_returns(name: str, value: Any) -> Any:
    if value in ("streaming", "dynamic"):
        raise ValueError(f"{name}={value!r} is not supported yet: return a list, or set {name} to the number of values")
    _count(0)(name, value)
    if value >= 0xFFFE:
        raise ValueError(f"{name} can be at most {0xFFFE - 1}, but is {value}: return a list")
    return value


def _retry_exceptions(name: str, value: Any) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, list | tuple) and all(isinstance(one, type) and issubclass(one, Exception) for one in value):
        return tuple(value)
    raise TypeError(f"{name} must be a bool or a list of exception classes, not {value!r}")


def _one_of(*allowed: str) -> Check:
    def check(name: str, value: Any) -> Any:
        if value not in allowed:
            raise ValueError(f"{name} must be {' or '.join(map(repr, allowed))}, not {value!r}")
        return value
    return check


def _name(name: str, value: Any) -> Any:
    if not _typed(str, "a str")(name, value):
        raise ValueError(f"{name} cannot be empty: give a name or leave it out")
    return value


def _groups(name: str, value: Any) -> Any:
    _typed(dict, "a dict of group name to concurrency")(name, value)
    for group, size in value.items():
        _name(f"a group of {name}", group)
        _count(1)(f"{name}[{group!r}]", size)
    return dict(value)


def _strategy(name: str, value: Any) -> Any:
    if isinstance(value, NodeAffinitySchedulingStrategy) or value in ("DEFAULT", "SPREAD"):
        return value
    if isinstance(value, str):
        raise ValueError(f"{name} must be 'DEFAULT', 'SPREAD' or a NodeAffinitySchedulingStrategy, not {value!r}")
    raise TypeError(f"{name} {type(value).__name__} is not supported yet: use 'DEFAULT', 'SPREAD' or a "
                    "NodeAffinitySchedulingStrategy")


_bool = _typed(bool, "a bool")
_COMMON: dict[str, Check] = {
    "num_cpus": _amount, "num_gpus": _amount, "memory": _amount, "resources": _custom,
    "accelerator_type": _name, "name": _name, "scheduling_strategy": _strategy, "enable_task_events": _bool,
    "label_selector": labels.check_selector,
}
_INFINITE = " (-1 means without limit)"
TASK_CHECKS: dict[str, Check] = {
    **_COMMON, "num_returns": _num_returns, "max_retries": _count(-1, _INFINITE),
    "retry_exceptions": _retry_exceptions, "max_calls": _count(0),
}
ACTOR_CHECKS: dict[str, Check] = {
    **_COMMON, "max_restarts": _count(-1, _INFINITE), "max_task_retries": _count(-1, _INFINITE),
    "max_concurrency": _count(1), "concurrency_groups": _groups, "max_pending_calls": _count(-1, _INFINITE),
    "allow_out_of_order_execution": _bool, "namespace": _name, "lifetime": _one_of("detached", "non_detached"),
    "get_if_exists": _bool,
}
METHOD_CHECKS: dict[str, Check] = {
    "num_returns": _num_returns, "concurrency_group": _name, "max_task_retries": _count(-1, _INFINITE),
    "retry_exceptions": _retry_exceptions, "enable_task_events": _bool, "name": _name,
}
_NOT_YET = frozenset({
    "runtime_env", "placement_group", "placement_group_bundle_index", "placement_group_capture_child_tasks",
    "fallback_strategy", "object_store_memory", "enable_tensor_transport", "tensor_transport",
    "_generator_backpressure_num_objects", "_num_objects_per_yield", "_actor_generator_backpressure_num_objects",
})
_EMPTY: tuple[Any, ...] = (None, {}, [], "default", False)
"""Values with which an option that meshray does not know yet asks for nothing."""


def _checked(kind: str, checks: Mapping[str, Check], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given options, checked; those that are None stay None."""
    chosen = {}
    for name, value in given.items():
        check = checks.get(name)
        if check is not None:
            chosen[name] = None if value is None else check(name, value)
        elif name not in _NOT_YET:
            near = difflib.get_close_matches(name, checks, 1)
            hint = f": did you mean {near[0]!r}?" if near else f". There are: {', '.join(sorted(checks))}"
            raise ValueError(f"{kind}s have no option {name!r}{hint}")
        elif value not in _EMPTY:
            raise ValueError(f"option {name!r} is not supported yet: leave it out")
    return chosen


Options = TypeVar("Options", TaskOptions, ActorOptions)


def _changed(options: Options, chosen: dict[str, Any]) -> Options:
    defaults = type(options)()
    return msgspec.structs.replace(
        options, **{name: getattr(defaults, name) if value is None else value for name, value in chosen.items()})


def task_options(given: Mapping[str, Any]) -> TaskOptions:
    """Return the options given to ``@remote`` on a function. Raise TypeError or ValueError."""
    return _changed(TaskOptions(), _checked("task", TASK_CHECKS, given))


def change_task(options: TaskOptions, changes: Mapping[str, Any]) -> TaskOptions:
    """Return ``options`` with the ``changes`` given to ``.options``. Raise TypeError or ValueError."""
    if "max_calls" in changes:
        raise ValueError("max_calls cannot be set in .options(): set it in @remote")
    return _changed(options, _checked("task", TASK_CHECKS, changes))


def key(options: TaskOptions) -> tuple[Any, ...] | None:
    """Return what equal options have in common, to look them up by; None if a part of them cannot be hashed."""
    found = (*msgspec.structs.astuple(msgspec.structs.replace(options, resources={})),
             frozenset(options.resources.items()))
    found = tuple(frozenset(part.items()) if isinstance(part, dict) else part for part in found)
    try:
        hash(found)
    except TypeError:
        return None
    return found


def actor_options(given: Mapping[str, Any]) -> ActorOptions:
    """Return the options given to ``@remote`` on a class. Raise TypeError or ValueError."""
    return _coherent(_changed(ActorOptions(), _checked("actor", ACTOR_CHECKS, given)))


def change_actor(options: ActorOptions, changes: Mapping[str, Any]) -> ActorOptions:
    """Return ``options`` with the ``changes`` given to ``.options``. Raise TypeError or ValueError."""
    if "concurrency_groups" in changes:
        raise ValueError("concurrency_groups cannot be set in .options(): set it in @remote")
    return _coherent(_changed(options, _checked("actor", ACTOR_CHECKS, changes)))


def _coherent(options: ActorOptions) -> ActorOptions:
    if options.get_if_exists and not options.name:
        raise ValueError("get_if_exists needs a name: there is nothing to look for")
    return options


def method_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were given to ``@method`` or ``method.options``. Raise TypeError or ValueError."""
    return {name: value for name, value in _checked("method", METHOD_CHECKS, given).items() if value is not None}


# --- what the scheduler needs ----------------------------------------------------------------------------------------


def task_resources(options: TaskOptions) -> dict[str, int]:
    """Return what a task needs, in units; what it needs nothing of is left out."""
    return _resources(options, options.num_cpus)


def actor_place_resources(options: ActorOptions) -> dict[str, int]:
    """Return what a node must have free to start the actor: 1 CPU unless the user said otherwise."""
    return _resources(options, 1 if options.num_cpus is None else options.num_cpus)


def actor_run_resources(options: ActorOptions) -> dict[str, int]:
    """Return what the actor holds as long as it lives: no CPU unless the user said otherwise."""
    return _resources(options, options.num_cpus or 0)


def _resources(options: TaskOptions | ActorOptions, num_cpus: float) -> dict[str, int]:
    units = {resources.CPU: resources.to_units("num_cpus", num_cpus),
             resources.GPU: resources.to_units("num_gpus", options.num_gpus),
             resources.MEMORY: resources.to_units("memory", options.memory),
             **resources.check_custom("resources", options.resources)}
    if options.accelerator_type is not None:
        units[f"accelerator_type:{options.accelerator_type}"] = resources.UNITS_PER_ONE // 1000
    return {name: amount for name, amount in units.items() if amount}


def strategy_of(options: TaskOptions | ActorOptions) -> Strategy:
    """Return the wire form of where a task or actor may run."""
    chosen = options.scheduling_strategy
    if isinstance(chosen, NodeAffinitySchedulingStrategy):
        return Strategy("node", chosen.node_id, chosen.soft, options.label_selector)
    return Strategy("spread" if chosen == "SPREAD" else "default", labels=options.label_selector)


def retry_bytes(retry_exceptions: bool | tuple[type, ...]) -> bytes | None:
    """Return which exceptions are worth another attempt: None for none, else True or the classes, serialized."""
    return serialization.serialize(retry_exceptions).inline() if retry_exceptions else None
