"""POST /v1/responses: a turn, of a stored conversation or on its own."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response

from serve_app.api.body import parse_body
from serve_app.api.ids import message_id, response_id
from serve_app.api.items import new_items
from serve_app.api.reply import Extras, Reply
from serve_app.api.response_stream import ResponseStreamEncoder
from serve_app.api.responses import ResponseObject, ResponseRequest
from serve_app.ingress.event_stream import EventStream
from serve_app.ingress.gate import tenant_of
from serve_app.ingress.json_response import JsonResponse
from serve_app.ingress.replies import Generation
from serve_app.ingress.services import Services, random_seed
from serve_app.messages.dialogue import CommitTurn, Item, PlanTurn
from serve_app.messages.generation import FinishReason, GenerateRequest

__all__ = ["response_routes"]


@dataclass(frozen=True, slots=True)
class _Turn:
    """A turn under way, and how it will be stored."""

    services: Services
    tenant: str
    request: ResponseRequest
    response: str
    item: str
    created: int

    async def commit(self, reply: Reply) -> None:
        """Store the turn, if it belongs to a conversation, before the client is told it is done."""
        conversation = self.request.conversation_id
        if conversation is None:
            return
        answer = Item(
            id=self.item,
            role="assistant",
            content=reply.text,
            status="incomplete" if reply.reason is FinishReason.LENGTH else "completed",
            response=self.response,
            created_at=int(time.time()),
        )
        asked = new_items(self.request.to_messages(), created=self.created, response=self.response)
        await self.services.dialogue.commit(
            CommitTurn(self.tenant, conversation, self.response, (*asked, answer))
        )


def response_routes(services: Services) -> APIRouter:
    """Return the responses API."""
    router = APIRouter()
    limits = services.settings.ingress

    @router.post("/v1/responses")
    async def create_response(request: Request) -> Response:
        generation = services.generation()
        body = parse_body(await request.body(), ResponseRequest, max_depth=limits.max_json_depth)
        services.check_model(body.model)
        turn = _Turn(
            services,
            tenant_of(request.scope),
            body,
            response_id(),
            message_id(),
            int(time.time()),
        )
        async with generation.in_time(body.timeout):
            plan = await services.dialogue.plan(
                PlanTurn(
                    tenant=turn.tenant,
                    messages=body.to_messages(),
                    conversation=body.conversation_id,
                    instructions=body.instructions,
                    max_tokens=body.token_limit,
                    truncate=body.truncation == "auto",
                )
            )
        generate = GenerateRequest(
            request_id=turn.response,
            subscriber="",
            stream=0,
            prompt=plan.prompt,
            sampling=body.sampling(
                max_tokens=plan.max_tokens,
                vocab_size=services.model.vocab_size,
                defaults=services.sampling_defaults,
                seed=random_seed(),
            ),
            priority=body.priority,
            affinity=plan.affinity,
        )
        written = ResponseObject(
            body,
            response=turn.response,
            item=turn.item,
            model=services.model.model,
            created=turn.created,
            extras=Extras(turns_left_out=plan.turns_left_out),
            defaults=services.sampling_defaults,
        )
        encoder = ResponseStreamEncoder(written)
        await generation.open([generate], body.stop)
        if not body.stream:
            try:
                (reply,) = await generation.replies()
                await turn.commit(reply)
            finally:
                generation.close()
            return JsonResponse(
                written.finished(reply, generation.usage(), completed_at=int(time.time()))
            )
        return EventStream(
            _events(generation, encoder, turn), broken=encoder.fail, close=generation.close
        )

    return router


async def _events(
    generation: Generation, encoder: ResponseStreamEncoder, turn: _Turn
) -> AsyncIterator[bytes]:
    yield b"".join(encoder.start())
    async for _, deltas in generation.deltas():
        if deltas is not None:
            yield b"".join([encoder.delta(delta.text, delta.logprobs or ()) for delta in deltas])
    reply = generation.choices[0].reply
    if reply is not None:
        await turn.commit(reply)
        usage = generation.usage()
        yield b"".join(encoder.finish(reply.reason, usage, completed_at=int(time.time())))
