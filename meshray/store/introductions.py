"""Makes nodes holders of a pull: asks them what they have, again after a while, and asks whom else they know.

*Pure.* Used by ``pull``.

1. A node is met at most once per pull, however often others name it: who was given up stays given up.
2. A node whose endpoint is not known is silent, and what is asked of the silent is repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from meshray import config
from meshray.machine import Connect, Send
from meshray.messages.objects import RequestManifest
from meshray.store.swarm import Holder, Link, Pull


class Introductions:
    """Requests for manifests."""

    def __init__(self, node: str, resolve: Callable[[str], str | None], nodes: Callable[[], Iterable[str]],
                 link: Callable[[str], Link]) -> None:
        self._node = node
        self._resolve = resolve
        self._nodes = nodes
        self._link = link

    def add(self, pull: Pull, name: str, now_ns: int, *, unknowns: int = 0) -> list[Any]:
        """Ask a node what it has. ``unknowns``: as if it had said so often already that it has nothing."""
        if name in pull.holders or len(pull.holders) >= config.PULL_PEERS_MAX:
            return []
        holder = pull.holders[name] = Holder(name, self._link(name))
        holder.unknown = unknowns
        pull.tried.add(name)
        return self.ask(pull, holder, now_ns)

    def meet(self, pull: Pull, names: Iterable[str], now_ns: int) -> list[Any]:
        """Ask nodes that pull the object too, or have pulled it, or may have; one "no" of theirs is enough."""
        effects: list[Any] = []
        for name in names:
            if name not in pull.tried and name != self._node:
                effects += self.add(pull, name, now_ns, unknowns=config.PULL_UNKNOWNS_MAX - 1)
        return effects

    def sweep(self, pull: Pull, now_ns: int) -> list[Any]:
        """Ask every node of the cluster, once per pull."""
        if pull.swept:
            return []
        pull.swept = True
        return self.meet(pull, self._nodes(), now_ns)

    def ask(self, pull: Pull, holder: Holder, now_ns: int) -> list[Any]:
        """Ask a holder for its manifest; before it answers, nothing else is asked of it."""
        holder.ready = False
        holder.deadline_ns = now_ns + config.PULL_SILENCE_NS
        return self._request(pull, holder.name)

    def refresh(self, pull: Pull, now_ns: int) -> list[Any]:
        """Ask the holders again what they have, and whom they know: notices may be lost, and holders may be new."""
        if now_ns < pull.refresh_ns:
            return []
        pull.refresh_ns = now_ns + config.PULL_REFRESH_NS
        return [effect for holder in pull.ready() for effect in self._request(pull, holder.name)]

    def ask_later(self, holder: Holder, now_ns: int) -> None:
        """Ask a holder for its manifest when it has been silent for as long as a holder may be."""
        holder.ready = False
        holder.deadline_ns = now_ns + config.PULL_SILENCE_NS

    def knows(self, name: str) -> bool:
        """Whether a node is part of the cluster: who dies leaves it, because its heartbeats end."""
        return self._resolve(name) is not None

    def silence_of(self, holder: Holder) -> str:
        """Say why nothing came from a holder."""
        if not self.knows(holder.name):
            return "its address is not known"
        if holder.refusals:
            return "it serves no such object"
        return f"no answer for {config.PULL_USELESS_NS // config.SECOND_NS} s, although its node lives"

    def _request(self, pull: Pull, name: str) -> list[Any]:
        endpoint = self._resolve(name)
        if endpoint is None:
            return []
        return [Connect(name, endpoint), Send(b">" + name.encode(), RequestManifest(pull.object, bool(pull.digests)))]
