"""What the launching machine asks of a host, and what the host answers.

*Pure.* Spoken between ``ssh_host`` on the one side and ``host_bootstrap`` and ``host_agent`` on the other: one request
as a line of JSON, then events as lines of JSON. ``host_bootstrap`` speaks it without these structs.
"""

from __future__ import annotations

from typing import Any

import msgspec

from meshray.cluster_schema import NodeSpec, Retention
from meshray.processes.replacement import Places


class Request(msgspec.Struct, frozen=True, kw_only=True, tag_field="verb"):
    """One request per process. ``attached``: standard input stays open until the answer is there, and the host stops
    what it does when it ends before."""

    attached: bool = False


class Probe(Request, frozen=True, kw_only=True, tag="probe"):
    """What are you like, and is anything in the way of a node? Answered by ``Probed``."""

    python_version: str
    """Minor version that is needed, such as 3.11."""
    version: str
    digest: str
    """Digest of meshray's sources where ``up`` runs."""
    state_dir: str
    run_dir: str
    state_bytes: int
    run_bytes: int
    files_min: int
    memory_bytes: int


class File(msgspec.Struct, frozen=True, kw_only=True):
    """A file that a host should have."""

    target: str
    size: int
    digest: str
    mode: int


class Sync(Request, frozen=True, kw_only=True, tag="sync"):
    """Have these files. Answered by ``Wants``; then a tar stream of those follows, named by index; then ``Done``."""

    files: list[File]


class Install(Request, frozen=True, kw_only=True, tag="install"):
    """Make the virtual environment ``venv`` with ``wheel``, if one is named, and run shell commands."""

    wheel: str = ""
    venv: str = ""
    commands: list[str] = []


class NodeRequest(Request, frozen=True, kw_only=True):
    """A request about the node of a cluster on this host."""

    cluster: str
    node: str
    run_root: str
    state_dir: str


class Keys(NodeRequest, frozen=True, kw_only=True, tag="keys"):
    """Have a key pair. Answered by ``Key`` with the public half; the secret stays in ``state_dir``."""

    bind: str
    control_port: int
    """0: choose a free one of ``bind``."""


class Start(NodeRequest, frozen=True, kw_only=True, tag="start"):
    """Start the node, and answer ``Started`` once it is healthy."""

    spec: NodeSpec
    founders: list[str]
    """The nodes that the cluster began with, the head first: they tell where the control store lies."""
    founding: bool
    """Whether the cluster begins now."""
    keep_state: bool
    """Whether the control store's disks lie in the state directory."""
    has_past: bool
    """Whether the cluster begins with disks of an earlier life."""
    life: str
    """Which start of the cluster this is."""
    bind: str
    advertise: str
    control_port: int
    bulk_encryption: bool
    allowed: dict[str, str]
    seeds: dict[str, str]
    shards: int
    replicas: int
    replace_after: float
    schedulers: int
    locality: bool
    durability: str
    retention: Retention
    configuration: str
    """The cluster file as JSON, for ``cluster.json``."""
    places: Places | None
    """Where services run now, as far as is known, if not where the cluster began."""
    timeout_s: float


class Await(NodeRequest, frozen=True, kw_only=True, tag="await"):
    """Wait until this node knows these nodes and they live. Answered by ``Done``."""

    names: list[str]
    timeout_s: float


class Status(NodeRequest, frozen=True, kw_only=True, tag="status"):
    """Does the node run? Answered by ``Running``."""


class Allow(NodeRequest, frozen=True, kw_only=True, tag="allow"):
    """Let the owners of these public keys (name -> key) into the cluster, or (``state`` revoked) no longer. Answered by
    ``Done``."""

    keys: dict[str, str]
    state: str
    until_wall_ns: int = 0
    """When a key that is let in is so no longer; 0: never."""


class Describe(NodeRequest, frozen=True, kw_only=True, tag="describe"):
    """What do you know about the cluster? Answered by ``Described``."""

    topics: list[str]
    limit: int


class Stop(NodeRequest, frozen=True, kw_only=True, tag="stop"):
    """End the node and remove all that it leaves. Answered by ``Stopped``. Twice is a no-op."""

    forget: bool
    """Whether the node will not start again in this cluster: then what it knew of keys goes too."""
    reason: str = "meshray down"


AgentRequest = Probe | Keys | Start | Await | Status | Allow | Describe | Stop


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    """Something that a host tells."""


class Probed(Event, frozen=True, kw_only=True, tag="probed"):
    """What the host is like. ``problems`` is empty on a host that can have a node."""

    problems: list[str]
    python: str
    system: str
    version: str
    fits: bool
    """Whether this Python has the same meshray, with all that it needs."""
    missing: list[str]
    state_dir: str
    run_root: str
    environment: str
    """The virtual environment that an earlier ``up`` made for the same meshray, if there is one."""
    user: int
    machine: str
    """Equal for two probes that would put their nodes into the same run root of one machine."""
    address: str


class Wants(Event, frozen=True, kw_only=True, tag="wants"):
    """The indexes of the files that are missing or differ."""

    files: list[int]


class Done(Event, frozen=True, kw_only=True, tag="done"):
    """It is done. ``python``: of a new virtual environment."""

    text: str = ""
    python: str = ""


class Key(Event, frozen=True, kw_only=True, tag="key"):
    """The public key of the host's node, in hexadecimal, and the port where it will listen. ``has_state``: disks of the
    control store lie there."""

    public: str
    control_port: int
    has_state: bool = False
    places: Places | None = None
    """Where services ran when the node of this host ran last with a state that is kept."""


class Started(Event, frozen=True, kw_only=True, tag="started"):
    """The node is healthy. ``control``: its TCP endpoint; ``endpoint``: its socket for programs on the host."""

    control: str
    endpoint: str
    pid: int


class Running(Event, frozen=True, kw_only=True, tag="running"):
    """Whether the node's process lives."""

    alive: bool
    control: str = ""
    places: Places | None = None
    """Where services run now, if not where they were when the cluster began."""


class Described(Event, frozen=True, kw_only=True, tag="described"):
    """Rows by topic (``cli/rows``), and who did not answer in time."""

    endpoint: str
    rows: dict[str, list[dict[str, Any]]]
    missing: list[str]


class Stopped(Event, frozen=True, kw_only=True, tag="stopped"):
    """Whether anything had been there, and what could not be removed."""

    found: bool
    left: list[str]


class Failed(Event, frozen=True, kw_only=True, tag="failed"):
    """It could not be done."""

    text: str


AnyEvent = Probed | Wants | Done | Key | Started | Running | Described | Stopped | Failed
