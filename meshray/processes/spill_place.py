"""Where a node puts the objects that have no room in memory.

*Shell (files, /proc).* Runs in who starts a node: drivers and the command line.

1. What the user names is taken, or refused with a reason before anything is started.
2. Without a name it is the run directory, unless that lies in memory; then the first disk that this user may write to.
   A machine without one spills nothing.
"""

from __future__ import annotations

import os
from typing import Any

from meshray.errors import ClusterStartError

_IN_MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs"})


def spill_settings(directory: str | None, limit_bytes: int | None, *, cluster: str, node: str, run_dir: str
                   ) -> dict[str, Any]:
    """Return ``spill_directory`` and ``spill_max_bytes`` of a node's configuration. Raise ClusterStartError."""
    if limit_bytes is not None and (isinstance(limit_bytes, bool) or not isinstance(limit_bytes, int)):
        raise TypeError(f"spill_max must be a number of bytes or None, not {limit_bytes!r}")
    if limit_bytes is not None and limit_bytes < 0:
        raise ValueError(f"spill_max must be zero (spill nothing) or more, not {limit_bytes}")
    if limit_bytes == 0:
        return {"spill_directory": "", "spill_max_bytes": 0}
    place = _default(run_dir) if directory is None else _given(directory)
    if not place:
        return {"spill_directory": "", "spill_max_bytes": 0}
    name = "spill" if place == run_dir else f"meshray-{os.geteuid()}-{cluster}-{node}"
    return {"spill_directory": os.path.join(place, name), "spill_max_bytes": limit_bytes}


def _given(directory: str) -> str:
    if not isinstance(directory, str | os.PathLike):
        raise TypeError(f"spill_directory must be a path, not {directory!r}")
    path = os.path.abspath(os.fspath(directory))
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError as error:
        raise ClusterStartError(f"spill_directory {path} cannot be made: {error.strerror}. Name one that this user may "
                                "write to") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise ClusterStartError(f"spill_directory {path} is not writable for this user: name one that is")
    return path


def _default(run_dir: str) -> str:
    for path in (run_dir, "/var/tmp", os.environ.get("TMPDIR", "/tmp"), os.path.expanduser("~")):
        if os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK) and not _lies_in_memory(path):
            return path
    return ""


def _lies_in_memory(path: str) -> bool:
    """Whether the file system of ``path`` keeps its files in memory."""
    path = os.path.realpath(path)
    longest, kind = -1, ""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
        for line in mounts:
            left, _, right = line.partition(" - ")
            mount = left.split()[4].replace("\\040", " ")
            inside = path == mount or path.startswith(mount.rstrip("/") + "/")
            if inside and len(mount) >= longest:
                longest, kind = len(mount), right.split()[0]
    return kind in _IN_MEMORY
