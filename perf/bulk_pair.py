"""Two bulk planes over loopback, without anything around them: what encryption and verification cost.

*Shell (processes, sockets).* ``python -m perf.bulk_pair [--bytes N] [--rounds N] [--json]``; used by ``perf.transfer``.

The same threads, sockets and arenas as in nodes; the control plane is played by the two processes. Rows: GB/s of pulls
with and without verification (``verify`` is then a function that says yes), plain and encrypted, measured in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from meshray import config
from meshray.node_config import Network
from meshray.processes.allocation import keep_freed_memory
from meshray.processes.run_dirs import arena_directory
from meshray.store import manifest as manifests
from meshray.store.arena_file import ArenaFile
from meshray.store.bulk import Bulk
from meshray.store.events import AskChunks, BeginTransfer, ChunksArrived, EndTransfer, Grant
from meshray.transport.bulk_sockets import BulkSockets
from meshray.transport.curve import AllowList, KeyPair

TICKET = b"t" * config.TICKET_BYTES
OBJECT = b"object"


class Pair:
    """A child process that serves one object, and what takes it here."""

    def __init__(self, directory: Path, size_bytes: int, *, encrypted: bool) -> None:
        self._size_bytes = size_bytes
        self._network = {name: Network(key_file=str(directory / f"{name}.key"), bulk_encryption=encrypted)
                         for name in ("holder", "taker")}
        self._allowed = AllowList()
        for name in self._network:
            pair = KeyPair.make(name)
            pair.save(str(directory / f"{name}.key"))
            self._allowed.allow(name, pair.public)
        keep_freed_memory()
        told, tell = os.pipe()
        ending, self._end = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._end)
            self._serve(tell, ending)
            os._exit(0)
        os.close(tell)
        os.close(ending)
        with open(told, "rb") as stream:
            self._endpoint = stream.readline().decode().strip()
            self._digests = stream.read()
        self._file = self._arena("taker")

    def _arena(self, name: str) -> ArenaFile:
        path = os.path.join(arena_directory(), f"meshray-bulk-pair-{os.getpid()}-{name}")
        file = ArenaFile.create(path, self._size_bytes)
        file.unlink()
        file.populate(0, self._size_bytes)
        return file

    def _serve(self, tell: int, ending: int) -> None:
        file = self._arena("holder")
        noise = os.urandom(config.MIB)
        for offset in range(0, self._size_bytes, config.MIB):
            file.write(offset, offset.to_bytes(8, "big") + noise[8:])
        bulk = Bulk(file, lambda: BulkSockets("ipc://unused", self._network["holder"], self._allowed))
        bulk.submit(Grant(TICKET, OBJECT, 0, self._size_bytes))
        digests = manifests.digests_of(file.view(0, self._size_bytes))
        with open(tell, "wb") as stream:
            stream.write(bulk.start().encode() + b"\n" + digests)
        os.read(ending, 1)
        bulk.close()

    def pull(self, verify: Callable[[bytes, Any], bool]) -> float:
        """Return the seconds of one pull of the whole object."""
        bulk = Bulk(self._file, lambda: BulkSockets("ipc://unused", self._network["taker"], self._allowed),
                    verify=verify)
        chunks = list(range(manifests.chunk_count(self._size_bytes)))[::-1]
        left = len(chunks)

        def ask(count: int) -> None:
            wanted = [chunks.pop() for _ in range(min(count, len(chunks)))]
            if wanted:
                bulk.submit(AskChunks(OBJECT, "holder", self._endpoint, TICKET, wanted))

        try:
            bulk.submit(BeginTransfer(1, OBJECT, 0, self._size_bytes, self._digests))
            began = time.perf_counter()
            ask(config.PULL_CREDIT_CHUNKS)
            while left:
                if not select.select([bulk.fd], [], [], 60)[0]:
                    raise TimeoutError(f"{left} chunks have not come")
                for event in bulk.drain():
                    if type(event) is not ChunksArrived:
                        raise RuntimeError(f"a pull over loopback ended with {event}")
                    left -= len(event.chunks)
                    ask(len(event.chunks))
            took = time.perf_counter() - began
            bulk.submit(EndTransfer(1))
        finally:
            bulk.close()
        return took

    def close(self) -> None:
        """End the child."""
        os.close(self._end)
        os.waitpid(self._pid, 0)
        self._file.close()


def measure(size_bytes: int, rounds: int) -> dict[str, float]:
    """Return bytes per second of each kind of pull, the median of ``rounds`` taken in turns."""
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        for kind in ("plain", "encrypted"):
            place = Path(directory) / kind
            place.mkdir()
            pair = Pair(place, size_bytes, encrypted=kind == "encrypted")
            try:
                pair.pull(manifests.verify)
                for _ in range(rounds):
                    times.setdefault(f"{kind}_verified", []).append(pair.pull(manifests.verify))
                    times.setdefault(f"{kind}_unverified", []).append(pair.pull(lambda digest, data: True))
            finally:
                pair.close()
    return {name: size_bytes / statistics.median(taken) for name, taken in times.items()}


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m perf.bulk_pair", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bytes", type=int, default=512 * config.MIB)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one object per line")
    arguments = parser.parse_args()
    for name, rate in measure(arguments.bytes, arguments.rounds).items():
        row = {"row": f"bulk_{name}", "value": rate / 1e9, "unit": "GB/s", "peer": None, "limit": None}
        print(json.dumps(row) if arguments.json else f"{row['row']:28} {row['value']:8.3f} {row['unit']}")


if __name__ == "__main__":
    main()
