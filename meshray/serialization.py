"""Values, arguments and functions to bytes and back: the one door to pickle, cloudpickle and marshal.

*Shell (pickle).* Runs in drivers and workers; control processes never unpickle.

1. The first byte of serialized data tells its form. A simple value (exactly None, bool, int, float, str or bytes) is
   marshalled, so the byte is an ASCII character; everything else is pickled, so it is 0x80; below 0x10 it is our own.
2. Plain pickle is tried first. Its result stands only if it names no module that workers cannot import, ``__main__``
   above all: a global's module stands in a pickle as text, so a search for the text has no false negatives, and a
   false positive only costs time. Everything else goes by value, through cloudpickle.
3. A reference can be pickled only inside a call to this module: ``serialize`` and its kin say which references they
   met, so that somebody holds them until the receiver does.
4. Buffers of ``BUFFER_BYTES_MIN`` or more stay out of the pickle (protocol 5) and are never copied here. What is read
   from a read-only buffer is read-only.

Marshalling ``(1,)`` takes 85 ns, pickling it 380 ns (2-core machine).
"""

from __future__ import annotations

import copyreg
import functools
import io
import marshal
import pickle
import sys
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import CodeType
from typing import Any

import msgspec

from meshray import config, private_modules
from meshray.errors import UnserializableError, size_text
from meshray.messages.tasks import RefInfo
from meshray.object_ref import ObjectRef
from meshray.packing import PACKED, pack, unpack

BUFFER_BYTES_MIN = 4 * config.KIB
"""Smaller buffers are copied into the pickle: a buffer of its own costs about 1 us on each side."""

FUNCTION_BYTES_WARN = 10 * config.MIB
"""A pickled function larger than this has probably captured data that belongs into ``put``."""

_LARGE_STR, _LARGE_BYTES = 1, 2
"""Forms of text or bytes that are the only buffer; 0 is ``packing.PACKED``."""
_OWN_FORMS_END = 0x10
_PICKLE_FORM = 0x80
_ARGS, _ARGS_AND_KWARGS = ord("("), ord("[")
_SIMPLE_TYPES = frozenset({type(None), bool, int, float, str, bytes})
_MARSHAL_VERSION = 2
"""Without the table of repeated objects: twice as fast, and readable by every Python 3."""

_dumps = pickle.dumps
_loads = pickle.loads
_marshal = marshal.dumps


class Serialized(msgspec.Struct, frozen=True):
    """A value as bytes. ``buffers`` belong to the value still; ``refs`` are the references inside it, in order."""

    data: bytes
    buffers: Sequence[memoryview] = ()
    refs: Sequence[ObjectRef] = ()

    @property
    def size_bytes(self) -> int:
        """Size of data and buffers."""
        return len(self.data) + sum(buffer.nbytes for buffer in self.buffers)

    def inline(self) -> bytes:
        """Return everything in one piece, which ``deserialize`` takes as its only argument."""
        return pack(self.data, self.buffers) if self.buffers else self.data


# --- values ----------------------------------------------------------------------------------------------------------


def serialize(value: Any, *, of: str = "the value") -> Serialized:
    """Return ``value`` as bytes. ``of`` names it in the error. Raise UnserializableError (a TypeError)."""
    kind = type(value)
    if kind in _SIMPLE_TYPES:
        if (kind is str or kind is bytes) and len(value) >= config.INLINE_BYTES_MAX:
            return _serialize_large(value)
        return Serialized(_marshal(value, _MARSHAL_VERSION))
    return Serialized(*_pickle(value, of))


def _serialize_large(value: str | bytes) -> Serialized:
    if isinstance(value, str):
        return Serialized(bytes((_LARGE_STR,)), (memoryview(value.encode("utf-8", "surrogatepass")),))
    return Serialized(bytes((_LARGE_BYTES,)), (memoryview(value),))


def deserialize(data: bytes | memoryview, buffers: Sequence[Any] = ()) -> Any:
    """Return the value. Raise whatever the value's own classes raise while they are rebuilt."""
    form = data[0]
    if form == _PICKLE_FORM:
        return _loads(data, buffers=buffers)
    if form >= _OWN_FORMS_END:
        return marshal.loads(data)
    if form == PACKED:
        return deserialize(*unpack(data))
    if form == _LARGE_STR:
        return str(buffers[0], "utf-8", "surrogatepass")
    assert form == _LARGE_BYTES, form
    return bytes(buffers[0])


def is_simple(data: bytes | memoryview) -> bool:
    """Whether ``data`` is an immutable simple value, so that reading it once is enough."""
    return _OWN_FORMS_END <= data[0] < _PICKLE_FORM


def _pickle(value: Any, of: Any, *, call: bool = False) -> tuple[bytes, list[memoryview], list[ObjectRef]]:
    """Pickle ``value``: plainly if that is exact, else by value. ``call``: it is (args, kwargs) of function ``of``."""
    refs: list[ObjectRef] = []
    buffers: list[memoryview] = []

    def take(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes < BUFFER_BYTES_MIN:
            return True
        buffers.append(view)
        return False

    outer = _collecting.refs
    _collecting.refs = refs
    try:
        try:
            data = _dumps(value, 5, buffer_callback=take)
            if not _names_private_module(data):
                return data, buffers, refs
        except MemoryError:
            raise
        except Exception:  # plain pickle cannot: cloudpickle has the last word, and raises if it cannot either
            data = b""
        refs.clear()
        buffers.clear()
        data = _dumps_by_value(value, take)
    except MemoryError:
        raise
    except Exception as error:
        raise _explained(of, value, error, call=call) from error
    finally:
        _collecting.refs = outer
    return data, buffers, refs


def _explained(of: Any, value: Any, error: Exception, *, call: bool = False) -> UnserializableError:
    from meshray.unpicklable import explain, find_argument

    if call:
        args, kwargs = value
        of, value = find_argument(args, kwargs, of)
    return UnserializableError(explain(value, of, error))


def try_pickle(value: Any) -> Exception | None:
    """Return the error of pickling ``value`` by itself, or None if that works."""
    outer, _collecting.refs = _collecting.refs, []
    try:
        _dumps_by_value(value, lambda buffer: None)
    except Exception as error:
        return error
    finally:
        _collecting.refs = outer
    return None


@functools.cache
def _by_value() -> Any:
    """Return cloudpickle's Pickler for code that keeps its file name: without, tracebacks show no lines (3.1.3)."""
    import cloudpickle  # type: ignore[import-untyped]

    before = cloudpickle.Pickler.dispatch_table
    def reduce_code(code: CodeType) -> Any:
        try:
            return marshal.loads, (_marshal(code, _MARSHAL_VERSION),)
        except ValueError:  # a constant that no compiler makes
            return before[CodeType](code)

    return type("ByValue", (cloudpickle.Pickler,), {"dispatch_table": before.new_child({CodeType: reduce_code})})


def _dumps_by_value(value: Any, take: Callable[[pickle.PickleBuffer], Any] | None = None) -> bytes:
    _by_value()(file := io.BytesIO(), 5, buffer_callback=take).dump(value)
    return file.getvalue()


# --- modules that workers cannot import ------------------------------------------------------------------------------

_private: tuple[bytes, ...] = ()
_modules_seen = 0
_modules_checked: set[str] = set()
_registry: set[str] = set()


def _names_private_module(data: bytes) -> bool:
    """Whether the pickle ``data`` may refer to a module that workers cannot import."""
    if data.find(b"__main__") >= 0:  # `in` would first raise and catch an error, at 120 ns
        return True
    if len(sys.modules) + len(_registry) != _modules_seen:
        _look_for_private_modules()
    return any(name in data for name in _private) if _private else False


def _look_for_private_modules() -> None:
    """Learn which modules go by value: private ones, and those that the user registered with cloudpickle."""
    global _private, _modules_seen, _registry
    found = private_modules.find_new(_modules_checked)
    if found or "cloudpickle" in sys.modules:
        import cloudpickle.cloudpickle  # type: ignore[import-untyped]

        for module in found:
            cloudpickle.register_pickle_by_value(module)
        _registry = cloudpickle.cloudpickle._PICKLE_BY_VALUE_MODULES
    _private = tuple(name.encode() for name in _registry)
    _modules_seen = len(sys.modules) + len(_registry)


# --- references ------------------------------------------------------------------------------------------------------


class _Collecting(threading.local):
    refs: list[ObjectRef] | None = None


_collecting = _Collecting()


def _nobody_describes(ref: ObjectRef) -> RefInfo:
    return RefInfo(ref.binary(), "", "")


def _nobody_restores(object_: bytes, owner: str, endpoint: str) -> ObjectRef:
    return ObjectRef(_id=object_)


_describe: Callable[[ObjectRef], RefInfo] = _nobody_describes
_restore: Callable[[bytes, str, str], ObjectRef] = _nobody_restores


def set_ref_hooks(describe: Callable[[ObjectRef], RefInfo] | None,
                  restore: Callable[[bytes, str, str], ObjectRef] | None) -> None:
    """Say how references cross processes: ``describe(ref)`` when one is pickled, ``restore(object, owner, endpoint)``
    when one is rebuilt. None puts the behaviour of a process without a session back."""
    global _describe, _restore
    _describe = describe or _nobody_describes
    _restore = restore or _nobody_restores


def collect_ref(ref: ObjectRef) -> None:
    """Note that the value being serialized in this thread contains ``ref``. Raise TypeError if there is none."""
    refs = _collecting.refs
    if refs is None:
        raise TypeError(f"{ref!r} was pickled outside of meshray, so nobody would know who holds it: pass it to a "
                        "task, put it inside a value given to meshray, or get() its value and pickle that")
    refs.append(ref)


def reduce_ref(ref: ObjectRef) -> tuple[Any, ...]:
    """Return what ``ObjectRef.__reduce__`` returns."""
    collect_ref(ref)
    info = _describe(ref)
    return restore_ref, (info.object, info.owner, info.endpoint)


def restore_ref(object_: bytes, owner: str, endpoint: str) -> ObjectRef:
    """Rebuild a reference; pickles name this function."""
    return _restore(object_, owner, endpoint)


# --- arguments -------------------------------------------------------------------------------------------------------

Slots = list[tuple[int | str, ObjectRef]]


def serialize_args(args: tuple[Any, ...], kwargs: dict[str, Any], *, of: Any = "the call") -> tuple[
        bytes | None, Sequence[memoryview], Slots | None, Sequence[ObjectRef]]:
    """Return the arguments of a call as (data, buffers, slots, refs).

    ``data`` is None if there are none. ``slots`` are the top-level references, by position or keyword: they travel as
    values of their own, and None stands in their place. ``refs`` are the references inside other arguments. ``of`` is
    the function or its name, for the error. Raise UnserializableError (a TypeError).
    """
    if not args and not kwargs:
        return None, (), None, ()
    simple = True
    slots: Slots = []
    # Two plain loops: generators and sets of types take twice as long on the few arguments that calls have.
    for position, value in enumerate(args):
        kind = type(value)
        if kind is ObjectRef:
            slots.append((position, value))
        elif kind not in _SIMPLE_TYPES:
            simple = False
    for name, value in kwargs.items():
        kind = type(value)
        if kind is ObjectRef:
            slots.append((name, value))
        elif kind not in _SIMPLE_TYPES:
            simple = False
    if slots:
        args = tuple([None if type(value) is ObjectRef else value for value in args])
        kwargs = {name: None if type(value) is ObjectRef else value for name, value in kwargs.items()}
    if simple:
        data = _marshalled([args, kwargs] if kwargs else args)
        if data is not None:
            return data, (), slots or None, ()
    data, buffers, refs = _pickle((args, kwargs), of, call=True)
    return data, buffers, slots or None, refs


def _marshalled(arguments: Any) -> bytes | None:
    try:
        return _marshal(arguments, _MARSHAL_VERSION)
    except ValueError:  # text or bytes of 2 GiB: more than marshal can tell the length of
        return None


def deserialize_args(data: bytes | memoryview | None, buffers: Sequence[Any] = (),
                     slots: Mapping[int | str, Any] | None = None) -> tuple[Sequence[Any], dict[str, Any]]:
    """Return positional and keyword arguments; ``slots`` are the values of the top-level references."""
    args: Any
    kwargs: dict[str, Any]
    if data is None:
        return (), {}
    form = data[0]
    if form == _ARGS:
        args, kwargs = marshal.loads(data), {}
    elif form == _ARGS_AND_KWARGS:
        args, kwargs = marshal.loads(data)
    else:
        args, kwargs = deserialize(data, buffers)
    if slots:
        args = list(args)
        for key, value in slots.items():
            if isinstance(key, str):
                kwargs[key] = value
            else:
                args[key] = value
    return args, kwargs


# --- functions -------------------------------------------------------------------------------------------------------


def dump_function(function: Any) -> bytes:
    """Pickle a function or class by value where workers cannot import it. Raise UnserializableError (a TypeError).

    References that it has captured are held by the function itself, so it must live as long as its copies are used.
    """
    _look_for_private_modules()
    name = getattr(function, "__qualname__", repr(function))
    outer, _collecting.refs = _collecting.refs, []
    try:
        data = _dumps_by_value(function)
    except Exception as error:
        raise _explained(name, function, error) from error
    finally:
        _collecting.refs = outer
    if len(data) > FUNCTION_BYTES_WARN:
        warnings.warn(f"{name} is {size_text(len(data))} when pickled: it has captured large data. Pass them as an "
                      "argument, or put() them once and pass the reference.", stacklevel=3)
    return data


def load_function(data: bytes) -> Any:
    """Return the function or class. Raise whatever its modules raise when they are imported."""
    return _loads(data)


# --- a program's own rules -------------------------------------------------------------------------------------------

_replaced: dict[type, Any] = {}


def register_serializer(cls: type, *, serializer: Callable[[Any], Any], deserializer: Callable[[Any], Any]) -> None:
    """Pickle instances of exactly ``cls`` as ``deserializer(serializer(instance))``, in this process."""
    if not (isinstance(cls, type) and callable(serializer) and callable(deserializer)):
        raise TypeError("register_serializer needs a class and two callables: serializer= and deserializer=")
    if cls not in _replaced:
        _replaced[cls] = copyreg.dispatch_table.get(cls)
    copyreg.pickle(cls, lambda instance: (_rebuild, (deserializer, serializer(instance))))


def deregister_serializer(cls: type) -> None:
    """Undo ``register_serializer``; nothing happens if there is none."""
    if cls in _replaced:
        before = _replaced.pop(cls)
        if before is None:
            copyreg.dispatch_table.pop(cls, None)
        else:
            copyreg.dispatch_table[cls] = before


def _rebuild(deserializer: Callable[[Any], Any], state: Any) -> Any:
    return deserializer(state)
