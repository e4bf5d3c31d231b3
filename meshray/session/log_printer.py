"""What workers print, on the driver's terminal.

*Shell (terminal) around the pure ``LogFolding``.* Runs in drivers.

1. A line is printed at once with its origin: ``(name pid=123 node=head) text``.
2. A text that is repeated within ``FOLD_NS`` is counted instead of printed, and when the time is over the last one is
   printed with the count. Between processes words with digits in them do not matter; within one process they do, so
   that its progress is seen.
3. Nothing is lost: ``flush`` prints what is still counted.

Source: ray 2.60.0, ``_private/ray_logging`` (LogDeduplicator).
"""

from __future__ import annotations

import os
import re
import sys
from collections import OrderedDict
from typing import TextIO

import msgspec

from meshray import config
from meshray.messages.state import LogLines

FOLD_NS = 5 * config.SECOND_NS
"""Time during which equal lines are folded (as Ray's)."""

FOLDED_MAX = 10_000
"""Different lines remembered at a time; beyond that the oldest are let go early."""

_DIGIT = re.compile(r"\d")
_COLOURS = (36, 35, 33, 32, 34)


class Line(msgspec.Struct, frozen=True):
    """A line to print. ``repeated``: how many equal lines it stands for, 0 if just for itself."""

    name: str
    pid: int
    node: str
    stream: str
    text: str
    repeated: int = 0


class _Fold(msgspec.Struct):
    until_ns: int
    last: Line
    sources: set[tuple[str, int]]
    count: int = 0


class LogFolding:
    """Decides which lines are printed, and when."""

    def __init__(self, *, fold: bool = True) -> None:
        self._fold = fold
        self._folds: OrderedDict[str, _Fold] = OrderedDict()

    def take(self, lines: LogLines, now_ns: int) -> list[Line]:
        """Take lines of one worker; return what to print now."""
        printed = self.tick(now_ns)
        source = (lines.node, lines.pid)
        for text in lines.lines:
            line = Line(lines.name, lines.pid, lines.node, lines.stream, text)
            key = " ".join([word for word in text.split() if not _DIGIT.search(word)]) if self._fold else ""
            fold = self._folds.get(key)
            if fold is None:
                printed.append(line)
                if key:
                    self._folds[key] = _Fold(now_ns + FOLD_NS, line, {source})
                    if len(self._folds) > FOLDED_MAX:
                        printed += self._release(1)
                continue
            fold.sources.add(source)
            if len(fold.sources) == 1 and text != fold.last.text:
                if fold.count:
                    printed.append(msgspec.structs.replace(fold.last, repeated=fold.count if fold.count > 1 else 0))
                    fold.count = 0
                printed.append(line)
            else:
                fold.count += 1
            fold.last = line
        return printed

    def tick(self, now_ns: int) -> list[Line]:
        """Return the folded lines whose time is over."""
        due = 0
        for fold in self._folds.values():
            if fold.until_ns > now_ns:
                break
            due += 1
        return self._release(due, now_ns)

    def deadline_ns(self) -> int | None:
        """Return when ``tick`` has something to do, or None."""
        return next(iter(self._folds.values())).until_ns if self._folds else None

    def flush(self) -> list[Line]:
        """Return everything that is still folded."""
        return self._release(len(self._folds))

    def _release(self, count: int, now_ns: int | None = None) -> list[Line]:
        printed = []
        for _ in range(count):
            key, fold = self._folds.popitem(last=False)
            if fold.count:
                printed.append(msgspec.structs.replace(fold.last, repeated=fold.count if fold.count > 1 else 0))
            if fold.count > 1 and now_ns is not None:
                # Several processes are at it: what they say next is folded from its first line on.
                self._folds[key] = _Fold(now_ns + FOLD_NS, fold.last, fold.sources)
        return printed


def format_line(line: Line, *, colour: bool) -> str:
    """Return a line as it is printed, without the newline."""
    prefix = f"({line.name} pid={line.pid} node={line.node})"
    more = f" [repeated {line.repeated}x across cluster]" if line.repeated else ""
    if colour:
        tint = _COLOURS[line.pid % len(_COLOURS)]
        prefix = f"\x1b[{tint}m{prefix}\x1b[0m"
        more = f"\x1b[32m{more}\x1b[0m" if more else ""
    return f"{prefix} {line.text}{more}"


class LogPrinter:
    """Prints to stdout and stderr of this process. ``MESHRAY_DEDUP_LOGS=0`` prints every line."""

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self._out = out
        self._err = err
        self._folding = LogFolding(fold=os.environ.get("MESHRAY_DEDUP_LOGS", "1") != "0")

    def take(self, lines: LogLines, now_ns: int) -> None:
        """Print lines that came from a node."""
        self._print(self._folding.take(lines, now_ns))

    def tick(self, now_ns: int) -> None:
        """Print folded lines whose time is over."""
        self._print(self._folding.tick(now_ns))

    def deadline_ns(self) -> int | None:
        """Return when ``tick`` is due, or None."""
        return self._folding.deadline_ns()

    def flush(self) -> None:
        """Print what is still folded: the session ends."""
        self._print(self._folding.flush())

    def _print(self, lines: list[Line]) -> None:
        for line in lines:
            # Looked up for each line: programs and tests replace sys.stdout.
            stream = (self._err or sys.stderr) if line.stream == "err" else (self._out or sys.stdout)
            try:
                colour = "NO_COLOR" not in os.environ and stream.isatty()
                stream.write(format_line(line, colour=colour) + "\n")
            except (OSError, ValueError):  # the driver closed its own output: there is nowhere to say so
                return
        if lines:
            self._flush_streams()

    def _flush_streams(self) -> None:
        for stream in (self._out or sys.stdout, self._err or sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):  # as above
                continue
