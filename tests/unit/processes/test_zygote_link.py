"""The node hears of every worker that it ordered, whatever becomes of the zygote."""

from __future__ import annotations

import json
import os
import socket

import pytest

from meshray.processes.node_events import LinesWritten, WorkerExited, WorkerForked, WorkerForkFailed
from meshray.processes.worker_logs import WorkerLogs
from meshray.processes.zygote_link import ZygoteLink


@pytest.fixture
def pair(tmp_path):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.settimeout(10.0)
    link = ZygoteLink(ours, WorkerLogs(str(tmp_path)))
    yield link, theirs, tmp_path
    link.close()
    theirs.close()


def said(theirs):
    return json.loads(theirs.recv(4096))


def say(theirs, **fact):
    theirs.send(json.dumps(fact).encode())


def test_orders_and_news(pair):
    link, theirs, directory = pair
    assert link.fork("w") == []
    assert said(theirs) == {"fork": "w"}
    (directory / "w.err").write_text("last words\n")
    say(theirs, started="w", pid=77)
    say(theirs, exited="w", pid=77, code=3, signal=0)
    assert link.read() == [WorkerForked("w", 77), LinesWritten("w", "err", ["last words"]),
                           WorkerExited("w", 77, 3, 0, "last words")]


def test_a_dead_zygote_takes_its_workers_and_orders_along(pair):
    link, theirs, _ = pair
    for name in ("running", "ordered"):
        link.fork(name)
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    say(theirs, started="running", pid=child)
    theirs.close()
    events = link.read()
    assert [type(event) for event in events] == [WorkerForked, WorkerForkFailed, WorkerExited]
    assert (events[1].name, events[2].name, events[2].signal) == ("ordered", "running", 9)
    assert link.fileno() == -1
    assert [event.name for event in link.fork("later")] == ["later"]


def test_a_new_zygote_gets_the_next_orders(pair):
    link, theirs, _ = pair
    theirs.close()
    link.read()
    events, new = link.reconnect()
    with new:
        assert events == []
        assert link.fork("w") == []
        assert said(new) == {"fork": "w"}
