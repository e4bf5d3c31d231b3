"""A simulated process: a machine in turns, as ``transport.host`` runs it, which may stop anywhere.

*Pure.* Runs in simulation tests.

1. A turn: take all that waits, read the clock, handle, persist once, then act; events that acting causes are handled in
   the same turn. ``Host`` does the same.
2. A crash comes before a turn is persisted, or after that and before anything is sent, or between turns.
3. A freeze comes between turns, or between the handling and the sending of one: what was decided under an old clock
   then leaves late.
4. A machine that stops, or whose disk fails, ends its process. Whoever looks after it starts it again.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from meshray.config import SECOND_NS
from meshray.gcs.log import SendUnderLease
from meshray.gcs.storage import StorageFailed
from meshray.machine import Connect, Disconnect, Received, Send, Stop, Tick, Undeliverable
from tests.sim.gcs_sim.history import Violation
from tests.sim.gcs_sim.network import MICROSECOND_NS, Network
from tests.sim.gcs_sim.schedule import Clock, Schedule

TURN_NS = 50 * MICROSECOND_NS
"""A turn begins at most so long after the first message has come."""

SPINS_MAX = 200
"""Turns in a row that a machine may want at once."""


class Process:
    """One process. ``boot`` makes its machine at each start, and its first effects; ``perform`` acts on effects that
    the network does not know, and returns events; ``durable`` are the effects that ``persist`` makes durable."""

    sends_first = False
    """Broken on purpose: messages leave before the turn is persisted."""

    def __init__(
        self, name: str, *, schedule: Schedule, network: Network, source: random.Random, clock: Clock,
        boot: Callable[[int], tuple[Any, list[Any]]], perform: Callable[[Any], list[Any]],
        persist: Callable[[list[Any]], list[Any]], durable: tuple[type, ...] = (),
    ) -> None:
        self.name, self.clock = name, clock
        self.machine: Any = None
        self.lives = 0
        self.crash_chance = self.freeze_chance = 0.0
        """Chances of a crash, and of a freeze, inside a turn that persists something."""
        self.freeze_max_ns = SECOND_NS
        self.ended: Callable[[Process, str], None] = lambda process, reason: None
        self.turned: Callable[[Process], None] = lambda process: None
        """Told after every turn that it survived."""
        self._schedule, self._network, self._random = schedule, network, source
        self._boot, self._perform, self._persist, self._durable = boot, perform, persist, durable
        self._inbox: list[Received] = []
        self._routes: set[bytes] = set()
        self._life = 0
        self._frozen_until_ns = 0
        self._turn_due = False
        self._wake_ns: int | None = None
        self._spins = 0
        network.processes[name] = self

    @property
    def is_up(self) -> bool:
        """Whether it lives; a frozen process does."""
        return self.machine is not None

    @property
    def is_frozen(self) -> bool:
        """Whether it is stopped and will go on."""
        return self._schedule.now_ns < self._frozen_until_ns

    def start(self) -> None:
        """Begin a new life, if there is none."""
        if self.machine is None:
            self.lives += 1
            self._routes.clear()
            self._frozen_until_ns = 0
            self._turn_due = False
            self._wake_ns = None
            self.machine, effects = self._boot(self.clock.now_ns())
            self._apply(effects)
            self._arm()
            if self._inbox:
                self._soon()

    def crash(self) -> None:
        """End at once. What lies on the disk stays, everything else is gone."""
        if self.machine is not None:
            self._end("killed")

    def freeze(self, duration_ns: int) -> None:
        """Stand still for so long; what arrives meanwhile waits."""
        self._frozen_until_ns = max(self._frozen_until_ns, self._schedule.now_ns + duration_ns)

    def arrive(self, route: bytes, message: Any) -> None:
        """Take a message from the network; one that comes before the next life waits for it."""
        self._inbox.append(Received(route, message))
        if self.machine is not None:
            if not route.startswith(b">"):
                self._routes.add(route)
            self._soon()

    def act(self, action: Callable[[Any, int], list[Any]]) -> None:
        """Let the process do something of its own; ``action`` takes the machine and its time, and returns effects."""
        if self.machine is not None:
            self._apply(action(self.machine, self.clock.now_ns()))
            self._arm()

    def _soon(self) -> None:
        if not self._turn_due:
            self._turn_due = True
            self._schedule.after(int(self._random.random() * TURN_NS), self._turn, self._life)

    def _turn(self, life: int) -> None:
        if life != self._life or self.machine is None:
            return
        if self.is_frozen:
            self._schedule.after(self._frozen_until_ns - self._schedule.now_ns + 1, self._turn, life)
            return
        self._turn_due = False
        machine, now_ns = self.machine, self.clock.now_ns()
        messages, self._inbox = self._inbox, []
        effects: list[Any] = []
        for message in messages:
            effects += machine.handle(message, now_ns)
        due_ns = machine.deadline_ns()
        if due_ns is not None and due_ns <= now_ns:
            effects += machine.handle(Tick(), now_ns)
        self._apply(effects)
        self._arm()

    def _apply(self, effects: list[Any]) -> None:
        """Persist, act, and handle what comes of it."""
        life, now_ns = self._life, self.clock.now_ns()
        while effects and life == self._life:
            if self.sends_first:
                self._perform_all([effect for effect in effects if type(effect) is Send], now_ns)
                effects = [effect for effect in effects if type(effect) is not Send]
            risky = any(type(effect) in self._durable for effect in effects)
            if risky and self.crash_chance and self._random.random() < self.crash_chance:
                self._end("killed before it persisted")
                return
            try:
                effects = self._persist(effects)
            except StorageFailed as error:
                self._end(str(error))
                return
            if risky and self.crash_chance and self._random.random() < self.crash_chance:
                self._end("killed after it persisted")
                return
            if self.freeze_chance and self._random.random() < self.freeze_chance:
                self.freeze(int(self._random.random() * self.freeze_max_ns))
            effects = self._perform_all(effects, now_ns)
        if life == self._life and self.machine is not None:
            self.machine.check()
            self.turned(self)

    def _perform_all(self, effects: list[Any], now_ns: int) -> list[Any]:
        """Act on the effects; return those of the events that this causes."""
        events: list[Any] = []
        for effect in effects:
            kind = type(effect)
            if kind is Send:
                events += self._send(effect.to, effect.message)
            elif kind is SendUnderLease:
                events += self._send_under_lease(effect)
            elif kind is Connect:
                self._routes.add(b">" + effect.name.encode())
            elif kind is Disconnect:
                self._routes.discard(b">" + effect.name.encode())
            elif kind is Stop:
                self._end(effect.reason)
                return []
            else:
                events += self._perform(effect)
        following: list[Any] = []
        for event in events:
            if self.machine is not None:
                following += self.machine.handle(event, now_ns)
        return following

    def _send_under_lease(self, effect: SendUnderLease) -> list[Any]:
        """Look at the clock when the freeze ends that came in the middle of this turn."""
        thawed_ns = self.clock.now_ns() + int(max(0, self._frozen_until_ns - self._schedule.now_ns) * self.clock.rate)
        return self._send(effect.to, effect.message) if thawed_ns < effect.until_ns else []

    def _send(self, to: bytes, message: Any) -> list[Any]:
        """Send now, or when the freeze ends that came in the middle of this turn."""
        out = to.startswith(b">")
        name = to.removeprefix(b">").decode()
        peer = self._network.processes.get(name)
        if to not in self._routes or (not out and (peer is None or not peer.is_up)):
            return [Undeliverable(to, message)]
        route = self.name.encode() if out else b">" + self.name.encode()
        wait_ns = self._frozen_until_ns - self._schedule.now_ns
        if wait_ns > 0:
            self._schedule.after(wait_ns, self._late, self._life, name, route, message)
        else:
            self._network.post(self.name, name, route, message)
        return []

    def _late(self, life: int, name: str, route: bytes, message: Any) -> None:
        if life == self._life:
            self._network.post(self.name, name, route, message)

    def _end(self, reason: str) -> None:
        self.machine = None
        self._life += 1
        self._inbox.clear()
        self.ended(self, reason)

    def _arm(self) -> None:
        """Wake up when the machine wants to."""
        if self.machine is None:
            return
        due_ns = self.machine.deadline_ns()
        if due_ns is not None and (self._wake_ns is None or due_ns < self._wake_ns):
            delay_ns = self.clock.delay_ns(due_ns)
            self._spins = 0 if delay_ns else self._spins + 1
            if self._spins > SPINS_MAX:
                raise Violation(f"{self.name} spins: it wants to act at once, again and again, and does nothing")
            self._wake_ns = due_ns
            self._schedule.after(delay_ns or TURN_NS, self._wake, self._life, due_ns)

    def _wake(self, life: int, due_ns: int) -> None:
        if life == self._life and self._wake_ns == due_ns:
            self._wake_ns = None
            if self.is_frozen or self.machine.deadline_ns() is None:
                self._soon()
            elif self.machine.deadline_ns() <= self.clock.now_ns():
                self._turn(life)
            else:
                self._arm()
