"""``meshray demo``: the command around ``demo``, which is imported only when it runs.

*Shell (terminal).*
"""

from __future__ import annotations

import click


@click.command()
@click.option("--out", default="meshray-demo", show_default=True, type=click.Path(file_okay=False),
              help="Directory for the learning curve and the timeline.")
@click.option("--seed", default=1, show_default=True, help="Seed of everything random.")
@click.option("--quick", is_flag=True, help="Stop after a few generations.")
def demo(out: str, seed: int, quick: bool) -> None:
    """Train CartPole on a two-node cluster of this machine, and show what happens.

    Needs the packages of meshray[demo].
    """
    from .demo import run

    run(out=out, seed=seed, quick=quick)
