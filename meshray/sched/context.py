"""What the parts of a local scheduler share: identity, time, resources, workers, and the effects of this event.

*Pure.* Runs in the node process, inside ``LocalScheduler``.

1. ``effects`` holds what the event at hand has caused so far; the facade hands it over when the event is done.
2. A lease number is unique in the cluster: 32 bits of the node's name and incarnation, 32 bits counted.
"""

from __future__ import annotations

import zlib
from typing import Any

from meshray import labels
from meshray.machine import Connect, Send
from meshray.messages.base import Message
from meshray.messages.node import Strategy
from meshray.messages.sched import NodeLoad
from meshray.sched.events import StopWorker, WorkerLabelled, route_to
from meshray.sched.ledger import Ledger
from meshray.sched.policy import UNIT, Resources
from meshray.sched.pool import Pool, Worker


class Context:
    """Shared state of one node's scheduler."""

    def __init__(self, node: str, name: str, endpoint: str, total: Resources, *, incarnation: int,
                 prestart: int, carries: dict[str, str], locality: bool) -> None:
        self.node = node
        self.name = name
        self.endpoint = endpoint
        self.ledger = Ledger(total)
        self.pool = Pool(max(1, total.get("CPU", 0) // UNIT), prestart)
        self.labels = carries
        self.locality = locality
        """Whether demands say where their inputs lie, and are served accordingly."""
        self.bytes_per_s = 0
        """Exponential average of what this node's pulls brought from other nodes."""
        self.view: dict[str, NodeLoad] = {}
        """The other nodes, as the global schedulers told: who they are, not how loaded they are now."""
        self.now_ns = 0
        self.effects: list[Any] = []
        self._leases = 0
        self._lease_base = zlib.crc32(f"{node}/{incarnation}".encode()) << 32

    def able(self, need: Resources, strategy: Strategy) -> bool:
        """Whether this node is large enough and carries the right labels; node affinity aside."""
        return self.ledger.possible(need) and (not strategy.labels or labels.matches(strategy.labels, self.labels))

    def emit(self, effect: Any) -> None:
        """Add an effect."""
        self.effects.append(effect)

    def send(self, route: bytes, message: Message) -> None:
        """Send on a route that exists."""
        self.effects.append(Send(route, message))

    def send_to(self, node: str, endpoint: str, message: Message) -> None:
        """Send to a process that we connect to (connecting twice is a no-op)."""
        self.effects.append(Connect(node, endpoint))
        self.effects.append(Send(route_to(node), message))

    def next_lease(self) -> int:
        """Return a new lease number."""
        self._leases += 1
        return self._lease_base + self._leases

    def label(self, worker: Worker, label: str, job: str) -> None:
        """Say whose output the worker writes from now on."""
        if (worker.label, worker.job) != (label, job):
            worker.label, worker.job = label, job
            self.emit(WorkerLabelled(worker.name, label, job))

    def stop(self, worker: Worker, reason: str, *, kill: bool) -> None:
        """End a worker; what it holds is freed when its process is gone."""
        self.pool.leaving(worker)
        self.emit(StopWorker(worker.name, worker.pid, kill, reason))
