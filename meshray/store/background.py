"""The slow effects of the store's machines, off the node's loop: hashing, first touch, and the disk.

*Shell (thread).* Runs in the node process; all kinds of work release the GIL.

1. Effects go in by ``submit`` and come back as events from ``drain``, each exactly once, in order.
2. ``fd`` is readable while events wait, so the host can sleep on it.
3. Large objects are hashed by several threads at once: who asked for them waits for the last digest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from threading import Lock, Thread
from typing import assert_never

from meshray import config
from meshray.store.arena_file import ArenaFile
from meshray.store.events import (
    DigestObject,
    DropChunks,
    ObjectDigested,
    ObjectRestored,
    ObjectSpilled,
    PopulateRange,
    RangePopulated,
    RestoreObject,
    SpillObject,
)
from meshray.store.manifest import DIGEST_BYTES, chunk_count, chunk_range, digests_of
from meshray.store.spill_files import SpillFiles

Work = DigestObject | PopulateRange | SpillObject | RestoreObject | DropChunks
Done = ObjectDigested | RangePopulated | ObjectSpilled | ObjectRestored


class Background:
    """One thread beside the host; started by the first effect, since most nodes never pull or spill."""

    def __init__(self, file: ArenaFile, spill_files: SpillFiles | None = None, *,
                 prepare: Callable[[], object] = lambda: None) -> None:
        """Work on ``file``; with ``spill_files`` also what the disk does. ``prepare`` runs first in the thread."""
        self._file = file
        self._spill_files = spill_files
        self._prepare = prepare
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        self._done: list[Done] = []
        self._lock = Lock()
        self._thread: Thread | None = None
        self._failure: BaseException | None = None
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        """Readable when ``drain`` has something; for ``Host(sources={background.fd: background.drain})``."""

    def submit(self, work: Work) -> None:
        """Perform ``work`` soon; a performer for the host."""
        if self._thread is None:
            self._thread = Thread(target=self._run, name="meshray-store", daemon=True)
            self._thread.start()
        self._queue.put(work)

    def drain(self) -> Iterable[Done]:
        """Return the events that are ready. Raise RuntimeError if the thread has failed: others would wait for ever."""
        if self._failure is not None:
            raise RuntimeError("the background thread of the store failed") from self._failure
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
        try:
            self._prepare()
            while (work := self._queue.get()) is not None:
                event = self._perform(work)
                if event is None:
                    continue
                with self._lock:
                    self._done.append(event)
                    os.eventfd_write(self.fd, 1)
        except BaseException as error:
            self._failure = error
            os.eventfd_write(self.fd, 1)

    def _perform(self, work: Work) -> Done | None:
        match work:
            case DigestObject(object_, offset, size_bytes):
                return ObjectDigested(object_, offset, hash_together(self._file.view(offset, size_bytes)))
            case PopulateRange(object_, offset, size_bytes):
                try:
                    self._file.populate(offset, size_bytes)
                except OSError as error:
                    return RangePopulated(object_, offset, str(error))
                return RangePopulated(object_, offset)
            case SpillObject():
                return self._spill(work)
            case RestoreObject():
                return ObjectRestored(work.object, self._restore(work))
            case DropChunks(digests):
                self._disk.drop(digests)
                return None
            case _:
                assert_never(work)

    @property
    def _disk(self) -> SpillFiles:
        assert self._spill_files is not None, "this thread has no disk"
        return self._spill_files

    def _spill(self, work: SpillObject) -> ObjectSpilled:
        view = self._file.view(work.offset, work.size_bytes)
        try:
            return ObjectSpilled(work.object, self._disk.write(view, spare_bytes=work.spare_bytes))
        except OSError as error:
            return ObjectSpilled(work.object, b"", str(error.strerror or error))

    def _restore(self, work: RestoreObject) -> str:
        """Read the chunks into the arena; return what went wrong."""
        try:
            for index in range(len(work.digests) // DIGEST_BYTES):
                start, _ = chunk_range(index, work.size_bytes)
                digest = work.digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]
                self._file.write(work.offset + start, self._disk.read(digest))
        except OSError as error:
            return str(error.strerror or error)
        return ""


def hash_together(view: memoryview) -> bytes:
    """Return the joined digests of the chunks in ``view``, computed by as many threads as that is worth."""
    threads = min(config.HASH_THREADS_MAX, os.cpu_count() or 1, len(view) // config.HASH_SHARE_BYTES)
    if threads < 2:
        return digests_of(view)
    chunks = -(-chunk_count(len(view)) // threads)
    parts = [view[start : start + chunks * config.CHUNK_BYTES]
             for start in range(0, len(view), chunks * config.CHUNK_BYTES)]
    digests = [b""] * len(parts)

    def work(part: int) -> None:
        digests[part] = digests_of(parts[part])

    others = [Thread(target=work, args=(part,), name="meshray-hash") for part in range(1, len(parts))]
    for thread in others:
        thread.start()
    work(0)
    for thread in others:
        thread.join()
    return b"".join(digests)
