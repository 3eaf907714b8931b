"""Chooses the generator replica of a stream: affinity first, within a bound on imbalance."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from ray.serve._private.common import ReplicaID
from ray.serve._private.replica_result import ReplicaResult
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from serve_app.messages.generation import GenerateRequest
from serve_app.routing.homes import Homes
from serve_app.routing.own_streams import own_streams
from serve_app.routing.pool_choice import LOST_LOAD, SeenReplica, most_load, see_pool

__all__ = ["GeneratorRouter", "rank_replicas"]


def rank_replicas(
    replicas: Sequence[str],
    affinity: str | None,
    load: Mapping[str, float],
    home: str | None = None,
    *,
    slots: Mapping[str, float] | None = None,
) -> list[str]:
    """Order replicas from the best choice to the last.

    A stream with an affinity key prefers the replica that had its key last, as long as that has no more
    streams than `most_load` and a free slot where any has. Everything else goes where the largest share of
    the slots is free, and among equals where rendezvous hashing puts the key: so every ingress replica
    finds the same one.

    Args:
        replicas: unique ids of the replicas that may be chosen.
        affinity: the stream's key, or None.
        load: streams running and waiting per replica, `LOST_LOAD` for one to be avoided; a replica that is
            missing has none.
        home: the replica that had the key last, if anybody knows.
        slots: most streams that run at once per replica; all count the same unless all are known.
    """
    slots = slots or {}
    known = all(slots.get(replica, 0) > 0 for replica in replicas)
    room = {replica: slots[replica] if known else 1.0 for replica in replicas}
    taken = {replica: load.get(replica, 0.0) / room[replica] for replica in replicas}
    by_load = sorted(
        replicas, key=lambda replica: (taken[replica], _weight(replica, affinity or ""))
    )
    if affinity is None or home is None or home not in taken:
        return by_load
    # What is said of those to be avoided is no load, and would make any other look small.
    real = [replica for replica in replicas if load.get(replica, 0.0) < LOST_LOAD]
    of_all = sum(room[replica] for replica in real)
    mean = sum(load.get(replica, 0.0) for replica in real) / of_all if real else 0.0
    full = known and taken[home] >= 1 > taken[by_load[0]]
    if full or load.get(home, 0.0) > most_load(mean * room[home]):
        return by_load
    return [home, *(replica for replica in by_load if replica != home)]


def _weight(replica: str, key: str) -> bytes:
    return hashlib.blake2b(f"{key}\0{replica}".encode(), digest_size=8).digest()


class GeneratorRouter(RequestRouter):  # type: ignore[misc]
    """Routes by the call's keyword arguments.

    `replica` pins a call to the replica with that unique id, or, when it is gone, to any: a
    cancellation that arrives at the wrong place does no harm. `load` is the caller's own count of
    streams per replica, fresher than what replicas publish; `affinity` is the stream's key. Streams that
    were routed since that count was taken are known here, and others' where replicas said just now how
    many those are, see `OwnStreams`.

    A conversation stays where its last turn is in the cache, whichever ingress replica sent it there: replicas
    publish what they had last.

    What it sees of the replicas is also what chooses between the pools of a model.
    """

    # A replica that is asked how many calls it has, and doesn't answer in time, is passed over, and with it
    # what it has cached. Its answer waits for a core where steps take them all.
    queue_len_response_deadline_s = max(0.5, RequestRouter.queue_len_response_deadline_s)

    def initialize_state(self, **_: object) -> None:
        """Begin without a memory; Serve calls this once."""
        self._homes = Homes()

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Take the replicas that there are now, with what they publish; Serve calls this."""
        super().update_replicas(replicas)
        self._show()

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Forget a replica; Serve calls this where a call has met its end."""
        super().on_replica_actor_died(replica_id)
        self._show()

    def _show(self) -> None:
        published = {
            replica_id.unique_id: replica.routing_stats
            for replica_id, replica in self.curr_replicas.items()
        }
        see_pool(
            self._deployment_id.name,
            {
                name: SeenReplica(
                    float(said.get("streams", 0)),
                    float(said.get("slots", 0)),
                    said.get("latest", b""),
                )
                for name, said in published.items()
            },
        )

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Return the candidates as one rank each, best first."""
        by_id = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        call: Mapping[str, Any] = pending_request.kwargs if pending_request else {}
        pinned = by_id.get(call.get("replica", ""))
        if pinned is not None:
            return [[pinned]]
        own = call.get("load") or {}
        stream = _stream_of(pending_request)
        routed, others = own_streams().counts(but=stream), own_streams().others()
        load = {}
        for name, replica in by_id.items():
            mine, published = routed.get(name, 0), replica.routing_stats.get("streams", 0)
            # What is published is up to a second old, but that a replica stops stays true.
            heard = name in others and published < LOST_LOAD
            there = mine + others[name] if heard else max(mine, published)
            load[name] = float(max(own.get(name, 0), there))
        affinity = call.get("affinity")
        told = ((name, replica.routing_stats.get("latest", b"")) for name, replica in by_id.items())
        home = self._homes.find(affinity, told) if affinity else None
        slots = {
            name: float(replica.routing_stats.get("slots", 0)) for name, replica in by_id.items()
        }
        ranked = rank_replicas(list(by_id), affinity, load, home, slots=slots)
        if stream is not None and ranked:
            own_streams().route(stream, ranked[0])
        return [[by_id[name]] for name in ranked]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: ReplicaResult
    ) -> None:
        """Remember which replica took a call, which need not be the best one; Serve calls this."""
        super().on_request_routed(pending_request, replica_id, result)
        affinity = pending_request.kwargs.get("affinity")
        if affinity:
            self._homes.remember(affinity, replica_id.unique_id)


def _stream_of(pending: PendingRequest | None) -> str | None:
    """Return the id of the stream that a call opens, if it opens one."""
    first = pending.args[0] if pending is not None and pending.args else None
    return first.request_id if isinstance(first, GenerateRequest) else None
