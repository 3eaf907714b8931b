"""Chooses among the pools of a model: affinity first, within a bound on imbalance, then free slots."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["LOAD_BOUND", "LOST_LOAD", "SeenReplica", "rank_pools", "see_pool", "seen_pool"]

LOAD_BOUND = 1.25
"""What is preferred may carry this many times the mean load, plus one stream.

Source: Mirrokni, Thorup, Zadimoghaddam 2018, "Consistent Hashing with Bounded Loads".
"""

LOST_LOAD = 1_000_000
"""What callers say of a replica that has just lost its streams, or takes none: more than any load that is."""


@dataclass(frozen=True, slots=True)
class SeenReplica:
    """What a replica publishes.

    Attributes:
        streams: those that run or wait there.
        slots: most that run at once; 0 until it has published anything.
    """

    streams: float = 0.0
    slots: float = 0.0


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

    A stream with an affinity key prefers the pool that had its key last, else the one that rendezvous
    hashing, weighted by slots, gives the key: so every ingress replica finds the same one. That holds as
    long as it has a free slot and is taken by no more than `LOAD_BOUND` times what all pools are, plus one
    stream. Everything else goes where the largest share of the slots is free.

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
            replica: it for replica, it in replicas.items() if load.get(replica, 0) < LOST_LOAD
        }
        if living:
            streams = sum(max(load.get(replica, 0), it.streams) for replica, it in living.items())
            # Nothing is published in a replica's first second.
            slots[name] = sum(it.slots or 1.0 for it in living.values())
            taken[name] = streams + (asked or {}).get(name, 0)
    by_room = sorted(slots, key=lambda name: (taken[name] / slots[name], -slots[name]))
    if alike:
        return sorted(by_room, key=lambda name: (name != home, name not in alike))
    if affinity is None or len(by_room) < 2:
        return by_room
    preferred = (
        home
        if home in slots
        else max(slots, key=lambda name: _weighted(name, affinity, slots[name]))
    )
    mean = sum(taken.values()) / sum(slots.values())
    most = min(LOAD_BOUND * mean * slots[preferred] + 1, slots[preferred] - 1)
    if taken[preferred] > most:
        return by_room
    return [preferred, *(name for name in by_room if name != preferred)]


def _weighted(pool: str, key: str, weight: float) -> float:
    """Return a pool's score for a key.

    Source: Schindelhauer, Schomaker 2005, "Weighted Distributed Hash Tables", the logarithmic method.
    """
    digest = hashlib.blake2b(f"{key}\0{pool}".encode(), digest_size=7).digest()
    uniform = (int.from_bytes(digest, "big") + 0.5) / (1 << 56)
    return -weight / math.log(uniform)
