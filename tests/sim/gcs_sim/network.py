"""A network that delays, loses, repeats, reorders and divides.

*Pure.* Runs in simulation tests.

1. Each direction of each pair is a link of its own; a link may be cut, also in one direction only.
2. Messages of one link stay in order, as on one connection of ZeroMQ; in weather that ``reorders`` they overtake each
   other, as when a connection is replaced by another and what was on the old one comes late.
3. A message to a process that is down is lost, or kept for its next life, as a pipe that reconnects keeps it.
"""

from __future__ import annotations

import random
from typing import Any

import msgspec

from meshray.config import MILLISECOND_NS, SECOND_NS
from tests.sim.gcs_sim.schedule import Schedule

MICROSECOND_NS = 1_000


class Weather(msgspec.Struct):
    """What may happen to a message. Chances are per message; a slow one takes up to ``slow_ns``."""

    loss: float = 0.0
    twice: float = 0.0
    slow: float = 0.0
    delay_ns: int = 200 * MICROSECOND_NS
    slow_ns: int = 20 * MILLISECOND_NS
    kept: float = 0.5
    reorders: bool = False
    echo: float = 0.0
    """Chance that a copy arrives much later, as from the queue of a connection that has long been replaced; perhaps its
    sender has another life by then."""
    echo_ns: int = 2 * SECOND_NS


CALM = Weather()


class Network:
    """All links. ``processes`` maps names to whatever has ``arrive`` and ``is_up``."""

    def __init__(self, schedule: Schedule, source: random.Random, weather: Weather) -> None:
        self.weather = weather
        self.processes: dict[str, Any] = {}
        self.cut: set[tuple[str, str]] = set()
        self.sent = self.lost = 0
        self._schedule, self._random = schedule, source
        self._last_ns: dict[tuple[str, str], int] = {}
        """When the last message of a link arrives."""

    def post(self, sender: str, to: str, route: bytes, message: Any) -> None:
        """Send ``message`` from ``sender`` to ``to``, who receives it on ``route``."""
        weather, chance = self.weather, self._random.random
        self.sent += 1
        copies = 1
        if weather.twice and chance() < weather.twice:
            copies = 2
        for _ in range(copies):
            if (sender, to) in self.cut or (weather.loss and chance() < weather.loss):
                self.lost += 1
                continue
            longest_ns = weather.slow_ns if weather.slow and chance() < weather.slow else weather.delay_ns
            delay_ns = 1 + int(chance() * longest_ns)
            if not weather.reorders:
                now_ns = self._schedule.now_ns
                delay_ns = max(delay_ns, self._last_ns.get((sender, to), 0) - now_ns)
                self._last_ns[(sender, to)] = now_ns + delay_ns
            self._schedule.after(delay_ns, self._arrive, sender, to, route, message)
        if weather.echo and chance() < weather.echo:
            self._schedule.after(int(chance() * weather.echo_ns), self._arrive, sender, to, route, message)

    def divide(self, left: set[str], right: set[str], *, one_way: bool = False) -> None:
        """Cut every link from ``left`` to ``right``, and back unless ``one_way``."""
        self.cut |= {(a, b) for a in left for b in right}
        if not one_way:
            self.cut |= {(b, a) for a in left for b in right}

    def join(self) -> None:
        """Mend every link."""
        self.cut.clear()

    def _arrive(self, sender: str, to: str, route: bytes, message: Any) -> None:
        process = self.processes.get(to)
        if process is None or (sender, to) in self.cut:
            self.lost += 1
        elif process.is_up or self._random.random() < self.weather.kept:
            process.arrive(route, message)
