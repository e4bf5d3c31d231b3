"""Messages of the state interface: descriptions for ``status`` and ``list``, logs, and the timeline.

*Pure.*

Dialogs::

    tool -> node         DescribeCluster         -> Description
    node -> session      DescribeSession         -> Description     in-flight and recent tasks of that process
    tool -> node         StopCluster             -> ClusterStopping
    node -> driver       LogLines
    node -> node         FlushLines              -> LinesFlushed, after LogLines
"""

from __future__ import annotations

from meshray.messages.base import Message


class DescribeCluster(Message, tag=170):
    """tool -> node. ``topics``: nodes, workers, actors, tasks, objects, shards, events, resources, timeline. The node
    gathers from its peers and sessions. Answered by Description with the same ``cookie``."""

    cookie: int
    topics: list[str]
    limit: int = 10_000
    forwarded: bool = False


class DescribeSession(Message, tag=171):
    """node -> session. Describe yourself. Answered by Description."""

    cookie: int
    topics: list[str]
    limit: int = 10_000


class Description(Message, tag=172):
    """Answer: ``rows`` is JSON, an object of topic -> list of rows; ``missing`` names who did not answer in time."""

    cookie: int
    rows: bytes
    missing: list[str]


class StopCluster(Message, tag=173):
    """tool -> node. End this node with everything on it. Answered by ClusterStopping, then the process goes."""

    cookie: int
    reason: str = ""


class ClusterStopping(Message, tag=174):
    """node -> tool. Accepted; ``pids`` are the processes that will be gone."""

    cookie: int
    pids: list[int]


class LogLines(Message, tag=175):
    """node -> driver, or node -> the node of the driver. Lines a worker wrote for ``job``. ``stream``: out or err."""

    name: str
    pid: int
    node: str
    stream: str
    lines: list[str]
    job: str = ""


class Notice(Message, tag=176):
    """node -> driver. Something the user should know, once (for example a demand that no node can satisfy)."""

    level: str
    text: str


class FlushLines(Message, tag=177):
    """node of a driver that leaves -> every other node. Read what your workers have written up to now, and send what is
    for the driver. ``node`` asks. Answered by LinesFlushed behind the LogLines. Idempotent."""

    driver: str
    node: str


class LinesFlushed(Message, tag=178):
    """node -> node of a driver that leaves. ``node`` has sent all that its workers had written for ``driver``."""

    driver: str
    node: str


MESSAGES = (DescribeCluster, DescribeSession, Description, StopCluster, ClusterStopping, LogLines, Notice, FlushLines,
            LinesFlushed)
