"""Messages between nodes and global scheduler replicas, and between nodes about placement.

*Pure.* Nodes connect to the replicas' ROUTERs and to each other's.

Dialogs::

    node -> replica      Heartbeat               load and resources; every replica gets every node's
    replica -> node      ClusterView             who else is there (names, endpoints, totals), news only
    node -> replica      PlaceDemand             spillover: where should these leases run?  -> DemandPlaced
    replica -> node      NodeGone                given up; also to that node itself, should it come back
    node -> node         RequestRemoteLease      -> RemoteLeaseGranted, then RemoteLeaseReclaimed, LeaseLost
    node -> node         ReturnRemoteLease, ReassignRemoteLeases, JobEnded
    node -> node         CreateActor, KillActor  spilled actors (messages.node)
    node -> home node    ActorMoved              where a spilled actor is, how often it was restarted, or that it ended
    worker -> node       ActorBuilding           the constructor is about to run

Source: OSDI'18 s4.2.2 (bottom-up scheduling, estimated waiting time).
"""

from __future__ import annotations

import msgspec

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
    labels: dict[str, str] = msgspec.field(default_factory=dict)


class Heartbeat(Message, tag=70):
    """node -> replica. Sent every HEARTBEAT_NS and at once when the load changes a lot. ``members`` is the digest of
    the nodes that the sender knows, itself among them; answered by ClusterView if the replica knows others."""

    load: NodeLoad
    sequence: int
    members: int = 0


class ClusterView(Message, tag=71):
    """replica -> node. Some of the nodes that the replica has heard of lately, as they were when it did; ``gone`` some
    of those it gave up. Adds to what was said before. Idempotent."""

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
    backlog: int = 0


class DemandPlaced(Message, tag=73):
    """replica -> node. How many of the leases go to which node: (node, endpoint, count). Empty ``places`` with
    ``feasible`` False: no node known can ever satisfy this; ``reason`` says which resource is short."""

    request: int
    places: list[tuple[str, str, int]]
    feasible: bool = True
    reason: str = ""


class RequestRemoteLease(Message, tag=74):
    """node -> node. The owner (a session at ``endpoint`` of the asking node) can use ``demand.count`` leases of this
    class here; replaces the earlier word on (owner, class). Answered by RemoteLeaseGranted, one per lease.
    ``entitled``: others may be asked to return leases for it, because it cannot run elsewhere or has nothing yet;
    otherwise it takes what is free."""

    owner: str
    owner_node: str
    job: str
    demand: Demand
    entitled: bool = True


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
    run its tasks. ``asked``: the owner can use so many leases of class ``klass`` from now on, those it keeps among
    them, as if RequestRemoteLease had said so (-1: as many as before). Idempotent by lease."""

    leases: list[int]
    kill: bool = False
    owner: str = ""
    klass: int = 0
    asked: int = -1


class ReassignRemoteLeases(Message, tag=80):
    """asking node -> granting node. These leases serve another class of their owner from now on: ``demand``, as
    RequestRemoteLease would say it, with these among its ``count``. Of the class ``left`` that they served the owner
    can use ``asked`` leases here. Idempotent by lease."""

    owner: str
    leases: list[int]
    left: int
    asked: int
    demand: Demand
    entitled: bool = True


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


class ActorMoved(Message, tag=98):
    """node of a spilled actor -> node where it was asked for. It is with me now, in this incarnation, after so many
    restarts; ``ended``: it is dead; ``lost``: I was given up and ended it, it may be started elsewhere. Sent at each
    change; idempotent."""

    actor: bytes
    node: str
    endpoint: str
    incarnation: int = 0
    restarts: int = 0
    ended: bool = False
    lost: bool = False


class ActorBuilding(Message, tag=99):
    """worker -> node. The constructor is about to run: from now on the worker's death is the actor's own."""

    actor: bytes
    incarnation: int


MESSAGES = (Heartbeat, ClusterView, PlaceDemand, DemandPlaced, RequestRemoteLease, RemoteLeaseGranted,
            ReturnRemoteLease, ReassignRemoteLeases, RemoteLeaseReclaimed, NodeGone, JobEnded, ActorMoved,
            ActorBuilding)
