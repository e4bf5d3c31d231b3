"""Where objects go that have no room in memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from meshray.errors import ClusterStartError
from meshray.processes import spill_place
from meshray.processes.spill_place import spill_settings


def settings(tmp_path: Path, directory: str | None = None, limit: int | None = None) -> dict[str, object]:
    return spill_settings(directory, limit, cluster="c", node="n", run_dir=str(tmp_path))


def test_the_run_directory_is_used_unless_it_lies_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory: set[str] = set()
    monkeypatch.setattr(spill_place, "_lies_in_memory", lambda path: path in in_memory)
    assert settings(tmp_path) == {"spill_directory": f"{tmp_path}/spill", "spill_max_bytes": None}
    in_memory.add(str(tmp_path))
    assert settings(tmp_path, limit=5)["spill_directory"] == f"/var/tmp/meshray-{os.geteuid()}-c-n"
    monkeypatch.setattr(spill_place, "_lies_in_memory", lambda path: True)
    assert settings(tmp_path) == {"spill_directory": "", "spill_max_bytes": 0}, "a machine without a disk"


def test_a_directory_that_is_named_is_made_and_shared_by_many_nodes(tmp_path: Path) -> None:
    found = settings(tmp_path, str(tmp_path / "a" / "b"), 100)
    assert found == {"spill_directory": f"{tmp_path}/a/b/meshray-{os.geteuid()}-c-n", "spill_max_bytes": 100}
    assert (tmp_path / "a" / "b").is_dir()


def test_nothing_is_spilled_if_so_told(tmp_path: Path) -> None:
    assert settings(tmp_path, str(tmp_path / "never"), 0) == {"spill_directory": "", "spill_max_bytes": 0}
    assert not (tmp_path / "never").exists()


def test_what_cannot_be_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ClusterStartError, match=r"spill_directory .*/file/x cannot be made: Not a directory"):
        settings(tmp_path, str(tmp_path / "file" / "x"))
    with pytest.raises(ValueError, match="zero"):
        settings(tmp_path, limit=-1)
    for directory, limit, word in ((3, None, "spill_directory"), (None, 1.5, "spill_max"), (None, True, "spill_max")):
        with pytest.raises(TypeError, match=word):
            settings(tmp_path, directory, limit)  # type: ignore[arg-type]


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no file system in memory to look at")
def test_file_systems_in_memory_are_known() -> None:
    assert spill_place._lies_in_memory("/dev/shm")
    assert spill_place._lies_in_memory("/dev/shm/below")
    assert not spill_place._lies_in_memory("/proc")
