"""Objects whose owner died: they stay until nobody on this node reads them.

*Pure.* Runs in the node process.

1. Memory is never used again under a reader. When an owner dies its objects here are not freed at once: every session
   is asked which of them it still reads, and what nobody claims is free when all have answered or ended.
2. A session that claimed an object frees it when its own last reference dies; the last such free counts.
3. Seal notices and pulls may end after their owner's death, so its objects are looked for again for a while.

::

    owner died --> asked --nobody claims--> freed
                     |
                     +--claimed--> read --last reader frees it or ends--> freed

Source: DESIGN s6 ("memory is reused only after the last buffer over it is gone").
"""

from __future__ import annotations

import msgspec

from meshray import config
from meshray.messages.objects import HoldersDied
from meshray.store.directory import ArenaDirectory
from meshray.transport.endpoints import home_of, process_of

AGAIN_NS = tuple(seconds * config.SECOND_NS for seconds in (1, 2, 5, 10, 30))
"""When a dead owner's objects are looked for again."""


class _Question(msgspec.Struct, eq=False):
    """Objects of dead owners, and the sessions that have not said yet what they read of them."""

    objects: set[bytes]
    asked: set[str]


class Orphans:
    """The objects of dead owners in one node's store."""

    def __init__(self, directory: ArenaDirectory) -> None:
        self._directory = directory
        self._cookie = 0
        self._questions: dict[int, _Question] = {}
        self._readers: dict[bytes, set[str]] = {}
        self._again: list[tuple[int, HoldersDied]] = []

    def died(self, message: HoldersDied, now_ns: int) -> HoldersDied:
        """Processes are gone: return what the sessions are to be told."""
        self._again += [(now_ns + wait_ns, message) for wait_ns in AGAIN_NS]
        self._again.sort(key=lambda due: due[0])
        return self._ask(message) or message

    def _ask(self, message: HoldersDied) -> HoldersDied | None:
        found: set[bytes] = set()
        for owner in self._directory.owners():
            if message.covers(process_of(owner), home_of(owner)):
                found.update(self._directory.objects_of(owner))
        found.difference_update(self._readers, *(question.objects for question in self._questions.values()))
        if not found:
            return None
        self._cookie += 1
        self._questions[self._cookie] = _Question(found, set())
        return HoldersDied(message.processes, message.homes, self._cookie)

    def asked(self, message: HoldersDied, sessions: list[str]) -> list[bytes]:
        """The message has gone to these sessions; return the objects that are free because there are none."""
        question = self._questions.get(message.cookie)
        if question is None:
            return []
        question.asked.update(sessions)
        return self._settle(message.cookie)

    def answered(self, session: str, cookie: int, objects: list[bytes]) -> list[bytes]:
        """A session still reads ``objects``; with cookie 0 it has got them from another reader. Return the objects that
        are free."""
        if not cookie:
            for identity in objects:
                if self._directory.lookup(identity) is not None:
                    self._readers.setdefault(identity, set()).add(session)
            return []
        question = self._questions.get(cookie)
        if question is None or session not in question.asked:
            return []
        for identity in question.objects.intersection(objects):
            self._readers.setdefault(identity, set()).add(session)
        question.asked.discard(session)
        return self._settle(cookie)

    def _settle(self, cookie: int) -> list[bytes]:
        if self._questions[cookie].asked:
            return []
        return [identity for identity in self._questions.pop(cookie).objects if identity not in self._readers]

    def may_free(self, session: str, objects: list[bytes]) -> list[bytes]:
        """A session or node frees ``objects``: return those that no other session reads, nor may be found to read."""
        if not self._readers and not self._questions:
            return objects
        free = []
        for identity in objects:
            readers = self._readers.get(identity, set())
            readers.discard(session)
            if not readers:
                self._readers.pop(identity, None)
                if not any(identity in question.objects for question in self._questions.values()):
                    free.append(identity)
        return free

    def session_gone(self, session: str) -> list[bytes]:
        """A session has ended, and reads nothing. Return the objects that are free."""
        free = self.may_free(session, [identity for identity, readers in self._readers.items() if session in readers])
        for cookie, question in list(self._questions.items()):
            question.asked.discard(session)
            free += self._settle(cookie)
        return free

    def deadline_ns(self) -> int | None:
        """When ``tick`` is due."""
        return self._again[0][0] if self._again else None

    def tick(self, now_ns: int) -> list[HoldersDied]:
        """Look again for objects of dead owners; return what the sessions are to be asked."""
        asked = []
        while self._again and self._again[0][0] <= now_ns:
            question = self._ask(self._again.pop(0)[1])
            if question is not None:
                asked.append(question)
        return asked
