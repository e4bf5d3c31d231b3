"""What ``meshray up`` and ``down`` show of their hosts: a live table on a terminal, a line per phase elsewhere.

*Shell (terminal).* Fed by the threads of ``ssh_fleet``.

1. Failures are told on stderr as well, whole, with the last lines that the host wrote.
2. Where output is no terminal, each line stands alone: host, phase, outcome.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from types import TracebackType

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from meshray.processes.ssh_fleet import Progress

_MARKS = {"begun": ("...", "cyan"), "done": ("ok", "green"), "failed": ("FAILED", "red"),
          "stopped": ("stopped", "yellow")}


class Display:
    """Shows the phases of hosts. Use it in ``with``; ``report`` may be called from any thread."""

    def __init__(self, phases: list[str]) -> None:
        self.failures: list[Progress] = []
        self._phases = phases
        self._lock = threading.Lock()
        self._news: dict[str, dict[str, Progress]] = {}
        self._since: dict[tuple[str, str], float] = {}
        live = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._live = Live(get_renderable=self._table, console=Console(), refresh_per_second=5) if live else None

    def report(self, news: Progress) -> None:
        """Show one piece of news."""
        with self._lock:
            self._news.setdefault(news.host, {})[news.phase] = news
            self._since[news.host, news.phase] = time.monotonic()
            if news.state == "failed":
                self.failures.append(news)
            if self._live is None and news.state != "begun":
                tail = f": {news.text.splitlines()[0]}" if news.text else ""
                click.echo(f"{news.host}: {news.phase} {_MARKS[news.state][0]} ({news.seconds:.1f} s){tail}")

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        table.add_column("host")
        for phase in self._phases:
            table.add_column(phase)
        table.add_column("", overflow="ellipsis", no_wrap=True)
        with self._lock:
            for host, news in self._news.items():
                latest = list(news.values())[-1]
                words = latest.text.splitlines()[0] if latest.text else ""
                cells = [self._cell(host, news.get(phase)) for phase in self._phases]
                table.add_row(host, *cells, Text(words, style="red" if latest.state == "failed" else "dim"))
        return table

    def _cell(self, host: str, news: Progress | None) -> Text:
        if news is None:
            return Text("")
        mark, style = _MARKS[news.state]
        seconds = time.monotonic() - self._since[host, news.phase] if news.state == "begun" else news.seconds
        return Text(f"{mark} {seconds:.1f}s", style=style)

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
        for news in self.failures:
            click.echo(f"{news.host}: {news.phase} failed after {news.seconds:.1f} s: {news.text}", err=True)
            for line in news.words:
                click.echo(f"    | {line}", err=True)
