"""Keys of a running cluster: a driver of a machine without a node comes in by its key, and is cut off with it."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest

import meshray
from meshray.processes import state_dirs

from .networked import Hosts, on_host, state_of
from .support import command_line, finish, start_script, wait_until

pytestmark = pytest.mark.limit_s(120)


@pytest.fixture
def cluster(root) -> Iterator[Hosts]:
    made = Hosts(root, ("left",))
    try:
        made.start()
        yield made
    finally:
        meshray.shutdown()
        made.stop()


@pytest.fixture
def laptop(root, cluster) -> Iterator[str]:
    """Be on a machine that has no node of the cluster; yields its directory."""
    directory = os.path.join(root, "x")
    os.mkdir(directory, 0o700)
    with on_host(directory):
        yield directory
        meshray.shutdown()


def on_head(cluster, *arguments, ok=True):
    """Run a command on the cluster's own machine."""
    with on_host(cluster.head.directory):
        return command_line("keys", *arguments, "--address", cluster.head.file.endpoint, ok=ok)


def make_key():
    output = command_line("keys", "add", "driver").stdout
    return next(line.removeprefix("public half: ") for line in output.splitlines() if line.startswith("public half"))


def rows(cluster):
    return {row["key"]: row for row in json.loads(on_head(cluster, "list", "--json").stdout)}


@meshray.remote
def square(x):
    return x * x


@meshray.remote
def total(array):
    return int(array.sum())


def test_a_driver_of_another_machine_joins_by_its_key(cluster, laptop):
    address = cluster.seeds["left"]
    with pytest.raises(meshray.exceptions.MeshrayError, match="this machine has no key"):
        meshray.init(address)
    key = make_key()
    path = state_dirs.key_file("driver")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    with pytest.raises(PermissionError, match=f"meshray keys add driver {key}"):
        meshray.init(address)
    on_head(cluster, "add", "my-laptop", key)
    assert rows(cluster)[key]["name"] == "my-laptop"
    meshray.init(address, object_store_memory=64 * 2**20, namespace="tests")
    assert meshray.get([square.remote(n) for n in range(100)], timeout=30) == [n * n for n in range(100)]
    assert meshray.get(total.remote(numpy.ones(2**20, dtype=numpy.uint8)), timeout=30) == 2**20
    ref = meshray.put(numpy.ones(2**20, dtype=numpy.uint8))
    assert meshray.get(total.remote(ref), timeout=30) == 2**20
    names = {row["NodeName"]: row["Resources"] for row in meshray.nodes()}
    assert len(names) == 2
    assert not next(found for name, found in names.items() if name != "left").get("CPU")


DRIVER = """
    import sys, meshray
    meshray.init(sys.argv[1], object_store_memory=64 * 2**20)

    @meshray.remote
    def one():
        return 1

    print("in", meshray.get(one.remote(), timeout=30), flush=True)
    try:
        while True:
            meshray.get(one.remote(), timeout=5)
    except Exception as error:
        print("out", type(error).__name__, flush=True)
"""


def test_a_revoked_driver_is_cut_off_while_it_is_connected(cluster, laptop, tmp_path):
    key = make_key()
    on_head(cluster, "add", "my-laptop", key)
    script = start_script(DRIVER, tmp_path, cluster.seeds["left"])
    assert script.stdout.readline() == "in 1\n"
    assert on_head(cluster, "revoke", "my-laptop").stdout == f"my-laptop is out: {key}\n"
    assert "out " in finish(script, 60)
    assert rows(cluster)[key]["state"] == "revoked"
    with pytest.raises(PermissionError):
        meshray.init(cluster.seeds["left"])
    with on_host(cluster.head.directory):
        cluster.head.join()
        assert meshray.get(square.remote(3), timeout=30) == 9
        wait_until(lambda: sum(row["Alive"] for row in meshray.nodes()) == 1, what="the driver's node is given up")


def test_a_revoked_key_stays_out_after_a_restart(cluster, laptop):
    key = make_key()
    on_head(cluster, "add", "driver", key)
    on_head(cluster, "revoke", key)
    known = Path(state_of(cluster.head.directory), "pair", "left.keys.json")
    assert stat.S_IMODE(known.stat().st_mode) == 0o600
    cluster.stop()
    cluster.allowed["driver"] = key
    cluster.start()
    with pytest.raises(PermissionError, match="does not let this key in"):
        meshray.init(cluster.seeds["left"])


def test_a_key_is_rotated_with_a_time_for_both(cluster, laptop):
    old = make_key()
    on_head(cluster, "add", "my-laptop", old)
    address = cluster.seeds["left"]
    command_line("keys", "rotate", "driver", "--grace", "1.5", "--address", address)
    new = json.loads(Path(state_dirs.key_file("driver")).read_text())["public"]
    known = rows(cluster)
    assert new != old
    assert known[old]["state"] == known[new]["state"] == "allowed"
    assert known[new]["name"] == known[old]["name"] == "my-laptop"
    assert known[old]["until_wall_ns"] > 0 == known[new]["until_wall_ns"]

    def old_is_out():
        listed = Path(cluster.head.directory, "pair", "left", "logs", "boot.err").read_text()
        return f"key {old} of my-laptop is revoked" in listed

    wait_until(old_is_out, what="the old key is revoked by itself")
    meshray.init(address, object_store_memory=64 * 2**20)
    assert meshray.get(square.remote(4), timeout=30) == 16


def test_wrong_addresses_are_explained(cluster, laptop):
    make_key()
    right = cluster.seeds["left"]
    with pytest.raises(meshray.exceptions.MeshrayError, match="lacks the node's public key"):
        meshray.init(right.partition("#")[0])
    with pytest.raises(meshray.exceptions.MeshrayError, match="64 hexadecimal digits"):
        meshray.init(right[:-1])
    result = command_line("keys", "list", "--address", right, ok=False)
    assert result.returncode == 1
    assert "does not let this key in" in result.stderr
    assert "Traceback" not in result.stderr
    assert on_head(cluster, "revoke", "nobody", ok=False).returncode == 1
    assert on_head(cluster, "add", "x", "12ab", ok=False).returncode == 2


def test_a_cluster_without_a_network_needs_no_keys(root):
    address = meshray.init(num_cpus=1).address_info["address"]
    result = command_line("keys", "add", "x", "ab" * 32, "--address", address, ok=False)
    assert result.returncode == 1
    assert "no key is needed" in result.stderr
