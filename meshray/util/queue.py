"""Queue: a queue that tasks and actors share, kept by one asyncio actor.

*Shell (the public API).* Used by user programs.

1. ``Full`` and ``Empty`` are those of the standard library's ``queue``, raised in the actor and again in the caller.

Source: ray 2.60.0, ``util/queue.py``.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterable
from typing import Any


class Empty(queue.Empty):
    """There is nothing in the queue."""


class Full(queue.Full):
    """There is no room in the queue."""


class Queue:
    """First in, first out, for any number of producers and consumers; can be passed to tasks and actors.

    Args:
        maxsize: Items that fit; 0 for any number.
        actor_options: Options of the actor that keeps the items.
    """

    def __init__(self, maxsize: int = 0, actor_options: dict[str, Any] | None = None) -> None:
        import meshray

        self.maxsize = maxsize
        self.actor: Any = meshray.remote(QueueActor).options(**(actor_options or {})).remote(maxsize)

    def __len__(self) -> int:
        return self.size()

    def size(self) -> int:
        """Return how many items there are."""
        return int(_get(self.actor.qsize.remote()))

    def qsize(self) -> int:
        """Return how many items there are."""
        return self.size()

    def empty(self) -> bool:
        """Whether there are no items."""
        return bool(_get(self.actor.empty.remote()))

    def full(self) -> bool:
        """Whether there is no room."""
        return bool(_get(self.actor.full.remote()))

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Add an item; wait for room (``timeout`` seconds, None without limit) if ``block``. Raise Full."""
        _get(self._put(item, block, timeout))

    async def put_async(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """As ``put``, in an event loop."""
        await self._put(item, block, timeout)

    def _put(self, item: Any, block: bool, timeout: float | None) -> Any:
        if not block:
            return self.actor.put_nowait.remote(item)
        return self.actor.put.remote(item, _checked(timeout))

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take the oldest item; wait for one (``timeout`` seconds, None without limit) if ``block``. Raise Empty."""
        return _get(self._get(block, timeout))

    async def get_async(self, block: bool = True, timeout: float | None = None) -> Any:
        """As ``get``, in an event loop."""
        return await self._get(block, timeout)

    def _get(self, block: bool, timeout: float | None) -> Any:
        if not block:
            return self.actor.get_nowait.remote()
        return self.actor.get.remote(_checked(timeout))

    def put_nowait(self, item: Any) -> None:
        """Add an item. Raise Full if there is no room."""
        self.put(item, block=False)

    def get_nowait(self) -> Any:
        """Take the oldest item. Raise Empty if there is none."""
        return self.get(block=False)

    def put_nowait_batch(self, items: Iterable[Any]) -> None:
        """Add all of ``items``, or raise Full and add none."""
        if not isinstance(items, Iterable):
            raise TypeError(f"items must be an iterable, not {type(items).__name__}")
        _get(self.actor.put_nowait_batch.remote(list(items)))

    def get_nowait_batch(self, num_items: int) -> list[Any]:
        """Take ``num_items`` items, or raise Empty and take none."""
        if not isinstance(num_items, int):
            raise TypeError(f"num_items must be an int, not {type(num_items).__name__}")
        if num_items < 0:
            raise ValueError(f"num_items cannot be negative, but is {num_items}")
        return list(_get(self.actor.get_nowait_batch.remote(num_items)))

    def shutdown(self, force: bool = False, grace_period_s: float = 5) -> None:
        """End the queue's actor: after the calls it has, at most ``grace_period_s`` seconds; at once if ``force``."""
        import meshray

        if self.actor is None:
            return
        if not force:
            ended = self.actor.__ray_terminate__.remote()
            _, running = meshray.wait([ended], num_returns=1, timeout=grace_period_s)
            force = bool(running)
        if force:
            meshray.kill(self.actor, no_restart=True)
        self.actor = None


def _get(ref: Any) -> Any:
    import meshray

    return meshray.get(ref)


def _checked(timeout: float | None) -> float | None:
    if timeout is not None and timeout < 0:
        raise ValueError(f"timeout cannot be negative, but is {timeout}")
    return timeout


class QueueActor:
    """The actor that keeps a queue's items."""

    def __init__(self, maxsize: int) -> None:
        self.maxsize = maxsize
        self.queue: asyncio.Queue[Any] = asyncio.Queue(maxsize)

    async def qsize(self) -> int:
        """Return how many items there are."""
        return self.queue.qsize()

    async def empty(self) -> bool:
        """Whether there are no items."""
        return self.queue.empty()

    async def full(self) -> bool:
        """Whether there is no room."""
        return self.queue.full()

    async def put(self, item: Any, timeout: float | None = None) -> None:
        """Add an item, waiting for room."""
        try:
            await asyncio.wait_for(self.queue.put(item), timeout)
        except TimeoutError:
            raise Full(f"the queue still has {self.maxsize} items after {timeout} s") from None

    async def get(self, timeout: float | None = None) -> Any:
        """Take the oldest item, waiting for one."""
        try:
            return await asyncio.wait_for(self.queue.get(), timeout)
        except TimeoutError:
            raise Empty(f"the queue is still empty after {timeout} s") from None

    async def put_nowait(self, item: Any) -> None:
        """Add an item or raise Full."""
        await self.put_nowait_batch([item])

    async def put_nowait_batch(self, items: list[Any]) -> None:
        """Add all items or raise Full."""
        size = self.queue.qsize()
        if self.maxsize > 0 and size + len(items) > self.maxsize:
            raise Full(f"cannot add {len(items)} items to a queue that has {size} of at most {self.maxsize}")
        for item in items:
            self.queue.put_nowait(item)

    async def get_nowait(self) -> Any:
        """Take the oldest item or raise Empty."""
        return (await self.get_nowait_batch(1))[0]

    async def get_nowait_batch(self, num_items: int) -> list[Any]:
        """Take that many items or raise Empty."""
        size = self.queue.qsize()
        if num_items > size:
            raise Empty(f"cannot take {num_items} items from a queue that has {size}")
        return [self.queue.get_nowait() for _ in range(num_items)]
