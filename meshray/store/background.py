"""The slow effects of the store's machines, off the node's loop: hashing and first touch.

*Shell (thread).* Runs in the node process; both kinds of work release the GIL.

1. Effects go in by ``submit`` and come back as events from ``drain``, each exactly once, in order.
2. ``fd`` is readable while events wait, so the host can sleep on it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from queue import SimpleQueue
from threading import Lock, Thread
from typing import assert_never

from meshray.store.arena_file import ArenaFile
from meshray.store.events import DigestObject, ObjectDigested, PopulateRange, RangePopulated
from meshray.store.manifest import digests_of

Work = DigestObject | PopulateRange
Done = ObjectDigested | RangePopulated


class Background:
    """One thread beside the host; started by the first effect, since most nodes never pull."""

    def __init__(self, file: ArenaFile) -> None:
        """Work on ``file``."""
        self._file = file
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        self._done: list[Done] = []
        self._lock = Lock()
        self._thread: Thread | None = None
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        """Readable when ``drain`` has something; for ``Host(sources={background.fd: background.drain})``."""

    def submit(self, work: Work) -> None:
        """Perform ``work`` soon; a performer for the host."""
        if self._thread is None:
            self._thread = Thread(target=self._run, name="meshray-store", daemon=True)
            self._thread.start()
        self._queue.put(work)

    def drain(self) -> Iterable[Done]:
        """Return the events that are ready."""
        if not self._done:
            return ()
        with self._lock:
            os.eventfd_read(self.fd)
            done, self._done = self._done, []
        return done

    def close(self) -> None:
        """Finish what was submitted and end the thread."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
        os.close(self.fd)

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            event = self._perform(work)
            with self._lock:
                self._done.append(event)
                os.eventfd_write(self.fd, 1)

    def _perform(self, work: Work) -> Done:
        match work:
            case DigestObject(object_, offset, size_bytes):
                return ObjectDigested(object_, offset, digests_of(self._file.view(offset, size_bytes)))
            case PopulateRange(object_, offset, size_bytes):
                try:
                    self._file.populate(offset, size_bytes)
                except OSError as error:
                    return RangePopulated(object_, offset, str(error))
                return RangePopulated(object_, offset)
            case _:
                assert_never(work)
