"""Runs a machine in turns: drain, handle, persist once, then act.

*Shell (zmq, clock).* Runs in the node, shard and global scheduler processes.

1. A turn handles at most ``TURN_MESSAGES_MAX`` messages; nothing is sent before what the turn persists is committed.
2. Time is read once per turn, from one clock that never goes back.
3. The host knows nothing of what the machine decides: effects that are not transport go to the ``perform`` table.
4. A machine is asked for its deadline once for all that it has handled: a node asks all of its parts.

Source: DESIGN s3; Ready loop of etcd's raft.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from meshray import config
from meshray.machine import Connect, Disconnect, Machine, Received, Send, Stop, Tick, Undeliverable
from meshray.transport.codec import BadFrame, decode, encode
from meshray.transport.sockets import Wire

log = logging.getLogger("meshray.host")

Source = Callable[[], Iterable[Any]]
Performer = Callable[[Any], Iterable[Any] | None]
Persister = Callable[[list[Any]], Iterable[Any]]


class Host:
    """A process around one machine."""

    def __init__(
        self,
        machine: Machine,
        peers: Wire,
        *,
        perform: dict[type, Performer] | None = None,
        persist: Persister | None = None,
        sources: dict[int, Source] | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """``perform`` acts on the machine's own effects and may return events; ``persist`` takes all of a turn's
        effects, commits what must be durable and returns the effects that remain; ``sources`` maps file descriptors
        to functions that return events when the descriptor is readable."""
        self.machine = machine
        self.peers = peers
        self.stopped: str | None = None
        self._perform = perform or {}
        self._persist = persist
        self._clock_ns = clock_ns
        self._deadline_ns: int | None = None
        self._deadline_known = False
        """Whether nothing was handled since the machine was asked for its deadline."""
        self._sources = dict(sources or {})
        for fd in self._sources:
            peers.watch_fd(fd)

    def add_source(self, fd: int, source: Source) -> None:
        """Also take events from ``source`` when ``fd`` is readable."""
        self._sources[fd] = source
        self.peers.watch_fd(fd)

    def remove_source(self, fd: int) -> None:
        """Undo ``add_source``."""
        del self._sources[fd]
        self.peers.unwatch_fd(fd)

    def run(self) -> str:
        """Run until a ``Stop`` effect; return its reason."""
        while self.stopped is None:
            self.turn()
        return self.stopped

    def turn(self, wait_max_ms: int = 1000) -> None:
        """Wait for something to do, at most ``wait_max_ms``, and do it."""
        ready = self.peers.wait(self._timeout_ms(wait_max_ms))
        messages = self.peers.receive(config.TURN_MESSAGES_MAX, ready=ready)
        now_ns = self._clock_ns()
        effects: list[Any] = []
        handle = self.machine.handle
        self._deadline_known = self._deadline_known and not (messages or self.peers.bounced or self.peers.readable)
        for parts in messages:
            message = decode(parts[1])
            if type(message) is BadFrame:
                log.warning("frame from %r dropped: %s", parts[0], message.reason)
                continue
            effects += handle(Received(parts[0], message, parts[2:]), now_ns)
        while self.peers.bounced:
            route, frame = self.peers.bounced.popleft()
            message = decode(frame)
            if type(message) is not BadFrame:
                effects += handle(Undeliverable(route, message), now_ns)
        for fd in self.peers.readable:
            source = self._sources.get(fd)
            for event in source() if source is not None else ():
                effects += handle(event, now_ns)
        deadline_ns = self._deadline()
        if deadline_ns is not None and deadline_ns <= now_ns:
            self._deadline_known = False
            effects += handle(Tick(), now_ns)
        self._apply(effects, now_ns)

    def apply(self, effects: list[Any], now_ns: int) -> None:
        """Persist, then perform ``effects`` of something that the machine handled without us; events that performing
        causes are handled until none are left."""
        self._deadline_known = False
        self._apply(effects, now_ns)

    def _apply(self, effects: list[Any], now_ns: int) -> None:
        while effects:
            if self._persist is not None:
                self._deadline_known = False
                effects = list(self._persist(effects))
            events: list[Any] = []
            for effect in effects:
                events += self._act(effect)
            effects = []
            if events:
                self._deadline_known = False
            for event in events:
                effects += self.machine.handle(event, now_ns)

    def _act(self, effect: Any) -> Iterable[Any]:
        kind = type(effect)
        if kind is Send:
            if not self.peers.send(effect.to, encode(effect.message), *effect.buffers):
                return (Undeliverable(effect.to, effect.message),)
        elif kind is Connect:
            self.peers.connect(effect.name, effect.endpoint)
        elif kind is Disconnect:
            self.peers.disconnect(effect.name)
        elif kind is Stop:
            self.stopped = effect.reason
        else:
            return self._perform[kind](effect) or ()
        return ()

    def _deadline(self) -> int | None:
        if not self._deadline_known:
            self._deadline_ns = self.machine.deadline_ns()
            self._deadline_known = True
        return self._deadline_ns

    def _timeout_ms(self, wait_max_ms: int) -> int:
        deadline_ns = self._deadline()
        if deadline_ns is None:
            return wait_max_ms
        left_ns = deadline_ns - self._clock_ns()
        return max(0, min(wait_max_ms, -(-left_ns // config.MILLISECOND_NS)))
