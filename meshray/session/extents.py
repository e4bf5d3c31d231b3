"""Room in the arena: a session asks its node for extents and gives them back.

*Shell (blocks the asking thread).* Runs in drivers and workers.

1. The answer to a question that nobody waits for any more is given back at once; nobody waits when ranges of ours were
   freed that are large enough.
2. A full store lets its producers wait, then raises with the numbers.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from meshray import config, errors
from meshray.messages.objects import (
    ExtentGranted,
    ExtentRefused,
    RequestExtent,
    ReturnExtents,
    SurplusWanted,
    WithdrawRequest,
)

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

    def request(self, size_bytes: int) -> tuple[int, int, int] | None:
        """Return (offset, bytes, populated bytes) of a new extent; None if ``arena`` has room without one. Raise
        ObjectStoreFullError. Not in a turn."""
        session = self._session
        answer: list[ExtentGranted | ExtentRefused] = []
        cookies: list[int] = []

        def ask() -> None:
            self._cookie += 1
            self._asked[self._cookie] = answer
            cookies.append(self._cookie)
            session.to_node(RequestExtent(size_bytes, self._cookie))

        session.call(ask)
        found = session.block_until(lambda: bool(answer) or session.arena.has_room(size_bytes),
                                    time.monotonic_ns() + _PATIENCE_NS)
        if not answer:
            session.call(lambda: self._forget(cookies, answer))
            if found:
                return None
            raise errors.ObjectStoreFullError(need_bytes=size_bytes, free_bytes=0, used_bytes=0,
                                              capacity_bytes=session.surroundings.arena_bytes)
        granted = answer[0]
        if isinstance(granted, ExtentRefused):
            raise store_full(granted)
        return granted.offset, granted.size_bytes, granted.populated_bytes

    def _forget(self, cookies: list[int], answer: list[ExtentGranted | ExtentRefused]) -> None:
        for cookie in cookies:
            if self._asked.pop(cookie, None) is not None:
                self._session.to_node(WithdrawRequest(cookie))
        if answer and isinstance(answer[0], ExtentGranted):
            self._session.to_node(ReturnExtents([answer[0].offset]))

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
        self._session.objects.seal_survivors()
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


def store_full(refused: ExtentRefused) -> errors.ObjectStoreFullError:
    """Return the error that tells the user of a refusal."""
    return errors.ObjectStoreFullError(
        need_bytes=refused.need_bytes, free_bytes=refused.free_bytes, used_bytes=refused.used_bytes,
        capacity_bytes=refused.capacity_bytes, pinned_bytes=refused.pinned_bytes,
        spilled_bytes=refused.spilled_bytes, disk_error=refused.disk_error)
