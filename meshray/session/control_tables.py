"""A session's door to the control store.

*Shell (zmq).* Runs in drivers and workers; methods without ``ask`` only in the leader.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from meshray import config, errors
from meshray.gcs.client import GcsClient
from meshray.gcs.requests import Answered
from meshray.machine import Connect, Disconnect, Received, Send, Tick, Undeliverable
from meshray.messages.gcs import Op
from meshray.messages.node import Shard

if TYPE_CHECKING:
    from meshray.session.session import Session

Done = Callable[[Answered], None]


class ControlTables:
    """Requests of one session and who waits for their answers."""

    def __init__(self, session: Session, shards: list[Shard]) -> None:
        self._session = session
        self._client = GcsClient(session.name, shards)
        self._waiting: dict[int, Done] = {}

    def write(self, operations: list[Op], done: Done | None = None) -> None:
        """Write rows; ``done`` gets the answer."""
        self._begin(self._client.write(operations, self._session.now_ns), done)

    def read(self, table: str, key: bytes, done: Done) -> None:
        """Read one row."""
        self._begin(self._client.read([(table, key)], self._session.now_ns), done)

    def scan(self, table: str, prefix: bytes, done: Done) -> None:
        """Read rows by key prefix."""
        self._begin(self._client.scan(table, prefix, self._session.now_ns), done)

    def _begin(self, begun: tuple[int, list[Any]], done: Done | None) -> None:
        request, effects = begun
        if done is not None:
            self._waiting[request] = done
        self._perform(effects)

    def received(self, route: bytes, message: Any, buffers: list[bytes]) -> None:
        """Take a message that no other part of the session knows."""
        self._perform(self._client.handle(Received(route, message, buffers), self._session.now_ns))

    def undeliverable(self, route: bytes, message: Any) -> None:
        """A message came back."""
        self._perform(self._client.handle(Undeliverable(route, message), self._session.now_ns))

    def tick(self, now_ns: int) -> None:
        """Send again what was not answered."""
        deadline_ns = self._client.deadline_ns()
        if deadline_ns is not None and deadline_ns <= now_ns:
            self._perform(self._client.handle(Tick(), now_ns))

    @property
    def busy(self) -> bool:
        """Whether ``tick`` will be needed."""
        return self._client.deadline_ns() is not None

    def _perform(self, effects: list[Any]) -> None:
        for effect in effects:
            kind = type(effect)
            if kind is Send:
                if not self._session.send(effect.to, effect.message):
                    self._perform(self._client.handle(Undeliverable(effect.to, effect.message), self._session.now_ns))
            elif kind is Connect:
                self._session.connect(effect.name, effect.endpoint)
            elif kind is Disconnect:
                self._session.forget_peer(effect.name)
            elif kind is Answered:
                done = self._waiting.pop(effect.request, None)
                if done is not None:
                    done(effect)

    def ask(self, start: Callable[[Done], None], timeout_s: float = 30.0) -> Answered:
        """Begin a request from any thread and wait for its answer. Raise MeshraySystemError."""
        session = self._session
        answers: list[Answered] = []
        session.call(lambda: start(answers.append))
        deadline_ns = time.monotonic_ns() + int(timeout_s * config.SECOND_NS)
        if not session.driving.until(lambda: bool(answers) or session.closing, deadline_ns) or not answers:
            raise errors.MeshraySystemError(
                f"the control store did not answer within {timeout_s:.0f} s: see meshray status")
        return answers[0]
