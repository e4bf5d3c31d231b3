"""Holds: who keeps which object alive, between processes.

*Pure* but for the sends it asks of its session. Runs in drivers and workers; only the leader enters, except for
``released``.

1. An own object lives as long as this process refers to it, or a registered holder does.
2. A hold counts from the moment its owner has answered. Whoever passed the reference lets go after that, not before:
   two processes' messages to a third overtake each other.
3. What a process held when it died stays held for ``HOLDER_LINGER_NS``, and so does what was pinned for its sake: what
   it passed on with its last messages has that long to be registered by others. A hold that arrives after its holder's
   death lasts as long.
4. Nothing is lost between processes of one machine; what a broken connection swallows is asked after (``doubts``).
5. Questions to owners are repeated; an owner that stays silent is asked after at the node, because this process may
   have been born after the owner's death.

States of a borrowed reference (``Borrow.cookie``)::

    0 --hold--> cookie, asked --HoldsRegistered--> cookie, held --last reference dies--> released

Source: DESIGN s6 Lifetime; borrowing in NSDI'21 s4.2. Departure: there, borrowers tell their lender of further
borrowers; here every borrower registers with the owner itself, and lenders wait for that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from meshray import config
from meshray.messages.objects import (
    CheckProcesses,
    HoldersDied,
    HoldObjects,
    HoldsDoubted,
    HoldsRegistered,
    ReleaseObjects,
)
from meshray.object_ref import STORED, ObjectRef
from meshray.session.doubts import Doubts, is_far
from meshray.transport.endpoints import home_of
from meshray.transport.sockets import name_of

if TYPE_CHECKING:
    from meshray.session.session import Session

_REPEAT_NS = config.SECOND_NS
"""Questions that nobody answered are asked again, and their owners asked after."""

_DEAD_MAX = 10_000
"""Dead processes remembered."""

Cookies = tuple[int, ...]
"""What ``hold`` returns: the questions that must be answered before all the holds count."""


class _Question(msgspec.Struct, eq=False):
    """Holds that one owner was asked to register. ``keep`` lives until it has."""

    owner: str
    endpoint: str
    refs: list[ObjectRef]
    keep: Any
    asked_ns: int


class Holds:
    """What others hold of this process, and what it holds of others."""

    def __init__(self, session: Session, find: Callable[[bytes], ObjectRef | None],
                 lose: Callable[[Iterable[ObjectRef], str, str], None]) -> None:
        """``find`` returns a living reference of this process by its id, ``lose(refs, reason, kind)`` fails some."""
        self._session = session
        self._find = find
        self._lose = lose
        self.held: dict[bytes, tuple[ObjectRef, dict[str, str]]] = {}
        """Own objects that others hold: the reference, and each holder with its home."""
        self.released: deque[tuple[str, bytes]] = deque()
        """Borrowed objects whose last reference died here (appended by ``Borrow.__del__``)."""
        self.dead: dict[str, None] = {}
        """Processes that ended lately, oldest first: a reference to what they owned may still arrive."""
        self._asked: dict[int, _Question] = {}
        self._cookie = 0
        self._then: list[tuple[Cookies, Callable[[], object]]] = []
        self._sweeps: deque[tuple[int, HoldersDied]] = deque()
        self._lingering: deque[tuple[int, Any]] = deque()
        self._home = home_of(session.endpoint)
        self.doubts = Doubts(session, self.ask_after)

    def handlers(self) -> dict[type, Callable[[bytes, Any], None]]:
        """Return what to call with the route and the message, by kind of message."""
        return {
            HoldObjects: lambda route, message: self.on_hold(route, name_of(route), message),
            HoldsRegistered: lambda route, message: self.on_registered(message),
            ReleaseObjects: lambda route, message: self.on_release(name_of(route), message),
            HoldsDoubted: self.on_doubted,
        }

    # --- as a borrower -------------------------------------------------------------------------------------------

    def hold(self, refs: Iterable[ObjectRef], keep: Any = None) -> Cookies:
        """Register holds for the borrowed among ``refs``; ``keep`` lives until they are registered. Return what
        ``is_held`` and ``when_held`` take."""
        owners: dict[str, list[ObjectRef]] = {}
        waiting: dict[int, None] = {}
        for ref in refs:
            borrow = ref._owner
            if borrow is None:
                continue
            if not borrow.cookie:
                owners.setdefault(borrow.owner, []).append(ref)
            elif borrow.cookie in self._asked:
                waiting[borrow.cookie] = None
        for owner, fresh in owners.items():
            if owner in self.dead:
                self._lose(fresh, "its owner died", "owner_died")
                continue
            self._cookie += 1
            for ref in fresh:
                ref._owner.cookie = self._cookie
            question = _Question(owner, fresh[0]._owner.endpoint, fresh, keep, self._session.now_ns)
            self._asked[self._cookie] = question
            waiting[self._cookie] = None
            self._ask(self._cookie, question)
        return tuple(waiting)

    def _ask(self, cookie: int, question: _Question) -> None:
        session = self._session
        session.send(session.connect(question.owner, question.endpoint),
                     HoldObjects([ref.binary() for ref in question.refs], cookie, self._home))

    def is_held(self, cookies: Cookies) -> bool:
        """Whether all these questions have been answered."""
        return not any(cookie in self._asked for cookie in cookies)

    def when_held(self, cookies: Cookies, action: Callable[[], object]) -> None:
        """Call ``action`` once all these questions have been answered."""
        if self.is_held(cookies):
            action()
        else:
            self._then.append((cookies, action))

    def on_registered(self, message: HoldsRegistered) -> None:
        """The owner knows of our holds."""
        question = self._asked.get(message.cookie)
        if question is not None:
            lost = set(message.lost)
            self._answered(message.cookie, [ref for ref in question.refs if ref.binary() in lost],
                           "it was freed before it was held", "lost")

    def _answered(self, cookie: int, lost: list[ObjectRef], reason: str, kind: str) -> None:
        del self._asked[cookie]
        if lost:
            self._lose(lost, reason, kind)
        if self._then:
            ready = [action for cookies, action in self._then if self.is_held(cookies)]
            self._then = [each for each in self._then if not self.is_held(each[0])]
            for action in ready:
                action()

    def send_releases(self) -> None:
        """Tell owners what died here since the last time."""
        owners: dict[str, list[bytes]] = {}
        while self.released:
            owner, identity = self.released.popleft()
            ref = self._find(identity)
            if ref is not None and ref._owner is not None and ref._owner.cookie:
                continue  # it came back and was held again: what the owner must forget would be this hold
            owners.setdefault(owner, []).append(identity)
        for owner, identities in owners.items():
            self._session.send(self._session.out_route(owner), ReleaseObjects(identities))

    def on_doubted(self, route: bytes, message: HoldsDoubted) -> None:
        """An owner asks whether we still hold what we held."""
        absent = [identity for identity in message.objects
                  if (ref := self._find(identity)) is None or ref._owner is None or not ref._owner.cookie]
        self._session.send(route, ReleaseObjects(absent, self._cookie))

    # --- as an owner ---------------------------------------------------------------------------------------------

    def on_hold(self, route: bytes, holder: str, message: HoldObjects) -> None:
        """A borrower holds some of our objects."""
        lost = []
        for identity in message.objects:
            entry = self.held.get(identity)
            if entry is None:
                ref = self._find(identity)
                if ref is None or ref._owner is not None:
                    lost.append(identity)
                    continue
                entry = self.held[identity] = (ref, {})
                if ref._state == STORED:
                    self._session.objects.seal_now(ref)
            entry[1][holder] = message.home
        if is_far(message.home, self._home):
            self.doubts.registered(route, holder, message, lost)
        self._session.send(route, HoldsRegistered(message.cookie, lost))
        if holder in self.dead:
            self._sweeps.append((self._session.now_ns + config.HOLDER_LINGER_NS, HoldersDied([holder])))

    def on_release(self, holder: str, message: ReleaseObjects) -> None:
        """A borrower lets go."""
        objects = self.doubts.answered(holder, message) if message.cookie else message.objects
        for identity in objects:
            self._unhold(identity, holder)

    def _unhold(self, identity: bytes, holder: str) -> None:
        entry = self.held.get(identity)
        if entry is not None:
            entry[1].pop(holder, None)
            if not entry[1]:
                del self.held[identity]
        if self.doubts.far:
            self.doubts.ended(holder, identity)

    # --- deaths --------------------------------------------------------------------------------------------------

    def linger(self, what: Any) -> None:
        """Keep ``what`` alive for ``HOLDER_LINGER_NS``: it was pinned for a process that is gone."""
        self._lingering.append((self._session.now_ns + config.HOLDER_LINGER_NS, what))

    def on_died(self, message: HoldersDied) -> None:
        """Processes are gone: their holds end in a while, and they answer no questions."""
        self.dead.update(dict.fromkeys(message.processes))
        while len(self.dead) > _DEAD_MAX:
            del self.dead[next(iter(self.dead))]
        self._sweeps.append((self._session.now_ns + config.HOLDER_LINGER_NS, message))
        for cookie, question in list(self._asked.items()):
            if cookie in self._asked and message.covers(question.owner, home_of(question.endpoint)):
                self._answered(cookie, question.refs, "its owner died", "owner_died")

    def _sweep(self, message: HoldersDied) -> None:
        for identity, (_, holders) in list(self.held.items()):
            for holder in [name for name, home in holders.items() if message.covers(name, home)]:
                self._unhold(identity, holder)

    # --- time ----------------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> bool:
        """Whether ``tick`` will have something to do."""
        return bool(self._sweeps or self._lingering or self._asked)

    def is_due(self, now_ns: int) -> bool:
        """Whether ``tick`` has something to do."""
        return self.waiting or now_ns >= self.doubts.due_ns

    def tick(self, now_ns: int) -> None:
        """Sweep dead holders, let go of what has lingered, ask again."""
        while self._sweeps and self._sweeps[0][0] <= now_ns:
            self._sweep(self._sweeps.popleft()[1])
        while self._lingering and self._lingering[0][0] <= now_ns:
            self._lingering.popleft()
        silent: dict[str, str] = {}
        for cookie, question in self._asked.items():
            if now_ns - question.asked_ns >= _REPEAT_NS:
                question.asked_ns = now_ns
                self._ask(cookie, question)
                silent[question.owner] = question.endpoint
        if silent:
            self.ask_after(silent)
        self.doubts.tick(now_ns)

    def ask_after(self, processes: dict[str, str]) -> None:
        """Ask the node whether these processes (name -> endpoint) still live."""
        self._session.to_node(CheckProcesses(list(processes.items())))
