"""What a shard server tells masters of itself: where others can reach it."""

from __future__ import annotations

from typing import Any

import pytest

from meshray.messages.node import Shard
from meshray.processes import shard
from meshray.transport.behind_node import OwnNode
from meshray.transport.sockets import process_endpoint


class Told(Exception):
    """The endpoint that the server was made with."""


@pytest.mark.parametrize("own_node", [None, "h1"])
def test_other_machines_find_a_server_behind_its_node(own_node, tmp_path, monkeypatch) -> None:
    def server(name: str, life: str, endpoint: str, **more: Any) -> Any:
        raise Told(endpoint)

    monkeypatch.setattr(shard, "ShardServer", server)
    local = process_endpoint(str(tmp_path), "shard-0-1")
    with pytest.raises(Told) as told:
        shard.run("shard-0-1", local, str(tmp_path / "disk"), Shard(1, [("shard-0-1", local)]), "relaxed",
                  own_node=OwnNode(str(tmp_path), own_node) if own_node else None)
    assert str(told.value) == (f"via://{own_node}/shard-0-1" if own_node else local)
