"""Who drives the socket: one thread at a time, the one that waits, with no hand-over on the latency path.

*Shell (threads, eventfd).* Runs in drivers and workers.

1. The thread that holds ``lock`` is the *leader*; only it touches the socket and the session's tables.
2. A thread that waits for something leads if nobody else does; otherwise it *follows*: the leader wakes it when its
   condition holds, or when the leader leaves.
3. A background thread leads when no other thread has for ``BACKGROUND_GRACE_NS``, and leaves when another wants to.
   In a loop of ``get(f.remote())`` it therefore never wakes up between two gets.
4. Ctrl-C never interrupts a turn half-way: it is noted, and raised when the leader leaves the turn.

Source: leader/followers pattern (Schmidt et al., PLoP 2000); DESIGN s4.8.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

from meshray import config

log = logging.getLogger("meshray.session")

Step = Callable[[int], None]
_IDLE_WAIT_MS = 1000
_FOLLOWER_RECHECK_S = 0.2


class Follower:
    """A thread that waits while another leads."""

    __slots__ = ("done", "event")

    def __init__(self, done: Callable[[], bool]) -> None:
        self.done = done
        self.event = threading.Event()


class Driving:
    """Leadership over one session's socket. ``step(timeout_ms)`` does one turn: send, wait, receive, handle."""

    def __init__(self, step: Step, hand_out: Callable[[], None]) -> None:
        """``hand_out`` is the part of ``step`` that sends what was queued."""
        self._step = step
        self._hand_out = hand_out
        self.lock = threading.Lock()
        self.wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.interrupted = False
        self.stepping_thread = 0
        self.closed = False
        self.autonomous = True
        """Whether the background thread may lead; an event loop that reads the socket itself turns this off."""
        self._polling = False
        self._woken = False
        """Whether somebody has written to ``wake_fd`` since the last ``drain_wakes``: once is enough."""
        self._foreground = 0
        self._left_ns = 0
        self._followers: list[Follower] = []
        self._nudge = threading.Event()
        self.nudge: Callable[[], object] = self._nudge.set
        """Makes somebody lead when nobody does: the background thread, or the event loop of an async actor."""
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the background thread."""
        self._thread = threading.Thread(target=self._background, name="meshray-io", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Make a leader that sleeps in its turn look at the queues again."""
        if self._polling and not self._woken:
            self._woken = True
            os.eventfd_write(self.wake_fd, 1)

    def rouse(self) -> None:
        """Make sure that somebody leads soon, also if no thread waits for anything."""
        if self._polling:
            self.wake()
        elif self._foreground == 0:
            self.nudge()

    def try_step(self) -> bool:
        """Do one turn without waiting, unless somebody else leads. Return whether it was done."""
        if not self.lock.acquire(False):
            self.wake()
            return False
        try:
            self._turn(0)
        finally:
            self._leave()
        self._raise_interrupt()
        return True

    def try_hand_out(self) -> None:
        """Send what was queued, or make whoever leads do so. Half of a turn: receiving is left to whoever waits."""
        if not self.lock.acquire(False):
            self.wake()
            return
        self.stepping_thread = threading.get_ident()
        try:
            self._hand_out()
        finally:
            self.stepping_thread = 0
            self._leave()
        self._raise_interrupt()

    def until(self, done: Callable[[], bool], deadline_ns: int | None = None) -> bool:
        """Block until ``done()``; return False when the deadline passes first. Raise KeyboardInterrupt on Ctrl-C."""
        self._foreground += 1
        try:
            while not done():
                if deadline_ns is not None and time.monotonic_ns() >= deadline_ns:
                    return False
                if self.lock.acquire(False):
                    try:
                        if not self._lead(done, deadline_ns):
                            return done()
                    finally:
                        self._leave()
                    self._raise_interrupt()
                else:
                    self._follow(done, deadline_ns)
            return True
        finally:
            self._foreground -= 1

    def _lead(self, done: Callable[[], bool], deadline_ns: int | None) -> bool:
        while not done():
            timeout_ms = _IDLE_WAIT_MS
            if deadline_ns is not None:
                left_ns = deadline_ns - time.monotonic_ns()
                if left_ns <= 0:
                    return False
                timeout_ms = min(timeout_ms, -(-left_ns // config.MILLISECOND_NS))
            self._turn(timeout_ms)
            if self.interrupted or self.closed:
                return not self.closed
            if self._followers:
                self._wake_finished()
        return True

    def _follow(self, done: Callable[[], bool], deadline_ns: int | None) -> None:
        follower = Follower(done)
        self._followers.append(follower)
        try:
            # Also if no turn is running: a background leader that has just looked for us is about to sleep.
            if not self._woken:
                self._woken = True
                os.eventfd_write(self.wake_fd, 1)
            if not self.lock.locked() or done():
                return
            timeout_s = _FOLLOWER_RECHECK_S
            if deadline_ns is not None:
                timeout_s = min(timeout_s, max(0.0, (deadline_ns - time.monotonic_ns()) / config.SECOND_NS))
            follower.event.wait(timeout_s)
        finally:
            self._followers.remove(follower)

    def _turn(self, timeout_ms: int) -> None:
        self._polling = True
        self.stepping_thread = threading.get_ident()
        try:
            self._step(timeout_ms)
        finally:
            self.stepping_thread = 0
            self._polling = False

    def drain_wakes(self) -> None:
        """Forget wake-ups that were written so far (called by ``step`` after it has slept)."""
        if self._woken:
            try:
                os.eventfd_read(self.wake_fd)
            except BlockingIOError:  # the write is still on its way, and will cost one empty turn
                return
            finally:
                # Only after the read: a wake-up in between wrote nothing, and its work is found by this very turn.
                self._woken = False

    def _leave(self) -> None:
        self._left_ns = time.monotonic_ns()
        self.lock.release()
        for follower in list(self._followers):
            follower.event.set()

    def _wake_finished(self) -> None:
        for follower in list(self._followers):
            if follower.done():
                follower.event.set()

    def _raise_interrupt(self) -> None:
        if self.interrupted and threading.current_thread() is threading.main_thread():
            self.interrupted = False
            raise KeyboardInterrupt

    def note_interrupt(self) -> bool:
        """Called by the SIGINT handler: True if a turn is running in this thread, which will raise when it is over."""
        if self.stepping_thread == threading.get_ident():
            self.interrupted = True
            self._woken = True
            os.eventfd_write(self.wake_fd, 1)
            return True
        return False

    def _background(self) -> None:
        grace_s = config.BACKGROUND_GRACE_NS / config.SECOND_NS
        while not self.closed:
            # Each wake-up disturbs the threads that drive (20 us of a round trip, at 500 a second).
            nudged = self._nudge.wait(grace_s * 5 if self._foreground else grace_s)
            self._nudge.clear()
            if self._foreground or not self.autonomous:
                continue
            if not nudged and time.monotonic_ns() - self._left_ns < config.BACKGROUND_GRACE_NS:
                continue
            if not self.lock.acquire(False):
                continue
            try:
                while not self._foreground and not self.closed and self.autonomous:
                    self._turn(_IDLE_WAIT_MS)
                    if self._followers:
                        self._wake_finished()
            except Exception:
                log.exception("a turn of the session failed")
            finally:
                left_ns = self._left_ns
                self._leave()
                if not self._foreground:
                    self._left_ns = left_ns

    def stop(self) -> None:
        """End the background thread; the socket is then free to be closed."""
        self.closed = True
        self._nudge.set()
        os.eventfd_write(self.wake_fd, 1)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=5.0)

    def close(self) -> None:
        """Release the wake descriptor. The background thread must have been stopped."""
        os.close(self.wake_fd)
