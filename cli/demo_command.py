"""``meshray demo``: the command around ``demo``, which is imported only when it runs.

*Shell (terminal).*
"""

from __future__ import annotations

import click


@click.command(short_help="Train CartPole on two nodes of this machine.")
@click.option("--out", default="meshray-demo", show_default=True, type=click.Path(file_okay=False),
              help="Directory for the learning curve and the timeline.")
@click.option("--seed", default=1, show_default=True, help="Seed of everything random.")
@click.option("--quick", is_flag=True, help="Stop after a few generations.")
@click.option("--cluster", "file", type=click.Path(dir_okay=False, exists=True),
              help="Cluster file to run on instead of two nodes of this machine; one of its hosts must be this one.")
def demo(out: str, seed: int, quick: bool, file: str | None) -> None:
    """Train CartPole on a two-node cluster of this machine, and show what happens.

    Needs the packages of meshray[demo], on every host of --cluster too.
    """
    from .demo import run

    run(out=out, seed=seed, quick=quick, file=file)
