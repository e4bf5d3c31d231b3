"""A tool's connection to a running node: ask, and get an answer or a clear error before a deadline.

*Shell (zmq).* Runs in the command line, and in drivers that end their cluster.

1. Every question has a deadline; a node that dies meanwhile is noticed at once, not at the deadline.
2. The tool's own socket lies beside the node's and is gone after ``close``.
3. One question at a time; answers to earlier ones that came too late are ignored.
"""

from __future__ import annotations

import os
import socket
import time
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from meshray import config
from meshray.errors import ClusterNotFoundError, NodeDiedError
from meshray.ids import process_name
from meshray.messages.base import Message
from meshray.messages.state import ClusterStopping, DescribeCluster, Description, StopCluster
from meshray.processes import run_dirs, state_dirs
from meshray.transport.caller import Caller
from meshray.transport.codec import decode, encode
from meshray.transport.curve import KeyPair
from meshray.transport.endpoints import NODE_PROCESS, Tcp, parse
from meshray.transport.sockets import Peers

ANSWER_TIMEOUT_S = 10.0
_LIVENESS_NS = 200 * config.MILLISECOND_NS

Answer = TypeVar("Answer", bound=Message)


class NodeClient:
    """A dialog with the node at ``endpoint``. Use it in one thread; close it, or use it in ``with``."""

    def __init__(self, endpoint: str, *, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        """Connect. Raise ClusterNotFoundError when no process listens at ``endpoint``."""
        self.endpoint = endpoint
        self.timeout_s = timeout_s
        self.missing: list[str] = []
        self._cookie = 0
        if not is_listening(endpoint):
            raise ClusterNotFoundError(f"no node answers at {endpoint}: start a cluster with meshray up FILE, or give "
                                       "another address")
        name = process_name("tool", os.urandom(6))
        self._peers = _call(name, endpoint)
        self._route = self._peers.connect(NODE_PROCESS, endpoint)

    def ask(self, message: Message, answer_type: type[Answer], *, timeout_s: float | None = None) -> Answer:
        """Send ``message`` and return the answer of that type (and, if they have one, the same ``cookie``).

        Raise NodeDiedError when the node is gone, or silent for ``timeout_s``.
        """
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        cookie = getattr(message, "cookie", None)
        kind = type(message).__name__
        deadline_ns = time.monotonic_ns() + int(timeout_s * config.SECOND_NS)
        sent = self._peers.send(self._route, encode(message))
        while sent:
            for parts in self._peers.receive(config.TURN_MESSAGES_MAX):
                answer = decode(parts[1])
                if isinstance(answer, answer_type) and getattr(answer, "cookie", None) == cookie:
                    return answer
            left_ns = deadline_ns - time.monotonic_ns()
            if left_ns <= 0:
                raise NodeDiedError(f"the node at {self.endpoint} did not answer {kind} within {timeout_s:g} s: it may "
                                    "be overloaded or frozen; see meshray logs, or end it with meshray down")
            if not self._peers.wait(min(left_ns, _LIVENESS_NS) // config.MILLISECOND_NS + 1):
                sent = is_listening(self.endpoint)
        raise NodeDiedError(f"the node at {self.endpoint} died before it answered {kind}: see meshray logs")

    def describe(self, topics: list[str], *, limit: int = 10_000) -> dict[str, list[dict[str, Any]]]:
        """Return the rows of each topic (keys: see ``cli/rows.py``); ``missing`` then names who did not answer."""
        self._cookie += 1
        answer = self.ask(DescribeCluster(self._cookie, topics, limit), Description)
        self.missing = answer.missing
        rows: dict[str, list[dict[str, Any]]] = msgspec.json.decode(answer.rows)
        return {topic: rows.get(topic, []) for topic in topics}

    def stop(self, reason: str = "", *, timeout_s: float | None = None) -> list[int]:
        """Ask the node to end with everything on it; return the pids of the processes that will be gone."""
        self._cookie += 1
        return self.ask(StopCluster(self._cookie, reason), ClusterStopping, timeout_s=timeout_s).pids

    def close(self) -> None:
        """End the dialog and remove the tool's socket. Closing twice is a no-op."""
        self._peers.close()

    def __enter__(self) -> NodeClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self.close()


def _call(name: str, endpoint: str) -> Peers | Caller:
    """Return a connection to the node at ``endpoint``. Raise KeyFileError, or ClusterNotFoundError if it is none."""
    if endpoint.startswith("ipc://"):
        return Peers(name, run_dirs.endpoint(os.path.dirname(_path(endpoint)), name))
    try:
        node = parse(endpoint)
    except ValueError as error:
        raise ClusterNotFoundError(str(error)) from None
    if not isinstance(node, Tcp):
        raise ClusterNotFoundError(f"{endpoint!r} is not an address of a node: it is ipc://PATH or tcp://HOST:PORT#KEY")
    return Caller(name, node, KeyPair.load(state_dirs.find_key_file()))


def is_listening(endpoint: str) -> bool:
    """Whether a process listens at ``endpoint``; assumed of endpoints outside this machine."""
    if not endpoint.startswith("ipc://"):
        return True
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # A frozen process's full backlog must not hold us: that it has one is answer enough.
        probe.setblocking(False)
        try:
            probe.connect(_path(endpoint))
        except BlockingIOError:
            return True
        except OSError:
            return False
    return True


def _path(endpoint: str) -> str:
    return endpoint.removeprefix("ipc://")
