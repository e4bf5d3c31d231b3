"""Who may come in, as one node sees it: follows the table of keys, changes it for tools, shows drivers the way.

*Pure.* Runs in the node process.

1. Every node watches the whole table, so a change reaches all of them; the shell acts on each row (``SetKey``).
2. Nodes with a shard write what they were configured with and what they knew, where the table has nothing: a key that
   was revoked stays revoked, also if the table is a new one. Only the head of a cluster that starts again lets its
   own hosts in anew: whoever starts it has named them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from meshray.gcs import tables
from meshray.gcs.requests import Answered, RowChanged
from meshray.gcs.tables import KeyRow
from meshray.machine import Received, Send
from meshray.messages.gcs import PUT, PUT_IF_ABSENT, Op
from meshray.messages.keys import ALLOWED, AskWay, ChangeKey, KeyChanged, Way
from meshray.transport.endpoints import check_key

if TYPE_CHECKING:
    from meshray.processes.node import NodeMachine


class SetKey(msgspec.Struct, frozen=True, gc=False):
    """Effect: the table says this of a key."""

    key: str
    row: KeyRow | None


class NodeKeys:
    """The table of keys, from one node."""

    def __init__(self, node: NodeMachine) -> None:
        self._node = node
        self.rows: dict[str, KeyRow] = {}
        """By public key; at first what this node knew when it last ran."""

    def begin(self, now_ns: int) -> list[Any]:
        """Return the effects of the node's birth."""
        network = self._node.settings.network
        if network is None:
            return []
        _, effects = self._node.watch(tables.KEY, b"", now_ns, self._changed, prefix=True)
        configured = {check_key(key): KeyRow(name, ALLOWED) for name, key in network.allowed.items()}
        anew = configured if self._node.settings.revives else {}
        known = configured | self.rows | anew
        if self._node.settings.host_shards and known:
            effects += self._node.write([
                Op(tables.KEY, key.encode(), tables.encode(row), PUT if key in anew else PUT_IF_ABSENT)
                for key, row in known.items()], now_ns)
        return effects

    def _changed(self, change: RowChanged, now_ns: int) -> list[Any]:
        key = change.key.decode(errors="replace")
        row = change.row(KeyRow)
        if row is None:
            self.rows.pop(key, None)
        else:
            self.rows[key] = row
        return [SetKey(key, row)]

    def change(self, event: Received, now_ns: int) -> list[Any]:
        """A tool wants a key in or out."""
        request: ChangeKey = event.message
        if self._node.settings.network is None:
            return [Send(event.route, KeyChanged(request.cookie, "this cluster has no network: nobody comes in from "
                                                                 "another machine, and no key is needed here"))]
        try:
            key = check_key(request.key).encode()
        except ValueError as error:
            return [Send(event.route, KeyChanged(request.cookie, str(error)))]
        row = KeyRow(request.name, request.state, request.until_wall_ns)

        def written(answer: Answered, later_ns: int) -> list[Any]:
            if answer.error is None:
                self._node.events.note("info" if request.state == ALLOWED else "warning", f"key {request.state}",
                                       f"{request.name} {request.key[:8]}", later_ns)
            error = "" if answer.error is None else f"the control store does not take it: {answer.error.reason}"
            return [Send(event.route, KeyChanged(request.cookie, error))]

        return self._node.write([Op(tables.KEY, key, tables.encode(row))], now_ns, written)

    def way(self, event: Received, now_ns: int) -> list[Any]:
        """A driver of another machine, whose key was let in, wants to join."""
        request: AskWay = event.message
        settings = self._node.settings
        network = settings.network
        if network is None:
            return []
        # A name has two keys while one replaces the other, and both must be known.
        allowed = {key: key for key in network.allowed.values()}
        allowed |= {key: key for key, row in self.rows.items() if row.state == ALLOWED}
        names = {key: row.name for key, row in self.rows.items()} | {key: name for name, key in network.allowed.items()}
        revoked = {key for key, row in self.rows.items() if row.state != ALLOWED}
        return [Send(event.route, Way(
            request.cookie, settings.cluster, self._node.gcs.shards, settings.schedulers,
            {**network.seeds, **self._node.placement.bearers()},
            {f"{names[key]} {key[:8]}": key for key in allowed if key not in revoked}, network.bulk_encryption))]

    def describe(self) -> list[dict[str, Any]]:
        """Return the rows of ``meshray keys list``."""
        return [{"name": row.name, "key": key, "state": row.state, "until_wall_ns": row.until_wall_ns}
                for key, row in sorted(self.rows.items(), key=lambda item: (item[1].name, item[0]))]
