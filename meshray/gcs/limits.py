"""Every limit of the control store, with its unit and its reason.

*Pure.* Read by shards and by their clients.
"""

from __future__ import annotations

from meshray.config import GIB, KIB, MIB, MILLISECOND_NS, SECOND_NS

KEY_BYTES_MAX = 510
"""LMDB takes 511; an empty key it does not take."""

VALUE_BYTES_MAX = 64 * MIB
"""One row, for example a pickled function; a quarter of the largest frame. Larger values go to the object store."""

WRITE_OPS_MAX = 1_000
"""Operations in one Write: beyond 100 the cost per row no longer falls, and no turn should last longer than this."""

WRITE_BYTES_MAX = 4 * MIB
"""Bytes after which a client closes a Write and begins the next; one operation may be larger."""

QUEUED_OPS_MAX = 200_000
"""Operations that wait at one client for one shard; a client that offers more is told to slow down."""

ANSWER_BYTES_MAX = 4 * MIB
"""Bytes of rows in one answer; what is left is asked for again."""

READ_KEYS_MAX = 1_000
"""Keys in one Read."""

SCAN_ROWS_MAX = 1_000
"""Rows in one page of a Scan, whatever was asked for."""

RESEND_NS = 1 * SECOND_NS
"""A request that is not answered is sent again after this; far above a commit with its sync."""

RETRY_NS = 50 * MILLISECOND_NS
"""Pause before a request is repeated at once: the member had just started, or just learnt of a new chain."""

REQUEST_TIMEOUT_NS = 60 * SECOND_NS
"""A request is given up after this unless the caller says otherwise; well below CLIENT_FORGET_NS."""

REQUEST_TIMEOUT_MAX_NS = 120 * SECOND_NS
"""The longest timeout that a caller may choose, since a Write must not be sent again once its client is forgotten."""

CLIENT_FORGET_NS = 600 * SECOND_NS
"""A client that has not written this long is forgotten: nothing it sent can still be on the way."""

CLIENT_LINGER_NS = 30 * SECOND_NS
"""A client that closed is remembered this much longer, in case a copy of its last Write is still on the way."""

CLIENTS_MAX = 100_000
"""Clients a shard remembers, about 150 bytes each."""

WATCHES_MAX = 100_000
"""Watches that a shard keeps."""

WATCH_ROWS_MAX = 100_000
"""Rows that a watch may cover at its start."""

WATCH_UNRECEIVED_MAX = 1_024
"""Changed messages on the way to a watcher; one that is further behind is told that it lost its place."""

WATCH_RECEIVED_EVERY = 128
"""A client acknowledges after this many Changed messages, well before the shard counts it as slow."""

WATCH_RENEW_NS = 2 * SECOND_NS
"""A client renews its watches this often: a lost message, or a shard that restarted, is noticed after this."""

REMOVALS_MAX = 10_000
"""Removals that a member remembers (up to twice as many, about 150 bytes each) so that watchers can go on at another
tail: some seconds of the busiest shard, and a client knows its place to 2 s even when nothing changes."""

WATCH_FORGET_NS = 30 * SECOND_NS
"""A watch that is not renewed ends after this."""

HOUSEKEEPING_NS = 60 * SECOND_NS
"""How often a shard forgets silent clients and looks for readers that died."""

MAP_BYTES = 1 * GIB
"""Size of a new map: address space, not memory, and a sparse file. Doubled when it is full."""

MAP_BYTES_MAX = 1024 * GIB
"""Where growing ends."""

KEY_PART_BYTES_MAX = 250
"""Bytes of each half of a two-part key (namespace and name), so that both fit into one key."""

DEDUP_BYTES_MAX = 64 * KIB
"""Bytes of refused rows that an answer may carry, as it is kept for repetition; beyond it values are left out."""

EXTEND_BYTES_MAX = 16 * MIB
"""Bytes of rows in one message to a successor; a sixteenth of the largest frame, as one more entry may be added."""

CHAIN_RESEND_NS = 100 * MILLISECOND_NS
"""A member whose successor has confirmed nothing for so long asks it what it has. ZeroMQ loses a message only with its
connection, so this is rarely more than a question."""

CONFIRM_NS = 5 * MILLISECOND_NS
"""How long the tail gathers what it confirms to the rest of the chain. Nobody waits for it; the others keep what is not
confirmed, some megabytes at the most that a chain can carry in this time, and a new tail answers it once more."""

HEARTBEAT_NS = 300 * MILLISECOND_NS
"""How often a server of the control store tells the masters that it lives. A process that was killed is known by its
node at once; this is for those that were stopped, and for whole machines. Half as long was too short on two cores that
eight busy processes shared: members were replaced that were only slow."""

SUSPECT_NS = 800 * MILLISECOND_NS
"""A member that was silent this long is replaced: two heartbeats were lost, and a third is late. Being wrong costs one
join; see ``gcs.master`` for why it is safe."""

READ_LEASE_NS = 700 * MILLISECOND_NS
"""How long the tail may answer reads after it asked the other members; below SUSPECT_NS, so that whoever replaces a
silent tail seldom has to wait for it."""

READ_LEASE_GIVEN_NS = 735 * MILLISECOND_NS
"""The same as its giver counts it: 5 % longer, far above what clocks of two machines differ in their rate."""

READ_LEASE_ASK_NS = 200 * MILLISECOND_NS
"""How often the tail asks: three answers may be lost or late before a read waits."""

HELD_READS_MAX = 1_000
"""Reads that wait at a tail without a lease; those beyond are asked again by their clients."""

SNAPSHOT_CHUNK_ROWS = 500
"""Rows in one piece of a snapshot: reading and sending them takes the tail less than a millisecond, during which the
chain's own work waits."""

SNAPSHOT_RESENDS = 8
"""Messages that a joiner is sent again at once, when it has confirmed nothing for FEED_RESEND_NS."""

FEED_BYTES_MAX = 256 * MIB
"""New entries that the tail keeps for a joiner; one that is further behind has to begin again."""

FEED_RESEND_NS = 200 * MILLISECOND_NS
"""A joiner that confirmed nothing for so long is sent again what it lacks."""

JOIN_RETRY_NS = 1 * SECOND_NS
"""A joiner that hears nothing from the tail begins again after this."""

PROPOSE_NS = 100 * MILLISECOND_NS
"""A ballot that a majority of acceptors has not answered by then is given up for a higher one."""

FORMER_MEMBERS_MAX = 16
"""Members of earlier chains that a client remembers, to ask them when all others are silent."""

STAGGER_NS = 60 * MILLISECOND_NS
"""How much longer the second master waits before it acts on what the first one should have seen, and so on: so that
they do not outbid each other."""

FOLLOWERS_MAX = 100_000
"""Clients that a server tells of a new chain."""

RESTART_PATIENCE_NS = 2 * SECOND_NS
"""When every member of a chain was killed, how long a master waits for the others to come back before it lets the best
of those that did continue alone."""

ACCEPTORS = 3
"""Acceptors of the configuration register: one may be lost."""

ACCEPTOR_SILENT_NS = 4 * SECOND_NS
"""An acceptor that was silent this long is exchanged, if there is another server to take its place: far longer than a
failover, and short because the loss of a second acceptor would be one too many until then."""

STUCK_NS = 2 * SECOND_NS
"""A member whose successor confirms nothing for so long says so: the two may be unable to reach each other, though both
reach the masters."""
