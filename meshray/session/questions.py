"""Questions to the cluster: what ``nodes()``, ``cluster_resources()`` and ``timeline()`` ask.

*Shell (blocks the asking thread).* Runs in drivers and workers.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from meshray import config, errors
from meshray.messages.state import DescribeCluster, Description

if TYPE_CHECKING:
    from meshray.session.session import Session


class Questions:
    """Open questions of one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._cookie = 0
        self._answers: dict[int, list[bytes]] = {}

    def ask(self, topics: list[str], timeout_s: float = 10.0) -> dict[str, list[dict[str, Any]]]:
        """Ask the node for descriptions of the whole cluster (see ``messages.state``). Any thread."""
        answers: list[bytes] = []
        self._cookie += 1
        cookie = self._cookie
        self._answers[cookie] = answers
        question = DescribeCluster(cookie, topics)
        self._session.call(lambda: self._session.to_node(question))
        deadline_ns = time.monotonic_ns() + int(timeout_s * config.SECOND_NS)
        if not self._session.driving.until(lambda: bool(answers), deadline_ns):
            raise errors.MeshraySystemError(f"the node did not answer within {timeout_s:.0f} s: see meshray status")
        return msgspec.json.decode(answers[0], type=dict[str, list[dict[str, Any]]])

    def answered(self, message: Description) -> None:
        """The node answers. (leader)"""
        answers = self._answers.pop(message.cookie, None)
        if answers is not None:
            answers.append(message.rows)
