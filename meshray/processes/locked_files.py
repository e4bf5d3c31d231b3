"""Locks between processes, and in words what a file system refuses.

*Shell (files).* Used by ``run_dirs`` and the host agent; imports nothing slow.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from meshray.errors import ClusterStartError


@contextmanager
def locked(path: str, *, variable: str) -> Iterator[None]:
    """Make a file, wait until nobody else has locked it, keep others out. ``variable``: see ``explained``."""
    with explained(path, variable=variable):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def explained(path: str, *, variable: str) -> Iterator[None]:
    """Turn what the file system refuses into an error that says where, why, and what to do: set ``variable``."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ClusterStartError(f"cannot write {path}: {reason}. Make room or give permission there, or set "
                                f"{variable} to another directory") from error
