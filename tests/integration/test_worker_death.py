"""Workers that die: retries, the last error, and nothing lost around them."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter

import pytest

import meshray
from meshray.session import current

from .support import Gate, Journal, is_alive, wait_gone, wait_until

pytestmark = pytest.mark.usefixtures("meshray_local")


@meshray.remote
def identity(x):
    return x


def test_task_is_retried_until_it_succeeds(tmp_path):
    journal = Journal(tmp_path / "attempts")

    @meshray.remote
    def survives_the_third_time():
        journal.write(os.getpid())
        if len(journal.lines()) < 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return "survived"

    assert meshray.get(survives_the_third_time.remote(), timeout=50) == "survived"
    assert len(set(journal.lines())) == 3


@pytest.mark.parametrize("retries", [0, 2])
def test_retries_run_out(tmp_path, retries):
    journal = Journal(tmp_path / "attempts")

    @meshray.remote(max_retries=retries)
    def dies():
        journal.write("attempt")
        os._exit(1)

    with pytest.raises(meshray.exceptions.WorkerCrashedError):
        meshray.get(dies.remote(), timeout=50)
    assert len(journal.lines()) == retries + 1


def test_message_says_who_how_and_the_last_words():
    @meshray.remote(max_retries=0)
    def dies():
        os.write(2, b"noise\nthe very last line\n")
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(meshray.exceptions.WorkerCrashedError) as caught:
        meshray.get(dies.remote(), timeout=50)
    text = str(caught.value)
    assert "SIGKILL" in text
    assert "pid" in text
    assert "node" in text
    assert "the very last line" in text


def test_exit_code_is_in_the_message():
    @meshray.remote(max_retries=0)
    def leaves():
        os._exit(37)

    with pytest.raises(meshray.exceptions.WorkerCrashedError, match="37"):
        meshray.get(leaves.remote(), timeout=50)


def test_segmentation_fault():
    @meshray.remote(max_retries=0)
    def crashes():
        import ctypes

        ctypes.string_at(0)

    with pytest.raises(meshray.exceptions.WorkerCrashedError, match="SIGSEGV"):
        meshray.get(crashes.remote(), timeout=50)


def test_death_in_the_middle_of_a_batch_loses_nothing(tmp_path):
    journal = Journal(tmp_path / "death")

    @meshray.remote
    def square(i):
        if i == 150 and not journal.lines():
            journal.write("dies")
            os.kill(os.getpid(), signal.SIGKILL)
        return i * i

    assert meshray.get([square.remote(i) for i in range(300)], timeout=50) == [i * i for i in range(300)]
    assert journal.lines() == ["dies"]


def test_neighbours_in_a_batch_do_not_pay_for_one_bad_task():
    @meshray.remote(max_retries=1)
    def maybe(i):
        if i == 20:
            os._exit(1)
        return i

    refs = [maybe.remote(i) for i in range(40)]
    with pytest.raises(meshray.exceptions.WorkerCrashedError):
        meshray.get(refs[20], timeout=50)
    assert meshray.get(refs[:20] + refs[21:], timeout=50) == [i for i in range(40) if i != 20]


def test_killed_from_outside_while_running(tmp_path):
    gate, journal = Gate(tmp_path / "gate"), Journal(tmp_path / "pids")

    @meshray.remote
    def block():
        journal.write(os.getpid())
        gate.wait()
        return "done"

    ref = block.remote()
    (pid,) = journal.wait_for(1)
    os.kill(int(pid), signal.SIGKILL)
    journal.wait_for(2)
    gate.open()
    assert meshray.get(ref, timeout=50) == "done"


def test_death_of_a_parent_is_retried_with_its_children(tmp_path):
    journal = Journal(tmp_path / "death")

    @meshray.remote
    def parent():
        children = [identity.remote(i) for i in range(20)]
        if not journal.lines():
            journal.write("dies")
            os.kill(os.getpid(), signal.SIGKILL)
        return sum(meshray.get(children))

    assert meshray.get(parent.remote(), timeout=50) == sum(range(20))


def test_dependents_get_the_death_as_their_error():
    @meshray.remote(max_retries=0)
    def dies():
        os._exit(1)

    with pytest.raises(meshray.exceptions.MeshrayError):
        meshray.get(identity.remote(identity.remote(dies.remote())), timeout=50)


def test_large_result_outlives_the_worker_that_made_it():
    @meshray.remote
    def make():
        return os.getpid(), bytes(2_000_000)

    ref = make.remote()
    meshray.wait([ref])
    pid = meshray.get(ref)[0]
    os.kill(pid, signal.SIGKILL)
    assert len(meshray.get(identity.remote(ref), timeout=50)[1]) == 2_000_000


def test_argument_objects_stay_for_the_retry(tmp_path):
    journal = Journal(tmp_path / "death")

    @meshray.remote
    def size(data):
        if not journal.lines():
            journal.write("dies")
            os.kill(os.getpid(), signal.SIGKILL)
        return len(data)

    assert meshray.get(size.remote(meshray.put(bytes(3_000_000))), timeout=50) == 3_000_000
    journal = Journal(tmp_path / "second death")
    assert meshray.get(size.remote(bytes(3_000_000)), timeout=50) == 3_000_000


def test_interpreter_goes_on_after_a_task_that_changed_signals():
    @meshray.remote
    def ignores():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return "ignored"

    assert meshray.get(ignores.remote()) == "ignored"
    assert meshray.get([identity.remote(i) for i in range(10)]) == list(range(10))


@pytest.mark.parametrize("max_calls", [1, 3])
def test_worker_ends_after_max_calls(max_calls):
    @meshray.remote(max_calls=max_calls, max_retries=0)
    def pid():
        return os.getpid()

    counts = Counter(meshray.get([pid.remote() for _ in range(12)], timeout=50))
    assert max(counts.values()) <= max_calls
    wait_until(lambda: not any(is_alive(one) for one, count in counts.items() if count == max_calls))


def test_worker_that_is_not_needed_stays_while_it_owns_what_others_hold(tmp_path):
    gate, journal = Gate(tmp_path / "gate"), Journal(tmp_path / "told")

    @meshray.remote(max_retries=0)
    def owner():
        session = current.session()

        def retire():
            session.executor.retire()
            journal.write("told")

        def tell():
            gate.wait()
            session.call(retire)

        threading.Thread(target=tell, daemon=True).start()
        return os.getpid(), identity.remote("inner")

    @meshray.remote
    def read(refs):
        return meshray.get(refs[0])

    pid, inner = meshray.get(owner.remote())
    assert meshray.get(read.remote([inner]), timeout=30) == "inner"
    gate.open()
    journal.wait_for(1)
    assert meshray.get([read.remote([inner]) for _ in range(10)], timeout=30) == ["inner"] * 10
    assert is_alive(pid)
    del inner
    wait_gone(pid)
