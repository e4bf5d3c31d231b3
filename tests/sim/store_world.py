"""Nodes that pull objects from each other: virtual time, links with a rate, and whatever can go wrong on them.

One seed decides everything. The stores and the desks of the bulk plane are the real ones; sockets, threads and memory
are played by the world. After events the machine that took them checks itself: always in worlds with content, now and
then in the large ones without.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, assert_never

from meshray import config
from meshray.machine import Connect, Received, Send, Tick
from meshray.messages.objects import (
    ExtentGranted,
    FetchFailed,
    FetchObject,
    ObjectFetched,
    ObjectsFreed,
    ObjectsSealed,
    RequestExtent,
    ReturnExtents,
    Sealed,
)
from meshray.messages.tasks import Location
from meshray.store import events
from meshray.store.bulk_desk import Desk
from meshray.store.bulk_findings import Findings, Kind
from meshray.store.manifest import DIGEST_BYTES, chunk_range, digests_of, verify
from meshray.store.service import StoreService

S = config.SECOND_NS
MS = config.MILLISECOND_NS


def split(digests: bytes) -> list[bytes]:
    """Return the digests that were joined."""
    return [digests[start : start + DIGEST_BYTES] for start in range(0, len(digests), DIGEST_BYTES)]


class Link:
    """One direction of a node's cable: what is sent waits for what was sent before."""

    def __init__(self, bytes_per_s: int) -> None:
        self.bytes_per_s = bytes_per_s
        self.free_ns = 0
        self.bytes = 0

    def carry(self, now_ns: int, size_bytes: int) -> int:
        """Return when the last byte is through."""
        self.bytes += size_bytes
        self.free_ns = max(now_ns, self.free_ns) + size_bytes * S // self.bytes_per_s
        return self.free_ns


class Node:
    """One node's store with its memory and its links; sessions are routes whose mail is kept."""

    def __init__(self, world: World, name: str, capacity_bytes: int, bytes_per_s: int) -> None:
        self.name = name
        self.memory = memoryview(bytearray(capacity_bytes)) if world.content else memoryview(b"")
        self.desk = Desk()
        self.findings = Findings()
        self.store = StoreService(
            capacity_bytes, name, resolve_node=lambda other: f"sim://{other}" if other in world.nodes else None,
            nodes=lambda: world.nodes, bulk=lambda: f"bulk://{name}", draw=world.random.randrange,
            entropy=world.random.randbytes, to_disk=world.content)
        self.disk: dict[bytes, bytes] = {}
        self.counts: Counter[bytes] = Counter()
        """Digests -> how often they were written."""
        self.up, self.down = Link(bytes_per_s), Link(bytes_per_s)
        self.mail: list[tuple[bytes, Any]] = []
        self.done_ns = 0
        """When the last object came."""
        self.dead = False
        self.liar = False

    def write_disk(self, offset: int, size_bytes: int) -> bytes:
        """Write an object to disk; return its joined digests."""
        view = self.memory[offset : offset + size_bytes]
        digests = digests_of(view)
        for chunk, digest in enumerate(split(digests)):
            start, count = chunk_range(chunk, size_bytes)
            self.disk[digest] = bytes(view[start : start + count])
            self.counts[digest] += 1
        return digests

    def read_disk(self, offset: int, digests: bytes) -> None:
        """Bring an object back."""
        data = b"".join(self.disk[digest] for digest in split(digests))
        self.memory[offset : offset + len(data)] = data

    def drop_disk(self, digests: bytes) -> None:
        """Undo a write."""
        for digest in split(digests):
            self.counts[digest] -= 1
            if not self.counts[digest]:
                del self.counts[digest], self.disk[digest]


class World:
    """Virtual clock, nodes, and the network between them."""

    def __init__(self, seed: int, *, nodes: int = 3, loss: float = 0.1, corruption: float = 0.1, content: bool = True,
                 capacity_bytes: int = 48 * config.MIB, bytes_per_s: int = 200 * config.MIB,
                 delay_max_ns: int = S // 10, first_bytes: int = 0, disk_errors: float = 0.0) -> None:
        """Without ``content`` nothing has bytes: large objects then cost nothing, and every honest chunk is right.
        ``first_bytes``: the capacity of the first node, if it has another one than the rest."""
        self.random = random.Random(seed)
        self.now_ns = 0
        self.loss = loss
        self.corruption = corruption
        self.content = content
        self.delay_max_ns = delay_max_ns
        self.disk_errors = disk_errors
        self.nodes: dict[str, Node] = {}
        for index in range(nodes):
            size_bytes = capacity_bytes if index or not first_bytes else first_bytes
            self.nodes[f"n{index}"] = Node(self, f"n{index}", size_bytes, bytes_per_s)
        self.queue: list[tuple[int, int, str, Callable[[], None]]] = []
        self.posted = 0
        self.chunks_sent: dict[str, int] = dict.fromkeys(self.nodes, 0)

    # --- time ----------------------------------------------------------------------------------------------------

    def at(self, when_ns: int, node: str, action: Callable[[], None]) -> None:
        """Do ``action`` at the node, if it still lives then."""
        self.posted += 1
        heapq.heappush(self.queue, (when_ns, self.posted, node, action))

    def post(self, node: str, event: Any, delay_ns: int) -> None:
        """Give the node's store an event."""
        self.at(self.now_ns + delay_ns, node, lambda: self.handle(self.nodes[node], event))

    def run(self, until_ns: int) -> None:
        """Let time pass."""
        while True:
            timers = [(deadline, name) for name, node in self.nodes.items()
                      if not node.dead and (deadline := node.store.deadline_ns()) is not None]
            timer = min(timers, default=(until_ns + 1, ""))
            event_ns = self.queue[0][0] if self.queue else until_ns + 1
            if min(timer[0], event_ns) > until_ns:
                self.now_ns = until_ns
                return
            self.now_ns = max(self.now_ns, min(timer[0], event_ns))
            if event_ns <= timer[0]:
                _, _, name, action = heapq.heappop(self.queue)
                if not self.nodes[name].dead:
                    action()
            else:
                self.handle(self.nodes[timer[1]], Tick())

    def handle(self, node: Node, event: Any) -> None:
        """One event for one store."""
        if node.dead:
            return
        effects = node.store.handle(event, self.now_ns)
        if self.content or not self.random.randrange(20):
            node.store.check()
            node.desk.check()
        for effect in effects:
            self.perform(node, effect)

    # --- what the node process does ------------------------------------------------------------------------------

    def perform(self, node: Node, effect: Any) -> None:
        """Play socket, background thread and bulk thread."""
        slow_ns = self.random.randrange(2 * self.delay_max_ns)
        match effect:
            case events.PopulateRange(object_, offset, _):
                self.post(node.name, events.RangePopulated(object_, offset), slow_ns)
            case events.DigestObject(object_, offset, size):
                digests = self.digests(node, object_, offset, size)
                self.post(node.name, events.ObjectDigested(object_, offset, digests), slow_ns)
            case Send(to, message, _):
                peer = to.removeprefix(b">").decode()
                if peer in self.nodes:
                    self.carry(node, to, peer, message)
                else:
                    node.mail.append((to, message))
                    node.done_ns = self.now_ns if isinstance(message, ObjectFetched) else node.done_ns
            case events.AskChunks():
                self.ask(node, effect)
            case events.BeginTransfer():
                node.desk.begin(effect)
            case events.CopyChunks():
                node.findings.asked(len(effect.chunks))
                for pair in zip(effect.chunks, effect.sources, strict=True):
                    self.copy(node, effect.transfer, *pair)
            case events.EndTransfer(transfer):
                node.desk.end(effect)
                if not node.desk.transfers:
                    node.findings.forget_asked()
                self.post(node.name, events.TransferEnded(transfer), slow_ns)
            case events.Grant():
                node.desk.grant(effect)
            case events.Revoke():
                node.desk.revoke(effect)
            case events.SpillObject(object_, offset, size):
                digests = node.write_disk(offset, size)
                self.post(node.name, events.ObjectSpilled(object_, digests), slow_ns)
            case events.RestoreObject(object_, offset, _, digests):
                node.read_disk(offset, digests)
                self.post(node.name, events.ObjectRestored(object_), slow_ns)
            case events.DropChunks(digests):
                node.drop_disk(digests)
            case Connect() | events.ForgetHolder():
                pass
            case _:
                assert_never(effect)

    def digests(self, node: Node, object_: bytes, offset: int, size_bytes: int) -> bytes:
        if self.content:
            return digests_of(node.memory[offset : offset + size_bytes])
        count = -(-size_bytes // config.CHUNK_BYTES)
        return b"".join(object_.ljust(28, b".")[:28] + chunk.to_bytes(4, "big") for chunk in range(count))

    def delay_ns(self) -> int:
        return self.random.randrange(1, self.delay_max_ns + 1)

    def carry(self, node: Node, to: bytes, peer: str, message: Any) -> None:
        route = node.name.encode() if to.startswith(b">") else b">" + node.name.encode()
        copies = 2 if self.random.random() < self.loss / 2 else 1
        for _ in range(copies):
            # A free that got lost would only leave a copy behind; it is sent over a connection that does not lose.
            if self.random.random() >= self.loss or isinstance(message, ObjectsFreed):
                self.post(peer, Received(route, message), self.delay_ns())

    # --- the bulk plane ------------------------------------------------------------------------------------------

    def ask(self, node: Node, ask: events.AskChunks) -> None:
        assert ask.endpoint == f"bulk://{ask.holder}"
        node.findings.asked(len(ask.chunks))
        if self.random.random() >= self.loss:
            self.at(self.now_ns + self.delay_ns(), ask.holder, lambda: self.serve(self.nodes[ask.holder], node, ask))

    def serve(self, holder: Node, asker: Node, ask: events.AskChunks) -> None:
        refused = []
        for chunk in ask.chunks:
            place = holder.desk.served(ask.ticket, ask.object, chunk)
            if type(place) is bytes and self.random.random() < self.disk_errors:
                holder.desk.unreadable(ask.object)
                self.handle(holder, events.ChunksUnreadable(ask.object))
                place = None
            if place is None:
                refused.append(chunk)
                continue
            self.chunks_sent[holder.name] += 1
            if type(place) is bytes:
                data = bytearray(holder.disk[place])
                size_bytes = len(data)
            else:
                offset, size_bytes = place
                data = bytearray(holder.memory[offset : offset + size_bytes])
            honest = not holder.liar and self.random.random() >= self.corruption
            if self.content and not honest:
                data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
            if self.random.random() >= self.loss:
                arrive = self.arrival(asker, holder, ask.object, chunk, data, honest)
                sent_ns = holder.up.carry(self.now_ns, size_bytes)
                self.at(sent_ns + self.delay_ns(), asker.name, self.receiving(asker, size_bytes, arrive))
        if refused:
            self.at(self.now_ns + self.delay_ns(), asker.name,
                    self.finding(asker, events.ChunksMissing, ask.object, holder.name, refused))

    def receiving(self, asker: Node, size_bytes: int, arrive: Callable[[], None]) -> Callable[[], None]:
        """What comes in queues for the asker's link only when it is there."""
        return lambda: self.at(asker.down.carry(self.now_ns, size_bytes), asker.name, arrive)

    def arrival(self, node: Node, holder: Node, object_: bytes, chunk: int, data: bytearray,
                honest: bool) -> Callable[[], None]:
        def arrive() -> None:
            transfer = node.desk.wanted(object_, chunk)
            if transfer is None:
                node.findings.answered(1)
                return
            good = verify(transfer.digest(chunk), data) if self.content else honest
            if good:
                self.write(node, transfer, chunk, data)
            kind = events.ChunksArrived if good else events.ChunksBad
            self.finding(node, kind, object_, holder.name, [chunk])()
        return arrive

    def finding(self, node: Node, kind: Kind, object_: bytes, holder: str, chunks: list[int]) -> Callable[[], None]:
        def found() -> None:
            node.findings.answered(len(chunks))
            for chunk in chunks:
                node.findings.add(kind, object_, holder, chunk, self.now_ns)
            self.tell(node)
        return found

    def tell(self, node: Node) -> None:
        """Let the store hear what the bulk plane found, if it is time."""
        due_ns = node.findings.due_ns()
        if due_ns is not None and due_ns > self.now_ns:
            self.at(due_ns, node.name, lambda: self.tell(node))
        elif due_ns is not None:
            for event in node.findings.take():
                self.handle(node, event)

    def write(self, node: Node, transfer: Any, chunk: int, data: bytearray) -> None:
        offset, size_bytes = transfer.range_of(chunk)
        if self.content:
            node.memory[offset : offset + size_bytes] = data
        transfer.done[chunk] = 1

    def copy(self, node: Node, number: int, chunk: int, source: int) -> None:
        def copied() -> None:
            transfer = node.desk.transfers.get(number)
            if transfer is None or transfer.done[chunk]:
                node.findings.answered(1)
                return
            size_bytes = transfer.range_of(chunk)[1]
            data = bytearray(node.memory[source : source + size_bytes])
            good = verify(transfer.digest(chunk), data) if self.content else True
            if good:
                self.write(node, transfer, chunk, data)
            kind = events.ChunksArrived if good else events.ChunksMissing
            self.finding(node, kind, transfer.object, "", [chunk])()
        self.at(self.now_ns + self.delay_ns(), node.name, copied)

    # --- objects -------------------------------------------------------------------------------------------------

    def make(self, home: str, name: bytes, data: bytes | int) -> None:
        """Have a session at ``home`` make an object of these bytes, or of so many without content."""
        node = self.nodes[home]
        size_bytes = data if isinstance(data, int) else len(data)
        self.handle(node, Received(b"maker", RequestExtent(size_bytes, 0)))
        while not (node.mail and isinstance(node.mail[-1][1], ExtentGranted)):
            self.run(self.now_ns + MS)
        _, granted = node.mail.pop()
        assert isinstance(granted, ExtentGranted)
        if isinstance(data, bytes):
            node.memory[granted.offset : granted.offset + size_bytes] = data
        self.handle(node, Received(b"maker", ObjectsSealed([Sealed(name, granted.offset, size_bytes, "maker")])))
        if self.content:
            # What is the node's own may go to disk.
            self.handle(node, Received(b"maker", ReturnExtents([granted.offset])))

    def fetch(self, node: str, name: bytes, home: str, delay_ns: int, session: bytes = b"s1") -> None:
        """Have a session at ``node`` fetch the object that lies at ``home``."""
        entry = self.nodes[home].store.directory.find(name)
        assert entry is not None
        location = Location(home, max(entry.offset, 0), entry.size_bytes)
        self.post(node, Received(session, FetchObject(name, location, "maker")), delay_ns)

    def free(self, home: str, names: list[bytes]) -> None:
        """Have the owner free objects."""
        self.handle(self.nodes[home], Received(b"maker", ObjectsFreed(names)))

    def outcomes(self) -> list[tuple[str, bytes, bytes, type]]:
        """Return how the fetches ended: (node, session, object, message)."""
        return [(node.name, route, message.object, type(message)) for node in self.nodes.values()
                for route, message in node.mail if isinstance(message, ObjectFetched | FetchFailed)]

    def failures(self) -> list[FetchFailed]:
        """Return the fetches that failed."""
        return [message for node in self.nodes.values() for _, message in node.mail if isinstance(message, FetchFailed)]

    def check_copies(self, objects: dict[bytes, bytes]) -> None:
        """Every copy that was announced is whole and right."""
        for node in self.nodes.values():
            for name, data in objects.items():
                here = node.store.directory.lookup(name)
                if here is not None:
                    assert node.memory[here.offset : here.offset + here.size_bytes] == data, f"{node.name}: {name!r}"

