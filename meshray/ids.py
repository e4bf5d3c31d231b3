"""Ids of tasks, objects, actors, functions and processes.

*Pure.* Used by every process.

1. Ids are derived, not drawn: a task is named by its parent and its index under that parent, an object by its
   task and return index. A re-executed task therefore names the same children and the same objects.
2. A parent is hashed once, however many children it has: ``prefix = H(parent)[:10]``, ``task = prefix + index``.
   A child then costs an addition, not a hash (a hash per task costs as much as the whole submit path).
3. Values stored by ``put`` take an index of the same counter and the return index ``PUT_RETURN``, so that they can
   never collide with a task's return.

Source: OSDI'18 s4.2 (lineage names objects by the task that makes them).
"""

from __future__ import annotations

from blake3 import blake3

PREFIX_BYTES = 10
INDEX_BYTES = 6
TASK_ID_BYTES = PREFIX_BYTES + INDEX_BYTES
RETURN_BYTES = 2
OBJECT_ID_BYTES = TASK_ID_BYTES + RETURN_BYTES
FUNCTION_ID_BYTES = 16
PUT_RETURN = 0xFFFF
"""Return index of objects made by ``put``; a task may therefore have at most 65 535 returns."""


def child_prefix(parent: bytes) -> bytes:
    """Return the 10-byte prefix shared by the ids of all children of the task ``parent``."""
    return blake3(parent).digest(length=PREFIX_BYTES)


def task_id(prefix: bytes, index: int) -> bytes:
    """Return the 16-byte id of child number ``index`` (0 <= index < 2**48) under ``prefix``."""
    return prefix + index.to_bytes(INDEX_BYTES, "big")


def object_id(task: bytes, return_index: int) -> bytes:
    """Return the 18-byte id of return value ``return_index`` of ``task``."""
    return task + return_index.to_bytes(RETURN_BYTES, "big")


def put_id(prefix: bytes, index: int) -> bytes:
    """Return the 18-byte id of the value that the parent with ``prefix`` stored under ``index``."""
    return task_id(prefix, index) + b"\xff\xff"


def task_of(object_id_: bytes) -> bytes:
    """Return the id of the task (or put) that made an object."""
    return object_id_[:TASK_ID_BYTES]


def function_id(job: str, pickled: bytes) -> bytes:
    """Name a pickled function or class by its job and its content: the first 16 bytes of their blake3 digest. Two jobs
    share none, as it ends with its job."""
    return blake3(job.encode() + b"\0" + pickled).digest(length=FUNCTION_ID_BYTES)


def root_task(job: str) -> bytes:
    """Return the id of the task that stands for a driver's own program."""
    return blake3(b"job:" + job.encode()).digest(length=TASK_ID_BYTES)


ONCE = ("driver-", "worker-")
"""How the names begin of processes that live once. All others may end and come back under their names."""


def process_name(kind: str, entropy: bytes) -> str:
    """Name a process: kind and 12 hex digits, for example ``worker-3f2a9c1d0b7e``. At most 32 characters."""
    return f"{kind}-{entropy.hex()[:12]}"
