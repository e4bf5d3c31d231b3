"""The process that runs rows of one system, told over a pipe what to do.

*Shell (pipe, clock).* Started by the orchestra: ``python -m perf.subject SYSTEM COMMANDS_FD ANSWERS_FD``. Needs nothing
but the standard library and numpy, because it also runs in the peer's interpreter.

Dialog, one JSON object per line, each command answered once::

    {"do": "start", "cpus": 2}          {"value": seconds from start to the first task's result}
    {"do": "pid"}                       {"value": this process}
    {"do": "open", "row": name}         {"value": 1}, or null where the system has no such row
    {"do": "sample", "seconds": 0.4}    {"value": units per second}
    {"do": "close"}                     {"value": null}
    {"do": "stop"}                      {"value": seconds}, and the process ends

A failure is answered ``{"error": text}`` and leaves no row open.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from contextlib import AbstractContextManager
from typing import Any

from perf.row_kinds import Operation, sample
from perf.systems import SYSTEMS


class Subject:
    """One system and the row that is open on it."""

    def __init__(self, name: str) -> None:
        self.bare = name == "bare"
        self.system = SYSTEMS[name]()
        self.api: Any = None
        self.row: AbstractContextManager[Operation] | None = None
        self.operation: Operation | None = None

    def do_start(self, cpus: int) -> float:
        """Start the system and get one task's result."""
        from perf.rows import nothing

        began = time.perf_counter()
        self.api = self.system.start(cpus)
        if not self.bare:
            self.api.get(self.api.remote(nothing).remote())
        return time.perf_counter() - began

    def do_pid(self) -> float:
        """Say who this is, so that the program itself can be left out of the system's memory."""
        return os.getpid()

    def do_open(self, row: str) -> float | None:
        """Prepare a row and run it once, so that what is done only once is done."""
        if not self.system.runs(row):
            return None
        self.row = self._open(row)
        self.operation = self.row.__enter__()
        self.operation.run()
        return 1

    def _open(self, row: str) -> AbstractContextManager[Operation]:
        if self.bare:
            from perf.limits import LIMITS

            return LIMITS[row]()
        from perf.rows import ROWS

        return ROWS[row].open(self.api)

    def do_sample(self, seconds: float) -> float:
        """Time the open row."""
        assert self.operation is not None, "no row is open"
        return sample(self.operation, seconds)

    def do_close(self) -> None:
        """Let go of the open row."""
        row, self.row, self.operation = self.row, None, None
        if row is not None:
            row.__exit__(None, None, None)

    def do_stop(self) -> float:
        """Stop the system."""
        began = time.perf_counter()
        self.system.stop()
        return time.perf_counter() - began


def serve(subject: Subject, commands: int, answers: int) -> None:
    """Answer commands until ``stop``, or until whoever gives them is gone."""
    with os.fdopen(commands) as lines:
        for line in lines:
            command = json.loads(line)
            name = command.pop("do")
            try:
                answer = {"value": getattr(subject, f"do_{name}")(**command)}
            except Exception:
                subject.row = subject.operation = None
                answer = {"error": traceback.format_exc()}
            os.write(answers, json.dumps(answer).encode() + b"\n")
            if name == "stop":
                return


if __name__ == "__main__":
    os.set_inheritable(int(sys.argv[2]), False)
    os.set_inheritable(int(sys.argv[3]), False)
    serve(Subject(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
