"""Tasks with large inputs, told apart by the node where the inputs lie.

*Pure.* Runs in drivers and workers.

1. A scheduling class is split by the node that holds most input bytes of its tasks, because leases are asked for by
   class: each part asks for workers near its inputs.
2. Only inputs that take longer to travel than a task waits anyway count (``LOCALITY_BYTES_MIN``), and a class is split
   into at most ``LOCALITY_SPLITS_MAX`` parts; other tasks stay in the class itself.
3. The owner only says where inputs lie. Whether tasks go there is the schedulers' judgement (``sched.policy``).

Source: OSDI'18 s4.2.2 and fig. 8a.
"""

from __future__ import annotations

from collections.abc import Callable

from meshray import config
from meshray.object_ref import STORED
from meshray.session.records import SchedulingClass, Task


def input_bytes(task: Task) -> dict[str, int]:
    """Return the stored input bytes of a task whose arguments have values, by node."""
    sizes: dict[str, int] = {}
    locations = [ref._value.local or ref._value.location for _, ref in task.slots or () if ref._state == STORED]
    if task.blob is not None and task.blob.location is not None:
        locations.append(task.blob.location)
    for location in locations:
        sizes[location.node] = sizes.get(location.node, 0) + location.size_bytes
    return sizes


def class_near_inputs(classes: dict[int, SchedulingClass], klass: SchedulingClass, task: Task,
                      next_number: Callable[[], int]) -> SchedulingClass:
    """Return the part of ``klass`` for this task, or the class itself; a new part gets the next number."""
    sizes = input_bytes(task)
    node = max(sizes, key=lambda name: (sizes[name], name), default="")
    if not node or sizes[node] < config.LOCALITY_BYTES_MIN:
        return klass
    part = klass.parts.get(node)
    if part is None:
        if len(klass.parts) >= config.LOCALITY_SPLITS_MAX:
            return klass
        part = SchedulingClass(
            next_number(), klass.function, klass.name, klass.resources, klass.strategy, klass.num_returns,
            klass.max_calls, klass.ready, leases={}, mean_ns=klass.mean_ns, retry_exceptions=klass.retry_exceptions,
            max_retries=klass.max_retries, parts={})
        classes[part.number] = klass.parts[node] = part
    part.input_bytes = sizes
    return part
