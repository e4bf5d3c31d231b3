"""The functions of the public API: init, shutdown, get, put, wait, cancel, kill and what tells of the cluster.

*Shell (processes, signals).* Used by drivers and workers. Names, defaults and meaning are Ray's.

1. Whatever needs a cluster starts an embedded one if there is none; it ends with the program.
2. An exception that reaches the user names the thing, the numbers, and what to do.
"""

from __future__ import annotations

import atexit
import difflib
import inspect
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from meshray import config, options
from meshray.actor import ActorClass, ActorHandle, handle_of
from meshray.node_config import NodeConfig
from meshray.object_ref import PENDING, READY, ObjectRef
from meshray.remote_function import RemoteFunction
from meshray.session import current, getting
from meshray.session.actors import ActorLink
from meshray.session.connect import join
from meshray.session.naming import find_actor, list_names, namespace_of
from meshray.session.session import Session
from meshray.session.values import SIMPLE_TYPES

_init_lock = threading.RLock()
_embedded: list[Any] = []


class ClientContext(dict[str, Any]):
    """What ``init`` returns: facts about the cluster; as a context manager it shuts down at the end."""

    @property
    def address_info(self) -> dict[str, Any]:
        """The facts as a dict: address, node_id, namespace, job_id, run_dir."""
        return dict(self)

    def __enter__(self) -> ClientContext:
        return self

    def __exit__(self, *exc: object) -> None:
        shutdown()

    def disconnect(self) -> None:
        """Shut down."""
        shutdown()


def init(address: str | None = None, *, num_cpus: float | None = None, num_gpus: float | None = None,
         resources: dict[str, float] | None = None, object_store_memory: int | None = None,
         namespace: str | None = None, ignore_reinit_error: bool = False, log_to_driver: bool = True,
         logging_level: int | str | None = None, memory: float | None = None, spill_directory: str | None = None,
         spill_max: int | None = None, **ignored: Any) -> ClientContext:
    """Join a cluster, or start one that lives as long as this program.

    ``address``: None takes MESHRAY_ADDRESS if set, else starts an embedded cluster; ``"local"`` always starts one;
    ``"auto"`` joins the cluster that ``meshray up`` started last; a name or ``ipc://`` endpoint joins that one;
    ``tcp://HOST:PORT#KEY`` joins a cluster of other machines (``meshray keys list`` shows its addresses) by this
    machine's key (``meshray keys add driver``, or the file named in MESHRAY_KEY_FILE), with an object store of
    ``object_store_memory`` here.
    ``num_cpus``, ``num_gpus``, ``resources``, ``memory`` and ``object_store_memory`` (bytes) describe the embedded
    cluster; what has no room in the store goes to files below ``spill_directory`` (a disk that it finds by itself), at
    most ``spill_max`` bytes (0: never, None: what the disk takes).
    ``namespace`` is where this program's named actors live; without one they are visible to this job only.
    Other arguments of Ray's ``init`` that change nothing here are accepted if they are known, refused otherwise.
    Raise RuntimeError if this process is connected already (unless ``ignore_reinit_error``), ClusterNotFoundError,
    ClusterStartError, KeyFileError, KeyRefusedError.
    """
    _check_ignored(ignored)
    with _init_lock:
        if current.get() is not None:
            if ignore_reinit_error:
                return _facts(current.session())
            raise RuntimeError("meshray.init() was called twice: call meshray.shutdown() first, or pass "
                               "ignore_reinit_error=True")
        described = {"num_cpus": num_cpus, "num_gpus": num_gpus, "resources": resources, "memory": memory,
                     "object_store_memory": object_store_memory, "spill_directory": spill_directory,
                     "spill_max": spill_max}
        wanted = address or os.environ.get("MESHRAY_ADDRESS") or "local"
        given = [name for name, value in described.items() if value is not None]
        own_node = wanted.startswith("tcp://") and given == ["object_store_memory"]
        if wanted != "local" and given and not own_node:
            raise ValueError(f"{', '.join(given)} describe a new cluster, but address={wanted!r} joins one: leave "
                             "them out, or pass address='local'")
        if wanted == "local":
            session = _start_embedded(described, namespace or "")
        elif wanted.startswith("tcp://"):
            session = _start_visiting(wanted, object_store_memory, namespace or "")
        else:
            session = _join(wanted, namespace or "")
        _adopt(session, log_to_driver)
        return _facts(session)


_WITHOUT_EFFECT = frozenset({
    "include_dashboard", "dashboard_host", "dashboard_port", "configure_logging", "logging_format", "labels",
    "log_to_driver_verbosity", "_temp_dir", "_system_config", "_node_ip_address", "_metrics_export_port", "_memory",
})
"""Arguments of Ray's ``init`` that ask for what meshray does not have and does not need to run the program."""


def _check_ignored(ignored: dict[str, Any]) -> None:
    unknown = sorted(set(ignored) - _WITHOUT_EFFECT)
    if unknown:
        known = list(inspect.signature(init).parameters)[:-1]
        near = difflib.get_close_matches(unknown[0], known, 1)
        hint = f": did you mean {near[0]}?" if near else f". There are: {', '.join(known)}"
        raise TypeError(f"meshray.init() has no argument {unknown[0]!r}{hint}")


def _start_embedded(described: dict[str, Any], namespace: str) -> Session:
    from meshray.processes import launch

    return _with_own_node(launch.embedded_config(**described), namespace)


def _start_visiting(address: str, object_store_memory: int | None, namespace: str) -> Session:
    from meshray.processes import visiting

    return _with_own_node(visiting.visiting_config(address, object_store_memory=object_store_memory), namespace)


def _with_own_node(settings: NodeConfig, namespace: str) -> Session:
    from meshray.processes import launch, process_identity

    node = launch.start_node(settings)
    try:
        session = join(node.endpoint, kind="driver", namespace=namespace, entrypoint=" ".join(sys.argv))
    except BaseException:
        launch.stop_node(node, reason="the driver could not join")
        raise
    _embedded[:] = [node, process_identity.identify(node.pid)]
    return session


def _join(address: str, namespace: str) -> Session:
    from meshray.processes import run_dirs

    return join(run_dirs.find_address(address), kind="driver", namespace=namespace, entrypoint=" ".join(sys.argv))


def _adopt(session: Session, log_to_driver: bool) -> None:
    from meshray.session.log_printer import LogPrinter

    session.printer = LogPrinter() if log_to_driver else None
    sys.setswitchinterval(min(sys.getswitchinterval(), config.SWITCH_INTERVAL_S))
    _guard_interrupts(session)
    current.set_session(session)
    session.driving.start()
    atexit.register(shutdown)


def _guard_interrupts(session: Session) -> None:
    """Let Ctrl-C wait for the end of a turn, where it would tear the session's tables."""
    if threading.current_thread() is not threading.main_thread():
        return
    before = signal.getsignal(signal.SIGINT)
    if not callable(before):
        return

    def handler(number: int, frame: Any) -> None:
        if not session.driving.note_interrupt():
            before(number, frame)

    signal.signal(signal.SIGINT, handler)
    session.restore_signals = lambda: signal.signal(signal.SIGINT, before)


def _facts(session: Session) -> ClientContext:
    surroundings = session.surroundings
    return ClientContext(address=f"ipc://{session.run_dir}/node.sock", node_id=session.node, job_id=session.job,
                         namespace=session.namespace, run_dir=surroundings.run_dir, cluster=surroundings.cluster)


def shutdown(*, wait_for_processes: bool = False) -> None:
    """Leave the cluster; an embedded one ends with everything in it. Calling it without a session does nothing.

    With ``wait_for_processes`` return only when all processes of an embedded cluster are gone.
    """
    with _init_lock:
        session = current.get()
        if session is None or session.kind != "driver":
            return
        embedded, _embedded[:] = list(_embedded), []
        current.set_session(None)
        atexit.unregister(shutdown)
        try:
            session.farewell("finished", stop_cluster=bool(embedded))
        finally:
            if session.restore_signals is not None and threading.current_thread() is threading.main_thread():
                session.restore_signals()
            session.close()
            if embedded:
                _finish_embedded(*embedded)


def _finish_embedded(node: Any, process: Any) -> None:
    """Wait until nothing is left of the embedded cluster; end by force what does not end by itself."""
    from meshray.processes import launch, process_identity, run_dirs

    if process is not None:
        process_identity.end([process], grace_s=5.0, term_s=1.0)
    if run_dirs.read_node_file(os.path.dirname(node.endpoint.removeprefix("ipc://"))) is not None:
        launch.stop_node(node, ask=False)
        run_dirs.remove(node.cluster)


def is_initialized() -> bool:
    """Whether this process has a session."""
    return current.get() is not None


current.set_starter(init)  # type: ignore[arg-type]


def remote(*args: Any, **given: Any) -> Any:
    """Make a function a remote function, or a class an actor class.

    ``@remote`` or ``@remote(num_cpus=2, ...)``. Raise TypeError or ValueError that names a bad option.
    """
    if len(args) == 1 and not given and callable(args[0]):
        return _make_remote(args[0], {})
    if args:
        raise TypeError("@meshray.remote takes keyword options only: @meshray.remote or @meshray.remote(num_cpus=2)")

    def decorate(thing: Any) -> Any:
        return _make_remote(thing, given)

    return decorate


def _make_remote(thing: Any, given: dict[str, Any]) -> Any:
    if inspect.isclass(thing):
        return ActorClass(thing, options.actor_options(given))
    if callable(thing) and not isinstance(thing, (RemoteFunction, ActorClass)):
        if inspect.iscoroutinefunction(thing):
            raise ValueError(f"{thing.__qualname__} is async def: only methods of actors can be, tasks are plain "
                             "functions (call asyncio.run inside)")
        return RemoteFunction(thing, options.task_options(given))
    raise TypeError(f"@meshray.remote is for functions and classes, not for {type(thing).__name__}")


def method(**given: Any) -> Callable[[Any], Any]:
    """Set options of an actor's method: ``@meshray.method(num_returns=2)``."""
    chosen = options.method_options(given)

    def decorate(function: Any) -> Any:
        function.__meshray_method__ = chosen
        return function

    return decorate


def get(refs: ObjectRef | Sequence[ObjectRef], *, timeout: float | None = None) -> Any:
    """Return the value of a reference, or the list of values of a list of references, in order.

    ``timeout`` in seconds (0: only if ready, None: no limit). Raise GetTimeoutError, or the failure of the first
    reference that failed: the task's own exception, WorkerCrashedError, ActorDiedError, ObjectLostError, ...
    """
    if type(refs) is ObjectRef:
        if refs._state == READY and timeout is None:
            return refs._value
        return getting.get_one(current.session(), refs, timeout)
    if isinstance(refs, (list, tuple)):
        return getting.get_many(current.session(), refs, timeout)
    return getting.refuse(refs)


def put(value: Any) -> ObjectRef:
    """Store a value, return a reference to it. Values of 100 KiB or more go to shared memory once, and are read without
    copies. Raise TypeError for an ObjectRef, UnserializableError, ObjectStoreFullError."""
    session = current._session or current.session()
    context = session.context()
    if type(value) in SIMPLE_TYPES and (type(value) not in _SIZED or len(value) < config.INLINE_BYTES_MAX):
        return ObjectRef(READY, value, None, context.prefix(), context.next_index(), 0xFFFF)
    if isinstance(value, ObjectRef):
        raise TypeError("put was given an ObjectRef: it names a stored value already, pass it on as it is")
    ref = ObjectRef(PENDING, None, None, context.prefix(), context.next_index(), 0xFFFF)
    session.objects.put(ref, value)
    return ref


_SIZED = frozenset({str, bytes})


def wait(refs: list[ObjectRef], *, num_returns: int = 1, timeout: float | None = None, fetch_local: bool = True
         ) -> tuple[list[ObjectRef], list[ObjectRef]]:
    """Return (ready, not_ready): at most ``num_returns`` references that have a value or failure, and all the others.

    Both keep the order of ``refs``. ``timeout`` in seconds; when it passes there may be fewer ready. ``fetch_local``
    False is content with values that are ready anywhere. Raise TypeError, ValueError (repeated references,
    ``num_returns`` out of range).
    """
    return getting.wait(current.session(), refs, num_returns, timeout)


def cancel(ref: ObjectRef, *, force: bool = False, recursive: bool = True) -> None:
    """Cancel the task that makes ``ref``: drop it if queued, interrupt it if running (``force``: end its process).

    ``recursive`` cancels its children too. ``get`` then raises TaskCancelledError (WorkerCrashedError if forced).
    """
    if not isinstance(ref, ObjectRef):
        raise TypeError(f"cancel takes an ObjectRef, not {type(ref).__name__}")
    session = current.session()
    if force and isinstance(ref._task, ActorLink):
        raise ValueError("force=True cannot cancel an actor's method: use meshray.kill(actor)")
    session.call(lambda: session.outcomes.cancel_task(ref, force=force, recursive=recursive))
    session.driving.try_step()


def kill(actor: ActorHandle, *, no_restart: bool = True) -> None:
    """End an actor's process at once. Calls that have not answered fail with ActorDiedError; with ``no_restart`` False
    the actor is restarted if ``max_restarts`` allows it."""
    if not isinstance(actor, ActorHandle):
        raise ValueError(f"kill takes an actor handle, not {type(actor).__name__}; to cancel a task use meshray.cancel")
    session = current.session()
    session.call(lambda: session.actors.kill(actor._actor_id, no_restart=no_restart))
    session.driving.try_step()


def get_actor(name: str, namespace: str | None = None) -> ActorHandle:
    """Return a handle of the living actor with that name. Raise ValueError if there is none."""
    session = current.session()
    if not name:
        raise ValueError("get_actor needs a name")
    return handle_of(find_actor(session, namespace or namespace_of(session), name))


def list_named_actors(all_namespaces: bool = False) -> list[Any]:
    """Return the names of living named actors; with ``all_namespaces`` dicts of name and namespace."""
    session = current.session()
    names = list_names(session, None if all_namespaces else namespace_of(session))
    if all_namespaces:
        return [{"name": name, "namespace": namespace} for namespace, name in names]
    return [name for _, name in names]


def nodes() -> list[dict[str, Any]]:
    """Return one dict per node: NodeID, Alive, NodeName, NodeManagerAddress, Resources, Labels."""
    return [{"NodeID": row["node"], "Alive": row["state"] == "alive", "NodeName": row["name"],
             "NodeManagerAddress": row["endpoint"], "NodeManagerHostname": os.uname().nodename, "alive": True,
             "Resources": _units(row["resources_total"]), "Labels": row.get("labels", {})}
            for row in current.session().questions.ask(["nodes"])["nodes"]]


def cluster_resources() -> dict[str, float]:
    """Return the resources of all nodes together: CPU, GPU, memory and object_store_memory (bytes), custom ones."""
    return _sum(current.session().questions.ask(["nodes"])["nodes"], "resources_total")


def available_resources() -> dict[str, float]:
    """Return the resources that are free now, of all nodes together."""
    rows = current.session().questions.ask(["nodes"])["nodes"]
    free = _sum(rows, "resources_available")
    free["object_store_memory"] = float(sum(row["object_store_bytes"] - row["object_store_used"] for row in rows))
    return free


def _sum(rows: list[dict[str, Any]], key: str) -> dict[str, float]:
    total: dict[str, int] = {}
    for row in rows:
        for name, amount in row[key].items():
            total[name] = total.get(name, 0) + amount
    return _units(total)


def _units(resources: dict[str, int]) -> dict[str, float]:
    return {name: amount / 10_000 for name, amount in resources.items()}


def timeline(filename: str | None = None) -> Any:
    """Return what ran where and when, as a list of Chrome trace events; with ``filename`` write them there (JSON, for
    chrome://tracing or ui.perfetto.dev)."""
    events = current.session().questions.ask(["timeline"])["timeline"]
    if filename is None:
        return events
    with open(filename, "w", encoding="utf-8") as file:
        json.dump(events, file)
    return None


def get_gpu_ids() -> list[int]:
    """Return the GPUs that the running task or actor holds."""
    return list(current.session().context().gpus or ())


