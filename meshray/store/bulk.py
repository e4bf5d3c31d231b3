"""The bulk plane of a node: a thread that serves chunks from the arena and takes chunks into it.

*Shell (thread, zmq).* Runs in the node process, beside the control loop.

1. Effects go in by ``submit``, in order; events come out of ``drain``, those of one kind and holder in one piece.
2. Everything that is taken is verified before it is written; what nobody wants is thrown away.
3. The control loop sees one event per batch, whatever the batch weighs: bytes never pass through it. ``bulk_findings``
   says when a batch is due.
4. One thread does all of it: hashing, copying and sockets let go of the GIL, and ZeroMQ's own thread moves the bytes
   meanwhile.
5. Of what is served from disk one chunk is read per round, the askers in turn: who asks for chunks in memory does not
   wait for the disk. What cannot be read is refused, and the control loop is told once.

Source: DESIGN s6; the control and the bulk plane of DESIGN s9.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, assert_never

from meshray import config
from meshray.messages.objects import Chunk, ChunksRefused, RequestChunks
from meshray.store import manifest as manifests
from meshray.store.arena_file import ArenaFile
from meshray.store.bulk_desk import Desk, Transfer
from meshray.store.bulk_findings import Findings, Kind
from meshray.store.events import (
    AskChunks,
    BeginTransfer,
    ChunksArrived,
    ChunksBad,
    ChunksMissing,
    ChunksUnreadable,
    CopyChunks,
    EndTransfer,
    ForgetHolder,
    Grant,
    Revoke,
    TransferEnded,
)
from meshray.store.spill_files import SpillFiles
from meshray.transport.bulk_sockets import BulkSockets
from meshray.transport.codec import decode, encode

Work = BeginTransfer | AskChunks | CopyChunks | EndTransfer | Grant | Revoke | ForgetHolder

_BATCH = 64
"""Requests and answers taken per round, so that neither waits for a flood of the other."""


class Bulk:
    """The thread, its sockets, and what the control loop told it. Started by the first effect, unless ``start`` is
    called: most nodes of one machine never pull."""

    def __init__(self, file: ArenaFile, open_sockets: Callable[[], BulkSockets],
                 spill_files: SpillFiles | None = None, *,
                 verify: Callable[[bytes, Any], bool] = manifests.verify) -> None:
        """``open_sockets`` makes the sockets when they are needed, in the thread that uses them; ``spill_files`` has
        chunks that are on disk; ``verify`` is replaced by measurements only."""
        self._file = file
        self._spill_files = spill_files
        self._open_sockets = open_sockets
        self._verify = verify
        self._sockets: BulkSockets | None = None
        self._desk = Desk()
        self._copies: deque[tuple[int, int, int]] = deque()
        """Chunks to take from this node: (transfer, chunk, offset)."""
        self._reads: dict[tuple[bytes, bytes, bytes], dict[int, None]] = {}
        """Chunks to serve from disk: (route, ticket, object) -> chunks, in the order they were asked for."""
        self._work: deque[Work | None] = deque()
        self._lock = Lock()
        self._findings = Findings()
        self._told = False
        """Whether the control loop was woken for what was found."""
        self._thread: Thread | None = None
        self._failure: BaseException | None = None
        self._received_bytes = 0
        self._sent_bytes = 0
        self._disk_bytes = 0
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        """Readable when ``drain`` has something."""

    # --- the control loop's side ---------------------------------------------------------------------------------

    def start(self) -> str:
        """Start the thread, if it does not run; return where it listens. Raise OSError if it cannot listen there."""
        if self._sockets is None:
            opened: SimpleQueue[BulkSockets | BaseException] = SimpleQueue()
            thread = Thread(target=self._run, args=(opened,), name="meshray-bulk", daemon=True)
            thread.start()
            sockets = opened.get()
            if isinstance(sockets, BaseException):
                thread.join()
                raise sockets
            self._sockets, self._thread = sockets, thread
        return self._sockets.endpoint

    def submit(self, work: Work) -> None:
        """Perform ``work`` soon; a performer for the host."""
        self.start()
        self._work.append(work)
        os.eventfd_write(self._wake_fd, 1)

    def drain(self) -> Iterable[Any]:
        """Return the events that are ready. Raise RuntimeError if the thread has failed: the node is of no use then."""
        if self._failure is not None:
            raise RuntimeError("the bulk thread failed") from self._failure
        with self._lock:
            if self._told:
                os.eventfd_read(self.fd)
                self._told = False
            return self._findings.take()

    def statistics(self) -> dict[str, int]:
        """Return counters for ``status`` and measurements: bytes of chunks, also of those that were thrown away."""
        return {"bulk_received_bytes": self._received_bytes, "bulk_sent_bytes": self._sent_bytes,
                "bulk_disk_bytes": self._disk_bytes}

    def close(self) -> None:
        """End the thread and its sockets."""
        if self._thread is not None:
            self._work.append(None)
            os.eventfd_write(self._wake_fd, 1)
            self._thread.join()
        os.close(self._wake_fd)
        os.close(self.fd)

    # --- the thread ----------------------------------------------------------------------------------------------

    def _run(self, opened: SimpleQueue[BulkSockets | BaseException]) -> None:
        try:
            sockets = self._open_sockets()
            sockets.watch_fd(self._wake_fd)
        except BaseException as error:  # raised again by ``start``, which waits for one or the other
            opened.put(error)
            return
        opened.put(sockets)
        try:
            self._serve_and_take(sockets)
        except BaseException as error:
            with self._lock:
                self._failure = error
                os.eventfd_write(self.fd, 1)
        finally:
            sockets.close()

    def _serve_and_take(self, sockets: BulkSockets) -> None:
        while True:
            look_ms = self._tell_due()
            if sockets.wait(0 if self._copies or self._reads else look_ms):
                os.eventfd_read(self._wake_fd)
            if not self._take_work(sockets):
                return
            for route, frame in sockets.requests(_BATCH):
                self._serve(sockets, route, frame)
            for holder, frames in sockets.answers(_BATCH):
                self._take(holder, frames)
                self._tell_due()
            if self._copies:
                self._copy(*self._copies.popleft())
            if self._reads:
                self._serve_disk(sockets, *next(iter(self._reads)))

    def _take_work(self, sockets: BulkSockets) -> bool:
        """Do what the control loop wants; False if it wants the thread to end."""
        while self._work:
            work = self._work.popleft()
            match work:
                case None:
                    return False
                case AskChunks(object_, holder, endpoint, ticket, chunks):
                    self._findings.asked(len(chunks))
                    sockets.ask(holder, endpoint, encode(RequestChunks(object_, chunks, ticket)))
                case BeginTransfer():
                    self._desk.begin(work)
                case CopyChunks(transfer, chunks, sources):
                    self._findings.asked(len(chunks))
                    self._copies.extend((transfer, *pair) for pair in zip(chunks, sources, strict=True))
                case EndTransfer(transfer):
                    self._desk.end(work)
                    self._tell_other(TransferEnded(transfer))
                    if not self._desk.transfers:
                        self._findings.forget_asked()
                case Grant():
                    self._desk.grant(work)
                case Revoke():
                    self._desk.revoke(work)
                case ForgetHolder(holder):
                    sockets.forget(holder)
                case _:
                    assert_never(work)
        return True

    def _serve(self, sockets: BulkSockets, route: bytes, frame: bytes) -> None:
        request = decode(frame)
        if type(request) is not RequestChunks:
            return
        refused = []
        for chunk in request.chunks[: config.PULL_CREDIT_CHUNKS]:
            place = self._desk.served(request.ticket, request.object, chunk)
            if place is None:
                refused.append(chunk)
            elif type(place) is bytes:
                self._reads.setdefault((route, request.ticket, request.object), {})[chunk] = None
            elif sockets.answer(route, encode(Chunk(request.object, chunk)), self._file.view(*place)):
                self._sent_bytes += place[1]
        if refused:
            sockets.answer(route, encode(ChunksRefused(request.object, refused)))

    def _serve_disk(self, sockets: BulkSockets, route: bytes, ticket: bytes, object_: bytes) -> None:
        chunks = self._reads.pop((route, ticket, object_))
        chunk = next(iter(chunks))
        digest = self._desk.served(ticket, object_, chunk)
        data = self._read(digest) if type(digest) is bytes else None
        if data is None:
            if type(digest) is bytes and self._desk.unreadable(object_):
                self._tell_other(ChunksUnreadable(object_))
            sockets.answer(route, encode(ChunksRefused(object_, list(chunks))))
            return
        if sockets.answer(route, encode(Chunk(object_, chunk)), memoryview(data)):
            self._sent_bytes += len(data)
            self._disk_bytes += len(data)
        del chunks[chunk]
        if chunks:
            self._reads[route, ticket, object_] = chunks

    def _take(self, holder: str, frames: list[Any]) -> None:
        message = decode(frames[0].bytes)
        if type(message) is ChunksRefused:
            self._findings.answered(len(message.chunks))
            for chunk in message.chunks:
                self._tell(ChunksMissing, message.object, holder, chunk)
        elif type(message) is Chunk and len(frames) == 2:
            self._received_bytes += len(frames[1])
            self._findings.answered(1)
            transfer = self._desk.wanted(message.object, message.chunk)
            if transfer is not None:
                self._keep(transfer, message.chunk, holder, frames[1].buffer)

    def _keep(self, transfer: Transfer, chunk: int, holder: str, data: memoryview) -> None:
        offset, size_bytes = transfer.range_of(chunk)
        if data.nbytes != size_bytes or not self._verify(transfer.digest(chunk), data):
            self._tell(ChunksBad, transfer.object, holder, chunk)
            return
        self._file.write(offset, data)
        transfer.done[chunk] = 1
        self._tell(ChunksArrived, transfer.object, holder, chunk)

    def _copy(self, number: int, chunk: int, source: int) -> None:
        """Take a chunk from elsewhere in the arena, or from disk. What lies there may go any time: the copy is
        verified."""
        self._findings.answered(1)
        transfer = self._desk.transfers.get(number)
        if transfer is None or transfer.done[chunk]:
            return
        offset, size_bytes = transfer.range_of(chunk)
        if source < 0 and not self._read_disk(transfer, chunk, offset):
            self._tell(ChunksMissing, transfer.object, "", chunk)
            return
        if source >= 0:
            self._file.write(offset, self._file.view(source, size_bytes))
        if manifests.verify(transfer.digest(chunk), self._file.view(offset, size_bytes)):
            transfer.done[chunk] = 1
            self._tell(ChunksArrived, transfer.object, "", chunk)
        else:
            self._tell(ChunksMissing, transfer.object, "", chunk)

    def _read_disk(self, transfer: Transfer, chunk: int, offset: int) -> bool:
        data = self._read(transfer.digest(chunk))
        if data is None or len(data) != transfer.range_of(chunk)[1]:
            return False
        self._file.write(offset, data)
        return True

    def _read(self, digest: bytes) -> bytes | None:
        try:
            return self._spill_files.read(digest) if self._spill_files is not None else None
        except OSError:
            return None

    # --- telling -------------------------------------------------------------------------------------------------

    def _tell(self, kind: Kind, object_: bytes, holder: str, chunk: int) -> None:
        with self._lock:
            self._findings.add(kind, object_, holder, chunk, time.monotonic_ns())

    def _tell_other(self, event: TransferEnded | ChunksUnreadable) -> None:
        with self._lock:
            self._findings.add_other(event)

    def _tell_due(self) -> int:
        """Wake the control loop if there is something that it should hear now. Return after how many milliseconds to
        look again, -1 for whenever something happens."""
        with self._lock:
            due_ns = None if self._told else self._findings.due_ns()
            if due_ns is None:
                return -1
            left_ns = due_ns - time.monotonic_ns()
            if left_ns <= 0:
                self._told = True
                os.eventfd_write(self.fd, 1)
                return -1
            return -(-left_ns // config.MILLISECOND_NS)
