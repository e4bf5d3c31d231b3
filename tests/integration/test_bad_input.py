"""Bad input is refused where it is given, by an error that names the option or the thing."""

from __future__ import annotations

import pytest

import meshray

pytestmark = pytest.mark.usefixtures("meshray_local")


def plain():
    return 1


class Plain:
    def call(self):
        return 1


TASK_OPTIONS = [
    {"num_cpu": 1}, {"num_cpus": -1}, {"num_cpus": "two"}, {"num_gpus": -0.5}, {"num_returns": -1},
    {"num_returns": "three"}, {"max_retries": -2}, {"max_retries": 1.5}, {"memory": -1}, {"resources": {"a": -1}},
    {"resources": ["a"]}, {"resources": {"CPU": 1}}, {"resources": {"GPU": 1}}, {"retry_exceptions": "all"},
    {"max_restarts": 1}, {"lifetime": "detached"},
]
ACTOR_OPTIONS = [
    {"max_restart": 1}, {"max_restarts": -2}, {"max_task_retries": -2}, {"max_concurrency": -1},
    {"max_concurrency": "x"}, {"lifetime": "forever"}, {"num_cpus": -1}, {"resources": {"CPU": 1}}, {"name": 5},
    {"name": ""}, {"namespace": ""}, {"max_retries": 1}, {"num_returns": 2}, {"get_if_exists": True},
]


def named(options):
    """The error must name the option, or the resource in it."""
    return "|".join([*options, *(key for value in options.values() if isinstance(value, dict) for key in value)])


@pytest.mark.parametrize("options", TASK_OPTIONS, ids=str)
def test_task_options(options):
    with pytest.raises((TypeError, ValueError), match=named(options)):
        meshray.remote(**options)(plain).remote()
    with pytest.raises((TypeError, ValueError), match=named(options)):
        meshray.remote(plain).options(**options)


@pytest.mark.parametrize("options", ACTOR_OPTIONS, ids=str)
def test_actor_options(options):
    with pytest.raises((TypeError, ValueError), match=named(options)):
        meshray.remote(Plain).options(**options).remote()


def test_unknown_option_is_refused_at_decoration():
    with pytest.raises((TypeError, ValueError, AssertionError), match="num_cpuz"):
        meshray.remote(num_cpuz=1)(plain)


def test_method_options():
    actor = meshray.remote(Plain).remote()
    with pytest.raises((TypeError, ValueError), match="num_returns"):
        actor.call.options(num_returns=-1).remote()
    with pytest.raises((TypeError, ValueError), match="colour"):
        actor.call.options(colour="red").remote()


def test_method_decorator():
    with pytest.raises((TypeError, ValueError, AssertionError), match=r"colour|keywords|arguments"):
        meshray.method(colour="red")(plain)


def test_calling_a_remote_function_directly():
    with pytest.raises(TypeError, match=r"plain.*\.remote|remote.*plain"):
        meshray.remote(plain)()


@pytest.mark.parametrize("what", [5, "text", None, [1]])
def test_remote_wants_a_function_or_class(what):
    with pytest.raises((TypeError, ValueError, AssertionError)):
        meshray.remote(what)


def test_wrong_arguments_of_constructor_and_method():
    with pytest.raises(TypeError):
        meshray.remote(Plain).remote(1, 2)
    with pytest.raises(TypeError):
        meshray.remote(Plain).remote().call.remote(1, 2)


def test_ref_is_not_its_value():
    ref = meshray.put([1, 2])
    for misuse in (lambda: ref[0], lambda: len(ref), lambda: ref + 3, lambda: list(ref)):
        with pytest.raises(TypeError):
            misuse()


def test_get_timeout_must_be_a_time():
    with pytest.raises((TypeError, ValueError)):
        meshray.get(meshray.put(1), timeout="soon")


def test_cluster_goes_on_after_all_this():
    assert meshray.get(meshray.remote(plain).remote()) == 1
