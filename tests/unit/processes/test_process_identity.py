"""Who a process is, and ending processes without ever hitting another one."""

from __future__ import annotations

import os
import signal

import msgspec

from meshray.processes.process_identity import end, identify, is_alive, myself, reap


def test_this_process():
    me = myself()
    assert me.pid == os.getpid() and is_alive(me)
    assert not is_alive(msgspec.structs.replace(me, born=me.born - 1))
    assert not is_alive(msgspec.structs.replace(me, boot="another"))


def test_zombies_and_strangers_do_not_run(child):
    process = child()
    known = identify(process.pid)
    assert known is not None and is_alive(known)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(known)
    process.wait()
    assert identify(process.pid) is None


def test_processes_that_end_by_themselves_are_only_waited_for(child):
    process = child()
    known = identify(process.pid)
    process.stdin.close()
    assert end([known], grace_s=10, term_s=0) == []
    assert process.wait() == 0


def test_sigterm_then_sigkill(child):
    soft = child()
    hard = child("sh", "-c", "trap '' TERM; echo ready; exec cat")
    assert hard.stdout.readline() == b"ready\n"
    known = [identify(soft.pid), identify(hard.pid)]
    assert end(known, grace_s=0, term_s=0.2) == []
    assert not any(map(is_alive, known))


def test_frozen_process_is_ended(child):
    process = child()
    known = identify(process.pid)
    process.send_signal(signal.SIGSTOP)
    assert end([known], grace_s=0, term_s=0.1) == []


def test_another_process_with_the_pid_is_spared(child):
    process = child()
    known = identify(process.pid)
    assert end([msgspec.structs.replace(known, born=known.born - 1)], grace_s=0, term_s=0) == []
    assert is_alive(known)


def test_reap():
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 3"], {})
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert reap(pid) == 3
    assert reap(pid) is None
