"""Names, inheritance, messages and pickling of every error."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from meshray import errors, exceptions

OURS = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
RAY_NAMES = (
    "RayError", "RayTaskError", "RayActorError", "RaySystemError", "TaskCancelledError", "WorkerCrashedError",
    "LocalRayletDiedError", "NodeDiedError", "ActorDiedError", "ActorUnavailableError", "ActorUnschedulableError",
    "TaskUnschedulableError", "TaskPlacementGroupRemoved", "ActorPlacementGroupRemoved", "PendingCallsLimitExceeded",
    "ActorAlreadyExistsError", "ActorHandleNotFoundError", "GetTimeoutError", "ObjectStoreFullError",
    "OutOfDiskError", "OutOfMemoryError", "ObjectLostError", "ObjectFetchTimedOutError",
    "ReferenceCountingAssertionError", "ObjectFreedError", "OwnerDiedError", "ObjectReconstructionFailedError",
    "ObjectRefStreamEndOfStreamError", "StreamingGeneratorReplayInconsistentError", "RayChannelError",
    "RayChannelTimeoutError", "RayCgraphCapacityExceeded", "RayDirectTransportError", "RuntimeEnvSetupError",
    "AsyncioActorExit", "CrossLanguageError", "RpcError", "AuthenticationError", "UserCodeException",
    "UnserializableException", "OufOfBandObjectRefSerializationException", "PlasmaObjectNotAvailable",
)


@pytest.mark.parametrize("name", RAY_NAMES)
def test_every_name_of_ray_is_an_error_here(name: str) -> None:
    error = getattr(exceptions, name)("why")
    assert isinstance(error, errors.MeshrayError)
    assert name in exceptions.__all__
    assert isinstance(pickle.loads(pickle.dumps(error)), type(error))


@pytest.mark.parametrize(("error", "also"), [
    (errors.GetTimeoutError, TimeoutError), (errors.ActorAlreadyExistsError, ValueError),
    (errors.ActorHandleNotFoundError, ValueError), (errors.UnserializableError, TypeError),
    (errors.ReferenceCountingAssertionError, AssertionError), (errors.ClusterNotFoundError, ConnectionError),
    (errors.ActorDiedError, errors.ActorError), (errors.OwnerDiedError, errors.ObjectLostError),
    (errors.NotInitializedError, errors.MeshraySystemError)])
def test_ordinary_except_clauses_work(error: type[Exception], also: type[Exception]) -> None:
    with pytest.raises(also):
        raise error("why")


@pytest.mark.parametrize("error", [kind for kind in OURS if kind is not errors.ObjectStoreFullError])
def test_errors_survive_pickling_with_message_and_notes(error: Any) -> None:
    before = error("what happened")
    before.add_note("a note")
    after = pickle.loads(pickle.dumps(before))
    assert type(after) is error
    assert str(after) == str(before)
    assert "what happened" in str(after)


def test_a_full_store_says_the_numbers_and_what_to_do() -> None:
    full = errors.ObjectStoreFullError(64 << 20, 3 << 20, 61 << 20, 64 << 20, 60 << 20)
    text = "object store full (need 64 MiB, free 3 MiB, used 61 MiB of 64 MiB, pinned 60 MiB)"
    assert str(full).startswith(text)
    after = pickle.loads(pickle.dumps(full))
    assert (str(after), after.need_bytes, after.pinned_bytes) == (str(full), 64 << 20, 60 << 20)
    assert "larger than the object store" in str(errors.ObjectStoreFullError(65 << 20, 0, 0, 64 << 20))


@pytest.mark.parametrize(("size", "text"), [
    (0, "0 B"), (512, "512 B"), (3584, "3.5 KiB"), (64 << 20, "64 MiB"), (1288490189, "1.2 GiB"), (5 << 40, "5 TiB")])
def test_sizes_as_people_read_them(size: int, text: str) -> None:
    assert errors.size_text(size) == text


class Needy(Exception):
    def __init__(self, code: int, *, detail: str) -> None:
        super().__init__(f"code {code}")
        self.code = code
        self.detail = detail

    def __str__(self) -> str:
        return "my own text"


class Slotted(Exception):
    __slots__ = ("code",)


class Final(Exception):
    def __init_subclass__(cls) -> None:
        raise TypeError("final")


class Masked(Exception):
    @property
    def args(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no")


def task_error(cause: BaseException) -> errors.TaskError:
    return errors.TaskError("f failed", cause=cause, function_name="f", traceback_str="text", pid=3, node="head")


def test_a_task_error_is_also_the_users_error_with_its_fields() -> None:
    error = task_error(Needy(7, detail="d")).as_instanceof_cause()
    assert isinstance(error, Needy)
    assert (error.code, error.detail, error.pid, error.function_name) == (7, "d", 3, "f")
    assert str(error) == "f failed"
    assert error.__cause__ is error.cause
    assert type(error).__name__ == "TaskError(Needy)"


def test_fields_that_lie_in_c_or_in_slots_are_there_too() -> None:
    missing = task_error(FileNotFoundError(2, "No such file", "/x")).as_instanceof_cause()
    assert isinstance(missing, FileNotFoundError)
    assert (missing.errno, missing.filename) == (2, "/x")
    bad = task_error(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad")).as_instanceof_cause()
    assert isinstance(bad, UnicodeDecodeError)
    assert bad.reason == "bad"
    slotted = Slotted()
    slotted.code = 9
    error = task_error(slotted).as_instanceof_cause()
    assert isinstance(error, Slotted)
    assert error.code == 9


def test_a_property_in_place_of_args_does_not_matter() -> None:
    assert isinstance(task_error(Masked("x")).as_instanceof_cause(), Masked)


def test_groups_can_be_split() -> None:
    group = ExceptionGroup("two", [ValueError("a"), KeyError("b")])
    caught: list[BaseException] = []
    try:
        raise task_error(group).as_instanceof_cause()
    except* KeyError as part:
        caught += part.exceptions
    except* ValueError as part:
        caught += part.exceptions
    assert sorted(map(repr, caught)) == ["KeyError('b')", "ValueError('a')"]


@pytest.mark.parametrize("cause", [Final("x"), KeyboardInterrupt(), SystemExit(1),
                                   errors.RemoteException("x")], ids=lambda one: type(one).__name__)
def test_where_that_is_not_possible_it_is_a_plain_task_error(cause: BaseException) -> None:
    error = task_error(cause).as_instanceof_cause()
    assert type(error) is errors.TaskError
    assert error.cause is cause


def test_a_task_error_of_a_task_error_is_of_the_first_users_type() -> None:
    outer = task_error(task_error(ZeroDivisionError("x")).as_instanceof_cause()).as_instanceof_cause()
    assert isinstance(outer, ZeroDivisionError)
    assert isinstance(outer.root_cause(), ZeroDivisionError)


def test_a_task_error_survives_pickling_as_what_it_was() -> None:
    for error in (task_error(ValueError("x")), task_error(ValueError("x")).as_instanceof_cause()):
        after = pickle.loads(pickle.dumps(error))
        assert isinstance(after, ValueError) is isinstance(error, ValueError)
        assert (str(after), after.traceback_str, after.node, repr(after.__cause__)) == \
            ("f failed", "text", "head", "ValueError('x')")
