"""The node among the others: what it tells the global schedulers of itself, and whom it knows.

*Pure.* Runs in the node process, inside ``LocalScheduler``.

1. The node tells every global scheduler its load: each ``HEARTBEAT_NS`` while it changes, each ``HEARTBEAT_REST_NS``
   while it does not, and sooner when the node becomes full or free.
2. What is about to be given out does not count as free.
3. A heartbeat carries the digest of the nodes known here; a replica that knows others answers with them.

Source: OSDI'18 s4.2.2 (heartbeats carry load).
"""

from __future__ import annotations

from collections.abc import Callable

from meshray import config
from meshray.machine import Connect, Send
from meshray.messages.sched import ClusterView, Heartbeat, NodeLoad
from meshray.sched import members, policy
from meshray.sched.context import Context
from meshray.sched.demands import Claim, Demands
from meshray.sched.events import route_to

HEARTBEAT_MIN_NS = 10 * config.MILLISECOND_NS
"""Heartbeats outside the rhythm are at least this far apart."""


class Presence:
    """Heartbeats out, members in."""

    def __init__(self, context: Context, demands: Demands, *, incarnation: int, pid: int) -> None:
        self._context = context
        self._demands = demands
        self._incarnation = incarnation
        self._pid = pid
        self._sent = 0
        self._sent_ns = 0
        self._last: Heartbeat | None = None
        self._news = False
        """Whether anything has happened since the last heartbeat, or since it was found that it changed nothing."""
        self._replicas: list[tuple[Connect, bytes]] = []
        self._mean_task_ns = 0
        self._digest = members.line(self.load())

    def ran(self, mean_ns: int) -> None:
        """An owner says how long its tasks take."""
        self._mean_task_ns = policy.average(self._mean_task_ns, mean_ns)

    def load(self, waiting: list[Claim] | None = None) -> NodeLoad:
        """Return what this node says of itself. ``waiting``: all claims that may lack leases, if known."""
        context, starting = self._context, self._demands.starting
        if waiting is None:
            waiting = self._demands.waiting()
        free = {name: max(0, amount - starting.get(name, 0)) for name, amount in context.ledger.free().items()}
        queued = sum(max(claim.backlog, missing) for claim in waiting if (missing := claim.missing))
        return NodeLoad(context.node, context.name, context.endpoint, context.ledger.total, free, queued,
                        self._mean_task_ns, context.bytes_per_s, self._incarnation, self._pid, context.labels)

    def report_to(self, schedulers: dict[str, str]) -> None:
        """Tell these replicas from now on (name -> endpoint), for the first time at the next occasion."""
        self._replicas = [(Connect(name, endpoint), route_to(name)) for name, endpoint in schedulers.items()]
        self._sent_ns = 0

    def due_ns(self) -> int:
        """Return when the next heartbeat is due."""
        if not self._sent_ns:
            return 0
        return self._sent_ns + (config.HEARTBEAT_NS if self._news else config.HEARTBEAT_REST_NS)

    def beat(self, waiting: list[Claim] | None = None, *, news: bool) -> None:
        """Report the load if it is time, or if a resource was used up or became free again. ``news``: something other
        than time has passed."""
        context, now_ns = self._context, self._context.now_ns
        self._news = self._news or news
        elapsed_ns = now_ns - self._sent_ns
        load = None
        if self._last is not None and self._sent_ns and elapsed_ns < config.HEARTBEAT_REST_NS:
            if not self._news or elapsed_ns < HEARTBEAT_MIN_NS:
                return
            if elapsed_ns >= config.HEARTBEAT_NS:
                load = self.load(waiting)
                if load == self._last.load and self._last.members == self._digest:
                    self._news = False
                    return
            elif not self._replicas or not self._turned(self._last.load.available):
                return
        self._sent_ns = max(1, now_ns)
        self._sent += 1
        self._news = False
        self._last = message = Heartbeat(load or self.load(waiting), self._sent, self._digest)
        for connect, route in self._replicas:
            context.emit(connect)
            context.emit(Send(route, message))

    def _turned(self, shown: dict[str, int]) -> bool:
        """Whether a resource was used up or became free since others were told."""
        available, starting = self._context.ledger.available, self._demands.starting
        for name, amount in shown.items():  # noqa: SIM110  asked at every event, and a generator costs twice as much
            if (available[name] > starting.get(name, 0)) != (amount > 0):
                return True
        return False

    def learn(self, message: ClusterView) -> bool:
        """Take in members that a replica tells; whether any was new or has changed."""
        view = self._context.view
        changed = False
        for load in message.nodes:
            if load.node == self._context.node:
                continue
            known = view.get(load.node)
            if known is None or not members.same(known, load):
                changed = True
                self._digest ^= members.line(load) ^ (members.line(known) if known is not None else 0)
                view[load.node] = load
        return changed

    def forget(self, node: str, forgotten: Callable[[NodeLoad], None]) -> None:
        """A node is gone."""
        known = self._context.view.pop(node, None)
        if known is not None:
            self._digest ^= members.line(known)
            forgotten(known)

    def check(self) -> None:
        """Assert that the digest is that of the known nodes."""
        assert self._digest == members.digest([self.load(), *self._context.view.values()]), "the digest is off"
