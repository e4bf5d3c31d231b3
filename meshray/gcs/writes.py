"""A client's writes to one shard: one Write on the way, what comes meanwhile goes with the next.

*Pure.* Used by ``gcs.client``.

1. At most one Write is on the way; its sequence is higher than that of all before it. The next one leaves only when it
   is answered, or when nobody waits for it any more: then its outcome is unknown, and was reported so.
2. A Write that is sent again has the same sequence and the same operations.
3. Operations are done in the order in which they were given. One request may be spread over several Writes, and one
   Write may carry several requests; then they are not done at one moment.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec

from meshray.gcs import limits
from meshray.gcs.requests import Link, Outcome, Refused, Request
from meshray.machine import Send
from meshray.messages.gcs import Op, Write, WriteRefused, Written


class Piece(msgspec.Struct, eq=False):
    """Operations of one request for one shard; ``places`` are their places among its results."""

    request: Request
    places: Sequence[int]
    ops: list[Op]
    begun: int = 0


class Frame(msgspec.Struct, eq=False):
    """The Write on the way: what it carries, and when it is to be sent again."""

    sequence: int
    ops: list[Op]
    parts: list[tuple[Request, Sequence[int]]]
    due_ns: int
    attempt: int = 0


class Writer:
    """The writes of one client to one shard."""

    def __init__(self, client: str, link: Link) -> None:
        self._client = client
        self._link = link
        self._sequence = 0
        self._frame: Frame | None = None
        self._queue: deque[Piece] = deque()
        self.queued = 0

    @property
    def used(self) -> bool:
        """Whether the shard may remember this client."""
        return self._sequence > 0

    def offer(self, piece: Piece, now_ns: int) -> list[Any]:
        """Take operations; send them now if none are on the way."""
        if self._frame is None and len(piece.ops) == 1:
            piece.request.sent = True
            return self._begin(piece.ops, [(piece.request, piece.places)], now_ns)
        self._queue.append(piece)
        self.queued += len(piece.ops)
        return [] if self._frame is not None else self._next(now_ns)

    def written(self, message: Written, now_ns: int) -> list[Any]:
        """A Write was done."""
        frame = self._frame
        if frame is None or frame.sequence != message.sequence:
            return []
        version = message.version
        outcomes = [Outcome(True, number) for number in range(version, version + len(frame.ops))]
        for refusal in message.refused:
            if 0 <= refusal.index < len(outcomes):
                outcomes[refusal.index] = Outcome(False, refusal.version, refusal.value)
        effects: list[Any] = []
        done = 0
        for request, places in frame.parts:
            part = outcomes[done : done + len(places)]
            done += len(places)
            if isinstance(places, range):
                request.results[places.start : places.stop] = part
            else:
                for place, outcome in zip(places, part, strict=True):
                    request.results[place] = outcome
            request.left -= len(places)
            if not request.left:
                effects += request.end()
        return effects + self._next(now_ns)

    def refused(self, message: WriteRefused, now_ns: int) -> list[Any]:
        """A Write cannot be done: its requests end."""
        frame = self._frame
        if frame is None or frame.sequence != message.sequence:
            return []
        ended = [effect for request, _ in frame.parts for effect in request.end(Refused(message.reason))]
        return ended + self._next(now_ns)

    def retry(self, due_ns: int, *, newer: bool) -> None:
        """Send again at ``due_ns``: what was sent did not arrive, or the chain is ``newer`` now."""
        if self._frame is not None:
            self._frame.due_ns = min(self._frame.due_ns, due_ns)
            if newer:
                self._frame.attempt = -1

    def tick(self, now_ns: int) -> list[Any]:
        """Drop what nobody waits for, send again what is due."""
        if any(piece.request.ended for piece in self._queue):
            self._queue = deque(piece for piece in self._queue if not piece.request.ended)
            self.queued = sum(len(piece.ops) - piece.begun for piece in self._queue)
        frame = self._frame
        if frame is None:
            return []
        if all(request.ended for request, _ in frame.parts):
            return self._next(now_ns)
        if frame.due_ns > now_ns:
            return []
        frame.attempt += 1
        frame.due_ns = now_ns + limits.RESEND_NS
        return [*(self._link.follow() if frame.attempt else ()), self._send(frame)]

    def deadline_ns(self) -> int | None:
        """When ``tick`` is due next."""
        return None if self._frame is None else self._frame.due_ns

    def check(self) -> None:
        """Assert that what waits has a Write on the way before it, and is counted."""
        assert self._frame is not None or not self._queue
        assert self.queued == sum(len(piece.ops) - piece.begun for piece in self._queue)

    def _next(self, now_ns: int) -> list[Any]:
        """Begin the next Write, if anything waits."""
        self._frame = None
        if not self._queue:
            return []
        ops: list[Op] = []
        parts: list[tuple[Request, Sequence[int]]] = []
        room_bytes = limits.WRITE_BYTES_MAX
        while self._queue and len(ops) < limits.WRITE_OPS_MAX and room_bytes > 0:
            piece = self._queue[0]
            if not piece.request.ended:
                taken = piece.ops[piece.begun : piece.begun + limits.WRITE_OPS_MAX - len(ops)]
                count = 0
                for op in taken:
                    room_bytes -= len(op.value) + len(op.key)
                    if room_bytes < 0 and (ops or count):
                        break
                    count += 1
                if count:
                    ops += taken[:count]
                    parts.append((piece.request, piece.places[piece.begun : piece.begun + count]))
                    piece.request.sent = True
                    piece.begun += count
                    self.queued -= count
            if piece.request.ended or piece.begun == len(piece.ops):
                self.queued -= len(piece.ops) - piece.begun
                self._queue.popleft()
        return self._begin(ops, parts, now_ns) if ops else []

    def _begin(self, ops: list[Op], parts: list[tuple[Request, Sequence[int]]], now_ns: int) -> list[Any]:
        self._sequence += 1
        self._frame = Frame(self._sequence, ops, parts, now_ns + limits.RESEND_NS)
        return [*self._link.connect(), self._send(self._frame)]

    def _send(self, frame: Frame) -> Send:
        write = Write(self._client, frame.sequence, self._link.shard.epoch, frame.ops)
        return Send(self._link.head(frame.attempt), write)
