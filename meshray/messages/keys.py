"""Messages about who may come in: tools change the cluster's list of keys, drivers of other machines ask their way in.

*Pure.*

Dialogs::

    tool -> node              ChangeKey        -> KeyChanged
    driver's machine -> node  AskWay           -> Way

The list itself is the table ``key`` of the control store, which every node watches.
"""

from __future__ import annotations

from meshray.messages.base import Message
from meshray.messages.node import Shard

ALLOWED, REVOKED = "allowed", "revoked"


class ChangeKey(Message, tag=66):
    """tool -> node. Let the owner ``name`` of this public key in, or no longer; ``until_wall_ns``: let it in until then
    (0: for good). Answered by KeyChanged. Idempotent by key."""

    cookie: int
    name: str
    key: str
    state: str
    until_wall_ns: int = 0


class KeyChanged(Message, tag=67):
    """node -> tool. It is written, and every node will act on it; or ``error`` says why it is not."""

    cookie: int
    error: str = ""


class AskWay(Message, tag=68):
    """driver's machine -> node. What must a node of mine know to belong to this cluster? Answered by Way."""

    cookie: int


class Way(Message, tag=69):
    """node -> driver's machine. The cluster as a new node must know it: shards, schedulers (name -> endpoint), seeds
    (node name -> TCP endpoint), allowed (name -> public key), and whether chunks travel encrypted."""

    cookie: int
    cluster: str
    shards: list[Shard]
    schedulers: dict[str, str]
    seeds: dict[str, str]
    allowed: dict[str, str]
    bulk_encryption: bool = True


MESSAGES = (ChangeKey, KeyChanged, AskWay, Way)
