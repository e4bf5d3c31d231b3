"""Messages between nodes and global scheduler replicas, and between nodes about placement.

*Pure.* Nodes connect to the replicas' ROUTERs and to each other's.

Dialogs::

    node -> replica      Heartbeat               load and resources; every replica gets every node's
    replica -> node      ClusterView             who else is there (names, endpoints, totals), on change
    node -> replica      PlaceDemand             spillover: where should these leases run?  -> DemandPlaced
    replica -> node      NodeGone                given up; also to that node itself, should it come back
    node -> node         RequestRemoteLease      -> RemoteLeaseGranted, then RemoteLeaseReclaimed, LeaseLost
    node -> node         ReturnRemoteLease, JobEnded
    node -> node         CreateActor, KillActor  spilled actors (messages.node)

Source: OSDI'18 s4.2.2 (bottom-up scheduling, estimated waiting time).
"""

from __future__ import annotations

from meshray.messages.base import Message, Part
from meshray.messages.node import Demand, Strategy


class NodeLoad(Part):
    """What a node says of itself. Resources in 1/10 000 units; averages are exponential."""

    node: str
    name: str
    endpoint: str
    total: dict[str, int]
    available: dict[str, int]
    queued: int = 0
    mean_task_ns: int = 0
    bytes_per_s: int = 0
    incarnation: int = 0
    pid: int = 0


class Heartbeat(Message, tag=70):
    """node -> replica. Sent every HEARTBEAT_INTERVAL and at once when the load changes a lot."""

    load: NodeLoad
    sequence: int


class ClusterView(Message, tag=71):
    """replica -> node. All nodes that the replica has heard of lately; ``gone`` those it gave up."""

    nodes: list[NodeLoad]
    gone: list[str]


class PlaceDemand(Message, tag=72):
    """node -> replica. ``count`` leases of this class should run elsewhere (or: cannot run here). Answered by
    DemandPlaced. Retry at the next replica on silence; idempotent by (node, ``request``)."""

    request: int
    node: str
    resources: dict[str, int]
    count: int
    strategy: Strategy = Strategy()
    mean_ns: int = 0
    input_bytes: dict[str, int] | None = None
    exclude: list[str] | None = None


class DemandPlaced(Message, tag=73):
    """replica -> node. How many of the leases go to which node: (node, endpoint, count). Empty ``places`` with
    ``feasible`` False: no node known can ever satisfy this; ``reason`` says which resource is short."""

    request: int
    places: list[tuple[str, str, int]]
    feasible: bool = True
    reason: str = ""


class RequestRemoteLease(Message, tag=74):
    """node -> node. The owner (a session at ``endpoint`` of the asking node) can use ``demand.count`` leases of this
    class here; replaces the earlier word on (owner, class). Answered by RemoteLeaseGranted, one per lease."""

    owner: str
    owner_node: str
    job: str
    demand: Demand


class RemoteLeaseGranted(Message, tag=75):
    """node -> asking node. Passed on to the owner as LeaseGranted."""

    owner: str
    klass: int
    lease: int
    worker: str
    endpoint: str
    node: str
    pid: int
    gpus: list[int] | None = None


class ReturnRemoteLease(Message, tag=76):
    """node -> granting node. The owner is done with these leases, or died: then ``kill`` the workers, which may still
    run its tasks. Idempotent by lease."""

    leases: list[int]
    kill: bool = False


class RemoteLeaseReclaimed(Message, tag=77):
    """granting node -> asking node. Passed on to the owner as LeaseReclaimed."""

    owner: str
    lease: int


class NodeGone(Message, tag=78):
    """replica -> node. This node has not been heard of for the suspicion time. Sent to the node itself when it comes
    back: everything it lends to or borrows from others is void."""

    node: str


class JobEnded(Message, tag=79):
    """driver's node -> all nodes. The driver is gone: end its tasks, and its actors unless detached. Idempotent."""

    job: str


MESSAGES = (Heartbeat, ClusterView, PlaceDemand, DemandPlaced, RequestRemoteLease, RemoteLeaseGranted,
            ReturnRemoteLease, RemoteLeaseReclaimed, NodeGone, JobEnded)
