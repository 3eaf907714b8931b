"""The responses that this ingress replica is making."""

from __future__ import annotations

import asyncio

from serve_app.ingress.asked import Asked
from serve_app.ingress.response_run import ResponseRun
from serve_app.ingress.services import Services

__all__ = ["Runs"]


class Runs:
    """Starts runs and knows those under way.

    Args:
        services: what the replica has at hand.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._running: dict[str, ResponseRun] = {}

    def start(self, asked: Asked) -> ResponseRun:
        """Begin to make a response; call it from the event loop."""
        name = asked.response  # the run may take another one
        run = ResponseRun(self._services, asked, over=lambda run: self._forget(name, run))
        self._running[name] = run
        return run

    def find(self, tenant: str, response: str) -> ResponseRun | None:
        """Return a tenant's run if it is under way here and outlives its reader."""
        run = self._running.get(response)
        return run if run and run.tenant == tenant and run.outlives_reader else None

    def told_here(self, tenant: str, response: str) -> ResponseRun | None:
        """Return a tenant's run if what is told of its response is told by it.

        A run that has said nothing may never do so: one that is refused has no last event. Until then
        the journal tells, and the record.
        """
        run = self.find(tenant, response)
        return run if run is not None and run.events else None

    async def drain(self) -> None:
        """Wait until none is under way."""
        while self._running:
            await asyncio.gather(*(run.wait() for run in list(self._running.values())))

    def _forget(self, name: str, run: ResponseRun) -> None:
        if self._running.get(name) is run:
            del self._running[name]
