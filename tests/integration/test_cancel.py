"""cancel: queued, running, forced, recursive, actor calls."""

from __future__ import annotations

import asyncio
import os

import pytest

import meshray

from .support import Gate, Journal, wait_gone, wait_until

pytestmark = pytest.mark.usefixtures("meshray_local")


@pytest.fixture
def gate(tmp_path):
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.open()


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "journal")


@meshray.remote
def identity(x):
    return x


def blocker(gate, journal):
    @meshray.remote
    def block(label):
        journal.write(f"{label} {os.getpid()}")
        gate.wait()
        return label

    return block


def assert_cancelled(ref):
    with pytest.raises(meshray.exceptions.TaskCancelledError):
        meshray.get(ref, timeout=30)


def test_running_task_is_interrupted(gate, journal):
    ref = blocker(gate, journal).remote("one")
    journal.wait_for(1)
    meshray.cancel(ref)
    assert_cancelled(ref)
    assert meshray.get(identity.remote(1), timeout=30) == 1


def test_interrupt_arrives_as_keyboard_interrupt(gate, journal):
    @meshray.remote
    def sees():
        journal.write("in")
        try:
            gate.wait()
        except KeyboardInterrupt:
            journal.write("interrupted")
            raise

    ref = sees.remote()
    journal.wait_for(1)
    meshray.cancel(ref)
    assert_cancelled(ref)
    assert journal.wait_for(2) == ["in", "interrupted"]


def test_queued_task_never_runs(gate, journal):
    block = blocker(gate, journal).options(num_cpus=2)
    running = block.remote("running")
    journal.wait_for(1)
    queued = block.remote("queued")
    meshray.cancel(queued)
    assert_cancelled(queued)
    gate.open()
    assert meshray.get(running) == "running"
    assert [line.split()[0] for line in journal.lines()] == ["running"]


def test_task_waiting_for_its_inputs(gate, journal):
    source = blocker(gate, journal).remote("source")
    journal.wait_for(1)
    dependent = identity.remote(source)
    meshray.cancel(dependent)
    assert_cancelled(dependent)
    gate.open()
    assert meshray.get(source) == "source"


def test_dependents_of_a_cancelled_task_fail_too(gate, journal):
    source = blocker(gate, journal).remote("source")
    dependent = identity.remote(source)
    journal.wait_for(1)
    meshray.cancel(source)
    with pytest.raises(meshray.exceptions.MeshrayError):
        meshray.get(dependent, timeout=30)


def test_finished_task_keeps_its_result():
    ref = identity.remote("kept")
    meshray.get(ref)
    meshray.cancel(ref)
    meshray.cancel(ref, force=True)
    assert meshray.get(ref) == "kept"


def test_force_ends_the_process_and_nothing_is_retried(gate, journal):
    @meshray.remote(max_retries=3)
    def stubborn():
        journal.write(os.getpid())
        while True:
            try:
                gate.wait()
                break
            except KeyboardInterrupt:
                continue

    ref = stubborn.remote()
    (pid,) = journal.wait_for(1)
    meshray.cancel(ref, force=True)
    with pytest.raises((meshray.exceptions.WorkerCrashedError, meshray.exceptions.TaskCancelledError)):
        meshray.get(ref, timeout=30)
    wait_gone(int(pid))
    assert meshray.get(identity.remote(2), timeout=30) == 2
    assert len(journal.lines()) == 1


def test_children_are_cancelled_with_their_parent(gate, journal):
    block = blocker(gate, journal)

    @meshray.remote
    def parent():
        journal.write("parent 0")
        return meshray.get(block.remote("child"))

    ref = parent.remote()
    journal.wait_for(2)
    meshray.cancel(ref, recursive=True)
    assert_cancelled(ref)
    # Both CPUs are free again only when the child has ended as well.
    assert meshray.get(identity.options(num_cpus=2).remote(3), timeout=30) == 3


def test_children_live_on_without_recursion(gate, journal):
    @meshray.remote
    def child():
        journal.write("child")
        gate.wait()
        journal.write("child done")

    @meshray.remote
    def parent():
        return meshray.get(child.remote())

    ref = parent.remote()
    journal.wait_for(1)
    meshray.cancel(ref, recursive=False)
    assert_cancelled(ref)
    gate.open()
    assert journal.wait_for(2) == ["child", "child done"]


def test_call_of_an_async_actor(journal):
    @meshray.remote
    class Waits:
        async def forever(self):
            journal.write("in")
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                journal.write("cancelled")
                raise

        async def ping(self):
            return "pong"

    actor = Waits.remote()
    ref = actor.forever.remote()
    journal.wait_for(1)
    meshray.cancel(ref)
    assert_cancelled(ref)
    assert journal.wait_for(2) == ["in", "cancelled"]
    assert meshray.get(actor.ping.remote()) == "pong"


def test_queued_call_of_a_plain_actor(gate, journal):
    @meshray.remote
    class Plain:
        def block(self):
            journal.write("in")
            gate.wait()

        def note(self, text):
            journal.write(text)

    actor = Plain.remote()
    running = actor.block.remote()
    journal.wait_for(1)
    queued, later = actor.note.remote("queued"), actor.note.remote("later")
    meshray.cancel(queued)
    gate.open()
    meshray.get([running, later], timeout=30)
    assert_cancelled(queued)
    assert journal.lines() == ["in", "later"]


def test_force_on_an_actor_call_is_refused():
    @meshray.remote
    class Plain:
        def ping(self):
            return 1

    actor = Plain.remote()
    with pytest.raises(ValueError, match="force"):
        meshray.cancel(actor.ping.remote(), force=True)
    assert meshray.get(actor.ping.remote()) == 1


def test_cancel_wants_a_ref():
    with pytest.raises(TypeError):
        meshray.cancel(5)


def test_many_at_once(gate, journal):
    block = blocker(gate, journal)
    refs = [block.remote(i) for i in range(50)]
    journal.wait_for(2)
    for ref in refs:
        meshray.cancel(ref)
    for ref in refs:
        assert_cancelled(ref)
    assert wait_until(lambda: meshray.get(identity.remote(1), timeout=30)) == 1
