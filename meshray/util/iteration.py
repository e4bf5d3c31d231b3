"""Results as they come: ``as_completed`` and ``map_unordered``.

*Shell (the public API).* Used by user programs.

Source: ray 2.60.0, ``util/helpers.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

CHUNK_SIZE = 10
"""References waited for at a time."""
BACKPRESSURE_SIZE = 100
"""Tasks of one ``map_unordered`` in flight."""


def as_completed(refs: Sequence[Any], *, chunk_size: int = CHUNK_SIZE, yield_obj_refs: bool = False,
                 **options: Any) -> Iterator[Any]:
    """Yield the values of ``refs`` as they become ready, ``chunk_size`` at a time.

    Args:
        refs: References, each once.
        chunk_size: How many are waited for before any is yielded; 1 yields each at once.
        yield_obj_refs: Yield references instead of values.
        options: ``timeout`` (seconds, for each chunk) and ``fetch_local`` of ``meshray.wait``.

    Raises:
        The error of a task, when its turn comes.
    """
    _check(chunk_size, options)
    return _as_completed(list(refs), chunk_size, yield_obj_refs, options)


def _as_completed(refs: list[Any], chunk_size: int, yield_obj_refs: bool, options: dict[str, Any]) -> Iterator[Any]:
    while refs:
        ready, refs = _next_chunk(refs, chunk_size, yield_obj_refs, options)
        yield from ready


def map_unordered(fn: Any, items: Iterable[Any], *, backpressure_size: int | None = BACKPRESSURE_SIZE,
                  chunk_size: int = CHUNK_SIZE, yield_obj_refs: bool = False, **options: Any) -> Iterator[Any]:
    """Run the remote function ``fn`` on every item and yield the results as they become ready.

    Args:
        fn: A remote function of one argument.
        items: Its arguments; taken only as fast as results are.
        backpressure_size: At most so many tasks at a time; None for all at once.
        chunk_size: How many results are waited for at a time.
        yield_obj_refs: Yield references instead of values.
        options: ``timeout`` (seconds, for each chunk) and ``fetch_local`` of ``meshray.wait``.
    """
    if backpressure_size is not None and backpressure_size < 1:
        raise ValueError(f"backpressure_size must be at least 1 or None, but is {backpressure_size}")
    _check(chunk_size, options)
    return _map_unordered(fn, items, backpressure_size, chunk_size, yield_obj_refs, options)


def _map_unordered(fn: Any, items: Iterable[Any], backpressure_size: int | None, chunk_size: int,
                   yield_obj_refs: bool, options: dict[str, Any]) -> Iterator[Any]:
    refs: list[Any] = []
    for item in items:
        refs.append(fn.remote(item))
        if backpressure_size is not None and len(refs) >= backpressure_size:
            ready, refs = _next_chunk(refs, chunk_size, yield_obj_refs, options)
            yield from ready
    yield from _as_completed(refs, chunk_size, yield_obj_refs, options)


def _check(chunk_size: int, options: dict[str, Any]) -> None:
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, but is {chunk_size}")
    if "num_returns" in options:
        raise ValueError("use chunk_size instead of num_returns")


def _next_chunk(refs: list[Any], chunk_size: int, yield_obj_refs: bool, options: dict[str, Any]
                ) -> tuple[list[Any], list[Any]]:
    import meshray

    ready, rest = meshray.wait(refs, num_returns=min(chunk_size, len(refs)), **options)
    return (ready if yield_obj_refs else meshray.get(ready)), rest
