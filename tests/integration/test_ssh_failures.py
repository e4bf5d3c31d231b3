"""``meshray up`` over SSH when something is wrong: each failure names the host, the phase and what to do, and what was
started goes again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from . import ssh_hosts
from .ssh_hosts import PORT, SshHosts, keygen
from .support import wait_until

pytestmark = [pytest.mark.skipif(bool(ssh_hosts.possible()), reason=ssh_hosts.possible()), pytest.mark.limit_s(120)]

SILENT = f"""
import socket
server = socket.create_server(("0.0.0.0", {PORT}))
connections = []
print("listening", flush=True)
while True:
    connections.append(server.accept())
"""


@pytest.fixture(scope="module")
def shared_bed() -> Iterator[SshHosts]:
    with SshHosts(3) as made:
        yield made


@pytest.fixture
def bed(shared_bed: SshHosts) -> Iterator[SshHosts]:
    yield shared_bed
    shared_bed.clear()


def test_hosts_that_let_nobody_in(bed: SshHosts):
    first, second, _ = bed.hosts
    keygen(bed.client / "other")
    shutil.copy(bed.client / "other.pub", second.root / "authorized_keys")
    bed.know(first, second)
    nobody = "  - host: 10.77.0.200\n    name: nobody\n  - host: nowhere.invalid\n    name: nowhere\n"
    try:
        output = bed.meshray("up", "--keep-going", bed.file("doors", list(bed.hosts), more=nobody), ok=False)
    finally:
        shutil.copy(bed.client / "id.pub", second.root / "authorized_keys")
        bed.know(*bed.hosts)
    for words in (("h1: connect failed", "it takes none of your keys", "Permission denied"),
                  ("h2: connect failed", "its host key is not in known_hosts", "Host key verification failed"),
                  ("nobody: connect failed", "it cannot be reached"),
                  ("nowhere: connect failed", "nobody knows this name", "Could not resolve hostname")):
        for word in words:
            assert word in output, f"{word!r} is not in:\n{output}"
    assert "is up without" in output
    assert "alive" in bed.meshray("list", "nodes", "--json")
    bed.meshray("down")
    bed.assert_clean()


def test_a_host_that_accepts_and_never_answers(bed: SshHosts):
    third = bed.hosts[2]
    bed.stop_serving(third)
    server = bed.hosts.run(third, [sys.executable, "-c", SILENT], stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == b"listening\n"
        output = bed.meshray("up", bed.file("silence", list(bed.hosts)), ok=False)
        assert "h2: connect failed after" in output
        assert "it cannot be reached" in output or "it took longer than 8 s to log in" in output
    finally:
        bed.hosts.kill(third)
        bed.serve(third)
    bed.assert_clean()


def test_full_disks_and_missing_python(bed: SshHosts):
    first, second, third = bed.hosts
    bed.hosts.small_disk(second, second.root / "small", 64 * 1024)
    bed.hosts.small_disk(third, third.root / "tight", 20 * 2**20)
    (bed.client / "large").write_bytes(bytes(30 * 2**20))
    file = bed.file("full", [first, second, third], more=f"file_mounts: {{{third.root}/tight/large: large}}\n",
                    nodes={"h0": "python: /nowhere/python3", "h1": f"state_dir: {second.root}/small"})
    output = bed.meshray("up", "--keep-going", file, ok=False)
    for words in (("h0: probe failed", "its Python could not be run", "/nowhere/python3"),
                  ("h1: probe failed", f"state_dir {second.root}/small has 0 MiB free, 16 MiB are needed"),
                  ("h2: sync failed", f"cannot write {third.root}/tight/large: No space left on device")):
        for word in words:
            assert word in output, f"{word!r} is not in:\n{output}"
    bed.assert_clean()


def started_head(bed: SshHosts, name: str) -> subprocess.Popen[str]:
    """Start ``up`` of three hosts and return when the head runs and the others do not yet."""
    process = bed.start("up", bed.file(name, list(bed.hosts)))
    node = bed.hosts[0].run_root / name / "h0" / "node.json"
    wait_until(lambda: node.exists() or process.poll() is not None, 40, what="the head runs")
    return process


def test_a_host_that_dies_during_up(bed: SshHosts):
    process = started_head(bed, "death")
    bed.stop_serving(bed.hosts[2])
    output = process.communicate(timeout=50)[0]
    bed.serve(bed.hosts[2])
    assert process.returncode == 1, output
    assert "h2: " in output and "failed" in output
    assert "Traceback" not in output
    # What could not be cleaned on the host that was gone is cleaned when it is back.
    bed.meshray("down", "death")
    bed.assert_clean()


def test_a_host_that_is_lost_is_done_without_and_then_given_up(bed: SshHosts):
    first, second, third = bed.hosts
    file = bed.file("lossy", [first, second, third])
    bed.meshray("up", file)
    bed.stop_serving(third)
    try:
        output = bed.meshray("up", file, ok=False)
        assert "h2 failed, and nothing was changed" in output
        output = bed.meshray("up", "--keep-going", file, ok=False)
        assert "h2: away (its host cannot be reached)" in output
        assert "is up without h2" in output
        assert "not there: h2" in bed.meshray("status")
        file = bed.file("lossy", [first, second])
        output = bed.meshray("up", "--keep-going", file, ok=False)
        assert "h2: forget (not in the file; its host cannot be reached)" in output
        assert "h2 could not be reached: given up" in output
        assert "nothing to do" in bed.meshray("up", file)
        rows = json.loads(bed.meshray("keys", "list", "--json"))
        assert {row["name"]: row["state"] for row in rows} == {"h0": "allowed", "h1": "allowed", "h2": "revoked"}
    finally:
        bed.serve(third)
    assert "h2: start (new)" in bed.meshray("up", bed.file("lossy", [first, second, third]))
    bed.meshray("down", "lossy")
    bed.assert_clean()


def test_keys_are_changed_from_the_launching_machine(bed: SshHosts):
    bed.meshray("up", bed.file("doorkeeper", bed.hosts[:1]))
    assert "the cluster doorkeeper lets it in" in bed.meshray("keys", "add", "laptop")
    assert "the old one is let in for 60 s more" in bed.meshray("keys", "rotate", "laptop", "--grace", "60")
    assert "laptop is out" in bed.meshray("keys", "revoke", "laptop")
    rows = json.loads(bed.meshray("keys", "list", "--json"))
    assert sorted((row["name"], row["state"]) for row in rows) == [
        ("h0", "allowed"), ("laptop", "revoked"), ("laptop", "revoked")]
    bed.meshray("down", "doorkeeper")
    bed.assert_clean()


def test_ctrl_c_in_the_middle(bed: SshHosts):
    process = started_head(bed, "break")
    os.killpg(process.pid, signal.SIGINT)
    output = process.communicate(timeout=50)[0]
    assert process.returncode == 130, output
    assert "what was started is down again\ninterrupted" in output
    bed.assert_clean()


def test_a_killed_launcher_leaves_a_record_to_clean_up_by(bed: SshHosts):
    process = started_head(bed, "killed")
    process.kill()
    process.communicate(timeout=20)
    output = bed.meshray("up", bed.file("killed", list(bed.hosts)), ok=False)
    assert "did not come to its end: meshray down killed first" in output
    bed.meshray("down", "killed")
    bed.assert_clean()
