"""ActorPool: a fixed set of actors that share a stream of calls.

*Shell (the public API).* Used by user programs.

1. An actor has at most one call of the pool at a time; calls for which no actor is free wait in order.
2. An actor that died does not come back into the pool.

Source: ray 2.60.0, ``util/actor_pool.py``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Call = Callable[[Any, Any], Any]
"""Takes (actor, value); returns the reference of a call."""


class ActorPool:
    """Spread calls over ``actors``, one at a time on each.

    Example: ``list(ActorPool(actors).map(lambda actor, value: actor.double.remote(value), range(10)))``.
    """

    def __init__(self, actors: Iterable[Any]) -> None:
        self._idle = list(actors)
        self._running: dict[Any, tuple[int, Any]] = {}
        """Reference -> (number of the call, its actor)."""
        self._refs: dict[int, Any] = {}
        self._waiting: deque[tuple[Call, Any]] = deque()
        """Number of the call -> its reference, oldest first."""
        self._submitted = 0

    def map(self, fn: Call, values: Iterable[Any]) -> Iterator[Any]:
        """Call ``fn(actor, value)`` for every value; yield the results in the order of the values.

        Results of earlier calls that nobody has fetched are dropped.
        """
        self._drop_results()
        for value in values:
            self.submit(fn, value)
        return self._all(self.get_next)

    def map_unordered(self, fn: Call, values: Iterable[Any]) -> Iterator[Any]:
        """As ``map``, but yield the results as they become ready."""
        self._drop_results()
        for value in values:
            self.submit(fn, value)
        return self._all(self.get_next_unordered)

    def _all(self, get: Callable[[], Any]) -> Iterator[Any]:
        while self.has_next():
            yield get()

    def _drop_results(self) -> None:
        while self.has_next():
            try:
                self.get_next_unordered(timeout=0, ignore_if_timedout=True)
            except TimeoutError:
                continue

    def submit(self, fn: Call, value: Any) -> None:
        """Call ``fn(actor, value)`` on a free actor, or as soon as there is one."""
        if not self._idle:
            self._waiting.append((fn, value))
            return
        actor = self._idle.pop()
        ref = fn(actor, value)
        self._running[ref] = (self._submitted, actor)
        self._refs[self._submitted] = ref
        self._submitted += 1

    def has_next(self) -> bool:
        """Whether there are results that nobody has fetched."""
        return bool(self._running)

    def get_next(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """Return the result of the oldest call that is not fetched yet.

        Args:
            timeout: Seconds to wait, None without limit.
            ignore_if_timedout: After a timeout, give this result up and go on to the next.

        Raises:
            StopIteration: There are no results left.
            TimeoutError: It is not ready in time.
        """
        if not self.has_next():
            raise StopIteration("no more results to get")
        return self._take([next(iter(self._refs.values()))], timeout, ignore_if_timedout)

    def get_next_unordered(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """Return the result that is ready first. Arguments and errors as for ``get_next``."""
        if not self.has_next():
            raise StopIteration("no more results to get")
        return self._take(list(self._running), timeout, ignore_if_timedout)

    def _take(self, refs: list[Any], timeout: float | None, ignore_if_timedout: bool) -> Any:
        import meshray

        ready, _ = meshray.wait(refs, num_returns=1, timeout=timeout)
        if not ready and not ignore_if_timedout:
            raise TimeoutError(f"no result within {timeout} s")
        ref = ready[0] if ready else refs[0]
        number, actor = self._running.pop(ref)
        del self._refs[number]
        if not ready:
            self._free(actor)
            raise TimeoutError(f"no result within {timeout} s: {ref!r} was given up")
        try:
            value = meshray.get(ref)
        except meshray.exceptions.ActorDiedError:
            self._start_waiting()
            raise
        except BaseException:
            self._free(actor)
            raise
        self._free(actor)
        return value

    def _free(self, actor: Any) -> None:
        self._idle.append(actor)
        self._start_waiting()

    def _start_waiting(self) -> None:
        if self._waiting and self._idle:
            self.submit(*self._waiting.popleft())

    def has_free(self) -> bool:
        """Whether an actor is free and no call waits for one."""
        return bool(self._idle) and not self._waiting

    def pop_idle(self) -> Any:
        """Take a free actor out of the pool and return it; None if there is none."""
        return self._idle.pop() if self.has_free() else None

    def push(self, actor: Any) -> None:
        """Put an actor into the pool. Raise ValueError if it is there already."""
        if actor in self._idle or any(actor == busy for _, busy in self._running.values()):
            raise ValueError(f"{actor!r} belongs to this pool already")
        self._free(actor)
