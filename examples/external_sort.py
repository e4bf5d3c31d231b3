"""Sort more numbers than the object store holds: blocks are cut into ranges, and each range is merged.

*Shell (a program).* Run ``python examples/external_sort.py``; ``--times 4`` sorts four times the store's size.

Two rounds of tasks, all values in the object store, which spills to disk what has no room and brings back what is read:

1. ``make_block`` draws a block of random numbers and its checksum.
2. ``cut`` sorts a block and returns its part of each range (``num_returns``).
3. ``merge`` merges the parts of one range of all blocks.

The result is checked: every range is in order, ranges follow each other, and sum and count are those of the input.

Source: the sample-free range partition of uniform keys, as in TeraSort (O'Malley 2008).
"""

from __future__ import annotations

import argparse
import itertools
import time
from typing import Any, NamedTuple

import numpy as np

import meshray

MIB = 1024 * 1024
KEY_BITS = 64


class Checksum(NamedTuple):
    """What sorting does not change: how many numbers there are, and their sum modulo 2**64."""

    count: int
    total: int

    def __add__(self, other: Any) -> Checksum:
        """Return the checksum of both parts together."""
        return Checksum(self.count + other.count, (self.total + other.total) % 2**KEY_BITS)


def checksum(numbers: np.ndarray) -> Checksum:
    """Return the checksum of an array of uint64."""
    return Checksum(len(numbers), int(numbers.sum(dtype=np.uint64)))


@meshray.remote(num_returns=2)
def make_block(seed: int, block_bytes: int) -> tuple[np.ndarray, Checksum]:
    """Return random numbers (uint64) and their checksum."""
    numbers = np.random.default_rng(seed).integers(0, 2**KEY_BITS, block_bytes // 8, dtype=np.uint64)
    return numbers, checksum(numbers)


@meshray.remote
def cut(block: np.ndarray, ranges: int) -> list[np.ndarray]:
    """Return the numbers of ``block`` that belong to each range, in order."""
    ordered = np.sort(block)
    bounds = [np.uint64(2**KEY_BITS // ranges * index) for index in range(1, ranges)]
    return [part.copy() for part in np.split(ordered, np.searchsorted(ordered, bounds))]


@meshray.remote(num_returns=2)
def merge(*parts: np.ndarray) -> tuple[np.ndarray, tuple[Checksum, int, int]]:
    """Return the numbers of one range in order, and (checksum, least, largest) of them."""
    ordered = np.sort(np.concatenate(parts), kind="stable")
    assert bool((ordered[:-1] <= ordered[1:]).all())
    return ordered, (checksum(ordered), int(ordered[0]), int(ordered[-1]))


def external_sort(total_bytes: int, *, block_bytes: int = 4 * MIB, ranges: int = 32, seed: int = 0
                  ) -> tuple[list[Any], Checksum]:
    """Sort ``total_bytes`` of random numbers; return references to the ranges in order, and the checksum.

    Raise ValueError if the result is not the sorted input."""
    made = [make_block.remote(seed + index, block_bytes) for index in range(total_bytes // block_bytes)]
    before = sum((meshray.get(made_sum) for _, made_sum in made), Checksum(0, 0))
    columns: list[list[Any]] = [[] for _ in range(ranges)]
    while made:
        # The block's reference goes with its task, so that its bytes can go when they were cut.
        block, _ = made.pop(0)
        for column, part in zip(columns, cut.options(num_returns=ranges).remote(block, ranges), strict=True):
            column.append(part)
        del block
    merged = []
    while columns:
        merged.append(merge.remote(*columns.pop(0)))
    facts = meshray.get([fact for _, fact in merged])
    after = sum((found for found, _, _ in facts), Checksum(0, 0))
    if after != before:
        raise ValueError(f"sorted numbers have checksum {after}, the input had {before}")
    for (_, _, largest), (_, least, _) in itertools.pairwise(facts):
        if largest > least:
            raise ValueError(f"ranges overlap: {largest} comes before {least}")
    return [numbers for numbers, _ in merged], after


def main() -> None:
    """Sort and say how long it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store-mib", type=int, default=64, help="size of the object store in MiB")
    parser.add_argument("--times", type=float, default=4, help="how many times the store's size is sorted")
    arguments = parser.parse_args()
    meshray.init(object_store_memory=arguments.store_mib * MIB)
    total_bytes = int(arguments.store_mib * arguments.times) * MIB
    start = time.monotonic()
    ranges, found = external_sort(total_bytes)
    seconds = time.monotonic() - start
    print(f"sorted {found.count} numbers ({total_bytes // MIB} MiB) into {len(ranges)} ranges through a store of "
          f"{arguments.store_mib} MiB in {seconds:.1f} s ({total_bytes / MIB / seconds:.0f} MiB/s), checksum "
          f"{found.total:016x}")
    meshray.shutdown()


if __name__ == "__main__":
    main()
