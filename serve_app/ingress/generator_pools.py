"""Several pools of generators of one model, called as if they were one."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Protocol

from serve_app.errors import GeneratorLost, Overloaded
from serve_app.messages.generation import Admitted, Frame, GenerateRequest
from serve_app.routing.homes import Homes
from serve_app.routing.pool_choice import SeenReplica, rank_pools, seen_pool

__all__ = ["GeneratorPools", "PoolPort"]

# Replicas whose pool is remembered; one takes some hundred bytes.
_MOST_REPLICAS = 4096


class PoolPort(Protocol):
    """One pool as the ingress calls it."""

    def submit(
        self, request: GenerateRequest, load: Mapping[str, int]
    ) -> AsyncGenerator[Admitted | Frame, None]:
        """Open a stream on the replica that routing chooses."""

    async def cancel(self, request_id: str, replica: str) -> None:
        """End a stream early."""

    async def stats(self) -> dict[str, float]:
        """Return what one of the replicas says of itself."""


class GeneratorPools:
    """The pools of one model; implements `GeneratorPort`.

    A pool that refuses a stream, for its queue is full or its replica stops, is no reason to refuse it while
    another one has room.

    Args:
        pools: at least one, by the names of their deployments.
        kinds: what each computes with. Pools of one kind go on with a reply exactly; others go on with it
            as their own weights would, which beats an end.
        seen: see `seen_pool`.
    """

    def __init__(
        self,
        pools: Mapping[str, PoolPort],
        kinds: Mapping[str, object],
        *,
        seen: Callable[[str], Mapping[str, SeenReplica]] = seen_pool,
    ) -> None:
        self._pools = pools
        self._kinds = kinds
        self._seen = seen
        self._homes = Homes()
        # Where each replica is, least recently used first.
        self._pool_of: OrderedDict[str, str] = OrderedDict()
        # Streams that a pool has yet to answer for: the caller's count doesn't have them.
        self._asked: Counter[str] = Counter()

    async def submit(
        self, request: GenerateRequest, load: Mapping[str, int]
    ) -> AsyncGenerator[Admitted | Frame, None]:
        """Open a stream on a replica of the pool that suits it best; see `rank_pools`."""
        ranked = self._ranked(request, load)
        for place, name in enumerate(ranked, 1):
            admitted = False
            self._asked[name] += 1
            try:
                async with aclosing(self._pools[name].submit(request, load)) as items:
                    async for item in items:
                        if isinstance(item, Admitted) and not admitted:
                            admitted = True
                            self._asked[name] -= 1
                            self._remember(request.affinity, name, item.replica)
                        yield item
                    return
            except (Overloaded, GeneratorLost):
                if admitted or place == len(ranked):
                    raise
            finally:
                if not admitted:
                    self._asked[name] -= 1

    async def cancel(self, request_id: str, replica: str) -> None:
        """End a stream early, in the pool that has it."""
        name = self._pool_of.get(replica)
        if name is not None:
            await self._pools[name].cancel(request_id, replica)

    async def stats(self) -> dict[str, float]:
        """Return what one of the replicas says of itself, in the first pool that has any."""
        living = [name for name in self._pools if self._seen(name)]
        return await self._pools[(living or list(self._pools))[0]].stats()

    def _ranked(self, request: GenerateRequest, load: Mapping[str, int]) -> list[str]:
        pools = {name: self._seen(name) for name in self._pools}
        affinity, home = request.affinity, None
        alike: list[str] = []
        if affinity and not request.moves:
            told = ((name, it.latest) for name, seen in pools.items() for it in seen.values())
            home = self._homes.find(affinity, told)
        elif affinity and (home := self._homes.sent(affinity)) is not None:
            # What it has of its reply was computed there.
            kind = self._kinds[home]
            alike = [name for name in self._pools if self._kinds[name] == kind]
        ranked = rank_pools(pools, affinity, load, asked=self._asked, home=home, alike=alike)
        # Where no pool has a replica yet, it is the model's own that is waited for.
        return ranked or [next(iter(self._pools))]

    def _remember(self, affinity: str | None, name: str, replica: str) -> None:
        self._pool_of[replica] = name
        self._pool_of.move_to_end(replica)
        if len(self._pool_of) > _MOST_REPLICAS:
            self._pool_of.popitem(last=False)
        if affinity:
            self._homes.remember(affinity, name)
