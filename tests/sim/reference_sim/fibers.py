"""Fibers: blocking code under virtual time.

*Shell (threads).* Runs in tests.

1. At most one fiber runs at a time, and the world stands still while it does: a fiber runs until it waits.
2. A fiber that is killed gets ``Killed`` where it waits.
3. Threads are used again: a world of a thousand calls makes a few dozen.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class Killed(BaseException):
    """The process that this fiber is a part of has died."""


class Fiber:
    """One flow of control. ``waits_for`` is what it waits for; it ends when ``over``."""

    def __init__(self, program: Callable[[], None]) -> None:
        self.program = program
        self.waits_for: Callable[[], bool] | None = None
        self.over = False
        self.killed = False
        self.problem: BaseException | None = None
        self.turn = threading.Semaphore(0)


class Fibers:
    """All fibers of one world."""

    def __init__(self) -> None:
        self.current: Fiber | None = None
        self._back = threading.Semaphore(0)
        self._idle: list[_Thread] = []
        self._all: list[_Thread] = []

    def run(self, fiber: Fiber) -> None:
        """Let ``fiber`` run until it waits or ends. Raise what it raised."""
        fiber.waits_for = None
        outer, self.current = self.current, fiber
        if fiber.program is not None:
            program, fiber.program = fiber.program, None  # type: ignore[assignment]
            if not self._idle:
                thread = _Thread(self)
                self._all.append(thread)
                self._idle.append(thread)
            self._idle.pop().begin(fiber, program)
        else:
            fiber.turn.release()
        self._back.acquire()
        self.current = outer
        if fiber.problem is not None:
            raise fiber.problem

    def wait(self, done: Callable[[], bool]) -> None:
        """Called in a fiber: let the world go on until ``done()``."""
        fiber = self.current
        assert fiber is not None, "only fibers may wait"
        if fiber.killed:
            raise Killed
        fiber.waits_for = done
        self._back.release()
        fiber.turn.acquire()
        if fiber.killed:
            raise Killed

    def ended(self, thread: _Thread) -> None:
        """A thread has finished its fiber."""
        self._idle.append(thread)
        self._back.release()

    def close(self) -> None:
        """End the threads. No fiber may wait."""
        for thread in self._all:
            thread.close()


class _Thread:
    def __init__(self, fibers: Fibers) -> None:
        self._fibers = fibers
        self._work = threading.Semaphore(0)
        self._task: tuple[Fiber, Callable[[], None]] | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def begin(self, fiber: Fiber, program: Callable[[], None]) -> None:
        self._task = (fiber, program)
        self._work.release()

    def close(self) -> None:
        self._work.release()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._work.acquire()
            if self._task is None:
                return
            fiber, program = self._task
            self._task = None
            try:
                program()
            except Killed:
                pass
            except BaseException as problem:
                fiber.problem = problem
            del program
            fiber.over = True
            del fiber
            self._fibers.ended(self)
