"""The tables of the control store: their keys, their typed rows, and the shard of a key.

*Pure.* Used by everybody who reads or writes control state. A shard itself sees only bytes.

1. A key has 1 to ``KEY_BYTES_MAX`` bytes, and belongs to one shard: that of the hash of table and key.
2. Row structs are encoded as arrays; fields are only ever appended, each with a default: old rows stay readable.

========  =======================  =============  ===================================================================
table     key                      row            meaning
========  =======================  =============  ===================================================================
node      process name of node     NodeRow        a member of the cluster, until it leaves or is given up
job       name of the job          JobRow         one driver's program
function  function id              FunctionRow    a pickled function or class of a job
task      task id                  TaskRow        lineage: how to make the objects that the task returned
object    object id                ObjectRow      size, locations and holders of an object that left its owner
actor     actor id                 ActorRow       where the actor lives and how to build it again
name      ``name_key``             the actor id   who has the name; claimed with PUT_IF_ABSENT
kv        ``name_key``             any bytes      the user's key-value pairs
key       public key, 64 hex       KeyRow         whether the owner of a key may come in, over the network
event     time, node, number       EventRow       what happened to the cluster: a ring of the newest
place     ``services``             PlaceRow       which node runs which service, once that has changed
========  =======================  =============  ===================================================================

Source: OSDI'18 s4.2.1 and figure 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar
from zlib import crc32

import msgspec

from meshray.gcs import limits
from meshray.messages.base import Part
from meshray.messages.node import ActorSpec, Death
from meshray.messages.tasks import Location, RefInfo, TaskEntry

NODE, JOB, FUNCTION, TASK, OBJECT = "node", "job", "function", "task", "object"
ACTOR, NAME, KV, EVENT, KEY, PLACE = "actor", "name", "kv", "event", "key", "place"

TABLES = (NODE, JOB, FUNCTION, TASK, OBJECT, ACTOR, NAME, KV, EVENT, KEY, PLACE)
"""Every table; a shard refuses all others."""


class NodeRow(Part):
    """A node: where its socket is and what it has. Resources in 1/10 000 units; ``state``: alive, left, dead."""

    node: str
    name: str
    endpoint: str
    resources: dict[str, int]
    state: str = "alive"
    pid: int = 0
    incarnation: int = 0
    host: str = ""
    arena_bytes: int = 0
    started_wall_ns: int = 0
    ended_wall_ns: int = 0
    reason: str = ""
    life: str = ""
    """Which start of the cluster it belongs to (``NodeConfig.life``)."""
    visits: bool = False
    """Whether it goes with a driver, and carries nothing for others."""


class JobRow(Part):
    """A driver's program. ``state``: running, finished, failed; ``python_path``: where it finds its modules."""

    job: str
    driver: str
    namespace: str
    entrypoint: str = ""
    state: str = "running"
    node: str = ""
    pid: int = 0
    started_wall_ns: int = 0
    ended_wall_ns: int = 0
    reason: str = ""
    python_path: Sequence[str] = ()
    life: str = ""


class FunctionRow(Part):
    """A function or class, as ``serialization`` pickled it; the key is its function id."""

    name: str
    pickled: bytes
    job: str = ""


class TaskRow(Part):
    """Lineage of one task: enough to run it again. ``entry.index`` is its place under ``prefix``."""

    function: bytes
    name: str
    prefix: bytes
    num_returns: int
    entry: TaskEntry
    resources: dict[str, int]
    owner: str = ""
    job: str = ""
    attempt: int = 0
    max_retries: int = 0


class ObjectRow(Part):
    """An object that left its owner. ``holders`` are the processes that hold a reference; ``error`` took the place of
    the value; ``root`` is its content's name, once somebody asked for it."""

    owner: str
    size_bytes: int = 0
    locations: Sequence[Location] = ()
    holders: Sequence[str] = ()
    data: bytes | None = None
    error: bytes | None = None
    refs: Sequence[RefInfo] = ()
    root: bytes = b""
    job: str = ""


class ActorRow(Part):
    """An actor. ``state``: pending, alive, restarting, dead; where it lives is meant for ``incarnation`` only."""

    spec: ActorSpec
    state: str = "pending"
    incarnation: int = 0
    node: str = ""
    worker: str = ""
    endpoint: str = ""
    pid: int = 0
    restarts: int = 0
    death: Death | None = None
    error: bytes | None = None
    created_wall_ns: int = 0
    home: str = ""
    """The node that starts it again when ``node`` is gone."""


class KeyRow(Part):
    """A public key. ``state``: allowed, revoked; an allowed one is out from ``until_wall_ns`` on (0: never)."""

    name: str
    state: str
    until_wall_ns: int = 0


class EventRow(Part):
    """Something that happened. ``severity``: info, warning, error; ``kind``: what, in two or three words;
    ``source``: the node or process that it happened to."""

    wall_ns: int
    severity: str
    kind: str
    source: str
    message: str = ""


class PlaceRow(Part):
    """Where the services of the control store and of scheduling run: name -> (name of the node, endpoint). ``number``:
    what the next new one of them is called by, as no name is used twice."""

    services: dict[str, tuple[str, str]]
    number: int

    @property
    def nodes(self) -> set[str]:
        """The names of the nodes that run any."""
        return {node for node, _ in self.services.values()}


AnyRow = TypeVar("AnyRow", bound=Part)

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[type[Part], msgspec.msgpack.Decoder[Any]] = {
    kind: msgspec.msgpack.Decoder(kind)
    for kind in (NodeRow, JobRow, FunctionRow, TaskRow, ObjectRow, ActorRow, KeyRow, EventRow, PlaceRow)
}


class BadRow(ValueError):
    """A row's bytes are not what its table holds."""


def encode(row: Part) -> bytes:
    """Return the bytes of a typed row."""
    return _encoder.encode(row)


def decode(value: bytes, kind: type[AnyRow]) -> AnyRow:
    """Return the row of type ``kind`` in ``value``; raise BadRow if there is none."""
    try:
        row = _decoders[kind].decode(value)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRow(f"{len(value)} bytes are not a {kind.__name__}: {error}") from error
    assert isinstance(row, kind)
    return row


def shard_of(table: str, key: bytes, shards: int) -> int:
    """Return which of ``shards`` shards the row belongs to. The same for ever: rows do not move."""
    return crc32(key, crc32(table.encode())) % shards if shards > 1 else 0


def name_key(namespace: str, name: str) -> bytes:
    """Return the key of ``name`` in ``namespace``; ``name_key(namespace, "")`` is the prefix of all its names. Raise
    ValueError when either part is longer than KEY_PART_BYTES_MAX or the namespace contains a zero byte."""
    head, tail = namespace.encode(), name.encode()
    for what, part in (("namespace", head), ("name", tail)):
        if len(part) > limits.KEY_PART_BYTES_MAX:
            raise ValueError(
                f"{what} of {len(part)} bytes is too long: at most {limits.KEY_PART_BYTES_MAX} bytes are possible"
            )
    if b"\0" in head:
        raise ValueError(f"namespace {namespace!r} contains a zero byte: leave it out")
    return head + b"\0" + tail


def split_name_key(key: bytes) -> tuple[str, str]:
    """Return (namespace, name) of a key made by ``name_key``."""
    head, _, tail = key.partition(b"\0")
    return head.decode(errors="replace"), tail.decode(errors="replace")
