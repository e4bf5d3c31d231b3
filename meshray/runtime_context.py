"""What a task or actor can ask about itself: ``meshray.get_runtime_context()``.

*Pure.* Used by drivers and workers.
"""

from __future__ import annotations

from typing import Any

from meshray.resources import UNITS_PER_ONE
from meshray.session import current
from meshray.session.context import CURRENT
from meshray.session.naming import namespace_of
from meshray.session.session import Session


class RuntimeContext:
    """Ids and resources of the calling code. Ids are hexadecimal strings, as in Ray."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def get_job_id(self) -> str:
        """Return the id of the job (driver program) that the calling code belongs to."""
        return self._session.context().job or self._session.job

    def get_node_id(self) -> str:
        """Return the id of the node that this process runs on."""
        return self._session.node

    def get_worker_id(self) -> str:
        """Return the name of this process."""
        return self._session.name

    def get_task_id(self) -> str | None:
        """Return the id of the running task, None in a driver."""
        context = CURRENT.get()
        return None if context is None else context.task.hex()

    def get_task_name(self) -> str | None:
        """Return the name of the running task, None in a driver."""
        context = CURRENT.get()
        return None if context is None else context.name

    get_task_function_name = get_task_name

    def get_actor_id(self) -> str | None:
        """Return the id of the actor that the calling code belongs to, None outside actors."""
        context = CURRENT.get()
        return context.actor.hex() if context is not None and context.actor else None

    def get_actor_name(self) -> str | None:
        """Return the actor's name ("" if it has none), None outside actors."""
        host = self._host()
        return None if host is None else host.spec.name

    @property
    def namespace(self) -> str:
        """The namespace of this job."""
        return namespace_of(self._session)

    @property
    def was_current_actor_reconstructed(self) -> bool:
        """Whether the actor has been restarted."""
        host = self._host()
        return host is not None and host.incarnation > 0

    @property
    def current_actor(self) -> Any:
        """A handle of the actor that the calling code belongs to. Raise RuntimeError outside actors."""
        host = self._host()
        if host is None:
            raise RuntimeError("current_actor is only there inside an actor")
        from meshray.actor import handle_of

        return handle_of(host.spec)

    @property
    def gcs_address(self) -> str:
        """The address of the first member of the first shard."""
        return self._session.surroundings.shards[0].members[0][1]

    def is_canceled(self) -> bool:
        """Whether the running task was cancelled (threaded actors look at this themselves)."""
        context = CURRENT.get()
        return context is not None and context.cancelled

    def get_assigned_resources(self) -> dict[str, float]:
        """Return the resources that the running task or actor holds; nothing in a driver. A task asks its node."""
        host = self._host()
        if host is not None:
            held = host.spec.run_resources
        else:
            rows = self._session.questions.ask(["workers"])["workers"] if CURRENT.get() is not None else []
            held = next((row["resources"] for row in rows if row["worker"] == self._session.name), {})
        return {name: amount / UNITS_PER_ONE for name, amount in held.items()}

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        """Return the GPUs that the running task or actor holds, as ``{"GPU": ["0", ...]}``."""
        context = CURRENT.get()
        gpus = (context.gpus if context is not None else None) or []
        return {"GPU": [str(gpu) for gpu in gpus]}

    def _host(self) -> Any:
        executor = self._session.executor
        return None if executor is None else executor.actor


def get_runtime_context() -> RuntimeContext:
    """Return the runtime context of the calling code."""
    return RuntimeContext(current.session())
