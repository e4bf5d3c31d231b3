"""What this machine offers: CPUs, memory, GPUs and room for an object store, as the container or user may use them.

*Shell (/proc, /sys, statvfs).* Runs in drivers that start a cluster and in the command line.

1. A limit of the control group counts as much as the hardware: the smallest one on the way up wins.

Source: cgroups(7), cgroup-v2 ``cpu.max`` and ``memory.max``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from meshray import config
from meshray.errors import ClusterStartError, size_text

_CGROUPS = "/sys/fs/cgroup"


def cpus() -> int:
    """Return how many CPUs this process may keep busy: its affinity, limited by the CPU quota; at least 1."""
    count: float = len(os.sched_getaffinity(0))
    for text in _limits("cpu.max"):
        quota, _, period = text.partition(" ")
        if quota != "max":
            count = min(count, int(quota) / int(period))
    for quota_us, period_us in zip(_limits("cpu.cfs_quota_us"), _limits("cpu.cfs_period_us"), strict=False):
        if int(quota_us) > 0:
            count = min(count, int(quota_us) / int(period_us))
    return max(1, int(count))


def memory_bytes() -> int:
    """Return how much memory this process may use."""
    count = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for text in (*_limits("memory.max"), *_limits("memory.limit_in_bytes")):
        if text != "max":
            count = min(count, int(text))
    return count


def gpus() -> int:
    """Return how many NVIDIA GPUs CUDA_VISIBLE_DEVICES names, or the machine has."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return sum(1 for entry in visible.split(",") if entry.strip() not in ("", "-1", "NoDevFiles"))
    return sum(1 for entry in os.listdir("/dev") if re.fullmatch(r"nvidia\d+", entry))


def object_store_bytes(directory: str, wanted: int | None, *, stores: int = 1) -> int:
    """Return the size of an arena in ``directory``: what is wanted, or a share of memory that ``stores`` divide.

    Raise ValueError when too little is wanted, ClusterStartError when there is no room for it.
    """
    if wanted is not None and wanted < config.ARENA_BYTES_LEAST:
        raise ValueError(f"object_store_memory must be at least {size_text(config.ARENA_BYTES_LEAST)} "
                         f"({config.ARENA_BYTES_LEAST} bytes), not {wanted}")
    status = os.statvfs(directory)
    free = status.f_bavail * status.f_frsize
    if wanted is None:
        share = int(memory_bytes() * config.ARENA_SHARE)
        size = min(share, free, config.ARENA_BYTES_MAX) // stores
        size -= size % config.MIB
        least = config.ARENA_BYTES_MIN
    else:
        size = least = wanted
    if size < least or size > free:
        raise ClusterStartError(f"no room for the object store: {directory} has {size_text(free)} free, {stores} "
                                f"store(s) of {size_text(least)} are needed: lower object_store_memory, or make room")
    return size


def _limits(name: str) -> Iterator[str]:
    """Yield the contents of the control files ``name`` of this process's group and of all groups above it."""
    try:
        with open("/proc/self/cgroup") as file:
            lines = file.read().split()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and not {name.partition(".")[0]} & set(controllers.split(",")):
            continue
        while True:
            try:
                with open(f"{_CGROUPS}/{controllers}{path.rstrip('/')}/{name}") as file:
                    yield file.read().strip()
            except OSError:
                pass  # the top group has no limits, and a container sees only the part of the tree that is its own
            if path in ("/", ""):
                break
            path = os.path.dirname(path)
