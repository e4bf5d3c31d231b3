"""Slices of CPU time, where the kernel lets threads choose theirs."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from meshray import config
from meshray.processes import thread_slices

_SYS_SCHED_GETATTR = {"x86_64": 315, "aarch64": 275}
_KERNEL = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])

needs_slices = pytest.mark.skipif(_KERNEL < (6, 12) or os.uname().machine not in _SYS_SCHED_GETATTR,
                                  reason="threads have no slices of their own before Linux 6.12")


def slice_of(thread: int) -> int:
    attributes = ctypes.create_string_buffer(48)
    assert ctypes.CDLL(None).syscall(_SYS_SCHED_GETATTR[os.uname().machine], thread, attributes, 48, 0) == 0
    return int(struct.unpack("=IIQiIQQQ", attributes.raw)[5])


def in_thread(run: Callable[[], object]) -> None:
    """Run in a thread, so that the tests' own keeps its slice."""
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            run()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


@needs_slices
def test_who_lets_others_first_asks_for_long_slices_and_so_do_the_threads_it_starts() -> None:
    before = slice_of(0)

    def run() -> None:
        thread_slices.let_others_first()
        assert slice_of(0) == config.BULK_SLICE_NS
        in_thread(lambda: check(slice_of(0) == config.BULK_SLICE_NS))

    in_thread(run)
    assert slice_of(0) == before < config.BULK_SLICE_NS


@needs_slices
def test_who_goes_first_passes_it_on_to_nobody() -> None:
    before = slice_of(0)

    def run() -> None:
        thread_slices.go_first([threading.get_native_id()])
        assert slice_of(0) == config.CONTROL_SLICE_NS < before
        in_thread(lambda: check(slice_of(0) == before))
        program = f"from tests.unit.processes.test_thread_slices import slice_of; assert slice_of(0) == {before}"
        subprocess.run([sys.executable, "-c", program], check=True, timeout=60)

    in_thread(run)


def test_the_nice_value_stays() -> None:
    def run() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 3)
        thread_slices.let_others_first()
        assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == 3

    in_thread(run)


def test_a_thread_that_is_gone_and_a_machine_that_is_not_known_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    gone: list[int] = []
    in_thread(lambda: gone.append(threading.get_native_id()))
    thread_slices.go_first(gone)
    monkeypatch.setattr(thread_slices, "_SYS_SCHED_SETATTR", {})
    in_thread(thread_slices.let_others_first)


def check(condition: bool) -> None:
    assert condition
