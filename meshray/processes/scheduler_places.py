"""Where the global scheduler replicas run.

*Pure.* Used by whoever plans the nodes of a cluster.

1. Replicas lie on different nodes, as far as there are enough, so that none is needed for another.
2. They are stateless: a node with a replica may go, and its replica with it, as long as another one is left.
"""

from __future__ import annotations

from collections.abc import Sequence


def scheduler_places(nodes: Sequence[str], count: int) -> dict[str, str]:
    """Place ``count`` replicas on the nodes that a cluster begins with; return replica -> node."""
    return {f"scheduler-{index}": nodes[index % len(nodes)] for index in range(count)}
