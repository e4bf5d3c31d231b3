"""What a host is looked at for, and how files and meshray get there."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from meshray.processes import host_bootstrap, own_wheel
from meshray.processes.host_bootstrap import disk_problems, probe
from meshray.version import __version__


def ask(tmp_path: Path, **changed: Any) -> dict[str, Any]:
    request = {"python_version": ".".join(platform.python_version_tuple()[:2]), "version": __version__,
               "digest": own_wheel.own_digest(), "state_dir": str(tmp_path / "state"), "run_dir": str(tmp_path / "run"),
               "state_bytes": 1, "run_bytes": 1, "files_min": 1, "memory_bytes": 1}
    return probe(request | changed)


def test_this_machine_is_fit(tmp_path: Path):
    found = ask(tmp_path)
    assert found["problems"] == []
    assert found["fits"]
    assert found["missing"] == []


@pytest.mark.parametrize(("changed", "words"), [
    ({"python_version": "3.7"}, "differs from Python 3.7"),
    ({"files_min": 2**62}, "open files are allowed"),
    ({"memory_bytes": 2**60}, "needed for the object store"),
    ({"state_bytes": 2**60}, "MiB are needed: make room, or set state_dir"),
    ({"run_dir": "/proc/nowhere"}, "run_dir /proc/nowhere cannot be written"),
])
def test_each_problem_is_named(tmp_path: Path, changed: dict[str, Any], words: str):
    problems = ask(tmp_path, **changed)["problems"]
    assert len(problems) == 1
    assert words in problems[0]


def test_a_state_directory_in_the_run_directory_is_refused(tmp_path: Path):
    (problem,) = ask(tmp_path, state_dir=str(tmp_path / "run" / "state"))["problems"]
    assert "lies in run_dir" in problem
    assert ask(tmp_path, state_dir=str(tmp_path / "running"))["problems"] == []


def test_another_meshray_does_not_fit(tmp_path: Path):
    assert not ask(tmp_path, digest="other")["fits"]
    assert not ask(tmp_path, version="0.0")["fits"]


def test_an_earlier_environment_is_found_when_it_is_complete(tmp_path: Path):
    environment = tmp_path / "state" / "venv-other"
    environment.mkdir(parents=True)
    assert ask(tmp_path, digest="other")["environment"] == ""
    (environment / "complete").touch()
    assert ask(tmp_path, digest="other")["environment"] == str(environment)


def test_network_file_systems_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(host_bootstrap, "file_system_of", lambda path: "nfs4")
    assert "lies on a network file system (nfs4)" in disk_problems("state_dir", str(tmp_path), 1)[0]


def test_the_script_needs_nothing_of_meshray(tmp_path: Path):
    script = Path(host_bootstrap.__file__).read_text() + "\nmain()\n"
    request = {"verb": "install", "wheel": "", "venv": "", "commands": [f"touch {tmp_path}/made", "false"]}
    # The pipe stays open until the answer is there, as over SSH.
    process = subprocess.Popen([sys.executable, "-S", "-I", "-c", script], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline()) == {"event": "failed", "text": "false: ended with exit code 1"}
    process.communicate(timeout=20)
    assert (tmp_path / "made").exists()


def file_entry(target: Path, content: bytes, mode: int = 0o644) -> dict[str, Any]:
    return {"target": str(target), "size": len(content), "digest": hashlib.sha256(content).hexdigest(), "mode": mode}


def stream(files: dict[int, bytes]) -> io.BytesIO:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for index, content in files.items():
            member = tarfile.TarInfo(str(index))
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    packed.seek(0)
    return packed


def test_only_files_that_differ_are_wanted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "same").write_bytes(b"same")
    (tmp_path / "old").write_bytes(b"old!")
    files = [file_entry(tmp_path / "same", b"same"), file_entry(tmp_path / "old", b"new!"),
             file_entry(tmp_path / "deep" / "x", b"run", 0o755)]
    done = host_bootstrap.sync({"files": files}, stream({1: b"new!", 2: b"run"}))
    assert json.loads(capsys.readouterr().out) == {"event": "wants", "files": [1, 2]}
    assert done["text"] == "2 of 3 files copied"
    assert (tmp_path / "old").read_bytes() == b"new!"
    assert os.access(tmp_path / "deep" / "x", os.X_OK)


def test_a_file_that_changed_on_the_way_is_refused(tmp_path: Path):
    (tmp_path / "x").write_bytes(b"before")
    with pytest.raises(OSError, match="changed while it was copied"):
        host_bootstrap.sync({"files": [file_entry(tmp_path / "x", b"right")]}, stream({0: b"wrong"}))
    assert (tmp_path / "x").read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["x"]


def test_the_wheel_holds_what_runs_here(tmp_path: Path):
    first, again = own_wheel.pack(str(tmp_path)), own_wheel.pack(str(tmp_path))
    assert Path(first).read_bytes() == Path(again).read_bytes()
    with zipfile.ZipFile(first) as wheel:
        wheel.extractall(tmp_path / "there")
        record = wheel.read(f"meshray-{__version__}.dist-info/RECORD").decode().splitlines()
        assert {line.split(",")[0] for line in record} == set(wheel.namelist())
    assert host_bootstrap.digest_of(str(tmp_path / "there" / "meshray")) == own_wheel.own_digest()
    assert (tmp_path / "there" / "meshray" / "cli" / "main.py").exists()
