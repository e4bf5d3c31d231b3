"""Messages between anyone who keeps control state and the members of a control store shard.

*Pure.* Clients connect to the members' ROUTERs: writes go to the head of a chain, everything else to its tail.

Dialogs::

    client -> head       Write                   -> Written | WriteRefused | WrongEpoch
    client -> head       CloseClient
    client -> tail       Read                    -> ReadAnswered | WrongEpoch
    client -> tail       Scan                    -> Scanned | WrongEpoch
    client -> tail       Watch                   -> Changed, the present rows and from then on every change
                                                  | WatchConfirmed | WatchLost | WrongEpoch
    client -> tail       Unwatch
    tool   -> member     DescribeShard           -> ShardDescribed

Every row carries the version under which it was written: the shard's running number of operations. A version is never
used twice, also not by a row that was deleted and made again.

Source: van Renesse and Schneider, OSDI'04 s3; exactly-once as in RIFL, SOSP'15 s3.
"""

from __future__ import annotations

from meshray.messages.base import Message, Part
from meshray.messages.node import Shard

PUT = 0
"""Write the value, whatever was there."""
PUT_IF_ABSENT = 1
"""Write the value if there is no such row."""
COMPARE_AND_SET = 2
"""Write the value if the row has ``version`` (0: if there is no such row)."""
DELETE = 3
"""Remove the row if it has ``version`` (0: whatever its version; removing nothing succeeds)."""


class Op(Part):
    """One operation on one row. ``kind`` is one of the four above."""

    table: str
    key: bytes
    value: bytes = b""
    kind: int = PUT
    version: int = 0


class Row(Part):
    """A row as it is. ``value`` None: there is none; ``version`` is then 0, or in ``Changed`` that of its removal."""

    key: bytes
    version: int = 0
    value: bytes | None = None


class Refusal(Part):
    """Operation number ``index`` of a Write was not done, because this is the row: its version (0: there is none) and
    value (left out when the answer would be too large to be kept)."""

    index: int
    version: int
    value: bytes | None = None


class Write(Message, tag=130):
    """client -> head. Do these in order. Answered by Written, WriteRefused or WrongEpoch. A client has one Write on the
    way to a shard and sends it again on silence; ``sequence`` grows by one with every Write, and each is done once."""

    client: str
    sequence: int
    epoch: int
    ops: list[Op]


class Written(Message, tag=131):
    """tail -> client. Durable. Operation ``i`` has version ``version + i``, except those that were refused."""

    sequence: int
    version: int
    refused: list[Refusal]


class WriteRefused(Message, tag=132):
    """head -> client. Nothing of this Write was done, nor will be when it is sent again; ``reason`` says what to
    change."""

    sequence: int
    reason: str


class CloseClient(Message, tag=133):
    """client -> head. I shall not write again, nor ask about what I wrote. Not answered; idempotent by client."""

    client: str
    epoch: int


class Read(Message, tag=134):
    """client -> tail. Tell me these rows, (table, key) each. Answered by ReadAnswered or WrongEpoch. Idempotent."""

    cookie: int
    epoch: int
    keys: list[tuple[str, bytes]]


class ReadAnswered(Message, tag=135):
    """tail -> client. The rows of the first ``len(rows)`` keys, in their order: fewer than were asked for when they
    would be too many bytes, but at least one."""

    cookie: int
    rows: list[Row]


class Scan(Message, tag=136):
    """client -> tail. Tell me rows whose key starts with ``prefix`` and is greater than ``after``, in the order of
    their keys, at most ``limit``. Answered by Scanned or WrongEpoch. Idempotent."""

    cookie: int
    epoch: int
    table: str
    prefix: bytes = b""
    after: bytes = b""
    limit: int = 1000


class Scanned(Message, tag=137):
    """tail -> client. One page. ``more``: go on with ``after`` = the last key. Each page is of one moment; two pages
    may be of two."""

    cookie: int
    rows: list[Row]
    more: bool = False


class Watch(Message, tag=138):
    """client -> tail. Tell me the row ``key`` (``prefix``: all rows whose key starts with it) now and whenever it
    changes. Idempotent by (client, ``watch``, ``stream``). Sent again, with the number of the last Changed that was
    ``received``, to acknowledge, to keep the watch, and to learn whether anything was missed. A new stream with
    ``since`` asks only for what changed after that version, for everything up to it was told before."""

    watch: int
    stream: int
    epoch: int
    table: str
    key: bytes
    prefix: bool = False
    received: int = 0
    since: int = 0


class Unwatch(Message, tag=139):
    """client -> tail. End this watch. Not answered; idempotent."""

    watch: int


class Changed(Message, tag=140):
    """tail -> client. Committed rows, in the order of their commits. ``number`` counts the messages of this stream from
    1 without gaps. ``snapshot``: these are the rows present at the start; ``more`` of them follow. ``resumed``: only
    what changed, or was removed, after the version that the watcher named. ``as_of``: with this message everything up
    to that version is told. ``begun``: where the shard stood when this stream began."""

    watch: int
    stream: int
    number: int
    rows: list[Row]
    snapshot: bool = False
    more: bool = False
    resumed: bool = False
    as_of: int = 0
    begun: int = 0


class WatchConfirmed(Message, tag=141):
    """tail -> client. This watch stands; ``number`` is that of the last Changed sent. Who has received that was told
    everything up to version ``as_of``. ``begun``: where the shard stood when this stream began."""

    watch: int
    stream: int
    number: int
    as_of: int = 0
    begun: int = 0


class WatchLost(Message, tag=142):
    """tail -> client. This stream has ended, and changes may have been missed: watch again with a new one."""

    watch: int
    stream: int
    reason: str


class WrongEpoch(Message, tag=143):
    """member -> client. You speak of another configuration, or I am not the member to ask; this is the chain as I
    know it. Nothing was done."""

    shard: Shard


class DescribeShard(Message, tag=144):
    """tool -> member. Answered by ShardDescribed with the same ``cookie``."""

    cookie: int = 0


class ShardDescribed(Message, tag=145):
    """member -> tool. ``role``: alone, head, middle, tail. ``file_bytes`` are on disk, ``used_bytes`` of them hold
    data; the file may grow to ``map_bytes`` without a pause."""

    cookie: int
    name: str
    role: str
    shard: Shard
    sequence: int
    rows: dict[str, int]
    used_bytes: int
    file_bytes: int
    map_bytes: int
    durability: str
    clients: int
    watches: int


MESSAGES = (Write, Written, WriteRefused, CloseClient, Read, ReadAnswered, Scan, Scanned, Watch, Unwatch, Changed,
            WatchConfirmed, WatchLost, WrongEpoch, DescribeShard, ShardDescribed)
