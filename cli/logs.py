"""``meshray logs``: what the processes of a cluster wrote.

*Shell (files).* Reads the run directories, so it also works when the cluster has died.

1. With one process its lines come as they are; with several, each line says whose it is.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import BinaryIO

import click

from meshray import config
from meshray.errors import ClusterNotFoundError
from meshray.processes import run_dirs

from .connection import address_option, elsewhere
from .exits import Failed


@click.command(short_help="Show what processes of the cluster wrote.")
@click.argument("process", required=False, default="")
@click.option("-f", "--follow", is_flag=True, help="Go on as lines are written; end with Ctrl-C.")
@click.option("--tail", default=50, show_default=True, type=click.IntRange(0), help="Lines of each file to begin with.")
@address_option
def logs(process: str, follow: bool, tail: int, address: str) -> None:
    """Show what PROCESS wrote, or all processes: node, zygote, shard-0-0, worker-..., or node-name/process.

    The beginning of a name is enough. It also works after the cluster was killed.

    \b
    Examples:
      meshray logs
      meshray logs worker -f
      meshray logs head/shard-0-0 --tail 100
    """
    record = elsewhere(address)
    if record is not None:
        from .host_clusters import logs_of_hosts

        logs_of_hosts(record, ["logs", *filter(None, [process]), *(["--follow"] if follow else []), f"--tail={tail}",
                               f"--address={record.cluster}"])
        return
    cluster = _cluster(address)
    files = _files(cluster, process)
    if not files:
        known = sorted({name.rpartition(".")[0] for name in _files(cluster, "")})
        raise Failed(f"no process {process} in cluster {cluster}: there are {', '.join(known) or 'none'}")
    named = len({name.rpartition(".")[0] for name in files}) > 1
    opened: dict[str, BinaryIO] = {}
    with ExitStack() as stack:
        for name, path in files.items():
            opened[name] = stack.enter_context(open(path, "rb"))
            _show(name, deque(opened[name], maxlen=tail), named)
        while follow:
            for name, path in _files(cluster, process).items():
                if name not in opened:
                    opened[name] = stack.enter_context(open(path, "rb"))
                _show(name, _lines(opened[name]), named)
            time.sleep(config.LOG_POLL_NS / config.SECOND_NS)


def _cluster(address: str) -> str:
    """Return the name of the cluster that is meant, dead or alive."""
    known = run_dirs.clusters()
    if address in known:
        return address
    current = run_dirs.current()
    if address == "auto" and (current in known or len(known) == 1):
        return current if current in known else known[0]
    endpoint = run_dirs.find_address(address)
    name = os.path.basename(os.path.dirname(os.path.dirname(endpoint)))
    if name not in known:
        raise ClusterNotFoundError(f"no run directory for {endpoint} in {run_dirs.run_root()}: logs are read on the "
                                   "machine where they were written")
    return name


def _files(cluster: str, process: str) -> dict[str, str]:
    """Return the log files of the processes whose name begins so: ``node/process.stream`` -> path."""
    found = {}
    for node, run_dir in run_dirs.nodes_of(cluster).items():
        directory = os.path.join(run_dir, "logs")
        for file in sorted(os.listdir(directory)) if os.path.isdir(directory) else ():
            if file.startswith(process) or f"{node}/{file}".startswith(process):
                found[f"{node}/{file}"] = os.path.join(directory, file)
    return found


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the whole lines that were written since; half a line waits for its end."""
    while line := file.readline():
        if not line.endswith(b"\n"):
            file.seek(-len(line), os.SEEK_CUR)
            return
        yield line


def _show(name: str, lines: Iterable[bytes], named: bool) -> None:
    for line in lines:
        text = line.decode(errors="replace").rstrip("\n")
        click.echo(f"{name} | {text}" if named else text)
