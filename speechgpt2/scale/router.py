"""Routes a session to the replica with the fewest requests. Runs inside Ray Serve's proxies."""

from __future__ import annotations

import asyncio

from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica

QUERY_TIMEOUT = 1.0  # seconds that a replica may take to report its number of requests
UNKNOWN = 2**31  # requests of a replica that does not answer


class LeastLoadedRouter(FIFOMixin, RequestRouter):  # type: ignore[misc]
    """Asks every replica for its number of requests, and picks the least loaded one.

    Ray Serve's own router compares two random replicas and caches their answers for ten seconds, which suits short
    requests. A session lasts for minutes, and one that a full replica rejects is not retried by itself, so asking all
    replicas is worth the time.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return one replica for each rank, the least loaded first."""
        loads = await asyncio.gather(*(self._load(replica) for replica in candidate_replicas))
        order = sorted(zip(loads, range(len(loads))))
        return [[candidate_replicas[index]] for _, index in order]

    async def _load(self, replica: RunningReplica) -> int:
        """Return the requests at a replica, including those on their way to it."""
        sent = self.replica_queue_len_cache.get(replica.replica_id) or 0
        try:
            return max(sent, await asyncio.wait_for(replica.get_queue_len(deadline_s=QUERY_TIMEOUT), QUERY_TIMEOUT))
        except Exception:  # the replica is slow or dying: try it last
            return UNKNOWN
