"""The one door to LMDB: the rows, the clients' records and the epoch of one shard member on its disk.

*Shell (lmdb).* Runs in shard servers.

1. One environment for each process, opened after the fork, in a directory (0700) that one process has at a time.
2. All that a turn persists is one transaction: rows, client records, version and epoch are there together or not at
   all.
3. An acceptor's votes lie in an environment of their own, in ``register/``, which is synced at every commit whatever
   the durability of the rows: syncing a large one because of a small vote would stop the shard meanwhile. The number of
   this life (``roster``, invariant 3) lies there too.
4. A failed commit ends the process (``StorageFailed``): what the environment then holds is found out by opening it
   again.

Durability: ``fsync`` syncs data and meta page at every commit; what was answered survives the power failing.
``relaxed`` never waits for the disk: what was answered survives the death of every process, but if the operating system
dies, the last seconds may be gone and the file may be beyond repair. It is for clusters that end with their machine.

Source: lmdb.h, notes on MDB_NOSYNC and MDB_MAP_FULL; measured in DESIGN s7.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from typing import Any

import lmdb
import msgspec

from meshray.gcs import limits
from meshray.gcs.log import (
    ClientRecord,
    Entry,
    Facts,
    KeepVote,
    MarkWhole,
    Persist,
    Persisted,
    Recovered,
    Vote,
    WipeDisk,
)
from meshray.gcs.tables import TABLES
from meshray.messages.gcs import Row

FORMAT = b"meshray gcs 1"
VOTES_MAP_BYTES = 16 * 1024 * 1024
"""Map of the votes' environment: one configuration of at most 64 shards, some kilobytes each, and free pages."""
NETWORK_FILE_SYSTEMS = frozenset((
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre", "glusterfs", "gpfs", "beegfs", "fuse.sshfs",
    "fuse.glusterfs", "fuse.ceph", "fuse.s3fs", "fuse.rclone",
))
_VERSION_BYTES = 8
Packed = dict[bytes, bytes | None]
"""Key -> version and value as they lie on the disk; None removes the key."""
_CLIENTS = b"_clients"
_META = b"_meta"
_HOLES = b"holes"
_WRITES = frozenset((Persist, WipeDisk, MarkWhole, KeepVote))


class StorageUnusable(OSError):
    """This directory cannot hold a shard; the message says why, and what to do."""


class StorageFailed(OSError):
    """The disk did not take a commit. The process must end: nothing of that turn may be answered."""


class Storage:
    """A member's disk. Use it in the process that opened it, from one thread."""

    def __init__(self, directory: str, *, durability: str = "fsync", map_bytes: int = limits.MAP_BYTES,
                 votes: bool = False, founding: bool = False) -> None:
        """Open or make the environment in ``directory``. ``durability``: ``fsync`` or ``relaxed``. ``votes``: also the
        one for an acceptor's votes; ``founding``: a new one may vote, as the cluster is new. Raise StorageUnusable."""
        if durability not in ("fsync", "relaxed"):
            raise ValueError(f"durability is {durability!r}: it must be 'fsync' or 'relaxed'")
        self.directory = directory
        self.durability = durability
        self._pid = os.getpid()
        self._clients_encoder = msgspec.msgpack.Encoder()
        self._lock_fd = _claim(directory)
        try:
            sync = durability == "fsync"
            self._env = lmdb.open(
                directory, map_size=map_bytes, mode=0o700, max_dbs=len(TABLES) + 2, sync=sync, metasync=sync,
                meminit=False, readahead=False, max_spare_txns=0,
            )
            self._env.reader_check()
            self._tables = {table: self._env.open_db(table.encode()) for table in TABLES}
            self._clients = self._env.open_db(_CLIENTS)
            self._meta = self._env.open_db(_META)
            self._votes = _open_votes(directory) if votes else None
            self.recovered = self._recover(founding)
            self._epoch = self.recovered.epoch
            self.vote = self._recover_vote(founding)
            self.life = self._count_life()
            """The number of this life: higher than that of every earlier one on this disk. 0 without votes."""
        except (lmdb.Error, msgspec.DecodeError) as error:
            os.close(self._lock_fd)
            raise StorageUnusable(f"cannot open the control store in {directory}: {error}") from error
        except BaseException:
            os.close(self._lock_fd)
            raise

    def persist(self, effects: list[Any]) -> list[Any]:
        """Commit all that a turn persists, in one transaction (and its vote in another); return the other effects, then
        Persisted. Raise StorageFailed."""
        writes = [effect for effect in effects if type(effect) in _WRITES]
        if not writes:
            return effects
        try:
            try:
                if len(effects) == 1 and type(writes[0]) is Persist and _is_small(writes[0].entry):
                    self._commit_one(writes[0].entry, writes[0].epoch)
                    return [Persisted(1)]
                self._commit(writes)
            except lmdb.MapFullError:
                self._grow()
                return self.persist(effects)
        except lmdb.Error as error:
            code = getattr(error, "code", 0)
            name = errno.errorcode.get(code, "") if code > 0 else ""
            raise StorageFailed(
                f"the control store in {self.directory} did not take a commit ({name} {error}): make room or replace "
                "the disk, then start the shard again; nothing that it had answered is lost"
            ) from error
        rest = [effect for effect in effects if type(effect) not in _WRITES]
        count = sum([type(effect) is Persist for effect in writes])
        return [*rest, Persisted(count)] if count else rest

    def get(self, table: str, key: bytes) -> tuple[int, bytes] | None:
        """Return (version, value) of a row, or None."""
        database = self._tables.get(table)
        if database is None or not 0 < len(key) <= limits.KEY_BYTES_MAX:
            return None
        with self._env.begin(db=database) as transaction:
            packed = transaction.get(key)
        return _unpack(packed) if packed is not None else None

    def scan(self, table: str, prefix: bytes, after: bytes, limit: int) -> tuple[list[Row], bool]:
        """Return at most ``limit`` rows and ANSWER_BYTES_MAX bytes with ``prefix`` and key > ``after``, and whether
        there are more."""
        database = self._tables.get(table)
        rows: list[Row] = []
        if database is None or max(len(prefix), len(after)) > limits.KEY_BYTES_MAX:
            return rows, False
        room_bytes = limits.ANSWER_BYTES_MAX
        for key, packed in self._items(database, max(prefix, after)):
            if not key.startswith(prefix):
                break
            if key == after:
                continue
            if len(rows) >= limit or room_bytes < 0:
                return rows, True
            rows.append(Row(key, *_unpack(packed)))
            room_bytes -= len(packed)
        return rows, False

    def facts(self) -> Facts:
        """Return row counts and sizes."""
        with self._env.begin() as transaction:
            stats = {table: transaction.stat(database) for table, database in self._tables.items()}
        pages = sum(stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"] for stat in stats.values())
        file_bytes = os.stat(os.path.join(self.directory, "data.mdb")).st_blocks * 512
        return Facts(
            {table: stat["entries"] for table, stat in stats.items()}, pages * self._env.stat()["psize"], file_bytes,
            self._env.info()["map_size"], self.durability,
        )

    def sweep_readers(self) -> int:
        """Free what readers that died still hold; return how many there were."""
        return int(self._env.reader_check())

    def close(self) -> None:
        """Write everything to the disk and close. Closing twice is a no-op."""
        if self._lock_fd >= 0 and os.getpid() == self._pid:
            self._env.sync(True)
            self._env.close()
            if self._votes is not None:
                self._votes.close()
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _commit(self, writes: list[Any]) -> None:
        assert os.getpid() == self._pid, "an LMDB environment does not survive a fork"
        wipe = False
        meta: dict[bytes, bytes] = {}
        puts: dict[str, Packed] = {}
        clients: Packed = {}
        version, epoch = -1, self._epoch
        for effect in writes:
            kind = type(effect)
            if kind is Persist:
                self._collect(effect.entry, puts, clients)
                version, epoch = effect.entry.last, effect.epoch
            elif kind is WipeDisk:
                wipe, version, epoch = True, 0, self._epoch
                puts, clients, meta = {}, {}, {_HOLES: b"1"}
            elif kind is MarkWhole:
                meta[_HOLES] = b""
                epoch = effect.epoch
            else:
                self._keep_vote(effect.vote)
        if version >= 0:
            meta[b"version"] = version.to_bytes(_VERSION_BYTES, "big")
        if epoch != self._epoch:
            meta[b"epoch"] = epoch.to_bytes(_VERSION_BYTES, "big")
        if not meta:
            return
        with self._env.begin(write=True) as transaction:
            for database in (*self._tables.values(), self._clients) if wipe else ():
                transaction.drop(database, delete=False)
            for table, rows in puts.items():
                _write(transaction, self._tables[table], rows)
            _write(transaction, self._clients, clients)
            for key, value in meta.items():
                transaction.put(key, value, db=self._meta)
        self._epoch = epoch

    def _commit_one(self, entry: Entry, epoch: int) -> None:
        """Commit a Write of one row that came alone, as most do: what ``_commit`` does, in a third of the steps."""
        assert os.getpid() == self._pid, "an LMDB environment does not survive a fork"
        (table, key, version, value), = entry.rows
        record = ClientRecord(entry.sequence, entry.version, entry.refused)
        last = version.to_bytes(_VERSION_BYTES, "big")
        with self._env.begin(write=True) as transaction:
            put = transaction.put
            if value is not None:
                put(key, last + value, db=self._tables[table])
            else:
                transaction.delete(key, db=self._tables[table])
            put(entry.client.encode(), self._clients_encoder.encode(record), db=self._clients)
            put(b"version", last, db=self._meta)
            if epoch != self._epoch:
                put(b"epoch", epoch.to_bytes(_VERSION_BYTES, "big"), db=self._meta)
        self._epoch = epoch

    def _keep_vote(self, vote: Vote) -> None:
        assert self._votes is not None
        with self._votes.begin(write=True) as transaction:
            transaction.put(b"vote", self._clients_encoder.encode(vote))

    def _collect(self, entry: Entry, puts: dict[str, Packed], clients: Packed) -> None:
        """Add what ``entry`` writes; of several writes to one key the last remains."""
        for table, key, version, value in entry.rows:
            packed = None if value is None else version.to_bytes(_VERSION_BYTES, "big") + value
            try:
                puts[table][key] = packed
            except KeyError:
                puts[table] = {key: packed}
        if entry.client:
            record = ClientRecord(entry.sequence, entry.version, entry.refused)
            clients[entry.client.encode()] = self._clients_encoder.encode(record)
        for client in entry.forgotten:
            clients[client.encode()] = None
        for client, record in entry.records:
            clients[client.encode()] = self._clients_encoder.encode(record)

    def _grow(self) -> None:
        size_bytes = self._env.info()["map_size"] * 2
        if size_bytes > limits.MAP_BYTES_MAX:
            raise StorageFailed(
                f"the control store in {self.directory} has reached {limits.MAP_BYTES_MAX} bytes: delete rows that are "
                "no longer needed, or use more shards"
            )
        self._env.set_mapsize(size_bytes)

    def _recover(self, founding: bool) -> Recovered:
        with self._env.begin(write=True) as transaction:
            found = transaction.get(b"format", db=self._meta)
            if found is None:
                transaction.put(b"format", FORMAT, db=self._meta)
                if not founding:
                    # What was on an earlier disk is missing here, also when this one is opened for the second time.
                    transaction.put(_HOLES, b"1", db=self._meta)
                return Recovered(whole=founding)
            if found != FORMAT:
                raise StorageUnusable(
                    f"{self.directory} holds {found!r}, this program reads {FORMAT!r}: use another directory"
                )
            version = int.from_bytes(transaction.get(b"version", b"", db=self._meta), "big")
            epoch = int.from_bytes(transaction.get(b"epoch", b"", db=self._meta), "big")
            holes = transaction.get(_HOLES, b"", db=self._meta)
        decoder = msgspec.msgpack.Decoder(ClientRecord)
        clients = {name.decode(): decoder.decode(record) for name, record in self._items(self._clients, b"")}
        return Recovered(epoch, version, clients, not holes)

    def _recover_vote(self, founding: bool) -> Vote:
        """Return what the acceptor must remember; a new one is marked as such, so that it stays silent."""
        if self._votes is None:
            return Vote()
        with self._votes.begin() as transaction:
            found = transaction.get(b"vote")
        if found is not None:
            return msgspec.msgpack.decode(found, type=Vote)
        vote = Vote(votes=founding)
        self._keep_vote(vote)
        return vote

    def _count_life(self) -> int:
        """Begin the next life. A new disk begins with the time of day in milliseconds, as one may have been lost."""
        if self._votes is None:
            return 0
        with self._votes.begin(write=True) as transaction:
            before = int.from_bytes(transaction.get(b"life", b""), "big")
            life = max(before + 1, time.time_ns() // 1_000_000)
            transaction.put(b"life", life.to_bytes(_VERSION_BYTES, "big"))
        return life

    def _items(self, database: Any, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, value) from the first key >= ``start`` on, all of one moment."""
        with self._env.begin(db=database) as transaction, transaction.cursor() as cursor:
            if cursor.set_range(start) if start else cursor.first():
                yield from cursor


def _is_small(entry: Entry) -> bool:
    """Whether this is a Write of one operation, which was done."""
    return entry.count == 1 and len(entry.rows) == 1 and entry.client != ""


def _write(transaction: Any, database: Any, rows: Packed) -> None:
    """Put the rows that have a value, delete the others."""
    if len(rows) == 1:  # without a cursor this takes half the time
        (key, packed), = rows.items()
        if packed is not None:
            transaction.put(key, packed, db=database)
        else:
            transaction.delete(key, db=database)
        return
    with transaction.cursor(database) as cursor:
        cursor.putmulti([(key, packed) for key, packed in rows.items() if packed is not None])
    for key, packed in rows.items():
        if packed is None:
            transaction.delete(key, db=database)


def _unpack(packed: bytes) -> tuple[int, bytes]:
    return int.from_bytes(packed[:_VERSION_BYTES], "big"), packed[_VERSION_BYTES:]


def _open_votes(directory: str) -> Any:
    """Open or make the small environment for votes."""
    path = os.path.join(directory, "register")
    os.makedirs(path, mode=0o700, exist_ok=True)
    return lmdb.open(path, map_size=VOTES_MAP_BYTES, mode=0o700, max_spare_txns=0)


def _claim(directory: str) -> int:
    """Make the directory and lock it for this process; return the descriptor that holds the lock."""
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        os.chmod(directory, 0o700)
        kind = file_system(directory)
        if kind in NETWORK_FILE_SYSTEMS:
            raise StorageUnusable(
                f"{directory} is on a network file system ({kind}), where LMDB loses data: use a local directory"
            )
        fd = os.open(os.path.join(directory, "owner.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except StorageUnusable:
        raise
    except OSError as error:
        raise StorageUnusable(f"cannot use {directory} for the control store: {error}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise StorageUnusable(f"{directory} belongs to a running shard: stop it, or use another directory") from error
    return fd


def file_system(path: str, mounts: str = "/proc/self/mountinfo") -> str:
    """Return the type of the file system that ``path`` is on, as the kernel calls it; empty if it cannot be known."""
    path = os.path.realpath(path)
    kind, longest = "", -1
    try:
        with open(mounts, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                fields = line.split()
                point = fields[4].encode().decode("unicode_escape").rstrip("/")
                if (path == point or path.startswith(point + "/")) and len(point) >= longest:
                    kind, longest = fields[fields.index("-", 6) + 1], len(point)
    except FileNotFoundError:
        return ""
    return kind
