"""What there is between this node and another: its key, its address, and the connections that either has opened.

*Pure.* Used by ``links`` in node processes of clusters with a network.
"""

from __future__ import annotations

import msgspec

from meshray.transport import connections


class Link(msgspec.Struct, eq=False):
    """What there is between this node and another."""

    key: str
    address: str = ""
    """Where it listens, if we were told."""
    out_route: bytes = b""
    """The connection that we opened."""
    in_route: bytes = b""
    """The latest that it opened, with its other end (host and port)."""
    in_peer: connections.End = connections.NOWHERE
    route: bytes = b""
    """The one of the two that carries our messages."""
    outstanding_bytes: int = 0
    untold_bytes: int = 0
    progress_ns: int = 0
    refused: str = ""
    """Why it does not take our connection; empty: it does, or may yet."""
    retry_ns: int = 0
    """When to ask one that refused us again."""
    connected_to: str = ""
    """The address of ``out_route`` in numbers, and the descriptor of its connection."""
    descriptor: int = -1

    def take_over(self, earlier: Link) -> None:
        """Go on with the connections of a link that leads to the same port. Ours, if we have one, goes on carrying
        our messages, so that they stay in order."""
        self.out_route, self.connected_to, self.descriptor = (
            earlier.out_route, earlier.connected_to, earlier.descriptor)
        if not self.route:
            self.route, self.outstanding_bytes, self.progress_ns = (
                earlier.route, earlier.outstanding_bytes, earlier.progress_ns)
            self.in_route, self.in_peer, self.refused = earlier.in_route, earlier.in_peer, earlier.refused
