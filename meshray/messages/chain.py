"""Messages among the servers of the control store: members of a chain, those that join one, acceptors and masters.

*Pure.* A server connects to its neighbours in the chain and to every master; answers go back on the same dialog.

Dialogs::

    member   -> successor    Extend                -> Extended (cumulative), or Resume where something is missing
    tail     -> all others   AskReadLease          -> ReadLeaseGiven
    joiner   -> tail         JoinChain             -> Feed, Feed, ... each acknowledged by Fed
    joiner   -> tail         Fed                   -> StreamUnknown, if that stream has ended
    server   -> master       ServerAlive           -> Configure, when the server knows an older chain
    master   -> member       Wedge                 -> Wedged
    master   -> member       Configure
    node     -> master       ServerDied
    master   -> acceptor     Prepare               -> Promised | BallotRefused
    master   -> acceptor     Accept                -> Accepted | BallotRefused
    client   -> every server FollowShard           -> WrongEpoch, at once if the client knows an older chain, and
                                                      whenever the chain changes
    master   -> server       AskRegister           -> RegisterKnown, if it is an acceptor
    node     -> its servers  MastersChanged

Every message of a chain carries the epoch of its configuration. One of another epoch changes nothing.

Source: van Renesse and Schneider, OSDI'04 s3; Rystsov, CASPaxos, 2018.
"""

from __future__ import annotations

from meshray.messages.base import Message, Part
from meshray.messages.gcs import Refusal
from meshray.messages.node import Shard

RowChange = tuple[str, bytes, int, bytes | None]
"""(table, key, version, value); value None removes the row. A tuple, because a struct per row costs twice as much."""


class ClientRecord(Part):
    """The last Write of a client that was done, and its answer."""

    sequence: int
    version: int
    refused: list[Refusal]


class Entry(Part):
    """One step of a shard's history: ``count`` operations from ``version`` on, asked for by ``client`` as its Write
    ``sequence``, whose answer goes to ``route``. Without a client it forgets the clients in ``forgotten``; with a
    ``count`` of 0 it is a piece of a snapshot: rows and ``records`` of clients as they are after ``version - 1``."""

    version: int
    count: int
    client: str
    sequence: int
    rows: list[RowChange]
    refused: list[Refusal]
    forgotten: tuple[str, ...] = ()
    route: bytes = b""
    records: tuple[tuple[str, ClientRecord], ...] = ()

    @property
    def last(self) -> int:
        """The last version that this entry uses."""
        return self.version + self.count - 1


class Place(Part):
    """A member in a configuration: ``life`` names one process, so that the next one of that name is a stranger."""

    name: str
    endpoint: str
    life: str


class Chain(Part):
    """One shard's chain as of ``epoch``, head first."""

    epoch: int
    places: list[Place]

    @property
    def shard(self) -> Shard:
        """The chain as clients know it."""
        return Shard(self.epoch, [(place.name, place.endpoint) for place in self.places])


class Configuration(Part):
    """The value of the configuration register. ``change`` counts the changes; ``author`` is who made the last one, so
    that it knows its own. ``acceptors`` hold the register; ``acceptors_next`` is not empty while they are exchanged,
    and then both need a majority."""

    change: int
    author: str
    chains: list[Chain]
    acceptors: tuple[str, ...]
    acceptors_next: tuple[str, ...] = ()


Ballot = tuple[int, str]
"""(round, proposer's name and life): unique and ordered."""


class Extend(Message, tag=150):
    """member -> successor. Entries that follow ``after``; ``version`` is the last that I have. Answered by Extended
    when they are at the tail, by Resume if you are not at ``after`` yet. Idempotent by the entries' versions."""

    epoch: int
    after: int
    version: int
    entries: list[Entry]


class Undelivered(Part):
    """The answer to a Write that the tail could not send to the client itself."""

    route: bytes
    sequence: int
    version: int
    refused: list[Refusal]


class Extended(Message, tag=151):
    """member -> predecessor. All up to ``committed`` is durable at the tail. Idempotent: only the greatest counts.
    ``undelivered`` travels to the head, which has a dialog with these clients; lost ones are asked for again."""

    epoch: int
    committed: int
    undelivered: tuple[Undelivered, ...] = ()


class Resume(Message, tag=152):
    """member -> predecessor. My history ends at ``version``: send what follows. Answered by Extend. Idempotent."""

    epoch: int
    version: int


class AskReadLease(Message, tag=153):
    """tail -> every other member. Promise not to help another configuration into being for a while. Answered by
    ReadLeaseGiven with the same ``stamp_ns``, which is the time here. Idempotent."""

    epoch: int
    stamp_ns: int


class ReadLeaseGiven(Message, tag=154):
    """member -> tail. Reads are right until READ_LEASE_NS after ``stamp_ns`` of your time."""

    epoch: int
    stamp_ns: int


class ServerAlive(Message, tag=155):
    """server -> master. I live, as ``life`` (pid, number, something random, joined by hyphens; the lives of one server
    have growing numbers), and serve the shard ``index`` in ``role`` (see ``gcs.shard_server``). I know its chain as of
    ``epoch``, my history ends at ``version``, and ``whole`` says that it has no holes. ``stuck``: the chain does not go
    on below me. ``joiner``: the life of the server to which I, the tail, have given everything. ``votes``: my acceptor
    does. ``chain``: what I was told last, for masters that do not know it yet. Answered by Configure if there is a
    newer chain."""

    index: int
    name: str
    endpoint: str
    life: str
    role: str
    epoch: int
    version: int
    whole: bool = True
    stuck: bool = False
    joiner: str = ""
    votes: bool = True
    chain: Chain | None = None


class Configure(Message, tag=156):
    """master -> server. The chain of your shard, decided by the register. ``join``: if you are not in it, and are
    ``life``, join it; a later life may be the only one that has what the shard holds."""

    chain: Chain
    join: bool = False
    life: str = ""


class Wedge(Message, tag=157):
    """master -> member. Do nothing more in ``epoch``. Answered by Wedged. Idempotent."""

    epoch: int


class Wedged(Message, tag=158):
    """member -> master. I shall do nothing more in ``epoch``. The tail may still trust a lease of mine for
    ``lease_ns``. ``joiner``: the life of the server that has confirmed all that I have, as I am the tail and feed it;
    sent again when that becomes so."""

    name: str
    life: str
    epoch: int
    version: int
    lease_ns: int
    joiner: str = ""


class ServerDied(Message, tag=159):
    """node -> master. The process ``pid``, which was the server ``name``, has ended. Not answered; idempotent."""

    name: str
    pid: int


class Prepare(Message, tag=160):
    """master -> acceptor. Promise to ignore ballots below this. Answered by Promised or BallotRefused. Idempotent."""

    ballot: Ballot


class Promised(Message, tag=161):
    """acceptor -> master. I promised ``ballot``; this is what I accepted last, at ``accepted``, if anything."""

    acceptor: str
    ballot: Ballot
    accepted: Ballot
    value: Configuration | None


class Accept(Message, tag=162):
    """master -> acceptor. Accept this, and promise ``following`` to me. Answered by Accepted or BallotRefused.
    Idempotent."""

    ballot: Ballot
    following: Ballot
    value: Configuration


class Accepted(Message, tag=163):
    """acceptor -> master. It is on my disk."""

    acceptor: str
    ballot: Ballot


class BallotRefused(Message, tag=164):
    """acceptor -> master. I promised ``promised``, which is above ``ballot``."""

    acceptor: str
    ballot: Ballot
    promised: Ballot


class JoinChain(Message, tag=165):
    """joiner -> tail. Send me all you have, and then what comes. ``life`` tells one attempt from another; only the life
    ``tail`` is asked, so that an attempt has one stream. Answered by Feed number 1. Idempotent by life."""

    life: str
    tail: str


class Feed(Message, tag=166):
    """tail -> joiner. Number ``number`` of the stream that ``life`` asked for: pieces of a snapshot and new entries, in
    the order in which they hold. ``whole``: with this one you have everything. Idempotent by number."""

    life: str
    number: int
    epoch: int
    entries: list[Entry]
    whole: bool = False


class Fed(Message, tag=167):
    """joiner -> tail. All up to ``number`` is on my disk: send more. Answered by Feed if there is more, by
    StreamUnknown if there will not be. Idempotent: only the greatest counts."""

    life: str
    number: int


class StreamUnknown(Message, tag=169):
    """tail -> joiner. In ``epoch`` I am the tail, and have no such stream as ``life``, or no more: begin another. Not
    answered; idempotent."""

    life: str
    epoch: int


class FollowShard(Message, tag=168):
    """client -> server. Tell me when the chain changes, as long as we are connected. Answered by WrongEpoch, now if I
    know more than ``epoch``, and later. Idempotent."""

    epoch: int


class AskRegister(Message, tag=180):
    """master -> server. I do not know the configuration: which acceptors hold it? Answered by RegisterKnown, if you are
    or were one of them. Idempotent."""


class RegisterKnown(Message, tag=181):
    """server -> master. The value that I accepted last, change number ``change``, names these acceptors."""

    change: int
    acceptors: tuple[str, ...]


class MastersChanged(Message, tag=182):
    """node -> its shard servers. These are the masters from now on, name -> endpoint. Not answered; idempotent."""

    masters: dict[str, str]


MESSAGES = (Extend, Extended, Resume, AskReadLease, ReadLeaseGiven, ServerAlive, Configure, Wedge, Wedged, ServerDied,
            Prepare, Promised, Accept, Accepted, BallotRefused, JoinChain, Feed, Fed, StreamUnknown, FollowShard,
            AskRegister, RegisterKnown, MastersChanged)
