"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence

from fastapi import APIRouter, Request, Response

from serve_app.api.body import parse_body
from serve_app.api.chat import ChatCompletionRequest, chat_completion
from serve_app.api.chat_stream import ChatStreamEncoder
from serve_app.api.errors import error_event
from serve_app.api.ids import chat_completion_id
from serve_app.api.reply import Extras
from serve_app.api.sse import DONE
from serve_app.errors import InvalidRequest
from serve_app.ingress.event_stream import EventStream
from serve_app.ingress.gate import tenant_of
from serve_app.ingress.inference_span import Inference
from serve_app.ingress.json_response import accounted
from serve_app.ingress.models import ModelService
from serve_app.ingress.replies import Generation
from serve_app.ingress.services import Services, random_seed
from serve_app.messages.dialogue import PlanTurn, TurnPlan
from serve_app.messages.generation import GenerateRequest
from serve_app.telemetry.origin import named

__all__ = ["chat_routes"]


def chat_routes(services: Services) -> APIRouter:
    """Return the chat completions API."""
    router = APIRouter()
    limits = services.settings.ingress

    @router.post("/v1/chat/completions")
    async def create_chat_completion(request: Request) -> Response:
        generation = services.generation()
        body = parse_body(
            await request.body(), ChatCompletionRequest, max_depth=limits.max_json_depth
        )
        model = services.models.named(body.model)
        check_size(body, services)
        completion, created = chat_completion_id(), int(time.time())
        named(request=completion)
        account = generation.account
        account.begin("chat.completions", completion, model.name)
        messages = body.to_messages()
        with model.generators.promise(body.n):
            async with generation.in_time(body.timeout):
                with account.hop("plan") as hop:
                    plan = await services.dialogue.plan(
                        PlanTurn(
                            tenant=tenant_of(request.scope),
                            messages=messages,
                            max_tokens=body.token_limit,
                            truncate=body.truncation == "auto",
                            model=model.key,
                        )
                    )
                    hop.answered(plan)
            with account.stage("submit"):
                requests = choice_requests(body, plan, completion, services, model)
                extras = Extras(turns_left_out=plan.turns_left_out)
                encoders = [
                    ChatStreamEncoder(
                        completion=completion,
                        model=model.name,
                        created=created,
                        choice=choice,
                        include_usage=body.include_usage,
                    )
                    for choice in range(body.n)
                ]
            inference = Inference("chat", model.name, messages, streams=body.stream, stop=body.stop)
            await generation.open(model, requests, body.stop, inference)
        if not body.stream:
            try:
                replies = await generation.replies()
            finally:
                generation.close()
            return accounted(
                chat_completion(
                    completion=completion,
                    model=model.name,
                    created=created,
                    replies=replies,
                    usage=generation.usage(),
                    extras=extras,
                    metadata=body.metadata,
                ),
                account,
            )
        return EventStream(
            chat_events(generation, encoders, extras, body),
            broken=error_event,
            close=generation.close,
        )

    return router


def check_size(body: ChatCompletionRequest, services: Services) -> None:
    """Refuse more messages or choices than the settings allow.

    Raises:
        InvalidRequest: naming the setting.
    """
    limits = services.settings.ingress
    if len(body.messages) > limits.max_messages:
        message = f"'messages' has {len(body.messages)} entries; at most {limits.max_messages} are taken (setting ingress.max_messages)."
        raise InvalidRequest(message, param="messages")
    if body.n > limits.max_choices:
        message = f"'n' is {body.n}; at most {limits.max_choices} choices are made (setting ingress.max_choices)."
        raise InvalidRequest(message, param="n")


def choice_requests(
    body: ChatCompletionRequest,
    plan: TurnPlan,
    completion: str,
    services: Services,
    model: ModelService,
) -> list[GenerateRequest]:
    """Return one request to the generator per choice."""
    seed = random_seed()
    return [
        GenerateRequest(
            request_id=f"{completion}-{choice}",
            subscriber="",
            stream=0,
            prompt=plan.prompt,
            sampling=body.sampling(
                max_tokens=plan.max_tokens,
                vocab_size=model.info.vocab_size,
                defaults=services.sampling_defaults,
                seed=seed,
                choice=choice,
            ),
            priority=body.priority,
            affinity=plan.affinity,
        )
        for choice in range(body.n)
    ]


async def chat_events(
    generation: Generation,
    encoders: Sequence[ChatStreamEncoder],
    extras: Extras,
    body: ChatCompletionRequest,
) -> AsyncIterator[bytes]:
    """Yield the events of a streamed chat completion."""
    for encoder in encoders:
        yield encoder.start(extras, body.metadata)
    async for choice, deltas in generation.deltas():
        if deltas is not None:
            encode = encoders[choice].delta
            yield b"".join([encode(delta.text, delta.logprobs) for delta in deltas])
        elif (reply := generation.choices[choice].reply) is not None:
            yield encoders[choice].finish(reply.reason)
    usage = generation.usage()
    if body.include_usage:
        yield encoders[0].usage(usage)
    if body.include_timing:
        yield encoders[0].timing(generation.account.snapshot())
    yield DONE
