"""Shards of the control store as processes of their own, and clients on real sockets, without the rest of a cluster.

*Shell (zmq, processes, clock).* Runs in ``perf.gcs``, ``perf.failover`` and the tests of failover.

1. A Caller does one thing at a time and waits for its answer, as a session does whose driver waits.
2. A process that was started here is ended here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from meshray.gcs.client import ANSWERS, GcsClient
from meshray.gcs.requests import Answered
from meshray.machine import Connect, Disconnect, Received, Send, Tick, Undeliverable
from meshray.messages.gcs import Op
from meshray.messages.node import Shard
from meshray.transport.codec import decode, encode
from meshray.transport.sockets import Peers, ipc_endpoint

WAIT_MS = 20
SERVE = (
    "import sys, json\n"
    "from meshray.messages.node import Shard\n"
    "from meshray.processes import shard\n"
    "name, endpoint, directory, members, durability = sys.argv[1:]\n"
    "print(shard.run(name, endpoint, directory, Shard(1, [tuple(each) for each in json.loads(members)]), durability))\n"
)


class Unanswered(TimeoutError):
    """A call was not answered in time."""


class Caller:
    """A client of the control store. ``others`` takes the effects that are not answers."""

    def __init__(self, name: str, directory: str, shards: list[Shard], *, peers: Peers | None = None) -> None:
        self.client = GcsClient(name, shards)
        self.peers = peers or Peers(name, ipc_endpoint(directory, name + ".sock"))
        self.others: list[Any] = []
        self._answers: dict[int, Answered] = {}

    def perform(self, effects: list[Any]) -> None:
        """Act on what the client wants."""
        for effect in effects:
            match effect:
                case Send(to=to, message=message):
                    if not self.peers.send(to, encode(message)):
                        self.perform(self.client.handle(Undeliverable(to, message), time.monotonic_ns()))
                case Connect(name=name, endpoint=endpoint):
                    self.peers.connect(name, endpoint)
                case Disconnect(name=name):
                    self.peers.disconnect(name)
                case Answered(request=request):
                    self._answers[request] = effect
                case _:
                    self.others.append(effect)

    def drive(self, wait_ms: int = WAIT_MS) -> None:
        """Take what has come, or what comes within ``wait_ms`` or until the client wants to act."""
        deadline_ns = self.client.deadline_ns()
        if deadline_ns is not None:
            wait_ms = max(0, min(wait_ms, -(-(deadline_ns - time.monotonic_ns()) // 1_000_000)))
        ready = self.peers.wait(wait_ms)
        for parts in self.peers.receive(100, ready=ready) if ready else ():
            message = decode(parts[1])
            if isinstance(message, ANSWERS):
                self.perform(self.client.handle(Received(parts[0], message), time.monotonic_ns()))
        if deadline_ns is not None and deadline_ns <= time.monotonic_ns():
            self.perform(self.client.handle(Tick(), time.monotonic_ns()))

    def answer(self, begun: tuple[int, list[Any]], timeout_s: float = 60.0) -> Answered:
        """Send what was begun, and wait for its end; raise Unanswered."""
        number, effects = begun
        self.perform(effects)
        end = time.monotonic() + timeout_s
        while number not in self._answers:
            if time.monotonic() > end:
                raise Unanswered(f"request {number} of {self.client.name} has no answer after {timeout_s} s")
            self.drive()
        return self._answers.pop(number)

    @staticmethod
    def now_ns() -> int:
        """Return the time that the client is told."""
        return time.monotonic_ns()

    def take(self, number: int) -> Answered | None:
        """Return the answer to a request, if it has come."""
        return self._answers.pop(number, None)

    def write(self, *ops: Op) -> Answered:
        """Write, and wait for the answer."""
        return self.answer(self.client.write(list(ops), time.monotonic_ns()))

    def read(self, *keys: tuple[str, bytes]) -> Answered:
        """Read, and wait for the answer."""
        return self.answer(self.client.read(list(keys), time.monotonic_ns()))

    def until(self, holds: Callable[[], Any], timeout_s: float = 30.0) -> Any:
        """Go on until ``holds`` returns something true, and return it; raise Unanswered."""
        end = time.monotonic() + timeout_s
        while not (found := holds()):
            if time.monotonic() > end:
                raise Unanswered(f"not so within {timeout_s} s")
            self.drive()
        return found

    def close(self) -> None:
        """Let go of the socket."""
        self.peers.close()


class ShardProcess:
    """A shard of one member in a process of its own. ``prefix``: a command that runs it, such as a tracer."""

    def __init__(self, name: str, directory: str, durability: str, *, prefix: Sequence[str] = ()) -> None:
        endpoint = ipc_endpoint(directory, name + ".sock")
        self.shard = Shard(1, [(name, endpoint)])
        members = f'[["{name}", "{endpoint}"]]'
        arguments = [name, endpoint, f"{directory}/{name}", members, durability]
        self.process = subprocess.Popen([*prefix, sys.executable, "-c", SERVE, *arguments], text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)

    def has_ended(self) -> bool:
        """Whether it lives no more."""
        return self.process.poll() is not None

    def stop(self) -> str:
        """End it at once, if it has not ended; return how it ended by itself: its last words, or its exit code."""
        ended = self.process.poll()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        _, errors = self.process.communicate()
        return "" if ended is None else (errors.strip().splitlines() or [f"exit code {ended}"])[-1]
