"""The table: every row on meshray and a peer in one run, beside the bare limit.

*Shell (stdout).* ``python -m perf.compare --peer ray|dask|pool [--peer-python PATH] [--rows a,b] [--quick] [--json]``.

1. ``at least`` and ``aim`` are the project's targets; they speak of Ray, so they are shown beside Ray only.
2. ``ratio`` is how many times better meshray is than the peer: rates divided, costs divided the other way round.
3. With ``--json``, one object per line: ``row``, ``value`` (meshray), ``unit``, ``peer``, ``limit``; null where there
   is none.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass

from perf.orchestra import Orchestra, Values
from perf.row_kinds import Target
from perf.rows import ROWS

CPUS = 2
MODULES = {"meshray": "meshray", "ray": "ray", "dask": "distributed", "pool": "multiprocessing"}


@dataclass(frozen=True)
class Cost:
    """A row of seconds or megabytes, where less is better; ``at_least`` and ``aim`` as in the table."""

    text: str
    unit: str
    at_least: str
    aim: str


COSTS = {
    "init": Cost("init() to first task result", "s", "5x", "10x"),
    "shutdown": Cost("shutdown()", "s", "6x", "10x"),
    "memory": Cost("memory of all system processes after the rows (PSS)", "MB", "6x", "12x"),
    "import": Cost("import", "s", "0.1 s", "0.06 s"),
}


@dataclass(frozen=True)
class Line:
    """One finished row of the table."""

    row: str
    text: str
    unit: str
    at_least: str
    aim: str
    value: float | None
    peer: float | None
    limit: float | None

    @property
    def more_is_better(self) -> bool:
        """Whether the unit is a rate."""
        return self.unit.endswith("/s")

    def ratio(self) -> float | None:
        """How many times better than the peer."""
        if not self.value or not self.peer:
            return None
        return self.value / self.peer if self.more_is_better else self.peer / self.value

    def share(self) -> float | None:
        """Which share of the limit is reached."""
        if not self.value or not self.limit:
            return None
        return self.value / self.limit if self.more_is_better else self.limit / self.value


def measure(orchestra: Orchestra, peer: str, names: list[str]) -> list[Line]:
    """Run everything that was asked for."""
    rates = [name for name in names if name in ROWS]
    results: dict[str, Values] = {}
    if rates or "memory" in names:
        results, results["memory"] = orchestra.rows(rates, CPUS)
    if "init" in names or "shutdown" in names:
        results["init"], results["shutdown"] = orchestra.lifetimes(CPUS)
    if "import" in names:
        results["import"] = orchestra.imports({name: MODULES[name] for name in orchestra.pythons if name in MODULES})
    lines = []
    for name in names:
        values = results[name]
        row = ROWS.get(name)
        if row is not None:
            described = (row.text, row.unit, times(row.at_least), times(row.aim))
        else:
            cost = COSTS[name]
            described = (cost.text, cost.unit, cost.at_least, cost.aim)
        if peer != "ray":
            described = (*described[:2], "", "")
        lines.append(Line(name, *described, values.get("meshray"), values.get(peer), values.get("bare")))
    return lines


def times(target: Target) -> str:
    """Write a target as the table does."""
    return target if isinstance(target, str) else "" if target is None else f"{target:g}x"


def number(value: float | None, suffix: str = "") -> str:
    """Write a value with three significant digits."""
    if value is None:
        return "-"
    return (f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}") + suffix


def cells_of(line: Line) -> list[str]:
    """Return one line of the table, cell by cell."""
    share = line.share()
    figures = [number(line.value), number(line.peer), number(line.ratio(), "x")]
    reached = "-" if share is None else f"{share:.1%}"
    return [line.text, line.unit, *figures, line.at_least, line.aim, number(line.limit), reached]


def table(lines: list[Line], peer: str) -> str:
    """Return the table as Markdown."""
    head = ["row", "unit", "meshray", peer, "ratio", "at least", "aim", "bare limit", "of limit"]
    body = [cells_of(line) for line in lines]
    widths = [max(len(cells[column]) for cells in [head, *body]) for column in range(len(head))]
    rule = ["-" * width for width in widths]
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"
                     for cells in [head, rule, *body])


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m perf.compare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", choices=["ray", "dask", "pool"], required=True)
    parser.add_argument("--peer-python", default=os.environ.get("MESHRAY_PEER_PYTHON", sys.executable),
                        help="interpreter that has the peer installed (or MESHRAY_PEER_PYTHON)")
    parser.add_argument("--rows", default="all", help=f"comma-separated: {', '.join([*ROWS, *COSTS])}")
    parser.add_argument("--rounds", type=int, help="samples per row and system (default 5)")
    parser.add_argument("--quick", action="store_true", help="one short round: a smoke test, not a measurement")
    parser.add_argument("--json", action="store_true", help="one object per line instead of the table")
    arguments = parser.parse_args()
    names = [*ROWS, *COSTS] if arguments.rows == "all" else arguments.rows.split(",")
    unknown = [name for name in names if name not in ROWS and name not in COSTS]
    if unknown:
        parser.error(f"unknown row {unknown[0]!r}; there are {', '.join([*ROWS, *COSTS])}")
    pythons = {"meshray": sys.executable, arguments.peer: arguments.peer_python, "bare": sys.executable}
    rounds, sample_s = (1, 0.1) if arguments.quick else (arguments.rounds or 5, 0.4)
    lines = measure(Orchestra(pythons, rounds, sample_s), arguments.peer, names)
    if not arguments.json:
        print(table(lines, arguments.peer))
        return
    for line in lines:
        print(json.dumps({key: getattr(line, key) for key in ("row", "value", "unit", "peer", "limit")}))


if __name__ == "__main__":
    main()
