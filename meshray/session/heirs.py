"""Which class of a session takes over workers that another one has no use for.

*Pure.* Runs in drivers and workers.

1. Only between classes that the schedulers treat alike: the same resources, no wish where to run, and no limit on how
   many tasks a worker runs.
2. A class gets no more than it would ask its node for, and nothing before it has asked: the node cannot move leases to
   a class that it does not know. Those with the fewest workers come first.

Source: leases as in NSDI'21 s4. Departure: there a lease ends with the work of its class (decision 0026).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable

from meshray.session.records import Lease, SchedulingClass


def heirs(idle: list[Lease], classes: Iterable[SchedulingClass],
          wanted: Callable[[SchedulingClass], int]) -> list[tuple[SchedulingClass, list[Lease]]]:
    """Return who takes over which of these leases of one class; ``wanted`` says how many leases a class can use."""
    left = idle[0].klass
    heap = [(len(klass.leases), klass.number, wanted(klass), klass) for klass in classes
            if klass.queue and klass.ready and klass.declared and not klass.hungry and klass is not left
            and _alike(klass, left)]
    heapq.heapify(heap)
    given: dict[int, tuple[SchedulingClass, list[Lease]]] = {}
    for lease in idle:
        while heap and heap[0][0] >= heap[0][2]:
            heapq.heappop(heap)
        if not heap:
            break
        held, number, limit, klass = heap[0]
        given.setdefault(number, (klass, []))[1].append(lease)
        heapq.heapreplace(heap, (held + 1, number, limit, klass))
    return list(given.values())


def _alike(klass: SchedulingClass, other: SchedulingClass) -> bool:
    return (klass.resources == other.resources and klass.strategy == other.strategy
            and klass.strategy.kind == "default" and not (klass.max_calls or other.max_calls)
            and not (klass.input_bytes or other.input_bytes))
