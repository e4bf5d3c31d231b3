"""Envelopes: how a message reaches a process behind another node, and how its dialog looks on both ends.

*Pure.* Used by every process of a cluster with a network.

A relayed message is ``envelope, message frame, buffers``. It goes from the process to its own node, from that node to
the other, and from there to the process; the nodes read the envelope only.

1. Routes keep their meaning. Who opened the dialog sees ``>name``, the other side sees the bare ``name``, as if the two
   were connected (``transport.sockets``).
2. The answer carries back how the opener named the node, so the opener can tell it from any other node's.
3. What cannot be delivered comes back in an envelope that says so. An envelope of that kind never comes back itself.
4. A name that came in leads to the node that used it last, as it would on one machine: a service whose node starts
   again goes by its old name, behind a new id. Answers reach nobody but the one whose question came last.
5. An answer names this node as the question did: its id, or the name by which the cluster's books know it.

Source: DESIGN s2 (addresses); Received and forwarding headers of RFC 5321 for the idea that each hop checks the last.
"""

from __future__ import annotations

from typing import Any

import msgspec

from meshray import config
from meshray.transport.codec import BadFrame
from meshray.transport.endpoints import NODE_PROCESS, Via

SIGNATURE = b"MRE\x01"
"""Envelopes of wire version 1."""

OUT = b">"

OPENING, ANSWER, OPENING_BOUNCED, ANSWER_BOUNCED = 0, 1, 2, 3
"""Kinds of envelopes: on the dialog that the sender opened, on one that the receiver opened, and back from there."""

BOUNCED = (OPENING_BOUNCED, ANSWER_BOUNCED)


class Envelope(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """``process`` of ``node`` shall get what follows. A process leaves ``from_*`` to its node, which knows them."""

    kind: int
    node: str
    process: str
    from_node: str = ""
    from_process: str = ""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Envelope)


def encode(envelope: Envelope) -> bytes:
    """Return the frame of an envelope."""
    return SIGNATURE + _encoder.encode(envelope)


def decode(frame: bytes) -> Envelope | BadFrame:
    """Return the envelope in ``frame``, or BadFrame."""
    if frame[:4] != SIGNATURE:
        return BadFrame(f"signature {bytes(frame[:4])!r} is not {SIGNATURE!r}: another version or protocol")
    try:
        return _decoder.decode(memoryview(frame)[4:])
    except msgspec.DecodeError as error:
        return BadFrame(f"malformed envelope: {error}")


def bounce_of(envelope: Envelope) -> Envelope | None:
    """Return the envelope in which a message goes back to its sender; None if it is a bounce itself."""
    if envelope.kind not in (OPENING, ANSWER):
        return None
    return Envelope(envelope.kind + 2, envelope.from_node, envelope.from_process, envelope.node, envelope.process)


def name_at(node: str, process: str) -> str:
    """Return what a process of another node is called here: node processes go by the name of their node."""
    return node if process == NODE_PROCESS else process


class Remote(msgspec.Struct, frozen=True, gc=False):
    """The other end of a relayed dialog: which process of which node, and the envelope that leads there. ``called``:
    how it named our node, if it opened the dialog."""

    node: str
    process: str
    head: bytes
    called: str = ""


class Dialogs:
    """The relayed dialogs of one process."""

    def __init__(self, node: str = "", process: str = "") -> None:
        """``node`` and ``process``: what to give as the sender; empty where the own node fills it in."""
        self._node = node
        self._process = process
        self.remotes: dict[bytes, Remote] = {}
        """Route -> who is at its other end."""
        self._routes: dict[tuple[str, str], bytes] = {}
        """The dialogs that we opened: (node, process) -> route."""
        self.refused = 0
        """Messages that came under a name that looks like a dialog of ours."""

    def open(self, name: str, via: Via) -> bytes:
        """Return the route of a dialog that we open, under the name ``name``, with a process of another node."""
        route = OUT + name.encode()
        known = self.remotes.get(route)
        if known is None or (known.node, known.process) != (via.node, via.process):
            self.close(name)
            head = encode(Envelope(OPENING, via.node, via.process, self._node, self._process))
            self.remotes[route] = Remote(via.node, via.process, head)
            self._routes[via.node, via.process] = route
        return route

    def close(self, name: str) -> bool:
        """End the dialog that we opened under ``name``; False if there is none."""
        remote = self.remotes.pop(OUT + name.encode(), None)
        if remote is not None:
            self._routes.pop((remote.node, remote.process), None)
        return remote is not None

    def arrived(self, envelope: Envelope) -> bytes | None:
        """Return the route under which the message in this envelope is seen here; None: it is to be dropped."""
        if envelope.kind == OPENING:
            return self._opened(envelope)
        if envelope.kind == ANSWER_BOUNCED:
            route = name_at(envelope.from_node, envelope.from_process).encode()
            return route if self.remotes.pop(route, None) is not None else None
        return self._routes.get((envelope.from_node, envelope.from_process))

    def _opened(self, envelope: Envelope) -> bytes | None:
        route = name_at(envelope.from_node, envelope.from_process).encode()
        known = self.remotes.get(route)
        if route.startswith(OUT):
            self.refused += 1
            return None
        if known is None or (known.node, known.called) != (envelope.from_node, envelope.node):
            head = encode(Envelope(ANSWER, envelope.from_node, envelope.from_process, envelope.node, self._process))
            self.remotes[route] = Remote(envelope.from_node, envelope.from_process, head, envelope.node)
            self._forget_oldest()
        return route

    def _forget_oldest(self) -> None:
        """Bound the table: those that came in first are forgotten first, and what we opened stays."""
        if len(self.remotes) - len(self._routes) > config.RELAYED_PEERS_MAX:
            oldest = next(route for route in self.remotes if not route.startswith(OUT))
            del self.remotes[oldest]


class LinkNews(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """node -> node, between the envelopes. ``node``: my id, so that you can reach me on this connection.
    ``received_bytes``: what I have taken since I last said so; you may have that much more on the way."""

    node: str
    received_bytes: int = 0


NEWS_SIGNATURE = b"MRL\x01"
_news_decoder = msgspec.msgpack.Decoder(LinkNews)


def encode_news(news: LinkNews) -> bytes:
    """Return the frame of what one node tells another about their connection."""
    return NEWS_SIGNATURE + _encoder.encode(news)


def decode_news(frame: bytes) -> Any:
    """Return the news in ``frame``, or BadFrame."""
    if frame[:4] != NEWS_SIGNATURE:
        return BadFrame(f"signature {bytes(frame[:4])!r} is not {NEWS_SIGNATURE!r}: a connection begins with news")
    try:
        return _news_decoder.decode(memoryview(frame)[4:])
    except msgspec.DecodeError as error:
        return BadFrame(f"malformed news of a connection: {error}")
