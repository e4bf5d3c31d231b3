"""``meshray status``: the cluster on one screen.

*Shell (terminal).*
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from meshray.errors import size_text

from .connection import address_option, describe
from .rows import DemandRow, NodeRow, ShardRow, typed

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_TOPICS = ["nodes", "workers", "actors", "objects", "tasks", "shards", "demands"]
_BAR_CELLS = 10
_BUSY = ("leased", "actor", "blocked")
_SIZES = ("memory", "object_store_memory")


@click.command(short_help="Show nodes, resources and what is running.")
@address_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object: the address, and a list of rows per topic.")
def status(address: str, as_json: bool) -> None:
    """Show nodes, resources, workers, actors, objects, shards, and work that waits.

    \b
    Examples:
      meshray status
      meshray status --json | jq '.nodes[].resources_available'
    """
    endpoint, rows = describe(address, _TOPICS)
    if as_json:
        click.echo(json.dumps({"address": endpoint, **rows}))
        return
    console = terminal()
    console.print(_headline(rows), style="bold", highlight=False)
    console.print(f"{endpoint}\n", style="dim", highlight=False)
    console.print(_nodes(typed("nodes", rows["nodes"]), rows["workers"]))
    console.print()
    shards = typed("shards", rows["shards"])
    console.print(_shards(shards))
    for line in _rebuilding(shards):
        console.print(line, style="yellow", highlight=False, markup=False)
    for failover in {shard.failover for shard in shards if shard.failover}:
        console.print(f"failover: {failover}", highlight=False, markup=False)
    console.print()
    for line, style in _waiting(typed("demands", rows["demands"])):
        console.print(line, style=style, highlight=False, markup=False)


def terminal() -> Console:
    """Return a console as wide as the terminal; output into a file or pipe is not folded."""
    import sys

    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 200, soft_wrap=True)


def _headline(rows: dict[str, list[dict[str, Any]]]) -> str:
    def counted(topic: str, name: str) -> str:
        states = Counter(str(row.get("state", "")) for row in rows[topic])
        parts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()) if state)
        return f"{len(rows[topic])} {name if len(rows[topic]) != 1 else name[:-1]}" + (f" ({parts})" if parts else "")

    sizes = sum(int(row.get("size_bytes") or 0) for row in rows["objects"])
    return "\n".join([counted("nodes", "nodes"), counted("workers", "workers"), counted("actors", "actors"),
                      counted("tasks", "tasks"), f"{counted('objects', 'objects')} in stores, {size_text(sizes)}"])


def _nodes(nodes: Iterable[NodeRow], workers: list[dict[str, Any]]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table("node", "state", "pid", "workers", "resources in use", "object store", box=None, pad_edge=False)
    for node in nodes:
        total, free = node.resources_total, node.resources_available
        lines = [f"{bar(total[name] - free.get(name, 0.0), total[name])} {name} "
                 f"{total[name] - free.get(name, 0.0):g} of {total[name]:g}" for name in total if name not in _SIZES]
        if "memory" in total:
            used = total["memory"] - free.get("memory", 0.0)
            lines.append(f"{bar(used, total['memory'])} memory {size_text(int(used))} of "
                         f"{size_text(int(total['memory']))}")
        store = (f"{bar(node.object_store_used, node.object_store_bytes)} {size_text(node.object_store_used)} of "
                 f"{size_text(node.object_store_bytes)}")
        if node.object_store_spilled:
            store += f"\n{size_text(node.object_store_spilled)} on disk"
        busy = sum(1 for row in workers if row.get("node") in (node.node, node.name) and row.get("state") in _BUSY)
        table.add_row(Text(node.name or node.node), Text(node.state, style="green" if node.state == "alive" else "red"),
                      str(node.pid), f"{node.workers} ({busy} busy)", Text("\n".join(lines)), Text(store))
    return table


def _shards(shards: Iterable[ShardRow]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table("shard", "role", "epoch", "chain", "rows", "size", "durability", box=None, pad_edge=False)
    for shard in shards:
        rows = ", ".join(f"{count} {name}" for name, count in shard.rows.items() if count)
        table.add_row(Text(shard.shard), shard.role, str(shard.epoch), Text(" -> ".join(shard.members)), Text(rows),
                      f"{size_text(shard.used_bytes)}, file {size_text(shard.file_bytes)}", Text(shard.durability))
    return table


def _rebuilding(shards: Iterable[ShardRow]) -> Iterable[str]:
    """Yield a line for each shard whose chain is shorter than it should be."""
    by_shard: dict[str, list[ShardRow]] = {}
    for shard in shards:
        by_shard.setdefault(shard.shard.rpartition("-")[0], []).append(shard)
    for name, servers in sorted(by_shard.items()):
        newest = max(servers, key=lambda server: server.epoch)
        present = len(newest.members)
        if present >= newest.replicas:
            continue
        joining = [server.shard for server in servers if server.role in ("joining", "whole")]
        what = [f"{', '.join(joining)} is being filled"] if joining else []
        what += [f"{lost} is lost" for lost in newest.lost]
        yield f"{name}: {present} of {newest.replicas} replicas" + "".join(f"; {each}" for each in what)


def _waiting(demands: Iterable[DemandRow]) -> Iterable[tuple[str, str]]:
    for demand in demands:
        needs = amounts(demand.resources) or "nothing"
        line = f"{demand.state}: {demand.count} x {demand.label or 'work'}, each needs {needs}"
        style = "red" if demand.state == "infeasible" else "yellow"
        yield (f"{line}. {demand.reason}" if demand.reason else line), style


def bar(used: float, total: float) -> str:
    """Return a bar of ten cells, as full as ``used`` of ``total``; what is in use at all shows."""
    share = min(1.0, max(0.0, used / total)) if total > 0 else 0.0
    full = -int(-share * _BAR_CELLS // 1)
    return "█" * full + "░" * (_BAR_CELLS - full)


def amounts(resources: dict[str, float]) -> str:
    """Return resources as a person reads them: ``CPU 1, memory 2 GiB``."""
    return ", ".join(f"{name} {size_text(int(amount)) if name in _SIZES else format(amount, 'g')}"
                     for name, amount in resources.items())
