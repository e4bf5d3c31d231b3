"""``meshray timeline``: the tasks of all processes as a Chrome trace.

*Shell (files).*
"""

from __future__ import annotations

import json
import os

import click

from .connection import address_option, describe


@click.command(short_help="Write what ran where and when: a trace.")
@click.argument("file", type=click.Path(dir_okay=False, writable=True))
@address_option
def timeline(file: str, address: str) -> None:
    """Write what ran where and when into FILE, as a Chrome trace (JSON).

    Open it at https://ui.perfetto.dev or chrome://tracing. An existing file is replaced.

    \b
    Example:
      meshray timeline trace.json
    """
    _, rows = describe(address, ["timeline"], limit=1_000_000)
    events = rows["timeline"]
    temporary = f"{file}.{os.getpid()}"
    try:
        with open(temporary, "w") as output:
            json.dump({"traceEvents": events, "displayTimeUnit": "ms"}, output)
        os.replace(temporary, file)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
    click.echo(f"{len(events)} events in {file}: open it at https://ui.perfetto.dev")
