"""How long one object takes from one host to many, against one host to one.

*Shell (processes, stdout).* ``python -m perf.broadcast [--hosts 8] [--mib 256] [--rounds 3] [--json]``, as root: hosts
are network namespaces whose links carry 1 Gbit/s in each direction.

Row ``tN_over_t1``: the median time until all N hosts have the object, over the median until one has it. A star, in
which the source sends it N times, needs N.
"""

from __future__ import annotations

import argparse
import statistics
import sys

from perf import hosts as hosts_module
from perf.host_cluster import Cluster
from perf.hosts import Hosts
from perf.transfer import LINK_BYTES_PER_S, LINK_MBIT, MIB, PROGRAMS, row, show


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m perf.broadcast", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hosts", type=int, default=8, help="how many receive")
    parser.add_argument("--mib", type=int, default=256, help="size of the object")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plain", action="store_true", help="chunks travel readable (bulk_encryption: off)")
    parser.add_argument("--json", action="store_true", help="one object per line")
    arguments = parser.parse_args()
    reason = hosts_module.possible()
    if reason:
        sys.exit(f"hosts cannot be made here: {reason}")
    count, size_bytes = arguments.hosts, arguments.mib * MIB
    with (Hosts(count + 1, mbit=LINK_MBIT) as hosts,
          Cluster(hosts, list(hosts), store_bytes=2 * size_bytes + 64 * MIB,
                  bulk_encryption=not arguments.plain) as cluster):
        targets = ",".join(place.name for place in cluster.places[1:])
        times = cluster.program(cluster.places[0], PROGRAMS, "broadcast", "--nodes", targets,
                                "--bytes", str(size_bytes), "--count", str(arguments.rounds))
    one, many = statistics.median(times["one"]), statistics.median(times["all"])
    show([row("t1", one, "s", size_bytes / LINK_BYTES_PER_S), row(f"t{count}", many, "s"),
          row(f"t{count}_over_t1", many / one, "ratio")], arguments.json)


if __name__ == "__main__":
    main()
