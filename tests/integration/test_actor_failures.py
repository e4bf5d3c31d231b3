"""Actors that die: kill, exit, crash, constructor errors, restarts and retried calls."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

import meshray

from .support import Gate, Journal, wait_gone, wait_until

pytestmark = pytest.mark.usefixtures("meshray_local")


@meshray.remote
class Fragile:
    def __init__(self):
        self.calls = 0

    def call(self):
        self.calls += 1
        return self.calls

    def pid(self):
        return os.getpid()

    def die(self, number=None):
        if number is None:
            os._exit(17)
        os.kill(os.getpid(), number)

    def leave(self):
        meshray.actor.exit_actor()

    def reconstructed(self):
        return meshray.get_runtime_context().was_current_actor_reconstructed


def value_once_back(call):
    """The call's value, as soon as the actor answers again."""
    def attempt():
        try:
            return meshray.get(call(), timeout=30)
        except meshray.exceptions.RayActorError:
            return None

    return wait_until(attempt)


def test_kill():
    actor = Fragile.remote()
    pid = meshray.get(actor.pid.remote())
    meshray.kill(actor)
    wait_gone(pid)
    with pytest.raises(meshray.exceptions.ActorDiedError):
        meshray.get(actor.call.remote(), timeout=30)


def test_kill_fails_what_runs_and_what_is_queued(tmp_path):
    gate, journal = Gate(tmp_path / "gate"), Journal(tmp_path / "journal")

    @meshray.remote
    class Blocks:
        def block(self):
            journal.write("in")
            gate.wait()

    actor = Blocks.remote()
    refs = [actor.block.remote() for _ in range(3)]
    journal.wait_for(1)
    meshray.kill(actor)
    for ref in refs:
        with pytest.raises(meshray.exceptions.RayActorError):
            meshray.get(ref, timeout=30)
    assert journal.lines() == ["in"]


def test_kill_wants_an_actor():
    with pytest.raises((TypeError, ValueError), match="actor"):
        meshray.kill(meshray.put(1))


def test_kill_from_a_task():
    @meshray.remote
    def killer(handle):
        meshray.kill(handle)

    actor = Fragile.remote()
    pid = meshray.get(actor.pid.remote())
    meshray.get(killer.remote(actor))
    wait_gone(pid)


def test_crash_is_actor_died_and_names_process_and_cause():
    actor = Fragile.remote()
    pid = meshray.get(actor.pid.remote())
    with pytest.raises(meshray.exceptions.ActorDiedError) as caught:
        meshray.get(actor.die.remote(), timeout=30)
    assert str(pid) in str(caught.value)
    with pytest.raises(meshray.exceptions.ActorDiedError):
        meshray.get(actor.call.remote(), timeout=30)


def test_signal_and_last_words_are_in_the_message():
    @meshray.remote
    class Speaks:
        def die(self):
            os.write(2, b"these were my last words\n")
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(meshray.exceptions.ActorDiedError, match=r"(?s)SIGKILL.*last words"):
        meshray.get(Speaks.remote().die.remote(), timeout=30)


def test_restart_starts_from_the_constructor():
    actor = Fragile.options(max_restarts=1).remote()
    assert [meshray.get(actor.call.remote()) for _ in range(2)] == [1, 2]
    assert meshray.get(actor.reconstructed.remote()) is False
    pid = meshray.get(actor.pid.remote())
    with pytest.raises(meshray.exceptions.RayActorError):
        meshray.get(actor.die.remote(), timeout=30)
    assert value_once_back(actor.call.remote) == 1
    assert meshray.get(actor.reconstructed.remote()) is True
    assert meshray.get(actor.pid.remote()) != pid
    with pytest.raises(meshray.exceptions.RayActorError):
        meshray.get(actor.die.remote(signal.SIGKILL), timeout=30)
    with pytest.raises(meshray.exceptions.ActorDiedError):
        meshray.get(actor.call.remote(), timeout=30)


def test_infinite_restarts():
    actor = Fragile.options(max_restarts=-1).remote()
    for _ in range(4):
        with pytest.raises(meshray.exceptions.RayActorError):
            meshray.get(actor.die.remote(signal.SIGKILL), timeout=30)
        assert value_once_back(actor.call.remote) == 1
    meshray.kill(actor)


def test_restarted_actor_keeps_its_name():
    actor = Fragile.options(name="phoenix", max_restarts=1).remote()
    os.kill(meshray.get(actor.pid.remote()), signal.SIGKILL)
    assert value_once_back(lambda: meshray.get_actor("phoenix").call.remote()) == 1
    meshray.kill(actor)


def test_kill_with_restart():
    actor = Fragile.options(max_restarts=1).remote()
    pid = meshray.get(actor.pid.remote())
    meshray.kill(actor, no_restart=False)
    wait_gone(pid)
    assert value_once_back(actor.call.remote) == 1


def test_call_is_retried_on_the_restarted_actor(tmp_path):
    journal = Journal(tmp_path / "attempts")

    @meshray.remote(max_restarts=2, max_task_retries=2)
    class Once:
        def flaky(self):
            journal.write(os.getpid())
            if len(journal.lines()) < 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return "done"

    actor = Once.remote()
    assert meshray.get(actor.flaky.remote(), timeout=50) == "done"
    assert len(set(journal.lines())) == 3


def test_calls_behind_a_crash_are_retried_in_order(tmp_path):
    journal = Journal(tmp_path / "attempts")

    @meshray.remote(max_restarts=1, max_task_retries=1)
    class Log:
        def note(self, i):
            journal.write(i)
            if i == 3 and journal.lines().count("3") == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return i

    log = Log.remote()
    assert meshray.get([log.note.remote(i) for i in range(6)], timeout=50) == list(range(6))
    lines = [int(line) for line in journal.lines()]
    crash = lines.index(3)
    assert lines[:crash] == [0, 1, 2]
    # Calls that had run but not been answered when the process died run again in the new incarnation.
    assert lines[crash + 1:] == list(range(lines[crash + 1], 6))
    assert lines[crash + 1] <= 3


def test_exceptions_of_methods_are_retried_when_asked(tmp_path):
    journal = Journal(tmp_path / "attempts")

    @meshray.remote(max_task_retries=3)
    class Flaky:
        @meshray.method(retry_exceptions=[OSError])
        def flaky(self):
            journal.write("attempt")
            if len(journal.lines()) < 3:
                raise OSError("not yet")
            return "done"

    actor = Flaky.remote()
    assert meshray.get(actor.flaky.remote(), timeout=30) == "done"
    assert len(journal.lines()) == 3


def test_exit_actor_ends_it_for_good():
    actor = Fragile.options(max_restarts=5).remote()
    pid = meshray.get(actor.pid.remote())
    with pytest.raises(meshray.exceptions.RayActorError):
        meshray.get(actor.leave.remote(), timeout=30)
    wait_gone(pid)
    with pytest.raises(meshray.exceptions.ActorDiedError):
        meshray.get(actor.call.remote(), timeout=30)


def test_exit_actor_of_an_async_actor():
    @meshray.remote
    class Leaves:
        async def pid(self):
            return os.getpid()

        async def leave(self):
            meshray.actor.exit_actor()

    actor = Leaves.remote()
    pid = meshray.get(actor.pid.remote())
    with pytest.raises(meshray.exceptions.RayActorError):
        meshray.get(actor.leave.remote(), timeout=30)
    wait_gone(pid)


def test_constructor_error_arrives_at_every_call():
    @meshray.remote
    class Broken:
        def __init__(self):
            raise ValueError("built wrong")

        def call(self):
            return 1

    actor = Broken.remote()
    for _ in range(2):
        with pytest.raises(meshray.exceptions.ActorDiedError, match=r"(?s)ValueError.*built wrong"):
            meshray.get(actor.call.remote(), timeout=30)


def test_constructor_that_kills_its_process():
    @meshray.remote
    class Dies:
        def __init__(self):
            os._exit(3)

        def call(self):
            return 1

    with pytest.raises(meshray.exceptions.ActorDiedError):
        meshray.get(Dies.remote().call.remote(), timeout=30)


def test_constructor_whose_argument_failed():
    @meshray.remote
    def fail():
        raise ValueError("no argument")

    @meshray.remote
    class Wants:
        def __init__(self, x):
            self.x = x

        def call(self):
            return self.x

    with pytest.raises(meshray.exceptions.MeshrayError, match="no argument"):
        meshray.get(Wants.remote(fail.remote()).call.remote(), timeout=30)


def test_death_of_a_creator_ends_its_actors(tmp_path):
    journal = Journal(tmp_path / "pids")

    @meshray.remote
    class Parent:
        def __init__(self):
            self.child = Fragile.remote()
            journal.write(meshray.get(self.child.pid.remote()))

        def die(self):
            os.kill(os.getpid(), signal.SIGKILL)

    parent = Parent.remote()
    parent.die.remote()
    (child,) = journal.wait_for(1)
    wait_gone(int(child))


def test_restarted_actor_makes_new_children():
    @meshray.remote(max_restarts=1, max_task_retries=1)
    class Parent:
        def __init__(self):
            self.child = Fragile.remote()

        def child_pid(self):
            return meshray.get(self.child.pid.remote())

        @meshray.method(max_task_retries=0)
        def die(self):
            os._exit(1)

    parent = Parent.remote()
    first = meshray.get(parent.child_pid.remote(), timeout=30)
    parent.die.remote()
    assert meshray.get(parent.child_pid.remote(), timeout=30) != first
    wait_gone(first)


def test_kill_of_an_actor_that_waits_for_its_place():
    greedy = Fragile.options(num_cpus=2).remote()
    meshray.get(greedy.call.remote(), timeout=30)
    waiting = Fragile.options(num_cpus=2).remote()
    call = waiting.call.remote()
    meshray.kill(waiting)
    with pytest.raises(meshray.exceptions.ActorDiedError):
        meshray.get(call, timeout=30)


def test_exit_of_an_async_actor_ends_its_other_calls():
    @meshray.remote
    class Leaves:
        def __init__(self):
            self.inside = 0

        async def wait(self):
            self.inside += 1
            await asyncio.Event().wait()

        async def count(self):
            return self.inside

        async def leave(self):
            meshray.actor.exit_actor()

    actor = Leaves.remote()
    waiting = actor.wait.remote()
    wait_until(lambda: meshray.get(actor.count.remote(), timeout=30))
    actor.leave.remote()
    with pytest.raises(meshray.exceptions.ActorDiedError):
        meshray.get(waiting, timeout=30)
