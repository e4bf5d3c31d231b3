"""Every limit and default, with its unit and its reason.

*Pure.* Read by every process; nothing else in the code may hide a number of this kind.

Times are integer nanoseconds (``*_NS``), sizes are bytes (``*_BYTES``), limits end in ``_MAX``.
"""

from __future__ import annotations

MILLISECOND_NS = 1_000_000
SECOND_NS = 1_000_000_000
KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

# --- transport ---------------------------------------------------------------------------------------------------

MESSAGE_BYTES_MAX = 256 * MIB
"""Largest frame accepted from a peer; above it ZeroMQ drops the connection. Large values go by arena, not by frame."""

TURN_MESSAGES_MAX = 256
"""Messages a host handles before it persists and sends; bounds the work of one turn."""

HANDSHAKE_TIMEOUT_NS = 10 * SECOND_NS
"""A peer that connects and says nothing is dropped after this."""

RECONNECT_MAX_NS = 1 * SECOND_NS
"""ZeroMQ tries again to reach a process that does not answer, after pauses that double up to this."""

RECONNECT_SERVICE_MAX_NS = 100 * MILLISECOND_NS
"""The same for a process that comes back under its name: whoever waits for it would wait half of its absence more. Not
for workers and drivers, of which a long life knows thousands that are gone for ever."""

NETWORK_FRAME_BYTES_MAX = 72 * MIB
"""Largest frame accepted over TCP; above it the connection is dropped. The largest that we send is a value of the
control store (64 MiB); objects go by the bulk plane."""

NETWORK_HANDSHAKE_NS = 5 * SECOND_NS
"""Who connects over TCP and has not proved its key after this is dropped: bounds what strangers can hold open."""

NETWORK_HEARTBEAT_NS = 1 * SECOND_NS
"""ZeroMQ's own heartbeats on TCP: they show that the other process lives even while its Python is busy."""

NETWORK_SILENCE_NS = 8 * SECOND_NS
"""A TCP connection on which no answer to a heartbeat came for this long is dropped. Above SUSPICION_NS: who is given up
is decided by the schedulers, this only frees what the connection holds."""

LINK_BYTES_MAX = 512 * MIB
"""Bytes on the way to another node that it has not said to have taken; messages beyond it come back undelivered. Covers
what a node's workers may have outstanding; a peer that stops reading costs no more memory than this."""

LINK_STALL_NS = 5 * SECOND_NS
"""A connection at that limit whose other end has taken nothing for this long is dropped."""

LINK_RETRY_NS = 2 * SECOND_NS
"""A node that refused our key is asked again after this: the key may have been added meanwhile."""

LINK_NEWS_BYTES = 1 * MIB
"""A node says what it has taken each time it has taken this much more."""

LINK_FRAME_BYTES = 128
"""What a frame on the way counts beside its content, so that many small ones are bounded too."""

LINK_GUESTS_MAX = 10_000
"""Nodes and tools that have connected and are in none of the cluster's books yet; beyond it the first is dropped."""

LINK_QUEUE_MAX = 4_096
"""Messages received from one other node and not yet taken from ZeroMQ; beyond it TCP makes the sender wait."""

RELAYED_PEERS_MAX = 100_000
"""Processes of other nodes that have opened a dialog with one process here; beyond it the first is forgotten."""

REFUSED_KEYS_TOLD_MAX = 1_000
"""Refused keys that a gate remembers so that each is logged once, not at every attempt."""

# --- tasks -------------------------------------------------------------------------------------------------------

INLINE_BYTES_MAX = 100 * KIB
"""Values up to this size travel inside messages; larger ones go to the arena (as in Ray: programs behave alike)."""

PIPELINE_NS = 2 * MILLISECOND_NS
"""Work that may wait at one leased worker: enough to hide a round trip, too little to sit behind."""

PIPELINE_TASKS_MAX = 1_000
"""Tasks outstanding at one worker, however short they are."""

BATCH_TASKS_MAX = 64
"""Tasks per message: beyond 64 the cost per task no longer falls (510 k/s measured at 64, 2-core machine)."""

LEASE_IDLE_NS = 200 * MILLISECOND_NS
"""An owner keeps an unused lease this long; a steady trickle of tasks then never asks the scheduler again."""

LOCALITY_BYTES_MIN = 1 * MIB
"""Inputs of at least this size count when a task's place is chosen: they travel for 8 ms at 1 Gbit/s, longer than it
takes to ask another node for a worker."""

LOCALITY_SPLITS_MAX = 16
"""Nodes by which the tasks of one function are told apart; each part asks for leases of its own."""

MAX_RETRIES = 3
"""Times a task is run again after its worker died (Ray's default)."""

# --- sessions ----------------------------------------------------------------------------------------------------

SWITCH_INTERVAL_S = 0.0005
"""Python's thread switch interval in processes that run user code: at the default 5 ms a spinning thread lets an I/O
thread in only 200 times a second."""

BACKGROUND_GRACE_NS = 2 * MILLISECOND_NS
"""The background thread takes the sockets over when the user's threads have left them alone this long."""

REGISTER_TIMEOUT_NS = 20 * SECOND_NS
"""A session gives up joining a node after this."""

LINEAGE_FLUSH_NS = 200 * MILLISECOND_NS
"""Task and object rows wait this long; those whose results were dropped meanwhile are never written."""

EVENTS_MAX = 20_000
"""Timeline events each process keeps; older ones are dropped and counted."""

# --- nodes and workers -------------------------------------------------------------------------------------------

HEARTBEAT_NS = 100 * MILLISECOND_NS
"""Load reports from nodes to global schedulers, while the load changes."""

HEARTBEAT_REST_NS = 300 * MILLISECOND_NS
"""The same while nothing changes: ten of them fit into SUSPICION_NS."""

SUSPICION_NS = 3 * SECOND_NS
"""A node unheard of this long is given up. Far above any stall seen at 100 % CPU."""

ACTOR_CLAIM_NS = 1 * SECOND_NS
"""What the control store did not answer about the row of a detached actor is asked again this often."""

ACTOR_HEIR_WAIT_NS = 1 * SECOND_NS
"""How long after a node was given up its detached actors are left to their homes, before somebody looks for those that
have none any more."""

ACTOR_HEIR_LOOK_NS = 30 * SECOND_NS
"""How long after a node was given up the others are ready to look for such actors: the control store may have a new
head to wait for. Later, the sweep of what has ended finds them."""

ACTOR_ROW_WAIT_NS = 10 * SECOND_NS
"""How long the row of an actor may be late before it counts as removed: longer than a failover of its shard."""

EVENT_FLUSH_NS = 1 * SECOND_NS
"""What a node has seen happen is written this often, in one write."""

EVENT_BURST_MAX = 100
"""Events of one urgency (information, or worse) that a node writes at once: a crash of a program with 100 actors."""

EVENT_REFILL_NS = 1 * SECOND_NS
"""After a burst, one event more for each such time: what happens more often is a loop, and needs no row each time."""

EVENT_WAITING_MAX = 500
"""Events that a node keeps while the control store does not take them, the newest."""

EVENT_MESSAGE_CHARS_MAX = 1_000
"""Longest text of an event: a reason with its numbers, not a traceback."""

RETENTION_SWEEP_NS = 60 * SECOND_NS
"""How often what has ended is looked for in the tables. A job's leftovers go two sweeps after its end, by when nothing
that it wrote is still on the way."""

WORKER_IDLE_NS = 2 * SECOND_NS
"""Idle workers above the number of CPUs are ended after this."""

WORKER_START_TIMEOUT_NS = 20 * SECOND_NS
"""A forked worker that has not registered after this is killed and replaced."""

WORKERS_STARTING_MAX = 16
"""Workers in the state of starting at the same time on one node."""

STDERR_TAIL_LINES = 20
"""Lines of a dead worker's stderr that its exception carries."""

LOG_POLL_NS = 100 * MILLISECOND_NS
"""How often a node looks at its workers' output files."""

# --- objects -----------------------------------------------------------------------------------------------------

ARENA_SHARE = 0.3
"""Share of the machine's memory that a node's arena may use, also limited by the shared-memory file system."""

ARENA_BYTES_MAX = 200 * GIB
"""Largest arena that nobody asked for."""

ARENA_BYTES_MIN = 64 * MIB
"""Least size of an arena that nobody asked for: with less room in shared memory, a cluster does not start."""

ARENA_BYTES_LEAST = 1 * MIB
"""Least size that one may ask for: below it hardly any value that does not travel inside messages has room."""

EXTENT_BYTES = 32 * MIB
"""Granularity of arena leases: large enough that 1 MiB values rarely ask, small enough for many clients."""

FREED_BYTES_MAX = 8 * MIB
"""Objects that died are reported to nodes in batches, every few milliseconds or after so many bytes."""

CHUNK_BYTES = 1 * MIB
"""Content-addressed chunk of a transfer: blake3 runs at full width from 16 KiB, and a lost chunk costs 1 MiB."""

PULL_CREDIT_CHUNKS = 16
"""Most chunks outstanding per holder: 16 MiB covers the bandwidth-delay product of a 10 Gbit/s link at 13 ms."""

PULL_WINDOW_MIN = 2
"""Least chunks outstanding at a holder that answers: while one is on its way the next waits, so no link idles."""

PULL_WINDOW_START = 6
"""Chunks outstanding at a holder before its speed is known."""

PULL_LATENCY_LOW_NS = 100 * MILLISECOND_NS
"""While chunks come faster than this after they were asked for, a holder is asked for more at a time."""

PULL_LATENCY_HIGH_NS = 200 * MILLISECOND_NS
"""When they come later than this, for fewer: what waits in its queue cannot be had elsewhere."""

PULL_LATE_NS = 200 * MILLISECOND_NS
"""Least time after which an outstanding chunk is asked for at a second holder that has nothing better to do."""

PULL_PEERS_MAX = 24
"""Holders of one object that a pull talks to; each costs a connection and a notice per announcement."""

PULL_LOOK_NS = 50 * MILLISECOND_NS
"""While there are pulls, each is looked at this often: for silence, for what is late, for news left over."""

PULL_NEWS_PART = 32
"""Peers are told of new chunks when so small a part of the object has come since they were told last..."""

PULL_NEWS_NS = 100 * MILLISECOND_NS
"""...or this time has passed. Each notice wakes its receiver; with eight takers of 256 MiB at 1 Gbit/s, told of every
chunk, notices were a quarter of all CPU time, and told so they finish as early."""

PULL_REFRESH_NS = 2 * SECOND_NS
"""A pull asks its holders again what they have, and who else has it, this often."""

PULL_STUCK_NS = 5 * SECOND_NS
"""A pull whose holders all live and all lack the same chunks ends after this, as with a holder that is silent."""

PULL_KEEP_NS = 60 * SECOND_NS
"""What a pull brought before its last holder failed is kept this long, unless the room is needed."""

SERVE_HOLD_NS = 5 * SECOND_NS
"""An object stays in memory this long after a node asked for its manifest; pulls ask again each PULL_REFRESH_NS."""

SERVE_HOLD_SHORT_NS = 500 * MILLISECOND_NS
"""The same while somebody waits for room: objects that others took would otherwise fill a small store."""

HASH_THREADS_MAX = 4
"""Threads that compute the digests of one object: nobody can take it before, and on a fast link one thread (5 GB/s)
would add a quarter to the first transfer."""

HASH_SHARE_BYTES = 8 * MIB
"""Least that another thread is worth: 2 ms of hashing, against 0.1 ms for the thread."""

SERVE_ASKERS_MAX = 1000
"""Nodes that may take one object from the same holder; beyond it the one that asked longest ago loses its ticket."""

MALLOC_MMAP_BYTES = 32 * MIB
"""In a node process, blocks below this are reused when they are freed (the most that glibc allows)."""

MALLOC_KEPT_BYTES = 64 * MIB
"""Freed memory above this goes back to the system: as much as a few holders' windows of chunks."""

BULK_SLICE_NS = 20 * MILLISECOND_NS
"""CPU time that threads which move, hash and encrypt chunks ask the kernel for at a time: everybody else's slice is
shorter (1.4 to 3 ms by default), and so everybody else who wakes runs first. The kernel takes up to 100 ms."""

CONTROL_SLICE_NS = 100_000
"""The same for a node's control loop and the I/O threads of its sockets, which run for less than this: the least that
the kernel takes."""

BULK_REQUEST_BYTES_MAX = 64 * KIB
"""Largest frame that the bulk socket accepts from those who ask; a request has less than 1 KiB."""

BULK_TELL_NS = 25 * MILLISECOND_NS
"""The bulk thread lets chunks that came wait for others this long before it wakes the control loop, while more is on
its way than has come: three chunks at 1 Gbit/s."""

TICKET_BYTES = 16
"""Random bytes that open a bulk socket for one object: too many to guess."""

ALIGN_BYTES = 64
"""Objects and buffers start on cache lines."""

PAGE_BYTES = 4 * KIB
"""Page of the machine: large objects and buffers start on multiples of it."""

PAGED_BYTES = 256 * KIB
"""Objects and buffers of at least this size start on pages. Large arrays lie 16 or 64 bytes behind a page, and a copy
whose target is up to 512 bytes further into its page than the source runs at 4 GB/s instead of 15 (glibc on Zen 4)."""

POPULATE_BLOCK_BYTES = 1 * MIB
"""First touch of the arena goes block by block: few system calls, little memory committed before it is needed."""

COPY_UNLOCKED_BYTES = 256 * KIB
"""Copies into the arena of at least this size let other threads run meanwhile; below it the hand-over costs more."""

EXTENTS_SHARE_MIN = 16
"""A small arena is cut into at least this many extents, so that a few clients cannot lease it all."""

EXTENT_WAIT_NS = 3 * SECOND_NS
"""A producer waits this long for room before it gets ObjectStoreFullError."""

HOLDER_LINGER_NS = 1 * SECOND_NS
"""What a dead process held stays held this long: references that it passed on in its last messages are registered by
their receivers meanwhile. Far above a message's way at 100 % CPU, and leaves as much of the 2 s in which everything
unreachable is freed."""

LOGS_FLUSH_NS = 1 * SECOND_NS
"""A driver that leaves waits no longer for what its tasks wrote on other nodes: far above a round trip, and a node that
has just died holds nobody up."""

OWNER_STAYS_NS = 10 * SECOND_NS
"""A worker whose actor ended in good order, or that has run ``max_calls`` tasks, stays so long if others refer to what
it owns: time to read it. Not longer, since it keeps its memory and its GPUs meanwhile. Idle workers stay as long as
needed."""

HOLDS_DOUBTED_NS = 10 * SECOND_NS
"""So often an owner asks holders on other machines what they still hold, and a worker asks after pinned results: what a
broken connection swallowed leaks about so long, a worker's pins twice that. Rare, since connections seldom break."""

HOLDS_DOUBTED_MAX = 4096
"""Objects named in one such question (80 KiB); if there are more, their turn comes with the next ones."""

EARLY_FREE_NS = 10 * SECOND_NS
"""A free that overtook its object's seal notice is remembered this long."""

EARLY_FREES_MAX = 100_000
"""Such frees remembered at the same time; beyond it the oldest is forgotten."""

PULL_SILENCE_NS = 1 * SECOND_NS
"""A holder that sends nothing useful for this long is asked again for what is outstanding."""

PULL_SILENCES_MAX = 5
"""Silences in a row after which every node is asked for the object. A holder whose address is not known is given up
then: it has left, or never came."""

PULL_USELESS_NS = 60 * SECOND_NS
"""A holder whose node lives, as heartbeats tell, and from which not one chunk came for this long is given up for that
object. Being slow is no reason: a machine at 100 % CPU answers within seconds. It ends pulls between nodes that live
and cannot reach each other."""

PULL_UNKNOWNS_MAX = 2
"""Times a holder may say that it has no such object: its node may hear of a new object after we do. Also how often in a
row its manifest is asked for at once when it refuses the chunks that the last one promised."""

EXTENT_LINGER_NS = 500 * MILLISECOND_NS
"""Extents of a process that ended stay as they are for this long: its last seal notices may still be on their way."""

PULL_BAD_CHUNKS_MAX = 8
"""Chunks in a row that do not match their digest before a holder is given up for that object."""

PIN_BUCKETS = 16_384
"""Parts of an arena that are pinned each by itself: 64 KiB each in an arena of 1 GiB, fewer than its objects have."""

PIN_SLOTS_MAX = 1_023
"""Processes of one node that may read its arena at the same time."""

BOARD_BYTES = 4 * PIN_BUCKETS * (1 + 2 * PIN_SLOTS_MAX)
"""Address space of the board behind an arena, 128 MiB: a process that pins uses 4 KiB of it for 512 buckets."""

PROMISE_NS = 1 * SECOND_NS
"""An object that was brought in for a reader stays this long at least, so that the reader finds time to pin it."""

SPILL_BATCH_BYTES = 32 * MIB
"""Least that is spilled at a time when room is short (an eighth of a small arena): one search for victims, one
surplus."""

SPILL_RETRY_NS = 500 * MILLISECOND_NS
"""After the disk refused to take an object, it is asked again this often, while somebody waits for room."""

SPILL_LOOK_NS = 20 * MILLISECOND_NS
"""How often pins are looked at again while everything is pinned and somebody waits: readers do not tell. Also how long
sessions have to return what was freed inside their extents, before more is sent to disk."""

SPILL_FREE_SHARE = 100
"""Spilling leaves one part in so many of the disk's space to others."""

SURPLUS_REPEAT_NS = 200 * MILLISECOND_NS
"""While somebody waits for room, sessions are asked again for extents that hold nothing."""

SEAL_WAIT_NS = 2 * SECOND_NS
"""A reader may hear of a new object before the node does; the node waits this long for the seal notice."""
