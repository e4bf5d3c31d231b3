"""A run root of its own for each test, and processes that are surely known."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator

import pytest


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    path = tempfile.mkdtemp(prefix="mr", dir="/tmp")
    monkeypatch.setenv("MESHRAY_RUN_ROOT", path)
    monkeypatch.delenv("MESHRAY_ADDRESS", raising=False)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def child() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start processes that do nothing until they are ended."""
    started = []

    def start(*command: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command or ("cat",), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   start_new_session=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()
