"""Run many seeds of the simulated control store, on all CPUs.

*Shell (processes, stdout).* ``python -m tests.sim.gcs_seeds [--seeds N] [--first N] [--jobs N] [--seed N]``.
"""

from __future__ import annotations

import sys
from functools import partial

from tests.sim import seeds
from tests.sim.gcs_sim.scenarios import run

MODULE = "tests.sim.gcs_seeds"
repeat = partial(seeds.repeat, MODULE)


def events_of(seed: int) -> int:
    """Run a seed; return the number of events."""
    return run(seed).schedule.events


if __name__ == "__main__":
    sys.exit(seeds.main(MODULE, __doc__ or "", events_of))
