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
OPEN = {2841: "a member with an empty disk becomes the tail of a later epoch, after crashes: see docs/NEXT.md"}
"""Seeds that show a bug of the control store which is not mended yet, with what goes wrong."""


def events_of(seed: int) -> int:
    """Run a seed; return the number of events."""
    return run(seed).schedule.events


if __name__ == "__main__":
    sys.exit(seeds.main(MODULE, __doc__ or "", events_of, OPEN))
