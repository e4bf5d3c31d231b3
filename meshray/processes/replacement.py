"""Which node runs which service next, when nodes are lost or added, and what a node that starts is told of it.

*Pure.* Used by ``placement`` in node processes, and by whoever starts nodes.

1. Services of one group (the servers of a shard, the masters, the global schedulers) lie on different nodes. One whose
   node is lost is given to a living node that has none of its group, those with the fewest services first; without such
   a node it stays where it is, in case that one comes back.
2. Who takes a place stands where the one stood that had it: masters keep their order, which is their rank.
3. A new service has a new name. So an old one that comes back is not taken for it, nor its disk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from meshray.gcs.tables import PlaceRow
from meshray.messages.node import Shard
from meshray.node_config import NodeConfig
from meshray.transport.sockets import process_endpoint

MASTER, SCHEDULER, SHARD = "master", "scheduler", "shard"


def kind_of(service: str) -> str:
    """Return what a service is."""
    return service.partition("-")[0]


def group_of(service: str) -> str:
    """Return the group of a service: its kind, and of servers their shard."""
    return service.rpartition("-")[0]


def following(places: Mapping[str, str], wanted: Mapping[str, int], living: Sequence[str], lost: Collection[str],
              number: int) -> tuple[dict[str, str], int]:
    """Return where services run next (service -> node), and the number for the next new name.

    ``places``: where they run now; ``wanted``: how many there should be of each group that may move; ``living``: nodes
    that may carry something; ``lost``: nodes for which nobody waits any more; ``number``: the first that was never used
    in a name.
    """
    load = Counter(node for node in places.values() if node not in lost)
    following: dict[str, str] = {}
    for group in dict.fromkeys([*map(group_of, places), *wanted]):
        members = [(service, node) for service, node in places.items() if group_of(service) == group]
        if group not in wanted:
            following.update(members)
            continue
        taken = {node for _, node in members if node not in lost}
        slots = [*members, *[("", "")] * (wanted[group] - len(members))]
        for service, node in slots:
            if node and node not in lost:
                following[service] = node
                continue
            free = [each for each in living if each not in taken and each not in lost]
            if free:
                node = min(free, key=lambda each: load[each])
                service = f"{group}-{number}"
                number += 1
                load[node] += 1
                taken.add(node)
            if service:
                following[service] = node
    return following, number


class Places(msgspec.Struct, frozen=True):
    """The row of the table of places as of ``version``."""

    version: int
    row: PlaceRow


def newest(found: Iterable[Places | None]) -> Places | None:
    """Return the newest of these."""
    return max((places for places in found if places is not None), key=_version, default=None)


def placed(settings: NodeConfig, places: Places | None) -> NodeConfig:
    """Return ``settings`` with services where they run now."""
    if places is None:
        return settings
    services = places.row.services

    def own(kind: str) -> dict[str, str]:
        return {service: process_endpoint(settings.run_dir, service) for service, (node, _) in services.items()
                if node == settings.node_name and kind_of(service) == kind}

    def of(kind: str) -> dict[str, str]:
        return {service: endpoint for service, (_, endpoint) in services.items() if kind_of(service) == kind}

    servers = of(SHARD)
    shards = [Shard(1, [(name, endpoint) for name, endpoint in servers.items() if group_of(name) == f"{SHARD}-{index}"])
              for index in range(len(settings.shards))]
    return msgspec.structs.replace(
        settings, host_shards=own(SHARD), host_masters=own(MASTER), host_schedulers=own(SCHEDULER), shards=shards,
        masters=of(MASTER), schedulers=of(SCHEDULER), places=services)


def _version(places: Places) -> int:
    return places.version
