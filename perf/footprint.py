"""How much memory a tree of processes takes.

*Shell (/proc).* Runs in the orchestra and in ``flat_memory``. Needs nothing but the standard library.

1. Memory is PSS: a page that n processes share counts 1/n for each, so sums over forked processes are true.
2. Processes that end while they are read count as nothing.
"""

from __future__ import annotations

import os
from pathlib import Path


def parents() -> dict[int, int]:
    """Return the parent of every process that is not a zombie."""
    table = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if fields[0] != "Z":
                table[int(entry)] = int(fields[1])
    return table


def descendants(root: int) -> list[int]:
    """Return all processes below ``root``, nearest first."""
    table = parents()
    found = [root]
    for pid in found:
        found += [child for child, parent in table.items() if parent == pid]
    return found[1:]


def smaps(pid: int, field: str) -> int:
    """Return ``field`` (``Pss``, ``Rss``, ...) of one process in bytes, 0 if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def pss_bytes(pids: list[int]) -> int:
    """Return the proportional set size of these processes together."""
    return sum(smaps(pid, "Pss") for pid in pids)


def command_of(pid: int) -> str:
    """Return the command line of a process, for people; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""
