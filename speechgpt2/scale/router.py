"""A session goes to the replica with the most room. Runs inside Ray Serve's proxies."""

from __future__ import annotations

import asyncio

from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica

PATIENCE = 1.0  # seconds that a replica may take to say how many it has
UNKNOWN = 2**31


class MostRoom(FIFOMixin, RequestRouter):  # type: ignore[misc]
    """Asks every replica how many requests it has, and takes them in that order.

    Ray Serve's own router looks at two at random, and remembers their answers for ten seconds: good for short requests.
    A session lasts for minutes, and one that is refused by a full replica while another has room does not come back
    by itself, so it is worth a question to all.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """One replica in each rank, the least busy one first."""
        busy = await asyncio.gather(*(self._busy(replica) for replica in candidate_replicas))
        order = sorted(zip(busy, range(len(busy))))
        return [[candidate_replicas[number]] for _, number in order]

    async def _busy(self, replica: RunningReplica) -> int:
        """Requests at a replica, those included that were sent there and have not arrived."""
        sent = self.replica_queue_len_cache.get(replica.replica_id) or 0
        try:
            return max(sent, await asyncio.wait_for(replica.get_queue_len(deadline_s=PATIENCE), PATIENCE))
        except Exception:  # slow, or dying in one of many ways: the last to be tried
            return UNKNOWN
