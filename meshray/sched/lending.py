"""Workers for the owners of other nodes: what other nodes ask for, give back, and use for something else.

*Pure.* Runs in the node process, inside ``LocalScheduler``.

1. An owner of another node is known here while it has claims here.
2. What it says counts only if it comes on the route of the node that spoke for it last.

Source: OSDI'18 s4.2.2; leases as in NSDI'21 s4.
"""

from __future__ import annotations

from meshray.messages.sched import ReassignRemoteLeases, RemoteLeaseGranted, RequestRemoteLease, ReturnRemoteLease
from meshray.sched.demands import Demands, Owner


class Lending:
    """The granting side of the dialogs about leases between nodes."""

    def __init__(self, demands: Demands) -> None:
        self._demands = demands

    def asked(self, route: bytes, message: RequestRemoteLease) -> None:
        """Another node says how many leases one of its sessions can use here."""
        owner = self._demands.owners.get(message.owner)
        if owner is None:
            if not message.demand.count:
                return
            owner = self._demands.owners[message.owner] = Owner(message.owner, route, node=message.owner_node)
        if owner.node == message.owner_node:
            owner.route = route
            owner.job = message.job
            self._demands.declare(owner, message.demand).entitled = message.entitled
            self.forget(owner)

    def returned(self, route: bytes, message: ReturnRemoteLease) -> None:
        """Leases come back."""
        owner = self._demands.owners.get(message.owner)
        if owner is not None and owner.route == route:
            self._reduce(owner, message.klass, message.asked)
        for number in message.leases:
            lease = self._demands.leases.get(number)
            if lease is not None and lease.claim.owner.route == route:
                self._demands.returned(number, kill=message.kill)
                self.forget(lease.claim.owner)
        if owner is not None:
            self.forget(owner)

    def reassigned(self, route: bytes, message: ReassignRemoteLeases) -> None:
        """Leases serve another class of their owner."""
        owner = self._demands.owners.get(message.owner)
        if owner is None or owner.route != route:
            return
        claim = self._demands.declare(owner, message.demand)
        claim.entitled = message.entitled
        for number in message.leases:
            lease = self._demands.leases.get(number)
            if lease is not None:
                self._demands.reassign(lease, claim)
        self._reduce(owner, message.left, message.asked)
        self.forget(owner)

    def undeliverable(self, message: RemoteLeaseGranted) -> None:
        """The node that asked is gone: so is its wish."""
        lease = self._demands.leases.get(message.lease)
        if lease is not None:
            self._demands.returned(lease.number)
            lease.claim.count = 0
            self._demands.tidy(lease.claim)
            self.forget(lease.claim.owner)

    def forget(self, owner: Owner) -> None:
        """Forget an owner of another node that wants and holds nothing."""
        if owner.node and not owner.claims:
            self._demands.owners.pop(owner.name, None)

    def _reduce(self, owner: Owner, klass: int, asked: int) -> None:
        claim = owner.claims.get(klass)
        if claim is not None and asked >= 0:
            claim.count = asked
            self._demands.tidy(claim)
