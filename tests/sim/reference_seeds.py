"""Run many seeds of the simulated references, on all CPUs.

*Shell (processes, stdout).* ``python -m tests.sim.reference_seeds [--seeds N] [--first N] [--jobs N] [--seed N]``.
"""

from __future__ import annotations

import sys
from functools import partial

from tests.sim import seeds
from tests.sim.reference_sim.world import run

MODULE = "tests.sim.reference_seeds"
repeat = partial(seeds.repeat, MODULE)


def events_of(seed: int) -> int:
    """Run a seed; return the number of events."""
    return run(seed).clock.events


if __name__ == "__main__":
    sys.exit(seeds.main(MODULE, __doc__ or "", events_of))
