"""``meshray events``: what happened to the cluster.

*Shell (terminal, clock).*

1. The newest event comes last. With ``--follow`` each later one is shown once, in the order in which they are found:
   clocks of machines differ, so one that comes late may be older than what was shown.
"""

from __future__ import annotations

import json
import time
from typing import Any

import click

from .connection import address_option, describe
from .rows import EventRow, typed
from .status import terminal

_ROWS_MAX = 10_000
_LOOK_S = 1.0
SEVERITIES = ("info", "warning", "error")
_STYLES = {"info": "dim", "warning": "yellow", "error": "bold red"}


@click.command(short_help="Show what happened to the cluster.")
@click.option("--severity", type=click.Choice(SEVERITIES), default="info", show_default=True,
              help="Only events at least this grave.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, _ROWS_MAX), help="The newest so many.")
@click.option("--follow", "-f", is_flag=True, help="Go on with what happens from now on, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="An event per line, as JSON.")
@address_option
def events(severity: str, limit: int, follow: bool, as_json: bool, address: str) -> None:
    """Show what happened to the cluster: nodes, workers, actors, jobs and servers that came and went.

    \b
    Examples:
      meshray events
      meshray events --severity warning --limit 20
      meshray events --follow --json | jq .message
    """
    rows = _grave(address, severity)
    _show(rows[-limit:], as_json)
    seen = {row["key"] for row in rows}
    while follow:
        time.sleep(_LOOK_S)
        rows = _grave(address, severity)
        _show([row for row in rows if row["key"] not in seen], as_json)
        seen = {row["key"] for row in rows}


def _grave(address: str, severity: str) -> list[dict[str, Any]]:
    _, rows = describe(address, ["events"], limit=_ROWS_MAX)
    wanted = SEVERITIES[SEVERITIES.index(severity):]
    return sorted((row for row in rows["events"] if row["severity"] in wanted), key=lambda row: str(row["key"]))


def _show(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        for row in rows:
            click.echo(json.dumps(row))
        return
    console = terminal()
    for event in typed("events", rows):
        console.print(line_of(event), style=_STYLES.get(event.severity), highlight=False, markup=False)


def line_of(event: EventRow) -> str:
    """Return an event as one line."""
    return (f"{time_of(event.wall_ns)}  {event.severity:<7}  {event.source:<12}  {event.kind}: "
            f"{' '.join(event.message.split())}")


def time_of(wall_ns: int) -> str:
    """Return a time as this machine's clocks on the wall show it, to the millisecond."""
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(wall_ns // 10**9))}.{wall_ns // 10**6 % 1000:03}"
