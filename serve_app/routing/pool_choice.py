"""Chooses among the pools of a model: affinity first, within a bound on imbalance, then free slots."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["LOST_LOAD", "SeenReplica", "most_load", "rank_pools", "see_pool", "seen_pool"]

# Times the mean load, and streams besides, that a home may have. Computing three turns again takes another
# generator as long as a dozen tokens of all its streams.
_BOUND, _SPARE = 1.5, 2.0

LOST_LOAD = 1_000_000
"""What is said of a replica that has just lost its streams, or takes none: more than any load that is."""


@dataclass(frozen=True, slots=True)
class SeenReplica:
    """What a replica publishes.

    Attributes:
        streams: those that run or wait there.
        slots: most that run at once; 0 until it has published anything.
        latest: the keys that it had last, see `LatestKeys.told`.
    """

    streams: float = 0.0
    slots: float = 0.0
    latest: bytes = b""


def most_load(mean: float) -> float:
    """Return the streams that the home of a key may have before another one is chosen for its load.

    Source: Mirrokni, Thorup, Zadimoghaddam 2018, "Consistent Hashing with Bounded Loads".

    Args:
        mean: the streams that it had if all had the same share of their slots taken.
    """
    return _BOUND * mean + _SPARE


_seen: dict[str, Mapping[str, SeenReplica]] = {}


def see_pool(deployment: str, replicas: Mapping[str, SeenReplica]) -> None:
    """Take note of the replicas that a pool has now, for everybody in this process.

    Args:
        deployment: the pool's.
        replicas: by their unique ids. Never changed afterwards: another thread may be reading it.
    """
    _seen[deployment] = replicas


def seen_pool(deployment: str) -> Mapping[str, SeenReplica]:
    """Return the replicas that take streams, as the pool's router in this process last saw them."""
    return _seen.get(deployment, {})


def rank_pools(
    pools: Mapping[str, Mapping[str, SeenReplica]],
    affinity: str | None,
    load: Mapping[str, int],
    *,
    asked: Mapping[str, int] | None = None,
    home: str | None = None,
    alike: Sequence[str] = (),
) -> list[str]:
    """Order the pools that can take a stream, from the best choice to the last.

    A stream with an affinity key prefers the pool that had its key last, as long as that has a free slot
    and no more streams than `most_load`. Everything else goes where the largest share of the slots is free,
    and among equals where rendezvous hashing, weighted by slots, puts the key, so that every ingress replica
    finds the same one; without a key, where most slots are.

    Args:
        pools: their replicas, by the pools' names.
        affinity: the stream's key, or None.
        load: the caller's own streams by replica, `LOST_LOAD` for one that was lost a moment ago.
        asked: streams that the caller has sent to a pool and no replica has answered for yet, by pool.
        home: the pool that had the key last, if anybody knows.
        alike: for a stream that has begun, the pools that go on with it exactly: before all but `home`.

    Returns:
        Those that have a replica; none if no pool has.
    """
    taken, slots = {}, {}
    for name, replicas in pools.items():
        living = {
            replica: it
            for replica, it in replicas.items()
            if max(load.get(replica, 0), it.streams) < LOST_LOAD
        }
        if living:
            streams = sum(max(load.get(replica, 0), it.streams) for replica, it in living.items())
            # Nothing is published in a replica's first second.
            slots[name] = sum(it.slots or 1.0 for it in living.values())
            taken[name] = streams + (asked or {}).get(name, 0)
    weight = {
        name: room if affinity is None else _weighted(name, affinity, room)
        for name, room in slots.items()
    }
    by_room = sorted(slots, key=lambda name: (taken[name] / slots[name], -weight[name]))
    if alike:
        return sorted(by_room, key=lambda name: (name != home, name not in alike))
    if affinity is None or home is None or home not in slots:
        return by_room
    mean = sum(taken.values()) / sum(slots.values())
    if taken[home] > min(most_load(mean * slots[home]), slots[home] - 1):
        return by_room
    return [home, *(name for name in by_room if name != home)]


def _weighted(pool: str, key: str, weight: float) -> float:
    """Return a pool's score for a key.

    Source: Schindelhauer, Schomaker 2005, "Weighted Distributed Hash Tables", the logarithmic method.
    """
    digest = hashlib.blake2b(f"{key}\0{pool}".encode(), digest_size=7).digest()
    uniform = (int.from_bytes(digest, "big") + 0.5) / (1 << 56)
    return -weight / math.log(uniform)
