"""Runs a shard server that dies, or whose disk fails, at the K-th system call on its data file, and opens it again.

*Shell (strace, processes, zmq).* Used by ``test_gcs_crash_points``; ``python -m tests.chaos.crash_points`` runs the
whole sweep: every K of every call, until a run in which nothing happens any more.

1. strace tampers with calls on ``data.mdb`` only, so K counts the store's own writes and syncs.
2. A client does one write after the other and notes what was acknowledged. After the fault the server is started again
   on the same directory, without strace: everything acknowledged is there, and of a Write that was not, all or nothing.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from typing import Any

from meshray.config import SECOND_NS
from meshray.messages.gcs import Op
from perf.gcs_caller import Caller, ShardProcess, Unanswered

DATA_CALLS = ("pwrite64", "pwritev", "fdatasync")
"""How LMDB reaches its file on Linux: pages, runs of pages, and the sync; metadata pages are ``pwrite64`` too."""
FAULTS = ("signal=KILL", "error=EIO", "error=ENOSPC")
WRITES = 12
ROWS = 6
"""Rows of one Write, large enough that a commit is several calls."""


class Broken(AssertionError):
    """Something acknowledged is gone, or something is there by halves."""


def why_not() -> str:
    """Return why the sweep cannot run here; empty if it can."""
    strace = shutil.which("strace")
    if strace is None:
        return "strace is not installed: it makes system calls fail (apt-get install strace)"
    probe = subprocess.run([strace, "-o", os.devnull, "true"], capture_output=True, text=True)
    return f"strace cannot trace here: {probe.stderr.strip()}" if probe.returncode else ""


def prefix(directory: str, call: str, fault: str, when: int) -> list[str]:
    """Return the command that runs another one with a fault in it."""
    # The filter makes strace several times faster, but a signal cannot be sent from the stop that it causes.
    quick = () if fault.startswith("signal") else ("--seccomp-bpf",)
    return ["strace", "-f", *quick, "-o", os.devnull, "-P", f"{directory}/data.mdb", "-e", f"trace={call}",
            "-e", f"inject={call}:{fault}:when={when}"]


def ops(write: int) -> list[Op]:
    """Return the rows of one Write; some rows are written again and again."""
    value = (b"%06d" % write) * 300
    return [Op("kv", b"row-%d-%d" % (write % 5, row), value) for row in range(ROWS)]


def attempt(call: str, fault: str, when: int, durability: str = "fsync") -> str:
    """Run one point; return how the server ended, empty if it never met the fault. Raise Broken."""
    with tempfile.TemporaryDirectory() as directory:
        server = ShardProcess("shard-0-0", directory, durability,
                              prefix=prefix(f"{directory}/shard-0-0", call, fault, when))
        caller = Caller("writer", directory, [server.shard])
        acknowledged, begun = 0, 0
        try:
            for write in range(1, WRITES + 1):
                begun = write
                answer = _write(caller, server, ops(write))
                if answer is None:
                    break
                acknowledged = write
        finally:
            caller.close()
            ended = server.stop()
        again = ShardProcess("shard-0-0", directory, durability)
        reader = Caller("reader", directory, [again.shard])
        try:
            verify(rows_of(reader), acknowledged, begun)
        finally:
            reader.close()
            again.stop()
        return "" if acknowledged == WRITES else ended


def _write(caller: Caller, server: ShardProcess, rows: list[Op]) -> Any:
    """Write; return the answer, None if the server ended first."""
    number, effects = caller.client.write(rows, caller.now_ns(), timeout_ns=60 * SECOND_NS)
    caller.perform(effects)
    answer: list[Any] = []

    def over() -> bool:
        found = caller.take(number)
        if found is not None:
            answer.append(found)
        return bool(answer) or server.has_ended()

    caller.until(over, 60)
    if answer and answer[0].error is not None:
        raise Broken(f"refused: {answer[0].error}")
    return answer[0] if answer else None


def rows_of(reader: Caller) -> dict[bytes, bytes]:
    """Return what the server holds."""
    found = reader.answer(reader.client.scan("kv", b"row-", reader.now_ns()))
    if found.error is not None:
        raise Broken(f"the server does not serve again: {found.error}")
    return {row.key: row.value for row in found.results}


def verify(present: dict[bytes, bytes], acknowledged: int, begun: int) -> None:
    """Compare the rows with what was acknowledged; the Write after it may be there as a whole."""
    expected = state(acknowledged)
    if present not in (expected, state(begun)):
        wrong = {key: (present.get(key, b"")[:6], expected.get(key, b"")[:6]) for key in {*present, *expected}
                 if present.get(key) != expected.get(key)}
        raise Broken(f"after {acknowledged} acknowledged writes, (found, expected) differ: {wrong}")


def state(writes: int) -> dict[bytes, bytes]:
    """Return the rows after so many Writes."""
    return {op.key: op.value for write in range(1, writes + 1) for op in ops(write)}


def sweep(calls: list[str], faults: list[str], durability: str, step: int) -> int:
    """Run every ``step``-th point of these calls and faults; return how many there were."""
    points = 0
    for call, fault in itertools.product(calls, faults):
        for when in itertools.count(1, step):
            ended = attempt(call, fault, when, durability)
            print(f"{call} {fault} {durability} at {when}: {ended or 'not met'}", flush=True)
            if not ended:
                break
            points += 1
    return points


def main() -> int:
    """Parse the command line, sweep, report."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.crash_points",
                                     description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calls", default=",".join(DATA_CALLS))
    parser.add_argument("--faults", default=",".join(FAULTS))
    parser.add_argument("--durability", default="fsync", choices=["fsync", "relaxed"])
    parser.add_argument("--step", type=int, default=1, help="run only every n-th point")
    arguments = parser.parse_args()
    if reason := why_not():
        print(reason)
        return 1
    points = sweep(arguments.calls.split(","), arguments.faults.split(","), arguments.durability, arguments.step)
    print(f"{points} points: everything acknowledged is there after each")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Broken, Unanswered) as error:
        sys.exit(f"{type(error).__name__}: {error}")
