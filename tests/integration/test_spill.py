"""More values than the store holds: they go to disk and come back, whole, and a disk without room says so."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy
import pytest

import meshray
from meshray.errors import ClusterStartError

from .support import TwoNodes, command_line, environment, run_script, store_used_bytes, wait_until

MIB = 2**20
STORE = 64 * MIB
SIZE = 4 * MIB


def block(value, size_bytes=SIZE):
    array = numpy.full(size_bytes, value % 251, dtype=numpy.uint8)
    array[:8] = numpy.frombuffer(int(value).to_bytes(8, "little"), dtype=numpy.uint8)
    return array


def is_block(array, value):
    return int.from_bytes(array[:8].tobytes(), "little") == value and bool((array[8:] == value % 251).all())


def statistics():
    return json.loads(command_line("status", "--address", address(), "--json").stdout)["nodes"][0]["statistics"]


def address():
    from meshray.session import current

    return current.session().surroundings.cluster


@pytest.fixture
def small(fresh, tmp_path):
    """A store of 64 MiB that spills into ``tmp_path``."""
    fresh(object_store_memory=STORE, spill_directory=str(tmp_path))
    yield tmp_path
    gc.collect()


def files_in(directory):
    return [path for path in Path(directory).rglob("*") if path.is_file() and not path.name.startswith(".")]


def test_ten_times_the_store_with_all_references_kept(small):
    refs = [meshray.put(block(index)) for index in range(160)]
    for _ in range(2):
        for index, ref in enumerate(refs):
            assert is_block(meshray.get(ref), index)
    found = statistics()
    assert found["spilled_bytes"] >= 160 * SIZE - STORE and found["restores"] >= 140
    assert files_in(small)
    del ref, refs
    gc.collect()
    wait_until(lambda: store_used_bytes() < MIB and not files_in(small), what="memory and disk are free again")


def test_equal_values_lie_on_disk_once(small):
    refs = [meshray.put(numpy.ones(SIZE, dtype=numpy.uint8)) for _ in range(60)]
    distinct = {path.name for path in files_in(small)}
    assert 0 < len(distinct) <= 6, "one chunk in the middle, one at each end"
    assert all(meshray.get(ref).sum() == SIZE for ref in refs)


def test_one_large_value_sends_all_others_to_disk(small):
    refs = [meshray.put(block(index)) for index in range(14)]
    large = meshray.put(block(1000, 56 * MIB))
    assert is_block(meshray.get(large), 1000)
    assert all(is_block(meshray.get(ref), index) for index, ref in enumerate(refs))


def test_arrays_that_are_held_stay_as_they_are(small):
    refs = [meshray.put(block(index)) for index in range(8)]
    held = meshray.get(refs)
    more = [meshray.put(block(100 + index)) for index in range(40)]
    assert all(is_block(array, index) for index, array in enumerate(held))
    assert all(is_block(meshray.get(ref), 100 + index) for index, ref in enumerate(more))
    assert all(is_block(array, index) for index, array in enumerate(held))


def test_more_arrays_held_than_there_is_room_for_is_an_error_with_numbers(small):
    refs = [meshray.put(block(index)) for index in range(32)]
    held = []
    with pytest.raises(meshray.exceptions.ObjectStoreFullError, match="pinned") as caught:
        for ref in refs:
            held.append(meshray.get(ref))
    assert caught.value.pinned_bytes >= len(held) * SIZE >= STORE // 2
    assert caught.value.spilled_bytes > 0
    assert all(is_block(array, index) for index, array in enumerate(held))
    count = len(held)
    del held
    gc.collect()
    assert is_block(meshray.get(refs[count]), count), "the reference is as good as before"


def test_tasks_make_and_take_more_than_the_store(small):
    @meshray.remote
    def make(value):
        return block(value)

    @meshray.remote
    def check(array, value):
        return is_block(array, value)

    made = [make.remote(index) for index in range(48)]
    assert all(meshray.get([check.remote(ref, index) for index, ref in enumerate(made)], timeout=50))


def test_queued_arguments_go_to_disk_too(small):
    @meshray.remote
    def check(array, value):
        return is_block(array, value)

    refs = [check.remote(block(index), index) for index in range(48)]
    assert all(meshray.get(refs, timeout=50))


def test_two_tasks_that_hold_half_the_store_each_and_want_more_end_with_an_error(small, tmp_path):
    @meshray.remote
    class Holder:
        def hold(self, refs):
            self.held = meshray.get(refs)
            return len(self.held)

        def more(self, refs):
            try:
                self.held += meshray.get(refs)
            except meshray.exceptions.ObjectStoreFullError as error:
                return error.pinned_bytes
            return 0

    refs = [meshray.put(block(index)) for index in range(30)]
    holders = [Holder.remote() for _ in range(2)]
    counts = [holder.hold.remote(refs[start : start + 7]) for holder, start in zip(holders, (0, 7), strict=True)]
    assert meshray.get(counts, timeout=50) == [7, 7]
    found = meshray.get([holder.more.remote(refs[start : start + 8]) for holder, start in zip(holders, (14, 22),
                                                                                         strict=True)], timeout=50)
    assert max(found) >= 14 * SIZE


def test_a_worker_killed_while_it_puts_leaves_nothing(small):
    @meshray.remote
    class Maker:
        def pid(self):
            return os.getpid()

        def run(self):
            self.refs = []
            for index in range(10_000):
                self.refs.append(meshray.put(block(index)))

    refs = [meshray.put(block(index)) for index in range(12)]
    maker = Maker.remote()
    pid = meshray.get(maker.pid.remote())
    running = maker.run.remote()
    wait_until(lambda: len(files_in(small)) > 40, what="the actor fills store and disk")
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(meshray.exceptions.ActorDiedError):
        meshray.get(running, timeout=30)
    assert all(is_block(meshray.get(ref), index) for index, ref in enumerate(refs))
    del refs
    gc.collect()
    wait_until(lambda: store_used_bytes() < MIB and not files_in(small), what="memory and disk are free again")


@pytest.mark.limit_s(120)
def test_a_sort_of_four_times_the_store(small):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    try:
        from examples.external_sort import external_sort
    finally:
        sys.path.pop(0)
    ranges, found = external_sort(4 * STORE)
    assert found.count == 4 * STORE // 8
    previous = 0
    count = total = 0
    for ref in ranges:
        numbers = meshray.get(ref)
        assert previous <= int(numbers[0]) and bool((numbers[:-1] <= numbers[1:]).all())
        previous = int(numbers[-1])
        count += len(numbers)
        total += int(numbers.sum(dtype=numpy.uint64))
    assert (count, total % 2**64) == found
    del numbers


def test_status_and_list_show_what_lies_on_disk(small):
    refs = [meshray.put(block(index)) for index in range(32)]
    wait_until(lambda: statistics()["spilled"] >= 14, what="objects on disk")
    name = address()
    node = json.loads(command_line("status", "--address", name, "--json").stdout)["nodes"][0]
    assert node["object_store_spilled"] >= 14 * SIZE
    assert "on disk" in command_line("status", "--address", name).stdout
    rows = json.loads(command_line("list", "objects", "--address", name, "--json").stdout)
    assert {row["state"] for row in rows} >= {"spilled", "in memory"}
    del refs


def test_nothing_is_left_on_disk_and_what_a_killed_node_left_goes(root, tmp_path):
    program = """
        import sys, os, numpy, meshray, signal
        meshray.init(num_cpus=1, object_store_memory=64 << 20, spill_directory=sys.argv[1])
        refs = [meshray.put(numpy.full(4 << 20, index, dtype=numpy.uint8)) for index in range(20)]
        if sys.argv[2] == "die":
            from meshray.session import current
            os.kill(current.session().surroundings.pid, signal.SIGKILL)
            os._exit(0)
        meshray.shutdown()
    """
    run_script(program, tmp_path, tmp_path / "disk", "die")
    assert files_in(tmp_path / "disk"), "killed, the node could not clean up"
    run_script(program, tmp_path, tmp_path / "disk", "end")
    assert os.listdir(tmp_path / "disk") == []


@pytest.mark.parametrize(("options", "error", "says"), [
    ({"spill_max": -1}, ValueError, "spill_max must be zero"),
    ({"spill_max": "much"}, TypeError, "spill_max must be a number of bytes"),
    ({"spill_directory": 5}, TypeError, "spill_directory must be a path"),
    ({"spill_directory": "/proc/nowhere"}, ClusterStartError, "cannot be made"),
])
def test_bad_settings_are_refused_before_anything_starts(root, options, error, says):
    with pytest.raises(error, match=says):
        meshray.init(num_cpus=1, object_store_memory=STORE, **options)


def test_the_limit_of_the_disk_is_named(fresh, tmp_path):
    fresh(object_store_memory=STORE, spill_directory=str(tmp_path), spill_max=16 * MIB)
    refs = []
    with pytest.raises(meshray.exceptions.ObjectStoreFullError, match="of spill_max 16 MiB are in use") as caught:
        for index in range(40):
            refs.append(meshray.put(block(index)))
    assert str(tmp_path) in caught.value.disk_error
    assert all(is_block(meshray.get(ref), index) for index, ref in enumerate(refs)), "what was taken is there"
    del refs[10:]
    gc.collect()
    assert is_block(meshray.get(meshray.put(block(7))), 7), "room was made, so it goes on"


FULL_DISK = """
    import numpy, subprocess, sys, meshray
    MIB = 2**20
    disk = sys.argv[1]
    meshray.init(num_cpus=1, object_store_memory=64 * MIB, spill_directory=disk)
    refs = []
    try:
        for index in range(100):
            refs.append(meshray.put(numpy.full(4 * MIB, index, dtype=numpy.uint8)))
        raise SystemExit("a full disk was not noticed")
    except meshray.exceptions.ObjectStoreFullError as error:
        print("refused:", error)
    for index, ref in enumerate(refs):
        assert (meshray.get(ref) == index).all()
    subprocess.run(["mount", "-o", "remount,size=512m", disk], check=True)
    for index in range(len(refs), 40):
        refs.append(meshray.put(numpy.full(4 * MIB, index, dtype=numpy.uint8)))
    for index, ref in enumerate(refs):
        assert (meshray.get(ref) == index).all()
    print("healed:", len(refs))
    meshray.shutdown()
"""


def test_a_full_disk_is_named_and_heals_when_space_returns(root, tmp_path):
    # In a child with a mount namespace of its own, so that nothing stays mounted whatever happens.
    if shutil.which("unshare") is None:
        pytest.skip("util-linux's unshare is not installed, so no small disk can be mounted")
    script = tmp_path / "full.py"
    script.write_text(textwrap.dedent(FULL_DISK))
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=24m none {disk} && exec {sys.executable} {script} {disk}"
    done = subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True, text=True, check=False, timeout=50,
                          env=environment())
    if "mount:" in done.stderr or "unshare:" in done.stderr:
        pytest.skip(f"cannot mount a small tmpfs here: {done.stderr.strip()}")
    assert done.returncode == 0, f"exit {done.returncode}: {done.stdout}{done.stderr}"
    assert f"cannot spill to {disk}" in done.stdout and "No space left on device (need" in done.stdout
    assert "healed: 40" in done.stdout


@pytest.mark.limit_s(120)
def test_what_lies_on_another_node_s_disk_is_read(root, tmp_path):
    cluster = TwoNodes(tmp_path, store="64MiB")
    cluster.up()
    try:
        cluster.join()
        make = meshray.remote(block)
        check = meshray.remote(is_block)
        refs = [make.options(resources={"left": 1}).remote(index) for index in range(22)]
        meshray.wait(refs, num_returns=22, timeout=50)
        before = {node["name"]: node["statistics"] for node in cluster.status()["nodes"]}
        started = time.perf_counter()
        found = [check.options(resources={"right": 1}).remote(ref, index) for index, ref in enumerate(refs)]
        assert all(meshray.get(found, timeout=90))
        print(f"read in {time.perf_counter() - started:.2f} s")
        after = {node["name"]: node["statistics"] for node in cluster.status()["nodes"]}
        assert before["left"]["spilled"] >= 6
        assert after["left"]["bulk_disk_bytes"] >= 6 * SIZE
        assert after["left"]["restores"] == 0, "what others read from disk takes no room in memory"
        del refs, found
    finally:
        meshray.shutdown()
        cluster.down()
