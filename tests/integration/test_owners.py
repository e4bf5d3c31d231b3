"""What others still need when its owner ends: read in time if it ended in good order, an error at once if it died."""

from __future__ import annotations

import os
import signal
import threading

import numpy
import pytest

import meshray
from meshray.exceptions import OwnerDiedError, RayActorError

from .support import DEADLINE_S, Gate, is_alive, wait_gone, wait_until

pytestmark = pytest.mark.usefixtures("meshray_local")
LARGE = 2**20


class Owner:
    def make(self):
        return os.getpid(), [meshray.put("small"), meshray.put(numpy.ones(LARGE, dtype=numpy.uint8))]

    def leave(self):
        meshray.actor.exit_actor()

    def begin(self, gate):
        return os.getpid(), [wait_at.remote(gate)]


class AsyncOwner(Owner):
    async def make(self):
        return super().make()

    async def leave(self):
        meshray.actor.exit_actor()


@meshray.remote(num_cpus=0)
def wait_at(gate):
    gate.wait()


def end(actor, kind):
    """Have an actor exit. While another one starts the process would have gone, if it did not stay."""
    with pytest.raises(RayActorError):
        meshray.get(actor.leave.remote(), timeout=30)
    with pytest.raises(RayActorError):
        meshray.get(actor.make.remote(), timeout=30)
    meshray.get(kind.remote().make.remote(), timeout=30)


def check_read_and_dropped(pid, box):
    """``box`` can be read although its owner has ended, and the process goes when nobody needs it."""
    assert is_alive(pid)
    assert meshray.get(box[0], timeout=30) == "small"
    assert int(meshray.get(box[1], timeout=30).sum()) == LARGE
    box.clear()
    wait_gone(pid, 5)


@pytest.mark.parametrize("kind", [Owner, AsyncOwner])
def test_an_actor_that_exits_stays_while_others_need_what_it_owns(kind):
    remote = meshray.remote(num_cpus=0)(kind)
    actor = remote.remote()
    pid, box = meshray.get(actor.make.remote(), timeout=30)
    end(actor, remote)
    check_read_and_dropped(pid, box)


def test_an_actor_without_handles_stays_too():
    actor = meshray.remote(num_cpus=0)(Owner).options(name="owner").remote()
    pid, box = meshray.get(actor.make.remote(), timeout=30)
    del actor

    def is_gone():
        try:
            return not meshray.get_actor("owner")
        except ValueError:
            return True

    wait_until(is_gone, what="the actor has ended")
    check_read_and_dropped(pid, box)


def test_a_worker_that_has_run_its_last_task_stays_too():
    @meshray.remote(max_calls=1)
    def make():
        return os.getpid(), [meshray.put("small"), meshray.put(numpy.ones(LARGE, dtype=numpy.uint8))]

    pid, box = meshray.get(make.remote(), timeout=30)
    other, _ = meshray.get(make.remote(), timeout=30)
    assert other != pid
    check_read_and_dropped(pid, box)


def test_who_waits_hears_at_once_that_the_owner_has_died(tmp_path):
    gate = Gate(tmp_path / "gate")
    owner = meshray.remote(num_cpus=0)(Owner).remote()
    pid, (ref,) = meshray.get(owner.begin.remote(gate), timeout=30)
    assert meshray.wait([ref], timeout=0) == ([], [ref])
    future = ref.future()
    heard = []
    waiter = threading.Thread(target=lambda: heard.append(meshray.wait([ref], timeout=10 * DEADLINE_S)))
    waiter.start()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: heard, 5, what="wait() returns")
    waiter.join()
    assert heard == [([ref], [])]
    assert isinstance(future.exception(timeout=5), OwnerDiedError)
    with pytest.raises(OwnerDiedError):
        meshray.get(ref, timeout=5)
    gate.open()
