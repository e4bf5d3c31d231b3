"""``meshray demo``: a two-node cluster comes up, learns to balance a pole, and goes.

*Shell (files, environment).* Runs in the command line's process, which is also the driver.

1. The program is ``examples/evolution_strategies.py``, run as a user would run it, on ``examples/cluster.yaml``.
2. The cluster has a run root of its own, so a cluster of the user's is neither used nor stopped, and nothing is left.
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

import meshray
from meshray.processes.run_dirs import ADDRESS_VARIABLE, ROOT_VARIABLE

from .clusters import down, up

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NEEDED = ("gymnasium", "matplotlib")


def run(out: str, seed: int, quick: bool) -> None:
    """Run the demo and write its results to the directory ``out``."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise click.ClickException(f"the demo needs {' and '.join(missing)}: pip install -e '.[demo]'")
    program = EXAMPLES / "evolution_strategies.py"
    if not program.exists():
        raise click.ClickException(f"{program} is missing: the demo runs from a clone, with pip install -e '.[demo]'")
    with tempfile.TemporaryDirectory(prefix="meshray-demo-") as root, own_root(root):
        cluster = str(EXAMPLES / "cluster.yaml")
        up.main([cluster], standalone_mode=False)
        try:
            arguments = ["--out", out, "--seed", str(seed), *(["--quick"] if quick else [])]
            with command_line(str(program), *arguments):
                runpy.run_path(str(program), run_name="__main__")
        finally:
            meshray.shutdown()
            down.main([cluster], standalone_mode=False)


@contextmanager
def own_root(root: str) -> Iterator[None]:
    """Let ``root`` be the run root, and no address be set, for a while."""
    before = {name: os.environ.pop(name, None) for name in (ROOT_VARIABLE, ADDRESS_VARIABLE)}
    os.environ[ROOT_VARIABLE] = root
    try:
        yield
    finally:
        del os.environ[ROOT_VARIABLE]
        os.environ.update({name: value for name, value in before.items() if value is not None})


@contextmanager
def command_line(*arguments: str) -> Iterator[None]:
    """Let ``sys.argv`` be ``arguments`` for a while."""
    before, sys.argv = sys.argv, list(arguments)
    try:
        yield
    finally:
        sys.argv = before
