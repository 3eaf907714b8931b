"""The Generator deployment: a shell around `Engine`."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import replace

import ray
from ray import serve
from ray.serve.config import RequestRouterConfig

from serve_app.errors import GeneratorLost
from serve_app.generation.backends.base import Backend
from serve_app.generation.backends.opening import open_backend
from serve_app.generation.backends.simulated import SimulatedBackend
from serve_app.generation.channels import FrameChannels
from serve_app.generation.engine import Engine, EngineConfig
from serve_app.generation.engine_report import EngineReport
from serve_app.generation.forecast import WorkRate, predicted_ttft_s
from serve_app.generation.stream_spans import StreamSpans
from serve_app.messages.generation import (
    Admitted,
    FinishReason,
    Frame,
    GenerateRequest,
    SamplingParams,
)
from serve_app.models.store import PreparedModel
from serve_app.models.tokenizer_files import TOKENIZER_FILE
from serve_app.routing.draining import when_draining
from serve_app.routing.homes import LatestKeys
from serve_app.routing.listening import listen_on_node_address
from serve_app.routing.observing import observe_replica
from serve_app.routing.pool_choice import LOST_LOAD
from serve_app.routing.serving import served_model, tokenizer_info
from serve_app.settings import Settings

__all__ = ["Generator"]

GAUGES_EVERY_S = 1.0
ROOM_EVERY_S = 0.1
"""How often frames say how full this replica is. A subscriber counts its own streams itself; it is the
others' that it has to be told of."""
_WARM_UP = "warm-up"
_WARM_UP_REPLY = 4


@serve.deployment(
    name="Generator",
    request_router_config=RequestRouterConfig(
        request_router_class="serve_app.routing.router:GeneratorRouter",
        request_routing_stats_period_s=1.0,
    ),
)
class Generator:
    """One engine, its open channels, and what it says of itself."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Serve awaits it
        listen_on_node_address()
        observe_replica("Generator", settings)
        self._spans = StreamSpans()
        self._latest = LatestKeys()
        self._settings = settings.generator
        self._replica = serve.get_replica_context().replica_id.unique_id
        self._engine = await asyncio.to_thread(self._load, settings)
        self._channels = FrameChannels(asyncio.get_running_loop(), self._engine.cancel_subscriber)
        self._engine.start()
        # Before Serve's own limit, so that what doesn't end in time is handed back and not lost.
        when_draining(lambda: self._engine.drain(self._settings.drain_timeout_s))
        await self._warm_up()
        self._work = WorkRate()
        self._report = EngineReport(
            tokenizer_info(served_model(settings), settings).model, self._engine.config
        )
        self._gauges = asyncio.create_task(self._keep_gauges())

    async def submit(
        self,
        request: GenerateRequest,
        *,
        load: Mapping[str, int],  # noqa: ARG002  (read by the router)
        affinity: str | None,
    ) -> AsyncIterator[Admitted | Frame]:
        """Take a stream; then carry the subscriber's frames unless another call does already."""
        self._spans.begin(request)
        try:
            self._engine.submit(request)
        except BaseException:
            self._spans.forget(request)
            raise
        if affinity:
            self._latest.add(affinity)
        # No await between these two: frames are dispatched on this loop, so none can be missed.
        carries = self._channels.open_stream(request.subscriber, request.stream)
        try:
            yield Admitted(self._replica, carries)
        except BaseException:
            # The caller is gone before it knew of the stream: nobody else will cancel it.
            self._engine.cancel(request.request_id)
            if carries:
                self._channels.close(request.subscriber)
            raise
        if carries:
            told_at = -math.inf
            async for frame in self._channels.frames(request.subscriber):
                now = time.monotonic()
                if now - told_at < ROOM_EVERY_S:
                    yield frame
                else:
                    told_at = now
                    yield replace(frame, room=self._engine.room(request.subscriber))

    async def cancel(self, request_id: str, *, replica: str) -> None:  # noqa: ARG002  (read by the router)
        """End a stream at the next step; one that is not here, or no longer, is no error."""
        self._engine.cancel(request_id)

    async def stats(self) -> dict[str, float]:
        """Return the numbers that operators and the autoscaler look at."""
        stats = self._engine.stats()
        return {
            "running": stats.running,
            "waiting": stats.waiting,
            "slots": stats.slots,
            "free_slots": stats.free_slots,
            "cached_tokens": stats.cached_tokens,
            "generated_total": stats.generated_total,
            "prefilled_total": stats.prefilled_total,
            "prefix_hits_total": stats.prefix_hits_total,
            "drafted_total": stats.drafted_total,
            "draft_hits_total": stats.draft_hits_total,
        }

    def record_routing_stats(self) -> dict[str, float | bytes]:
        """Tell routers how many streams this replica has and can run at once, and whose it had last."""
        stats = self._engine.stats()
        # One that stops has fewer and fewer streams, and takes none.
        streams = LOST_LOAD if self._engine.stopping else stats.running + stats.waiting
        return {
            "streams": float(streams),
            "slots": float(stats.slots),
            "latest": self._latest.told(),
        }

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Tell the autoscaler what `ScaleByWork` decides by."""
        stats = self._engine.stats()
        return {
            "streams": float(stats.running + stats.waiting),
            "slots": float(stats.slots),
            "work": self._work.since_last(stats),
            "queued_tokens": float(stats.queued_prompt_tokens),
            "predicted_ttft_s": predicted_ttft_s(stats),
        }

    def check_health(self) -> None:
        """Raise when the step loop is dead or stuck."""
        self._engine.check(self._settings.stall_timeout_s)

    async def __del__(self) -> None:
        """Let running replies end or hand them back, then stop."""
        if hasattr(self, "_gauges"):
            self._gauges.cancel()
            await asyncio.to_thread(self._engine.stop, self._settings.drain_timeout_s)

    def _load(self, settings: Settings) -> Engine:
        model = served_model(settings)
        info = tokenizer_info(model, settings)
        return Engine(
            _backend(model, settings),
            EngineConfig.of(settings.generator, max_len=info.context_length),
            eos_token_ids=info.eos_token_ids,
            deliver=self._deliver,
        )

    def _deliver(self, frames: Mapping[str, Frame]) -> None:
        self._spans.deliver(frames)
        self._channels.deliver(frames)

    async def _warm_up(self) -> None:
        """Compute one short reply, since Serve sends requests as soon as the constructor returns.

        The first step of a process maps the weights' pages, starts threads and fills the runtime's
        caches; whoever came first would wait for all of that.

        Raises:
            GeneratorLost: the reply can't be computed: the replica doesn't start.
        """
        tokens = min(self._settings.warm_up_tokens, self._engine.config.max_len - _WARM_UP_REPLY)
        if tokens < 1:
            return
        request = GenerateRequest(
            request_id=_WARM_UP,
            subscriber=_WARM_UP,
            stream=0,
            prompt=tuple(range(tokens)),
            sampling=SamplingParams(max_tokens=_WARM_UP_REPLY, seed=0, ignore_eos=True),
        )
        self._engine.submit(request)
        self._channels.open_stream(_WARM_UP, request.stream)
        async with aclosing(self._channels.frames(_WARM_UP)) as frames:
            async for frame in frames:
                for finished in frame.finished:
                    if finished.reason is FinishReason.ERROR:
                        raise GeneratorLost(finished.error_message or "The first step failed.")
                    return

    async def _keep_gauges(self) -> None:
        while True:
            self._report.write(self._engine.stats())
            await asyncio.sleep(GAUGES_EVERY_S)


def _backend(model: PreparedModel, settings: Settings) -> Backend:
    wanted = settings.generator
    interface = model.manifest.interface
    if wanted.backend == "simulated":
        return SimulatedBackend.speaking(
            model.path / TOKENIZER_FILE,
            vocab_size=interface.vocab_size,
            context_length=interface.context_length,
        )
    return open_backend(
        model,
        threads=wanted.threads or _own_cpus(),
        engines=settings.model.engines,
        gpu_weights_mb=wanted.gpu_weights_mb,
        gpu_share=_own_gpu_share(),
    )


def _own_cpus() -> int:
    """Return the CPUs that Ray gave this replica; below one, all that the machine has."""
    given = ray.get_runtime_context().get_assigned_resources().get("CPU", 0.0)
    available = len(os.sched_getaffinity(0))
    return min(int(given), available) if given >= 1 else available


def _own_gpu_share() -> float:
    """Return the part of a GPU that Ray gave this replica; a whole one where it gave none or several."""
    given = ray.get_runtime_context().get_assigned_resources().get("GPU", 0.0)
    return given if 0 < given < 1 else 1.0
