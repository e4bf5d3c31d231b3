"""What goes into a task that runs here, and what comes out of it.

*Shell (arena).* Runs in workers.

1. A worker that still refers to a borrowed argument when its task ends registers its hold before it answers.
2. A worker that waits for its arguments keeps its CPU: a task that starts pins what it has read so far, and more tasks
   at once than CPUs could pin the whole store before any of them has all that it needs.
3. References inside a result are pinned until the owner of the result says that it holds them.
4. Arguments are pinned by who sent them. When that process dies, the worker registers holds of its own for those of
   calls that it still runs or has yet to run.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from meshray import config, failures, serialization
from meshray.ids import object_id
from meshray.messages.tasks import Argument, CallEntry, ReleaseReturns, ReturnsPinned, TaskEntry, TaskResult, Value
from meshray.object_ref import PENDING, ObjectRef
from meshray.session.context import TaskContext
from meshray.session.doubts import is_far
from meshray.session.objects import ARGUMENTS_RETURN
from meshray.session.values import fill
from meshray.transport.endpoints import home_of
from meshray.transport.sockets import name_of

if TYPE_CHECKING:
    from meshray.session.session import Session

_HOLD_TIMEOUT_NS = 30 * config.SECOND_NS


class TaskValues:
    """Reads arguments and writes results."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._returned: dict[tuple[bytes, int], list[ObjectRef]] = {}
        self._pinned_long: set[tuple[bytes, int]] = set()
        """What was in ``_returned`` when that was last looked through."""
        self._asked_ns = 0
        self.lent: dict[tuple[bytes, int], list[ObjectRef]] = {}
        """References that came with the arguments of calls under way."""

    def arguments(self, route: bytes, task: bytes, entry: TaskEntry | CallEntry, endpoint: str) -> tuple[Any, Any]:
        """Return (args, kwargs). References that arrived with them are in ``lent`` until ``keep_borrowed``."""
        if not entry.refs and not entry.arguments and entry.args_location is None:
            return serialization.deserialize_args(entry.args, (), {})
        references = self._session.references
        anchors = self.lent.setdefault((route, entry.seq), [])
        if entry.refs:
            anchors += references.restore_all(entry.refs)
        slots: dict[int | str, Any] = {}
        for argument in entry.arguments or ():
            slots[argument.key] = self._slot(argument, anchors)
        if entry.args_location is None:
            return serialization.deserialize_args(entry.args, (), slots)
        blob = references.restore(object_id(task, ARGUMENTS_RETURN), name_of(route), endpoint)
        if blob._state == PENDING:
            fill(blob, Value(None, entry.args_location), None)
            references.filled(blob)
        anchors.append(blob)
        return self._session.objects.read_arguments(blob, slots)

    def adopt(self, route: bytes, entry: TaskEntry | CallEntry) -> None:
        """Hold what a call needs that has yet to run and whose caller is gone. (leader)"""
        references = self._session.references
        infos = list(entry.refs or ())
        for argument in entry.arguments or ():
            infos += argument.value.refs or ()
            if argument.ref is not None:
                infos.append(argument.ref)
        if infos:
            anchors = self.lent.setdefault((route, entry.seq), [])
            anchors += references.restore_all(infos)
            references.holds.hold(anchors)

    def _slot(self, argument: Argument, anchors: list[ObjectRef]) -> Any:
        value = argument.value
        if argument.is_error:
            raise failures.DependencyFailed(value.data or b"")
        references = self._session.references
        inner = references.restore_all(value.refs) if value.refs else None
        if inner:
            anchors += inner
        if argument.ref is None:
            return None if value.data is None else serialization.deserialize(value.data)
        ref = references.restore(argument.ref.object, argument.ref.owner, argument.ref.endpoint)
        if ref._state == PENDING:
            ref._contains = inner
            fill(ref, value, None)
            references.filled(ref)
        anchors.append(ref)
        return self._session.objects.read(ref, keep_cpu=True)

    def result(self, route: bytes, seq: int, context: TaskContext, value: Any, num_returns: int) -> TaskResult:
        """Return the encoded return values of a task; None in their place if nobody waits for them any more."""
        if name_of(route) in self._session.references.holds.dead:
            return TaskResult(seq)
        if num_returns == 1:
            values = [self._value(route, seq, object_id(context.task, 0), value)]
        elif num_returns == 0:
            values = []
        else:
            try:
                several = list(value)
            except TypeError:
                raise ValueError(f"{context.name} has num_returns={num_returns} but returned one "
                                 f"{type(value).__name__}: return that many values") from None
            if len(several) != num_returns:
                raise ValueError(f"{context.name} has num_returns={num_returns} but returned {len(several)} values")
            values = [self._value(route, seq, object_id(context.task, index), one)
                      for index, one in enumerate(several)]
        return TaskResult(seq, values)

    def _value(self, route: bytes, seq: int, identity: bytes, value: Any) -> Value:
        if value is None:
            return Value()
        serialized = serialization.serialize(value)
        refs = None
        if serialized.refs:
            self._returned.setdefault((route, seq), []).extend(serialized.refs)
            refs = [self._session.references.info_of(ref) for ref in serialized.refs]
        if serialized.size_bytes <= config.INLINE_BYTES_MAX:
            return Value(serialized.inline(), None, refs)
        location = self._session.objects.store(serialized)
        self._session.objects.seal(identity, location, self._session.executor.endpoints.get(route, ""))
        return Value(None, location, refs, identity)

    def kept(self, route: bytes, seq: int) -> list[ObjectRef]:
        """The call has ended: return the references that came with it and that user code still has."""
        anchors = self.lent.pop((route, seq), None)
        if not anchors:
            return []
        weak = [weakref.ref(ref) for ref in anchors]
        anchors.clear()
        return [ref for one in weak if (ref := one()) is not None and ref._owner is not None]

    def keep_borrowed(self, route: bytes, seq: int) -> None:
        """Register holds for what ``kept`` returns, and wait until they count."""
        kept = self.kept(route, seq)
        if kept:
            self._session.references.hold_now(kept, _HOLD_TIMEOUT_NS)

    @property
    def pinned(self) -> bool:
        """Whether references inside results wait for their owner to hold them."""
        return bool(self._returned)

    def ask_after_pins(self, now_ns: int) -> None:
        """Ask owners on other machines whether they need what has long been pinned for them. (leader)"""
        if now_ns < self._asked_ns + config.HOLDS_DOUBTED_NS:
            return
        self._asked_ns = now_ns
        owners: dict[bytes, list[int]] = {}
        for route, seq in list(self._returned):
            endpoint = self._session.executor.endpoints.get(route, "")
            if (route, seq) in self._pinned_long and is_far(home_of(endpoint), home_of(self._session.endpoint)):
                owners.setdefault(route, []).append(seq)
        self._pinned_long = set(self._returned)
        for route, seqs in owners.items():
            for first in range(0, len(seqs), config.HOLDS_DOUBTED_MAX):
                self._session.send(route, ReturnsPinned(seqs[first:first + config.HOLDS_DOUBTED_MAX]))

    def on_release_returns(self, route: bytes, message: ReleaseReturns) -> None:
        """The owner holds what these results refer to. (leader)"""
        for seq in message.seqs:
            self._returned.pop((route, seq), None)

    def owners_died(self, gone: set[bytes]) -> None:
        """The processes at these routes are gone: hold what they lent, let go of what was pinned for them, though not
        at once. (leader)"""
        holds = self._session.references.holds
        for (route, _), anchors in list(self.lent.items()):
            if route in gone:
                holds.hold(anchors)
        for key in [key for key in self._returned if key[0] in gone]:
            holds.linger(self._returned.pop(key))
