"""Beginning and end of an embedded cluster: twice, again, beside another, after a crash, in a bad place."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

import meshray

from .support import (
    Journal,
    abandoned,
    open_descriptors,
    processes_of,
    run_script,
    shared_memory,
    sockets_under,
    start_script,
    wait_until,
)


@meshray.remote
def identity(x):
    return x


def test_init_twice(fresh):
    fresh()
    with pytest.raises(RuntimeError, match="init"):
        meshray.init(num_cpus=2)
    meshray.init(num_cpus=2, ignore_reinit_error=True)
    assert meshray.get(identity.remote(1)) == 1


def test_shutdown_and_init_again(fresh):
    for cpus in (1, 2, 1):
        fresh(num_cpus=cpus)
        assert meshray.is_initialized()
        assert meshray.cluster_resources()["CPU"] == cpus
        assert meshray.get(identity.remote(cpus)) == cpus
        meshray.shutdown()
        assert not meshray.is_initialized()
    meshray.shutdown()


def test_nothing_is_left_of_the_driver_s_descriptors(fresh, root):
    fresh()
    meshray.get(identity.remote(1))
    meshray.shutdown()
    before = open_descriptors(root)
    for _ in range(3):
        fresh()
        meshray.get([identity.remote(bytes(300_000)) for _ in range(3)])
        meshray.shutdown()
    assert len(open_descriptors(root)) <= len(before)


def test_init_is_a_context_manager(root):
    with meshray.init(num_cpus=1):
        assert meshray.get(identity.remote(2)) == 2
    assert not meshray.is_initialized()


def test_refs_and_handles_of_an_ended_session_are_refused(fresh):
    fresh()
    ref = identity.options(resources={"nobody_has_it": 1}).remote(1)
    earlier_actor = meshray.remote(type("A", (), {"ping": lambda self: 1})).remote()
    meshray.get(earlier_actor.ping.remote())
    meshray.shutdown()
    fresh()
    with pytest.raises((ValueError, meshray.exceptions.MeshrayError)):
        meshray.get(ref, timeout=5)
    with pytest.raises((ValueError, meshray.exceptions.MeshrayError)):
        meshray.get(earlier_actor.ping.remote(), timeout=5)
    assert meshray.get(identity.remote(2)) == 2


def test_functions_survive_a_new_session(fresh):
    for _ in range(2):
        fresh()
        assert meshray.get(identity.remote(3)) == 3
        meshray.shutdown()


def test_shutdown_with_work_in_progress(fresh, tmp_path):
    journal = Journal(tmp_path / "journal")

    @meshray.remote
    def block():
        journal.write(os.getpid())
        signal.pause()

    fresh()
    refs = [block.remote() for _ in range(10)]
    journal.wait_for(2)
    meshray.shutdown()
    assert len(refs) == 10


def test_resources_of_init(fresh):
    fresh(num_cpus=3, resources={"a": 2})
    assert meshray.cluster_resources()["a"] == 2
    assert meshray.cluster_resources()["CPU"] == 3


@pytest.mark.parametrize("options", [{"num_cpus": -1}, {"resources": {"CPU": 2}}, {"num_cpuz": 1},
                                     {"object_store_memory": 5}], ids=str)
def test_bad_options_of_init(root, options):
    with pytest.raises((TypeError, ValueError, RuntimeError, AssertionError), match=next(iter(options)) + "|CPU"):
        meshray.init(**options)
    assert not meshray.is_initialized()


def test_address_nobody_has(root):
    with pytest.raises((ConnectionError, ValueError, RuntimeError)):
        meshray.init(address="auto")
    assert not meshray.is_initialized()


SECOND = """
    import sys
    import meshray

    meshray.init(num_cpus=1, resources={"second": 1}, address="local")
    resources = meshray.cluster_resources()
    assert resources["CPU"] == 1 and "first" not in resources, resources
    f = meshray.remote(resources={"second": 1})(lambda: "from the second")
    print(meshray.get(f.remote()))
    """


def test_second_cluster_on_the_same_machine(fresh, tmp_path):
    fresh(resources={"first": 1})
    assert "from the second" in run_script(SECOND, tmp_path)
    assert "second" not in meshray.cluster_resources()
    assert meshray.get(identity.options(resources={"first": 1}).remote(1)) == 1


BLOCKS = """
    import os, sys
    import meshray

    @meshray.remote
    def block(path):
        with open(path, "a") as file:
            file.write(f"{os.getpid()}\\n")
        import signal
        signal.pause()

    meshray.init(num_cpus=2)
    ref = meshray.put(bytes(1_000_000))
    refs = [block.remote(sys.argv[1]) for _ in range(2)]
    meshray.get(refs)
    """


def test_killed_driver_takes_its_embedded_cluster_along(root, tmp_path):
    memory, journal = shared_memory(), Journal(tmp_path / "pids")
    script = start_script(BLOCKS, tmp_path, journal.path)
    journal.wait_for(2)
    os.kill(script.pid, signal.SIGKILL)
    script.communicate()
    wait_until(lambda: not processes_of(root), 5, what=f"no process: {processes_of(root)}")
    wait_until(lambda: not sockets_under(root) and not abandoned(shared_memory() - memory), 5)


def test_stale_directory_of_a_cluster_that_was_killed_whole(root, fresh, tmp_path):
    memory, journal = shared_memory(), Journal(tmp_path / "pids")
    script = start_script(BLOCKS, tmp_path, journal.path)
    journal.wait_for(2)
    for pid in [*processes_of(root), script.pid]:
        os.kill(pid, signal.SIGKILL)
    script.communicate()
    wait_until(lambda: not processes_of(root))
    fresh()
    assert meshray.get(identity.remote(1)) == 1
    # The dead cluster's shared memory and sockets are cleared away by the next start.
    wait_until(lambda: not abandoned(shared_memory() - memory))


def test_ctrl_c_in_get_leaves_the_driver_and_cancels_the_task(root, tmp_path):
    journal = Journal(tmp_path / "pids")
    script = start_script("""
        import os, sys
        import meshray

        @meshray.remote
        def block(path):
            with open(path, "a") as file:
                file.write(f"{os.getpid()}\\n")
            import signal
            signal.pause()

        @meshray.remote
        def after():
            return "the CPU is free again"

        meshray.init(num_cpus=1)
        try:
            meshray.get(block.remote(sys.argv[1]))
        except KeyboardInterrupt:
            print("interrupted")
        print(meshray.get(after.remote(), timeout=30))
        """, tmp_path, journal.path)
    journal.wait_for(1)
    # The terminal sends Ctrl-C to the whole foreground group; the cluster's processes must not be in it.
    os.killpg(script.pid, signal.SIGINT)
    output = script.communicate(timeout=40)[0]
    assert script.returncode == 0, output
    assert "interrupted" in output
    assert "free again" in output


@pytest.mark.parametrize("place", ["under a file", "/proc/meshray"])
def test_run_root_that_cannot_be_written(root, tmp_path, monkeypatch, place):
    if place == "under a file":
        (tmp_path / "file").touch()
        place = str(tmp_path / "file" / "run")
    with monkeypatch.context() as patch:
        patch.setenv("MESHRAY_RUN_ROOT", place)
        with pytest.raises((OSError, meshray.exceptions.MeshrayError), match=place):
            meshray.init(num_cpus=1)
    assert not meshray.is_initialized()
    meshray.init(num_cpus=1)
    assert meshray.get(identity.remote(1)) == 1


def test_run_root_too_long_for_a_socket(root, tmp_path, monkeypatch):
    place = tmp_path / ("long" * 30)
    with monkeypatch.context() as patch:
        patch.setenv("MESHRAY_RUN_ROOT", str(place))
        with pytest.raises((OSError, ValueError, meshray.exceptions.MeshrayError), match=r"long|107"):
            meshray.init(num_cpus=1)
    assert not meshray.is_initialized()


def test_run_directory_is_private(fresh, root):
    fresh()
    for path in (Path(root), *Path(root).rglob("*")):
        if path.is_dir() and path != Path(root):
            assert path.stat().st_mode & 0o077 == 0, path
    for file in shared_memory():
        assert Path(file).stat().st_mode & 0o077 == 0, file


def test_nothing_listens_on_the_network(fresh, root):
    fresh()
    meshray.get(identity.remote(1))
    for pid in [os.getpid(), *processes_of(root)]:
        listening = [c for c in psutil.Process(pid).net_connections("inet") if c.status == psutil.CONN_LISTEN]
        assert not listening, (pid, listening)
