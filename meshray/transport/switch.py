"""A node's place in the mesh: its Unix socket, its links to other nodes, and the frames that pass between them.

*Shell (zmq).* Runs in node processes of clusters with a network; it is to their host what ``Peers`` is elsewhere.

1. An envelope that comes from a process here goes to the link of its node, one that comes from a link goes to a process
   here. Nothing behind the envelope is decoded or copied.
2. The sender is what this node has seen: the process by the socket it came from, the node by the key of its link.
3. From a link, messages for the node process itself are taken from node processes only.
4. What cannot be delivered goes back where it came from; what we could not deliver ourselves lies in ``bounced``.
5. A node that starts again has a new id, and nothing is taken for an earlier one: its port and key are the same, so
   what was sent to a dead node would reach its successor.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from typing import Any

import zmq
from zmq.backend import zmq_poll

from meshray.transport import relay
from meshray.transport.codec import BadFrame
from meshray.transport.endpoints import NODE_PROCESS, Via, parse
from meshray.transport.link import Link
from meshray.transport.links import Links
from meshray.transport.relay import Dialogs, Envelope
from meshray.transport.sockets import OUT, Peers, Route, process_endpoint

log = logging.getLogger("meshray.network")


class Switch:
    """The node's sockets behind the interface of ``Peers``."""

    def __init__(self, local: Peers, links: Links, *, node: str, node_name: str, run_dir: str) -> None:
        self.name = local.name
        self.endpoint = local.endpoint
        self.links = links
        self.bounced: deque[tuple[Route, bytes]] = deque()
        """Messages that came back: the route they were sent on, and their frame."""
        self._local = local
        self._node = node
        self._own = {node, node_name}
        self._called = {*self._own, NODE_PROCESS}
        """What envelopes may call us: tools that have only our address say ``node``."""
        self._run_dir = run_dir
        self._dialogs = Dialogs(node, NODE_PROCESS)
        self._nodes: set[str] = set()
        """Other nodes that the machine has connected to by their TCP endpoints."""
        local.watch_fd(links.socket)
        local.watch_fd(links.monitor)
        self._all = [(local.socket, zmq.POLLIN), (links.socket, zmq.POLLIN), (links.monitor, zmq.POLLIN)]

    # --- what Peers has too --------------------------------------------------------------------------------------

    def connect(self, name: str, endpoint: str) -> Route:
        """Open a dialog with ``name`` at ``endpoint`` and return its route. Connecting twice is a no-op."""
        if endpoint.startswith("ipc://"):
            return self._local.connect(name, endpoint)
        if endpoint.startswith("tcp://"):
            self.links.learn(name, endpoint)
            self._nodes.add(name)
            return self._dialogs.open(name, Via(name, NODE_PROCESS))
        via = parse(endpoint)
        assert isinstance(via, Via)
        if via.node in self._own:
            return self._local.connect(name, process_endpoint(self._run_dir, via.process))
        return self._dialogs.open(name, via)

    def greet(self, name: str) -> None:
        """Open the link to a node now, so that it can reach us on it although it cannot connect to us."""
        self.links.open(name)

    def disconnect(self, name: str) -> None:
        """Close the dialog that we opened with ``name``. Closing twice is a no-op."""
        if not self._dialogs.close(name):
            self._local.disconnect(name)
        elif name in self._nodes:
            self._nodes.discard(name)
            self.links.forget(name)

    def send(self, route: Route, frame: bytes, *buffers: Any) -> bool:
        """Send ``frame`` and ``buffers``. False if the peer is not there."""
        remote = self._dialogs.remotes.get(route)
        if remote is None:
            return self._local.send(route, frame, *buffers)
        return self.links.send(remote.node, [remote.head, frame, *buffers])

    @property
    def readable(self) -> Sequence[int]:
        """The watched descriptors that were readable when ``wait`` returned last."""
        return self._local.readable

    def wait(self, timeout_ms: int) -> bool:
        """Sleep until something is ready, at most ``timeout_ms``; ``receive`` looks for itself what it is."""
        self._local.wait(timeout_ms)
        return False

    def receive(self, count_max: int, *, ready: bool = False) -> list[list[bytes]]:
        """Pass on what is for others, at most ``count_max`` messages in all, and return what is for this process."""
        messages: list[list[bytes]] = []
        taken = 0
        while taken < count_max:
            waiting = zmq_poll(self._all, 0)
            if not waiting:
                break
            for socket, _ in waiting:
                taken += 1
                if socket is self._local.socket:
                    self._from_here(messages)
                elif socket is self.links.socket:
                    self._from_afar(messages)
                else:
                    self.links.look()
        return messages

    def watch_fd(self, fd: Any) -> None:
        """Let ``wait`` also return when ``fd`` is readable."""
        self._local.watch_fd(fd)

    def unwatch_fd(self, fd: Any) -> None:
        """Undo ``watch_fd``."""
        self._local.unwatch_fd(fd)

    def close(self, linger_ms: int = 0) -> None:
        """Close all sockets, giving unsent messages ``linger_ms``."""
        self._local.unwatch_fd(self.links.socket)
        self._local.unwatch_fd(self.links.monitor)
        self.links.close(linger_ms)
        self._local.close(linger_ms)

    # --- from processes of this node -----------------------------------------------------------------------------

    def _from_here(self, messages: list[list[bytes]]) -> None:
        recv: Any = self._local.socket.recv
        route = recv()
        part = recv(copy=False)
        head, more = part.bytes, part.more
        rest: list[Any] = []
        while more:
            rest.append(recv(copy=False))
            more = rest[-1].more
        if head[:4] != relay.SIGNATURE:
            messages.append([self._local.outer(route), head, *(part.bytes for part in rest)])
            return
        envelope = relay.decode(head)
        if type(envelope) is BadFrame or not rest:
            log.warning("envelope from %r dropped", route)
            return
        assert isinstance(envelope, Envelope)
        source = envelope.from_node if envelope.kind == relay.ANSWER and envelope.from_node in self._own else self._node
        full = Envelope(envelope.kind, envelope.node, envelope.process, source, route.removeprefix(OUT).decode())
        if not self.links.send(envelope.node, [relay.encode(full), *rest]):
            self._bounce_here(full, rest)

    def _bounce_here(self, envelope: Envelope, rest: list[Any]) -> None:
        back = relay.bounce_of(envelope)
        if back is not None:
            self._local.send(back.process.encode(), relay.encode(back), rest[0])

    # --- from other nodes ----------------------------------------------------------------------------------------

    def _from_afar(self, messages: list[list[bytes]]) -> None:
        taken = self.links.receive()
        if taken is None:
            return
        link, head, rest = taken
        envelope = relay.decode(head)
        if type(envelope) is BadFrame or not rest:
            self._refuse(link, "an envelope is malformed")
            return
        assert isinstance(envelope, Envelope)
        if envelope.kind in relay.BOUNCED and not self.links.knows(envelope.from_node):
            return  # what waited for a node that we have given up comes back, and nobody waits for it any more
        if not self.links.owns(link, envelope.from_node) or envelope.from_node in self._own:
            self._refuse(link, f"it is not node {envelope.from_node}")
        elif envelope.node not in self._called:
            self._bounce_afar(envelope, rest)
        elif envelope.process == NODE_PROCESS:
            self._for_node(link, envelope, rest, messages)
        elif not self._local.send(envelope.process.encode(), head, *rest):
            self._bounce_afar(envelope, rest)

    def _bounce_afar(self, envelope: Envelope, rest: list[Any]) -> None:
        back = relay.bounce_of(envelope)
        if back is not None:
            self.links.send(back.node, [relay.encode(back), rest[0]])

    def _for_node(self, link: Link, envelope: Envelope, rest: list[Any], messages: list[list[bytes]]) -> None:
        if envelope.kind == relay.OPENING and envelope.from_process != NODE_PROCESS:
            self._refuse(link, f"{envelope.from_process} is no node process, and shall ask its own")
            return
        route = self._dialogs.arrived(envelope)
        if route is None:
            return
        if envelope.kind in (relay.OPENING, relay.ANSWER):
            messages.append([route, *(part.bytes for part in rest)])
        else:
            self.bounced.append((route, rest[0].bytes))

    def _refuse(self, link: Link, reason: str) -> None:
        self.links.dropped += 1
        log.warning("message from %s (key %s) dropped: %s", self.links.allowed.name_of(link.key), link.key, reason)
