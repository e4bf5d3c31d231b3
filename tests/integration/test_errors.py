"""Exceptions: types, chains, tracebacks, and what cannot be pickled."""

from __future__ import annotations

import pickle
import sys
import threading
import traceback

import pytest

import meshray

pytestmark = pytest.mark.usefixtures("meshray_local")


class Custom(Exception):
    def __init__(self, code, detail):
        super().__init__(f"{code}: {detail}")
        self.code, self.detail = code, detail

    def __reduce__(self):
        return Custom, (self.code, self.detail)


class CannotBeRebuilt(Exception):
    """Pickles by its message, but its constructor wants two arguments."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


class HoldsLock(Exception):
    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


@meshray.remote
def fail(error):
    raise error


@meshray.remote
def pass_on(x):
    return x


def raised(ref):
    with pytest.raises(Exception) as caught:
        meshray.get(ref, timeout=30)
    return caught.value


@pytest.mark.parametrize("error", [ValueError("v"), KeyError("k"), ZeroDivisionError("z"), OSError(2, "gone"),
                                   StopIteration("s"), AssertionError(), RuntimeError("r")], ids=repr)
def test_builtin_types_are_preserved(error):
    caught = raised(fail.remote(error))
    assert isinstance(caught, type(error))
    assert isinstance(caught, meshray.exceptions.TaskError)


def test_user_s_type_and_attributes_are_preserved():
    caught = raised(fail.remote(Custom(7, "seven")))
    assert isinstance(caught, Custom)
    assert isinstance(caught, meshray.exceptions.TaskError)
    assert (caught.code, caught.detail) == (7, "seven")


def test_error_shows_the_remote_traceback():
    @meshray.remote
    def outer():
        def a_telling_name():
            raise ValueError("deep down")

        a_telling_name()

    text = "".join(traceback.format_exception(raised(outer.remote())))
    assert "a_telling_name" in text
    assert "deep down" in text
    assert "outer" in text


def test_error_passes_through_dependents_and_names_the_chain():
    caught = raised(pass_on.options(name="third").remote(pass_on.remote(fail.remote(ValueError("at the root")))))
    assert isinstance(caught, ValueError)
    text = "".join(traceback.format_exception(caught))
    assert "at the root" in text
    assert text.count("pass_on") + text.count("third") >= 1
    assert "fail" in text


def test_dependents_of_a_failed_task_do_not_run(tmp_path):
    @meshray.remote
    def mark(x):
        (tmp_path / "ran").touch()

    raised(mark.remote(fail.remote(ValueError("x"))))
    assert not (tmp_path / "ran").exists()


def test_nested_get_passes_the_type_on():
    @meshray.remote
    def outer():
        return meshray.get(fail.remote(Custom(1, "inner")))

    assert isinstance(raised(outer.remote()), Custom)


def test_task_can_catch_the_error_of_its_child():
    @meshray.remote
    def outer():
        try:
            meshray.get(fail.remote(KeyError("inner")))
        except KeyError as error:
            return "caught", isinstance(error, meshray.exceptions.TaskError)

    assert meshray.get(outer.remote()) == ("caught", True)


def test_cause_set_by_the_user_survives_as_text():
    @meshray.remote
    def chained():
        try:
            {}["missing"]
        except KeyError as error:
            raise ValueError("outer") from error

    caught = raised(chained.remote())
    assert isinstance(caught, ValueError)
    assert "missing" in "".join(traceback.format_exception(caught))


def test_every_return_carries_the_error():
    first, second = fail.options(num_returns=2).remote(KeyError("both"))
    assert isinstance(raised(first), KeyError)
    assert isinstance(raised(second), KeyError)


def test_same_error_can_be_raised_again_and_pickled():
    ref = fail.remote(ValueError("again"))
    first, second = raised(ref), raised(ref)
    assert str(first) == str(second)
    assert isinstance(pickle.loads(pickle.dumps(first)), ValueError)


def test_exception_as_a_plain_value():
    assert isinstance(meshray.get(pass_on.remote(ValueError("just data"))), ValueError)


@pytest.mark.parametrize("error_type", [CannotBeRebuilt, HoldsLock])
def test_exceptions_that_do_not_survive_pickling_arrive_as_text(error_type):
    arguments = ("salt", "pepper") if error_type is CannotBeRebuilt else ("salt and pepper",)

    @meshray.remote
    def fails():
        raise error_type(*arguments)

    caught = raised(fails.remote())
    assert isinstance(caught, meshray.exceptions.MeshrayError)
    text = "".join(traceback.format_exception(caught))
    assert error_type.__name__ in text
    assert "salt and pepper" in text


def test_system_exit_in_a_task_is_an_error_of_the_task():
    @meshray.remote(max_retries=0)
    def leaves():
        sys.exit(3)

    assert isinstance(raised(leaves.remote()), meshray.exceptions.MeshrayError)
    assert meshray.get(pass_on.remote(1), timeout=30) == 1


class Holder:
    def __init__(self):
        self.fine = 1
        self.handle = threading.Lock()


def test_unpicklable_argument_names_the_attribute():
    with pytest.raises(TypeError, match="handle"):
        pass_on.remote(Holder())
    with pytest.raises(TypeError, match="lock"):
        meshray.put({"key": threading.Lock()})


def test_unpicklable_closure_names_the_variable():
    guard = threading.Lock()

    @meshray.remote
    def uses():
        with guard:
            return 1

    with pytest.raises(TypeError, match="guard"):
        uses.remote()


def test_unpicklable_result_is_an_error_of_the_task():
    @meshray.remote
    def gives():
        return Holder()

    caught = raised(gives.remote())
    assert isinstance(caught, TypeError)
    assert "lock" in str(caught)


def test_value_that_fails_while_it_is_rebuilt():
    class Bomb:
        def __reduce__(self):
            return int, ("not a number",)

    caught = raised(pass_on.remote(Bomb()))
    assert "not a number" in "".join(traceback.format_exception(caught))
    assert meshray.get(pass_on.remote(1), timeout=30) == 1


def test_names_that_ray_programs_catch():
    wanted = ["RayError", "RayTaskError", "RayActorError", "ActorDiedError", "ActorUnavailableError", "GetTimeoutError",
              "WorkerCrashedError", "TaskCancelledError", "ObjectLostError", "ObjectStoreFullError", "OwnerDiedError",
              "NodeDiedError", "RaySystemError", "OutOfMemoryError", "RuntimeEnvSetupError"]
    for name in wanted:
        assert issubclass(getattr(meshray.exceptions, name), meshray.exceptions.RayError), name
    assert issubclass(meshray.exceptions.GetTimeoutError, TimeoutError)
