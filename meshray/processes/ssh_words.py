"""What OpenSSH is asked for, and what its complaints mean.

*Pure.* Used by ``ssh_connection``.

The user's OpenSSH configuration counts: names, users, ports, keys, agents, jump hosts and known hosts. Set here is only
what a program without a terminal needs, and what ``meshray`` relies on.
"""

from __future__ import annotations

import re
import shlex

from meshray.cluster_schema import NodeSpec

KEEP_ALIVE_S, KEEP_ALIVES_MAX = 5, 3
"""A host that says nothing for so many intervals is given up: 15 s, above any stall of a busy host."""

_OPTIONS = {
    "BatchMode": "yes",
    "ServerAliveInterval": str(KEEP_ALIVE_S),
    "ServerAliveCountMax": str(KEEP_ALIVES_MAX),
    "ControlPersist": "no",
    "ClearAllForwardings": "yes",
    "RequestTTY": "no",
    "RemoteCommand": "none",
    "PermitLocalCommand": "no",
}
_ADVICE = (
    (r"Host key verification failed|REMOTE HOST IDENTIFICATION HAS CHANGED|host key is known",
     "its host key is not in known_hosts, or differs from it: connect once by hand (ssh {host}) and compare the "
     "fingerprint. meshray never accepts a key by itself"),
    (r"Permission denied|Too many authentication failures",
     "it takes none of your keys: try ssh {host} by hand, then set ssh_user or ssh_private_key, or add the key to your "
     "agent"),
    (r"Could not resolve hostname", "nobody knows this name: correct host in the cluster file, or add it to your "
                                    "OpenSSH configuration"),
    (r"Connection refused", "no SSH server listens there: start it, or set the port in your OpenSSH configuration"),
    (r"timed out|No route to host|Network is unreachable|not responding",
     "it cannot be reached: is it up, and is there a firewall or jump host between?"),
    (r"bad permissions|UNPROTECTED PRIVATE KEY", "the private key can be read by others: chmod 600 it"),
    (r"Control socket|ControlPath", "the connection to it was lost"),
)


def ssh_command(client: str, node: NodeSpec, *, control: str, master: bool, timeout_s: float) -> list[str]:
    """Return the command that opens the connection to a node's host, or (not ``master``) a session over it.

    ``client``: the OpenSSH client with options of the user's. The remote command is to be appended.
    """
    options = {**_OPTIONS, "ControlMaster": "yes" if master else "no", "ControlPath": control,
               "ConnectTimeout": str(max(1, int(timeout_s)))}
    command = [*shlex.split(client), "-T", *(f"-o{name}={value}" for name, value in options.items())]
    if node.ssh_user:
        command += ["-l", node.ssh_user]
    if node.ssh_private_key:
        command += ["-i", node.ssh_private_key]
    return [*command, "--", node.host]


def advice_for(complaint: str, host: str) -> str:
    """Say what to do about what OpenSSH wrote, or nothing."""
    for pattern, advice in _ADVICE:
        if re.search(pattern, complaint):
            return advice.format(host=host)
    return ""


def python_command(python: str, environment: dict[str, str], *arguments: str) -> str:
    """Return the shell command that runs the hosts' Python, whose path may begin with ``~``."""
    home, path = ("~/", python[2:]) if python.startswith("~/") else ("", python)
    variables = [shlex.quote(f"{name}={value}") for name, value in environment.items()]
    return " ".join(["exec", *(["env", *variables] if variables else []), f"{home}{shlex.quote(path)}",
                     shlex.join(arguments)])
