"""Namespaces as hosts: they reach each other over the network and in no other way, are cut off and healed, and nothing
is left of them."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from perf import hosts as beds
from perf.hosts import Hosts

from .support import is_alive, wait_until

pytestmark = pytest.mark.skipif(bool(beds.possible()), reason=beds.possible())

LISTEN = """
import socket
server = socket.create_server(("0.0.0.0", 4000))
print("listening", flush=True)
while True:
    connection, _ = server.accept()
    connection.sendall(b"hello")
    connection.close()
"""
ASK = """
import socket, sys
try:
    connection = socket.create_connection((sys.argv[1], 4000), timeout=0.5)
    print(connection.recv(5).decode())
except TimeoutError:
    print("silence")
"""


@pytest.fixture(scope="module")
def pair() -> Iterator[Hosts]:
    with Hosts(2, mbit=1000) as made:
        listener = made.run(made[0], [sys.executable, "-c", LISTEN], stdout=subprocess.PIPE, text=True)
        assert listener.stdout is not None
        assert listener.stdout.readline() == "listening\n"
        yield made


def ask(made: Hosts, index: int, address: str) -> str:
    host = made.hub if index < 0 else made[index]
    process = made.run(host, [sys.executable, "-c", ASK, address], stdout=subprocess.PIPE, text=True)
    return str(process.communicate(timeout=20)[0]).strip()


def test_hosts_reach_each_other_and_the_hub_reaches_them(pair):
    assert ask(pair, 1, pair[0].address) == "hello"
    assert ask(pair, -1, pair[0].address) == "hello"


def test_a_cut_is_silence_until_it_heals(pair):
    pair.cut(pair[1], pair[0])
    assert ask(pair, 1, pair[0].address) == "silence"
    assert ask(pair, -1, pair[0].address) == "hello"
    pair.heal()
    assert ask(pair, 1, pair[0].address) == "hello"


def test_links_are_capped_in_both_directions(pair):
    for namespace, device in ((pair[0].namespace, "eth0"), (pair.hub.namespace, "port-h0")):
        shown = subprocess.run(["tc", "-n", namespace, "qdisc", "show", "dev", device], capture_output=True, text=True)
        assert "tbf" in shown.stdout
        assert "rate 1Gbit" in shown.stdout


def test_each_host_has_directories_of_its_own(pair):
    environments = [host.environment() for host in pair]
    for variable in ("HOME", "MESHRAY_RUN_ROOT"):
        values = {environment[variable] for environment in environments}
        assert len(values) == 2
        assert all(os.path.isdir(value) for value in values)


def output_of(made: Hosts, index: int, *command: str) -> str:
    process = made.run(made[index], command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return str(process.communicate(timeout=20)[0])


def test_each_host_has_files_of_its_own(pair):
    places = ["/tmp/it", "/var/tmp/it", "/dev/shm/it", os.path.expanduser("~root/it"), str(pair[0].root / "it")]
    assert output_of(pair, 0, "touch", *places) == ""
    assert output_of(pair, 0, "ls", *places).split() == sorted(places)
    assert output_of(pair, 1, "ls", *places).count("No such file") == len(places)
    assert not any(os.path.exists(place) for place in places[:-1])
    assert len({output_of(pair, index, "cat", "/proc/sys/kernel/random/boot_id") for index in range(2)}) == 2


def test_hosts_share_the_code_and_cannot_write_it(pair):
    assert "hosts of one machine" in output_of(pair, 0, sys.executable, "-c",
                                               "import meshray; print('hosts of one machine')")
    for code in (Path(__file__).parents[2], Path(sys.prefix)):
        if str(code).startswith("/tmp/"):  # what the host has for itself would hide it
            assert "Read-only" in output_of(pair, 0, "touch", str(code / "it"))


def test_a_socket_s_path_leads_nowhere_on_another_host(pair):
    """As when a service tells others an address that only its host knows."""
    listens = "import socket; s = socket.socket(socket.AF_UNIX); s.bind('/tmp/s'); s.listen(); print('.', flush=True); "
    asks = "import socket; print(socket.socket(socket.AF_UNIX).connect_ex('/tmp/s'))"
    listener = pair.run(pair[0], [sys.executable, "-c", listens + "s.accept(); s.accept()"], stdout=subprocess.PIPE)
    assert listener.stdout is not None
    assert listener.stdout.readline() == b".\n"
    assert output_of(pair, 0, sys.executable, "-c", asks) == "0\n"
    assert output_of(pair, 1, sys.executable, "-c", asks) == f"{errno.ENOENT}\n"


def test_a_full_disk_is_one_directory_s(pair):
    pair.small_disk(pair[0], pair[0].state, 64 * 1024)
    with pytest.raises(OSError, match="No space"), open(pair[0].outside(pair[0].state / "file"), "wb") as file:
        file.write(bytes(1_000_000))
    pair[1].outside(pair[1].state / "file").write_bytes(bytes(1_000_000))


def test_why_hosts_cannot_be_made_is_told(monkeypatch):
    monkeypatch.setitem(beds.PRIVATE, "/nowhere", "nowhere")
    with pytest.raises(subprocess.CalledProcessError) as raised:
        Hosts(1)
    assert "/nowhere" in raised.value.stderr


MAKES = """
import os, subprocess, sys
from perf.hosts import Hosts
hosts = Hosts(1)
child = hosts.run(hosts[0], ["sleep", "1000"], start_new_session=True)
print(hosts[0].namespace, hosts.root, child.pid, os.readlink(f"/proc/{hosts[0].keeper}/ns/mnt"), flush=True)
if sys.argv[1] == "wait":
    sys.stdin.read()
"""


@pytest.mark.parametrize("end", ["exit", "kill"])
def test_nothing_is_left_of_a_program_that_ends(end):
    program = subprocess.Popen([sys.executable, "-c", MAKES, "wait" if end == "kill" else "exit"], text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert program.stdout is not None
    namespace, root, child, files = program.stdout.readline().split()
    assert root not in Path("/proc/self/mountinfo").read_text(), "mounts are to exist on the host only"
    if end == "kill":
        program.send_signal(signal.SIGKILL)
    program.wait(20)
    if end == "kill":
        assert is_alive(int(child))
        assert files in mount_namespaces()
        Hosts(1).close()
    wait_until(lambda: not is_alive(int(child)))
    program.communicate(timeout=20)
    assert not os.path.exists(root)
    assert not os.path.exists(f"/run/netns/{namespace}")
    wait_until(lambda: files not in mount_namespaces(), what="the files of the host to be gone")


def mount_namespaces() -> set[str]:
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            found.add(os.readlink(f"/proc/{pid}/ns/mnt"))
    return found
