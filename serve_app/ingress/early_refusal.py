"""Refusing what no generator has room for, before anything is done for it.

Under overload most requests are refused, so what a refusal costs is taken from those who are answered.
Serve's handling of a request, the application's layers and a route cost milliseconds of the ingress'
one thread; this costs a fraction of one.
"""

from __future__ import annotations

import logging
import uuid

from starlette.types import Scope, Send

from serve_app.errors import ParleyError, QueueFull
from serve_app.ingress.gate import answer_with_error, tenant_of_key
from serve_app.ingress.models import Models
from serve_app.state.keys import KeyRing
from serve_app.telemetry import metrics, tracing
from serve_app.telemetry.outcomes import count_error

__all__ = ["GENERATING_PATHS", "EarlyRefusal"]

logger = logging.getLogger("ray.serve")

GENERATING_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses"})
"""Paths to which a POST needs a place at a generator."""


class EarlyRefusal:
    """Answers in the application's place while no model has room.

    Args:
        models: those that are served.
        keys: API keys: who has none is not told how full it is here.
    """

    def __init__(self, models: Models, keys: KeyRing) -> None:
        self._models = models
        self._keys = keys

    async def refuses(self, scope: Scope, send: Send) -> bool:
        """Refuse a request, if the application would refuse it for want of room; tell whether that was so."""
        if scope["method"] != "POST" or scope["path"] not in GENERATING_PATHS:
            return False
        try:
            self._models.check_room()
        except QueueFull as full:
            refusal = full
        else:
            return False
        # The application tells traces of it, and whoever has no key what is wrong with that.
        if tracing.tracing() or not self._known(scope):
            return False
        request = str(uuid.uuid4())
        count_error(refusal)
        metrics.REQUESTS.labels(scope["path"], refusal.status).inc()
        logger.debug("POST %s (%s): %d %s", scope["path"], request, refusal.status, refusal.code)
        await answer_with_error(refusal, send, {"x-request-id": request})
        return True

    def _known(self, scope: Scope) -> bool:
        try:
            tenant_of_key(self._keys, scope)
        except ParleyError:
            return False
        return True
