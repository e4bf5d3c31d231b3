"""The commands for OpenSSH, and what its complaints mean."""

from __future__ import annotations

import pytest

from meshray.cluster_schema import NodeSpec
from meshray.processes.ssh_words import advice_for, python_command, ssh_command


def test_the_command_leaves_the_users_configuration_alone():
    command = ssh_command("ssh -F 'my config'", NodeSpec(host="alpha"), control="/t/0", master=True, timeout_s=9.5)
    assert command[:3] == ["ssh", "-F", "my config"]
    assert command[-2:] == ["--", "alpha"]
    assert {"-oBatchMode=yes", "-oControlMaster=yes", "-oControlPath=/t/0", "-oConnectTimeout=9"} <= set(command)
    assert not any(word in " ".join(command) for word in ("StrictHostKeyChecking", "-l ", "-i ", "UserKnownHosts"))


def test_users_and_keys_of_the_file_are_given():
    node = NodeSpec(host="alpha", ssh_user="me", ssh_private_key="~/.ssh/lab")
    command = " ".join(ssh_command("ssh", node, control="/t/0", master=False, timeout_s=1))
    assert "-l me -i ~/.ssh/lab -- alpha" in command
    assert "-oControlMaster=no" in command


@pytest.mark.parametrize(("complaint", "words"), [
    ("me@h: Permission denied (publickey).", "none of your keys"),
    ("No ED25519 host key is known for h and you have requested strict checking.\nHost key verification failed.",
     "not in known_hosts"),
    ("ssh: Could not resolve hostname h: Name or service not known", "nobody knows this name"),
    ("ssh: connect to host h port 22: Connection refused", "no SSH server listens"),
    ("ssh: connect to host h port 22: No route to host", "cannot be reached"),
    ("Connection timed out during banner exchange", "cannot be reached"),
    ("Timeout, server h not responding.", "cannot be reached"),
])
def test_advice(complaint: str, words: str):
    assert words in advice_for(complaint, "h")


def test_no_advice_for_what_nobody_foresaw():
    assert advice_for("kex_exchange_identification: banner line contains invalid characters", "h") == ""


@pytest.mark.parametrize(("python", "environment", "expected"), [
    ("python3", {}, "exec python3 -c 'import sys'"),
    ("~/my env/bin/python", {}, "exec ~/'my env/bin/python' -c 'import sys'"),
    ("/p", {"A": "1 2"}, "exec env 'A=1 2' /p -c 'import sys'"),
])
def test_the_hosts_python(python: str, environment: dict[str, str], expected: str):
    assert python_command(python, environment, "-c", "import sys") == expected
