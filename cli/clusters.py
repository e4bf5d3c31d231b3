"""``meshray up``, ``down`` and ``schema``: start and end the cluster of a cluster file.

*Shell (terminal, processes).*

1. ``up`` of a cluster that runs changes what differs from the file and can change, and nothing else.
2. ``down`` of a cluster that is not there changes nothing.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import click

from meshray.cluster_config import json_schema, read_cluster_config
from meshray.errors import ClusterNotFoundError
from meshray.processes import run_dirs
from meshray.processes.ssh_plan import ClusterDiffersError

from .exits import Failed, differs


@click.command(short_help="Start a cluster, or change it to its file.")
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--keep-going", is_flag=True, help="Of hosts over SSH: do without those that fail.")
def up(file: str, keep_going: bool) -> None:
    """Start the cluster of a cluster FILE.

    The file is checked before anything starts. If the start fails or is interrupted, what was started is taken down.

    A cluster that runs already is changed to what the file says now: nodes that are new in it start, nodes that are
    gone from it or differ stop or start again, all others go on; the plan is shown. If the file asks for what cannot
    change while the cluster runs, nothing is done (exit code 4).

    \b
    Examples:
      meshray up examples/cluster.yaml
      meshray up examples/hosts.yaml --keep-going
    """
    from meshray.processes import local_cluster

    cluster = read_cluster_config(file)
    if cluster.provider.type == "ssh":
        from .host_clusters import up_on_hosts

        with terminated_like_interrupted():
            up_on_hosts(cluster, file, keep_going=keep_going)
        return
    name = cluster.cluster_name
    with terminated_like_interrupted():
        if not run_dirs.is_cluster_alive(name):
            started = local_cluster.start_cluster(cluster, click.echo)
        else:
            try:
                started, plan = local_cluster.plan_changes(cluster)
            except ClusterDiffersError as error:
                raise differs(name, file, error) from error
            if all(change.action == "keep" for change in plan):
                click.echo(f"cluster {name} runs already, nothing to do: {run_dirs.find_address(name)}")
                return
            for change in plan:
                click.echo(f"  {change}")
            started = local_cluster.change_cluster(cluster, started, plan, click.echo)
    click.echo(f"cluster {name} is up: {started.address}\n"
               f'join it with meshray.init(address="auto"), end it with meshray down')


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Let a terminated start clean up like an interrupted one."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@click.command(short_help="End a cluster; nothing of it is left.")
@click.argument("cluster", required=False, metavar="[FILE|NAME]")
@click.option("--forget", is_flag=True, help="Of hosts over SSH: give up those that cannot be reached.")
def down(cluster: str | None, forget: bool) -> None:
    """End a cluster: the one of a cluster FILE, the one called NAME, or the current one.

    No process, socket or shared memory of it is left. If there is no such cluster, nothing changes.

    \b
    Examples:
      meshray down
      meshray down examples/cluster.yaml
    """
    from meshray.processes import local_cluster

    from .host_clusters import down_on_hosts, record_of

    name = _cluster_name(cluster)
    record = record_of(name)
    if record is not None:
        down_on_hosts(record, forget=forget)
    elif name is not None and _is_of_hosts(name):
        raise Failed(f"cluster {name} has nodes on other hosts too: run meshray down {name} on the machine where up "
                     "started it")
    elif name is None:
        click.echo("no cluster is up, nothing to do")
    elif local_cluster.stop_cluster(name):
        click.echo(f"cluster {name} is down")
    else:
        click.echo(f"cluster {name} is not up, nothing to do")


def _cluster_name(argument: str | None) -> str | None:
    if argument is not None:
        is_file = os.sep in argument or argument.endswith((".yaml", ".yml"))
        return read_cluster_config(argument).cluster_name if is_file else argument
    current = run_dirs.current()
    if current is not None:
        return current
    others = [name for name in run_dirs.clusters() if run_dirs.read_cluster_file(name) is not None]
    if len(others) > 1:
        raise ClusterNotFoundError(f"no current cluster, there are {', '.join(others)}: give the name of one")
    return others[0] if others else None


def _is_of_hosts(name: str) -> bool:
    """Whether the node that runs here belongs to a cluster that another machine started over SSH."""
    file = run_dirs.read_cluster_file(name)
    return file is not None and json.loads(file.configuration).get("provider", {}).get("type") == "ssh"


@click.command()
def schema() -> None:
    """Print the JSON schema of cluster files, for editors."""
    click.echo(json.dumps(json_schema(), indent=2))
