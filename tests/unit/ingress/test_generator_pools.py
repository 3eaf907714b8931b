"""Several pools of a model as one: who gets a stream, and what becomes of a refusal or a death."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import pytest

from serve_app.errors import GeneratorStopping, InvalidRequest, QueueFull
from serve_app.ingress.generator_client import GeneratorClient
from serve_app.ingress.generator_pools import GeneratorPools
from serve_app.messages.generation import Admitted, Frame, GenerateRequest, SamplingParams
from serve_app.routing.homes import LatestKeys
from serve_app.routing.pool_choice import SeenReplica


class Pool:
    """A pool of one replica, which admits what it is not told to refuse."""

    def __init__(self, replica: str, slots: int = 4) -> None:
        self.replica = replica
        self.slots = slots
        self.refusal: Exception | None = None
        self.taken: list[GenerateRequest] = []
        self.cancelled: list[str] = []
        self.ended = asyncio.Event()
        # Set once streams that were taken may be admitted.
        self.let = asyncio.Event()
        self.let.set()
        self.closed = 0

    async def submit(
        self,
        request: GenerateRequest,
        load: Mapping[str, int],
    ) -> AsyncGenerator[Admitted | Frame, None]:
        if self.refusal is not None:
            raise self.refusal
        self.taken.append(request)
        await self.let.wait()
        try:
            yield Admitted(self.replica, carries_frames=True)
            await self.ended.wait()
        finally:
            self.closed += 1

    async def cancel(self, request_id: str, replica: str) -> None:
        assert replica == self.replica
        self.cancelled.append(request_id)

    async def stats(self) -> dict[str, float]:
        return {"slots": self.slots}


class Two:
    """Two pools and what is seen of them."""

    def __init__(self) -> None:
        self.pools = {"gpu": Pool("g"), "cpu": Pool("c")}
        self.there = {"gpu", "cpu"}
        self.latest: dict[str, bytes] = {}
        self.both = GeneratorPools(self.pools, {"gpu": "fp16", "cpu": "int8"}, seen=self.seen)
        self._names = 0

    def seen(self, name: str) -> Mapping[str, SeenReplica]:
        pool = self.pools[name]
        seen = SeenReplica(0, pool.slots, self.latest.get(name, b""))
        return {pool.replica: seen} if name in self.there else {}

    def request(self, affinity: str | None, **given: Any) -> GenerateRequest:
        self._names += 1
        sampling = SamplingParams(max_tokens=4, seed=0)
        return GenerateRequest(
            f"request-{self._names}", "", 0, (1,), sampling, affinity=affinity, **given
        )

    async def taker(self, affinity: str | None, **given: Any) -> str:
        """Submit a stream, and return the pool that took it."""
        items = self.both.submit(self.request(affinity, **given), {})
        admitted = await anext(items)
        await items.aclose()
        assert isinstance(admitted, Admitted)
        return {"g": "gpu", "c": "cpu"}[admitted.replica]


async def test_both_pools_share_conversations_and_each_keeps_its_own() -> None:
    two = Two()
    takers = {f"key-{number}": await two.taker(f"key-{number}") for number in range(40)}
    assert {*takers.values()} == {"gpu", "cpu"}
    for key, pool in takers.items():
        assert await two.taker(key) == pool


@pytest.mark.parametrize("pool", ["gpu", "cpu"])
async def test_a_conversation_that_another_ingress_sent_to_a_pool_stays_there(pool: str) -> None:
    two, kept = Two(), LatestKeys()
    keys = [f"key-{number}" for number in range(20)]
    for key in keys:
        kept.add(key)
    two.latest = {pool: kept.told()}
    assert {await two.taker(key) for key in keys} == {pool}


@pytest.mark.parametrize("refusal", [QueueFull("full"), GeneratorStopping("stops")])
async def test_a_refusal_by_one_pool_is_none_while_the_other_has_room(refusal: Exception) -> None:
    two = Two()
    home = await two.taker("k")
    two.pools[home].refusal = refusal
    other = await two.taker("k")
    assert other != home
    # Its prefix is there now.
    two.pools[home].refusal = None
    assert await two.taker("k") == other


async def test_when_all_refuse_the_stream_is_refused() -> None:
    two = Two()
    for pool in two.pools.values():
        pool.refusal = QueueFull("full")
    with pytest.raises(QueueFull):
        await two.taker("k")


async def test_a_request_that_is_wrong_is_wrong_everywhere() -> None:
    two = Two()
    for pool in two.pools.values():
        pool.refusal = InvalidRequest("no")
    with pytest.raises(InvalidRequest):
        await two.taker("k")
    assert [pool.taken for pool in two.pools.values()] == [[], []]


async def test_a_pool_that_dies_hands_its_conversations_to_the_other() -> None:
    two = Two()
    home = await two.taker("k")
    two.there.discard(home)
    other = await two.taker("k", moves=1)
    assert other != home
    # No way back for this reply, nor for its next turn, whose prefix is here.
    two.there.add(home)
    assert await two.taker("k") == other


async def test_where_no_pool_has_a_replica_the_model_s_own_is_waited_for() -> None:
    two = Two()
    two.there.clear()
    assert await two.taker("k") == "gpu"


async def test_a_cancellation_goes_to_the_pool_that_has_the_replica() -> None:
    two = Two()
    home = await two.taker("k")
    pool = two.pools[home]
    await two.both.cancel("request-1", pool.replica)
    await two.both.cancel("request-1", "nobody")
    assert [each.cancelled for each in two.pools.values() if each is not pool] == [[]]
    assert pool.cancelled == ["request-1"]


async def test_what_is_no_longer_read_ends_at_the_pool_at_once() -> None:
    two = Two()
    home = await two.taker("k")
    assert two.pools[home].closed == 1


async def test_numbers_are_those_of_a_pool_that_is_there() -> None:
    two = Two()
    two.pools["cpu"].slots = 9
    two.there = {"cpu"}
    assert (await two.both.stats())["slots"] == 9


async def test_a_reply_moves_to_the_other_pool_when_its_own_dies() -> None:
    two = Two()
    client = GeneratorClient(two.both, silence_s=30.0, max_moves=1)
    stream = await client.open(two.request("k"))
    home = next(pool for pool in two.pools.values() if pool.taken)
    (other,) = (pool for pool in two.pools.values() if pool is not home)
    two.there = {name for name, pool in two.pools.items() if pool is other}
    home.ended.set()  # its call ends, and with it the replica
    async with asyncio.timeout(5):
        while not other.taken:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert other.taken[0].moves == 1
    assert not stream.ended
    client.close(stream)
    tasks = list(client._tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_burst_is_shared_among_pools_by_their_slots_before_any_of_it_is_admitted() -> None:
    two = Two()
    two.pools["gpu"].slots, two.pools["cpu"].slots = 30, 10
    let = asyncio.Event()
    for pool in two.pools.values():
        pool.let = let
    streams = [two.both.submit(two.request(None), {}) for _ in range(40)]
    admissions = [asyncio.ensure_future(anext(items)) for items in streams]
    async with asyncio.timeout(5):
        while sum(len(pool.taken) for pool in two.pools.values()) < 40:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert [len(pool.taken) for pool in two.pools.values()] == [30, 10]
    let.set()
    await asyncio.gather(*admissions)
    # From here on they are in the caller's own count, and here no longer.
    assert not +two.both._asked
    for items in streams:
        await items.aclose()
    assert not +two.both._asked


async def test_a_refused_stream_is_no_longer_asked_for() -> None:
    two = Two()
    for pool in two.pools.values():
        pool.refusal = QueueFull("full")
    with pytest.raises(QueueFull):
        await two.taker(None)
    assert not +two.both._asked
