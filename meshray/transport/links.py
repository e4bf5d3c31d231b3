"""A node's connections to other nodes: one ROUTER on TCP, guarded, with every peer known by its key.

*Shell (zmq, sockets, clock).* Runs in node processes of clusters with a network.

1. A peer has proved its public key: in connections that came in it is on every frame (``User-Id``), in those that we
   opened it is the key that we asked for. What a peer says of itself is believed only as far as its key goes: a node id
   belongs to the key that first showed it.
2. Each side of a connection first says its node id. Two nodes need one connection, whoever opened it; messages to a
   node keep to one as long as it lives, so they stay in order.
3. What is on the way to a peer is bounded in bytes (``LINK_BYTES_MAX``): a peer that stops reading is refused more, and
   dropped. No other peer notices.
4. A key that is revoked loses its connections at once, also those that never said a word.

Source: ZeroMQ RFC 28 (ROUTER); credit counting as in HTTP/2 (RFC 9113 s5.2).
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import zmq

from meshray import config
from meshray.node_config import Network
from meshray.transport import connections, relay
from meshray.transport.codec import BadFrame
from meshray.transport.curve import AllowList, Gate, KeyPair, be_client, be_server
from meshray.transport.endpoints import Tcp, bind_address, parse
from meshray.transport.link import Link

log = logging.getLogger("meshray.network")

_EVENTS = int(zmq.EVENT_CONNECTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED
              | zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
              | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
_MS = config.MILLISECOND_NS


class Links:
    """All connections of one node to others."""

    def __init__(self, node: str, network: Network, allowed: AllowList) -> None:
        """Bind the control port. ``node`` is our id. Raise KeyFileError, OSError, ValueError (an endpoint is wrong)."""
        self._node = node
        self._network = network
        self._pair = KeyPair.load(network.key_file)
        self.allowed = allowed
        self._context: zmq.Context[Any] = zmq.Context(io_threads=1)
        self._gate = Gate(self._context, allowed)
        self.socket: zmq.Socket[Any] = self._context.socket(zmq.ROUTER)
        self._names: dict[str, Link] = {node: Link(self._pair.public)}
        """By node id, those of seeds by node name too. Our own id is taken as well."""
        self._guests: dict[str, None] = {}
        """Ids that only their owners have told us, oldest first."""
        self._by_route: dict[bytes, Link] = {}
        self._by_address: dict[str, Link] = {}
        self._opened = 0
        self.dropped = 0
        """Messages from peers that may not send them."""
        self.monitor: Any = self.socket.get_monitor_socket(_EVENTS)
        try:
            self._set_options()
            self.endpoint = self._listen()
            for name, seed in network.seeds.items():
                self.learn(name, seed)
        except BaseException:
            self.close()
            raise

    def _set_options(self) -> None:
        socket = self.socket
        be_server(socket, self._pair)
        for option, value in (
            (zmq.ROUTER_MANDATORY, 1), (zmq.LINGER, 0), (zmq.SNDTIMEO, 0), (zmq.SNDHWM, 0),
            (zmq.RCVHWM, config.LINK_QUEUE_MAX), (zmq.MAXMSGSIZE, config.NETWORK_FRAME_BYTES_MAX),
            (zmq.HANDSHAKE_IVL, config.NETWORK_HANDSHAKE_NS // _MS), (zmq.RECONNECT_IVL, 50),
            (zmq.RECONNECT_IVL_MAX, 2000), (zmq.HEARTBEAT_IVL, config.NETWORK_HEARTBEAT_NS // _MS),
            (zmq.HEARTBEAT_TIMEOUT, config.NETWORK_SILENCE_NS // _MS), (zmq.CONNECT_TIMEOUT, 5000),
            (zmq.HEARTBEAT_TTL, config.NETWORK_SILENCE_NS // _MS), (zmq.IPV6, int(":" in self._network.bind)),
        ):
            socket.setsockopt(option, value)

    def _listen(self) -> str:
        network = self._network
        wanted = bind_address(network.bind, network.control_port)
        try:
            self.socket.bind(wanted)
        except zmq.ZMQError as error:
            raise OSError(error.errno, f"cannot listen at {wanted}: {error.strerror}. Set another control_port, or a "
                                       "bind address of this machine") from error
        bound = self.socket.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(bound, bytes)
        self._port = int(bound.decode().rstrip("\0").rpartition(":")[2])
        host = network.advertise or network.bind
        return str(Tcp(f"[{host}]" if ":" in host and host[0] != "[" else host, self._port, self._pair.public))

    # --- who is where --------------------------------------------------------------------------------------------

    def learn(self, node: str, endpoint: str) -> None:
        """Take from the cluster's own books where a node listens. Raise ValueError for what is no TCP endpoint."""
        if endpoint == self.endpoint:
            # It was here before us, and is gone. To disconnect from our own port would be to listen there no more.
            return
        tcp = parse(endpoint)
        if not isinstance(tcp, Tcp):
            raise ValueError(f"node {node} cannot be reached at {endpoint!r}: it is tcp://HOST:PORT#KEY")
        self._guests.pop(node, None)
        link = self._names.get(node)
        if link is not None and (link.key, link.address) == (tcp.key, tcp.address):
            return
        here = next((each for each in self._names.values() if (each.key, each.address) == (tcp.key, tcp.address)), None)
        if link is None or link.key != tcp.key:
            link = self._names[node] = here or Link(tcp.key)
        if link.address != tcp.address:
            self._close_out(link)
            link.address = tcp.address
            link.refused = ""
            if here is not None:
                self._take_over(link, here)

    def _take_over(self, link: Link, earlier: Link) -> None:
        """Two nodes at one port are one node, or one came after the other: both go by one link from here on."""
        for name, each in self._names.items():
            if each is earlier:
                self._names[name] = link
        link.take_over(earlier)
        if link.out_route:
            self._by_route[link.out_route] = self._by_address[link.connected_to] = link
        if earlier.in_route:
            self._by_route[earlier.in_route] = link

    def forget(self, node: str) -> None:
        """A node is gone: close its connections, unless it goes by other names too."""
        link = self._names.get(node)
        if link is None or node in self._network.seeds:
            return
        del self._names[node]
        self._guests.pop(node, None)
        if link not in self._names.values():
            self._drop(link)

    def knows(self, node: str) -> bool:
        """Whether this is the id or name of a node that is not forgotten."""
        return node in self._names

    def owns(self, link: Link, node: str) -> bool:
        """Whether messages of this link may come from ``node``."""
        known = self._names.get(node)
        return known is not None and known.key == link.key

    def open(self, node: str) -> Link | None:
        """Connect to a node if there is no connection yet; None if that is not possible."""
        link = self._names.get(node)
        return self.open_link(link) if link is not None else None

    def open_link(self, link: Link) -> Link | None:
        """Connect to the owner of a key if there is no connection yet; None if that is not possible."""
        if link.route:
            return link
        if link.in_route:
            link.route = link.in_route
        elif link.address and self.allowed.name_of(link.key) is not None:
            self._connect(link)
        else:
            return None
        return link

    def _connect(self, link: Link) -> None:
        be_client(self.socket, self._pair, link.key)
        # libzmq aborts when the name of a connection that is still being closed is used again.
        self._opened += 1
        link.out_route = relay.OUT + str(self._opened).encode()
        self.socket.setsockopt(zmq.CONNECT_ROUTING_ID, link.out_route)
        link.connected_to = connections.numeric(link.address)
        self.socket.connect(link.connected_to)
        self._by_route[link.out_route] = self._by_address[link.connected_to] = link
        self._use(link, link.out_route)

    def _use(self, link: Link, route: bytes) -> None:
        link.route = route
        link.outstanding_bytes = 0
        link.progress_ns = time.monotonic_ns()
        self._send(link, [relay.encode_news(relay.LinkNews(self._node))])

    # --- messages ------------------------------------------------------------------------------------------------

    def send(self, node: str, parts: Sequence[Any]) -> bool:
        """Send ``parts`` (the first is an envelope) to a node; False if it cannot be reached or takes no more."""
        for _ in range(2):  # a connection that is gone may have a successor
            link = self.open(node)
            if link is None or (link.refused and not self._asks_again(link)):
                return False
            if link.outstanding_bytes > config.LINK_BYTES_MAX and not self._progresses(link):
                return False
            if self._send(link, parts):
                return True
        return False

    def _asks_again(self, link: Link) -> bool:
        """Whether it is time to connect again to a peer that refused us: ZeroMQ does not do so by itself."""
        if time.monotonic_ns() < link.retry_ns:
            return False
        link.refused = ""
        self._close_out(link)
        return self.open_link(link) is not None

    def _send(self, link: Link, parts: Sequence[Any]) -> bool:
        size = sum(map(len, parts)) + config.LINK_FRAME_BYTES * len(parts)
        try:
            self.socket.send(link.route, zmq.SNDMORE)
            for part in parts[:-1]:
                self.socket.send(part, zmq.SNDMORE, copy=False)
            self.socket.send(parts[-1], copy=False)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            self._lost(link)
            return False
        link.outstanding_bytes += size
        return True

    def _lost(self, link: Link) -> None:
        self._by_route.pop(link.route, None)
        if link.route == link.in_route:
            link.in_route = b""
        elif link.route == link.out_route:
            self._close_out(link)
        link.route = b""

    def _progresses(self, link: Link) -> bool:
        """A peer has as much on the way as it may: whether it is to be sent more nevertheless (it never is). One that
        has taken nothing for long is dropped."""
        if time.monotonic_ns() - link.progress_ns > config.LINK_STALL_NS:
            log.warning("%s has taken nothing for %d s with %d MiB on the way: its connection is dropped",
                        self._called(link), config.LINK_STALL_NS // config.SECOND_NS,
                        link.outstanding_bytes // config.MIB)
            self._drop(link)
        return False

    def receive(self) -> tuple[Link, bytes, list[Any]] | None:
        """Take one message that waits: its link, its first frame, and the others as ZeroMQ frames. None: it was not
        for anybody above."""
        socket = self.socket
        route = socket.recv()
        first = socket.recv(copy=False)
        rest, more = [], first.more
        while more:
            rest.append(socket.recv(copy=False))
            more = rest[-1].more
        link = self._by_route.get(route)
        if link is None:
            link = self._admit(route, first)
            if link is None:
                self.dropped += 1
                return None
        head = first.bytes
        if head[:4] == relay.NEWS_SIGNATURE:
            self._heard(link, head)
            return None
        link.untold_bytes += len(head) + sum(map(len, rest)) + config.LINK_FRAME_BYTES * (1 + len(rest))
        if link.untold_bytes >= config.LINK_NEWS_BYTES:
            self._tell(link, route)
        return link, head, rest

    def _admit(self, route: bytes, frame: Any) -> Link | None:
        """The first message of a connection that came in says which node it is; it is that node's latest."""
        try:
            key = frame.get("User-Id")
        except zmq.ZMQError:
            return None
        news = relay.decode_news(frame.bytes)
        if self.allowed.name_of(key) is None or type(news) is BadFrame:
            return None
        link = self._names.get(news.node)
        if link is None:
            link = self._names[news.node] = Link(key)
            self._guests[news.node] = None
            if len(self._guests) > config.LINK_GUESTS_MAX:
                self.forget(next(iter(self._guests)))
        elif link.key != key:
            log.warning("%s says that it is node %s, which has another key", self._called(Link(key)), news.node)
            return None
        self._by_route.pop(link.in_route, None)
        if link.route == link.in_route:
            link.route = b""
        link.in_route = route
        link.in_peer = connections.other_end(frame.get(zmq.SRCFD))
        self._by_route[route] = link
        if not link.route or link.refused:
            link.refused = ""
            self._use(link, route)
        return link

    def _heard(self, link: Link, head: bytes) -> None:
        news = relay.decode_news(head)
        if type(news) is BadFrame:
            log.warning("%s: %s", self._called(link), news.reason)
            return
        self._names.setdefault(news.node, link)
        link.outstanding_bytes = max(0, link.outstanding_bytes - news.received_bytes)
        link.progress_ns = time.monotonic_ns()

    def _tell(self, link: Link, route: bytes) -> None:
        news = relay.encode_news(relay.LinkNews(self._node, link.untold_bytes))
        link.untold_bytes = 0
        with suppress(zmq.ZMQError):  # the connection is gone, and its successor begins at zero
            self.socket.send(route, zmq.SNDMORE)
            self.socket.send(news)

    # --- connections ---------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Take one event of the monitor: what became of the connections that we opened."""
        kind, value, address = connections.monitored(self.monitor.recv_multipart())
        link = self._by_address.get(address)
        if link is None:
            return
        if kind == zmq.EVENT_CONNECTED:
            link.descriptor = value
        elif kind == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            link.refused = ""
        elif kind == zmq.EVENT_DISCONNECTED:
            # ZeroMQ would connect again, and send what waits before the news that must come first.
            if link.descriptor == value and not link.refused:
                self._close_out(link)
                self.open_link(link)
        elif not link.refused:
            link.refused = (f"it does not let our key in: run meshray keys add NAME {self._pair.public} there"
                            if kind == zmq.EVENT_HANDSHAKE_FAILED_AUTH
                            else "it has another key than its address says, or does not speak our protocol")
            link.retry_ns = time.monotonic_ns() + config.LINK_RETRY_NS
            log.warning("%s at %s: %s", self._called(link), link.address, link.refused)

    def _drop(self, link: Link) -> None:
        """Close all connections with a node; it may come again if its key is allowed."""
        self._close_out(link)
        if link.in_route:
            self._by_route.pop(link.in_route, None)
            for descriptor, peer in connections.accepted(self._port):
                if peer == link.in_peer:
                    connections.shut(descriptor)
        link.route = link.in_route = b""

    def revoke(self, key: str) -> None:
        """Close what the owner of a key that is no longer allowed has open, and what has not said whose it is."""
        for link in set(self._names.values()):
            if link.key == key:
                self._drop(link)
        known = {link.in_peer for link in self._names.values() if link.in_route}
        for descriptor, peer in connections.accepted(self._port):
            if peer not in known:
                connections.shut(descriptor)

    def _close_out(self, link: Link) -> None:
        if not link.out_route:
            return
        self._by_route.pop(link.out_route, None)
        self._by_address.pop(link.connected_to, None)
        try:
            self.socket.disconnect(link.connected_to)
        except zmq.ZMQError as error:
            if error.errno not in (errno.ENOENT, zmq.ENOTSOCK):
                raise
        if link.route == link.out_route:
            link.route = b""
        link.out_route = b""
        link.descriptor = -1

    def _called(self, link: Link) -> str:
        return f"node {self.allowed.name_of(link.key) or ''} (key {link.key[:12]}...)"

    def statistics(self) -> dict[str, int]:
        """Return counters for ``status``."""
        return {"links": sum(1 for link in set(self._names.values()) if link.route), "keys_refused": self._gate.refused,
                "messages_refused": self.dropped}

    def close(self, linger_ms: int = 0) -> None:
        """Close everything; what is unsent has ``linger_ms`` to leave. Closing twice is a no-op."""
        if self.socket.closed:
            return
        self.socket.disable_monitor()
        self.monitor.close(linger=0)
        self.socket.close(linger=linger_ms)
        self._gate.close()
        self._context.term()
