"""Calls to unary deployments, with a time limit and another try when a replica dies."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from serve_app.errors import Overloaded, ParleyError

__all__ = ["answer_of"]

Answer = TypeVar("Answer")
TRIES = 4
FIRST_PAUSE_S = 0.1


async def answer_of(
    call: Callable[[], Awaitable[Answer]],
    *,
    timeout_s: float,
    unanswered: ParleyError | None = None,
) -> Answer:
    """Make a call that may be made twice, and return its answer.

    Args:
        call: makes it.
        timeout_s: seconds for all tries together.
        unanswered: what to raise where the call may have been carried out and no answer tells;
            None for a call that leaves nothing behind.

    Raises:
        Overloaded: the deployment's queue is full, no replica is up, or none answered in time.
        ParleyError: whatever the deployment refused the call with.
    """
    died = False
    try:
        async with asyncio.timeout(timeout_s):
            for attempt in range(TRIES):
                try:
                    return await call()
                except RayActorError:
                    # The replica died with the call; the next try finds another or a new one.
                    died = True
                    if attempt == TRIES - 1:
                        raise
                    await asyncio.sleep(FIRST_PAUSE_S * 2**attempt)
            raise AssertionError
    except ParleyError as error:
        if died and unanswered is not None:  # it says nothing about the try before
            raise unanswered from error
        raise
    except (TimeoutError, RayActorError, BackPressureError, DeploymentUnavailableError) as error:
        if unanswered is not None and (died or isinstance(error, TimeoutError)):
            raise unanswered from error
        message = "The service is busy or restarting; try again shortly."
        raise Overloaded(message, retry_after=1.0) from error
