"""A node's allow list, from its configuration, its file and the table of keys, and what is revoked at a given time.

*Shell (files, wall clock).* Runs in node processes of clusters with a network.

1. The table has the last word, then the file that says what the table said last, then the configuration: a key that was
   revoked stays out after a restart, also while no shard can be reached.
2. The file has mode 0600 and appears whole or not at all.
"""

from __future__ import annotations

import logging

import msgspec

from meshray import config
from meshray.errors import KeyFileError
from meshray.gcs.tables import KeyRow
from meshray.messages.keys import ALLOWED
from meshray.transport.curve import AllowList, write_private

log = logging.getLogger("meshray.keys")


class KeyRing:
    """The keys that one node lets in."""

    def __init__(self, configured: dict[str, str], file: str, now_wall_ns: int) -> None:
        """``configured``: name -> public key; ``file``: where to keep what the table says. Raise KeyFileError."""
        self.allowed = AllowList(configured)
        self._file = file
        self.rows: dict[str, KeyRow] = _read(file)
        """What the table said last, by public key."""
        for key, row in self.rows.items():
            self._act(key, row, now_wall_ns)

    def apply(self, key: str, row: KeyRow | None, now_wall_ns: int) -> None:
        """Do what the table says of a key now; None: the row is gone, and the key with it."""
        if self.rows.get(key) == row:
            return
        if row is None:
            del self.rows[key]
            self.allowed.revoke(key)
        else:
            self.rows[key] = row
            self._act(key, row, now_wall_ns)
        write_private(self._file, msgspec.json.encode(self.rows), replace=True)

    def tick(self, now_wall_ns: int) -> None:
        """Revoke what was allowed until now."""
        for key, row in self.rows.items():
            if row.until_wall_ns and self.allowed.name_of(key) is not None:
                self._act(key, row, now_wall_ns)

    def _act(self, key: str, row: KeyRow, now_wall_ns: int) -> None:
        if row.state == ALLOWED and (not row.until_wall_ns or now_wall_ns < row.until_wall_ns):
            self.allowed.allow(row.name, key)
        elif self.allowed.revoke(key):
            log.warning("key %s of %s is revoked: its connections are closed", key, row.name)


def _read(file: str) -> dict[str, KeyRow]:
    try:
        with open(file, "rb") as opened:
            return msgspec.json.decode(opened.read(64 * config.MIB), type=dict[str, KeyRow])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError) as error:
        raise KeyFileError(f"the allow list {file} cannot be read ({error}): repair it, or remove it if no key "
                           "was ever revoked in this cluster") from error
