"""Run directories: whose they are, what killed clusters left, and what a file system may refuse."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from meshray.errors import ClusterNotFoundError, ClusterStartError
from meshray.node_config import ClusterFile, NodeFile
from meshray.processes import run_dirs
from meshray.processes.process_identity import myself


def node_file(cluster: str, name: str, pid: int) -> NodeFile:
    run_dir = run_dirs.node_dir(cluster, name)
    return NodeFile(cluster=cluster, node_name=name, node=f"node-{name}", pid=pid, pids={},
                    endpoint=run_dirs.endpoint(run_dir, "node"), arena_path=run_dirs.arena_path(cluster, name))


def forget_launcher(cluster: str) -> None:
    """Let the cluster look as if whoever launched it had gone."""
    os.unlink(os.path.join(run_dirs.cluster_dir(cluster), "launcher.json"))


def killed_cluster(name: str, child, nodes: tuple[str, ...] = ("n",)) -> str:
    """Leave behind what a killed cluster leaves: files, a socket, an arena. Return the arena's path."""
    paths = run_dirs.create(name, list(nodes))
    process = child()
    run_dirs.write_node_file(paths[nodes[0]], node_file(name, nodes[0], process.pid))
    process.kill()
    process.wait()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.join(paths[nodes[0]], "node.sock"))
    arena = run_dirs.arena_path(name, nodes[0])
    Path(arena).write_bytes(b"x")
    forget_launcher(name)
    return arena


def test_choice_of_the_root(monkeypatch, tmp_path):
    monkeypatch.setenv("MESHRAY_RUN_ROOT", "/a/../b")
    assert run_dirs.run_root() == "/b"
    monkeypatch.delenv("MESHRAY_RUN_ROOT")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert run_dirs.run_root() == str(tmp_path / "meshray")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    assert run_dirs.run_root() == f"/tmp/meshray-{os.geteuid()}"


def test_root_is_made_private(monkeypatch, tmp_path):
    monkeypatch.setenv("MESHRAY_RUN_ROOT", str(tmp_path / "deep" / "root"))
    assert stat.S_IMODE(os.stat(run_dirs.open_root()).st_mode) == 0o700


def test_root_that_others_may_write_is_refused(root):
    os.chmod(root, 0o770)
    with pytest.raises(ClusterStartError, match=r"can be written by others \(mode 0770\).*MESHRAY_RUN_ROOT"):
        run_dirs.open_root()
    with pytest.raises(ClusterStartError, match="can be written by others"):
        run_dirs.find_address()


def test_root_of_somebody_else_is_refused(root, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(root).st_uid + 1)
    with pytest.raises(ClusterStartError, match="belongs to user"):
        run_dirs.open_root()


def test_root_that_is_a_link_is_refused(root, monkeypatch, tmp_path):
    (tmp_path / "link").symlink_to(root)
    monkeypatch.setenv("MESHRAY_RUN_ROOT", str(tmp_path / "link"))
    with pytest.raises(ClusterStartError, match="is not a directory"):
        run_dirs.open_root()


def test_layout(root):
    paths = run_dirs.create("pair", ["left", "right"])
    assert paths == {"left": f"{root}/pair/left", "right": f"{root}/pair/right"}
    assert all(stat.S_IMODE(os.stat(f"{path}/logs").st_mode) == 0o700 for path in paths.values())
    assert run_dirs.nodes_of("pair") == paths
    assert run_dirs.clusters() == ["pair"]
    assert run_dirs.endpoint(paths["left"], "node") == f"ipc://{root}/pair/left/node.sock"


def test_files_are_read_as_they_were_written(root):
    run_dir = run_dirs.create("one", ["n"])["n"]
    assert run_dirs.read_node_file(run_dir) is None
    file = node_file("one", "n", os.getpid())
    run_dirs.write_node_file(run_dir, file)
    found = run_dirs.read_node_file(run_dir)
    assert found is not None and found.endpoint == file.endpoint
    assert found.processes == {"node": myself()}
    cluster = ClusterFile(cluster="one", address=file.endpoint, nodes={"n": run_dir}, configuration="{}")
    run_dirs.write_cluster_file(cluster)
    assert run_dirs.read_cluster_file("one") == cluster
    assert run_dirs.current() == "one"
    assert not [name for name in os.listdir(run_dir) if name.startswith("node.json.")]


def test_half_written_files_count_as_missing(root):
    run_dir = run_dirs.create("one", ["n"])["n"]
    Path(run_dir, "node.json").write_text('{"cluster": "one"')
    assert run_dirs.read_node_file(run_dir) is None


def test_arenas_of_two_roots_do_not_collide(root, monkeypatch):
    here = run_dirs.arena_path("c", "n")
    monkeypatch.setenv("MESHRAY_RUN_ROOT", root + "x")
    assert run_dirs.arena_path("c", "n") != here
    monkeypatch.delenv("MESHRAY_RUN_ROOT")
    assert run_dirs.arena_path("c", "n") == f"/dev/shm/meshray-{os.geteuid()}-c-n"


def test_arena_without_shared_memory(root, monkeypatch):
    monkeypatch.setattr(run_dirs, "SHARED_MEMORY", "/nowhere")
    assert run_dirs.arena_path("c", "n") == f"{root}/c/n/arena"
    assert run_dirs.arena_directory() == root


def test_name_of_a_living_cluster_is_refused(root):
    run_dirs.create("one", ["n"])
    with pytest.raises(ClusterStartError, match="cluster one runs already"):
        run_dirs.create("one", ["n"])


def test_killed_cluster_is_replaced(root, child):
    arena = killed_cluster("one", child)
    paths = run_dirs.create("one", ["other"])
    assert list(run_dirs.nodes_of("one").values()) == list(paths.values())
    assert not os.path.exists(arena)


def test_sweep_takes_only_the_dead(root, child):
    arena = killed_cluster("dead", child)
    run_dirs.create("living", ["n"])
    assert run_dirs.sweep() == ["dead"]
    assert run_dirs.clusters() == ["living"]
    assert not os.path.exists(arena)
    assert run_dirs.sweep() == []


def test_sweep_keeps_tables_of_clusters_that_up_started(root, child):
    arena = killed_cluster("kept", child)
    run_dir = run_dirs.node_dir("kept", "n")
    run_dirs.write_cluster_file(ClusterFile(cluster="kept", address="", nodes={"n": run_dir}, configuration="{}"))
    Path(run_dir, "gcs").mkdir()
    run_dirs.sweep()
    assert not os.path.exists(arena)
    assert sorted(os.listdir(run_dir)) == ["gcs", "logs", "node.json"]


def test_a_state_directory_in_the_run_root_is_no_cluster(root, monkeypatch):
    monkeypatch.setenv("MESHRAY_STATE_DIR", f"{root}/state")
    secret = Path(root, "state", "keys", "node.key")
    secret.parent.mkdir(parents=True)
    secret.write_text("x")
    assert run_dirs.sweep() == []
    assert run_dirs.clusters() == []
    run_dirs.create("one", ["n"])
    for state, cluster in (("state", "state"), (".", "two"), ("two/deep", "two")):
        monkeypatch.setenv("MESHRAY_STATE_DIR", f"{root}/{state}")
        with pytest.raises(ClusterStartError, match="goes with its cluster: set MESHRAY_STATE_DIR"):
            run_dirs.create(cluster, ["n"])
    monkeypatch.delenv("MESHRAY_STATE_DIR")
    with pytest.raises(ClusterStartError, match="state is there already, and not of a cluster"):
        run_dirs.create("state", ["n"])
    assert secret.exists()


def test_cluster_whose_node_lives_is_alive_without_its_launcher(root, child):
    run_dir = run_dirs.create("one", ["n"])["n"]
    process = child()
    run_dirs.write_node_file(run_dir, node_file("one", "n", process.pid))
    forget_launcher("one")
    assert run_dirs.is_cluster_alive("one") and run_dirs.is_node_alive(run_dir)
    assert run_dirs.sweep() == []
    process.kill()
    process.wait()
    assert not run_dirs.is_cluster_alive("one") and not run_dirs.is_node_alive(run_dir)


def test_pid_that_was_given_away_again_is_another_process(root):
    run_dir = run_dirs.create("one", ["n"])["n"]
    run_dirs.write_node_file(run_dir, node_file("one", "n", os.getpid()))
    forget_launcher("one")
    assert run_dirs.is_cluster_alive("one")
    file = Path(run_dir, "node.json")
    file.write_text(file.read_text().replace(str(myself().born), str(myself().born - 1)))
    assert not run_dirs.is_cluster_alive("one")


def test_addresses(root, child):
    with pytest.raises(ClusterNotFoundError, match=r"none runs here.*meshray up"):
        run_dirs.find_address()
    for name in ("one", "two"):
        run_dirs.write_node_file(run_dirs.create(name, ["n"])["n"], node_file(name, "n", os.getpid()))
        if name == "one":
            assert run_dirs.find_address("auto") == f"ipc://{root}/one/n/node.sock"
    with pytest.raises(ClusterNotFoundError, match="no current cluster, running here: one, two: name one"):
        run_dirs.find_address()
    with pytest.raises(ClusterNotFoundError, match="no cluster three, running here: one, two"):
        run_dirs.find_address("three")
    assert run_dirs.find_address("two") == f"ipc://{root}/two/n/node.sock"
    run_dirs.write_cluster_file(ClusterFile(cluster="one", address="", configuration="",
                                            nodes={"n": run_dirs.node_dir("one", "n")}))
    assert run_dirs.find_address("auto") == f"ipc://{root}/one/n/node.sock"
    assert run_dirs.find_address("tcp://host:1") == "tcp://host:1"
    run_dirs.remove("one")
    assert run_dirs.current() is None
    assert run_dirs.find_address() == f"ipc://{root}/two/n/node.sock"


def test_address_from_the_environment(root, monkeypatch):
    monkeypatch.setenv("MESHRAY_ADDRESS", "ipc://somewhere")
    assert run_dirs.find_address() == "ipc://somewhere"
    assert run_dirs.find_address("ipc://elsewhere") == "ipc://elsewhere"


def test_long_paths_are_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("MESHRAY_RUN_ROOT", str(tmp_path / ("x" * 90)))
    with pytest.raises(ClusterStartError, match=r"is too long.*107.*MESHRAY_RUN_ROOT"):
        run_dirs.create("one", ["n"])


@pytest.mark.parametrize(("number", "words"), [
    (errno.ENOSPC, "no space left"), (errno.EROFS, "read-only file system"), (errno.EACCES, "permission denied"),
    (errno.EDQUOT, "quota"),
])
def test_what_the_file_system_refuses(root, monkeypatch, number, words):
    def refuse(path: str, mode: int = 0) -> None:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(ClusterStartError, match=f"cannot write {root}.*: .*{words}.*MESHRAY_RUN_ROOT"):
        run_dirs.create("one", ["n"])


def test_full_disk_leaves_no_half_file(root, monkeypatch):
    run_dir = run_dirs.create("one", ["n"])["n"]

    def refuse(old: str, new: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(ClusterStartError, match="no space left"):
        run_dirs.write_node_file(run_dir, node_file("one", "n", os.getpid()))
    assert os.listdir(run_dir) == ["logs"]


def test_disk_that_fills_while_directories_are_made(root, monkeypatch):
    make = os.mkdir

    def refuse_logs(path: str, mode: int = 0o777) -> None:
        if path.endswith("logs"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        make(path, mode)

    monkeypatch.setattr(os, "mkdir", refuse_logs)
    with pytest.raises(ClusterStartError, match="no space left"):
        run_dirs.create("one", ["n"])
    assert os.listdir(root) == [".lock"]


def test_interrupted_removal_is_finished(root, child):
    process = child()
    process.kill()
    process.wait()
    os.makedirs(os.path.join(root, f".gone-{process.pid}-one", "n"))
    os.mkdir(os.path.join(root, f".gone-{os.getpid()}-two"))
    run_dirs.sweep()
    assert sorted(os.listdir(root)) == [f".gone-{os.getpid()}-two", ".lock"]


def test_remove_twice(root, child):
    killed_cluster("one", child)
    run_dirs.remove("one")
    run_dirs.remove("one")
    assert run_dirs.clusters() == []


@pytest.mark.parametrize(("module", "slow"), [
    ("meshray.processes.run_dirs", "zmq rich click yaml numpy psutil subprocess"),
    ("meshray.processes.launch", "rich click yaml numpy psutil subprocess"),
])
def test_imports_are_cheap(module, slow):
    found = subprocess.run([sys.executable, "-c", f"import sys, {module}; print(*sys.modules)"], capture_output=True,
                           text=True, check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert not set(slow.split()) & set(found.stdout.split())
