"""Functions and classes between processes, by content.

*Pure* but for the control store requests of its session. Runs in drivers and workers.

1. A function is pickled once per definition, named by its job and the digest of its pickle, and written to the function
   table once. It is removed with its job (``processes.retention``).
2. Tasks of a class wait until the table has their function; a worker therefore always finds it.
3. A redefined function has another pickle, so another name: old tasks run the old code, new tasks the new.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshray import errors, serialization
from meshray.gcs import tables
from meshray.gcs.requests import Answered
from meshray.ids import function_id
from meshray.messages.gcs import PUT_IF_ABSENT, Op
from meshray.session.programs import Programs

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshray.session.session import Session


class Functions:
    """The functions that this session has exported or fetched."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._exported: dict[bytes, bool] = {}
        self._waiting: dict[bytes, list[Callable[[], None]]] = {}
        self._loaded: dict[bytes, Any] = {}
        self._programs = Programs(session)

    def export(self, thing: Any, name: str, ready: Callable[[], None]) -> bytes:
        """Pickle ``thing``, make sure that it is in the function table, then call ``ready`` (leader). Return its id."""
        pickled, job = serialization.dump_function(thing), self._session.job
        identity = function_id(job, pickled)
        self._session.call(lambda: self._write(identity, tables.FunctionRow(name, pickled, job), ready))
        return identity

    def _write(self, identity: bytes, function: tables.FunctionRow, ready: Callable[[], None]) -> None:
        done = self._exported.get(identity)
        if done:
            ready()
            return
        self._waiting.setdefault(identity, []).append(ready)
        if done is None:
            self._exported[identity] = False
            row = tables.encode(function)
            self._session.tables.write([Op(tables.FUNCTION, identity, row, PUT_IF_ABSENT)],
                                    lambda answer: self._written(identity, answer))

    def _written(self, identity: bytes, answer: Answered) -> None:
        if answer.error is not None:
            self._exported.pop(identity, None)
            self._waiting.pop(identity, None)
            self._session.warn(f"a function could not be exported: {answer.error.reason}")
            return
        self._exported[identity] = True
        for ready in self._waiting.pop(identity, ()):
            ready()

    def load(self, identity: bytes, job: str) -> Any:
        """Return the function or class of that id, fetching it on first use, for work of ``job``. Raise what its
        unpickling raises."""
        self._programs.prepare(job)
        thing = self._loaded.get(identity)
        if thing is None:
            thing = self._loaded[identity] = serialization.load_function(self._fetch(identity))
        return thing

    def _fetch(self, identity: bytes) -> bytes:
        answer = self._session.tables.ask(lambda done: self._session.tables.read(tables.FUNCTION, identity, done))
        if answer.error is not None or answer.results[0].value is None:
            reason = "there is no such row" if answer.error is None else answer.error.reason
            raise errors.MeshraySystemError(f"function {identity.hex()} is not in the function table: {reason}")
        return tables.decode(answer.results[0].value, tables.FunctionRow).pickled
