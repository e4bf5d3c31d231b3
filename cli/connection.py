"""How subcommands reach a cluster: the ``--address`` option and one question to a node.

*Shell (zmq).*
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from meshray.processes import run_dirs

from .rows import counted

if TYPE_CHECKING:
    from meshray.processes.ssh_plan import ClusterRecord

Command = TypeVar("Command", bound=Callable[..., Any])


def address_option(command: Command) -> Command:
    """Add ``--address`` to a subcommand."""
    return click.option(
        "--address", envvar=run_dirs.ADDRESS_VARIABLE, default="auto", show_default=True, metavar="ADDRESS",
        help="Cluster to talk to: auto (the one that up started last, else the only one), a name, or an endpoint. "
             f"Default from {run_dirs.ADDRESS_VARIABLE}.")(command)


def elsewhere(address: str) -> ClusterRecord | None:
    """Return the record of the cluster that is meant, if this machine started it over SSH and none of its own is."""
    from meshray.processes import ssh_record

    if "://" in address:
        return None
    names, here = ssh_record.names(), run_dirs.addresses()
    if address == "auto":
        return ssh_record.read(names[0]) if len(names) == 1 and not here else None
    return ssh_record.read(address) if address in names and address not in here else None


def describe(address: str, topics: list[str], *, limit: int = 10_000) -> tuple[str, dict[str, list[dict[str, Any]]]]:
    """Ask a node of the cluster; return its endpoint and the rows by topic. Who did not answer is told on stderr."""
    from meshray.processes.tool import NodeClient

    record = elsewhere(address)
    if record is not None:
        from meshray.processes import ssh_cluster

        described = ssh_cluster.describe(record, topics, limit)
        endpoint, rows, missing = described.endpoint, described.rows, described.missing
        if "nodes" in topics:
            there = {row["name"] for row in rows["nodes"] if row["state"] == "alive"}
            away = [host.spec.name for host in record.hosts if host.spec.name not in there]
            if away:
                click.echo(f"not there: {', '.join(away)}. meshray up FILE starts them again", err=True)
    else:
        endpoint = run_dirs.find_address(address)
        with NodeClient(endpoint) as client:
            rows = client.describe(topics, limit=limit)
            missing = client.missing
    if missing:
        click.echo(f"no answer in time from {', '.join(missing)}: what they know is missing here", err=True)
    return endpoint, {topic: counted(found) for topic, found in rows.items()}
