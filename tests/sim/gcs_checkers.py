"""What must hold of a control store, whatever happened to it.

*Pure.* Runs in simulation tests, over what ``gcs_world`` recorded. The history of the disk is the claimed order of all
writes; each checker compares what clients saw with it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

from gcs_world import Call, World

from meshray.messages.gcs import DELETE, PUT

Key = tuple[str, bytes]


class Violation(AssertionError):
    """A promise was broken."""


def exactly_once(world: World) -> None:
    """Each Write is in the history at most once, and each that was answered is in it."""
    seen = Counter((entry.client, entry.sequence) for entry in world.disk.log if entry.client)
    for write, times in seen.items():
        if times > 1:
            raise Violation(f"Write {write} was done {times} times")
    changes = [change for entry in world.disk.log for change in entry.rows]
    versions: dict[int, Key] = {version: (table, key) for table, key, version, _ in changes}
    for call in world.calls:
        if call.ops is None or call.answer is None or call.answer.error is not None:
            continue
        for op, outcome in zip(call.ops, call.answer.results, strict=True):
            if outcome.ok and op.kind != DELETE and versions.get(outcome.version) != (op.table, op.key):
                raise Violation(f"{call.client} was told that {op.key!r} has version {outcome.version}: not in history")


def linearizable(world: World) -> None:
    """What a call saw of a row was its state at some moment between its begin and its answer."""
    states: dict[Key, dict[int, bytes | None]] = {}
    for entry in world.disk.log:
        for table, key, version, value in entry.rows:
            states.setdefault((table, key), {0: None})[version] = value
    done = [call for call in world.calls if call.answer is not None and call.answer.error is None]
    floors = _floors(done)
    for call in done:
        for key, version, value, written in _seen(call):
            known = states.get(key, {0: None})
            times, reached = floors[key]
            floor = reached[bisect_left(times, call.begun_ns)]
            oldest = max(number for number in known if number <= floor)
            if written:
                if version <= floor:
                    raise Violation(f"{call.client} wrote {key} as {version} after {floor} was answered")
            elif value is None:
                if None not in [known[number] for number in known if number >= oldest]:
                    raise Violation(f"{call.client} saw no {key} after {floor} was answered")
            elif known.get(version) != value or version < oldest:
                raise Violation(f"{call.client} saw {key} as {version} ({value!r}) after {floor} was answered")


def watched(world: World, table: str, key: bytes, *, prefix: bool) -> None:
    """Changes were told in the order of their commits, and in the end the watcher knows every row as it is."""
    values = {version: (key, value) for entry in world.disk.log for _, key, version, value in entry.rows}
    present = {
        row_key: row for row_key, row in world.disk.tables.get(table, {}).items()
        if row_key == key or (prefix and row_key.startswith(key))
    }
    for watcher, changes in world.told.items():
        state: dict[bytes, tuple[int, bytes]] = {}
        newest: dict[bytes, int] = {}
        for change in changes:
            if change.version:
                if change.version <= newest.get(change.key, 0):
                    raise Violation(f"{watcher} was told {change.key!r} as {change.version} after {newest[change.key]}")
                if values.get(change.version) != (change.key, change.value):
                    raise Violation(f"{watcher} was told {change.key!r} as {change.version}: not in history")
                newest[change.key] = change.version
            if change.value is None:
                state.pop(change.key, None)
            else:
                state[change.key] = (change.version, change.value)
        if state != present:
            raise Violation(f"{watcher} knows {state}, but the rows are {present}")


def _seen(call: Call) -> list[tuple[Key, int, bytes | None, bool]]:
    """Return (key, version, value, whether the call wrote it) for each row that a call learnt of."""
    assert call.answer is not None
    if call.keys is not None:
        return [(key, row.version, row.value, False) for key, row in zip(call.keys, call.answer.results, strict=True)]
    seen: list[tuple[Key, int, bytes | None, bool]] = []
    for op, outcome in zip(call.ops or [], call.answer.results, strict=True):
        if outcome.ok or op.kind == PUT:
            seen.append(((op.table, op.key), outcome.version, op.value, True))
        else:
            seen.append(((op.table, op.key), outcome.version, outcome.value, False))
    return seen


def _floors(done: list[Call]) -> dict[Key, tuple[list[int], list[int]]]:
    """Return for each key the times of answers, and the version that was proven to be reached before each of them."""
    floors: dict[Key, tuple[list[int], list[int]]] = {}
    for call in sorted(done, key=lambda call: call.answered_ns):
        for key, version, _, _ in _seen(call):
            times, reached = floors.setdefault(key, ([], [0]))
            times.append(call.answered_ns)
            reached.append(max(reached[-1], version))
    return floors
