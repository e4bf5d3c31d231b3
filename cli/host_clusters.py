"""``meshray up`` and ``down`` of clusters whose nodes are hosts reached over SSH, and the logs of their hosts.

*Shell (terminal).*

1. What will be done is shown before it is done.
2. A host that failed makes the command fail, also when the others came up (``--keep-going``).
"""

from __future__ import annotations

import click

from meshray.cluster_schema import PHASES, ClusterConfig
from meshray.errors import HostError
from meshray.processes import run_dirs, ssh_cluster, ssh_record
from meshray.processes.ssh_plan import Change, ClusterDiffersError, ClusterRecord

from .exits import Failed, differs
from .up_display import Display


def up_on_hosts(cluster: ClusterConfig, file: str, *, keep_going: bool) -> None:
    """Bring a cluster up on its hosts, or to what its file says now."""
    name = cluster.cluster_name
    plans: list[list[Change]] = []

    def show(plan: list[Change]) -> None:
        plans.append(plan)
        if any(change.action != "start" or change.reasons for change in plan):
            for change in plan:
                click.echo(f"  {change}")

    try:
        with Display([*PHASES[:-1], "stop"]) as display:
            record, failed = ssh_cluster.up(cluster, display.report, show, keep_going=keep_going)
    except ClusterDiffersError as error:
        raise differs(name, file, error) from error
    except HostError as error:
        if not display.failures:
            raise
        hosts = ", ".join(dict.fromkeys(news.host for news in display.failures))
        after = "what was started is down again" if plans else "nothing was changed"
        raise Failed(f"cluster {name} is not as the file says: {hosts} failed, and {after}. "
                     "Put it right and run up again, or do without such hosts: --keep-going") from error
    except KeyboardInterrupt:
        if plans and not display.failures:
            click.echo("what was started is down again", err=True)
        raise
    head = record.hosts[0]
    lost = [node.name for node in cluster.nodes if node.name in failed]
    if lost:
        raise Failed(f"cluster {name} is up without {', '.join(lost)}: run meshray up {file} again when they are "
                     "well")
    if failed:
        raise Failed(f"cluster {name} is as the file says, but {', '.join(failed)} could not be reached: given up, and "
                     "kept out if they come back")
    if all(change.action == "keep" for change in plans[0]):
        click.echo(f"cluster {name} runs already, nothing to do: {head.control}")
        return
    # Where run directories lie at the usual place, a program finds its host's node there.
    usual = not any(host.spec.run_dir for host in record.hosts)
    how = ('meshray.init(address="auto") on any of its hosts' if usual else
           f'meshray.init(address="{head.endpoint}") on {head.spec.host}')
    nodes = f"{len(record.hosts)} nodes" if len(record.hosts) > 1 else "1 node"
    click.echo(f"cluster {name} is up: {nodes}, head {head.spec.name} at {head.control}\n"
               f"programs join it with {how}; end it with meshray down {name}")


def record_of(name: str | None) -> ClusterRecord | None:
    """Return the record of the named cluster; of the only one that this machine started, if none is named."""
    if name is not None:
        return ssh_record.read(name)
    names = ssh_record.names()
    return ssh_record.read(names[0]) if len(names) == 1 and run_dirs.current() in (None, names[0]) else None


def down_on_hosts(record: ClusterRecord, *, forget: bool) -> None:
    """Take a cluster down on all its hosts."""
    with Display(["connect", "stop"]) as display:
        failed = ssh_cluster.down(record, display.report, forget=forget)
    if failed and not forget:
        raise Failed(f"cluster {record.cluster} is not down on {', '.join(failed)}: run meshray down {record.cluster} "
                     "again when they can be reached, or give them up with --forget")
    click.echo(f"cluster {record.cluster} is down")


def logs_of_hosts(record: ClusterRecord, arguments: list[str]) -> None:
    """Show the logs of all hosts."""

    def show(node: str, line: str) -> None:
        # Where one process of a host is shown, that host does not say whose line it is.
        click.echo(line if line.startswith(f"{node}/") or len(record.hosts) == 1 else f"{node} | {line}")

    failed = ssh_cluster.everywhere(record, arguments, show)
    if failed:
        raise Failed("\n".join(f"{host}: {error}" for host, error in failed.items()))
