"""The shard server as a real process, on a real socket and a real disk."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meshray.config import SECOND_NS
from meshray.gcs.client import GcsClient
from meshray.gcs.requests import Answered, RowChanged, Synced
from meshray.machine import Connect, Received, Send, Tick, Undeliverable
from meshray.messages.gcs import COMPARE_AND_SET, PUT_IF_ABSENT, DescribeShard, Op, ShardDescribed
from meshray.messages.node import Leave, Ping, Pong, Shard
from meshray.transport.codec import decode, encode
from meshray.transport.sockets import Peers, ipc_endpoint, route_to

NAME = "shard-0-0"
PROGRAM = """
import sys
from meshray.messages.node import Shard
from meshray.processes.shard import run
name, endpoint, directory, durability = sys.argv[1:]
reason = run(name, endpoint, directory, Shard(1, [(name, endpoint)]), durability)
assert "numpy" not in sys.modules and "cloudpickle" not in sys.modules
print(reason)
"""


class ShardProcess:
    """A shard server in ``directory``, which can be killed and started again."""

    def __init__(self, directory: Path, durability: str = "fsync") -> None:
        self.endpoint = ipc_endpoint(str(directory), "shard.sock")
        self.shard = Shard(1, [(NAME, self.endpoint)])
        self._arguments = [NAME, self.endpoint, str(directory / "gcs"), durability]
        self.process: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *self._arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def end(self, number: int) -> tuple[int, str, str]:
        """Send a signal (0: none), wait, and return (exit code, what it printed, its errors)."""
        assert self.process is not None
        if number:
            self.process.send_signal(number)
        out, errors = self.process.communicate(timeout=20)
        return self.process.returncode, out.strip(), errors


class Caller:
    """A client on a real socket; calls wait for their answers."""

    def __init__(self, name: str, directory: Path, shard: Shard) -> None:
        self.client = GcsClient(name, [shard])
        self.peers = Peers(name, ipc_endpoint(str(directory), name + ".sock"))
        self.effects: list[Any] = []
        self.others: list[Any] = []

    def perform(self, effects: list[Any]) -> None:
        for effect in effects:
            if isinstance(effect, Connect):
                self.peers.connect(effect.name, effect.endpoint)
            elif isinstance(effect, Send):
                if not self.peers.send(effect.to, encode(effect.message)):
                    self.perform(self.client.handle(Undeliverable(effect.to, effect.message), time.monotonic_ns()))
            else:
                self.effects.append(effect)

    def drive(self) -> None:
        self.peers.wait(20)
        for parts in self.peers.receive(100):
            message = decode(parts[1])
            if isinstance(message, Pong | ShardDescribed):
                self.others.append(message)
            else:
                self.perform(self.client.handle(Received(parts[0], message), time.monotonic_ns()))
        deadline_ns = self.client.deadline_ns()
        if deadline_ns is not None and deadline_ns <= time.monotonic_ns():
            self.perform(self.client.handle(Tick(), time.monotonic_ns()))

    def until(self, found: Any, within_s: float = 20) -> Any:
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            result = next(filter(found, [*self.effects, *self.others]), None)
            if result is not None:
                return result
            self.drive()
        raise AssertionError(f"not found within {within_s} s among {self.effects} {self.others}")

    def answered(self, begun: tuple[int, list[Any]]) -> Answered:
        self.perform(begun[1])
        answer = self.until(lambda effect: isinstance(effect, Answered) and effect.request == begun[0])
        assert isinstance(answer, Answered)
        return answer

    def write(self, *ops: Op) -> Answered:
        return self.answered(self.client.write(list(ops), time.monotonic_ns()))


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[ShardProcess]:
    server = ShardProcess(tmp_path)
    yield server
    if server.process is not None and server.process.poll() is None:
        server.end(signal.SIGKILL)


@pytest.fixture
def caller(tmp_path: Path, shard: ShardProcess) -> Iterator[Caller]:
    caller = Caller("caller-1", tmp_path, shard.shard)
    yield caller
    caller.peers.close()


def test_killed_shard_comes_back_with_what_it_answered(shard: ShardProcess, caller: Caller, tmp_path: Path) -> None:
    watch, effects = caller.client.watch("kv", b"row", time.monotonic_ns(), prefix=True)
    caller.perform(effects)
    caller.until(lambda effect: isinstance(effect, Synced))
    first = caller.write(*(Op("kv", b"row-%d" % i, b"x" * 100) for i in range(500)))
    assert first.error is None and all(outcome.ok for outcome in first.results)
    caller.until(lambda effect: isinstance(effect, RowChanged) and effect.key == b"row-499" and effect.watch == watch)

    shard.end(signal.SIGKILL)
    number, effects = caller.client.write([Op("kv", b"row-0", b"new", COMPARE_AND_SET, first.results[0].version)],
                                          time.monotonic_ns())
    caller.perform(effects)
    shard.start()
    second = caller.answered((number, []))
    assert second.results[0].ok and second.results[0].version > first.results[-1].version
    caller.until(lambda effect: isinstance(effect, RowChanged) and effect.value == b"new")

    rows = caller.answered(caller.client.scan("kv", b"row", time.monotonic_ns()))
    assert len(rows.results) == 500
    assert caller.write(Op("kv", b"row-1", b"", PUT_IF_ABSENT)).results[0].value == b"x" * 100
    assert (tmp_path / "gcs").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "gcs").iterdir()} == {0}


def test_shard_answers_pings_describes_itself_and_leaves(shard: ShardProcess, caller: Caller) -> None:
    caller.write(Op("node", b"node-1", b"here"))
    caller.perform([Send(route_to(NAME), Ping(7)), Send(route_to(NAME), DescribeShard(8))])
    assert caller.until(lambda message: isinstance(message, Pong)).cookie == 7
    described = caller.until(lambda message: isinstance(message, ShardDescribed))
    assert described.role == "alone" and described.rows["node"] == 1 and described.durability == "fsync"
    assert 0 < described.used_bytes <= described.file_bytes <= described.map_bytes
    caller.perform([Send(route_to(NAME), Leave("enough"))])
    assert shard.end(0)[:2] == (0, "enough")


def test_sigterm_ends_a_shard_in_good_order(shard: ShardProcess, caller: Caller) -> None:
    caller.write(Op("kv", b"a", b"b"))
    assert shard.end(signal.SIGTERM)[:2] == (0, "SIGTERM")
    assert not Path(shard.endpoint.removeprefix("ipc://")).exists()


def test_shard_ends_with_its_parent(tmp_path: Path) -> None:
    endpoint = ipc_endpoint(str(tmp_path), "shard.sock")
    program = (
        "import os, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', sys.argv[1], *sys.argv[2:]])\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, PROGRAM, NAME, endpoint, str(tmp_path / "gcs"), "relaxed"],
        stdout=subprocess.PIPE, text=True,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    caller = Caller("caller-2", tmp_path, Shard(1, [(NAME, endpoint)]))
    try:
        assert caller.write(Op("kv", b"a", b"b")).error is None
        parent.kill()
        # The pipe's other end is the shard's standard output too: it closes when the shard is gone.
        parent.stdout.read()
        assert not Path(endpoint.removeprefix("ipc://")).exists(), f"shard {pid} left its socket"
    finally:
        parent.wait()
        parent.stdout.close()
        caller.peers.close()


def test_unwritable_disk_ends_the_shard_with_a_message(tmp_path: Path) -> None:
    limited = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n" \
              "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n" + PROGRAM
    endpoint = ipc_endpoint(str(tmp_path), "shard.sock")
    process = subprocess.Popen(
        [sys.executable, "-c", limited, NAME, endpoint, str(tmp_path / "gcs"), "fsync"],
        stderr=subprocess.PIPE, text=True,
    )
    caller = Caller("caller-3", tmp_path, Shard(1, [(NAME, endpoint)]))
    try:
        ops = [Op("kv", b"%d" % i, b"x" * 100_000) for i in range(30)]
        number, effects = caller.client.write(ops, time.monotonic_ns(), timeout_ns=2 * SECOND_NS)
        caller.perform(effects)
        answer = caller.answered((number, []))
        assert answer.error is not None and answer.results == []
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 1
        assert "did not take a commit (E" in errors and "make room" in errors
    finally:
        caller.peers.close()
        process.kill()
        process.wait()
