"""``meshray list``: the rows of one topic, filtered.

*Shell (terminal).*
"""

from __future__ import annotations

import difflib
import json
from typing import Any

import click
import msgspec

from meshray.errors import size_text

from .connection import address_option, describe
from .events import time_of
from .rows import TOPICS, typed
from .status import amounts, terminal

_ROWS_MAX = 10_000


@click.command(name="list", short_help="List tasks, actors, objects, nodes, ...")
@click.argument("topic", type=click.Choice(["tasks", "actors", "objects", "nodes", "workers", "events"]))
@click.option("--filter", "filters", multiple=True, metavar="KEY=VALUE", help="Only rows with this; may be repeated.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, _ROWS_MAX), help="Rows to show.")
@click.option("--json", "as_json", is_flag=True, help="A JSON list of rows.")
@address_option
def list_rows(topic: str, filters: tuple[str, ...], limit: int, as_json: bool, address: str) -> None:
    """List tasks, actors, objects (their copies), nodes, workers or events.

    \b
    Examples:
      meshray list actors
      meshray list tasks --filter state=failed --filter name=rollout --limit 20
      meshray list objects --json
    """
    wanted = [_parse(topic, text) for text in filters]
    # Rows are filtered here, so a filter must see more of them than it shows.
    _, rows = describe(address, [topic], limit=_ROWS_MAX if wanted else limit + 1)
    found = [row for row in rows[topic] if all(_text(row.get(key)) == value for key, value in wanted)]
    shown = found[-limit:] if topic == "events" else found[:limit]
    if as_json:
        click.echo(json.dumps(shown))
        return
    terminal().print(_table(topic, shown))
    if len(found) > limit:
        click.echo(f"more than {limit} rows: raise --limit (at most {_ROWS_MAX}) or add a --filter", err=True)


def _parse(topic: str, text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    keys = TOPICS[topic].__struct_fields__
    if not equals:
        raise click.BadParameter(f"{text!r} must be KEY=VALUE, for example {keys[0]}=...", param_hint="--filter")
    if key not in keys:
        close = difflib.get_close_matches(key, keys, n=1)
        advice = f"did you mean {close[0]}?" if close else f"possible: {', '.join(keys)}"
        raise click.BadParameter(f"{topic} have no {key}, {advice}", param_hint="--filter")
    return key, value


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(topic: str, rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    keys = TOPICS[topic].__struct_fields__
    table = Table(*keys, box=None, pad_edge=False, header_style="bold")
    for row in typed(topic, rows):
        values = msgspec.structs.asdict(row)
        table.add_row(*(Text(_cell(key, values[key])) for key in keys))
    return table


def _cell(key: str, value: Any) -> str:
    if key == "wall_ns":
        return time_of(value)
    if isinstance(value, dict):
        return amounts(value)
    if key in ("size_bytes", "object_store_bytes", "object_store_used", "object_store_spilled"):
        return size_text(value)
    return _text(value)
