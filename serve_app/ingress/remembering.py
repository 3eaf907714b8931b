"""What is done for the memory of conversations once a turn is stored, beside everything else.

Facts are written, and turns that left the prompt are summarised by the model, behind every request that
waits for it. Whatever fails here loses nothing: the turns stay stored, and the next turn that finds some
of them unsummarised asks for the summary again.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Coroutine, Sequence
from typing import Any

from serve_app.errors import ParleyError
from serve_app.ingress.models import Models
from serve_app.ingress.replies import Generation
from serve_app.ingress.stores import Stores
from serve_app.messages.generation import FinishReason, GenerateRequest, SamplingParams
from serve_app.state.profiles import NewFact
from serve_app.telemetry import metrics
from serve_app.telemetry.origin import Origin, detached

__all__ = ["LAST_PRIORITY", "Remembering"]

logger = logging.getLogger("ray.serve")

LAST_PRIORITY = 1000
"""Behind every request of a client, whose lowest priority is 100."""

_LIMIT_S = 120.0
_MOST_AT_ONCE = 2
_MOST_WAITING = 64


class Remembering:
    """Remembers for one ingress replica, a few summaries at a time.

    Args:
        models: generate summaries.
        dialogue: plans them; has `plan_summary`.
        stores: where they are kept.
    """

    def __init__(self, models: Models, dialogue: Any, stores: Stores) -> None:
        self._models = models
        self._dialogue = dialogue
        self._stores = stores
        self._room = asyncio.Semaphore(_MOST_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._conversations: set[tuple[str, str]] = set()

    def learn(self, tenant: str, user: str, facts: Sequence[NewFact], *, response: str) -> None:
        """Write what a stored turn has said of its user, in a while."""
        if facts:
            origin = Origin(request=response, tenant=tenant)
            self._spawn(self._learn(tenant, user, facts, response), origin)

    def summarise(self, tenant: str, conversation: str, item: str, model: str) -> None:
        """Summarise a conversation up to an item, in a while; not if too much waits already.

        Args:
            tenant: whose conversation it is.
            conversation: its id.
            item: id of the last item that left the prompt.
            model: key of the model that answers in it, which summarises it too.
        """
        place = (tenant, conversation)
        if place in self._conversations or len(self._conversations) >= _MOST_WAITING:
            return
        self._conversations.add(place)
        origin = Origin(conversation=conversation, tenant=tenant)
        self._spawn(self._summarise(tenant, conversation, item, model), origin)

    @property
    def busy(self) -> bool:
        """Whether anything is under way."""
        return bool(self._tasks)

    async def drain(self) -> None:
        """Wait until nothing is under way."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _learn(self, tenant: str, user: str, facts: Sequence[NewFact], response: str) -> None:
        try:
            await self._stores.profiles.learn(tenant, user, facts, response=response)
            metrics.MEMORY_TASKS.labels("facts", "kept").inc()
        except ParleyError as error:
            metrics.MEMORY_TASKS.labels("facts", "failed").inc()
            logger.warning("What %s says of its user was not kept: %s", response, error.code)

    async def _summarise(self, tenant: str, conversation: str, item: str, model: str) -> None:
        try:
            async with self._room:
                await self._summary(tenant, conversation, item, model)
        except ParleyError as error:
            metrics.MEMORY_TASKS.labels("summary", "failed").inc()
            logger.info("%s is summarised another time: %s", conversation, error.code)
        finally:
            self._conversations.discard((tenant, conversation))

    async def _summary(self, tenant: str, conversation: str, item: str, model: str) -> None:
        planned = await self._dialogue.plan_summary(tenant, conversation, item, model)
        if planned is None:
            return
        # Not measured: it waits behind every request, and nobody waits for it.
        generation = Generation(limit_s=_LIMIT_S, measured=False)
        request = GenerateRequest(
            request_id=f"summary_{secrets.token_hex(12)}",
            subscriber="",
            stream=0,
            prompt=planned.prompt,
            sampling=SamplingParams(
                max_tokens=planned.max_tokens, seed=0, temperature=0.0, repetition_penalty=1.1
            ),
            priority=LAST_PRIORITY,
        )
        await generation.open(self._models.of(model), [request], ())
        try:
            (reply,) = await generation.replies()
        finally:
            generation.close()
        text = _whole_sentences(reply.text, cut=reply.reason is FinishReason.LENGTH)
        if text:
            await self._stores.conversations.summaries.keep(
                tenant, conversation, item, text, forgotten=planned.forgotten
            )
            metrics.MEMORY_TASKS.labels("summary", "kept").inc()

    def _spawn(self, work: Coroutine[Any, Any, None], origin: Origin) -> None:
        # A context of its own: Serve cancels what was called on behalf of a request that has ended.
        task = asyncio.get_running_loop().create_task(work, context=detached(origin))
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("Remembering failed.", exc_info=error)


def _whole_sentences(text: str, *, cut: bool) -> str:
    """Return a text without the sentence that its token limit has cut, if it has another."""
    text = text.strip()
    if not cut:
        return text
    end = max(text.rfind(mark) for mark in (". ", "! ", "? ", ".\n", "。"))
    return text[: end + 1] if end > 0 else text
