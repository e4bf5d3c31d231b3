"""``meshray up``, ``down`` and ``schema``: start and end the cluster of a cluster file.

*Shell (terminal, processes).*

1. ``up`` of a cluster that runs as the file says changes nothing; of one that runs otherwise it is refused.
2. ``down`` of a cluster that is not there changes nothing.
"""

from __future__ import annotations

import json
import os
import signal

import click

from meshray.cluster_config import json_schema, read_cluster_config
from meshray.errors import ClusterNotFoundError
from meshray.processes import run_dirs

from .exits import Differs, Failed


@click.command()
@click.argument("file", type=click.Path(dir_okay=False))
def up(file: str) -> None:
    """Start the cluster of a cluster FILE.

    The file is checked before anything starts. If the cluster runs already, nothing changes; if it runs with another
    configuration, the differences are shown and nothing changes either (exit code 4). If the start fails or is
    interrupted, what was started is taken down.

    \b
    Example:
      meshray up examples/cluster.yaml
    """
    from meshray.processes import local_cluster

    cluster = read_cluster_config(file)
    name = cluster.cluster_name
    state, details = local_cluster.state_of(cluster)
    lines = "".join(f"\n  {detail}" for detail in details)
    if state == "running":
        click.echo(f"cluster {name} runs already, nothing to do: {run_dirs.find_address(name)}")
        return
    if state == "broken":
        raise Failed(f"cluster {name} is not whole:{lines}\nend it with: meshray down {name}")
    if state == "differs":
        raise Differs(f"cluster {name} runs with another configuration:{lines}\n"
                      f"end it first: meshray down {name} && meshray up {file}")
    # A terminated start cleans up like an interrupted one.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        started = local_cluster.start_cluster(cluster, click.echo)
    finally:
        signal.signal(signal.SIGTERM, before)
    click.echo(f"cluster {name} is up: {started.address}\n"
               f'join it with meshray.init(address="auto"), end it with meshray down')


@click.command()
@click.argument("cluster", required=False, metavar="[FILE|NAME]")
def down(cluster: str | None) -> None:
    """End a cluster: the one of a cluster FILE, the one called NAME, or the current one.

    No process, socket or shared memory of it is left. If there is no such cluster, nothing changes.

    \b
    Examples:
      meshray down
      meshray down examples/cluster.yaml
    """
    from meshray.processes import local_cluster

    name = _cluster_name(cluster)
    if name is None:
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


@click.command()
def schema() -> None:
    """Print the JSON schema of cluster files, for editors."""
    click.echo(json.dumps(json_schema(), indent=2))
