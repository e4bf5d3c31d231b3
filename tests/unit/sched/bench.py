"""A local scheduler, its clock, and what its events cause.

*Pure.* Runs in tests.
"""

from __future__ import annotations

from typing import Any

from meshray import config
from meshray.machine import Received
from meshray.messages.node import DeclareDemand, Demand
from meshray.sched.events import SessionJoined
from meshray.sched.local import LocalScheduler

U = 10_000
CPU = {"CPU": U}
MS = config.MILLISECOND_NS


class Bench:
    """One scheduler, its clock, and the effects of each event."""

    def __init__(self, cpus: int = 2, **options: Any) -> None:
        self.machine = LocalScheduler("node-1", "head", "ipc://node-1", {"CPU": cpus * U}, **options)
        self.now_ns = 1
        self.workers = 0

    def event(self, event: Any) -> list[Any]:
        self.now_ns += MS
        effects = self.machine.handle(event, self.now_ns)
        self.machine.check()
        return effects

    def says(self, who: str, message: Any) -> list[Any]:
        return self.event(Received(who.encode(), message))

    def driver(self, name: str) -> None:
        self.event(SessionJoined(name, name.encode(), "driver", 1, f"ipc://{name}", "job"))

    def worker(self) -> list[Any]:
        self.workers += 1
        name = f"w{self.workers}"
        return self.event(SessionJoined(name, name.encode(), "worker", self.workers, f"ipc://{name}"))

    def wants(self, who: str, count: int, need: dict[str, int] | None = None, klass: int = 0) -> list[Any]:
        return self.says(who, DeclareDemand([Demand(klass, CPU if need is None else need, count)]))


def sent(effects: list[Any], kind: type) -> list[Any]:
    return [effect.message for effect in effects if isinstance(getattr(effect, "message", None), kind)]
