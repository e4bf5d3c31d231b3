"""Several subjects, played in turns: every sample of one system lies between samples of the others.

*Shell (subprocess, pipes).* Runs in ``compare``.

1. Systems take their samples alternately, and the order rotates from round to round, so that a slow minute of the
   machine hits all of them.
2. What counts is the median over rounds.
3. A subject that does not answer in time is killed with all its processes; the row is empty for it, and the next row
   gets a fresh subject.
"""

from __future__ import annotations

import json
import os
import select
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from perf.footprint import descendants, pss_bytes

ROOT = Path(__file__).resolve().parents[1]
ANSWER_TIMEOUT_S = 60.0
Values = dict[str, float | None]


class SubjectFailed(Exception):
    """A subject's answer was an error, or did not come."""


class Player:
    """One subject process, seen from outside."""

    def __init__(self, system: str, python: str) -> None:
        self.system = system
        here_reads, answers = os.pipe()
        commands, here_writes = os.pipe()
        environment = dict(os.environ, PYTHONPATH=str(ROOT), RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled")
        command = [python, "-m", "perf.keeper", "-m", "perf.subject", system, str(commands), str(answers)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, pass_fds=(commands, answers), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, start_new_session=True,
        )
        os.close(answers)
        os.close(commands)
        self._answers, self._commands = here_reads, here_writes
        self.ended = False

    def tell(self, do: str, **arguments: Any) -> float | None:
        """Send one command and return the value of its answer; raise SubjectFailed."""
        try:
            os.write(self._commands, json.dumps({"do": do, **arguments}).encode() + b"\n")
        except BrokenPipeError as error:
            self.ended = True
            raise SubjectFailed(f"{self.system} has ended before {do!r}") from error
        line = b""
        while not line.endswith(b"\n"):
            if not select.select([self._answers], [], [], ANSWER_TIMEOUT_S)[0]:
                self.ended = True
                self._process.terminate()
                raise SubjectFailed(f"{self.system} did not answer {do!r} {arguments} for {ANSWER_TIMEOUT_S:.0f} s")
            piece = os.read(self._answers, 65536)
            if not piece:
                self.ended = True
                raise SubjectFailed(f"{self.system} ended during {do!r} {arguments}")
            line += piece
        answer = json.loads(line)
        if "error" in answer:
            raise SubjectFailed(f"{self.system}, {do} {arguments}:\n{answer['error']}")
        value: float | None = answer["value"]
        return value

    def footprint_bytes(self) -> int:
        """Return the PSS of all processes of the system, without the program that uses it."""
        program = self.tell("pid")
        return pss_bytes([pid for pid in descendants(self._process.pid) if pid != program])

    def close(self) -> None:
        """Wait for the end of everything; kill what does not end."""
        os.close(self._commands)
        try:
            self._process.wait(timeout=30.0)
        except subprocess.TimeoutExpired:
            for pid in [*descendants(self._process.pid), self._process.pid]:
                os.kill(pid, signal.SIGKILL)
            self._process.wait()
        os.close(self._answers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Orchestra:
    """The subjects of one comparison. ``pythons`` maps each system to its interpreter."""

    def __init__(self, pythons: dict[str, str], rounds: int, sample_s: float) -> None:
        self.pythons = pythons
        self.rounds = rounds
        self.sample_s = sample_s

    def in_turn(self, round_number: int) -> list[str]:
        """Return the systems in this round's order."""
        names = list(self.pythons)
        shift = round_number % len(names)
        return names[shift:] + names[:shift]

    def rows(self, names: list[str], cpus: int) -> tuple[dict[str, Values], Values]:
        """Run the named rows. Return the medians by row and system, and memory in MB after them by system."""
        players = {system: Player(system, python) for system, python in self.pythons.items()}
        try:
            for player in players.values():
                self._start(player, cpus)
            results = {}
            for name in names:
                results[name] = self._row({s: player for s, player in players.items() if not player.ended}, name)
                self._revive(players, cpus)
            memory: Values = {s: player.footprint_bytes() / 1e6 for s, player in players.items() if not player.ended}
            for player in players.values():
                if not player.ended:
                    self._attempt(player, "stop")
            return results, memory
        finally:
            for player in players.values():
                player.close()

    def _revive(self, players: dict[str, Player], cpus: int) -> None:
        for system, player in list(players.items()):
            if player.ended:
                player.close()
                players[system] = Player(system, self.pythons[system])
                self._start(players[system], cpus)

    def _start(self, player: Player, cpus: int) -> None:
        if self._attempt(player, "start", cpus=cpus) is None:
            player.ended = True

    def _row(self, players: dict[str, Player], name: str) -> Values:
        samples: dict[str, list[float]] = {}
        for system, player in players.items():
            if self._attempt(player, "open", row=name) is not None:
                samples[system] = []
        for round_number in range(self.rounds):
            for system in self.in_turn(round_number):
                if system in samples:
                    value = self._attempt(players[system], "sample", seconds=self.sample_s)
                    if value is None:
                        del samples[system]
                    else:
                        samples[system].append(value)
        for system in samples:
            self._attempt(players[system], "close")
        return {system: statistics.median(samples[system]) if system in samples else None for system in players}

    def lifetimes(self, cpus: int) -> tuple[Values, Values]:
        """Start and stop each system in a fresh process; return medians in seconds: to first result, of the stop."""
        starts: dict[str, list[float]] = {system: [] for system in self.pythons}
        stops: dict[str, list[float]] = {system: [] for system in self.pythons}
        for round_number in range(self.rounds):
            for system in self.in_turn(round_number):
                with Player(system, self.pythons[system]) as player:
                    started = self._attempt(player, "start", cpus=cpus)
                    stopped = None if started is None else self._attempt(player, "stop")
                if started is not None and stopped is not None:
                    starts[system].append(started)
                    stops[system].append(stopped)
        return medians(starts), medians(stops)

    def imports(self, modules: dict[str, str]) -> Values:
        """Return the median time in seconds that importing each system's module takes in a fresh interpreter."""
        program = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"
        times: dict[str, list[float]] = {system: [] for system in modules}
        for round_number in range(2 * self.rounds):
            for system in self.in_turn(round_number):
                if system in modules:
                    command = [self.pythons[system], "-c", program.format(modules[system])]
                    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
                    times[system].append(float(done.stdout))
        return medians(times)

    def _attempt(self, player: Player, do: str, **arguments: Any) -> float | None:
        try:
            return player.tell(do, **arguments)
        except SubjectFailed as failure:
            print(f"row left empty: {failure}", file=sys.stderr)
            return None


def medians(samples: dict[str, list[float]]) -> Values:
    """Return the median of each system's samples, None where there are none."""
    return {system: statistics.median(values) if values else None for system, values in samples.items()}
