"""POST /v1/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from hashlib import blake2b

from fastapi import APIRouter, Request, Response

from serve_app.api.body import parse_body
from serve_app.api.completion_stream import CompletionStreamEncoder
from serve_app.api.completions import CompletionRequest, completion_object
from serve_app.api.errors import error_event
from serve_app.api.ids import completion_id
from serve_app.api.reply import Extras
from serve_app.api.sse import DONE
from serve_app.errors import ContextLengthExceeded, InvalidRequest
from serve_app.ingress.event_stream import EventStream
from serve_app.ingress.inference_span import Inference
from serve_app.ingress.json_response import accounted
from serve_app.ingress.models import ModelService
from serve_app.ingress.replies import Generation
from serve_app.ingress.request_account import RequestAccount
from serve_app.ingress.services import Services, random_seed
from serve_app.messages.generation import GenerateRequest
from serve_app.messages.tokenization import Message
from serve_app.telemetry.account import Spent
from serve_app.telemetry.origin import named

__all__ = ["completion_routes"]

_AFFINITY_TOKENS = 256


def completion_routes(services: Services) -> APIRouter:
    """Return the completions API."""
    router = APIRouter()
    limits = services.settings.ingress

    @router.post("/v1/completions")
    async def create_completion(request: Request) -> Response:
        generation = services.generation()
        body = parse_body(await request.body(), CompletionRequest, max_depth=limits.max_json_depth)
        model = services.models.named(body.model)
        completion, created = completion_id(), int(time.time())
        named(request=completion)
        account = generation.account
        account.begin("completions", completion, model.name)
        choices = min(len(body.prompt) * body.n, limits.max_choices)
        with model.generators.promise(choices):
            with account.stage("submit"):
                async with generation.in_time(body.timeout):
                    requests = await _requests(body, completion, services, model, account)
                encoders = [
                    CompletionStreamEncoder(
                        completion=completion,
                        model=model.name,
                        created=created,
                        choice=choice,
                        include_usage=body.include_usage,
                    )
                    for choice in range(len(requests))
                ]
            inference = Inference(
                "text_completion",
                model.name,
                [Message("user", prompt) for prompt in body.prompt if isinstance(prompt, str)],
                streams=body.stream,
                stop=body.stop,
                prompts=len(body.prompt),
            )
            await generation.open(model, requests, body.stop, inference)
        if not body.stream:
            try:
                replies = await generation.replies()
            finally:
                generation.close()
            return accounted(
                completion_object(
                    completion=completion,
                    model=model.name,
                    created=created,
                    replies=replies,
                    usage=generation.usage(prompts=len(body.prompt)),
                    extras=Extras(),
                ),
                account,
            )
        return EventStream(
            _events(generation, encoders, body),
            broken=error_event,
            close=generation.close,
        )

    return router


async def _requests(
    body: CompletionRequest,
    completion: str,
    services: Services,
    model: ModelService,
    account: RequestAccount,
) -> list[GenerateRequest]:
    limits = services.settings.ingress
    prompts = body.checked_prompts(model.info.vocab_size)
    if len(prompts) * body.n > limits.max_choices:
        message = (
            f"{len(prompts)} prompts with n={body.n} make {len(prompts) * body.n} choices; at most "
            f"{limits.max_choices} are made (setting ingress.max_choices)."
        )
        raise InvalidRequest(message, param="n")
    context = model.info.context_length
    seed = random_seed()
    requests = []
    for number, prompt in enumerate(prompts):
        tokens = prompt if isinstance(prompt, tuple) else await _encoded(prompt, model, account)
        if not tokens or len(tokens) >= context:
            message = (
                f"The prompt has {len(tokens)} tokens; it needs at least 1 and, with room for a "
                f"reply, fewer than {context}."
            )
            raise ContextLengthExceeded(message, param="prompt")
        for choice in range(body.n):
            index = number * body.n + choice
            requests.append(
                GenerateRequest(
                    request_id=f"{completion}-{index}",
                    subscriber="",
                    stream=0,
                    prompt=tuple(tokens),
                    sampling=body.sampling(
                        max_tokens=min(body.max_tokens, context - len(tokens)),
                        vocab_size=model.info.vocab_size,
                        defaults=services.sampling_defaults,
                        seed=seed,
                        choice=index,
                    ),
                    priority=body.priority,
                    affinity=_beginning(tokens),
                )
            )
    return requests


async def _encoded(prompt: str, model: ModelService, account: RequestAccount) -> tuple[int, ...]:
    with account.hop("tokenize") as hop:
        encoding = await model.tokenizer.encode_text(prompt)
        hop.answered(Spent(encoding.encode_s))
    return encoding.tokens


def _beginning(tokens: Sequence[int]) -> str:
    """Name what a prompt begins with, so that equal prompts meet in one replica's cache."""
    beginning = ",".join(map(str, tokens[:_AFFINITY_TOKENS]))
    return blake2b(beginning.encode(), digest_size=16).hexdigest()


async def _events(
    generation: Generation, encoders: Sequence[CompletionStreamEncoder], body: CompletionRequest
) -> AsyncIterator[bytes]:
    async for choice, deltas in generation.deltas():
        if deltas is not None:
            encode = encoders[choice].delta
            yield b"".join([encode(delta.text, delta.logprobs) for delta in deltas])
        elif (reply := generation.choices[choice].reply) is not None:
            yield encoders[choice].finish(reply.reason)
    usage = generation.usage(prompts=len(body.prompt))
    if body.include_usage:
        yield encoders[0].usage(usage)
    if body.include_timing:
        yield encoders[0].timing(generation.account.snapshot())
    yield DONE
