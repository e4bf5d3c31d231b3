"""The host agent: starts, watches and ends the node of this host for a launching machine.

*Shell (files, processes).* Run as ``python -m meshray.processes.host_agent`` by ``meshray up`` over SSH, or by a test
in a network namespace: reads one request of ``host_plan`` from standard input, writes its events to standard output,
ends.

1. A secret key is made here and never leaves; only its public half is told.
2. One agent at a time works on a cluster of a host: ``stop`` waits for a ``start`` that is being interrupted.
3. An attached agent whose launching machine goes away stops what it does, and leaves nothing of it.
4. After ``stop`` no process, socket or shared memory of the node is left, and it says so only then.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

import msgspec

from meshray import config
from meshray.errors import MeshrayError
from meshray.messages.keys import ChangeKey, KeyChanged
from meshray.node_config import ClusterFile, Network, NodeConfig
from meshray.processes import control_store, host_bootstrap, places_file, run_dirs, state_dirs
from meshray.processes.host_plan import (
    AgentRequest,
    Allow,
    Await,
    Describe,
    Described,
    Done,
    Event,
    Failed,
    Key,
    Keys,
    NodeRequest,
    Probe,
    Probed,
    Running,
    Start,
    Started,
    Status,
    Stop,
    Stopped,
)
from meshray.processes.launch import Launch, node_resources
from meshray.processes.local_cluster import stop_cluster
from meshray.processes.locked_files import locked
from meshray.processes.process_identity import Process, end, identify
from meshray.processes.replacement import placed
from meshray.processes.scheduler_places import scheduler_places
from meshray.processes.spill_place import spill_settings

INTERRUPTIONS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
"""The signal that ends a session (SIGHUP) is an interruption like any other."""

_LOOK_S = 0.05


def main() -> int:
    """Answer the one request on standard input; return the exit code."""
    request = msgspec.json.decode(sys.stdin.buffer.readline(), type=AgentRequest)
    if request.attached:
        interrupt_with_input()
    try:
        tell(answer(request))
    except KeyboardInterrupt:
        tell(Failed(text="interrupted"))
        return 1
    except (MeshrayError, OSError, ValueError) as error:
        tell(Failed(text=str(error)))
        return 1
    return 0


def answer(request: AgentRequest) -> Event:
    """Do what is asked. Raise MeshrayError, OSError or ValueError when it cannot be done."""
    if isinstance(request, Probe):
        return msgspec.convert(host_bootstrap.probe(msgspec.to_builtins(request)), Probed)
    os.environ[run_dirs.ROOT_VARIABLE] = request.run_root
    os.environ[state_dirs.STATE_VARIABLE] = request.state_dir
    match request:
        case Keys():
            return keys(request)
        case Start():
            with alone(request):
                return start(request)
        case Await():
            return wait_for_nodes(request)
        case Status():
            run_dir = run_dirs.node_dir(request.cluster, request.node)
            record = run_dirs.read_node_file(run_dir)
            alive = record is not None and run_dirs.is_node_alive(run_dir)
            return Running(alive=alive, control=record.control if record is not None else "",
                           places=places_file.read(run_dir))
        case Allow():
            return allow(request)
        case Describe():
            return describe(request)
        case Stop():
            with alone(request):
                return stop(request)


def keys(request: Keys) -> Key:
    """Return the public key of this host's node; make the pair if there is none."""
    from meshray.transport.curve import KeyPair

    path = key_file(request)
    if not os.path.exists(path):
        with suppress(FileExistsError):
            KeyPair.make(request.node).save(path)
    return Key(public=KeyPair.load(path).public, control_port=request.control_port or free_port(request.bind),
               has_state=os.path.isdir(state_of(request)), places=places_file.read(state_of(request)))


def state_of(request: NodeRequest) -> str:
    """Return where a cluster's node keeps its disks of the control store."""
    return state_dirs.control_store_dir(request.cluster, request.node)


def free_port(address: str) -> int:
    """Return a port of this host that nobody listens at now, so that all nodes can be told of it before one starts."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.bind((address.strip("[]"), 0))
        return int(trial.getsockname()[1])


def key_file(request: NodeRequest) -> str:
    """Return the path of the key pair of a cluster's node."""
    return os.path.join(request.state_dir, request.cluster, f"{request.node}.key")


def start(request: Start) -> Started:
    """Start the node and wait until it is healthy."""
    run_dirs.sweep()
    run_dir = run_dirs.create(request.cluster, [request.node])[request.node]
    try:
        found = Launch(node_config(request, run_dir)).wait(request.timeout_s)
        run_dirs.write_cluster_file(ClusterFile(cluster=request.cluster, address=found.endpoint,
                                                nodes={request.node: run_dir}, configuration=request.configuration))
    except BaseException:
        # Whoever interrupted us has done so; what follows must come to its end.
        for number in INTERRUPTIONS:
            signal.signal(number, signal.SIG_IGN)
        end_strays(run_dir)
        stop_cluster(request.cluster, reason="the node did not start")
        raise
    return Started(control=found.control, endpoint=found.endpoint, pid=found.pid)


def node_config(request: Start, run_dir: str) -> NodeConfig:
    """Return what the node is told at birth."""
    spec = request.spec
    amounts = node_resources(num_cpus=spec.num_cpus, num_gpus=spec.num_gpus, resources=spec.resources,
                             memory=spec.memory, object_store_memory=spec.object_store_memory,
                             directory=run_dirs.arena_directory())
    store = control_store.plan(request.founders, request.shards, request.replicas, via)
    places = scheduler_places(request.founders, request.schedulers)
    schedulers = {name: via(host, name) for name, host in places.items()}

    def own(names: Iterable[str]) -> dict[str, str]:
        return {name: run_dirs.endpoint(run_dir, name) for name in names}

    return placed(NodeConfig(
        cluster=request.cluster,
        node_name=request.node,
        run_dir=run_dir,
        resources=amounts,
        object_store_bytes=int(amounts["object_store_memory"]),
        arena_path=run_dirs.arena_path(request.cluster, request.node),
        host_shards=own(store.servers_on(request.node)),
        host_masters=own(store.masters_on(request.node)),
        host_schedulers=own(name for name, host in places.items() if host == request.node),
        shards=store.shards,
        masters=store.masters,
        replicas=request.replicas,
        acceptors=store.acceptors,
        places={**store.places, **{name: (host, schedulers[name]) for name, host in places.items()}},
        replace_after_s=request.replace_after,
        failover=store.failover,
        founding=request.founding and not request.has_past,
        state_dir=state_of(request) if request.keep_state else "",
        life=request.life,
        revives=request.has_past and request.node == request.founders[0],
        schedulers=schedulers,
        locality=request.locality,
        durability=request.durability,
        retention=request.retention,
        prestart_workers=min(int(amounts["CPU"]), config.WORKERS_STARTING_MAX),
        environment=spec.environment,
        labels=spec.labels,
        network=Network(
            bind=request.bind, advertise=request.advertise, control_port=request.control_port,
            bulk_port=spec.bulk_port or 0, key_file=key_file(request), allowed=request.allowed, seeds=request.seeds,
            bulk_encryption=request.bulk_encryption),
        **spill_settings(spec.spill_directory, spec.spill_max, cluster=request.cluster, node=request.node,
                         run_dir=run_dir),
    ), request.places)


def via(node: str, process: str) -> str:
    """Return the endpoint of a process of a node, from wherever."""
    return f"via://{node}/{process}"


def wait_for_nodes(request: Await) -> Done:
    """Wait until the node here knows all these nodes as living ones."""
    from meshray.processes.tool import NodeClient  # brings ZeroMQ, which the start of a node must not wait for

    record = run_dirs.read_node_file(run_dirs.node_dir(request.cluster, request.node))
    if record is None:
        raise MeshrayError(f"node {request.node} does not run: see meshray logs on its host")
    deadline_ns = time.monotonic_ns() + int(request.timeout_s * config.SECOND_NS)
    with NodeClient(record.endpoint, timeout_s=request.timeout_s) as client:
        while True:
            rows = client.describe(["nodes"])["nodes"]
            missing = set(request.names) - {row["name"] for row in rows if row["state"] == "alive"}
            if not missing:
                return Done()
            if time.monotonic_ns() > deadline_ns:
                raise MeshrayError(f"node {request.node} does not know {', '.join(sorted(missing))} after "
                                   f"{request.timeout_s:g} s: see meshray logs on its host, and whether the control "
                                   "ports can be reached between the hosts")
            time.sleep(_LOOK_S)


def allow(request: Allow) -> Done:
    """Have the cluster change its list of keys."""
    from meshray.processes.tool import NodeClient

    with NodeClient(run_dirs.find_address(request.cluster)) as client:
        for cookie, (name, key) in enumerate(request.keys.items()):
            changed = client.ask(ChangeKey(cookie, name, key, request.state, request.until_wall_ns), KeyChanged)
            if changed.error:
                raise MeshrayError(f"the key of {name} cannot be {request.state}: {changed.error}")
    return Done()


def describe(request: Describe) -> Described:
    """Ask the node here about the cluster."""
    from meshray.processes.tool import NodeClient

    endpoint = run_dirs.find_address(request.cluster)
    with NodeClient(endpoint) as client:
        rows = client.describe(request.topics, limit=request.limit)
        return Described(endpoint=endpoint, rows=rows, missing=client.missing)


def stop(request: Stop) -> Stopped:
    """End the node, whatever state it is in, and look that nothing is left."""
    run_dir = run_dirs.node_dir(request.cluster, request.node)
    # Processes of a node that was never healthy go first: they would make anew what is removed under them.
    healthy = run_dirs.read_node_file(run_dir) is not None
    found = bool(processes_in(run_dir)) if healthy else end_strays(run_dir)
    found = stop_cluster(request.cluster, reason=request.reason) or found
    arena = run_dirs.arena_path(request.cluster, request.node)
    for path in (arena, *([state_dirs.allow_list_file(request.cluster, request.node)] if request.forget else [])):
        with suppress(FileNotFoundError):
            os.unlink(path)
    left = [f"process {process.pid}" for process in processes_in(run_dir)]
    left += [path for path in (run_dirs.cluster_dir(request.cluster), arena) if os.path.exists(path)]
    return Stopped(found=found, left=left)


def end_strays(run_dir: str) -> bool:
    """End every process of a run directory; False if there was none."""
    strays = processes_in(run_dir)
    end(strays, grace_s=0.0, term_s=1.0)
    return bool(strays)


def processes_in(run_dir: str) -> list[Process]:
    """Return the processes whose output goes into this run directory: all of a node's, also of one that was never
    healthy."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            outputs = {os.readlink(f"/proc/{entry}/fd/{number}") for number in (1, 2)}
            process = identify(int(entry))
            if process is not None and any(output.startswith(f"{run_dir}/") for output in outputs):
                found.append(process)
    return found


@contextmanager
def alone(request: NodeRequest) -> Iterator[None]:
    """Wait until no other agent works on this cluster here, and keep others out meanwhile."""
    path = os.path.join(run_dirs.open_root(), f".agent-{request.cluster}")
    with locked(path, variable=run_dirs.ROOT_VARIABLE):
        yield


def interrupt_with_input() -> None:
    """Interrupt this process, as Ctrl-C would, when standard input ends."""

    def wait(interrupt: Callable[[], object]) -> None:
        while os.read(0, config.KIB):
            continue
        interrupt()

    main_pid = os.getpid()
    threading.Thread(target=wait, args=(lambda: os.kill(main_pid, signal.SIGINT),), daemon=True).start()


def tell(event: Event) -> None:
    """Write one event; that nobody reads it any more is no news to an agent that ends."""
    with suppress(BrokenPipeError):
        sys.stdout.buffer.write(msgspec.json.encode(event) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    for number in INTERRUPTIONS:
        signal.signal(number, signal.default_int_handler)
    sys.exit(main())
