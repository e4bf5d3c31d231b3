"""A process's place in a mesh of many machines: its own Unix socket, and its node for whatever lies elsewhere.

*Shell (zmq).* Runs in sessions, shards and global schedulers of clusters with a network, around their ``Peers``.

1. ``via://`` endpoints of the own node are opened directly; those of other nodes by envelopes through the own node.
2. Envelopes are taken from the own node only.
3. What came back undelivered lies in ``bounced``.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from meshray.transport import relay
from meshray.transport.codec import BadFrame
from meshray.transport.endpoints import NODE_PROCESS, Via, parse
from meshray.transport.relay import Dialogs, Envelope
from meshray.transport.sockets import OUT, Peers, Route, Wire, process_endpoint

log = logging.getLogger("meshray.network")

_NODE_ROUTE = OUT + NODE_PROCESS.encode()


class OwnNode(NamedTuple):
    """The node that a service belongs to."""

    run_dir: str
    name: str


def open_wire(name: str, endpoint: str, own_node: OwnNode | None) -> Wire:
    """Return a service's place in the mesh. Raise AddressInUse or OSError."""
    local = Peers(name, endpoint)
    return local if own_node is None else BehindNode(local, run_dir=own_node.run_dir, own=(own_node.name,))


class BehindNode:
    """A process's socket behind the interface of ``Peers``, with all other machines behind its node."""

    def __init__(self, local: Peers, *, run_dir: str, own: Iterable[str], endpoint: str = "") -> None:
        """``own``: id and name of our node, as far as they are known; ``endpoint``: what to tell others."""
        self.name = local.name
        self.endpoint = endpoint or local.endpoint
        self.bounced: deque[tuple[Route, bytes]] = deque()
        """Messages that came back: the route they were sent on, and their frame."""
        self._local = local
        self._run_dir = run_dir
        self._own = frozenset(own)
        self._dialogs = Dialogs()
        self._remotes = self._dialogs.remotes
        local.connect(NODE_PROCESS, process_endpoint(run_dir, NODE_PROCESS))

    def connect(self, name: str, endpoint: str) -> Route:
        """Open a dialog with ``name`` at ``endpoint`` and return its route. Connecting twice is a no-op."""
        if not endpoint.startswith("via://"):
            return self._local.connect(name, endpoint)
        via = parse(endpoint)
        assert isinstance(via, Via)
        if via.node in self._own:
            return self._local.connect(name, process_endpoint(self._run_dir, via.process))
        return self._dialogs.open(name, via)

    def disconnect(self, name: str) -> None:
        """Close the dialog that we opened with ``name``. Closing twice is a no-op."""
        if not self._dialogs.close(name):
            self._local.disconnect(name)

    def send(self, route: Route, frame: bytes, *buffers: Any) -> bool:
        """Send ``frame`` and ``buffers``. False if the peer is known not to be there."""
        remote = self._remotes.get(route)
        if remote is None:
            return self._local.send(route, frame, *buffers)
        return self._local.send(_NODE_ROUTE, remote.head, frame, *buffers)

    def receive(self, count_max: int, *, ready: bool = False) -> list[list[bytes]]:
        """Return up to ``count_max`` waiting messages, each ``[route, frame, *buffers]``, without blocking."""
        return self.unwrap(self._local.receive(count_max, ready=ready))

    def unwrap(self, messages: list[list[bytes]]) -> list[list[bytes]]:
        """Return the messages with those that came in envelopes under the routes of their senders."""
        for parts in messages:
            if parts[1][:4] == relay.SIGNATURE:
                break
        else:
            return messages
        return [seen for parts in messages if (seen := self._seen(parts)) is not None]

    def _seen(self, parts: list[bytes]) -> list[bytes] | None:
        if parts[1][:4] != relay.SIGNATURE:
            return parts
        envelope = relay.decode(parts[1])
        if type(envelope) is BadFrame or parts[0] != _NODE_ROUTE or len(parts) < 3:
            log.warning("envelope from %r dropped", parts[0])
            return None
        assert isinstance(envelope, Envelope)
        route = self._dialogs.arrived(envelope)
        if route is None:
            return None
        if envelope.kind in (relay.OPENING, relay.ANSWER):
            return [route, *parts[2:]]
        self.bounced.append((route, parts[2]))
        return None

    @property
    def readable(self) -> Sequence[int]:
        """The watched descriptors that were readable when ``wait`` returned last."""
        return self._local.readable

    def wait(self, timeout_ms: int) -> bool:
        """Sleep until a message or watched fd is ready, at most ``timeout_ms`` (-1: no limit). True if a message is."""
        return self._local.wait(timeout_ms)

    def watch_fd(self, fd: int) -> None:
        """Let ``wait`` also return when ``fd`` is readable."""
        self._local.watch_fd(fd)

    def unwatch_fd(self, fd: int) -> None:
        """Undo ``watch_fd``."""
        self._local.unwatch_fd(fd)

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when messages may wait."""
        return self._local.fileno()

    def has_input(self) -> bool:
        """Whether a message waits."""
        return self._local.has_input()

    def close(self, linger_ms: int = 0) -> None:
        """Close the socket, giving unsent messages ``linger_ms``."""
        self._local.close(linger_ms)
