"""How many results per second reach a driver one of whose threads spins in pure Python and never lets go of the GIL?

*Shell (threads, clock, stdout).* ``python -m perf.spinning [--seconds S] [--json]``. The limit is the same loop without
the spinning thread.
"""

from __future__ import annotations

import argparse
import json
import threading
import time

import meshray

BATCH = 500


@meshray.remote
def nothing() -> None:
    """Do nothing."""


def spin(stop: threading.Event) -> None:
    """Use the interpreter until told to stop."""
    count = 0
    while not stop.is_set():
        count += 1


def results_per_second(seconds: float) -> float:
    """Submit and get batches of tasks for some time."""
    meshray.get([nothing.remote() for _ in range(BATCH)])
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        meshray.get([nothing.remote() for _ in range(BATCH)])
        done += BATCH
    return done / (time.perf_counter() - began)


def main() -> None:
    """Parse the command line, measure with and without the spinning thread, print."""
    parser = argparse.ArgumentParser(prog="python -m perf.spinning", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    meshray.init(num_cpus=2)
    quiet = results_per_second(arguments.seconds)
    stop = threading.Event()
    thread = threading.Thread(target=spin, args=(stop,), daemon=True)
    thread.start()
    spinning = results_per_second(arguments.seconds)
    stop.set()
    thread.join()
    meshray.shutdown()
    row = {"row": "results with a spinning thread", "value": spinning, "unit": "1/s", "peer": None, "limit": quiet}
    print(json.dumps(row) if arguments.json else f"{spinning:,.0f} results/s beside a spinning thread, "
          f"{quiet:,.0f} without it (at least 2 000 are asked for)")


if __name__ == "__main__":
    main()
