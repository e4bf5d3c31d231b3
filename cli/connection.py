"""How subcommands reach a cluster: the ``--address`` option and one question to a node.

*Shell (zmq).*
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from meshray.processes import run_dirs

from .rows import counted

Command = TypeVar("Command", bound=Callable[..., Any])


def address_option(command: Command) -> Command:
    """Add ``--address`` to a subcommand."""
    return click.option(
        "--address", envvar=run_dirs.ADDRESS_VARIABLE, default="auto", show_default=True, metavar="ADDRESS",
        help="Cluster to talk to: auto (the one that up started last, else the only one), a name, or an endpoint. "
             f"Default from {run_dirs.ADDRESS_VARIABLE}.")(command)


def describe(address: str, topics: list[str], *, limit: int = 10_000) -> tuple[str, dict[str, list[dict[str, Any]]]]:
    """Ask a node of the cluster; return its endpoint and the rows by topic. Who did not answer is told on stderr."""
    from meshray.processes.tool import NodeClient

    endpoint = run_dirs.find_address(address)
    with NodeClient(endpoint) as client:
        rows = client.describe(topics, limit=limit)
        if client.missing:
            click.echo(f"no answer in time from {', '.join(client.missing)}: what they know is missing here", err=True)
    return endpoint, {topic: counted(found) for topic, found in rows.items()}
