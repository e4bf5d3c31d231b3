"""Doubts: whether holders on other machines still hold what they held.

*Pure* but for the sends it asks of its session. Runs in drivers and workers; only the leader enters.

1. Only holders that a connection between machines parts from us are asked: nothing else swallows a release.
2. Each is asked for so many of its holds at a time, in turn, and the next time only after ``HOLDS_DOUBTED_NS``.
3. An answer ends no hold that was asked for after the answer was written (``cookie``): after a connection broke, what
   was sent later may arrive sooner.
4. Who did not answer is asked after at the node: the news of a death may have been swallowed too.

Source: decision 0015.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from meshray import config
from meshray.messages.objects import HoldObjects, HoldsDoubted, ReleaseObjects

if TYPE_CHECKING:
    from meshray.session.session import Session

NEVER_NS = 2**63


class _Holder(msgspec.Struct, eq=False):
    """A holder on another machine: how it is reached, and by which of its questions it became holder of each object."""

    route: bytes
    home: str
    holds: dict[bytes, int]
    silent: bool = False


def is_far(home: str, ours: str) -> bool:
    """Whether a network lies between the processes of these two homes."""
    return home != ours and home.startswith("via://")


class Doubts:
    """The holders on other machines."""

    def __init__(self, session: Session, ask_after: Callable[[dict[str, str]], None]) -> None:
        """``ask_after`` asks the node whether processes (name -> endpoint) live."""
        self._session = session
        self._ask_after = ask_after
        self.far: dict[str, _Holder] = {}
        self.due_ns = NEVER_NS

    def registered(self, route: bytes, name: str, message: HoldObjects, lost: list[bytes]) -> None:
        """A process on another machine holds these objects, but for the lost ones."""
        held = [identity for identity in message.objects if identity not in lost] if lost else message.objects
        if not held:
            return
        if not self.far:
            self.due_ns = self._session.now_ns + config.HOLDS_DOUBTED_NS
        holder = self.far.get(name)
        if holder is None:
            holder = self.far[name] = _Holder(route, message.home, {})
        for identity in held:
            holder.holds[identity] = max(message.cookie, holder.holds.get(identity, 0))

    def ended(self, name: str, identity: bytes) -> None:
        """A hold has ended."""
        holder = self.far.get(name)
        if holder is not None:
            holder.holds.pop(identity, None)
            if not holder.holds:
                del self.far[name]

    def answered(self, name: str, message: ReleaseObjects) -> list[bytes]:
        """A holder has said what it does not hold: return what that ends."""
        holder = self.far.get(name)
        if holder is None:
            return []
        holder.silent = False
        return [identity for identity in message.objects if holder.holds.get(identity, NEVER_NS) <= message.cookie]

    def tick(self, now_ns: int) -> None:
        """Ask, if it is time."""
        if now_ns < self.due_ns:
            return
        self.due_ns = now_ns + config.HOLDS_DOUBTED_NS if self.far else NEVER_NS
        silent = {}
        for name, holder in self.far.items():
            if holder.silent:
                silent[name] = f"{holder.home}/{name}"
            holder.silent = True
            objects = list(islice(holder.holds, config.HOLDS_DOUBTED_MAX))
            for identity in objects:
                holder.holds[identity] = holder.holds.pop(identity)
            self._session.send(holder.route, HoldsDoubted(objects))
        if silent:
            self._ask_after(silent)
