"""Values, arguments and functions survive the way through bytes; what cannot go says why."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
import textwrap
import threading
import types
import warnings
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshray import serialization
from meshray.errors import UnserializableError
from meshray.messages.tasks import RefInfo
from meshray.object_ref import ObjectRef
from meshray.serialization import (
    deserialize,
    deserialize_args,
    dump_function,
    is_simple,
    load_function,
    serialize,
    serialize_args,
)

LARGE = 200 * 1024


def round_trip(value: Any) -> Any:
    serialized = serialize(value)
    return deserialize(serialized.data, [memoryview(bytes(buffer)) for buffer in serialized.buffers])


def make_ref(index: int = 1) -> ObjectRef:
    return ObjectRef(_prefix=b"0123456789", _index=index)


@pytest.fixture
def known_refs() -> Any:
    """Give references an owner, and find them again by id."""
    known: dict[bytes, ObjectRef] = {}

    def describe(ref: ObjectRef) -> RefInfo:
        known[ref.binary()] = ref
        return RefInfo(ref.binary(), "driver-1", "ipc://driver-1")

    def restore(object_: bytes, owner: str, endpoint: str) -> ObjectRef:
        assert (owner, endpoint) == ("driver-1", "ipc://driver-1")
        return known[object_]

    serialization.set_ref_hooks(describe, restore)
    yield known
    serialization.set_ref_hooks(None, None)


SIMPLE = [None, True, False, 0, -1, 2**31, -(2**200), 1.5, float("inf"), "", "text", "\ud800", b"", b"\x00\xff"]


@pytest.mark.parametrize("value", SIMPLE, ids=repr)
def test_simple_values_are_marked_as_simple(value: Any) -> None:
    data = serialize(value).data
    assert is_simple(data)
    assert deserialize(data) == value
    assert type(deserialize(data)) is type(value)
    assert deserialize(memoryview(data)) == value


class Text(str):
    """A str that must not come back as a plain one."""


@pytest.mark.parametrize("value", [[1], (1,), {"a": 1}, Text("x"), {1}, 1j, bytearray(b"x")], ids=repr)
def test_other_values_are_not_simple_and_keep_their_type(value: Any) -> None:
    serialized = serialize(value)
    assert not is_simple(serialized.data)
    assert deserialize(serialized.inline()) == value
    assert type(deserialize(serialized.data)) is type(value)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner)))
def test_any_plain_value_survives(value: Any) -> None:
    assert deserialize(serialize(value).inline()) == value
    args, kwargs = deserialize_args(serialize_args((value, 1), {"k": value})[0])
    assert tuple(args) == (value, 1)
    assert kwargs == {"k": value}


@pytest.mark.parametrize("value", ["ä" * LARGE, b"x" * LARGE, "\ud800" * LARGE], ids=["str", "bytes", "surrogates"])
def test_large_text_and_bytes_are_one_buffer(value: Any) -> None:
    serialized = serialize(value)
    assert len(serialized.data) == 1
    assert len(serialized.buffers) == 1
    assert not is_simple(serialized.data)
    assert round_trip(value) == value
    assert deserialize(serialized.inline()) == value


def test_large_arrays_stay_out_of_the_pickle_and_come_back_read_only_without_a_copy() -> None:
    array = np.arange(10_000, dtype=np.float64)
    serialized = serialize({"weights": array, "step": 3})
    assert [buffer.nbytes for buffer in serialized.buffers] == [80_000]
    assert serialized.size_bytes == len(serialized.data) + 80_000
    stored = bytes(serialized.buffers[0])
    got = deserialize(serialized.data, [memoryview(stored)])["weights"]
    assert np.array_equal(got, array)
    assert not got.flags.writeable
    assert np.shares_memory(got, np.frombuffer(stored, dtype=np.float64))


def test_small_arrays_are_part_of_the_pickle() -> None:
    assert serialize(np.zeros(10)).buffers == []


def test_inline_puts_arrays_where_their_elements_are_aligned() -> None:
    arrays = [np.arange(5_001, dtype=np.int8), np.arange(1_000, dtype=np.complex128).reshape(10, 100).T]
    got = deserialize(serialize(arrays).inline())
    for before, after in zip(arrays, got, strict=True):
        assert np.array_equal(before, after)
        assert after.flags.aligned
        assert not after.flags.writeable


# --- modules that workers cannot import ------------------------------------------------------------------------------


def run_elsewhere(data: bytes, tmp_path: Path) -> str:
    """Deserialize in a process that has none of this one's modules, and return the repr."""
    file = tmp_path / "value"
    file.write_bytes(data)
    code = ("import sys; from meshray.serialization import deserialize; "
            "print(repr(deserialize(open(sys.argv[1], 'rb').read())))")
    root = Path(serialization.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, cwd=root,
                          check=False)
    return done.stdout.strip() or done.stderr


SOURCE = textwrap.dedent("""
    class Point:
        def __init__(self, x): self.x = x
        def __repr__(self): return f"Point({self.x})"
""")


def test_a_class_of_a_module_made_by_exec_goes_by_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("made_by_exec")
    monkeypatch.setitem(sys.modules, "made_by_exec", module)
    exec(SOURCE, module.__dict__)
    try:
        assert run_elsewhere(serialize([module.Point(1)]).inline(), tmp_path) == "[Point(1)]"
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def test_a_class_of_a_file_that_no_import_finds_goes_by_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "loaded_by_path.py"
    file.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("loaded_by_path", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "loaded_by_path", module)
    spec.loader.exec_module(module)
    try:
        assert run_elsewhere(serialize([module.Point(2)]).inline(), tmp_path) == "[Point(2)]"
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def test_a_class_of_main_goes_by_value(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(SOURCE + textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(Path(serialization.__file__).parent.parent)!r})
        from meshray.serialization import serialize
        sys.stdout.buffer.write(serialize([Point(3)]).inline())
    """))
    data = subprocess.run([sys.executable, str(script)], capture_output=True, check=True).stdout
    assert run_elsewhere(data, tmp_path) == "[Point(3)]"


def test_modules_that_can_be_imported_go_by_reference() -> None:
    assert b"test_serialization" in serialize(Text("x")).data
    assert len(serialize(Text("x")).data) < 100


# --- references ------------------------------------------------------------------------------------------------------


def test_references_inside_a_value_are_collected_in_order_and_come_back(known_refs: dict[bytes, ObjectRef]) -> None:
    first, second = make_ref(1), make_ref(2)
    serialized = serialize({"a": [second, first, second]})
    assert serialized.refs == [second, first]
    got = deserialize(serialized.data)
    assert got["a"][0] is second
    assert got["a"][1] is first


def test_references_are_collected_once_when_plain_pickle_gives_up_half_way(known_refs: dict[bytes, ObjectRef]) -> None:
    ref = make_ref()
    serialized = serialize([ref, lambda: 1, np.zeros(1000)])
    assert serialized.refs == [ref]
    assert len(serialized.buffers) == 1
    assert deserialize(serialized.inline())[1]() == 1


def test_a_reference_cannot_be_pickled_by_others() -> None:
    with pytest.raises(TypeError, match=r"outside of meshray.*pass it to a task"):
        cloudpickle.dumps([make_ref()])


def test_a_failed_serialization_leaves_no_context_behind() -> None:
    with pytest.raises(UnserializableError):
        serialize(threading.Lock())
    with pytest.raises(TypeError, match="outside of meshray"):
        cloudpickle.dumps(make_ref())


def test_a_value_that_serializes_another_one_meanwhile_keeps_its_own_references(known_refs: Any) -> None:
    inner, outer = make_ref(1), make_ref(2)
    seen: list[Any] = []

    class Nested:
        def __reduce__(self) -> Any:
            seen.append(serialize([inner]).refs)
            return list, ([outer],)

    assert serialize([Nested(), outer]).refs == [outer]
    assert seen == [[inner]]


# --- arguments -------------------------------------------------------------------------------------------------------


def test_no_arguments_are_nothing() -> None:
    assert serialize_args((), {}) == (None, (), None, ())
    assert deserialize_args(None) == ((), {})


def test_top_level_references_become_slots(known_refs: Any) -> None:
    one, two, inner = make_ref(1), make_ref(2), make_ref(3)
    for rest in (5, [inner], np.zeros(2)):
        data, buffers, slots, refs = serialize_args((rest, one), {"k": two, "n": 1})
        assert slots == [(1, one), ("k", two)]
        assert list(refs) == ([inner] if type(rest) is list else [])
        args, kwargs = deserialize_args(data, buffers, {1: "first", "k": "second"})
        assert args[1] == "first"
        assert kwargs == {"k": "second", "n": 1}


def test_arguments_with_buffers_can_be_inlined() -> None:
    array = np.arange(1000)
    data, buffers, _, _ = serialize_args((array,), {})
    assert data is not None
    args, _ = deserialize_args(serialization.Serialized(data, buffers).inline())
    assert np.array_equal(args[0], array)


@dataclasses.dataclass
class Model:
    name: str
    lock: Any


def test_an_argument_that_cannot_be_pickled_is_named() -> None:
    def train(data: Any, model: Any) -> None: ...

    bad = {"models": [Model("a", None), Model("b", threading.Lock())]}
    with pytest.raises(UnserializableError, match=r"argument 'model' of .*train: \['models'\]\[1\]\.lock is a _thread"):
        serialize_args((1, bad), {}, of=train)
    with pytest.raises(TypeError, match=r"argument 'callback' of f \(_thread.lock\) cannot be pickled"):
        serialize_args((), {"callback": threading.Lock()}, of="f")


def test_a_closure_that_cannot_be_pickled_names_the_variable() -> None:
    lock = threading.Lock()

    def guarded() -> None:
        lock.acquire()

    with pytest.raises(UnserializableError, match=r"guarded: closure variable 'lock' is a _thread\.lock"):
        dump_function(guarded)


# --- functions -------------------------------------------------------------------------------------------------------


def test_closures_recursion_and_super_survive() -> None:
    offset = 10

    def factorial(n: int) -> int:
        return offset if n == 0 else n * factorial(n - 1)

    class Base:
        def value(self) -> int:
            return 1

    class Derived(Base):
        def value(self) -> int:
            return super().value() + 1

    assert load_function(dump_function(factorial))(3) == 60
    assert load_function(dump_function(Derived))().value() == 2


def test_the_same_name_defined_anew_is_another_function() -> None:
    pickles = []
    for text in ("def f(): return 1", "def f(): return 2"):
        space: dict[str, Any] = {"__name__": "__main__"}
        exec(text, space)
        pickles.append(dump_function(space["f"]))
    assert pickles[0] != pickles[1]
    assert [load_function(data)() for data in pickles] == [1, 2]


def test_a_function_by_value_keeps_its_file_and_line(tmp_path: Path) -> None:
    """A traceback shows lines by them."""
    path = str(tmp_path / "program.py")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile("\n\ndef outer():\n    return lambda: 1\n", path, "exec"), namespace)
    loaded = load_function(dump_function(namespace["outer"]))
    assert (loaded.__code__.co_filename, loaded.__code__.co_firstlineno) == (path, 3)
    assert loaded().__code__.co_filename == path
    assert loaded()() == 1


def test_a_function_with_large_data_warns_and_names_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serialization, "FUNCTION_BYTES_WARN", 1 << 20)
    table = b"x" * (2 << 20)
    with pytest.warns(UserWarning, match=r"is 2\.0 MiB when pickled"):
        dump_function(lambda: table)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dump_function(lambda: 1)


# --- a program's own rules -------------------------------------------------------------------------------------------


class Guarded:
    """Cannot be pickled but by a registered serializer."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.lock = threading.Lock()


def test_a_registered_serializer_is_used_until_it_is_deregistered() -> None:
    serialization.register_serializer(Guarded, serializer=lambda one: one.number, deserializer=Guarded)
    try:
        assert deserialize(serialize([Guarded(5)]).data)[0].number == 5
    finally:
        serialization.deregister_serializer(Guarded)
    with pytest.raises(UnserializableError, match="lock"):
        serialize(Guarded(5))
    serialization.deregister_serializer(Guarded)
