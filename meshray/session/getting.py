"""get and wait.

*Shell (blocks the calling thread).* Runs in drivers and workers.

1. A ready value costs no turn, no lock and no message.
2. ``get`` of a list raises at the first failed reference in list order, without waiting for the later ones.
3. ``wait`` keeps the caller's order in both lists.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from meshray import config, errors, failures
from meshray.object_ref import FAILED, PENDING, READY, ObjectRef

if TYPE_CHECKING:
    from meshray.session.session import Session


def deadline_of(timeout_s: float | None) -> int | None:
    """Return the monotonic deadline of a timeout in seconds (None: never); raise for a bad one."""
    if timeout_s is None:
        return None
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, (int, float)):
        raise TypeError(f"timeout must be a number of seconds or None, not {type(timeout_s).__name__}")
    if timeout_s < 0:
        raise ValueError(f"timeout must be at least 0 seconds, not {timeout_s}")
    return time.monotonic_ns() + int(timeout_s * config.SECOND_NS)


def get_one(session: Session, ref: ObjectRef, timeout_s: float | None) -> Any:
    """Return the value of one reference."""
    deadline_ns = deadline_of(timeout_s)
    if ref._state == PENDING:
        await_refs(session, (ref,), deadline_ns, timeout_s)
    return value_of(session, ref)


def get_many(session: Session, refs: Sequence[ObjectRef], timeout_s: float | None) -> list[Any]:
    """Return the values of several references in order."""
    for ref in refs:
        if type(ref) is not ObjectRef:
            refuse(ref)
    deadline_ns = deadline_of(timeout_s)
    await_refs(session, refs, deadline_ns, timeout_s)
    values = []
    for ref in refs:
        values.append(ref._value if ref._state == READY else value_of(session, ref))
    return values


def value_of(session: Session, ref: ObjectRef) -> Any:
    """Return the value of a reference that is not pending, or raise its failure."""
    state = ref._state
    if state == READY:
        return ref._value
    if state == FAILED:
        raise failures.decode(ref._value)
    return session.objects.read(ref)


def refuse(thing: Any) -> None:
    """Raise for something that is not a reference."""
    raise TypeError(
        f"meshray.get takes an ObjectRef or a list of ObjectRefs, not {type(thing).__name__}: "
        "pass what .remote() or meshray.put returned")


def await_refs(session: Session, refs: Sequence[ObjectRef], deadline_ns: int | None, timeout_s: float | None) -> None:
    """Block until all ``refs`` have values; return early, or raise, when any of them has failed."""
    position = 0
    count = len(refs)
    failures_seen = -1

    def done() -> bool:
        nonlocal position, failures_seen
        while position < count:
            state = refs[position]._state
            if state == PENDING:
                break
            if state == FAILED:
                return True
            position += 1
        else:
            return True
        if failures_seen != session.outcomes.failures:
            failures_seen = session.outcomes.failures
            for ref in refs[position:]:
                if ref._state == FAILED:
                    raise failures.decode(ref._value)
        return False

    if done():
        return
    ask_owners(session, refs[position:])
    try:
        finished = session.block_until(done, deadline_ns)
    except KeyboardInterrupt:
        session.outcomes.interrupt(refs[position:])
        raise
    if not finished:
        ready = sum(1 for ref in refs if ref._state != PENDING)
        raise errors.GetTimeoutError(
            f"get timed out after {timeout_s} s: {ready} of {count} objects are ready, "
            f"the first missing one is {refs[position]!r}")


def ask_owners(session: Session, refs: Sequence[ObjectRef]) -> None:
    """Make sure that the owners of pending borrowed references are asked."""
    borrowed = [ref for ref in refs if ref._owner is not None and ref._state == PENDING]
    if borrowed:
        session.call(lambda: session.references.resolve(borrowed))


def wait(session: Session, refs: list[ObjectRef], num_returns: int, timeout_s: float | None
         ) -> tuple[list[ObjectRef], list[ObjectRef]]:
    """Split ``refs`` into at most ``num_returns`` ready ones and the rest, waiting for them up to the timeout."""
    check_wait(refs, num_returns)
    deadline_ns = deadline_of(timeout_s)
    if not refs:
        return [], []
    found = [0] * num_returns
    count = scan(refs, num_returns, found)
    if count < num_returns and timeout_s != 0:
        ask_owners(session, refs)

        def done() -> bool:
            nonlocal count
            count = scan(refs, num_returns, found)
            return count >= num_returns

        session.block_until(done, deadline_ns)
    elif count < num_returns:
        session.driving.try_step()
        count = scan(refs, num_returns, found)
    if num_returns == 1 and count:
        index = found[0]
        return [refs[index]], refs[:index] + refs[index + 1:]
    chosen = set(found[:count])
    ready = [refs[index] for index in found[:count]]
    return ready, [ref for index, ref in enumerate(refs) if index not in chosen]


def scan(refs: list[ObjectRef], limit: int, found: list[int]) -> int:
    """Write the positions of the first ``limit`` references with a value or failure; return how many there are."""
    count = 0
    for index, ref in enumerate(refs):
        if ref._state:
            found[count] = index
            count += 1
            if count == limit:
                break
    return count


def check_wait(refs: Any, num_returns: int) -> None:
    """Raise for arguments of ``wait`` that make no sense."""
    if isinstance(refs, ObjectRef):
        raise TypeError("meshray.wait takes a list of ObjectRefs, not a single ObjectRef: wrap it in a list")
    if not isinstance(refs, list):
        raise TypeError(f"meshray.wait takes a list of ObjectRefs, not {type(refs).__name__}")
    for kind in set(map(type, refs)) - {ObjectRef}:
        raise TypeError(f"meshray.wait takes a list of ObjectRefs, but it contains {kind.__name__}")
    unique = len(set(refs))
    if unique != len(refs):
        raise ValueError(f"meshray.wait needs unique ObjectRefs: {len(refs) - unique} of {len(refs)} are repeated")
    if isinstance(num_returns, bool) or not isinstance(num_returns, int):
        raise TypeError(f"num_returns must be an int, not {type(num_returns).__name__}")
    if refs and not 0 < num_returns <= len(refs):
        raise ValueError(f"num_returns must be between 1 and the number of ObjectRefs ({len(refs)}), not {num_returns}")
