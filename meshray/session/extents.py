"""Room in the arena: a session asks its node for extents and gives them back.

*Shell (blocks the asking thread).* Runs in drivers and workers.

1. The answer to a question that nobody waits for any more is given back at once.
2. A full store lets its producers wait, then raises with the numbers.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from meshray import config, errors
from meshray.messages.objects import ExtentGranted, ExtentRefused, RequestExtent, ReturnExtents, SurplusWanted

if TYPE_CHECKING:
    from meshray.session.session import Session

_PATIENCE_NS = 60 * config.SECOND_NS
_RETURN_NS = config.SECOND_NS


class Extents:
    """Open questions for room."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._asked: dict[int, list[ExtentGranted | ExtentRefused]] = {}
        self._cookie = 0
        self._return_ns = 0

    def request(self, size_bytes: int) -> tuple[int, int, int]:
        """Return (offset, bytes, populated bytes) of a new extent. Raise ObjectStoreFullError. Not in a turn."""
        session = self._session
        answer: list[ExtentGranted | ExtentRefused] = []

        def ask() -> None:
            self._cookie += 1
            self._asked[self._cookie] = answer
            session.to_node(RequestExtent(size_bytes, self._cookie))

        session.call(ask)
        if not session.block_until(lambda: bool(answer), time.monotonic_ns() + _PATIENCE_NS):
            raise errors.ObjectStoreFullError(need_bytes=size_bytes, free_bytes=0, used_bytes=0,
                                              capacity_bytes=session.surroundings.arena_bytes)
        granted = answer[0]
        if isinstance(granted, ExtentRefused):
            raise errors.ObjectStoreFullError(
                need_bytes=granted.need_bytes, free_bytes=granted.free_bytes, used_bytes=granted.used_bytes,
                capacity_bytes=granted.capacity_bytes)
        return granted.offset, granted.size_bytes, granted.populated_bytes

    def granted(self, message: ExtentGranted) -> None:
        """The node gave an extent. (leader)"""
        answer = self._asked.pop(message.cookie, None)
        if answer is not None:
            answer.append(message)
        else:
            self._session.to_node(ReturnExtents([message.offset]))

    def refused(self, message: ExtentRefused) -> None:
        """The node has no room; ``pending`` says that it still looks for some. (leader)"""
        if not message.pending:
            answer = self._asked.pop(message.cookie, None)
            if answer is not None:
                answer.append(message)

    def surplus_wanted(self, message: SurplusWanted) -> None:
        """Others need room. (leader)"""
        self._session.objects.free_dropped()
        self._session.objects.send_freed()
        self._give_back(everything=True)

    def tick(self, now_ns: int) -> None:
        """Give back extents that have been empty for a while. (leader)"""
        if now_ns >= self._return_ns:
            self._return_ns = now_ns + _RETURN_NS
            self._give_back(everything=False)

    def _give_back(self, *, everything: bool) -> None:
        surplus = self._session.arena.surplus(everything=everything)
        if surplus:
            self._session.to_node(ReturnExtents(surplus))
