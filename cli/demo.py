"""``meshray demo``: a two-node cluster comes up, learns to balance a pole, and goes.

*Shell (files, environment).* Runs in the command line's process, which is also the driver.

1. The program is ``examples/evolution_strategies.py``, run as a user would run it, on ``examples/cluster.yaml`` or on
   the hosts of a cluster file of the user's.
2. A cluster of this machine has a run root of its own, so one of the user's is neither used nor stopped, and nothing is
   left.
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

import meshray
from meshray.cluster_config import read_cluster_config
from meshray.processes import ssh_record
from meshray.processes.run_dirs import ADDRESS_VARIABLE, ROOT_VARIABLE
from meshray.processes.tool import is_listening

from .clusters import down, up

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NEEDED = ("gymnasium", "matplotlib")


def run(out: str, seed: int, quick: bool, file: str | None) -> None:
    """Run the demo and write its results to the directory ``out``."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise click.ClickException(f"the demo needs {' and '.join(missing)}: pip install -e '.[demo]'")
    program = EXAMPLES / "evolution_strategies.py"
    if not program.exists():
        raise click.ClickException(f"{program} is missing: the demo runs from a clone, with pip install -e '.[demo]'")
    cluster = file or str(EXAMPLES / "cluster.yaml")
    with ExitStack() as stack:
        if read_cluster_config(cluster).provider.type == "local":
            stack.enter_context(own_root(stack.enter_context(tempfile.TemporaryDirectory(prefix="meshray-demo-"))))
        up.main([cluster], standalone_mode=False)
        try:
            arguments = ["--out", out, "--seed", str(seed), "--address", address_of(cluster),
                         *(["--quick"] if quick else [])]
            with command_line(str(program), *arguments):
                runpy.run_path(str(program), run_name="__main__")
        finally:
            meshray.shutdown()
            down.main([cluster], standalone_mode=False)


def address_of(file: str) -> str:
    """Return where a program of this machine joins the cluster: the head's node, else any other that runs here."""
    cluster = read_cluster_config(file)
    record = ssh_record.read(cluster.cluster_name) if cluster.provider.type == "ssh" else None
    if record is None:
        return cluster.cluster_name
    endpoints = [host.endpoint for host in record.hosts if is_listening(host.endpoint)]
    if not endpoints:
        raise click.ClickException(f"none of the hosts of {file} is this machine: run the demo on one of them")
    return endpoints[0]


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
