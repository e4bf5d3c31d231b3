"""An exception with its causes, contexts, notes and frames, as plain data and back.

*Shell (the exception's own pickle).* Runs in drivers and workers.

1. Nothing here raises: what an exception's own methods raise is caught, and text takes the place of what is missing.
2. Frames of this package are left out, unless there are no others: users want to see their own code.
3. A failure that was decoded here and raised again travels as it came (``CAME_AS``), whatever was done to it since.
4. An exception without pickling rules of its own is taken apart and built again without its ``__init__``, so that one
   with required arguments keeps its type; an attribute that cannot be pickled is left behind, and a note names it.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any

from meshray import serialization
from meshray.errors import CAME_AS, RemoteException, RemoteTraceback, build, pickles_plainly, taken_apart
from meshray.messages.base import Part

CHAIN_MAX = 16
"""Exceptions of one chain that travel."""
FRAMES_MAX = 100
"""Frames per exception that travel, the innermost."""
TEXT_MAX = 64 * 1024
"""Characters of a message or traceback text that travel: its end, where the error is."""

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


class Link(Part, frozen=True):
    """One exception of a chain. ``pickled`` is None if it cannot be pickled; ``obstacle`` says what could not be;
    ``encoded`` stands for an error that came from elsewhere. ``frames``: (file, line, function)."""

    type_name: str
    message: str
    pickled: bytes | None = None
    obstacle: str = ""
    encoded: bytes = b""
    frames: tuple[tuple[str, int, str], ...] = ()
    notes: tuple[str, ...] = ()
    cause: Link | None = None
    context: Link | None = None
    suppress_context: bool = False
    text: str = ""


# --- out -------------------------------------------------------------------------------------------------------------


def describe(error: BaseException) -> str:
    """Return type and message, as the last line of a traceback has them."""
    name = type_name(error)
    message = message_of(error)
    return f"{name}: {message}" if message else name


def type_name(error: BaseException) -> str:
    """Return the name of the error's type, with its module unless that says nothing."""
    kind = type(error)
    plain = kind.__module__ in ("builtins", "__main__")
    return kind.__qualname__ if plain else f"{kind.__module__}.{kind.__qualname__}"


def came_as(error: BaseException) -> bytes:
    """Return the bytes that ``error`` was decoded from, or nothing."""
    travels = _fields(error).get(CAME_AS)
    return travels[1][0] if travels else b""


def message_of(error: BaseException) -> str:
    """Return ``str(error)``, or what that raised."""
    try:
        return clean(str(error)[-TEXT_MAX:])
    except Exception as problem:
        return f"<its __str__ raised {type(problem).__name__}>"


def clean(text: str) -> str:
    """Return ``text`` without lone surrogates, which have no place in a message."""
    return text.encode("utf-8", "backslashreplace").decode()


def format_text(error: BaseException) -> str:
    """Return the traceback with its chain as text."""
    try:
        shown = traceback.TracebackException.from_exception(error, compact=True)
        for one in _with_chain(shown):
            own = [frame for frame in one.stack if not _is_internal(frame.filename)]
            one.stack = traceback.StackSummary.from_list(own or list(one.stack))
        return clean("".join(shown.format())[-TEXT_MAX:])
    except Exception:  # an exception whose attributes cannot be read: its description is what is left
        return describe(error)


def _with_chain(shown: traceback.TracebackException) -> list[traceback.TracebackException]:
    chain, waiting = [], [shown]
    while waiting:
        one = waiting.pop()
        chain.append(one)
        waiting += [other for other in (one.__cause__, one.__context__, *(one.exceptions or ())) if other is not None]
    return chain


def _is_internal(file: str) -> bool:
    return file.startswith(_PACKAGE)


def encode(error: BaseException) -> Link:
    """Return the chain that begins with ``error``."""
    return _link(error, set())


def _link(error: BaseException, seen: set[int]) -> Link:
    seen.add(id(error))
    frames = _frames(error.__traceback__)
    encoded = came_as(error)
    if encoded:
        return Link(type_name(error), message_of(error), encoded=encoded, frames=frames)
    pickled, obstacle = _pickle(error)
    notes = _fields(error).get("__notes__")
    return Link(
        type_name(error), message_of(error), pickled, obstacle, b"", frames,
        tuple([clean(note) for note in notes if type(note) is str]) if isinstance(notes, list) else (),
        _next(error.__cause__, seen), _next(error.__context__, seen), error.__suppress_context__,
        "" if pickled is not None else format_text(error))


def _next(error: BaseException | None, seen: set[int]) -> Link | None:
    if error is None or id(error) in seen or len(seen) >= CHAIN_MAX:
        return None
    return _link(error, seen)


def _fields(error: BaseException) -> dict[str, Any]:
    try:
        fields = error.__dict__
    except Exception:  # a property that raises
        return {}
    return fields if isinstance(fields, dict) else {}


def _frames(tb: TracebackType | None) -> tuple[tuple[str, int, str], ...]:
    frames = [(clean(frame.f_code.co_filename), line, frame.f_code.co_name) for frame, line in traceback.walk_tb(tb)]
    own = [frame for frame in frames if not _is_internal(frame[0])]
    return tuple((own or frames)[-FRAMES_MAX:])


def _pickle(error: BaseException) -> tuple[bytes | None, str]:
    """Return the pickle of ``error`` or of its parts, and what could not be pickled."""
    of = f"the exception {type_name(error)}"
    try:
        if not pickles_plainly(type(error)):
            return serialization.serialize(error, of=of).inline(), ""
        arguments, state = taken_apart(error)
        try:
            return serialization.serialize((type(error), arguments, state), of=of).inline(), ""
        except Exception:  # so without what is in the way
            obstacle = _obstacle(error, of)
            state = {name: value for name, value in state.items() if serialization.try_pickle(value) is None} \
                if isinstance(state, dict) else None
            arguments = tuple([value if serialization.try_pickle(value) is None else repr(value)
                               for value in arguments])
            return serialization.serialize((type(error), arguments, state), of=of).inline(), obstacle
    except KeyboardInterrupt:
        raise  # the user's, or a cancellation
    except BaseException as problem:  # whatever an exception's __reduce__ may raise, SystemExit included
        return None, message_of(problem)


def _obstacle(error: BaseException, of: str) -> str:
    try:
        serialization.serialize(error, of=of)
    except Exception as problem:
        return message_of(problem)
    return "its type or arguments"


# --- in --------------------------------------------------------------------------------------------------------------


def decode(link: Link, decode_failure: Callable[[bytes], BaseException]) -> BaseException:
    """Return the exception with its chain. ``decode_failure`` rebuilds errors that came from elsewhere."""
    if link.encoded:
        error = decode_failure(link.encoded)
    else:
        error = _rebuild(link)
        notes = (*link.notes, f"left behind: {link.obstacle}") if link.obstacle and link.pickled else link.notes
        if notes:
            _set(error, "__notes__", list(notes))
        cause = decode(link.cause, decode_failure) if link.cause is not None else None
        context = decode(link.context, decode_failure) if link.context is not None else None
        if cause is not None:
            _set(error, "__cause__", cause)
        if context is not None:
            _set(error, "__context__", context)
        if not isinstance(error.__cause__, RemoteTraceback):
            _set(error, "__suppress_context__", link.suppress_context)
    if not isinstance(error, RemoteException):
        _set(error, "__traceback__", _traceback(link.frames))
    return error


def _set(error: BaseException, name: str, value: Any) -> None:
    try:
        setattr(error, name, value)
    except Exception:  # a class that forbids it keeps what it has
        return


def _rebuild(link: Link) -> BaseException:
    problem = link.obstacle
    if link.pickled is not None:
        try:
            error = serialization.deserialize(link.pickled)
            if isinstance(error, BaseException):
                return error
            if isinstance(error, tuple):
                return build(error[0], *error)
            problem = f"its pickle gave a {type(error).__name__}"
        except KeyboardInterrupt:
            raise  # the user's, not the pickle's: this runs in get
        except BaseException as failed:
            problem = f"it cannot be rebuilt here: {describe(failed)}"
    stand_in = RemoteException(f"{link.type_name}: {link.message} ({problem})")
    stand_in.__cause__ = RemoteTraceback(link.text or f"{link.type_name}: {link.message}\n")
    return stand_in


def _traceback(frames: tuple[tuple[str, int, str], ...]) -> TracebackType | None:
    if not frames:
        return None
    from tblib import Traceback  # type: ignore[import-untyped]

    chain: dict[str, Any] | None = None
    for file, line, name in reversed(frames):
        code = {"co_filename": file, "co_name": name}
        frame = {"f_globals": {"__name__": name, "__file__": file}, "f_locals": {}, "f_code": code, "f_lineno": line}
        chain = {"tb_frame": frame, "tb_lineno": line, "tb_next": chain}
    try:
        made: TracebackType | None = Traceback.from_dict(chain).as_traceback()
    except Exception:  # frames are a convenience; the text of the traceback is in the error anyway
        return None
    return made
