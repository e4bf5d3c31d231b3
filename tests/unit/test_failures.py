"""Failures arrive as what they were, and nothing that an exception does can stop one."""

from __future__ import annotations

import pickle
import sys
import threading
import traceback
from typing import Any

import pytest

from meshray import errors, failures
from meshray.failures import DependencyFailed, decode, encode_death, encode_dependency, encode_exception, encode_system
from meshray.messages.node import Death
from meshray.resources import to_units


def encoded(error: BaseException, name: str = "f") -> bytes:
    try:
        raise error
    except BaseException as raised:
        return encode_exception(raised, name, 123, "head")


def shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


class Needy(Exception):
    def __init__(self, code: int, detail: str) -> None:
        super().__init__(f"code {code}")
        self.code = code
        self.detail = detail


class RaisingReduce(Exception):
    def __reduce__(self) -> Any:
        raise RuntimeError("no pickle")


class ExitingReduce(Exception):
    def __reduce__(self) -> Any:
        raise SystemExit(3)


class DiesWhenRebuilt(Exception):
    def __reduce__(self) -> Any:
        return sys.exit, (4,)


class BecomesText(Exception):
    def __reduce__(self) -> Any:
        return str, ("not an exception",)


class RaisingStr(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class RaisingCause(Exception):
    @property
    def __cause__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no cause")


class RaisingDict(Exception):
    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no fields")


def test_a_users_error_arrives_as_task_error_and_as_itself() -> None:
    error = decode(encoded(Needy(7, "deep"), "train"))
    assert isinstance(error, errors.TaskError)
    assert isinstance(error, Needy)
    assert (error.code, error.detail) == (7, "deep")
    assert (error.function_name, error.pid, error.node) == ("train", 123, "head")
    assert str(error).endswith("Needy: code 7 (in train, pid=123, node=head)")
    assert type(error.__cause__) is Needy
    assert "raise error" in error.traceback_str


def test_the_cause_has_real_traceback_objects_of_the_users_frames() -> None:
    error = decode(encoded(ValueError("x")))
    assert error.__cause__ is not None
    frames = traceback.extract_tb(error.__cause__.__traceback__)
    assert [frame.name for frame in frames] == ["encoded"]
    assert frames[0].filename == __file__


def test_frames_of_meshray_itself_are_left_out() -> None:
    def ask() -> None:
        to_units("num_cpus", -1)

    with pytest.raises(ValueError, match="negative") as caught:
        ask()
    error = decode(encode_exception(caught.value, "f", 1, "head"))
    assert error.__cause__ is not None
    names = [frame.name for frame in traceback.extract_tb(error.__cause__.__traceback__)]
    assert names[-1] == "ask"
    assert isinstance(error, errors.TaskError)
    assert "resources.py" not in error.traceback_str


def chained() -> BaseException:
    try:
        try:
            {}["missing"]
        except KeyError as low:
            low.add_note("a note on the key")
            raise ValueError("middle") from low
    except ValueError:
        try:
            raise RuntimeError("high")
        except RuntimeError as high:
            return high


def test_causes_contexts_and_notes_are_kept() -> None:
    cause = decode(encoded(chained())).__cause__
    assert isinstance(cause, RuntimeError)
    assert isinstance(cause.__context__, ValueError)
    assert not cause.__suppress_context__
    low = cause.__context__.__cause__
    assert isinstance(low, KeyError)
    assert low.__notes__ == ["a note on the key"]


def test_a_cycle_of_causes_ends() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    cause = decode(encoded(first)).__cause__
    assert cause is not None
    assert str(cause.__cause__) == "b"


def test_an_attribute_that_cannot_be_pickled_stays_behind_and_is_named() -> None:
    before = OSError(2, "No such file", "/x")
    before.lock = threading.Lock()  # type: ignore[attr-defined]
    before.detail = "kept"  # type: ignore[attr-defined]
    error = decode(encoded(before))
    assert isinstance(error, FileNotFoundError)
    assert (error.errno, error.filename, error.detail) == (2, "/x", "kept")  # type: ignore[attr-defined]
    assert not hasattr(error, "lock")
    assert ".lock is a _thread.lock, which cannot be pickled" in shown(error)


def test_an_argument_that_cannot_be_pickled_becomes_its_repr() -> None:
    error = decode(encoded(ValueError("x", threading.Lock())))
    assert isinstance(error, ValueError)
    assert isinstance(error.__cause__, ValueError)
    assert error.__cause__.args[1].startswith("<unlocked _thread.lock")


@pytest.mark.parametrize(("kind", "obstacle"), [
    (RaisingReduce, "no pickle"), (ExitingReduce, "3"), (DiesWhenRebuilt, "cannot be rebuilt here: SystemExit: 4"),
    (BecomesText, "its pickle gave a str")])
def test_what_cannot_be_rebuilt_arrives_as_text(kind: type[Exception], obstacle: str) -> None:
    error = decode(encoded(kind("the message")))
    assert type(error) is errors.TaskError
    assert isinstance(error.__cause__, errors.RemoteException)
    assert f"{kind.__name__}: the message" in str(error)
    assert obstacle in str(error.__cause__)
    assert "the message" in shown(error)


@pytest.mark.parametrize("kind", [RaisingStr, RaisingCause, RaisingDict])
def test_hostile_exceptions_still_arrive(kind: type[Exception]) -> None:
    error = decode(encoded(kind("m")))
    assert isinstance(error, errors.TaskError)
    assert kind.__name__ in str(error)


def test_lone_surrogates_do_not_stop_a_failure() -> None:
    error = decode(encoded(ValueError("\ud800")))
    assert isinstance(error, ValueError)
    assert "\\ud800" in str(error)


def test_a_local_class_keeps_its_identity_for_except_clauses() -> None:
    class Local(Exception): ...

    with pytest.raises(Local):
        raise decode(encoded(Local("x")))


def test_an_interrupt_does_not_look_like_one_of_this_process() -> None:
    error = decode(encoded(KeyboardInterrupt()))
    assert type(error) is errors.TaskError
    assert isinstance(error.cause, KeyboardInterrupt)


def test_a_pipeline_shows_every_step() -> None:
    first = encoded(ZeroDivisionError("division"), "load")
    second = encoded(decode(first), "parse")
    third = encode_dependency(DependencyFailed(second), "train")
    error = decode(third)
    assert isinstance(error, ZeroDivisionError)
    steps = [error, error.__cause__, error.__cause__.__cause__]  # type: ignore[union-attr]
    assert [step.function_name for step in steps] == ["train", "parse", "load"]  # type: ignore[union-attr]
    assert type(steps[-1].__cause__) is ZeroDivisionError  # type: ignore[union-attr]
    assert str(error).startswith("train did not run, because an argument failed: ZeroDivisionError: division (in load")


def test_a_system_failure_of_a_dependency_keeps_its_type() -> None:
    crashed = encode_death("worker_died", "load", Death("w", 7, "head", signal=9))
    error = decode(encode_dependency(DependencyFailed(crashed), "train"))
    assert isinstance(error, errors.TaskError)
    assert isinstance(error, errors.WorkerCrashedError)


@pytest.mark.parametrize("step", ["dependency", "raised again"])
def test_a_long_pipeline_stays_small_and_keeps_its_origin(step: str) -> None:
    failure = encoded(ValueError("origin"), "first")
    sizes = []
    for index in range(200):
        if step == "dependency":
            failure = encode_dependency(DependencyFailed(failure), f"t{index}")
        else:
            failure = encoded(decode(failure), f"t{index}")
        sizes.append(len(failure))
    error = decode(failure)
    assert isinstance(error, ValueError)
    assert "origin" in str(error)
    assert sizes[-1] < sizes[50] + 1000
    assert str(error.root_cause() if isinstance(error, errors.TaskError) else "") == "origin"


def test_a_decoded_error_survives_pickling_with_its_chain() -> None:
    error = decode(encode_dependency(DependencyFailed(encoded(Needy(1, "d"))), "g"))
    after = pickle.loads(pickle.dumps(error))
    assert isinstance(after, Needy)
    assert str(after) == str(error)
    assert isinstance(after.__cause__.__cause__, Needy)  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", sorted(failures.SYSTEM_KINDS))
def test_system_failures_have_types(kind: str) -> None:
    error = decode(encode_system(kind, "what and why"))
    assert type(error) is failures.SYSTEM_KINDS[kind]
    after = decode(encoded(error, "again"))
    assert isinstance(after, failures.SYSTEM_KINDS[kind])


def test_a_full_store_keeps_its_numbers() -> None:
    error = decode(encode_system("full", "", numbers=(10, 1, 9, 10, 8)))
    assert isinstance(error, errors.ObjectStoreFullError)
    assert (error.need_bytes, error.pinned_bytes) == (10, 8)


def test_a_death_says_pid_node_signal_and_last_words() -> None:
    death = Death("worker-1", 77, "left", signal=9, stderr="one\ntwo\n")
    error = decode(encode_death("worker_died", "train", death, 3))
    assert isinstance(error, errors.WorkerCrashedError)
    assert str(error) == ("the worker running train died in each of 4 attempts: pid=77, node=left, signal 9 (SIGKILL)\n"
                          "last lines of its stderr:\none\ntwo")
    actor = decode(encode_death("actor_died", "Policy", Death("w", 5, "left", code=1, reason="out of memory")))
    assert isinstance(actor, errors.ActorDiedError)
    assert str(actor) == "actor Policy died: pid=5, node=left, exit code 1, out of memory"
    assert str(decode(encode_death("actor_unavailable", "P.step", None))) == "the worker of P.step died"


def test_a_failed_constructor_is_the_cause_of_the_actors_death() -> None:
    error = decode(failures.encode_constructor(encoded(ValueError("bad size"), "Policy.__init__"), "Policy"))
    assert isinstance(error, errors.ActorDiedError)
    assert "actor Policy died in its constructor: ValueError: bad size" in str(error)
    assert isinstance(error.__cause__, ValueError)


@pytest.mark.parametrize("garbage", [b"", b"\xff", b"\x90", encode_system("system", "x")[:-3]])
def test_garbage_is_a_failure_too(garbage: bytes) -> None:
    error = decode(garbage)
    assert isinstance(error, errors.MeshraySystemError)
    assert isinstance(decode(encode_dependency(DependencyFailed(garbage), "g")), errors.TaskError)
