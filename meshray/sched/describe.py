"""Rows that ``status`` and ``list`` show of a local scheduler.

*Pure.* Runs in the node process, inside ``LocalScheduler``.
"""

from __future__ import annotations

from typing import Any

from meshray.sched.actors import Actors
from meshray.sched.context import Context
from meshray.sched.demands import Demands
from meshray.sched.ledger import visible
from meshray.sched.spill import Spill


def rows(context: Context, demands: Demands, actors: Actors, spill: Spill) -> dict[str, list[dict[str, Any]]]:
    """Return topic -> rows of plain values; resources in 1/10 000 units, ids in hex."""
    ledger = context.ledger
    free = ledger.free()
    over = ledger.oversubscribed()
    return {
        "resources": [{"node": context.node, "name": name, "total": total, "available": free[name],
                       "oversubscribed": over.get(name, 0)} for name, total in ledger.total.items()],
        "workers": [{"worker": worker.name, "pid": worker.pid, "node": context.node, "state": worker.state,
                     "blocked": worker.allocation is not None and worker.allocation.parked, "label": worker.label,
                     "job": worker.job, "lease": worker.lease, "actor": worker.actor.hex(),
                     "resources": visible(worker.allocation.resources) if worker.allocation else {}}
                    for worker in context.pool.workers.values()],
        "demands": [{"owner": claim.owner.name, "class": claim.klass, "label": claim.label,
                     "resources": visible(claim.need), "wanted": claim.count, "held": claim.held,
                     "missing": claim.missing, "backlog": claim.backlog, "mean_ns": claim.mean_ns,
                     "infeasible": claim.stuck, "elsewhere": {node: ask.asked for node, ask in claim.remote.items()}}
                    for claim in demands.claims()],
        "leases": [{"lease": lease.number, "owner": lease.claim.owner.name, "class": lease.claim.klass,
                    "worker": lease.worker.name, "node": context.node, "reclaimed": bool(lease.reclaimed_ns)}
                   for lease in demands.leases.values()]
        + [{"lease": number, "owner": remote.claim.owner.name, "class": remote.claim.klass, "worker": remote.worker,
            "node": remote.node, "reclaimed": False} for number, remote in spill.leases.items()],
        "actors": [{"actor": identity.hex(), "class": actor.spec.class_name, "name": actor.spec.name,
                    "state": actor.state, "incarnation": actor.incarnation, "job": actor.spec.job,
                    "worker": actor.worker.name if actor.worker else "", "pid": actor.worker.pid if actor.worker else 0,
                    "node": context.node, "infeasible": actor.stuck} for identity, actor in actors.actors.items()],
        "nodes": [{"node": load.node, "name": load.name, "endpoint": load.endpoint, "total": load.total,
                   "labels": load.labels} for load in context.view.values()],
    }
