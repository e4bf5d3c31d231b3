"""Messages about objects: references between processes, room in the arena, and pulls between nodes.

*Pure.*

Dialogs::

    borrower -> owner    HoldObjects             -> HoldsRegistered     before the sender of a ref lets go of it
    borrower -> owner    ReleaseObjects
    owner -> borrower    HoldsDoubted            -> ReleaseObjects, with its cookie, also if it names none
    borrower -> owner    ResolveObjects          -> ObjectResolved, one by one, when each has a value
    node -> session      HoldersDied             -> OrphansRead, if it has a cookie
    session -> node      CheckProcesses          -> HoldersDied, if any of them is gone

    session -> node      RequestExtent           -> ExtentGranted | ExtentRefused
    session -> node      WithdrawRequest
    session -> node      ReturnExtents
    node -> session      SurplusWanted           -> ReturnExtents
    session -> node      ObjectsSealed, ObjectsFreed
    node -> session      RangesFreed             ranges inside an extent of yours that others have freed
    session -> node      FetchObject             -> ObjectFetched | FetchFailed

    node -> node         RequestManifest         -> Manifest | ObjectUnknown
    node -> node         ChunksHeld              to those that asked for the manifest, while the sender pulls

On the bulk plane::

    node -> node         RequestChunks           -> Chunk, one each, with the bytes as second frame | ChunksRefused

Source: OSDI'18 s4.2.3; ownership counts as in Wang et al., NSDI'21 s4.2.
"""

from __future__ import annotations

from meshray.messages.base import Message, Part
from meshray.messages.tasks import Location, Value


class HoldObjects(Message, tag=100):
    """borrower -> owner. I hold these objects. ``home`` is what the endpoints of my node's processes have in common.
    Answered by HoldsRegistered with the same ``cookie``. Idempotent; repeated while waiting."""

    objects: list[bytes]
    cookie: int
    home: str = ""


class HoldsRegistered(Message, tag=101):
    """owner -> borrower. ``lost`` names those that were freed before the hold arrived."""

    cookie: int
    lost: list[bytes]


class ReleaseObjects(Message, tag=102):
    """borrower -> owner. I no longer hold these objects. With a ``cookie`` it answers HoldsDoubted and ends only holds
    that were asked for up to that cookie: it may be overtaken by later ones. Idempotent."""

    objects: list[bytes]
    cookie: int = 0


class ResolveObjects(Message, tag=103):
    """borrower -> owner. Tell me the values, each as soon as it is there. Idempotent; repeated while waiting."""

    objects: list[bytes]


class ObjectResolved(Message, tag=104):
    """owner -> borrower. The object's value, or the encoded ``error`` that took its place."""

    object: bytes
    value: Value | None = None
    error: bytes | None = None


class RequestExtent(Message, tag=105):
    """session -> node. I need at least ``size_bytes`` of arena in one piece. Answered with the same ``cookie``."""

    size_bytes: int
    cookie: int


class ExtentGranted(Message, tag=106):
    """node -> session. This range is yours to allocate in. ``populated`` bytes from its start were touched before."""

    cookie: int
    offset: int
    size_bytes: int
    populated_bytes: int = 0


class ExtentRefused(Message, tag=107):
    """node -> session. No room: what was needed, what is free, what is in use, and how large the store is. With
    ``pending`` the request waits for room and a final answer follows. ``pinned_bytes`` of the store are being read,
    ``spilled_bytes`` lie on disk; ``disk_error`` says why no more of it does."""

    cookie: int
    need_bytes: int
    free_bytes: int
    used_bytes: int
    capacity_bytes: int
    pending: bool = False
    pinned_bytes: int = 0
    spilled_bytes: int = 0
    disk_error: str = ""


class WithdrawRequest(Message, tag=127):
    """session -> node. The request for an extent with this ``cookie`` is not needed any more; a grant that is on its
    way will be returned. Idempotent."""

    cookie: int


class ReturnExtents(Message, tag=108):
    """session -> node. These ranges hold nothing any more. Each is a whole extent, by offset."""

    offsets: list[int]


class Sealed(Part):
    """An object that is complete: its id, where it lies in the arena, and the endpoint of its owner."""

    object: bytes
    offset: int
    size_bytes: int
    owner: str = ""


class ObjectsSealed(Message, tag=109):
    """session -> node. These objects are complete and readable. A notice; nobody waits for it."""

    objects: list[Sealed]


class ObjectsFreed(Message, tag=110):
    """owner -> its node, and from there to ``node`` where they lie. Nobody refers to these any more; the ranges may be
    reused, and so may those of replicas. Idempotent by object."""

    objects: list[bytes]
    node: str = ""


class RangesFreed(Message, tag=111):
    """node -> session that holds the extent. These ranges inside your extents are free again: (offset, bytes)."""

    ranges: list[tuple[int, int]]


class FetchObject(Message, tag=112):
    """session -> node. Bring this object from where it lies into our arena. ``owner`` is the endpoint of its owner.
    Answered by ObjectFetched or FetchFailed. Idempotent by object."""

    object: bytes
    location: Location
    owner: str = ""


class ObjectFetched(Message, tag=113):
    """node -> session. The object is in our arena."""

    object: bytes
    location: Location


class FetchFailed(Message, tag=114):
    """node -> session. ``reason`` says which holder was asked and what went wrong. ``refused``: the object is there,
    but the store has no room for it now."""

    object: bytes
    reason: str
    lost: bool = False
    refused: ExtentRefused | None = None


class RequestManifest(Message, tag=115):
    """node -> node. What are the chunks of this object, and which do you have? ``brief``: the asker knows the digests
    already. An asker is told to later askers as one that will have chunks too. Answered by Manifest or ObjectUnknown.
    Idempotent."""

    object: bytes
    brief: bool = False


class Manifest(Message, tag=116):
    """node -> node. The object's size and the blake3 digests (32 bytes each, joined; none in a brief one) of its chunks
    in order. ``ticket`` opens the sender's bulk socket at ``bulk`` for the asker alone; ``have`` is the set of chunks
    that lie there (bit i of the whole, little endian), None: all; ``holders`` are other nodes that asked."""

    object: bytes
    size_bytes: int
    chunk_bytes: int
    digests: bytes
    ticket: bytes = b""
    bulk: str = ""
    have: bytes | None = None
    holders: list[str] = []  # noqa: RUF012


class ObjectUnknown(Message, tag=117):
    """node -> node. I hold no such object."""

    object: bytes


class RequestChunks(Message, tag=118):
    """node -> node, bulk plane. Send these chunks (indices) of the object; ``ticket`` is from the Manifest. The asker
    keeps the number outstanding below its credit. Answered by Chunk, one each, or ChunksRefused. Idempotent."""

    object: bytes
    chunks: list[int]
    ticket: bytes = b""


class Chunk(Message, tag=119):
    """node -> node, bulk plane. One chunk; its bytes are the message's second frame."""

    object: bytes
    chunk: int


class ChunksRefused(Message, tag=122):
    """node -> node, bulk plane. These chunks are not to be had: the ticket is none, or none any more, or the chunks are
    not here. The asker may ask for the manifest again."""

    object: bytes
    chunks: list[int]


class ChunksHeld(Message, tag=123):
    """node -> node that asked for the manifest. I have these chunks too now; none: your manifest takes a while, I am
    busy with it. A notice; who missed it asks for the manifest again."""

    object: bytes
    chunks: list[int]


class HoldersDied(Message, tag=120):
    """node -> its sessions and the other nodes. These processes are gone, and all that lived at these ``homes`` (what
    the endpoints of one node's processes have in common): forget their holds, fail what you wait for from them. With a
    ``cookie`` a session answers with OrphansRead; nodes send none to each other."""

    processes: list[str]
    homes: tuple[str, ...] = ()
    cookie: int = 0

    def covers(self, process: str, home: str) -> bool:
        """Whether this says that ``process``, which lived at ``home``, is gone."""
        return process in self.processes or home in self.homes


class SurplusWanted(Message, tag=121):
    """node -> session. Others wait for room: return every extent that holds nothing. Answered by ReturnExtents, if
    there are any."""


class CheckProcesses(Message, tag=128):
    """session -> node -> node of each process. Do these, given by name and endpoint, still live? Answered by
    HoldersDied if any does not, else not at all. Idempotent; repeated while waiting."""

    processes: list[tuple[str, str]]


class OrphansRead(Message, tag=129):
    """session -> node. Answers HoldersDied with the same ``cookie``. Of the objects that dead processes owned I still
    read these, in this node's arena; I send ObjectsFreed for each when I do not any more. Cookie 0: nobody asked, I
    have got them from another reader."""

    cookie: int
    objects: list[bytes]


class HoldsDoubted(Message, tag=124):
    """owner -> borrower on another machine. You hold these objects as far as I know: which of them do you not? Answered
    by ReleaseObjects with a cookie. Idempotent; sent now and then, since a release is lost when a connection breaks."""

    objects: list[bytes]


MESSAGES = (HoldObjects, HoldsRegistered, ReleaseObjects, ResolveObjects, ObjectResolved, RequestExtent, ExtentGranted,
            ExtentRefused, ReturnExtents, ObjectsSealed, ObjectsFreed, RangesFreed, FetchObject, ObjectFetched,
            FetchFailed, RequestManifest, Manifest, ObjectUnknown, RequestChunks, Chunk, HoldersDied, SurplusWanted,
            CheckProcesses, OrphansRead, WithdrawRequest, ChunksRefused, ChunksHeld, HoldsDoubted)
