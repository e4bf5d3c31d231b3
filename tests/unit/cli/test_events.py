"""``meshray events``, against a node that only answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshray.cli import events


def event(number: int, severity: str = "info") -> dict[str, Any]:
    return {"key": f"{number:020}/node-a/1", "wall_ns": number * 10**9, "severity": severity, "kind": "job started",
            "source": "left", "message": f"job {number}\nmore"}


@pytest.fixture
def node(fake_node):
    node = fake_node()
    node.rows["events"] = [event(3, "warning"), event(1), event(2, "error")]
    node.up()
    return node


def test_the_newest_comes_last_and_takes_one_line(node, meshray_command):
    result = meshray_command("events")
    lines = result.output.splitlines()
    assert result.exit_code == 0, result.output
    assert [line.split()[2:] for line in lines] == [
        [severity, "left", "job", "started:", "job", str(number), "more"]
        for number, severity in ((1, "info"), (2, "error"), (3, "warning"))]


@pytest.mark.parametrize(("arguments", "numbers"), [
    (["--severity", "warning"], [2, 3]), (["--severity", "error"], [2]), (["--limit", "2"], [2, 3])])
def test_the_grave_ones_and_the_newest(node, meshray_command, arguments, numbers):
    result = meshray_command("events", "--json", *arguments)
    assert [json.loads(line)["wall_ns"] // 10**9 for line in result.output.splitlines()] == numbers


def test_followed_each_later_one_is_shown_once(node, meshray_command, monkeypatch):
    looks: list[float] = []

    def look(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 4:
            raise KeyboardInterrupt
        node.rows["events"].append(event(3 + len(looks)))

    monkeypatch.setattr(events.time, "sleep", look)
    result = meshray_command("events", "--follow", "--json")
    assert [json.loads(line)["wall_ns"] // 10**9 for line in result.stdout.splitlines()] == [1, 2, 3, 4, 5, 6]


def test_listed_with_a_filter_the_newest_are_kept(node, meshray_command):
    node.rows["events"].sort(key=lambda row: row["key"])
    result = meshray_command("list", "events", "--limit", "1")
    assert "1970-01-01" in result.output and "error" in result.output and "more than 1 rows" in result.stderr
    result = meshray_command("list", "events", "--json", "--filter", "severity=warning")
    assert [row["wall_ns"] for row in json.loads(result.stdout)] == [3 * 10**9]
