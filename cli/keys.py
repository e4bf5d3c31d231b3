"""``meshray keys``: who may come into a cluster from other machines.

*Shell (terminal, files, zmq).*

1. A secret never leaves the machine that made it: between machines only public keys are copied, by people.
2. A command that makes a key says what to do with it next.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import click

from meshray.errors import MeshrayError
from meshray.processes import run_dirs, state_dirs

from .connection import address_option, describe, elsewhere
from .exits import Failed
from .status import terminal

_SECOND_NS = 10**9


@click.group()
def keys() -> None:
    """Say who may come into the cluster from other machines.

    Every node and every driver of another machine has a key pair. The secret half stays on its machine; the cluster
    keeps a list of the public halves that it lets in.

    \b
    A laptop joins:
      laptop$   meshray keys add driver              makes a key, prints its public half
      cluster$  meshray keys add anna-laptop 7e3f...  lets it in
      laptop$   python -c 'import meshray; meshray.init("tcp://head:7001#9c41...")'
    """


@keys.command(short_help="Let a key in, or make one to be let in by.")
@click.argument("name")
@click.argument("key", required=False)
@address_option
def add(name: str, key: str | None, address: str) -> None:
    """Let the public KEY in under NAME; without a KEY, make a key pair NAME for this machine.

    \b
    Examples:
      meshray keys add driver
      meshray keys add anna-laptop 7e3f0c... --address auto
    """
    if key is None:
        _make(name, address)
        return
    key = _checked(key)
    _change(address, name, key, "allowed")
    click.echo(f"{name} may come in: {key}")


def _make(name: str, address: str) -> None:
    from meshray.transport.curve import KeyPair

    path = state_dirs.key_file(name)
    pair = KeyPair.make(name)
    try:
        pair.save(path)
    except FileExistsError:
        known = KeyPair.load(path).public
        raise Failed(f"this machine has a key {name} already ({path}). Let it in with meshray keys add {name} {known}, "
                     f"or replace it with meshray keys rotate {name}") from None
    click.echo(f"made key {name}; its secret half stays in {path}\npublic half: {pair.public}")
    try:
        _change(address, name, pair.public, "allowed")
    except (MeshrayError, Failed):
        click.echo(f"let it in on a machine of the cluster: meshray keys add {name} {pair.public}")
    else:
        record = elsewhere(address)
        click.echo(f"the cluster {record.cluster if record is not None else 'that runs here'} lets it in")


@keys.command(name="list", short_help="List the keys that the cluster knows.")
@click.option("--json", "as_json", is_flag=True, help="A JSON list of rows.")
@address_option
def list_keys(as_json: bool, address: str) -> None:
    """List the keys that the cluster knows, and where each of its nodes is reached."""
    _, rows = describe(address, ["keys", "nodes"])
    if as_json:
        click.echo(json.dumps(rows["keys"]))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table("name", "state", "key", box=None, pad_edge=False, header_style="bold")
    for row in rows["keys"]:
        table.add_row(Text(row["name"]), Text(_state(row)), Text(row["key"]))
    console = terminal()
    console.print(table)
    for row in rows["nodes"]:
        if row["endpoint"].startswith("tcp://"):
            console.print(f"\nnode {row['name']} is reached at\n  {row['endpoint']}", highlight=False, soft_wrap=True)


def _state(row: dict[str, Any]) -> str:
    left_s = row["until_wall_ns"] / _SECOND_NS - time.time()
    if row["state"] != "allowed" or not row["until_wall_ns"]:
        return str(row["state"])
    return f"allowed for {left_s:.0f} s more" if left_s > 0 else "revoked"


@keys.command(short_help="Keep the owner of a key out, from now on.")
@click.argument("key", metavar="NAME|KEY")
@address_option
def revoke(key: str, address: str) -> None:
    """Keep the owner of a key out, and close the connections that it has. A NAME means all keys of that name."""
    found = _find(_known(address), key)
    for row in found:
        _change(address, row["name"], row["key"], "revoked")
        click.echo(f"{row['name']} is out: {row['key']}")


@keys.command()
@click.argument("name")
@click.option("--grace", default=3600.0, show_default=True, type=click.FloatRange(min=0),
              help="Seconds for which the old key is let in too.")
@address_option
def rotate(name: str, grace: float, address: str) -> None:
    """Replace the key pair NAME of this machine by a new one.

    The cluster lets the new key in at once and the old one for --grace seconds more. Programs and nodes that run keep
    the old key: start them again before it ends.
    """
    from meshray.transport.curve import KeyPair

    path = state_dirs.key_file(name)
    if name not in state_dirs.key_names():
        raise Failed(f"this machine has no key {name}, there are: {', '.join(state_dirs.key_names()) or 'none'}. "
                     "A key is rotated on the machine that has it")
    old, new = KeyPair.load(path), KeyPair.make(name)
    called = next((row["name"] for row in _known(address) if row["key"] == old.public), name)
    _change(address, called, new.public, "allowed")
    new.save(path, replace=True)
    _change(address, called, old.public, "allowed", until_wall_ns=time.time_ns() + int(grace * _SECOND_NS))
    click.echo(f"key {name} is new; its secret half stays in {path}\npublic half: {new.public}\n"
               f"the old one is let in for {grace:g} s more: {old.public}")


def _known(address: str) -> list[dict[str, Any]]:
    return describe(address, ["keys"])[1]["keys"]


def _change(address: str, name: str, key: str, state: str, *, until_wall_ns: int = 0) -> None:
    record = elsewhere(address)
    if record is not None:
        from meshray.processes import ssh_cluster

        ssh_cluster.allow(record, name, key, state, until_wall_ns=until_wall_ns)
        return
    from meshray.messages.keys import ChangeKey, KeyChanged
    from meshray.processes.tool import NodeClient

    with NodeClient(run_dirs.find_address(address)) as client:
        answer = client.ask(ChangeKey(time.time_ns(), name, key, state, until_wall_ns), KeyChanged)
    if answer.error:
        raise Failed(answer.error)


def _find(rows: Sequence[dict[str, Any]], wanted: str) -> list[dict[str, Any]]:
    """Return the rows of a name or key that are not revoked yet."""
    found = [row for row in rows if wanted in (row["name"], row["key"])]
    if not found:
        raise Failed(f"the cluster knows no key {wanted}: see meshray keys list")
    return [row for row in found if row["state"] == "allowed"] or found


def _checked(key: str) -> str:
    from meshray.transport.endpoints import check_key

    try:
        return check_key(key)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="KEY") from None
