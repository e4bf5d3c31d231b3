"""Records of the clusters that this machine has started over SSH, so that ``down``, ``status`` and a second ``up`` find
them.

*Shell (files).* Runs in the command line.

1. A record is there before the first node is, and goes when the last one has gone.
2. It holds no secret, and lies below ``clusters`` in the state directory (``state_dirs``).
"""

from __future__ import annotations

import os
from contextlib import suppress

import msgspec

from meshray.errors import MeshrayError
from meshray.processes import state_dirs
from meshray.processes.ssh_plan import ClusterRecord


def read(cluster: str) -> ClusterRecord | None:
    """Return the record of a cluster, or None if this machine has started none of that name."""
    path = _path(cluster)
    try:
        with open(path, "rb") as file:
            return msgspec.json.decode(file.read(), type=ClusterRecord)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise MeshrayError(f"{path} is no record of a cluster of this version of meshray ({error}): take the cluster "
                           "down with the version that started it, or delete the file") from error


def write(record: ClusterRecord) -> None:
    """Keep a record, whole or not at all."""
    path = _path(record.cluster)
    temporary = f"{path}.{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(record), indent=2))
        os.rename(temporary, path)
    except OSError as error:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise MeshrayError(f"cannot write {path}: {error.strerror}. Set {state_dirs.STATE_VARIABLE} to a directory "
                           "of your own") from error


def remove(cluster: str) -> None:
    """Forget a cluster. Twice is a no-op."""
    with suppress(FileNotFoundError):
        os.unlink(_path(cluster))


def names() -> list[str]:
    """Return the clusters that have a record."""
    with suppress(FileNotFoundError):
        return sorted(name.removesuffix(".json") for name in os.listdir(os.path.dirname(_path("any")))
                      if name.endswith(".json"))
    return []


def _path(cluster: str) -> str:
    return os.path.join(state_dirs.state_dir(), "clusters", f"{cluster}.json")
