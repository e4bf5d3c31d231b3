"""A tool's or a driver's question to a node of another machine, before it has a node of its own.

*Shell (zmq).* Runs in the command line, and in drivers that join a cluster over TCP.

It speaks to the node as a node would (``links``), but listens nowhere, and knows only the node that it called.
"""

from __future__ import annotations

from typing import Any

import zmq

from meshray import config
from meshray.errors import KeyRefusedError
from meshray.transport import relay
from meshray.transport.curve import KeyPair, be_client
from meshray.transport.endpoints import NODE_PROCESS, Tcp
from meshray.transport.relay import ANSWER, OPENING, Envelope
from meshray.transport.sockets import OUT, Route

_MS = config.MILLISECOND_NS


class Caller:
    """One connection to one node, with those methods of ``Peers`` that a question needs. Use it in one thread."""

    def __init__(self, name: str, endpoint: Tcp, pair: KeyPair) -> None:
        """``name`` is ours for this call. Whether the node lets our key in shows in ``wait``."""
        self.name = name
        self.endpoint = str(endpoint)
        self._pair = pair
        self._context: zmq.Context[Any] = zmq.Context(io_threads=1)
        self._socket: Any = self._context.socket(zmq.DEALER)
        for option, value in (
            (zmq.LINGER, 0), (zmq.MAXMSGSIZE, config.NETWORK_FRAME_BYTES_MAX),
            (zmq.HANDSHAKE_IVL, config.NETWORK_HANDSHAKE_NS // _MS), (zmq.IPV6, int("[" in endpoint.host)),
            (zmq.HEARTBEAT_IVL, config.NETWORK_HEARTBEAT_NS // _MS),
            (zmq.HEARTBEAT_TIMEOUT, config.NETWORK_SILENCE_NS // _MS),
        ):
            self._socket.setsockopt(option, value)
        be_client(self._socket, pair, endpoint.key)
        self._monitor: Any = self._socket.get_monitor_socket(int(zmq.EVENT_HANDSHAKE_FAILED_AUTH))
        self._socket.connect(endpoint.address)
        self._socket.send(relay.encode_news(relay.LinkNews(name)))

    def connect(self, name: str, endpoint: str) -> Route:
        """Return the route of the node that was called; there is no other."""
        assert endpoint == self.endpoint, f"this connection leads to {self.endpoint}, not to {endpoint}"
        return OUT + name.encode()

    def send(self, route: Route, frame: bytes, *buffers: Any) -> bool:
        """Send to the node that was called."""
        head = relay.encode(Envelope(OPENING, route.removeprefix(OUT).decode(), NODE_PROCESS, self.name, NODE_PROCESS))
        self._socket.send_multipart([head, frame, *buffers])
        return True

    def receive(self, count_max: int, *, ready: bool = False) -> list[list[bytes]]:
        """Return what the node has answered, at most ``count_max`` messages."""
        messages: list[list[bytes]] = []
        while len(messages) < count_max and self._socket.poll(0):
            parts = self._socket.recv_multipart()
            envelope = relay.decode(parts[0])
            if isinstance(envelope, Envelope) and envelope.kind == ANSWER and len(parts) > 1:
                messages.append([OUT + NODE_PROCESS.encode(), *parts[1:]])
        return messages

    def wait(self, timeout_ms: int) -> bool:
        """Sleep until an answer is there. Raise KeyRefusedError when the node does not let our key in."""
        ready = zmq.zmq_poll([(self._socket, zmq.POLLIN), (self._monitor, zmq.POLLIN)], timeout_ms)
        if any(socket is self._monitor for socket, _ in ready):
            self._monitor.recv_multipart()
            raise KeyRefusedError(f"the node at {self.endpoint} does not let this key in: {self._pair.public}. On a "
                                  f"machine of the cluster run: meshray keys add {self._pair.name} {self._pair.public}")
        return bool(ready)

    def close(self, linger_ms: int = 0) -> None:
        """End the connection. Closing twice is a no-op."""
        if not self._socket.closed:
            self._socket.disable_monitor()
            self._monitor.close(linger=0)
            self._socket.close(linger=linger_ms)
            self._context.term()
