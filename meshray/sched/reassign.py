"""Leases that serve another class of the session that holds them, at the session's own node.

*Pure.* Runs in the node process, inside ``LocalScheduler``.

1. Nothing becomes free by it: it needs no scheduling pass, here or at the node that granted the lease.
2. Where leases cannot move, what the session said of the class that they leave counts all the same: it says so once.
3. A lease that serves another class stays what it was for everybody else: it counts for its owner's share from when it
   was granted, and is asked back like any other.

Source: leases as in NSDI'21 s4. Departure: there a lease ends with the work of its class (decision 0026).
"""

from __future__ import annotations

from meshray.messages.node import ReassignLeases
from meshray.messages.sched import ReassignRemoteLeases
from meshray.sched.context import Context
from meshray.sched.demands import Claim, Demands, Owner
from meshray.sched.spill import RemoteLease, Spill


def reassign(context: Context, demands: Demands, spill: Spill, owner: Owner, message: ReassignLeases) -> None:
    """Let leases of this node and of others serve another claim of the same owner, if that needs the same."""
    left, claim = owner.claims.get(message.left), owner.claims.get(message.klass)
    if left is None or left is claim:
        return
    left.count = max(0, message.count)
    if claim is None or left.need != claim.need:
        spill.trim(left)
        return
    lent: dict[str, dict[int, RemoteLease]] = {}
    for number in message.leases:
        here, elsewhere = demands.leases.get(number), spill.leases.get(number)
        if here is not None:
            demands.reassign(here, claim)
        elif elsewhere is not None and elsewhere.claim is left:
            lent.setdefault(elsewhere.node, {})[number] = elsewhere
    for node, leases in lent.items():
        _tell(context, spill, node, leases, left, claim)
    spill.trim(left)
    spill.trim(claim)


def _tell(context: Context, spill: Spill, node: str, leases: dict[int, RemoteLease], left: Claim,
          claim: Claim) -> None:
    """Move leases of one other node, with what is asked for there, and tell it."""
    old, count = left.remote[node], len(leases)
    left.lend(node, -count)
    left.ask(node, old.endpoint, -max(count, left.surplus(old)))
    ask = claim.ask(node, old.endpoint, count)
    claim.lend(node, count)
    claim.ask(node, old.endpoint, -claim.surplus(ask))
    ask.progress_ns = context.now_ns
    for lease in leases.values():
        lease.claim = claim
    context.send_to(node, old.endpoint, ReassignRemoteLeases(
        claim.owner.name, list(leases), left.klass, old.asked, *spill.wish(claim, ask)))
