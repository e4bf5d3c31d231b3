"""Chunks on disk, named by their content: one file per digest, however many objects share it.

*Shell (files).* Runs in the node process, in the disk's thread and in those that serve other nodes. Thread-safe.

1. A file has the name of its content's blake3 digest. It is written under another name and renamed when it is complete.
2. Each chunk counts how often it was written; it goes when it was dropped as often.
3. What is read is verified; a file that is not what its name says is an error, never data.
4. The directory is this node's alone: mode 0700, files 0600, emptied when it is opened and removed when it is closed.
   What killed nodes left beside it is removed at the next start: a living node holds a lock in its directory.
5. A disk without room is refused with what was needed and what is free, before it is full to the last block.

Nothing is synced: the files do not outlive the node.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from contextlib import suppress
from threading import Lock
from typing import Any

from blake3 import blake3

from meshray import config
from meshray.errors import size_text
from meshray.store.manifest import DIGEST_BYTES, chunk_count, chunk_range

_LOCK = ".meshray-spill-lock"
_PART = ".part"
_TRIES_MAX, _PAUSE_S = 50, 0.02


class SpillFiles:
    """The spilled chunks of one node."""

    def __init__(self, directory: str, limit_bytes: int | None = None) -> None:
        """Make ``directory`` (its parents too) and empty it. At most ``limit_bytes`` are kept there.

        Raise OSError if it cannot be made, belongs to somebody else, or is in use by another node."""
        self.directory = directory
        self.limit_bytes = limit_bytes
        self._counts: dict[bytes, int] = {}
        self._sizes: dict[bytes, int] = {}
        self._used_bytes = 0
        self._lock = Lock()
        self._folders: set[str] = set()
        parent = os.path.dirname(os.path.abspath(directory))
        os.makedirs(parent, mode=0o700, exist_ok=True)
        remove_leftovers(parent)
        self._guard = _occupy(directory)

    # --- writing -------------------------------------------------------------------------------------------------

    def write(self, view: memoryview, *, spare_bytes: int = 0) -> bytes:
        """Put the chunks of an object on disk, which must have ``spare_bytes`` besides; return their joined digests.
        Raise OSError, and nothing is kept."""
        written: list[bytes] = []
        try:
            for index in range(chunk_count(len(view))):
                start, size_bytes = chunk_range(index, len(view))
                # A copy, so that what is hashed is what is written, whatever happens to the arena meanwhile.
                data = bytes(view[start : start + size_bytes])
                digest = blake3(data).digest()
                self._put(digest, data, spare_bytes)
                written.append(digest)
        except OSError:
            self.drop(b"".join(written))
            raise
        return b"".join(written)

    def _put(self, digest: bytes, data: bytes, spare_bytes: int) -> None:
        if digest not in self._counts:
            self._check_room(len(data) + spare_bytes)
            self._write_file(digest, data)
        with self._lock:
            if digest not in self._counts:
                self._sizes[digest] = len(data)
                self._used_bytes += len(data)
            self._counts[digest] = self._counts.get(digest, 0) + 1

    def _check_room(self, need_bytes: int) -> None:
        if self.limit_bytes is not None and self._used_bytes + need_bytes > self.limit_bytes:
            raise OSError(errno.EDQUOT, f"cannot spill to {self.directory}: need {size_text(need_bytes)}, "
                          f"{size_text(self._used_bytes)} of spill_max {size_text(self.limit_bytes)} are in use")
        disk = os.statvfs(self.directory)
        if disk.f_bavail * disk.f_frsize < need_bytes + disk.f_blocks * disk.f_frsize // config.SPILL_FREE_SHARE:
            raise self._refusal(need_bytes, errno.ENOSPC)

    def _refusal(self, need_bytes: int, number: int) -> OSError:
        disk = os.statvfs(self.directory)
        free, total = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
        numbers = f"need {size_text(need_bytes)}, free {size_text(free)} of {size_text(total)}"
        return OSError(number, f"cannot spill to {self.directory}: {os.strerror(number)} ({numbers})")

    def _write_file(self, digest: bytes, data: bytes) -> None:
        path = self._path(digest)
        folder = os.path.dirname(path)
        try:
            if folder not in self._folders:
                os.makedirs(folder, mode=0o700, exist_ok=True)
                self._folders.add(folder)
            _write_whole(path + _PART, data)
            os.rename(path + _PART, path)
        except OSError as error:
            with suppress(OSError):
                os.unlink(path + _PART)
            raise self._refusal(len(data), error.errno or errno.EIO) from error

    def drop(self, digests: bytes) -> None:
        """Undo one ``write`` of these joined digests."""
        for start in range(0, len(digests), DIGEST_BYTES):
            digest = digests[start : start + DIGEST_BYTES]
            with self._lock:
                self._counts[digest] -= 1
                if self._counts[digest]:
                    continue
                del self._counts[digest]
                self._used_bytes -= self._sizes.pop(digest)
            with suppress(FileNotFoundError):
                os.unlink(self._path(digest))

    # --- reading -------------------------------------------------------------------------------------------------

    def read(self, digest: bytes) -> bytes:
        """Return a chunk. Raise OSError if it is not there or its file is damaged."""
        path = self._path(digest)
        try:
            with open(path, "rb", buffering=0) as file:
                data: bytes = file.readall() or b""
        except OSError as error:
            raise OSError(error.errno, f"spilled chunk {path} cannot be read: {error.strerror}") from error
        if blake3(data).digest() != digest:
            raise OSError(errno.EIO, f"spilled chunk {path} is damaged: its content does not match its name")
        return data

    def statistics(self) -> dict[str, int]:
        """Return how much lies on disk."""
        with self._lock:
            return {"chunks": len(self._counts), "disk_bytes": self._used_bytes}

    def close(self) -> None:
        """Remove everything. Twice is a no-op."""
        if self._guard >= 0:
            shutil.rmtree(self.directory, ignore_errors=True)
            os.close(self._guard)
            self._guard = -1

    def _path(self, digest: bytes) -> str:
        name = digest.hex()
        return os.path.join(self.directory, name[:2], name)


def _occupy(directory: str) -> int:
    """Make the directory and return the descriptor that holds its lock."""
    for _ in range(_TRIES_MAX):
        os.makedirs(directory, mode=0o700, exist_ok=True)
        status = os.lstat(directory)
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise PermissionError(errno.EPERM, "the spill directory must belong to this user with mode 0700", directory)
        with suppress(FileNotFoundError):
            guard = _take_lock(directory)
            if guard >= 0 and os.path.samestat(os.fstat(guard), os.stat(os.path.join(directory, _LOCK))):
                return guard
            if guard >= 0:
                os.close(guard)
        # Somebody who starts beside us may have taken the new directory for a leftover and be about to remove it.
        time.sleep(_PAUSE_S)
    raise BlockingIOError(errno.EBUSY, "another node spills into this directory", directory)


def remove_leftovers(parent: str) -> None:
    """Remove the spill directories in ``parent`` whose nodes are gone."""
    with os.scandir(parent) as entries:
        found = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)
                 and os.path.isfile(os.path.join(entry.path, _LOCK))
                 and entry.stat(follow_symlinks=False).st_uid == os.geteuid()]
    for path in found:
        guard = _take_lock(path)
        if guard >= 0:
            shutil.rmtree(path, ignore_errors=True)
            os.close(guard)


def _take_lock(directory: str) -> int:
    """Return a descriptor that holds the directory's lock, -1 if somebody else does."""
    guard = os.open(os.path.join(directory, _LOCK), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(guard)
        return -1
    return guard


def _write_whole(path: str, data: Any) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    finally:
        os.close(descriptor)
