"""Follows the output files of workers.

*Shell (files).* Runs in the node process.

1. Output goes to files first, so nothing is lost when a process dies; the node reads along.
2. What is read is bounded per look, so a worker that prints without end cannot stop its node.
"""

from __future__ import annotations

import os

from meshray import config
from meshray.processes.node_events import LinesWritten

_READ_MAX = 64 * config.KIB
_LINE_MAX = 16 * config.KIB
_LOOKS_MAX = 64


class WorkerLogs:
    """The output files of all living workers of a node."""

    def __init__(self, log_dir: str) -> None:
        self._log_dir = log_dir
        self._files: dict[tuple[str, str], int] = {}
        self._rests: dict[tuple[str, str], bytes] = {}

    def follow(self, worker: str) -> None:
        """Follow a new worker's files from their start."""
        for stream in ("out", "err"):
            path = os.path.join(self._log_dir, f"{worker}.{stream}")
            self._files[worker, stream] = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def read(self) -> list[LinesWritten]:
        """Return what was written since the last look."""
        return [event for key in list(self._files) for event in self._read(key, final=False)]

    def read_all(self) -> list[LinesWritten]:
        """Return what was written up to now, also if it takes several looks, but not without end."""
        events: list[LinesWritten] = []
        for _ in range(_LOOKS_MAX):
            found = self.read()
            if not found:
                break
            events += found
        return events

    def _read(self, key: tuple[str, str], *, final: bool) -> list[LinesWritten]:
        data = os.read(self._files[key], _READ_MAX)
        rest = self._rests.pop(key, b"")
        if not data and not (final and rest):
            if rest:
                self._rests[key] = rest
            return []
        *lines, rest = (rest + data).split(b"\n")
        if rest and (final or len(rest) > _LINE_MAX):
            lines.append(rest)
            rest = b""
        if rest:
            self._rests[key] = rest
        texts = [line.decode(errors="replace") for line in lines]
        return [LinesWritten(key[0], key[1], texts)] if texts else []

    def finish(self, worker: str) -> tuple[list[LinesWritten], str]:
        """Read the rest of a dead worker's output; return it, and the tail of its stderr."""
        events: list[LinesWritten] = []
        for stream in ("out", "err"):
            key = (worker, stream)
            file = self._files.get(key)
            if file is None:
                continue
            while found := self._read(key, final=False):
                events += found
            events += self._read(key, final=True)
            del self._files[key]
            os.close(file)
        return events, self._tail(worker)

    def _tail(self, worker: str) -> str:
        path = os.path.join(self._log_dir, f"{worker}.err")
        try:
            with open(path, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _LINE_MAX))
                lines = file.read().decode(errors="replace").splitlines()
        except FileNotFoundError:
            return ""
        return "\n".join(lines[-config.STDERR_TAIL_LINES:])

    def close(self) -> None:
        """Close all files."""
        for file in self._files.values():
            os.close(file)
        self._files.clear()
