"""Where the control store's servers and masters run.

*Pure.* Used by whoever plans the nodes of a cluster.

1. Replicas of one shard lie on different nodes, as far as there are enough; so do acceptors and masters.
2. With more than one replica there are at least three servers, because the configuration register needs three acceptors
   to lose one. Servers beyond the replicas of their shard are spares, which join when a member is gone.
3. With one replica there is neither a master nor a register: its chain never changes, and a server that ends is started
   again from its disk.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from meshray.gcs.limits import ACCEPTORS
from meshray.messages.node import Shard

MASTERS = 2
"""One may be lost and be started again meanwhile; more would only talk more."""


class Plan(msgspec.Struct):
    """Servers and masters (name -> (node, endpoint)), and what everybody is told of them."""

    servers: dict[str, tuple[str, str]]
    hosts: dict[str, tuple[str, str]]
    shards: list[Shard]
    acceptors: list[str]

    @property
    def places(self) -> dict[str, tuple[str, str]]:
        """Servers and masters: name -> (node, endpoint)."""
        return {**self.servers, **self.hosts}

    @property
    def masters(self) -> dict[str, str]:
        """The masters: name -> endpoint, in their order."""
        return {name: endpoint for name, (_, endpoint) in self.hosts.items()}

    @property
    def failover(self) -> str:
        """Say for people what the loss of a server or of a node does."""
        if not self.hosts:
            return "none: each shard has one replica, and waits until its node has started it again from its disk"
        return failover(len({self.servers[name][0] for name in self.acceptors}))

    def servers_on(self, node: str) -> dict[str, str]:
        """Return the servers of a node: name -> endpoint."""
        return {name: endpoint for name, (host, endpoint) in self.servers.items() if host == node}

    def masters_on(self, node: str) -> dict[str, str]:
        """Return the masters of a node: name -> endpoint."""
        return {name: endpoint for name, (host, endpoint) in self.hosts.items() if host == node}


def failover(nodes: int) -> str:
    """Say for people what the loss of a server or of a node does, while the acceptors are on so many nodes."""
    if nodes >= ACCEPTORS:
        return "automatic"
    return (f"automatic when a process ends, but not when a node is lost: the configuration register is on {nodes} "
            f"{'node' if nodes == 1 else 'nodes'}, {ACCEPTORS} are needed")


def plan(nodes: list[str], shards: int, replicas: int, endpoint: Callable[[str, str], str]) -> Plan:
    """Place ``replicas`` servers of each of ``shards`` shards on ``nodes``, the first of which is the head.

    ``endpoint``: from node and process to where that process listens.
    """
    servers: dict[str, tuple[str, str]] = {}
    chains = []
    for index in range(shards):
        spares = max(0, ACCEPTORS - shards * replicas) if index == 0 and replicas > 1 else 0
        names = [f"shard-{index}-{number}" for number in range(replicas + spares)]
        for number, name in enumerate(names):
            node = nodes[(index + number) % len(nodes)] if replicas > 1 else nodes[0]
            servers[name] = (node, endpoint(node, name))
        chains.append(Shard(1, [(name, servers[name][1]) for name in names[:replicas]]))
    if replicas == 1:
        return Plan(servers, {}, chains, [])
    masters = {}
    for number in range(MASTERS):
        node = nodes[number % len(nodes)]
        masters[f"master-{number}"] = (node, endpoint(node, f"master-{number}"))
    return Plan(servers, masters, chains, _spread(servers))


def _spread(servers: dict[str, tuple[str, str]]) -> list[str]:
    """Choose the acceptors: servers on as many nodes as there are."""
    chosen: list[str] = []
    while len(chosen) < ACCEPTORS:
        used = [servers[name][0] for name in chosen]
        left = [name for name in servers if name not in chosen]
        chosen.append(min(left, key=lambda name: used.count(servers[name][0])))
    return chosen
