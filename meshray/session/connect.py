"""Joining a cluster: from an address to a session.

*Shell (zmq, clock).* Runs in drivers and workers.

1. A session exists only when its node has answered: a failure to join is an exception that says what was tried.
2. What others send before the node's answer is there is kept for the session: a worker's first tasks come by another
   connection, and may be faster.
3. The process's own socket lies in the node's run directory, so whoever may open that may talk to us, and nobody else.
"""

from __future__ import annotations

import os
import time

from meshray import config, errors
from meshray.ids import process_name
from meshray.messages.node import Register, Registered, RegisterRefused
from meshray.session.programs import python_path
from meshray.session.session import Session
from meshray.transport.behind_node import BehindNode
from meshray.transport.codec import decode, encode
from meshray.transport.endpoints import NODE_PROCESS, Via
from meshray.transport.sockets import Peers, SessionWire, process_endpoint


def join(endpoint: str, *, kind: str, namespace: str = "", entrypoint: str = "",
         name: str = "", token: str = "") -> Session:
    """Register at the node that listens at ``endpoint`` (ipc); return the session. Raise ClusterNotFoundError."""
    name = name or process_name(kind, os.urandom(8))
    if not endpoint.startswith("ipc://"):
        raise errors.ClusterNotFoundError(f"{endpoint!r} is not an address of a node: it starts with ipc://")
    run_dir = os.path.dirname(endpoint.removeprefix("ipc://"))
    if not os.path.isdir(run_dir):
        raise errors.ClusterNotFoundError(f"there is no node at {endpoint}: {run_dir} does not exist: "
                                          "see meshray status")
    peers = Peers(name, process_endpoint(run_dir, name))
    try:
        registered, early = _register(peers, endpoint, Register(
            name, kind, os.getpid(), peers.endpoint, "", namespace, entrypoint, token,
            python_path() if kind == "driver" else ()))
        wire: SessionWire = peers
        if registered.network:
            wire = behind = BehindNode(peers, run_dir=run_dir, own=(registered.node, registered.node_name),
                                       endpoint=str(Via(registered.node, name)))
            early = behind.unwrap(early)
        return Session(wire, registered, kind=kind, early=early)
    except BaseException:
        peers.close()
        raise


def _register(peers: Peers, endpoint: str, request: Register) -> tuple[Registered, list[list[bytes]]]:
    early: list[list[bytes]] = []
    route = peers.connect(NODE_PROCESS, endpoint)
    frame = encode(request)
    started_ns = time.monotonic_ns()
    deadline_ns = started_ns + config.REGISTER_TIMEOUT_NS
    repeat_ns = started_ns
    while (now_ns := time.monotonic_ns()) < deadline_ns:
        if now_ns >= repeat_ns:
            peers.send(route, frame)
            repeat_ns = now_ns + config.SECOND_NS
        peers.wait(200)
        for parts in peers.receive(1):
            message = decode(parts[1])
            if isinstance(message, Registered):
                return message, early
            if isinstance(message, RegisterRefused):
                raise errors.ClusterNotFoundError(f"the node at {endpoint} refused this process: {message.reason}")
            early.append(parts)
    raise errors.ClusterNotFoundError(
        f"no answer from {endpoint} within {config.REGISTER_TIMEOUT_NS // config.SECOND_NS} s: is the cluster running? "
        "See meshray status, or start one with meshray up")
