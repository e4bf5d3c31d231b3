"""Fixtures of the tests that run real processes, and a time limit for each of those tests.

*Shell (signals, processes).* Runs in the pytest process. Unit and simulation tests use nothing of this.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

LIMIT_S = 60
REAL_PROCESSES = {"integration", "chaos"}


class TestTimedOut(BaseException):
    """The test ran into its limit. Not an Exception, so that no handler in the code under test takes it."""

    __test__ = False


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"limit_s(seconds): time limit of this test instead of {LIMIT_S} s")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[Any]:
    if not REAL_PROCESSES & set(Path(str(item.path)).parts):
        return (yield)
    marker = item.get_closest_marker("limit_s")
    limit_s = int(marker.args[0]) if marker else LIMIT_S

    def expire(number: int, frame: FrameType | None) -> None:
        faulthandler.dump_traceback(sys.__stderr__)
        raise TestTimedOut(f"{item.nodeid} ran longer than {limit_s} s")

    previous = signal.signal(signal.SIGALRM, expire)
    signal.alarm(limit_s)
    # The alarm needs the interpreter; this one ends a process whose main thread never comes back to it.
    faulthandler.dump_traceback_later(3 * limit_s, exit=True, file=sys.__stderr__)
    try:
        return (yield)
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, previous)


@pytest.fixture(scope="session")
def _shared_root() -> Iterator[list[Any]]:
    """The shared cluster while it runs: at most one item, the way to end it."""
    running: list[Any] = []
    yield running
    if running:
        running.pop().close()


@pytest.fixture
def meshray_local(_shared_root: list[Any]) -> None:
    """An embedded cluster with two CPUs that tests share; a test that leaves it unusable must take ``fresh``."""
    from integration.support import run_root

    import meshray

    if _shared_root and not meshray.is_initialized():
        _shared_root.pop().close()
    if not _shared_root:
        stack = ExitStack()
        stack.enter_context(run_root())
        _shared_root.append(stack)
        meshray.init(num_cpus=2, namespace="tests", object_store_memory=512 * 2**20)


@pytest.fixture
def root(_shared_root: list[Any]) -> Iterator[str]:
    """A run root of the test's own, after the shared cluster has ended; afterwards nothing may be left in it."""
    from integration.support import run_root

    if _shared_root:
        _shared_root.pop().close()
    with run_root() as path:
        yield path


@pytest.fixture
def fresh(root: str) -> Callable[..., None]:
    """Start an embedded cluster of the test's own: ``fresh(num_cpus=2, ...)`` takes what ``init`` takes."""
    import meshray

    def start(**options: Any) -> None:
        meshray.init(**{"num_cpus": 2, "namespace": "tests", "object_store_memory": 256 * 2**20, **options})

    return start


@pytest.fixture
def two_nodes(root: str, tmp_path: Path) -> Iterator[Any]:
    """A running two-node cluster with the driver joined; nodes ``left`` and ``right``, two CPUs each."""
    from integration.support import TwoNodes

    import meshray

    cluster = TwoNodes(tmp_path)
    cluster.up()
    try:
        cluster.join()
        yield cluster
    finally:
        meshray.shutdown()
        cluster.down()
        assert os.path.isdir(root)
