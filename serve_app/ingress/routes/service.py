"""What operators and clients ask about the service itself."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Response

from serve_app import __version__
from serve_app.api.models import model_list, model_object
from serve_app.errors import ParleyError
from serve_app.ingress.json_response import JsonResponse
from serve_app.ingress.models import ModelService
from serve_app.ingress.services import Services
from serve_app.routing.pool_choice import seen_pool
from serve_app.telemetry.node_endpoint import CONTENT_TYPE
from serve_app.telemetry.process_metrics import exposition

__all__ = ["service_routes"]


# Requests wait longer than this for a part that is restarting; who asks whether they would have to
# wants an answer.
_READY_S = 15.0


def service_routes(services: Services) -> APIRouter:
    """Return health, readiness, version, metrics and models."""
    router = APIRouter()
    first = services.models.first

    @router.get("/health")
    async def health() -> Response:
        return JsonResponse({"status": "ok"})

    @router.get("/ready")
    async def ready() -> Response:
        """Say whether a stateless request can be served; what needs Redis may be degraded."""
        reason = "A part does not answer; it may be restarting."
        try:
            async with asyncio.timeout(_READY_S):
                generator = await first.generator_stats.stats()
                redis = await services.dialogue.state_reachable()
                await first.tokenizer.encode("ready")
        except (ParleyError, TimeoutError) as error:
            return JsonResponse(
                {
                    "status": "not ready",
                    "reason": error.message if isinstance(error, ParleyError) else reason,
                },
                status_code=503,
                headers={"retry-after": "1"},
            )
        return JsonResponse(
            {
                "status": "ready" if redis else "degraded",
                "model": first.name,
                "redis": "up" if redis else "down",
                "generator": generator,
                "models": {model.name: _pools(model) for model in services.models},
            }
        )

    @router.get("/version")
    async def version() -> Response:
        return JsonResponse({"version": __version__})

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(
            await asyncio.to_thread(exposition),
            media_type=CONTENT_TYPE,
        )

    @router.get("/v1/models")
    async def list_models() -> Response:
        return JsonResponse(model_list(model.info for model in services.models))

    @router.get("/v1/models/{name:path}")
    async def get_model(name: str) -> Response:
        return JsonResponse(model_object(services.models.named(name).info))

    return router


def _pools(model: ModelService) -> dict[str, dict[str, float]]:
    """Return what is seen of a model's pools, without asking one: that would start an idle one's replica."""
    return {
        name: {
            "replicas": len(replicas := seen_pool(name)),
            "streams": sum(replica.streams for replica in replicas.values()),
            "slots": sum(replica.slots for replica in replicas.values()),
        }
        for name in model.pools
    }
