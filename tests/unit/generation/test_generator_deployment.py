"""The Generator as Serve sees it: its health check is the engine's, and it hands back what it can't end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import pytest
from engine_driver import GatedBackend, request
from ray.serve._private.constants import HEALTH_CHECK_METHOD

from serve_app.errors import GeneratorLost
from serve_app.generation import deployment
from serve_app.generation.backends.simulated import SimulatedBackend
from serve_app.messages.generation import FinishReason
from serve_app.models.store import PreparedModel
from serve_app.routing.homes import Homes
from serve_app.routing.pool_choice import LOST_LOAD
from serve_app.settings import Settings

_Generator: Any = deployment.Generator.func_or_class  # type: ignore[attr-defined]


class Replica(_Generator):
    """One that is ended by the test and not by the garbage collector, which can't await."""

    def __del__(self) -> None:
        pass


@pytest.fixture
def backend() -> GatedBackend:
    return GatedBackend()


@pytest.fixture
def draining() -> list[Callable[[], None]]:
    """What is to be called when Serve begins to stop the replica."""
    return []


@pytest.fixture(autouse=True)
def _without_ray(
    monkeypatch: pytest.MonkeyPatch,
    bundled_int8: PreparedModel,
    backend: SimulatedBackend,
    draining: list[Callable[[], None]],
) -> None:
    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="r"))
    monkeypatch.setattr(deployment, "listen_on_node_address", lambda: None)
    monkeypatch.setattr(deployment, "when_draining", draining.append)
    monkeypatch.setattr(deployment.serve, "get_replica_context", lambda: context)
    monkeypatch.setattr(deployment, "served_model", lambda _: bundled_int8)
    monkeypatch.setattr(deployment, "_backend", lambda *_: backend)


async def construct(made: Any, **settings: float) -> None:
    limits = {"max_len": 64, "slots": 4, "max_cached_tokens": 256, "stall_timeout_s": 0.05}
    limits["drain_timeout_s"] = 0.05
    await made.__init__(Settings.load({"generator": limits | settings}))


@pytest.fixture
async def replica(backend: SimulatedBackend) -> AsyncIterator[Any]:
    """The deployment as Serve constructs it, without Ray."""
    made = object.__new__(Replica)
    # A step that waits to be let through would keep the constructor waiting.
    await construct(made, **({"warm_up_tokens": 0} if isinstance(backend, GatedBackend) else {}))
    yield made
    if isinstance(backend, GatedBackend):
        backend.let_go()
    await _Generator.__del__(made)


async def test_a_generator_whose_step_hangs_is_unhealthy(
    replica: Any, backend: GatedBackend
) -> None:
    check = getattr(replica, HEALTH_CHECK_METHOD)
    check()
    async with aclosing(replica.submit(request(), load={}, affinity=None)) as call:
        await anext(call)
        assert await asyncio.to_thread(backend.waiting.wait, 10)
        deadline = time.monotonic() + 10
        with pytest.raises(GeneratorLost, match="in one step"):  # noqa: PT012
            while time.monotonic() < deadline:
                check()


async def test_a_generator_that_is_stopped_hands_its_streams_back_over_the_open_call(
    replica: Any, backend: GatedBackend, draining: list[Callable[[], None]]
) -> None:
    async with aclosing(replica.submit(request(max_tokens=50), load={}, affinity=None)) as call:
        await anext(call)
        (drain,) = draining
        drain()
        await asyncio.sleep(0.1)  # its time to end streams is over before a step is
        backend.permits.release(3)
        ends: list[FinishReason] = []
        async with asyncio.timeout(10):
            while not ends:
                ends += [finished.reason for finished in (await anext(call)).finished]
                backend.permits.release()
        assert ends == [FinishReason.HANDED_BACK]
        with pytest.raises(GeneratorLost, match="stopping"):
            await anext(replica.submit(request(), load={}, affinity=None))


@pytest.mark.parametrize("backend", [SimulatedBackend()])
async def test_routers_are_told_of_streams_slots_and_the_latest_keys(
    replica: Any, draining: list[Callable[[], None]]
) -> None:
    told = replica.record_routing_stats()
    assert (told["slots"], told["latest"]) == (4.0, b"")
    call = replica.submit(request(max_tokens=2), load={}, affinity="k")
    await anext(call)
    told = replica.record_routing_stats()
    assert Homes().find("k", [("it", told["latest"])]) == "it"
    assert 0.0 <= told["streams"] <= 2.0  # the first may be that of the start
    await call.aclose()
    # One that stops has nothing to do, and is to be avoided all the same.
    (drain,) = draining
    drain()
    assert replica.record_routing_stats()["streams"] == LOST_LOAD


@pytest.mark.parametrize("backend", [SimulatedBackend()])
async def test_frames_say_how_full_the_generator_is(
    replica: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployment, "ROOM_EVERY_S", 0.0)
    config = replica._engine.config
    asked = request(max_tokens=40)
    async with aclosing(replica.submit(asked, load={}, affinity=None)) as call:
        await anext(call)
        first = (await anext(call)).room
        assert (first.places, first.others) == (config.slots + config.max_queued, 0)
        monkeypatch.setattr(deployment, "ROOM_EVERY_S", 100.0)
        assert (await anext(call)).room is None  # it is no news


@pytest.mark.parametrize("backend", [SimulatedBackend()])
async def test_a_generator_has_computed_a_reply_before_it_takes_requests(replica: Any) -> None:
    stats = await replica.stats()
    assert stats["generated_total"] > 0
    assert stats["prefilled_total"] > 0
    assert replica._channels.subscribers == 0


class BrokenBackend(SimulatedBackend):
    def step(self, *_: Any) -> Any:
        message = "no logits today"
        raise RuntimeError(message)


@pytest.mark.parametrize("backend", [BrokenBackend()])
async def test_a_generator_that_can_compute_nothing_does_not_start() -> None:
    made = object.__new__(Replica)
    with pytest.raises(GeneratorLost, match="failed while computing"):
        await construct(made)
    await asyncio.to_thread(made._engine.stop, 0.0)
