"""What a cluster file means as a whole: its machines in one form, and what its values forbid together.

*Pure.* Used by ``cluster_config`` after each value has been checked by itself.

1. Files that mean the same become equal here, so ``up`` finds nothing to change between them.
2. Nodes on hosts are called after their host, so that removing one host from a list renames no other.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import Any

import msgspec

from meshray import config
from meshray.cluster_schema import PHASES, Auth, ClusterConfig, NodeSpec, Provider
from meshray.errors import size_text

Found = tuple[str, str]
"""A mistake: the path of the key, and what is wrong."""

_RESERVED = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory", "object_store_memory": "object_store_memory"}
_OF_HOSTS = ("host", "ssh_user", "ssh_private_key", "python", "state_dir", "run_dir", "bind", "advertise",
             "control_port", "bulk_port")
_OF_HOST_CLUSTERS = ("head", "workers", "hosts", "auth", "environment", "file_mounts", "initialization_commands",
                     "setup_commands", "head_setup_commands", "worker_setup_commands")
_NAME_CHARACTERS_MAX = 32


def is_on_hosts(cluster: ClusterConfig) -> bool:
    """Whether the nodes are machines reached over SSH."""
    return cluster.provider.type == "ssh" or bool(cluster.provider.head_ip)


def mistakes(cluster: ClusterConfig) -> Iterator[Found]:
    """Yield what each value of a file allows but all together do not. The file is as it was written."""
    if cluster.cluster_name == "current":
        yield "cluster_name", "current has a meaning of its own, choose another"
    yield from _about_forms(cluster)
    yield from _about_hosts(cluster) if is_on_hosts(cluster) else _about_local(cluster)
    first: dict[str, str] = {}
    for path, node in nodes_of(cluster):
        other = first.setdefault(node.name, path)
        if other != path:
            yield f"{path}.name", f"{node.name} is the name of {other} already"
        store_bytes = node.object_store_memory
        if store_bytes is not None and store_bytes < config.ARENA_BYTES_LEAST:
            yield (f"{path}.object_store_memory",
                   f"must be at least {size_text(config.ARENA_BYTES_LEAST)}, not {store_bytes} bytes")
        if node.spill_directory is not None and not node.spill_directory.startswith("/"):
            yield f"{path}.spill_directory", f"must be an absolute path, not {node.spill_directory!r}"
        for resource in sorted(_RESERVED.keys() & node.resources):
            yield f"{path}.resources.{resource}", f"has a key of its own: {_RESERVED[resource]}"


def nodes_of(cluster: ClusterConfig) -> list[tuple[str, NodeSpec]]:
    """Return the nodes with the path where each is written, the head first, all with names."""
    provider = cluster.provider
    found = [(f"nodes[{index}]", node) for index, node in enumerate(cluster.nodes)]
    if cluster.head is not None:
        found.append(("head", cluster.head))
    found += [(f"workers[{index}]", node) for index, node in enumerate(cluster.workers)]
    found += [(f"hosts[{index}]", NodeSpec(host=host)) for index, host in enumerate(cluster.hosts)]
    if provider.head_ip:
        found.append(("provider.head_ip", NodeSpec(host=provider.head_ip)))
    found += [(f"provider.worker_ips[{index}]", NodeSpec(host=host)) for index, host in enumerate(provider.worker_ips)]
    return [(path, msgspec.structs.replace(node, name=node.name or _name_of(node.host) or f"node-{index}"))
            for index, (path, node) in enumerate(found)]


def _name_of(host: str) -> str:
    """Return the node name that a host suggests: itself where it can be one."""
    name = re.sub(r"[^a-z0-9]+", "-", host.lower()).strip("-")
    if len(name) <= _NAME_CHARACTERS_MAX:
        return name
    return f"{name[: _NAME_CHARACTERS_MAX - 9].rstrip('-')}-{zlib.crc32(host.encode()):08x}"


def _about_forms(cluster: ClusterConfig) -> Iterator[Found]:
    forms = [name for name, given in (("nodes", cluster.nodes), ("head", cluster.head), ("hosts", cluster.hosts),
                                      ("provider.head_ip", cluster.provider.head_ip)) if given]
    if not forms and not cluster.workers and not cluster.provider.worker_ips:
        wanted = "nodes is missing" if not is_on_hosts(cluster) else "nodes is missing (or hosts, or head and workers)"
        yield "", wanted
    for form in forms[1:]:
        yield form, f"{forms[0]} names the machines already: use one of them"
    if cluster.workers and cluster.head is None:
        yield "workers", "needs a head beside it"
    if cluster.provider.worker_ips and not cluster.provider.head_ip:
        yield "provider.worker_ips", "needs provider.head_ip beside it"


def _about_local(cluster: ClusterConfig) -> Iterator[Found]:
    advice = "has a meaning with provider.type ssh only"
    for key in _OF_HOST_CLUSTERS:
        if getattr(cluster, key) not in (None, [], {}, Auth()):
            yield key, advice
    for field in msgspec.structs.fields(Provider):
        if field.name not in ("type", "head_ip", "worker_ips") and _is_set(cluster.provider, field.name):
            yield f"provider.{field.name}", advice
    for path, node in nodes_of(cluster):
        for key in _OF_HOSTS:
            if _is_set(node, key) and path.startswith("nodes"):
                yield f"{path}.{key}", advice


def _is_set(struct: msgspec.Struct, key: str) -> bool:
    defaults = {field.name: [] if field.default_factory is list else {} if field.default_factory is dict
                else field.default for field in msgspec.structs.fields(struct)}
    return bool(getattr(struct, key) != defaults[key])


def _about_hosts(cluster: ClusterConfig) -> Iterator[Found]:
    for phase in cluster.provider.timeouts:
        if phase not in PHASES:
            yield f"provider.timeouts.{phase}", f"no phase is called so, possible here: {', '.join(PHASES)}"
    for path in cluster.file_mounts:
        if not path.startswith(("/", "~/")):
            yield f"file_mounts.{path}", "the path on the hosts must begin with / or ~/"
    first: dict[tuple[str, str], str] = {}
    for path, node in nodes_of(cluster):
        if not node.host:
            yield path, "host is missing: the machine's address, or its name in your OpenSSH configuration"
            continue
        whole = _whole(cluster, node)
        other = first.setdefault((whole.host, whole.run_dir), path)
        if other != path:
            yield (f"{path}.host" if "." not in path else path,
                   f"{whole.host} is the host of {other} already: two nodes of one machine need a run_dir each")
        if whole.control_port and whole.control_port == whole.bulk_port:
            yield f"{path}.bulk_port", f"must differ from control_port, which is {whole.control_port} too"


def in_one_form(cluster: ClusterConfig) -> ClusterConfig:
    """Return the cluster with all its machines in ``nodes`` and every default of the file written into them."""
    nodes = [node for _, node in nodes_of(cluster)]
    if not is_on_hosts(cluster):
        return msgspec.structs.replace(cluster, nodes=nodes)
    timeouts, encryption = cluster.provider.timeouts, cluster.provider.bulk_encryption
    return msgspec.structs.replace(
        cluster, nodes=[_whole(cluster, node) for node in nodes], head=None, workers=[], hosts=[], auth=Auth(),
        environment={}, provider=Provider(type="ssh", timeouts=timeouts, bulk_encryption=encryption))


def _whole(cluster: ClusterConfig, node: NodeSpec) -> NodeSpec:
    """Return a node on a host with what the file says for all of them."""
    provider, auth = cluster.provider, cluster.auth
    filled: dict[str, Any] = {
        "ssh_user": node.ssh_user or provider.ssh_user or auth.ssh_user,
        "ssh_private_key": node.ssh_private_key or provider.ssh_private_key or auth.ssh_private_key,
        "python": node.python or provider.python,
        "state_dir": node.state_dir or provider.state_dir,
        "run_dir": node.run_dir or provider.run_dir,
        "control_port": provider.control_port if node.control_port is None else node.control_port,
        "bulk_port": provider.bulk_port if node.bulk_port is None else node.bulk_port,
        "environment": {**cluster.environment, **node.environment},
    }
    return msgspec.structs.replace(node, **filled)
