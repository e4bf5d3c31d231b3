"""Messages between a session (driver or worker) and the node process of its machine.

*Pure.* The session connects to the node's ROUTER.

Dialog::

    session -> node   Register              -> Registered | RegisterRefused
    session -> node   DeclareDemand         how many leases of a scheduling class it can use; replaces what it said
    node -> session   LeaseGranted, LeaseReclaimed (please return), LeaseLost (the worker died), DemandStuck
    session -> node   ReturnLease, ReassignLeases (they serve another class of mine)
    worker -> node    WorkerBlocked, WorkerUnblocked
    session -> node   CreateActor           -> ActorChanged, also on every later change while it lives
    session -> node   KillActor
    node -> session   Leave                 end this process in good order

Source: OSDI'18 s4.2.1-2.
"""

from __future__ import annotations

from meshray.messages.base import Message, Part
from meshray.messages.tasks import TaskEntry


class Shard(Part):
    """One shard's chain as of ``epoch``: (name, endpoint) of its members, head first."""

    epoch: int
    members: list[tuple[str, str]]


class Register(Message, tag=30):
    """session -> node. I live at ``endpoint``. Answered by Registered. Idempotent by name. ``python_path`` is where a
    driver finds its modules, for the workers that run its code."""

    name: str
    kind: str
    pid: int
    endpoint: str
    job: str = ""
    namespace: str = ""
    entrypoint: str = ""
    token: str = ""
    python_path: tuple[str, ...] = ()


class Registered(Message, tag=31):
    """node -> session. All a session needs to know of its surroundings. ``pid`` is the node's process; ``network`` its
    TCP endpoint, empty in a cluster of one machine."""

    node: str
    node_name: str
    job: str
    namespace: str
    arena_path: str
    arena_bytes: int
    shards: list[Shard]
    run_dir: str
    cluster: str
    resources: dict[str, int]
    embedded: bool = False
    pid: int = 0
    network: str = ""
    pin_slot: int = 0
    """This session's part of the board behind the arena (``store.pins``)."""
    locality: bool = True
    """Whether tasks go where their inputs are."""


class RegisterRefused(Message, tag=32):
    """node -> session. ``reason`` says what to do about it."""

    reason: str


class Strategy(Part):
    """Where a task or actor may run. ``kind``: default, spread, node (with ``node``, ``soft``). ``labels``: conditions
    on the node's labels, as pairs of key and condition (see ``meshray.labels``)."""

    kind: str = "default"
    node: str = ""
    soft: bool = False
    labels: tuple[tuple[str, str], ...] = ()


class Demand(Part):
    """A scheduling class as its owner sees it. ``resources`` in 1/10 000 units; ``count`` leases wanted in all."""

    klass: int
    resources: dict[str, int]
    count: int
    label: str = ""
    strategy: Strategy = Strategy()
    backlog: int = 0
    mean_ns: int = 0
    input_bytes: dict[str, int] | None = None


class DeclareDemand(Message, tag=33):
    """session -> node. The leases I could use now; replaces the earlier word on the same classes. Idempotent."""

    demands: list[Demand]


class LeaseGranted(Message, tag=34):
    """node -> session. You may push tasks of ``klass`` to this worker until you return the lease."""

    klass: int
    lease: int
    worker: str
    endpoint: str
    node: str
    pid: int
    gpus: list[int] | None = None


class ReturnLease(Message, tag=35):
    """session -> node. I am done with these leases. Idempotent by lease."""

    leases: list[int]


class ReassignLeases(Message, tag=52):
    """session -> node. These leases, whose workers are idle, serve my class ``klass`` from now on. Of the class
    ``left`` that they served I can use ``count`` leases. Both need the same resources. Idempotent by lease."""

    leases: list[int]
    klass: int
    left: int
    count: int


class LeaseReclaimed(Message, tag=36):
    """node -> session. Others wait: return this lease as soon as its running task ends. Answered by ReturnLease."""

    lease: int


UNSCHEDULABLE = "unschedulable: "
"""Begins the reason of an actor's death for which no place is left."""


class Death(Part):
    """How a process ended: exit ``code``, or ``signal`` (0: none), with the last lines it wrote to stderr."""

    worker: str
    pid: int
    node: str
    code: int = 0
    signal: int = 0
    stderr: str = ""
    reason: str = ""


class LeaseLost(Message, tag=37):
    """node -> session. The leased worker is gone; tasks that were there did not answer and may be retried."""

    lease: int
    death: Death


class DemandStuck(Message, tag=38):
    """node -> session. No node that there is can satisfy this class; ``reason`` names the resource and what there is;
    empty: one can again. ``final``: the one node that may run it has gone, so it will not run."""

    klass: int
    reason: str
    final: bool = False


class WorkerBlocked(Message, tag=39):
    """worker -> node. My task waits in ``get`` or ``wait``: its CPU is free. Paired with WorkerUnblocked."""


class WorkerUnblocked(Message, tag=40):
    """worker -> node. My task goes on; the CPU is taken back even if that oversubscribes the node for a while."""


class ActorSpec(Part):
    """All that is needed to build an actor, also again."""

    actor: bytes
    owner: str
    owner_endpoint: str
    job: str
    class_id: bytes
    class_name: str
    creation: TaskEntry
    place_resources: dict[str, int]
    run_resources: dict[str, int]
    max_restarts: int = 0
    max_task_retries: int = 0
    max_concurrency: int = 0
    is_async: bool = False
    name: str = ""
    namespace: str = ""
    detached: bool = False
    strategy: Strategy = Strategy()
    methods: dict[str, int] | None = None
    groups: dict[str, int] | None = None
    prefix: bytes = b""
    method_table: bytes = b""


class CreateActor(Message, tag=41):
    """session -> node, node -> node (spilled). Place and start the actor. Answered by ActorChanged. Idempotent by
    actor id and ``incarnation``. A node that sends an actor on says where it was asked for first (``home``), and how
    often it was started and restarted before."""

    spec: ActorSpec
    hops: int = 0
    home: str = ""
    home_endpoint: str = ""
    incarnation: int = 0
    restarts: int = 0


class ActorChanged(Message, tag=42):
    """node -> creator and watchers. ``state``: pending, alive, restarting, dead. ``error`` is the encoded failure
    of a constructor; ``death`` says how the process ended, or why it never began."""

    actor: bytes
    state: str
    incarnation: int = 0
    worker: str = ""
    endpoint: str = ""
    node: str = ""
    pid: int = 0
    death: Death | None = None
    error: bytes | None = None
    restarts_left: int = 0


class KillActor(Message, tag=43):
    """session -> node -> node of the actor. End its process now. Idempotent."""

    actor: bytes
    no_restart: bool = True
    reason: str = "killed by meshray.kill"


class StartActor(Message, tag=44):
    """node -> worker. Become this actor: build the instance. Answered by ActorStarted."""

    spec: ActorSpec
    incarnation: int
    gpus: list[int] | None = None


class ActorStarted(Message, tag=45):
    """worker -> node. The constructor returned, or failed with the encoded ``error``."""

    actor: bytes
    incarnation: int
    error: bytes | None = None


NOT_NEEDED = "idle"


class Leave(Message, tag=46):
    """node -> session. End in good order; workers exit, drivers report that the cluster has gone. A worker puts off a
    Leave whose reason is NOT_NEEDED as long as others refer to what it owns."""

    reason: str = ""


class Unregister(Message, tag=47):
    """session -> node. I end now of my own will; ``reason`` is kept as the cause. Answered by Unregistered."""

    reason: str = ""
    stop_cluster: bool = False


class Unregistered(Message, tag=48):
    """node -> session. Nothing of yours is left here."""


class WatchActor(Message, tag=49):
    """session -> node. Tell me this actor's state now and whenever it changes (the node asks the actor table)."""

    actor: bytes


class Ping(Message, tag=50):
    """anyone -> anyone it may talk to. Answered by Pong with the same ``cookie``."""

    cookie: int = 0


class Pong(Message, tag=51):
    """Answer to Ping."""

    cookie: int = 0


MESSAGES = (Register, Registered, RegisterRefused, DeclareDemand, LeaseGranted, ReturnLease, ReassignLeases,
            LeaseReclaimed, LeaseLost, DemandStuck, WorkerBlocked, WorkerUnblocked, CreateActor, ActorChanged,
            KillActor, StartActor, ActorStarted, Leave, Unregister, Unregistered, WatchActor, Ping, Pong)
