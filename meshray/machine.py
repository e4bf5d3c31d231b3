"""What a machine is: the vocabulary that pure logic and its host share.

*Pure.* Used by every machine and by ``transport.host``.

1. A machine maps ``(event, now_ns)`` to effects. It holds no socket, clock, file, thread or randomness.
2. A machine never raises for what a peer can cause; its own bugs are assertions and end the process.
3. The host persists all ``Persist`` effects of a turn in one transaction before it performs any other effect.

Source: the Ready loop of etcd's raft (doc.go), OTP's gen_server, dask's worker state machine.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from meshray.messages.base import Message


class Received(msgspec.Struct, frozen=True, gc=False):
    """Event: ``message`` (and raw ``buffers``) came in on ``route``; answers go back on the same route."""

    route: bytes
    message: Any
    buffers: list[bytes] | tuple[bytes, ...] = ()


class Tick(msgspec.Struct, frozen=True, gc=False):
    """Event: the machine's deadline has come."""


class Undeliverable(msgspec.Struct, frozen=True, gc=False):
    """Event: a message could not be sent, because nobody is at ``route``."""

    route: bytes
    message: Any


class Send(msgspec.Struct, frozen=True, gc=False):
    """Effect: send ``message`` on ``to``."""

    to: bytes
    message: Message
    buffers: tuple[Any, ...] = ()


class Connect(msgspec.Struct, frozen=True, gc=False):
    """Effect: make ``b">" + name`` a valid route."""

    name: str
    endpoint: str


class Disconnect(msgspec.Struct, frozen=True, gc=False):
    """Effect: close the dialog that we opened with ``name``."""

    name: str


class Stop(msgspec.Struct, frozen=True, gc=False):
    """Effect: this process ends after the turn."""

    reason: str


class Machine(Protocol):
    """The shape of every machine."""

    def handle(self, event: Any, now_ns: int) -> list[Any]:
        """Take one event, return its effects in order."""
        ...

    def deadline_ns(self) -> int | None:
        """When ``Tick`` is due next, or None."""
        ...

    def check(self) -> None:
        """Assert every invariant."""
        ...

    def statistics(self) -> dict[str, int]:
        """Return counters and sizes for ``status`` and tests."""
        ...
