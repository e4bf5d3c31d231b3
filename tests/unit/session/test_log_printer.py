"""Lines of workers reach the terminal: with their origin, repeated ones folded, none lost."""

from __future__ import annotations

import io

import pytest

from meshray import config
from meshray.messages.state import LogLines
from meshray.session import log_printer
from meshray.session.log_printer import FOLD_NS, Line, LogFolding, LogPrinter, format_line


def lines(pid: int, *texts: str, stream: str = "out") -> LogLines:
    return LogLines("train", pid, "head", stream, list(texts))


def texts(printed: list[Line]) -> list[tuple[int, str, int]]:
    return [(line.pid, line.text, line.repeated) for line in printed]


def test_different_lines_are_printed_at_once() -> None:
    folding = LogFolding()
    assert texts(folding.take(lines(1, "a", "b"), 0)) == [(1, "a", 0), (1, "b", 0)]


def test_progress_of_one_process_is_printed_and_exact_repeats_are_counted() -> None:
    folding = LogFolding()
    assert [line.text for line in folding.take(lines(1, "step 1", "step 2", "step 2", "step 2", "step 3"), 0)] == [
        "step 1", "step 2", "step 2", "step 3"]
    assert folding.flush() == []


def test_what_others_repeat_is_counted_and_told_when_the_time_is_over() -> None:
    folding = LogFolding()
    assert texts(folding.take(lines(1, "loss is 0.5 now"), 0)) == [(1, "loss is 0.5 now", 0)]
    for pid in range(2, 14):
        assert folding.take(lines(pid, f"loss is {pid} now"), pid) == []
    assert folding.deadline_ns() == FOLD_NS
    assert folding.tick(FOLD_NS - 1) == []
    assert texts(folding.tick(FOLD_NS)) == [(13, "loss is 13 now", 12)]
    assert folding.take(lines(20, "loss is 3 now"), FOLD_NS + 1) == []
    assert texts(folding.flush()) == [(20, "loss is 3 now", 0)]
    assert folding.deadline_ns() is None


def test_a_single_repetition_is_printed_as_it_is_and_ends_the_fold() -> None:
    folding = LogFolding()
    folding.take(lines(1, "ready"), 0)
    folding.take(lines(2, "ready"), 1)
    assert texts(folding.tick(FOLD_NS)) == [(2, "ready", 0)]
    assert texts(folding.take(lines(3, "ready"), FOLD_NS)) == [(3, "ready", 0)]


def test_lines_of_numbers_or_nothing_are_never_folded() -> None:
    folding = LogFolding()
    assert len(folding.take(lines(1, "1", ""), 0) + folding.take(lines(2, "1", ""), 0)) == 4


def test_the_memory_of_lines_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_printer, "FOLDED_MAX", 2)
    folding = LogFolding()
    folding.take(lines(1, "a", "b"), 0)
    folding.take(lines(2, "a", "a"), 0)
    assert texts(folding.take(lines(1, "c"), 0)) == [(1, "c", 0), (2, "a", 2)]


def test_a_line_has_its_origin_and_its_count() -> None:
    line = Line("train", 7, "head", "out", "hello", 12)
    assert format_line(line, colour=False) == "(train pid=7 node=head) hello [repeated 12x across cluster]"
    assert format_line(line, colour=True).startswith("\x1b[33m(train pid=7 node=head)\x1b[0m hello")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_streams_and_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    out, err = Terminal(), io.StringIO()
    printer = LogPrinter(out, err)
    printer.take(lines(1, "to out"), 0)
    printer.take(lines(1, "to err", stream="err"), 0)
    assert "\x1b[" in out.getvalue()
    assert err.getvalue() == "(train pid=1 node=head) to err\n"
    monkeypatch.setenv("NO_COLOR", "1")
    printer.take(lines(1, "plain"), 0)
    assert out.getvalue().endswith("(train pid=1 node=head) plain\n")


def test_folding_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHRAY_DEDUP_LOGS", "0")
    out = io.StringIO()
    printer = LogPrinter(out)
    for pid in range(3):
        printer.take(lines(pid, "same"), 0)
    assert out.getvalue().count("same") == 3
    assert printer.deadline_ns() is None


def test_counted_lines_come_out_at_the_deadline_and_at_the_end() -> None:
    out = io.StringIO()
    printer = LogPrinter(out)
    for pid in range(3):
        printer.take(lines(pid, "same"), 0)
    printer.tick(config.SECOND_NS)
    assert out.getvalue().count("same") == 1
    printer.flush()
    assert out.getvalue().endswith("(train pid=2 node=head) same [repeated 2x across cluster]\n")


def test_a_closed_stream_does_not_stop_the_program() -> None:
    out = io.StringIO()
    out.close()
    LogPrinter(out, out).take(lines(1, "into the void", stream="err"), 0)
